//! Maps that follow their buffers, as threads touch them.

use std::io::Read;
use std::ops::Range;
use std::thread;
use std::time::Duration;

use devpagemap::{AfterLoss, Buffer, CpuFaults, CpuMap, Error, Place, RegionKind, Size};

use crate::child::{expect_killed, expect_success, in_a_child};
use crate::setup::*;
use crate::words::words;

/// Gives another thread the time to fall asleep. The tests are right without, and then test less.
const A_MOMENT: Duration = Duration::from_millis(20);

const SIGBUS: i32 = 7;
const SIGSEGV: i32 = 11;
const PAGE: u64 = 4096;

const VRAM: Option<RegionKind> = Some(RegionKind::Vram);
const GTT: Option<RegionKind> = Some(RegionKind::Gtt);
const SYSTEM: Option<RegionKind> = Some(RegionKind::System);

/// A device of 8 MiB of which the CPU sees the first 2.
fn small_bar() -> Lab {
    builder(8).visible(Size::mib(2)).build().expect("a device with a small BAR")
}

/// A buffer in VRAM that the CPU may reach there, full of the pattern of `seed`.
fn reachable(device: &Lab, mib: u64, seed: u64) -> Buffer {
    let buffer =
        device.buffer(Size::mib(mib)).prefer(Place::VRAM).write_combined().create().expect("it fits");
    fill(device, &buffer, seed).expect("room for it");
    buffer
}

/// Evicts whatever is in VRAM.
fn evict_all(device: &Lab, vram_mib: u64) {
    vram_buffer(device, vram_mib).place_now().expect("everything can go");
}

fn first_word(seed: u64) -> u64 {
    let mut bytes = [0; 8];
    pattern::write(seed, 0, &mut bytes);
    u64::from_ne_bytes(bytes)
}

/// How this process has mapped an address: `rw-s` and the like.
fn permissions(address: usize) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("a process has maps");
    let holds = |line: &&str| {
        let (start, end) =
            line.split_once(' ').expect("a line has a range").0.split_once('-').expect("two ends");
        let number = |text| usize::from_str_radix(text, 16).expect("hex");
        (number(start)..number(end)).contains(&address)
    };
    let line = maps.lines().find(holds).expect("the address is mapped");
    line.split(' ').nth(1).expect("a line has permissions").to_string()
}

#[test]
fn a_map_keeps_its_address_while_the_buffer_moves_and_shows_its_bytes_everywhere() {
    let device = device(4);
    let buffer = reachable(&device, 2, 1);
    let map = buffer.map().expect("all is visible");
    let (address, words) = (map.as_ptr(), words(&map));
    assert_eq!((words.get(0), buffer.region(), map.is_pinned()), (first_word(1), VRAM, false));
    words.set(1000, 42);
    evict_all(&device, 4);
    assert_eq!((buffer.region(), words.get(1000), words.get(0)), (SYSTEM, 42, first_word(1)));
    words.set(1001, 43);
    finished(fill(&device, &vram_buffer(&device, 1), 9));
    buffer.place_now().expect("VRAM has room");
    assert_eq!((buffer.region(), words.get(1000), words.get(1001)), (VRAM, 42, 43));
    assert_eq!(map.as_ptr(), address);
    let mut word = [0; 8];
    buffer.read_at(8000, &mut word).expect("inside");
    assert_eq!(u64::from_ne_bytes(word), 42, "what is written through the address is read at the offset");
    let stats = device.stats();
    assert_eq!((stats.cpu_touches, stats.cpu_points, stats.cpu_zaps), (3, 3, 2));
    assert_eq!((stats.vram_pinned_bytes, stats.bounced_bytes), (0, 0));
}

#[test]
fn a_buffer_that_goes_between_gtt_and_system_keeps_its_pages_and_its_maps() {
    let device = builder(2).gtt(Size::mib(2)).build().expect("a device");
    let buffer = buffer_at(&device, Place::GTT, 2);
    let map = buffer.map().expect("GTT is visible");
    words(&map).set(7, 7);
    buffer_at(&device, Place::GTT, 2).place_now().expect("the first is demoted");
    assert_eq!((buffer.region(), words(&map).get(7)), (SYSTEM, 7));
    let stats = device.stats();
    assert_eq!((stats.gtt_demotions, stats.cpu_zaps, stats.cpu_points), (1, 0, 1));
}

