//! The CPU's reads, writes and maps, wherever the bytes are just then.

use std::time::Duration;

use devpagemap::{Buffer, Error, FenceError, Place, RegionKind, Size};

use crate::setup::*;

/// Gives another thread the time to begin to wait. The tests are right without, and then test less.
const A_MOMENT: Duration = Duration::from_millis(20);

/// A device of 8 MiB of which the CPU sees the first 2.
fn small_bar() -> Lab {
    builder(8).visible(Size::mib(2)).build().expect("a device with a small BAR")
}

/// Writes the pattern of `seed` with the CPU, in pieces that fit neither pages nor words.
fn write_all(buffer: &Buffer, seed: u64) {
    let mut bytes = vec![0; buffer.size().as_bytes() as usize];
    pattern::write(seed, 0, &mut bytes);
    let mut offset = 0;
    for piece in bytes.chunks(777_777) {
        buffer.write_at(offset, piece).expect("inside the buffer");
        offset += piece.len() as u64;
    }
}

fn hold_for_reading(device: &Lab, gate: &Gate, buffer: &Buffer) {
    device.submit().reads(buffer).run(|_, _| Ok(gate.fence().clone())).expect("it has a place");
}

fn hold_for_writing(device: &Lab, gate: &Gate, buffer: &Buffer) {
    device.submit().writes(buffer).run(|_, _| Ok(gate.fence().clone())).expect("it has a place");
}

#[test]
fn what_the_cpu_writes_the_gpu_reads_and_the_other_way_round_in_every_region() {
    let device = small_bar();
    for place in [Place::VRAM, Place::VRAM.visible(), Place::GTT, Place::SYSTEM] {
        let buffer = buffer_at(&device, place.clone(), 2);
        buffer.place_now().expect("room");
        write_all(&buffer, 1);
        finished(verify(&device, &buffer, 1));
        finished(fill(&device, &buffer, 2));
        expect_bytes(&buffer, 2);
        write_all(&buffer, 3);
        expect_bytes(&buffer, 3);
    }
}

#[test]
fn a_buffer_that_was_never_used_reads_as_zeros_and_still_occupies_nothing() {
    let device = device(4);
    let buffer = vram_buffer(&device, 2);
    expect_zeros(&buffer);
    let stats = device.stats();
    assert_eq!((buffer.region(), stats.cleared_bytes, stats.fence_waits), (None, 0, 0));
}

#[test]
fn the_first_bytes_of_a_buffer_go_to_system_memory_and_the_rest_reads_as_zeros() {
    let device = device(4);
    let buffer = vram_buffer(&device, 2);
    buffer.write_at(MIB, b"first").expect("room in system memory");
    assert_eq!(buffer.region(), Some(RegionKind::System));
    let mut bytes = vec![1; 2 << 20];
    buffer.read_at(0, &mut bytes).expect("a readable buffer");
    assert_eq!(&bytes[1 << 20..(1 << 20) + 5], b"first");
    bytes[1 << 20..(1 << 20) + 5].fill(0);
    assert!(bytes.iter().all(|byte| *byte == 0));

    buffer.place_now().expect("room");
    assert_eq!((buffer.region(), device.stats().moves), (Some(RegionKind::Vram), 1));
    let mut first = [0; 5];
    buffer.read_at(MIB, &mut first).expect("a readable buffer");
    assert_eq!(&first, b"first");
}

#[test]
fn parts_are_read_and_written_at_any_offset() {
    let device = small_bar();
    for place in [Place::VRAM, Place::VRAM.visible(), Place::GTT] {
        let buffer = buffer_at(&device, place, 1);
        finished(fill(&device, &buffer, 5));
        let mut expected = vec![0; 1 << 20];
        pattern::write(5, 0, &mut expected);
        for (offset, len) in
            [(0, 1), (1, 4095), (4093, 7), (8192, 4096), ((1 << 20) - 3, 3), (70_001, 300_001)]
        {
            let fresh: Vec<u8> = (0..len).map(|index| (index * 7 + offset) as u8).collect();
            buffer.write_at(offset as u64, &fresh).expect("inside");
            expected[offset..offset + len].copy_from_slice(&fresh);
            let mut found = vec![0; len];
            buffer.read_at(offset as u64, &mut found).expect("inside");
            assert_eq!(found, fresh);
        }
        let mut found = vec![0; 1 << 20];
        buffer.read_at(0, &mut found).expect("inside");
        assert!(found == expected, "what was not written has changed");
    }
}

