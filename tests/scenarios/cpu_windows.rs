//! CPU access to VRAM that only windows in the BAR show.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use devpagemap::{
    Bar, BarLimit, Buffer, CpuAccess, CpuFaults, CpuMap, Device, DeviceBuilder, Driver, Error, FenceSet,
    Place, RegionKind, Size, SoftwareGpu,
};

use crate::setup::*;
use crate::windows::Stubborn;
use crate::words::{Words, words};

/// Gives another thread the time to fall asleep. The tests are right without, and then test less.
const A_MOMENT: Duration = Duration::from_millis(20);

const PAGE: u64 = 4096;
const VRAM: Option<RegionKind> = Some(RegionKind::Vram);
const SYSTEM: Option<RegionKind> = Some(RegionKind::System);

fn builder_with(bar_kib: u64) -> DeviceBuilder<SoftwareGpu> {
    builder(8).bar(Bar::Windows(Size::kib(bar_kib)))
}

/// 8 MiB of VRAM behind so many KiB of windows.
fn device(bar_kib: u64) -> Lab {
    builder_with(bar_kib).build().expect("a device with windows")
}

/// Evicts whatever is in VRAM.
fn evict_all<D: Driver>(device: &Device<D>) {
    vram_buffer(device, 8).place_now().expect("everything can go");
}

fn word(seed: u64, index: usize) -> u64 {
    let mut bytes = [0; 8];
    pattern::write(seed, 8 * index as u64, &mut bytes);
    u64::from_ne_bytes(bytes)
}

/// Writes the pattern of `seed` through a map, word by word.
fn write_all(words: Words<'_>, seed: u64) {
    let mut bytes = vec![0; 8 * words.len()];
    pattern::write(seed, 0, &mut bytes);
    for (index, bytes) in bytes.chunks_exact(8).enumerate() {
        words.set(index, u64::from_ne_bytes(bytes.try_into().expect("eight bytes")));
    }
}

#[track_caller]
fn expect_words(map: &CpuMap, seed: u64) {
    let words = words(map);
    let mut bytes = Vec::with_capacity(8 * words.len());
    (0..words.len()).for_each(|index| bytes.extend(words.get(index).to_ne_bytes()));
    assert_eq!(pattern::check(seed, 0, &bytes), Ok(()));
}

#[test]
fn a_map_larger_than_the_bar_shows_the_bytes_in_vram_and_its_writes_arrive_there() {
    let device = device(1024);
    let buffer = filled(&device, 4, 1);
    let map = buffer.map().expect("windows take turns");
    assert_eq!((map.fell_back(), map.is_pinned(), buffer.region()), (None, false, VRAM));
    expect_words(&map, 1);
    write_all(words(&map), 2);
    finished(verify(&device, &buffer, 2));
    finished(fill(&device, &buffer, 3));
    expect_words(&map, 3);
    let stats = device.stats();
    assert_eq!(buffer.region(), VRAM);
    assert_eq!(
        (stats.bar_fallbacks, stats.visibility_moved_bytes, stats.bounced_bytes, stats.moves),
        (0, 0, 0, 0)
    );
    assert!(stats.windows_reclaimed >= 8, "4 MiB pass three times through 1: {}", stats.windows_reclaimed);
    assert!(stats.window_bytes <= MIB && stats.cpu_zaps >= stats.windows_reclaimed, "{stats:?}");
}

#[test]
fn a_map_of_scattered_bytes_shows_each_page_where_it_belongs() {
    let device = device(256);
    let buffer = scattered(&device, 32, 1);
    assert_eq!(extents(&device, &buffer).len(), 32);
    for start in [0, 3, 5] {
        let map = buffer.mapping().range(start * PAGE..30 * PAGE).map().expect("inside");
        // SAFETY: the map is alive and good for so many bytes, which nobody writes.
        let bytes = unsafe { std::slice::from_raw_parts(map.as_ptr(), map.len_bytes() as usize) };
        assert_eq!(pattern::check(1, start * PAGE, bytes), Ok(()));
    }
}