#[test]
fn a_touch_sleeps_until_the_bytes_have_arrived_and_holds_up_no_other_map() {
    let device = device(4);
    let (late, idle) = (reachable(&device, 2, 1), reachable(&device, 2, 2));
    device.wait_idle();
    let maps = [&late, &idle].map(|buffer| buffer.map().expect("all is visible"));
    let gate = Gate::closed();
    device.submit().writes(&late).run(|_, _| Ok(gate.fence().clone())).expect("it is there");
    // Evicts the first, whose copy has to wait for the gate, and brings the second back.
    evict_all(&device, 4);
    thread::scope(|scope| {
        let sleeper = scope.spawn(|| (words(&maps[0]).get(0), gate.fence().is_signaled()));
        thread::sleep(A_MOMENT);
        assert_eq!(words(&maps[1]).get(0), first_word(2));
        assert!(!sleeper.is_finished(), "the bytes are not there yet");
        gate.open();
        assert_eq!(sleeper.join().expect("no panic"), (first_word(1), true));
    });
}

#[test]
fn a_touch_brings_bytes_that_the_cpu_cannot_see_where_it_can() {
    let device = small_bar();
    let hidden = reachable(&device, 4, 1);
    let map = hidden.mapping().when_touched().map().expect("it asks for nothing yet");
    assert_eq!((hidden.region(), hidden.visible(), map.fell_back()), (VRAM, false, None));
    assert_eq!((words(&map).get(0), hidden.region()), (first_word(1), SYSTEM), "too large for the BAR");
    assert_eq!(device.stats().bar_fallbacks, 1);
    // Jobs take it back to where the CPU does not see it, again and again.
    for round in 2..20 {
        finished(fill(&device, &hidden, round));
        assert_eq!((hidden.region(), words(&map).get(0), hidden.region()), (VRAM, first_word(round), SYSTEM));
    }

    let small = reachable(&device, 1, 3);
    let map = small.mapping().when_touched().map().expect("it asks for nothing yet");
    assert_eq!((small.visible(), words(&map).get(0), small.visible()), (false, first_word(3), true));
}

#[test]
fn a_buffer_that_somebody_else_holds_delays_its_own_touchers_alone() {
    let device = small_bar();
    let (held, other) = (reachable(&device, 1, 1), reachable(&device, 1, 2));
    device.wait_idle();
    let maps =
        [&held, &other].map(|buffer| buffer.mapping().when_touched().map().expect("no room is needed"));
    thread::scope(|scope| {
        let (ours, theirs) = (words(&maps[0]), words(&maps[1]));
        let sleeper = device.submit().reads(&held).run(|_, _| {
            // The submission holds the reservation for as long as this closure runs.
            let sleeper = scope.spawn(move || ours.get(0));
            thread::sleep(A_MOMENT);
            let served = scope.spawn(move || theirs.get(0)).join().expect("no panic");
            assert_eq!((served, sleeper.is_finished()), (first_word(2), false));
            scope.spawn(move || assert_eq!(sleeper.join().expect("no panic"), first_word(1)));
            Ok(devpagemap::Fence::signaled())
        });
        sleeper.expect("it is there");
    });
}

#[test]
fn a_map_of_a_buffer_that_was_never_used_gives_it_memory_when_it_is_touched() {
    let device = device(4);
    let buffer = device.buffer(Size::mib(2)).create().expect("it fits");
    let map = buffer.mapping().when_touched().map().expect("it asks for nothing yet");
    assert_eq!((buffer.region(), device.stats().cleared_bytes), (None, 0));
    assert_eq!(words(&map).get(5), 0);
    assert_eq!((buffer.region(), device.stats().cleared_bytes), (SYSTEM, 2 * MIB));
}

