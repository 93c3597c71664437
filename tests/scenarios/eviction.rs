//! Who has to go, who stays, and that nobody loses a byte.

use devpagemap::{Error, EvictionPolicy, Place, RegionKind, Size};

use crate::setup::*;

const VRAM: Option<RegionKind> = Some(RegionKind::Vram);
const SYSTEM: Option<RegionKind> = Some(RegionKind::System);

#[test]
fn the_least_recently_used_goes_first() {
    let device = device(4);
    let buffers = [1, 2, 3, 4].map(|seed| filled(&device, 1, seed));
    verify(&device, &buffers[0], 1).expect("it is there");
    let _fifth = filled(&device, 1, 5);
    assert_eq!(buffers.each_ref().map(|buffer| buffer.evictions()), [0, 1, 0, 0], "the first was used again");
    let stats = device.stats();
    assert_eq!((stats.evictions, stats.evicted_bytes, stats.system_used_bytes), (1, MIB, MIB));
}

#[test]
fn buffers_of_one_submission_are_used_in_the_order_in_which_it_names_them() {
    let device = device(3);
    let [a, b, c] = [1, 2, 3].map(|seed| filled(&device, 1, seed));
    finished(device.submit().reads(&c).reads(&a).reads(&b).run(|_, _| Ok(devpagemap::Fence::signaled())));
    let _d = filled(&device, 1, 4);
    assert_eq!([a.evictions(), b.evictions(), c.evictions()], [0, 0, 1]);
    let _e = filled(&device, 1, 5);
    assert_eq!([a.evictions(), b.evictions(), c.evictions()], [1, 0, 1]);
}

#[test]
fn a_lower_priority_goes_before_an_older_buffer() {
    let device = device(4);
    let with_priority = |priority| {
        let buffer = device.buffer(Size::mib(1)).priority(priority).create().expect("a buffer");
        fill(&device, &buffer, 1 + priority as u64).expect("room");
        buffer
    };
    let buffers = [3, 2, 1, 0].map(with_priority);
    let mut newcomers = Vec::new();
    for expected in [[0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1]] {
        let newcomer = device.buffer(Size::mib(1)).priority(3).create().expect("a buffer");
        newcomer.place_now().expect("somebody can go");
        newcomers.push(newcomer);
        assert_eq!(buffers.each_ref().map(|buffer| buffer.evictions()), expected);
    }
    for (buffer, seed) in buffers.iter().zip([4, 3, 2, 1]) {
        expect_bytes(buffer, seed);
    }
}

#[test]
fn another_priority_counts_for_the_next_eviction_and_moves_nothing() {
    let device = device(3);
    let [a, b, c] = [1, 2, 3].map(|seed| filled(&device, 1, seed));
    a.set_priority(3).expect("a priority");
    c.set_priority(0).expect("a priority");
    assert_eq!([a.priority(), b.priority(), c.priority()], [3, 1, 0]);
    assert_eq!(device.stats().evictions, 0);
    let _newcomer = filled(&device, 1, 4);
    assert_eq!([a.evictions(), b.evictions(), c.evictions()], [0, 0, 1]);
    let _another = filled(&device, 1, 5);
    assert_eq!([a.evictions(), b.evictions(), c.evictions()], [0, 1, 1]);
    let refused = a.set_priority(4);
    assert!(matches!(refused, Err(Error::InvalidPlacement { .. })), "{refused:?}");
    assert_eq!(a.priority(), 3);
}

#[test]
fn victims_get_their_bytes_back_unharmed() {
    let device = device(4);
    let buffers: Vec<_> = (0..6).map(|seed| filled(&device, 2, seed)).collect();
    assert_eq!((device.stats().evictions, device.stats().restores), (4, 0));
    for (seed, buffer) in (0..).zip(&buffers) {
        finished(verify(&device, buffer, seed));
    }
    let stats = device.stats();
    assert_eq!((stats.evictions, stats.restores), (10, 6));
    assert_eq!((stats.evicted_bytes, stats.restored_bytes), (20 * MIB, 12 * MIB));
    assert_eq!((stats.moves, stats.moved_bytes), (16, 32 * MIB));
    assert_eq!(stats.cpu_waits_in_validate, 0);
    for (seed, buffer) in (0..).zip(&buffers) {
        expect_bytes(buffer, seed);
    }
}

