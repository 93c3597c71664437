//! Where buffers come to be, and what is refused. The scenarios of TTM's validate tests, and a few it has not.

use devpagemap::{Addr, Device, Error, Extent, Place, RegionKind, Size, SoftwareGpu};

use crate::setup::*;

fn start(extent: &Extent) -> u64 {
    extent.addr.offset()
}

fn end(extent: &Extent) -> u64 {
    extent.addr.offset() + extent.len_bytes
}

#[test]
fn a_buffer_occupies_nothing_before_its_first_use() {
    let device = device(4);
    let buffer = vram_buffer(&device, 2);
    let stats = device.stats();
    assert_eq!((buffer.region(), buffer.visible()), (None, false));
    assert_eq!((stats.vram_used_bytes, stats.system_used_bytes, stats.live_bo_bytes), (0, 0, 2 * MIB));
}

#[test]
fn the_first_place_is_cleared_and_nothing_is_copied() {
    let device = device(4);
    let buffers = [Place::VRAM, Place::GTT, Place::SYSTEM].map(|place| buffer_at(&device, place, 1));
    for (buffer, region) in buffers.iter().zip([RegionKind::Vram, RegionKind::Gtt, RegionKind::System]) {
        buffer.place_now().expect("room");
        assert_eq!(buffer.region(), Some(region));
        expect_zeros(buffer);
    }
    let stats = device.stats();
    assert_eq!((stats.cleared_bytes, stats.moves), (3 * MIB, 0));
    assert_eq!((stats.vram_used_bytes, stats.gtt_used_bytes, stats.system_used_bytes), (MIB, MIB, MIB));
}

#[test]
fn a_buffer_that_is_where_it_wants_to_be_is_not_moved() {
    let device = device(4);
    for place in [Place::VRAM, Place::VRAM.visible(), Place::VRAM.contiguous(), Place::GTT, Place::SYSTEM] {
        let buffer = buffer_at(&device, place, 1);
        buffer.place_now().expect("room");
        let before = device.stats();
        buffer.place_now().expect("it is there already");
        assert_eq!(device.stats().moves, before.moves);
        assert_eq!(device.stats().cleared_bytes, before.cleared_bytes);
    }
}

#[test]
fn memory_that_somebody_else_wrote_is_cleared_before_it_changes_hands() {
    let device = device(4);
    drop(filled(&device, 4, 1));
    let heir = vram_buffer(&device, 4);
    heir.place_now().expect("the space is free");
    expect_zeros(&heir);
}

#[test]
fn a_full_desired_place_is_passed_over_for_the_fallback() {
    let device = device(4);
    let _resident = filled(&device, 4, 1);
    let buffer = device.buffer(Size::mib(2)).prefer(Place::VRAM.desired()).or(Place::GTT.fallback());
    let buffer = buffer.create().expect("a valid placement");
    buffer.place_now().expect("GTT has room");
    assert_eq!(buffer.region(), Some(RegionKind::Gtt));
    assert_eq!(device.stats().evictions, 0);
}

#[test]
fn a_fallback_place_is_not_used_while_the_first_has_room() {
    let device = device(4);
    let buffer = device.buffer(Size::mib(2)).prefer(Place::GTT.fallback()).or(Place::VRAM);
    let buffer = buffer.create().expect("a valid placement");
    buffer.place_now().expect("room");
    assert_eq!(buffer.region(), Some(RegionKind::Vram));
}

#[test]
fn a_place_that_is_only_desired_and_full_is_exhausted() {
    let device = device(4);
    let _resident = filled(&device, 3, 1);
    let buffer = buffer_at(&device, Place::VRAM.desired(), 2);
    let error = buffer.place_now().expect_err("it may not evict");
    assert!(
        matches!(error, Error::Exhausted { region: RegionKind::Vram, wanted_bytes, .. } if wanted_bytes == 2 * MIB),
        "{error:?}: the placement is a valid one, and VRAM is full"
    );
    assert_eq!((buffer.region(), device.stats().evictions), (None, 0));
}

#[test]
fn vram_or_gtt_evicts_nobody_while_gtt_has_room() {
    let device = device(4);
    let resident = filled(&device, 4, 1);
    let other = device.buffer(Size::mib(4)).prefer(Place::VRAM).or(Place::GTT).create().expect("a buffer");
    fill(&device, &other, 2).expect("room in GTT");
    assert_eq!(other.region(), Some(RegionKind::Gtt));
    assert_eq!((resident.region(), device.stats().evictions), (Some(RegionKind::Vram), 0));
    expect_bytes(&other, 2);
}