#[test]
fn a_mapped_buffer_moves_and_comes_back_into_another_window() {
    let device = device(1024);
    let buffer = filled(&device, 2, 1);
    let map = buffer.map().expect("there are windows");
    let (address, words) = (map.as_ptr(), words(&map));
    words.set(1000, 42);
    evict_all(&device);
    assert_eq!((buffer.region(), words.get(1000), words.get(1)), (SYSTEM, 42, word(1, 1)));
    words.set(1001, 43);
    buffer.place_now().expect("the other goes");
    assert_eq!((buffer.region(), words.get(1000), words.get(1001)), (VRAM, 42, 43));
    words.set(1002, 44);
    let mut bytes = [0; 8];
    buffer.read_at(8 * 1002, &mut bytes).expect("inside");
    assert_eq!((u64::from_ne_bytes(bytes), map.as_ptr()), (44, address));
}

/// Writes to words of its own until told to stop; each must be what was written there last.
fn write_and_check(words: Words<'_>, stop: &AtomicBool, written: &AtomicU64) {
    let mut last = vec![0; words.len()];
    let mut next = 1u64;
    while !stop.load(Ordering::Relaxed) {
        let index = (next.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % last.len();
        if words.get(index) != last[index] {
            stop.store(true, Ordering::Relaxed);
            panic!("word {index} is {}, not {}, which was written there last", words.get(index), last[index]);
        }
        words.set(index, next);
        last[index] = next;
        next += 1;
        written.store(next, Ordering::Relaxed);
        if next.is_multiple_of(16) {
            thread::yield_now();
        }
    }
    (0..last.len()).for_each(|index| assert_eq!(words.get(index), last[index], "word {index} at the end"));
}

/// Two threads write through maps of a buffer each, of which the BAR has room for one page, while `disturb` is called.
fn two_write_through_a_bar_of(
    bar_kib: u64,
    rounds: usize,
    disturb: impl Fn(&Lab, &[Buffer; 2], usize) + Send + 'static,
) {
    without_deadlock(move || {
        let device = device(bar_kib);
        let buffers = [(); 2].map(|()| {
            let buffer = device.buffer(Size::kib(64)).prefer(Place::VRAM).or(Place::GTT).write_combined();
            let buffer = buffer.create().expect("it fits");
            buffer.place_now().expect("room");
            buffer
        });
        let maps = [&buffers[0], &buffers[1]].map(|buffer| buffer.map().expect("there are windows"));
        let (stop, written) = (AtomicBool::new(false), [AtomicU64::new(0), AtomicU64::new(0)]);
        thread::scope(|scope| {
            for (map, written) in maps.iter().zip(&written) {
                let stop = &stop;
                scope.spawn(move || write_and_check(words(map), stop, written));
            }
            for round in 0..rounds {
                disturb(&device, &buffers, round);
                let seen = written.each_ref().map(|written| written.load(Ordering::Relaxed));
                let both_wrote = || (0..2).all(|of| written[of].load(Ordering::Relaxed) > seen[of] + 3);
                while !both_wrote() && !stop.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(device.stats().windows_reclaimed > rounds as u64, "they took turns: {:?}", device.stats());
        device.wait_idle();
    });
}

#[test]
fn two_maps_take_turns_in_a_bar_of_one_page_and_lose_no_write() {
    two_write_through_a_bar_of(4, 300, |_, buffers, _| {
        assert!(buffers.iter().all(|buffer| buffer.region() == VRAM), "nobody holds the BAR for long");
    });
}

#[test]
fn two_maps_take_turns_while_their_buffers_move_and_lose_no_write() {
    two_write_through_a_bar_of(4, 300, |device, buffers, round| match round % 3 {
        0 => evict_all(device),
        of => buffers[of - 1].place_now().expect("the other goes"),
    });
}

#[test]
fn a_partial_map_takes_only_its_pages_and_maps_of_one_buffer_share_windows() {
    let device = device(1024);
    let buffer = filled(&device, 2, 1);
    let part = buffer.mapping().range(5 * PAGE + 8..7 * PAGE + 8).map().expect("inside");
    assert_eq!(words(&part).get(0), word(1, 5 * 512 + 1));
    assert_eq!((device.stats().window_bytes, device.stats().windows_made), (3 * PAGE, 1));
    let same = buffer.mapping().range(5 * PAGE..8 * PAGE).map().expect("inside");
    assert_eq!(words(&same).get(1), word(1, 5 * 512 + 1));
    words(&same).set(512, 77);
    assert_eq!(words(&part).get(511), 77);
    assert_eq!((device.stats().window_bytes, device.stats().windows_made), (3 * PAGE, 1), "they share it");
    let read_only = buffer.mapping().range(0..8).read_only().map().expect("inside");
    assert_eq!((words(&read_only).get(0), device.stats().window_bytes), (word(1, 0), 4 * PAGE));
}

fn stubborn(patience: u64, hides_its_bar: bool) -> Device<Stubborn> {
    let gpu = SoftwareGpu::builder().rings(2).build().expect("threads for the rings");
    let driver = Stubborn { gpu, patience: AtomicU64::new(patience), hides_its_bar };
    let device = Device::builder(driver).vram(Size::mib(8));
    device.bar(Bar::Windows(Size::mib(1))).system(Size::mib(64)).build().expect("a small device")
}

const REFUSED: &str = "cpu map: the driver refused to program a window; served from system memory";

#[test]
fn when_the_driver_refuses_to_program_a_window_the_map_is_served_from_system_memory() {
    let device = stubborn(0, false);
    let buffer = filled(&device, 2, 1);
    let map = buffer.map().expect("system memory is plenty");
    assert_eq!((map.fell_back(), buffer.region()), (Some(REFUSED), SYSTEM));
    expect_words(&map, 1);
    assert_eq!((device.stats().bar_fallbacks, device.stats().reasons[REFUSED]), (1, 1));

    let later = filled(&device, 2, 2);
    device.driver().patience.store(1, Ordering::Release);
    let map = later.map().expect("the first window can be programmed");
    assert_eq!((map.fell_back(), words(&map).get(0), later.region()), (None, word(2, 0), VRAM));
    words(&map).set(0, 5);
    let last = words(&map).len() - 1;
    assert_eq!((words(&map).get(last), later.region()), (word(2, last), SYSTEM), "the second cannot");
    assert_eq!((words(&map).get(0), device.stats().reasons[REFUSED]), (5, 2));

    let page = filled(&device, 2, 3);
    let met = page.with_page(3, |bytes| pattern::check(3, 3 * PAGE, bytes));
    assert_eq!((met, page.region(), device.stats().reasons[REFUSED]), (Ok(Ok(())), SYSTEM, 3));
    let copied = filled(&device, 2, 4);
    expect_bytes(&copied, 4);
    let mut bytes = [0; 100];
    copied.read_at(50, &mut bytes).expect("an engine copies");
    assert_eq!((pattern::check(4, 50, &bytes), copied.region()), (Ok(()), VRAM));
}

#[test]
fn when_the_cpu_cannot_map_the_bar_maps_are_served_from_system_memory() {
    let device = stubborn(u64::MAX, true);
    for pinned in [false, true] {
        let buffer = filled(&device, 1, 1);
        let mapping = buffer.mapping().range(0..8 * PAGE);
        let map =
            if pinned { mapping.pinned().map() } else { mapping.map() }.expect("system memory is plenty");
        let reason = "cpu map: the driver shows the CPU no windows; served from system memory";
        assert_eq!(
            (map.fell_back(), buffer.region(), words(&map).get(0)),
            (Some(reason), SYSTEM, word(1, 0))
        );
    }
    assert_eq!((device.stats().window_cpu_held_bytes, device.stats().bar_fallbacks), (0, 2));
}

#[test]
fn when_the_bar_is_kept_by_others_a_touch_is_served_from_system_memory_with_the_reason() {
    let device = device(64);
    let (theirs, ours) = (filled(&device, 1, 1), filled(&device, 1, 2));
    let kept = theirs.window(0..16 * PAGE).expect("there is space");
    let map = ours.mapping().when_touched().map().expect("it asks for nothing yet");
    assert_eq!((words(&map).get(7), ours.region()), (word(2, 7), SYSTEM));
    let full = "cpu map: users of windows keep all of the BAR; served from system memory";
    assert_eq!((device.stats().reasons[full], device.stats().bar_fallbacks), (1, 1));
    drop(kept);
    finished(fill(&device, &ours, 3));
    assert_eq!((ours.region(), words(&map).get(7), ours.region()), (VRAM, word(3, 7), VRAM));
    assert!(device.stats().reasons.keys().all(|reason| !reason.contains("larger than the visible part")));
}

#[test]
fn a_touch_sleeps_until_the_driver_has_programmed_its_window_and_holds_up_no_other_map() {
    without_deadlock(|| {
        let device = device(64);
        let gate = Gate::closed();
        let [first, late, idle] = [1, 2, 3].map(|seed| filled(&device, 1, seed));
        device.wait_idle();
        let theirs = first.window(0..14 * PAGE).expect("there is space");
        let map = idle.mapping().range(0..2 * PAGE).map().expect("two pages are left");
        assert_eq!(words(&map).get(0), word(3, 0));
        let keeps = idle.window(0..2 * PAGE).expect("it is there");
        theirs.release_after(&FenceSet::from(gate.fence().clone()));
        // What can be had is behind the gate.
        let sleeps = late.mapping().when_touched().map().expect("it asks for nothing yet");
        thread::scope(|scope| {
            let sleeper = scope.spawn(|| (words(&sleeps).get(9), gate.fence().is_signaled()));
            thread::sleep(A_MOMENT);
            assert!(!sleeper.is_finished(), "the BAR does not show it yet");
            map.forget();
            assert_eq!(words(&map).get(1), word(3, 1));
            gate.open();
            assert_eq!(sleeper.join().expect("no panic"), (word(2, 9), true));
        });
        drop(keeps);
        assert_eq!((late.region(), device.stats().bar_fallbacks), (VRAM, 0));
    });
}

#[test]
fn short_reads_and_writes_go_through_windows_and_long_ones_by_an_engine() {
    let device = device(256);
    let buffer = filled(&device, 2, 1);
    let mut bytes = vec![0; 60_000];
    buffer.read_at(100_001, &mut bytes).expect("inside");
    assert_eq!(pattern::check(1, 100_001, &bytes), Ok(()));
    buffer.write_at(4090, b"across pages").expect("inside");
    let mut found = [0; 12];
    buffer.read_at(4090, &mut found).expect("inside");
    assert_eq!((&found, device.stats().bounced_bytes, buffer.region()), (b"across pages", 0, VRAM));
    for _ in 0..20 {
        buffer.read_at(0, &mut vec![0; MIB as usize]).expect("inside");
    }
    assert_eq!((device.stats().bounced_bytes, buffer.region()), (20 * MIB, VRAM), "nothing is moved");
}

#[test]
fn where_the_policy_says_window_long_reads_and_writes_go_through_windows_too() {
    let device = builder_with(256).cpu_access(CpuAccess::Window).build().expect("a device");
    let buffer = filled(&device, 2, 1);
    expect_bytes(&buffer, 1);
    let mut bytes = vec![0; 2 * MIB as usize];
    pattern::write(2, 0, &mut bytes);
    buffer.write_at(0, &bytes).expect("inside");
    finished(verify(&device, &buffer, 2));
    assert_eq!((device.stats().bounced_bytes, device.stats().moves, buffer.region()), (0, 0, VRAM));
}

#[test]
fn where_the_policy_says_system_nothing_goes_through_a_window() {
    let device = builder_with(256).cpu_access(CpuAccess::System).build().expect("a device");
    let buffer = filled(&device, 2, 1);
    let map = buffer.map().expect("system memory is plenty");
    expect_words(&map, 1);
    assert_eq!((buffer.region(), map.fell_back(), device.stats().windows_made), (SYSTEM, None, 0));
}

#[test]
fn a_buffer_that_did_not_opt_in_is_mapped_in_system_memory_and_a_new_one_that_did_in_vram() {
    let device = device(256);
    let plain = device.buffer(Size::mib(1)).prefer(Place::VRAM).create().expect("it fits");
    finished(fill(&device, &plain, 1));
    let map = plain.map().expect("system memory is plenty");
    assert_eq!((map.fell_back(), plain.region(), words(&map).get(3)), (None, SYSTEM, word(1, 3)));
    let fresh = vram_buffer(&device, 1);
    let map = fresh.map().expect("there are windows");
    assert_eq!((map.fell_back(), fresh.region(), words(&map).get(3)), (None, VRAM, 0));
}

#[test]
fn a_page_is_worked_on_through_a_window() {
    let device = device(4);
    let buffer = filled(&device, 1, 1);
    buffer.with_page(3, |bytes| bytes.fill(9)).expect("it has one");
    let met = buffer.with_page(4, |bytes| pattern::check(1, 4 * PAGE, bytes));
    assert_eq!((met, buffer.region(), device.stats().bounced_bytes), (Ok(Ok(())), VRAM, 0));
    let mut bytes = [0; 4096];
    buffer.read_at(3 * PAGE, &mut bytes).expect("inside");
    assert!(bytes.iter().all(|byte| *byte == 9));
}

#[test]
fn a_pinned_map_keeps_its_window_and_no_more_are_pinned_than_the_cpus_reserve() {
    let device = device(1024);
    let (buffer, other) = (filled(&device, 4, 1), filled(&device, 4, 2));
    // An eighth of the BAR is the CPU's.
    let first = buffer.mapping().range(0..24 * PAGE).pinned().map().expect("within the reserve");
    let refused = other.mapping().range(0..9 * PAGE).pinned().map().map(drop);
    assert!(
        matches!(refused, Err(Error::ApertureFull { limit: BarLimit::CpuReserve, used_bytes, .. }) if used_bytes == 24 * PAGE),
        "{refused:?}"
    );
    assert_eq!((other.region(), other.vmap().is_err()), (VRAM, true));
    let second = other.mapping().range(0..8 * PAGE).pinned().map().expect("within the reserve");
    // Whatever else is shown leaves them alone.
    expect_words(&buffer.map().expect("windows take turns"), 1);
    words(&first).set(5, 55);
    assert_eq!((words(&first).get(6), words(&second).get(6)), (word(1, 6), word(2, 6)));
    assert!(vram_buffer(&device, 8).place_now().is_err(), "they are held");
    let stats = device.stats();
    assert_eq!((stats.window_cpu_held_bytes, stats.vram_pinned_bytes), (32 * PAGE, 8 * MIB));
    let mut bytes = [0; 8];
    buffer.read_at(40, &mut bytes).expect("inside");
    assert_eq!(u64::from_ne_bytes(bytes), 55);
    drop((first, second));
    assert_eq!((device.stats().window_cpu_held_bytes, device.stats().vram_pinned_bytes), (0, 0));
    evict_all(&device);
}

#[test]
fn where_maps_pin_those_beyond_the_reserve_come_to_system_memory_with_the_reason() {
    let device = builder_with(1024).cpu_faults(CpuFaults::Pinned).build().expect("a device");
    let (small, large) = (filled(&device, 1, 1), filled(&device, 1, 2));
    let part = small.mapping().range(0..32 * PAGE).map().expect("within the reserve");
    let map = large.map().expect("system memory is plenty");
    assert_eq!((part.fell_back(), small.region(), words(&part).get(0)), (None, VRAM, word(1, 0)));
    assert!(map.fell_back().is_some_and(|reason| reason.contains("BAR")), "{:?}", map.fell_back());
    assert_eq!(large.region(), SYSTEM);
    expect_words(&map, 2);
}

#[test]
fn a_populated_map_is_touched_without_a_fault() {
    let device = device(1024);
    let buffer = filled(&device, 1, 1);
    device.wait_idle();
    let map = buffer.mapping().when_touched().map().expect("it asks for nothing yet");
    map.populate().expect("there are windows");
    expect_words(&map, 1);
    assert_eq!(device.stats().cpu_touches, 0);
    map.forget();
    map.populate().expect("there are windows");
    expect_words(&map, 1);
    assert_eq!((device.stats().cpu_touches, buffer.region()), (0, VRAM));
}

#[test]
fn a_lost_device_shows_zeros_in_windows_too_and_gives_everything_back() {
    let device = device(256);
    let buffer = filled(&device, 1, 1);
    let maps = [buffer.map(), buffer.mapping().range(0..PAGE).pinned().map()];
    let maps = maps.map(|map| map.expect("there are windows"));
    assert_eq!(maps.each_ref().map(|map| words(map).get(0)), [word(1, 0); 2]);
    device.declare_lost();
    assert_eq!(maps.each_ref().map(|map| words(map).get(0)), [0; 2]);
    drop((maps, buffer));
    device.wait_idle();
    assert_eq!((device.stats().window_bytes, device.stats().vram_used_bytes), (0, 0));
}