#[test]
fn only_what_the_bar_does_not_show_is_bounced_and_it_is_counted() {
    let device = small_bar();
    let (hidden, visible) = (filled(&device, 4, 1), buffer_at(&device, Place::VRAM.visible(), 2));
    fill(&device, &visible, 2).expect("room");
    expect_bytes(&visible, 2);
    write_all(&visible, 3);
    assert_eq!(device.stats().bounced_bytes, 0);
    expect_bytes(&hidden, 1);
    assert_eq!(device.stats().bounced_bytes, 4 * MIB);
    hidden.write_at(5, &[9; 10]).expect("inside");
    assert_eq!(device.stats().bounced_bytes, 4 * MIB + 10);
    assert_eq!((hidden.region(), hidden.visible()), (Some(RegionKind::Vram), false), "it stays where it is");
    device.wait_idle();
    assert_eq!((device.stats().system_used_bytes, device.stats().system_pending_bytes), (0, 0));
}

#[test]
fn a_large_access_is_bounced_with_little_system_memory() {
    let device =
        builder(48).visible(Size::bytes(0)).system(Size::mib(34)).build().expect("a device without a BAR");
    let buffer = filled(&device, 40, 1);
    expect_bytes(&buffer, 1);
    write_all(&buffer, 2);
    let mut bytes = vec![0; 40 << 20];
    pattern::write(3, 0, &mut bytes);
    buffer.write_at(0, &bytes).expect("in chunks there is room");
    expect_bytes(&buffer, 3);
}

#[test]
fn without_system_memory_a_hidden_buffer_cannot_be_read_and_is_unharmed() {
    let device = builder(8).visible(Size::bytes(0)).system(Size::mib(1)).build().expect("a device");
    let buffer = filled(&device, 2, 1);
    let hog = buffer_at(&device, Place::SYSTEM, 1);
    hog.place_now().expect("room");
    let error = buffer.read_at(0, &mut [0; 100]).expect_err("nowhere to bounce to");
    assert!(matches!(error, Error::Exhausted { region: RegionKind::System, .. }), "{error:?}");
    let error = buffer.write_at(0, &[0; 100]).expect_err("nowhere to bounce to");
    assert!(matches!(error, Error::Exhausted { region: RegionKind::System, .. }), "{error:?}");
    drop(hog);
    device.wait_idle();
    let mut bytes = [0; 4096];
    buffer.read_at(0, &mut bytes).expect("there is room again");
    assert_eq!(pattern::check(1, 0, &bytes), Ok(()));
}

#[test]
fn a_buffer_in_scattered_pieces_visible_and_not_is_read_and_written_across_them() {
    let device = small_bar();
    let holders: Vec<_> = (0..8)
        .map(|mib| buffer_at(&device, Place::VRAM.within(mib * MIB..(mib + 1) * MIB), 1))
        .inspect(|buffer| buffer.place_now().expect("room"))
        .collect();
    let kept: Vec<_> = holders.into_iter().enumerate().filter(|(index, _)| index % 2 == 0).collect();
    device.wait_idle();
    let scattered = filled(&device, 4, 1);
    assert_eq!(extents(&device, &scattered).len(), kept.len());
    expect_bytes(&scattered, 1);
    write_all(&scattered, 2);
    finished(verify(&device, &scattered, 2));
    expect_bytes(&scattered, 2);
}

#[test]
fn access_to_one_buffer_does_not_wait_for_work_on_another() {
    let device = device(8);
    let (busy, idle) = (filled(&device, 4, 1), filled(&device, 4, 2));
    device.wait_idle();
    let gate = Gate::closed();
    hold_for_writing(&device, &gate, &busy);
    expect_bytes(&idle, 2);
    write_all(&idle, 3);
    expect_bytes(&idle, 3);
    let map = idle.map().expect("it is visible");
    assert_eq!((map.fell_back(), gate.fence().is_signaled()), (None, false));
    gate.open();
    expect_bytes(&busy, 1);
}

#[test]
fn reading_does_not_wait_for_readers_and_waits_for_writers() {
    let device = device(4);
    let buffer = filled(&device, 4, 1);
    device.wait_idle();
    let reading = Gate::closed();
    hold_for_reading(&device, &reading, &buffer);
    expect_bytes(&buffer, 1);

    let writing = Gate::closed();
    let (theirs, before) = (buffer.clone(), writing.fence().clone());
    hold_for_writing(&device, &writing, &buffer);
    let reader = std::thread::spawn(move || {
        let mut byte = [0];
        let read = theirs.read_at(0, &mut byte);
        (read, before.is_signaled())
    });
    writing.open();
    assert_eq!(reader.join().expect("no panic"), (Ok(()), true), "the read ended after the write");
    assert!(!reading.fence().is_signaled());
    reading.open();
}

