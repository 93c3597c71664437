//! Where a buffer goes when the CPU wants its bytes.

use devpagemap::{Buffer, Caching, CpuAccess, Device, Error, Fence, Place, RegionKind, Size, SoftwareGpu};

use crate::setup::*;

const VRAM: Option<RegionKind> = Some(RegionKind::Vram);
const GTT: Option<RegionKind> = Some(RegionKind::Gtt);
const SYSTEM: Option<RegionKind> = Some(RegionKind::System);

/// A device of 8 MiB of which the CPU sees the first 2.
fn small_bar() -> Lab {
    builder(8).visible(Size::mib(2)).build().expect("a device with a small BAR")
}

/// A buffer of 1 MiB whose creator did not say that slow reads are fine.
fn plain(device: &Lab, places: &[Place], seed: u64) -> Buffer {
    let builder = device.buffer(Size::mib(1));
    let builder = places.iter().cloned().fold(builder, |builder, place| builder.or(place));
    let buffer = builder.create().expect("a buffer that fits");
    fill(device, &buffer, seed).expect("room");
    buffer
}

#[test]
fn a_buffer_that_did_not_opt_in_is_mapped_in_cached_system_memory_even_if_it_was_visible() {
    let device = small_bar();
    let buffer = plain(&device, &[Place::VRAM.visible()], 1);
    let map = buffer.map().expect("system memory is plenty");
    assert_eq!(
        (map.fell_back(), buffer.region()),
        (None, SYSTEM),
        "that is no fallback, but what it asked for"
    );
    let mut bytes = [0; 4096];
    map.read(4096, &mut bytes).expect("inside");
    assert_eq!(pattern::check(1, 4096, &bytes), Ok(()));
    finished(verify(&device, &buffer, 1));
    assert_eq!(buffer.region(), VRAM, "the GPU takes it back");
}

#[test]
fn a_buffer_that_did_not_opt_in_is_mapped_in_gtt_if_it_may_be_there() {
    let device = small_bar();
    let buffer = plain(&device, &[Place::VRAM, Place::GTT], 1);
    let _held_there = buffer.vmap().expect("GTT is plenty");
    assert_eq!(buffer.region(), GTT);
    finished(verify(&device, &buffer, 1));
    assert_eq!(buffer.region(), GTT, "the GPU reaches it there");
}

#[test]
fn where_vram_is_cached_nobody_has_to_opt_in() {
    let gpu = SoftwareGpu::builder().vram_caching(Caching::Cached).build().expect("threads");
    let device = Device::builder(gpu).vram(Size::mib(8)).visible(Size::mib(2)).system(Size::mib(64));
    let device = device.build().expect("a device with a coherent link");
    let buffer = plain(&device, &[Place::VRAM], 1);
    let map = buffer.map().expect("the visible part is free");
    assert_eq!((map.fell_back(), buffer.region(), buffer.visible()), (None, VRAM, true));
    expect_bytes(&buffer, 1);
}

#[test]
fn where_vram_is_uncached_even_a_write_combined_buffer_comes_to_system_memory() {
    let gpu = SoftwareGpu::builder().vram_caching(Caching::Uncached).build().expect("threads");
    let device = Device::builder(gpu).vram(Size::mib(8)).system(Size::mib(64)).build().expect("a device");
    let buffer = filled(&device, 1, 1);
    let _map = buffer.map().expect("system memory is plenty");
    assert_eq!(buffer.region(), SYSTEM);
    expect_bytes(&buffer, 1);
}

/// A buffer of so many MiB in the part of VRAM that the CPU does not see.
fn hidden(device: &Lab, mib: u64, seed: u64) -> Buffer {
    let buffer = filled(device, mib, seed);
    assert!(buffer.region() == VRAM && !buffer.visible());
    buffer
}

/// One that fills the visible part and may be nowhere else in VRAM.
fn screen(device: &Lab, seed: u64) -> Buffer {
    let screen = buffer_at(device, Place::VRAM.visible(), 2);
    fill(device, &screen, seed).expect("room");
    screen
}

fn touch_with_gpu(device: &Lab, buffer: &Buffer, times: usize) {
    for _ in 0..times {
        device.submit().reads(buffer).run(|_, _| Ok(Fence::signaled())).expect("room");
    }
}

fn read_some(buffer: &Buffer, seed: u64, times: u64) {
    let mut bytes = [0; 4096];
    for at in 0..times {
        let offset = at % (buffer.size().as_bytes() / 4096) * 4096;
        buffer.read_at(offset, &mut bytes).expect("inside");
        assert_eq!(pattern::check(seed, offset, &bytes), Ok(()));
    }
}