#[test]
fn a_buffer_that_is_held_by_a_map_stays_and_the_others_go() {
    let device = device(4);
    let buffers = [1, 2].map(|seed| filled(&device, 2, seed));
    let map = buffers[0].vmap().expect("all of VRAM is visible");
    let _newcomer = filled(&device, 2, 3);
    assert_eq!(buffers.each_ref().map(|buffer| buffer.region()), [VRAM, SYSTEM]);
    drop(map);
    let _another = filled(&device, 4, 4);
    assert_eq!(buffers.each_ref().map(|buffer| buffer.region()), [SYSTEM, SYSTEM]);
    expect_bytes(&buffers[0], 1);
    expect_bytes(&buffers[1], 2);
}

#[test]
fn when_all_is_pinned_vram_is_exhausted_and_says_by_what() {
    let device = device(4);
    let buffers = [1, 2].map(|seed| filled(&device, 1, seed));
    let maps = buffers.each_ref().map(|buffer| buffer.vmap().expect("all of VRAM is visible"));
    let newcomer = vram_buffer(&device, 3);
    let before = device.stats();
    let region = RegionKind::Vram;
    let (wanted_bytes, free_bytes, pinned_bytes, held_bytes) = (3 * MIB, 2 * MIB, 2 * MIB, 0);
    let exhausted = Error::Exhausted { region, wanted_bytes, free_bytes, pinned_bytes, held_bytes };
    assert_eq!(newcomer.place_now(), Err(exhausted));
    assert_eq!(device.stats(), before, "an attempt that failed changes nothing");
    assert_eq!(newcomer.region(), None);

    let fits = filled(&device, 2, 3);
    assert_eq!(fits.region(), VRAM, "what the attempt had set aside is free again");
    drop(maps);
    newcomer.place_now().expect("unmapped, they can go");
}

#[test]
fn a_destroyed_buffers_space_is_reused_before_anybody_is_evicted() {
    let device = device(4);
    let (kept, dropped) = (filled(&device, 2, 1), filled(&device, 2, 2));
    drop(dropped);
    let newcomer = filled(&device, 2, 3);
    assert_eq!((kept.region(), newcomer.region()), (VRAM, VRAM));
    assert_eq!((device.stats().evictions, device.stats().vram_used_bytes), (0, 4 * MIB));
}

#[test]
fn a_destroyed_buffers_space_is_reused_even_while_it_is_in_use() {
    let device = device(4);
    let (kept, dropped) = (filled(&device, 2, 1), filled(&device, 2, 2));
    device.wait_idle();
    let gate = Gate::closed();
    let job = device.submit().reads(&dropped).run(|_, _| Ok(gate.fence().clone()));
    assert!(job.is_ok_and(|fence| !fence.is_signaled()));
    drop(dropped);
    let newcomer = vram_buffer(&device, 2);
    newcomer.place_now().expect("it will be free");
    assert_eq!((kept.region(), newcomer.region(), device.stats().evictions), (VRAM, VRAM, 0));
    gate.open();
}

#[test]
fn lru_set_spares_the_small_ones_when_a_large_one_alone_makes_the_room() {
    for (policy, small, large, evicted_mib) in
        [(EvictionPolicy::LruSet, 0, 1, 6), (EvictionPolicy::Lru, 1, 1, 8)]
    {
        let device = device_with(policy, 8);
        let buffers = [(1, 1), (1, 2), (6, 3)].map(|(mib, seed)| filled(&device, mib, seed));
        let _newcomer = filled(&device, 6, 4);
        assert_eq!(buffers.each_ref().map(|buffer| buffer.evictions()), [small, small, large], "{policy:?}");
        assert_eq!(device.stats().evicted_bytes, evicted_mib * MIB, "{policy:?}");
        for (seed, buffer) in (1..).zip(&buffers) {
            expect_bytes(buffer, seed);
        }
    }
}