#[test]
fn writing_waits_for_readers() {
    let device = device(4);
    let buffer = filled(&device, 4, 1);
    device.wait_idle();
    let gate = Gate::closed();
    hold_for_reading(&device, &gate, &buffer);
    let (theirs, before) = (buffer.clone(), gate.fence().clone());
    let writer = std::thread::spawn(move || (theirs.write_at(0, &[1]), before.is_signaled()));
    gate.open();
    assert_eq!(writer.join().expect("no panic"), (Ok(()), true));
}

#[test]
fn a_thread_that_waits_for_a_buffer_is_in_nobodys_way() {
    let device = device(4);
    let buffer = filled(&device, 4, 1);
    device.wait_idle();
    let gate = Gate::closed();
    hold_for_writing(&device, &gate, &buffer);
    let theirs = buffer.clone();
    let reader = std::thread::spawn(move || expect_bytes(&theirs, 1));
    std::thread::sleep(A_MOMENT);
    let newcomer = vram_buffer(&device, 4);
    newcomer.place_now().expect("the waiting reader does not keep the buffer locked");
    assert_eq!(buffer.region(), Some(RegionKind::System));
    gate.open();
    reader.join().expect("its bytes are right");
}

#[test]
fn a_read_gives_the_same_during_a_job_that_fails_as_after_it() {
    let device = device(4);
    let buffer = filled(&device, 4, 1);
    device.wait_idle();
    let gate = Gate::closed();
    let failing = device.submit().writes(&buffer).after(gate.fence());
    let failing = failing.run(|gpu, job| gpu.run(job, |_| Err("no".into()))).expect("submitting it works");
    let (theirs, before) = (buffer.clone(), failing.clone());
    let during = std::thread::spawn(move || (theirs.read_at(0, &mut [0]), before.is_signaled()));
    std::thread::sleep(A_MOMENT);
    gate.open();
    let (during, job_was_over) = during.join().expect("no panic");
    let after = buffer.read_at(0, &mut [0]);
    assert!(job_was_over);
    assert_eq!(
        during, after,
        "a job's failure is its submitter's business; no byte of the buffer was lost by a move"
    );
    assert_eq!(after, Ok(()));
}

#[test]
fn a_pinned_map_brings_the_buffer_into_the_visible_prefix_and_keeps_it_there() {
    let device = small_bar();
    let (hidden, other) = (filled(&device, 2, 1), filled(&device, 2, 2));
    let map = hidden.vmap().expect("the prefix is free");
    assert_eq!((map.fell_back(), hidden.visible()), (None, true));
    assert_eq!(device.stats().vram_pinned_bytes, 2 * MIB);
    let _crowd: Vec<_> = (0..6).map(|seed| filled(&device, 2, seed)).collect();
    assert_eq!((hidden.visible(), hidden.evictions()), (true, 0));
    let mut bytes = [0; 64];
    map.read(4096, &mut bytes).expect("inside");
    assert_eq!(pattern::check(1, 4096, &bytes), Ok(()));
    map.write(0, b"mapped").expect("inside");
    assert_eq!(map.buffer().id(), hidden.id());
    assert_eq!(
        (device.stats().cpu_maps, device.stats().bar_fallbacks, device.stats().bounced_bytes),
        (1, 0, 0)
    );
    let mut start = [0; 6];
    hidden.read_at(0, &mut start).expect("inside");
    assert_eq!(&start, b"mapped");
    expect_bytes(&other, 2);
}

#[test]
fn a_map_evicts_unmapped_buffers_from_the_prefix() {
    let device = small_bar();
    let (first, second) =
        (buffer_at(&device, Place::VRAM.visible(), 2), buffer_at(&device, Place::VRAM.visible(), 2));
    fill(&device, &first, 1).expect("room");
    let map = second.map().expect("the first can be evicted");
    assert_eq!((map.fell_back(), first.region()), (None, Some(RegionKind::System)));
    expect_bytes(&first, 1);
}