#[test]
fn a_map_of_bytes_that_are_in_system_memory_moves_nothing() {
    let device = small_bar();
    let evicted = filled(&device, 2, 1);
    let _crowd = hidden(&device, 6, 2);
    let _screen = buffer_at(&device, Place::VRAM.within(0..8 * MIB), 2).place_now();
    let _another = filled(&device, 2, 3);
    assert_eq!(evicted.region(), SYSTEM);
    let before = device.stats();
    let map = evicted.map().expect("it is reachable as it is");
    let after = device.stats();
    assert_eq!((map.fell_back(), evicted.region()), (None, SYSTEM));
    assert_eq!((after.moves, after.visibility_moved_bytes), (before.moves, before.visibility_moved_bytes));
    let mut bytes = [0; 4096];
    map.read(0, &mut bytes).expect("inside");
    assert_eq!(pattern::check(1, 0, &bytes), Ok(()));
}

#[test]
fn a_map_clears_the_visible_part_when_its_owners_have_room_in_hidden_vram() {
    let device = small_bar();
    let filler = hidden(&device, 6, 1);
    let spilled = filled(&device, 2, 2);
    assert!(spilled.visible());
    drop(filler);
    let wanted = hidden(&device, 2, 3);
    let map = wanted.map().expect("room can be made");
    assert_eq!((map.fell_back(), wanted.visible(), spilled.visible()), (None, true, false));
    let stats = device.stats();
    assert_eq!((stats.relocations, stats.evictions, stats.bar_fallbacks), (1, 0, 0));
    assert_eq!(stats.visibility_moved_bytes, 4 * MIB, "the one in, the other out");
    let counted = |why: &str| stats.reasons.iter().find(|(reason, _)| reason.contains(why)).map(|(_, n)| *n);
    assert_eq!(counted("moved into the visible part"), Some(1), "{:?}", stats.reasons);
    assert_eq!(counted("left the visible part"), Some(1), "{:?}", stats.reasons);
    expect_bytes(&spilled, 2);
    expect_bytes(&wanted, 3);
}

#[test]
fn a_map_that_would_evict_somebody_from_vram_goes_to_system_memory_itself_and_comes_back() {
    let device = small_bar();
    let screen = screen(&device, 1);
    let wanted = hidden(&device, 1, 2);
    let map = wanted.map().expect("system memory is plenty");
    assert!(map.fell_back().is_some_and(|why| why.contains("exhausted")), "{map:?}");
    assert_eq!((wanted.region(), screen.region(), screen.evictions()), (SYSTEM, VRAM, 0));
    assert_eq!((device.stats().visibility_moved_bytes, device.stats().bar_fallbacks), (MIB, 1));
    drop(map);
    finished(verify(&device, &wanted, 2));
    let stats = device.stats();
    assert_eq!((wanted.region(), stats.visibility_moved_bytes, stats.restores), (VRAM, 2 * MIB, 0));
    assert!(stats.reasons.keys().any(|reason| reason.contains("came back")), "{:?}", stats.reasons);
    expect_bytes(&screen, 1);
}

#[test]
fn who_was_driven_out_for_visibility_is_counted_when_it_comes_back_too() {
    let device = small_bar();
    let [first, second] = [1, 2].map(|seed| screen(&device, seed));
    assert_eq!(device.stats().visibility_moved_bytes, 2 * MIB);
    finished(verify(&device, &first, 1));
    let stats = device.stats();
    assert_eq!(stats.visibility_moved_bytes, 6 * MIB, "the second went, the first came back");
    assert_eq!((stats.restores, stats.evictions), (1, 2));
    expect_bytes(&second, 2);
}

#[test]
fn what_goes_back_and_forth_takes_the_place_of_one_that_the_cpu_does_not_work_on() {
    let device = small_bar();
    let idle = screen(&device, 1);
    let wanted = hidden(&device, 2, 2);
    drop(wanted.map().expect("system memory is plenty"));
    finished(verify(&device, &wanted, 2));
    assert!(wanted.region() == VRAM && !wanted.visible());
    let map = wanted.map().expect("room can be made");
    assert_eq!((map.fell_back(), wanted.visible(), idle.region()), (None, true, SYSTEM));
    drop(map);
    let moved = device.stats().visibility_moved_bytes;
    for _ in 0..20 {
        finished(verify(&device, &wanted, 2));
        drop(wanted.map().expect("it is there"));
    }
    assert_eq!(device.stats().visibility_moved_bytes, moved, "and it stays");
    expect_bytes(&idle, 1);
}