#[test]
fn a_part_is_mapped_from_any_byte_to_any_other() {
    let device = device(4);
    let buffer = reachable(&device, 1, 1);
    let (start, end) = (3 * PAGE + 40, 9 * PAGE + 7);
    let map = buffer.mapping().range(start..end).map().expect("inside");
    assert_eq!((map.len_bytes(), map.as_ptr().addr() as u64 % PAGE), (end - start, 40));
    // SAFETY: the map is alive and good for so many bytes, which no job and no thread writes.
    let bytes = unsafe { std::slice::from_raw_parts(map.as_ptr(), (end - start) as usize) };
    assert_eq!(pattern::check(1, start, bytes), Ok(()));
    map.write(0, b"part").expect("inside");
    let mut found = [0; 4];
    buffer.read_at(start, &mut found).expect("inside");
    assert_eq!(&found, b"part");
    assert!(matches!(map.read(end - start, &mut [0]), Err(Error::OutOfBounds { .. })));
    for (range, is_empty) in
        [(MIB - 1..MIB + 1, false), (5..5, true), (Range { start: 7, end: 6 }, true), (MIB..u64::MAX, false)]
    {
        let refused = buffer.mapping().range(range.clone()).map().map(drop);
        match is_empty {
            true => assert!(matches!(refused, Err(Error::InvalidSize { .. })), "{range:?}: {refused:?}"),
            false => assert!(matches!(refused, Err(Error::OutOfBounds { .. })), "{range:?}: {refused:?}"),
        }
    }
}

#[test]
fn a_map_for_reading_is_not_writable_by_any_way() {
    let device = device(4);
    let buffer = reachable(&device, 1, 1);
    let map = buffer.mapping().read_only().map().expect("all is visible");
    assert_eq!(map.write(0, &[1]), Err(Error::ReadOnly { buffer: buffer.id() }));
    assert_eq!(words(&map).get(0), first_word(1));
    assert_eq!(permissions(map.as_ptr().addr()), "r--s");
    evict_all(&device, 4);
    assert_eq!(permissions(map.as_ptr().addr()), "r--s");
    assert_eq!(words(&map).get(0), first_word(1));
}

#[test]
fn writing_through_a_map_for_reading_is_a_segmentation_fault() {
    let child = in_a_child("cpu_maps::writing_through_a_map_for_reading_is_a_segmentation_fault", || {
        let device = device(4);
        let map = reachable(&device, 1, 1).mapping().read_only().map().expect("all is visible");
        words(&map).set(0, 1);
    });
    child.iter().for_each(|child| expect_killed(child, SIGSEGV));
}

#[test]
fn a_scattered_buffer_is_pointed_at_around_the_touch_only() {
    let device = device(4);
    let buffer = scattered(&device, 64, 1);
    assert_eq!(extents(&device, &buffer).len(), 64);
    let map = buffer.map().expect("all is visible");
    assert_eq!(words(&map).get(0), first_word(1));
    assert_eq!((device.stats().cpu_points, device.stats().cpu_touches), (1, 1));
    words(&map).get(16 * 512 - 1);
    assert_eq!(device.stats().cpu_points, 1, "sixteen pieces at once");
    words(&map).set(40 * 512, 5);
    assert_eq!(device.stats().cpu_points, 2);
    evict_all(&device, 4);
    let mut expected = vec![0; 64 * PAGE as usize];
    pattern::write(1, 0, &mut expected);
    expected[40 * 4096..][..8].copy_from_slice(&5u64.to_ne_bytes());
    // SAFETY: the map is alive and good for all bytes of the buffer, which nobody writes.
    let found = unsafe { std::slice::from_raw_parts(map.as_ptr(), expected.len()) };
    assert!(found == expected, "every page is where it belongs");
    assert_eq!(device.stats().cpu_points, 3, "in system memory it is in one piece");
}

#[test]
fn reading_and_writing_with_a_slice_of_a_map_waits_for_nobody_who_waits_for_it() {
    without_deadlock(|| {
        let device = small_bar();
        let (hidden, other) = (reachable(&device, 4, 1), reachable(&device, 2, 2));
        let map = hidden.mapping().when_touched().map().expect("it asks for nothing yet");
        for _ in 0..50 {
            hidden.place_now().expect("room");
            // SAFETY: the map is alive, and nobody else uses these bytes.
            let slice = unsafe { std::slice::from_raw_parts_mut(map.as_ptr().add(MIB as usize), 1 << 20) };
            other.read_at(0, slice).expect("the slice is brought into reach while nothing is locked");
            hidden.place_now().expect("room");
            hidden.write_at(0, slice).expect("its own bytes too");
            hidden.place_now().expect("room");
            hidden.read_at(0, slice).expect("and the other way round");
            hidden.read_at(MIB - 4096, &mut slice[4096..8192]).expect("partly overlapping its source");
        }
        let mut bytes = vec![0; 4096];
        hidden.read_at(0, &mut bytes).expect("inside");
        assert_eq!(pattern::check(2, 0, &bytes), Ok(()));
    });
}

