//! Victims that leave a part of VRAM and stay in VRAM.

use devpagemap::{Buffer, Error, Place, RegionKind, Size};

use crate::setup::*;

const VRAM: Option<RegionKind> = Some(RegionKind::Vram);
const SYSTEM: Option<RegionKind> = Some(RegionKind::System);

/// A device of 8 MiB of which the CPU sees the first 2.
fn small_bar() -> Lab {
    builder(8).visible(Size::mib(2)).build().expect("a device with a small BAR")
}

fn hidden_hog(device: &Lab, mib: u64) -> Buffer {
    let hog = buffer_at(device, Place::VRAM.within(2 * MIB..8 * MIB), mib);
    hog.place_now().expect("room");
    hog
}

/// Buffers of 1 MiB that spilled over into the visible part, which was alone in having room.
fn spilled<const N: usize>(device: &Lab) -> [Buffer; N] {
    let hog = hidden_hog(device, 6);
    let spilled = std::array::from_fn(|seed| filled(device, 1, seed as u64));
    assert!(spilled.iter().all(Buffer::visible));
    drop(hog);
    spilled
}

#[test]
fn who_need_not_be_visible_makes_way_into_hidden_vram_and_is_not_evicted() {
    let device = small_bar();
    let plain = spilled::<2>(&device);
    let screen = buffer_at(&device, Place::VRAM.visible(), 2);
    finished(fill(&device, &screen, 9));
    assert!(plain.iter().all(|buffer| buffer.region() == VRAM && !buffer.visible()));
    let stats = device.stats();
    assert_eq!((stats.relocations, stats.relocated_bytes, stats.evictions), (2, 2 * MIB, 0));
    assert_eq!((stats.moves, stats.vram_used_bytes, stats.system_used_bytes), (2, 4 * MIB, 0));
    assert_eq!(stats.vram_peak_bytes, 8 * MIB, "bytes on their way are not owned twice");
    for (seed, buffer) in (0..).zip(&plain) {
        expect_bytes(buffer, seed);
        finished(verify(&device, buffer, seed));
    }
    expect_bytes(&screen, 9);
    assert_eq!((device.stats().restores, device.stats().cpu_waits_in_validate), (0, 0));
}

#[test]
fn hidden_vram_has_room_for_one_so_the_other_goes_to_system_memory() {
    let device = small_bar();
    let [older, newer] = spilled::<2>(&device);
    let _hog = hidden_hog(&device, 5);
    let screen = buffer_at(&device, Place::VRAM.visible(), 2);
    finished(fill(&device, &screen, 9));
    assert_eq!((older.region(), newer.region()), (VRAM, SYSTEM));
    let stats = device.stats();
    assert_eq!((stats.relocations, stats.evictions, stats.vram_used_bytes), (1, 1, 8 * MIB));
    expect_bytes(&older, 0);
    expect_bytes(&newer, 1);
}

#[test]
fn who_must_be_visible_itself_goes_to_system_memory_though_hidden_vram_is_empty() {
    let device = small_bar();
    let [first, second] = [1, 2].map(|seed| {
        let buffer = buffer_at(&device, Place::VRAM.visible(), 2);
        fill(&device, &buffer, seed).expect("somebody can go");
        buffer
    });
    assert_eq!((first.region(), second.region()), (SYSTEM, VRAM));
    assert_eq!((device.stats().relocations, device.stats().evictions), (0, 1));
    expect_bytes(&first, 1);
}

#[test]
fn a_relocated_buffer_is_as_old_as_it_was() {
    let device = small_bar();
    let [older, newer] = spilled::<2>(&device);
    let newest = filled(&device, 1, 7);
    let screen = buffer_at(&device, Place::VRAM.visible(), 2);
    screen.place_now().expect("two make way");
    let _crowd = hidden_hog(&device, 4);
    assert_eq!([&older, &newer, &newest].map(|buffer| buffer.evictions()), [1, 0, 0]);
}