#[test]
fn vram_or_gtt_evicts_from_vram_when_gtt_is_full_too() {
    let device = builder(4).gtt(Size::mib(4)).build().expect("a device");
    let _in_vram = filled(&device, 4, 1);
    let in_gtt = buffer_at(&device, Place::GTT, 4);
    in_gtt.place_now().expect("room");
    let other = device.buffer(Size::mib(4)).prefer(Place::VRAM).or(Place::GTT).create().expect("a buffer");
    other.place_now().expect("VRAM can be evicted");
    assert_eq!((other.region(), in_gtt.region()), (Some(RegionKind::Vram), Some(RegionKind::Gtt)));
}

#[test]
fn a_buffer_in_its_second_choice_comes_back_to_its_first_once_there_is_room() {
    let device = device(4);
    let resident = filled(&device, 3, 1);
    let buffer = device.buffer(Size::mib(2)).prefer(Place::VRAM).or(Place::GTT).create().expect("a buffer");
    fill(&device, &buffer, 2).expect("room in GTT");
    buffer.place_now().expect("it stays");
    assert_eq!((buffer.region(), device.stats().moves), (Some(RegionKind::Gtt), 0), "no room, no move");

    drop(resident);
    buffer.place_now().expect("there is room now");
    assert_eq!((buffer.region(), device.stats().moves), (Some(RegionKind::Vram), 1));
    assert_eq!(device.stats().gtt_used_bytes, 0);
    expect_bytes(&buffer, 2);
}

#[test]
fn a_first_choice_that_could_never_hold_the_buffer_leaves_the_second() {
    let device = device(4);
    let buffer =
        device.buffer(Size::mib(8)).prefer(Place::VRAM).or(Place::GTT).create().expect("GTT holds it");
    fill(&device, &buffer, 1).expect("room in GTT");
    assert_eq!(buffer.region(), Some(RegionKind::Gtt));
    expect_bytes(&buffer, 1);
}

#[test]
fn a_full_gtt_demotes_the_least_recently_used_to_system_without_copying() {
    let device = builder(4).gtt(Size::mib(4)).build().expect("a device");
    let buffers: Vec<_> = (0..3).map(|_| buffer_at(&device, Place::GTT, 2)).collect();
    for (seed, buffer) in (1..).zip(&buffers) {
        fill(&device, buffer, seed).expect("GTT can be made free");
    }
    let regions: Vec<_> = buffers.iter().filter_map(|buffer| buffer.region()).collect();
    assert_eq!(regions, [RegionKind::System, RegionKind::Gtt, RegionKind::Gtt]);
    let stats = device.stats();
    assert_eq!((stats.gtt_demotions, stats.moves, stats.moved_bytes), (1, 0, 0));
    assert_eq!((stats.gtt_used_bytes, stats.system_used_bytes), (4 * MIB, 2 * MIB));

    verify(&device, &buffers[0], 1).expect("it comes back").wait().expect("the same pages");
    assert_eq!((buffers[0].region(), buffers[1].region()), (Some(RegionKind::Gtt), Some(RegionKind::System)));
    for (seed, buffer) in (1..).zip(&buffers) {
        expect_bytes(buffer, seed);
    }
    assert_eq!((device.stats().gtt_demotions, device.stats().moves), (2, 0));
}

#[test]
fn buffers_that_need_gtt_together_and_exceed_it_are_told_so_with_the_operands() {
    let device = builder(4).gtt(Size::mib(4)).build().expect("a device");
    let (a, b) = (buffer_at(&device, Place::GTT, 3), buffer_at(&device, Place::GTT, 3));
    let refused = device.submit().writes(&a).writes(&b).run(|_, _| panic!("it does not fit"));
    let Err(Error::Exhausted { region: RegionKind::Gtt, wanted_bytes, held_bytes, .. }) = refused else {
        panic!("GTT is exhausted by the submission itself: {refused:?}")
    };
    assert_eq!((wanted_bytes, held_bytes), (3 * MIB, 3 * MIB));
}

#[test]
fn a_place_within_a_range_is_kept_within_it() {
    let device = device(8);
    let place = Place::VRAM.within(2 * MIB..5 * MIB);
    let (a, b) = (buffer_at(&device, place.clone(), 2), buffer_at(&device, place, 2));
    for buffer in [&a, &b] {
        fill(&device, buffer, buffer.id()).expect("the other can be evicted");
        let extents = extents(&device, buffer);
        assert!(
            extents.iter().all(|extent| start(extent) >= 2 * MIB && end(extent) <= 5 * MIB),
            "{extents:?}"
        );
    }
    assert_eq!(device.stats().evictions, 1, "the range has room for one, though VRAM has room for both");
    expect_bytes(&a, a.id());
    expect_bytes(&b, b.id());
}