#[test]
fn a_map_that_the_prefix_cannot_hold_falls_back_to_system_memory_with_the_reason() {
    let device = small_bar();
    let too_large = filled(&device, 4, 1);
    let large = too_large.map().expect("system memory holds it");
    assert!(large.fell_back().is_some_and(|why| why.contains("larger than the visible part")), "{large:?}");
    assert_eq!(too_large.region(), Some(RegionKind::System));

    let (one, two) = (filled(&device, 2, 2), filled(&device, 1, 3));
    let _keeps_the_prefix = one.vmap().expect("the prefix is free");
    let crowded_out = two.map().expect("system memory holds it");
    assert!(crowded_out.fell_back().is_some_and(|why| why.contains("exhausted")), "{crowded_out:?}");
    let stats = device.stats();
    assert_eq!((stats.cpu_maps, stats.bar_fallbacks), (3, 2));
    for map in [&large, &crowded_out] {
        assert_eq!(
            stats.reasons.get(map.fell_back().expect("checked above")),
            Some(&1),
            "{:?}",
            stats.reasons
        );
    }
    expect_bytes(&too_large, 1);
    expect_bytes(&two, 3);
}

#[test]
fn a_buffer_mapped_in_system_memory_is_still_the_gpus_to_use_and_the_map_follows_it() {
    let device = small_bar();
    let buffer = filled(&device, 4, 1);
    let map = buffer.map().expect("system memory holds it");
    assert_eq!(buffer.region(), Some(RegionKind::System));
    finished(verify(&device, &buffer, 1));
    assert_eq!(buffer.region(), Some(RegionKind::Vram));
    map.write(4096, b"through the map").expect("the map follows");
    let mut bytes = [0; 15];
    map.read(4096, &mut bytes).expect("the map follows");
    assert_eq!(&bytes, b"through the map");
}

#[test]
fn a_buffer_held_in_gtt_is_not_demoted() {
    let device = builder(4).gtt(Size::mib(4)).build().expect("a device");
    let (mapped, other) = (buffer_at(&device, Place::GTT, 2), buffer_at(&device, Place::GTT, 2));
    let map = mapped.vmap().expect("GTT is visible");
    other.place_now().expect("room");
    let newcomer = buffer_at(&device, Place::GTT, 2);
    newcomer.place_now().expect("the other can go");
    let regions = [&mapped, &other].map(|buffer| buffer.region());
    assert_eq!(regions, [Some(RegionKind::Gtt), Some(RegionKind::System)]);
    drop(map);
    other.place_now().expect("somebody can go");
    newcomer.place_now().expect("somebody can go");
    assert_eq!(mapped.region(), Some(RegionKind::System), "unmapped, it has its turn like the others");
}

#[test]
fn a_mapped_buffer_may_be_used_by_jobs_where_it_is() {
    let device = device(4);
    let buffer = filled(&device, 4, 1);
    let map = buffer.map().expect("it is visible");
    finished(fill(&device, &buffer, 2));
    let mut bytes = [0; 4096];
    map.read(8192, &mut bytes).expect("inside");
    assert_eq!(pattern::check(2, 8192, &bytes), Ok(()));
    assert_eq!(device.stats().moves, 0);
}

#[test]
fn only_the_last_of_several_pinned_maps_unpins() {
    let device = device(4);
    let buffer = filled(&device, 4, 1);
    let maps = [buffer.vmap(), buffer.vmap()].map(|map| map.expect("it is visible"));
    let newcomer = vram_buffer(&device, 4);
    let [first, second] = maps;
    drop(first);
    newcomer.place_now().expect_err("it is still held");
    drop(second);
    newcomer.place_now().expect("nobody holds it any more");
    assert_eq!(device.stats().vram_pinned_bytes, 0);
}

#[test]
fn a_pinned_map_whose_waiting_fails_leaves_nothing_pinned() {
    let device = device(4);
    let buffer = filled(&device, 4, 1);
    device.wait_idle();
    let gate = Gate::closed();
    hold_for_writing(&device, &gate, &buffer);
    let theirs = buffer.clone();
    let mapper = std::thread::spawn(move || theirs.vmap().map(|map| map.fell_back().map(str::to_owned)));
    soon("the mapper's waiting", || device.stats().vram_pinned_bytes > 0);
    drop(gate);
    let mapped = mapper.join().expect("no panic");
    assert!(matches!(mapped, Ok(None) | Err(Error::FenceFailed(FenceError::Abandoned { .. }))), "{mapped:?}");
    assert_eq!(device.stats().vram_pinned_bytes, 0);
}

#[test]
fn a_map_outlives_every_handle_of_its_buffer() {
    let device = device(4);
    let buffer = filled(&device, 2, 1);
    let map = buffer.map().expect("it is visible");
    drop(buffer);
    drop(device);
    let mut bytes = [0; 4096];
    map.read(0, &mut bytes).expect("the map keeps it alive");
    assert_eq!(pattern::check(1, 0, &bytes), Ok(()));
}