#[test]
fn two_that_the_cpu_works_on_do_not_drive_each_other_out_for_ever() {
    let device = small_bar();
    let [first, second] = [1, 2].map(|seed| hidden(&device, 2, seed));
    let mut evictions = Vec::new();
    for _ in 0..20 {
        for (seed, buffer) in [(1, &first), (2, &second)] {
            finished(verify(&device, buffer, seed));
            drop(buffer.map().expect("room"));
        }
        evictions.push(first.evictions() + second.evictions());
    }
    assert!(first.visible(), "who came first stays");
    assert_eq!(evictions.last(), Some(&0), "{evictions:?}");
    expect_bytes(&first, 1);
    expect_bytes(&second, 2);
}

#[test]
fn repeated_small_reads_move_the_buffer_once_and_copy_nothing_any_more() {
    let device = small_bar();
    let buffer = hidden(&device, 1, 1);
    read_some(&buffer, 1, 17);
    let stats = device.stats();
    assert_eq!((stats.bounced_bytes, stats.moves, buffer.visible()), (17 * 4096, 0, false));
    for _ in 0..5 {
        read_some(&buffer, 1, 20);
        touch_with_gpu(&device, &buffer, 1);
    }
    let stats = device.stats();
    assert_eq!((stats.bounced_bytes, stats.moves, buffer.visible()), (17 * 4096, 1, true));
    assert_eq!(stats.visibility_moved_bytes, MIB);
}

#[test]
fn rare_reads_move_nothing_however_many_there_are() {
    let device = small_bar();
    let buffer = hidden(&device, 1, 1);
    for _ in 0..60 {
        read_some(&buffer, 1, 1);
        touch_with_gpu(&device, &buffer, 8);
    }
    let stats = device.stats();
    assert_eq!((stats.bounced_bytes, stats.moves, buffer.visible()), (60 * 4096, 0, false));
}

#[test]
fn what_the_gpu_needs_in_vram_and_the_cpu_in_cached_memory_is_not_carried_to_and_fro() {
    let device = small_bar();
    let buffer = plain(&device, &[Place::VRAM], 1);
    for _ in 0..20 {
        read_some(&buffer, 1, 10);
        touch_with_gpu(&device, &buffer, 1);
    }
    assert_eq!(device.stats().moves, 0, "each round copies less than a move there and back would");
    expect_bytes(&buffer, 1);
}

#[test]
fn a_buffer_that_the_cpu_works_on_stays_in_gtt_until_the_cpu_loses_interest() {
    let device = small_bar();
    let buffer = plain(&device, &[Place::VRAM, Place::GTT], 1);
    drop(buffer.map().expect("GTT is plenty"));
    touch_with_gpu(&device, &buffer, 5);
    assert_eq!(buffer.region(), GTT, "VRAM has room, and the CPU has just been here");
    read_some(&buffer, 1, 1);
    touch_with_gpu(&device, &buffer, 8);
    assert_eq!(buffer.region(), GTT);
    touch_with_gpu(&device, &buffer, 1);
    assert_eq!(buffer.region(), VRAM, "eight submissions without the CPU");
    expect_bytes(&buffer, 1);
}

#[test]
fn an_upload_before_the_first_use_keeps_nothing_near_the_cpu() {
    let device = small_bar();
    let both = [Place::VRAM, Place::GTT].into_iter();
    let texture = both.fold(device.buffer(Size::mib(1)), |builder, place| builder.or(place)).write_combined();
    let texture = texture.create().expect("it fits");
    texture.write_at(0, &[7; 4096]).expect("system memory is plenty");
    touch_with_gpu(&device, &texture, 1);
    assert_eq!((texture.region(), texture.visible()), (VRAM, false));
}

#[test]
fn an_evicted_buffer_that_the_cpu_works_on_comes_back_where_the_cpu_sees_it_if_that_is_free() {
    for visible_is_free in [true, false] {
        let device = small_bar();
        let buffer = hidden(&device, 2, 1);
        read_some(&buffer, 1, 1);
        let crowd = [2, 3, 4, 5].map(|seed| filled(&device, 2, seed));
        assert_eq!(buffer.region(), SYSTEM);
        drop(crowd);
        let _screen = (!visible_is_free).then(|| screen(&device, 6));
        finished(verify(&device, &buffer, 1));
        assert_eq!((buffer.region(), buffer.visible()), (VRAM, visible_is_free));
        assert_eq!(device.stats().relocations, 0);
    }
}