#[test]
fn a_system_call_that_is_handed_a_map_waits_as_a_touch_does_or_fails() {
    let device = device(4);
    let buffer = reachable(&device, 1, 1);
    let map = buffer.map().expect("all is visible");
    let mut zeros = std::fs::File::open("/dev/zero").expect("every machine has it");
    for _ in 0..100 {
        map.forget();
        // SAFETY: the map is alive, and nobody else uses these bytes.
        let slice = unsafe { std::slice::from_raw_parts_mut(map.as_ptr(), 3 * 4096) };
        match zeros.read(slice) {
            Ok(len) => assert_eq!(len, 3 * 4096),
            Err(error) => {
                assert!(!map.takes_system_calls(), "{error}");
                assert_eq!(error.raw_os_error(), Some(14), "EFAULT");
                map.populate().expect("all is visible");
                zeros.read_exact(slice).expect("nothing is away");
            }
        }
        assert_eq!(words(&map).get(0), 0);
        words(&map).set(0, 1);
    }
}

#[test]
fn a_populated_map_is_touched_without_a_fault() {
    let device = small_bar();
    let hidden = reachable(&device, 4, 1);
    let map = hidden.mapping().when_touched().map().expect("it asks for nothing yet");
    map.populate().expect("system memory is plenty");
    assert_eq!(
        (words(&map).get(0), words(&map).get(2 << 17)),
        (first_word(1), {
            let mut bytes = [0; 8];
            pattern::write(1, 2 << 20, &mut bytes);
            u64::from_ne_bytes(bytes)
        })
    );
    assert_eq!(device.stats().cpu_touches, 0);
}

#[test]
fn a_page_is_worked_on_in_place() {
    let device = small_bar();
    for place in [Place::VRAM, Place::VRAM.visible(), Place::GTT] {
        let buffer = device.buffer(Size::bytes(3 * PAGE + 100)).prefer(place).write_combined().create();
        let buffer = buffer.expect("it fits");
        fill(&device, &buffer, 1).expect("room");
        let last = buffer.with_page(3, |bytes| (pattern::check(1, 3 * PAGE, bytes), bytes.len()));
        assert_eq!(last, Ok((Ok(()), 100)));
        buffer.with_page(1, |bytes| bytes.fill(9)).expect("it has one");
        let mut bytes = vec![0; 3 * PAGE as usize];
        buffer.read_at(0, &mut bytes).expect("inside");
        assert!(bytes[4096..8192].iter().all(|byte| *byte == 9));
        assert_eq!(pattern::check(1, 2 * PAGE, &bytes[8192..]), Ok(()));
        for page in [4, u64::MAX] {
            let refused = buffer.with_page(page, |_| panic!("there is no such page"));
            assert!(matches!(refused, Err(Error::OutOfBounds { .. })), "{refused:?}");
        }
    }
}

#[test]
fn a_page_is_worked_on_after_the_jobs_that_use_the_buffer() {
    let device = device(4);
    let buffer = reachable(&device, 1, 1);
    device.wait_idle();
    let gate = Gate::closed();
    device.submit().reads(&buffer).run(|_, _| Ok(gate.fence().clone())).expect("it is there");
    thread::scope(|scope| {
        let worker = scope.spawn(|| buffer.with_page(0, |_| gate.fence().is_signaled()));
        thread::sleep(A_MOMENT);
        gate.open();
        assert_eq!(worker.join().expect("no panic"), Ok(true));
    });
}

#[test]
fn a_pinned_map_holds_its_buffer_in_every_region_and_never_faults() {
    let device = device(4);
    for (place, region) in [(Place::VRAM, VRAM), (Place::GTT, GTT), (Place::SYSTEM, SYSTEM)] {
        let buffer = device.buffer(Size::mib(1)).prefer(place).or(Place::VRAM.fallback()).write_combined();
        let buffer = buffer.create().expect("it fits");
        fill(&device, &buffer, 1).expect("room");
        let map = buffer.vmap().expect("all is visible");
        assert_eq!((map.is_pinned(), map.takes_system_calls(), buffer.region()), (true, true, region));
        assert_eq!(words(&map).get(0), first_word(1));
        map.forget();
        let refused = vram_buffer(&device, 4).place_now();
        assert_eq!(refused.is_err(), region == VRAM, "{refused:?}");
        assert_eq!((words(&map).get(0), buffer.region()), (first_word(1), region));
        drop(map);
        evict_all(&device, 4);
    }
    assert_eq!(device.stats().cpu_touches, 0);
}