#[test]
fn lru_set_does_not_touch_a_more_important_buffer_to_spare_less_important_ones() {
    let device = device(8);
    let small = [1, 2].map(|seed| filled(&device, 1, seed));
    let important = device.buffer(Size::mib(6)).priority(3).create().expect("a buffer");
    important.place_now().expect("room");
    let newcomer = filled(&device, 2, 3);
    assert_eq!(small.each_ref().map(|buffer| buffer.region()), [SYSTEM, SYSTEM]);
    assert_eq!((important.region(), newcomer.region()), (VRAM, VRAM));
}

#[test]
fn a_contiguous_request_evicts_the_window_that_moves_the_fewest_bytes() {
    for (policy, evicted_mib) in [(EvictionPolicy::LruSet, 2), (EvictionPolicy::Lru, 4)] {
        let device = device_with(policy, 8);
        let layout = [(0, 4), (4, 1), (5, 1), (6, 2)];
        let buffers = layout.map(|(at, mib)| {
            let buffer = buffer_at(&device, Place::VRAM.within(at * MIB..(at + mib) * MIB), mib);
            fill(&device, &buffer, at).expect("room");
            buffer
        });
        let whole = buffer_at(&device, Place::VRAM.contiguous(), 2);
        fill(&device, &whole, 9).expect("a window can be made");
        assert_eq!(extents(&device, &whole).len(), 1);
        assert_eq!(device.stats().evicted_bytes, evicted_mib * MIB, "{policy:?}");
        for (buffer, (seed, _)) in buffers.iter().zip(layout) {
            expect_bytes(buffer, seed);
        }
        expect_bytes(&whole, 9);
    }
}

#[test]
fn a_window_that_free_space_makes_up_in_part_evicts_only_the_rest() {
    let device = device(8);
    let layout = [(0, 3), (3, 1), (4, 4)];
    let buffers = layout.map(|(at, mib)| {
        let buffer = buffer_at(&device, Place::VRAM.within(at * MIB..(at + mib) * MIB), mib);
        fill(&device, &buffer, at).expect("room");
        buffer
    });
    let [first, second, third] = buffers;
    drop(first);
    let whole = buffer_at(&device, Place::VRAM.contiguous(), 4);
    fill(&device, &whole, 9).expect("a window can be made");
    assert_eq!((second.region(), third.region()), (SYSTEM, VRAM));
    expect_bytes(&second, 3);
    expect_bytes(&third, 4);
    expect_bytes(&whole, 9);
}

#[test]
fn room_that_pinned_buffers_cut_to_pieces_is_fragmented_and_says_how_large_the_pieces_are() {
    let device = device(8);
    let pinned = [2, 5].map(|at| buffer_at(&device, Place::VRAM.within(at * MIB..(at + 1) * MIB), 1));
    let _maps = pinned.each_ref().map(|buffer| buffer.vmap().expect("visible"));
    let resident = buffer_at(&device, Place::VRAM.within(0..2 * MIB), 2);
    fill(&device, &resident, 1).expect("room");
    let whole = buffer_at(&device, Place::VRAM.contiguous(), 3);
    let before = device.stats();
    let (region, wanted_bytes, largest_bytes) = (RegionKind::Vram, 3 * MIB, 2 * MIB);
    assert_eq!(whole.place_now(), Err(Error::Fragmented { region, wanted_bytes, largest_bytes }));
    assert_eq!(device.stats(), before);
    assert_eq!(resident.region(), VRAM);
    let scattered = vram_buffer(&device, 4);
    scattered.place_now().expect("in pieces there is room");
    assert_eq!(device.stats().evictions, 0);
}