#[test]
fn the_policy_visible_moves_on_every_access_that_the_cpu_does_not_reach() {
    let device = builder(8).visible(Size::mib(2)).cpu_access(CpuAccess::Visible).build().expect("a device");
    let screen = screen(&device, 1);
    let buffer = hidden(&device, 1, 2);
    read_some(&buffer, 2, 1);
    assert_eq!((buffer.visible(), screen.region()), (true, SYSTEM));
    let stats = device.stats();
    assert_eq!((stats.bounced_bytes, stats.visibility_moved_bytes), (0, 3 * MIB));
    drop(screen.map().expect("it comes back"));
    assert!(screen.visible());
    assert_eq!((buffer.region(), buffer.visible()), (VRAM, false), "it makes way within VRAM");
    expect_bytes(&screen, 1);
}

#[test]
fn the_policy_system_moves_to_system_memory_what_the_cpu_does_not_reach_and_nothing_else() {
    let device = builder(8).visible(Size::mib(2)).cpu_access(CpuAccess::System).build().expect("a device");
    let screen = screen(&device, 1);
    let buffer = hidden(&device, 1, 2);
    read_some(&buffer, 2, 1);
    let map = screen.map().expect("it is reachable as it is");
    assert_eq!((buffer.region(), screen.visible(), map.fell_back()), (SYSTEM, true, None));
    assert_eq!((device.stats().bounced_bytes, device.stats().bar_fallbacks), (0, 0));
    let never_used = vram_buffer(&device, 1);
    let _map = never_used.map().expect("system memory is plenty");
    assert_eq!(never_used.region(), SYSTEM);
    expect_zeros(&never_used);
}

#[test]
fn what_can_be_moved_nowhere_is_still_read_and_written_and_the_reason_is_counted() {
    let device = builder(8).visible(Size::mib(2)).system(Size::kib(512)).build().expect("a device");
    let buffer = plain(&device, &[Place::VRAM], 1);
    assert!(!buffer.visible());
    read_some(&buffer, 1, 60);
    let stats = device.stats();
    assert_eq!((stats.bounced_bytes, stats.moves, buffer.region()), (60 * 4096, 0, VRAM));
    let tried = stats.reasons.iter().find(|(reason, _)| reason.contains("could not be moved"));
    assert_eq!(tried.map(|(_, times)| *times), Some(3), "not at every access: {:?}", stats.reasons);
}

#[test]
fn without_system_memory_a_map_evicts_nobody_and_takes_what_it_can_get_in_vram() {
    let device = builder(8).visible(Size::mib(2)).system(Size::mib(1)).build().expect("a device");
    let idle = buffer_at(&device, Place::VRAM.within(0..2 * MIB), 1);
    finished(fill(&device, &idle, 1));
    let wanted = hidden(&device, 2, 2);
    let map = wanted.map().expect("its 2 MiB do not fit into system memory, the 1 MiB in their way do");
    assert_eq!((map.fell_back(), wanted.visible(), idle.region()), (None, true, SYSTEM));
    expect_bytes(&idle, 1);
    expect_bytes(&wanted, 2);
}

#[test]
fn a_map_that_no_memory_can_serve_changes_nothing() {
    let device = builder(8).visible(Size::mib(2)).system(Size::mib(1)).build().expect("a device");
    let idle = screen(&device, 1);
    let wanted = hidden(&device, 2, 2);
    device.wait_idle();
    let before = device.stats();
    let error = wanted.map().expect_err("neither the one nor the other fits into 1 MiB");
    assert!(matches!(error, Error::TooLarge { region: RegionKind::System, .. }), "{error:?}");
    assert_eq!((device.stats(), idle.visible(), wanted.visible()), (before, true, false));
    read_some(&wanted, 2, 2);
}

#[test]
fn who_waits_for_one_buffers_bytes_holds_up_no_other() {
    let device = small_bar();
    let (busy, other) = (hidden(&device, 2, 1), hidden(&device, 1, 2));
    device.wait_idle();
    let gate = Gate::closed();
    device.submit().writes(&busy).run(|_, _| Ok(gate.fence().clone())).expect("it is there");
    let theirs = busy.clone();
    let mapper = std::thread::spawn(move || drop(theirs.map().expect("its bytes come in the end")));
    soon("the map's move", || busy.visible());
    read_some(&other, 2, 40);
    let map = other.map().expect("system memory is plenty");
    let newcomer = hidden(&device, 3, 3);
    expect_bytes(&newcomer, 3);
    finished(verify(&device, &other, 2));
    assert!(!gate.fence().is_signaled());
    assert_eq!(device.stats().cpu_waits_in_validate, 0);
    gate.open();
    mapper.join().expect("no panic");
    drop(map);
    expect_bytes(&busy, 1);
}