#[test]
fn a_buffer_that_is_held_in_system_memory_is_not_brought_to_the_gpu() {
    let device = device(4);
    let buffer = device.buffer(Size::mib(1)).create().expect("it fits");
    fill(&device, &buffer, 1).expect("room for it");
    let held = buffer.vmap().expect("system memory is plenty");
    assert_eq!(buffer.region(), SYSTEM, "it did not opt in to be reached in VRAM");
    let region = RegionKind::System;
    assert_eq!(buffer.place_now(), Err(Error::Pinned { buffer: buffer.id(), region }));
    assert_eq!(words(&held).get(0), first_word(1));
    drop(held);
    finished(verify(&device, &buffer, 1));
}

#[test]
fn without_userfaultfd_maps_pin_and_the_reason_is_counted() {
    let device = builder(4).cpu_faults(CpuFaults::Pinned).build().expect("a device");
    let buffer = reachable(&device, 2, 1);
    let map = buffer.mapping().when_touched().map().expect("all is visible");
    assert_eq!((map.is_pinned(), words(&map).get(0), buffer.region()), (true, first_word(1), VRAM));
    vram_buffer(&device, 4).place_now().expect_err("it is held");
    let stats = device.stats();
    assert_eq!((stats.vram_pinned_bytes, stats.cpu_touches), (2 * MIB, 0));
    let pinned: Vec<_> = stats.reasons.iter().filter(|(reason, _)| reason.contains("pinned")).collect();
    assert!(matches!(pinned[..], [(_, 1)]), "{:?}", stats.reasons);
}

#[test]
fn a_lost_device_shows_zeros_to_maps_that_asked_for_them_and_refuses_everything_else() {
    let device = small_bar();
    let (buffer, hidden) = (reachable(&device, 1, 1), reachable(&device, 4, 2));
    let maps = [buffer.map(), buffer.vmap(), buffer.mapping().when_touched().map()];
    let maps = maps.map(|map| map.expect("the prefix is free"));
    let unseen = hidden.mapping().when_touched().map().expect("it asks for nothing yet");
    words(&maps[0]).set(0, 5);
    device.declare_lost();
    for map in maps.iter().chain([&unseen]) {
        assert_eq!(words(map).get(0), 0);
        words(map).set(0, 9);
        let lost = [map.read(0, &mut [0]), map.write(0, &[0]), map.populate()];
        assert!(lost.iter().all(|result| *result == Err(Error::DeviceLost)), "{lost:?}");
        map.forget();
    }
    assert_eq!(words(&maps[1]).get(0), 9, "private zeros, which can be written");
    let refusals = [
        buffer.read_at(0, &mut [0]),
        buffer.write_at(0, &[0]),
        buffer.map().map(drop),
        buffer.vmap().map(drop),
        buffer.place_now(),
        buffer.with_page(0, |_| ()),
        fill(&device, &buffer, 1).map(drop),
    ];
    assert!(refusals.iter().all(|refused| *refused == Err(Error::DeviceLost)), "{refusals:?}");
    device.wait_idle();
}

#[test]
fn a_thread_that_sleeps_for_bytes_wakes_when_the_device_is_lost() {
    let device = device(4);
    let buffer = reachable(&device, 4, 1);
    let map = buffer.map().expect("all is visible");
    let gate = Gate::closed();
    device.submit().writes(&buffer).run(|_, _| Ok(gate.fence().clone())).expect("it is there");
    evict_all(&device, 4);
    thread::scope(|scope| {
        let sleeper = scope.spawn(|| words(&map).get(0));
        thread::sleep(A_MOMENT);
        device.declare_lost();
        assert_eq!(sleeper.join().expect("no panic"), 0);
        assert!(!gate.fence().is_signaled());
        gate.open();
    });
}