#[test]
fn only_buffers_in_the_wanted_range_are_evicted_for_it() {
    let device = device(8);
    let below = buffer_at(&device, Place::VRAM.within(0..4 * MIB), 4);
    let above = buffer_at(&device, Place::VRAM.within(4 * MIB..8 * MIB), 4);
    below.place_now().expect("room");
    above.place_now().expect("room");
    let buffer = buffer_at(&device, Place::VRAM.within(4 * MIB..8 * MIB), 1);
    buffer.place_now().expect("its range can be made free");
    assert_eq!((below.evictions(), above.evictions()), (0, 1), "the older one is in nobody's way");
}

#[test]
fn a_contiguous_buffer_is_one_piece_and_a_top_down_one_ends_at_the_top() {
    let device = device(8);
    let top = buffer_at(&device, Place::VRAM.top_down(), 1);
    assert_eq!(extents(&device, &top).last().map(end), Some(8 * MIB));
    let _between = [0, 2, 4].map(|mib| {
        let one = buffer_at(&device, Place::VRAM.within(mib * MIB..(mib + 1) * MIB), 1);
        one.place_now().expect("room");
        one
    });
    let whole = buffer_at(&device, Place::VRAM.contiguous(), 2);
    assert_eq!(extents(&device, &whole).iter().map(|extent| extent.len_bytes).collect::<Vec<_>>(), [2 * MIB]);
    assert_eq!(device.stats().evictions, 0, "between 5 and 7 MiB there is a piece for it");
}

#[test]
fn a_visible_buffer_is_in_the_prefix_and_others_begin_behind_it() {
    let device = builder(8).visible(Size::mib(2)).build().expect("a device");
    let (plain, visible) = (vram_buffer(&device, 4), buffer_at(&device, Place::VRAM.visible(), 2));
    assert!(extents(&device, &plain).iter().all(|extent| start(extent) >= 2 * MIB));
    assert!(extents(&device, &visible).iter().all(|extent| end(extent) <= 2 * MIB));
    assert!(!plain.visible() && visible.visible());
    let spilled = vram_buffer(&device, 2);
    spilled.place_now().expect("room");
    assert_eq!((device.stats().evictions, spilled.visible()), (0, false));
}

#[test]
fn a_scattered_buffer_uses_holes_that_no_single_piece_of_it_would_fit() {
    let device = device(8);
    let pages: Vec<_> = (0..8)
        .map(|mib| buffer_at(&device, Place::VRAM.within(mib * MIB..(mib + 1) * MIB), 1))
        .inspect(|buffer| buffer.place_now().expect("room"))
        .collect();
    let kept: Vec<_> = pages.into_iter().enumerate().filter(|(index, _)| index % 2 == 0).collect();
    device.wait_idle();
    let scattered = filled(&device, 4, 1);
    assert_eq!((extents(&device, &scattered).len(), device.stats().evictions), (4, 0));
    expect_bytes(&scattered, 1);
    assert_eq!(kept.len(), 4);
}

#[test]
fn jobs_see_addresses_of_the_region_the_buffer_is_in() {
    let device = device(4);
    let (here, there) = (vram_buffer(&device, 1), buffer_at(&device, Place::GTT, 1));
    assert!(extents(&device, &here).iter().all(|extent| matches!(extent.addr, Addr::Vram(_))));
    assert!(extents(&device, &there).iter().all(|extent| matches!(extent.addr, Addr::System(_))));
}

#[test]
fn a_size_that_cannot_be_is_refused_with_its_reason() {
    let device = device(4);
    let before = device.stats();
    for (bytes, wrong) in [(0, "is nothing"), (u64::MAX, "overflow"), (u64::MAX - 4094, "overflow")] {
        let error = device.buffer(Size::bytes(bytes)).create().expect_err("not a size");
        let Error::InvalidSize { bytes: told, why, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*told, bytes);
        assert!(why.contains(wrong), "{error}");
    }
    let error = device.buffer(Size::bytes(1 << 63)).create().expect_err("half of all addresses");
    let limit_bytes = 4 * MIB;
    assert_eq!(error, Error::TooLarge { region: RegionKind::Vram, wanted_bytes: 1 << 63, limit_bytes });
    assert_eq!(device.stats(), before);
}