#[test]
fn without_system_memory_for_every_victim_none_is_moved() {
    let device = builder(6).system(Size::mib(4)).build().expect("a device");
    let buffers = [1, 2].map(|seed| filled(&device, 3, seed));
    let newcomer = vram_buffer(&device, 6);
    let before = device.stats();
    let error = newcomer.place_now().expect_err("6 MiB of victims do not fit into 4 MiB");
    let Error::Exhausted { region: RegionKind::System, wanted_bytes, free_bytes, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!((wanted_bytes, free_bytes), (3 * MIB, MIB), "one home was found, the second was not");
    assert_eq!(device.stats(), before);
    assert_eq!(buffers.each_ref().map(|buffer| buffer.region()), [VRAM, VRAM]);
    assert_eq!(newcomer.region(), None);

    let smaller = filled(&device, 3, 3);
    assert_eq!(buffers.each_ref().map(|buffer| buffer.region()), [SYSTEM, VRAM], "one home there is");
    expect_bytes(&buffers[0], 1);
    expect_bytes(&buffers[1], 2);
    expect_bytes(&smaller, 3);
}

#[test]
fn the_buffers_of_a_submission_do_not_evict_one_another() {
    let device = device(6);
    let buffers = [1, 2, 3].map(|seed| filled(&device, 2, seed));
    let outsider = filled(&device, 6, 4);
    assert_eq!(outsider.region(), VRAM);
    let [a, b, c] = &buffers;
    finished(device.submit().reads(a).reads(b).reads(c).run(|gpu, job| {
        let parts = [(1, job.extents(a)), (2, job.extents(b)), (3, job.extents(c))];
        gpu.run(job, move |memory| {
            parts.iter().try_for_each(|(seed, extents)| check_pattern(memory, extents, *seed))
        })
    }));
    assert_eq!(buffers.each_ref().map(|buffer| buffer.region()), [VRAM; 3]);
    expect_bytes(&outsider, 4);
}

#[test]
fn a_submission_that_is_in_its_own_way_is_told_how_much_it_holds() {
    let device = builder(8).visible(Size::mib(3)).build().expect("a device");
    let (a, b) = (buffer_at(&device, Place::VRAM.visible(), 2), buffer_at(&device, Place::VRAM.visible(), 2));
    let refused = device.submit().writes(&a).writes(&b).run(|_, _| panic!("they do not fit"));
    let (region, wanted_bytes, free_bytes, held_bytes) = (RegionKind::Vram, 2 * MIB, MIB, 2 * MIB);
    let exhausted = Error::Exhausted { region, wanted_bytes, free_bytes, pinned_bytes: 0, held_bytes };
    assert_eq!(refused.map(|_| ()), Err(exhausted));
    a.place_now().expect("nobody kept it locked");
    b.place_now().expect("nobody kept it locked");
}

#[test]
fn an_eviction_in_the_middle_of_a_chain_of_evictions_keeps_every_byte() {
    let device = device(2);
    let buffers: Vec<_> = (0..8).map(|seed| filled(&device, 2, seed)).collect();
    for round in 0..4 {
        for (index, buffer) in buffers.iter().enumerate() {
            let seed = index as u64 + 100 * round;
            let before = if round == 0 { index as u64 } else { seed - 100 };
            verify(&device, buffer, before).expect("VRAM holds one at a time");
            fill(&device, buffer, seed).expect("it is there");
        }
    }
    for (index, buffer) in buffers.iter().enumerate() {
        expect_bytes(buffer, index as u64 + 300);
    }
    assert_eq!(device.stats().cpu_waits_in_validate, 0);
}

#[test]
fn a_buffer_evicted_before_it_was_ever_written_still_reads_as_zeros() {
    let device = device(2);
    let buffer = vram_buffer(&device, 2);
    buffer.place_now().expect("room");
    let _other = filled(&device, 2, 1);
    assert_eq!(buffer.region(), SYSTEM);
    expect_zeros(&buffer);
}