#[test]
fn a_lost_device_raises_sigbus_in_maps_that_asked_for_it() {
    let child = in_a_child("cpu_maps::a_lost_device_raises_sigbus_in_maps_that_asked_for_it", || {
        let device = device(4);
        let buffer = reachable(&device, 1, 1);
        let map = buffer.mapping().after_loss(AfterLoss::Signal).map().expect("all is visible");
        device.declare_lost();
        words(&map).get(0);
    });
    child.iter().for_each(|child| expect_killed(child, SIGBUS));
}

#[test]
fn a_touch_that_no_memory_can_serve_is_sigbus() {
    let child = in_a_child("cpu_maps::a_touch_that_no_memory_can_serve_is_sigbus", || {
        let device = builder(8).visible(Size::bytes(0)).system(Size::mib(1)).build().expect("a device");
        let hidden = reachable(&device, 2, 1);
        let map = hidden.mapping().when_touched().map().expect("it asks for nothing yet");
        words(&map).get(0);
    });
    child.iter().for_each(|child| expect_killed(child, SIGBUS));
}

#[test]
fn a_map_for_which_there_are_no_addresses_is_an_error_and_leaves_nothing() {
    let name = "cpu_maps::a_map_for_which_there_are_no_addresses_is_an_error_and_leaves_nothing";
    let child = in_a_child(name, || {
        let device = device(4);
        let buffer = reachable(&device, 2, 1);
        let first = buffer.map().expect("there are addresses");
        let limit = |maximum| {
            let limit = rustix::process::Rlimit { current: maximum, maximum: None };
            rustix::process::setrlimit(rustix::process::Resource::As, limit).expect("a limit can be lowered");
        };
        let used = std::fs::read_to_string("/proc/self/statm").expect("a process has sizes");
        let pages: u64 = used.split(' ').next().and_then(|pages| pages.parse().ok()).expect("a number");
        limit(Some(pages * 4096 + 65536));
        for pinned in [false, true] {
            let refused = match pinned {
                true => buffer.vmap(),
                false => buffer.map(),
            };
            assert!(matches!(refused, Err(Error::Io { .. })), "{refused:?}");
        }
        limit(None);
        assert_eq!((device.stats().vram_pinned_bytes, device.stats().cpu_maps), (0, 1));
        assert_eq!(words(&first).get(0), first_word(1), "the others are unharmed");
        drop(buffer.vmap().expect("there are addresses again"));
    });
    child.iter().for_each(expect_success);
}

#[test]
fn without_a_descriptor_for_its_thread_the_first_map_is_an_error_and_the_next_is_none() {
    let name = "cpu_maps::without_a_descriptor_for_its_thread_the_first_map_is_an_error_and_the_next_is_none";
    let child = in_a_child(name, || {
        let device = device(4);
        let buffer = reachable(&device, 2, 1);
        let mut files = Vec::new();
        let before = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let few = rustix::process::Rlimit { current: Some(64), ..before };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, few).expect("a limit can be lowered");
        while let Ok(file) = std::fs::File::open("/dev/zero") {
            files.push(file);
        }
        // One is enough for userfaultfd, and then there is none for what wakes the thread.
        for _ in 0..2 {
            let refused = buffer.map();
            assert!(matches!(refused, Err(Error::Io { .. })), "{refused:?}");
            files.pop();
        }
        drop(files);
        let map = buffer.map().expect("there are descriptors again");
        assert_eq!((words(&map).get(0), map.is_pinned()), (first_word(1), false));
    });
    child.iter().for_each(expect_success);
}

#[test]
fn a_map_is_not_inherited_by_a_forked_child() {
    fn flags(map: &CpuMap) -> String {
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("a process has maps");
        let start = format!("{:x}-", map.as_ptr().addr());
        let entry = smaps.split_once(&start).expect("the map is there").1;
        let flags = entry.lines().find(|line| line.starts_with("VmFlags")).expect("an entry has flags");
        flags.to_string()
    }
    let device = device(4);
    let buffer = reachable(&device, 1, 1);
    let map = buffer.map().expect("all is visible");
    assert!(flags(&map).contains(" dc"), "away: {}", flags(&map));
    assert_eq!(words(&map).get(0), first_word(1));
    assert!(flags(&map).contains(" dc"), "pointed: {}", flags(&map));
}