#[test]
fn a_buffer_that_no_place_of_it_could_ever_hold_is_refused_with_the_limit() {
    let device = builder(8).visible(Size::mib(2)).gtt(Size::mib(16)).build().expect("a device");
    let before = device.stats();
    let limits = [
        (Place::VRAM, RegionKind::Vram, 8),
        (Place::VRAM.visible(), RegionKind::Vram, 2),
        (Place::VRAM.within(MIB..4 * MIB), RegionKind::Vram, 3),
        (Place::VRAM.within(64 * MIB..128 * MIB), RegionKind::Vram, 0),
        (Place::GTT, RegionKind::Gtt, 16),
        (Place::SYSTEM, RegionKind::System, 256),
    ];
    for (place, region, limit_mib) in limits {
        let wanted_bytes = limit_mib * MIB + 1;
        let refused = device.buffer(Size::bytes(wanted_bytes)).prefer(place).create();
        let wanted_bytes = wanted_bytes.next_multiple_of(4096);
        let error = Error::TooLarge { region, wanted_bytes, limit_bytes: limit_mib * MIB };
        assert_eq!(refused.map(|buffer| buffer.id()), Err(error));
    }
    assert_eq!(device.stats(), before);
}

#[test]
fn a_placement_that_cannot_be_is_refused_with_its_reason() {
    let device = device(4);
    let before = device.stats();
    let cases = [
        (Place::VRAM.desired().fallback(), "desired and fallback"),
        (Place::VRAM.within(4096..4096), "empty"),
        (Place::VRAM.within(core::ops::Range { start: 8192, end: 4096 }), "empty"),
        (Place::VRAM.within(1..4096), "whole"),
        (Place::GTT.within(0..4096), "GTT"),
    ];
    for (place, wrong) in cases {
        let error = device.buffer(Size::mib(1)).prefer(place).create().expect_err("not a place");
        assert!(matches!(error, Error::InvalidPlacement { .. }), "{error:?}");
        assert!(error.to_string().contains(wrong), "{error}");
    }
    let error = device.buffer(Size::mib(1)).priority(4).create().expect_err("not a priority");
    assert!(error.to_string().contains("priority 4"), "{error}");
    assert_eq!(device.stats(), before);
}

#[test]
fn a_buffer_of_another_device_is_refused_and_neither_device_changes() {
    let (here, there) = (device(4), device(4));
    let (ours, theirs) = (vram_buffer(&here, 1), vram_buffer(&there, 1));
    let before = (here.stats(), there.stats());
    let refused = here.submit().writes(&ours).reads(&theirs).run(|_, _| panic!("it must not run"));
    assert_eq!(refused.map(|_| ()), Err(Error::ForeignBuffer { buffer: theirs.id() }));
    assert_eq!((here.stats(), there.stats()), before);
    assert_eq!(ours.region(), None);
}

#[test]
fn an_access_beyond_the_end_is_refused_and_writes_nothing() {
    let device = device(4);
    let buffer = device.buffer(Size::bytes(5000)).create().expect("a buffer that ends inside a page");
    let mut bytes = [7; 16];
    for (offset_bytes, len) in [(5000, 1), (4990, 16), (u64::MAX, 1), (u64::MAX - 7, 16)] {
        let wanted = Err(Error::OutOfBounds { offset_bytes, len_bytes: len as u64, size_bytes: 5000 });
        assert_eq!(buffer.read_at(offset_bytes, &mut bytes[..len]), wanted);
        assert_eq!(buffer.write_at(offset_bytes, &bytes[..len]), wanted);
    }
    assert_eq!((bytes, buffer.region()), ([7; 16], None));
    assert_eq!(buffer.read_at(5000, &mut []), Ok(()), "nothing, at the very end, is inside");
}

#[test]
fn a_submission_larger_than_vram_is_refused_before_anything_moves() {
    let device = device(4);
    let resident = filled(&device, 4, 1);
    let (a, b) = (vram_buffer(&device, 3), vram_buffer(&device, 2));
    let before = device.stats();
    let refused = device.submit().writes(&a).writes(&b).run(|_, _| panic!("it does not fit"));
    let Err(Error::Exhausted { region: RegionKind::Vram, wanted_bytes, free_bytes, .. }) = refused else {
        panic!("5 MiB do not fit into 4: {refused:?}")
    };
    assert_eq!((wanted_bytes, free_bytes), (5 * MIB, 4 * MIB));
    assert_eq!(device.stats(), before);
    assert_eq!(resident.region(), Some(RegionKind::Vram));
}