#[test]
fn room_that_is_free_only_behind_a_fence_takes_relocated_buffers_and_nobody_waits() {
    let device = small_bar();
    let hog = hidden_hog(&device, 6);
    let plain = filled(&device, 2, 1);
    device.wait_idle();
    let gate = Gate::closed();
    device.submit().reads(&hog).run(|_, _| Ok(gate.fence().clone())).expect("it is there");
    drop(hog);
    let screen = buffer_at(&device, Place::VRAM.visible(), 2);
    let filled = fill(&device, &screen, 2).expect("room");
    assert_eq!((plain.region(), plain.visible(), device.stats().evictions), (VRAM, false, 0));
    assert!(!filled.is_signaled(), "the screen's bytes are still where the other's have to leave from");
    let bystander = buffer_at(&device, Place::GTT, 1);
    finished(fill(&device, &bystander, 3));
    gate.open();
    finished(Ok(filled));
    expect_bytes(&plain, 1);
    expect_bytes(&screen, 2);
    assert_eq!(device.stats().cpu_waits_in_validate, 0);
}

#[test]
fn without_a_home_for_every_victim_none_moves_and_the_room_set_aside_for_some_is_free_again() {
    let device = builder(8).visible(Size::mib(2)).system(Size::mib(1)).build().expect("a device");
    let full = buffer_at(&device, Place::SYSTEM, 1);
    full.place_now().expect("room");
    let plain = spilled::<2>(&device);
    let hog = hidden_hog(&device, 5);
    let screen = buffer_at(&device, Place::VRAM.visible(), 2);
    device.wait_idle();
    let before = device.stats();
    let error = screen.place_now().expect_err("one has a home, the other has none");
    assert!(matches!(error, Error::Exhausted { region: RegionKind::System, .. }), "{error:?}");
    assert_eq!(device.stats(), before);
    assert!(plain.iter().all(Buffer::visible));
    let last = buffer_at(&device, Place::VRAM.within(2 * MIB..8 * MIB), 1);
    finished(fill(&device, &last, 5));
    assert_eq!((hog.region(), device.stats().vram_used_bytes), (VRAM, 8 * MIB));
    expect_bytes(&plain[0], 0);
    expect_bytes(&plain[1], 1);
}

#[test]
fn contiguous_bytes_are_made_by_moving_what_lies_in_them_elsewhere_in_vram() {
    let device = device(8);
    let parts: Vec<_> = (0..4)
        .map(|at| {
            let corner = Place::VRAM.within(2 * at * MIB..(2 * at + 1) * MIB);
            let part = device.buffer(Size::mib(1)).prefer(corner.desired()).or(Place::VRAM);
            let part = part.create().expect("it fits");
            fill(&device, &part, at).expect("room");
            part
        })
        .collect();
    let whole = buffer_at(&device, Place::VRAM.contiguous(), 4);
    finished(fill(&device, &whole, 9));
    let stats = device.stats();
    assert_eq!((extents(&device, &whole).len(), stats.evictions), (1, 0));
    assert!(stats.relocations > 0);
    for (seed, part) in (0..).zip(&parts) {
        expect_bytes(part, seed);
    }
    expect_bytes(&whole, 9);
}

#[test]
fn a_buffer_that_is_held_by_a_map_is_not_relocated() {
    let device = small_bar();
    let [mapped, other] = spilled::<2>(&device);
    let map = mapped.vmap().expect("it is visible");
    let screen = buffer_at(&device, Place::VRAM.visible(), 2);
    let error = screen.place_now().expect_err("half of the visible part is pinned");
    assert!(matches!(error, Error::Exhausted { pinned_bytes: MIB, .. }), "{error:?}");
    assert!(mapped.visible() && other.visible());
    drop(map);
    screen.place_now().expect("nobody is pinned");
    assert_eq!(device.stats().relocations, 2);
}