#[test]
fn a_device_that_cannot_be_is_refused_and_not_half_built() {
    let gpu = || SoftwareGpu::builder().rings(1).copy_engines(1).build().expect("threads");
    let invalid = [
        Device::builder(gpu()).build(),
        Device::builder(gpu()).vram(Size::bytes(4097)).build(),
        Device::builder(gpu()).vram(Size::gib(u64::MAX)).build(),
        Device::builder(gpu()).vram(Size::bytes(1 << 62)).build(),
        Device::builder(gpu()).vram(Size::mib(1)).visible(Size::mib(2)).build(),
        Device::builder(gpu()).vram(Size::mib(1)).visible(Size::bytes(1)).build(),
        Device::builder(gpu()).vram(Size::mib(1)).system(Size::bytes(0)).build(),
        Device::builder(gpu()).vram(Size::mib(1)).system(Size::bytes(4097)).build(),
    ];
    for refused in invalid {
        let error = refused.expect_err("not a device");
        assert!(matches!(error, Error::InvalidSize { .. }), "{error:?}");
    }
    let refused = Device::builder(gpu()).vram(Size::mib(1)).system(Size::bytes(1 << 62)).build();
    assert!(matches!(refused, Err(Error::Io { bytes, .. }) if bytes == 1 << 62), "{refused:?}");
}

#[test]
fn a_buffer_needs_no_visible_vram_to_live_in_a_device_without_any() {
    let device = builder(4).visible(Size::bytes(0)).build().expect("a device without a BAR");
    let buffer = filled(&device, 4, 1);
    assert!(!buffer.visible());
    expect_bytes(&buffer, 1);
    let error =
        device.buffer(Size::mib(1)).prefer(Place::VRAM.visible()).create().expect_err("nothing is visible");
    assert!(matches!(error, Error::TooLarge { limit_bytes: 0, .. }), "{error:?}");
}

#[test]
fn a_buffer_that_may_be_anywhere_makes_way_for_one_of_its_own_submission_that_must_be_visible() {
    for plain_first in [true, false] {
        let device = builder(8).visible(Size::mib(2)).build().expect("a device with a small BAR");
        let hidden = filled(&device, 6, 1);
        let plain = filled(&device, 2, 2);
        assert!(plain.visible(), "it spilled into the visible part, where alone there was room");
        drop(hidden);
        let screen = buffer_at(&device, Place::VRAM.visible(), 2);
        let submission = match plain_first {
            true => device.submit().reads(&plain).writes(&screen),
            false => device.submit().writes(&screen).reads(&plain),
        };
        finished(submission.run(|gpu, job| {
            let (plain, screen) = (job.extents(&plain), job.extents(&screen));
            gpu.run(job, move |memory| {
                write_pattern(memory, &screen, 3);
                check_pattern(memory, &plain, 2)
            })
        }));
        assert!(screen.visible() && !plain.visible());
        assert_eq!(device.stats().evictions, 0, "it moved within VRAM");
        expect_bytes(&screen, 3);
    }
}

#[test]
fn a_buffer_that_must_be_visible_too_makes_way_for_nobody() {
    let device = builder(8).visible(Size::mib(2)).build().expect("a device with a small BAR");
    let [first, second] = [(); 2].map(|()| buffer_at(&device, Place::VRAM.visible(), 2));
    let refused = device.submit().writes(&first).writes(&second).run(|_, _| unreachable!("one has no place"));
    let expected = Error::Exhausted {
        region: RegionKind::Vram,
        wanted_bytes: 2 * MIB,
        free_bytes: 0,
        pinned_bytes: 0,
        held_bytes: 2 * MIB,
    };
    assert_eq!(refused.err(), Some(expected));
}

#[test]
fn a_buffer_in_the_middle_of_the_only_contiguous_bytes_makes_way_for_one_of_its_own_submission() {
    let device = device(8);
    let middle = Place::VRAM.within(3 * MIB..5 * MIB);
    let plain =
        device.buffer(Size::mib(2)).prefer(middle.desired()).or(Place::VRAM).create().expect("it fits");
    fill(&device, &plain, 1).expect("nothing is in its way");
    let whole = buffer_at(&device, Place::VRAM.contiguous(), 4);
    finished(device.submit().writes(&whole).reads(&plain).run(|gpu, job| {
        let (whole, plain) = (job.extents(&whole), job.extents(&plain));
        assert_eq!(whole.iter().count(), 1, "it is contiguous");
        gpu.run(job, move |memory| {
            write_pattern(memory, &whole, 2);
            check_pattern(memory, &plain, 1)
        })
    }));
    assert_eq!(device.stats().evictions, 0, "it moved within VRAM");
    expect_bytes(&whole, 2);
    expect_bytes(&plain, 1);
}
