//! All who share a buffer agree on where it is, once.

use devpagemap::pagemap::{Policy, Profile};
use devpagemap::{
    Buffer, Device, Error, P2p, Peer, PeerMap, PeerReason, Place, RegionKind, Route, Size, SoftwareGpu,
};

use crate::setup::importer::*;
use crate::setup::*;

const VRAM: Option<RegionKind> = Some(RegionKind::Vram);
const GTT: Option<RegionKind> = Some(RegionKind::Gtt);
const SYSTEM: Option<RegionKind> = Some(RegionKind::System);

fn peers(device: &Device<SoftwareGpu>) -> (Peer, Peer) {
    let (_, gpu) = Nic::join("gpu1", device);
    let (_, card) = Nic::join_as("card", Profile::dynamic().system_only(), device);
    (gpu, card)
}

fn mapped(buffer: &Buffer, peer: &Peer) -> PeerMap {
    map_all(&buffer.attach(peer).expect("one device"))
}

/// How often the buffer moves while two map it ten thousand times in turn and do what `turn` says.
fn moves_of(buffer_at: Place, mut turn: impl FnMut(&Lab, &Buffer, &PeerMap, &PeerMap)) -> (u64, Lab, Buffer) {
    let device = device(4);
    let (gpu, card) = peers(&device);
    let buffer =
        device.buffer(Size::bytes(4096)).prefer(buffer_at).or(Place::GTT).create().expect("a buffer");
    fill(&device, &buffer, 1).expect("room");
    let attachments = [&gpu, &card].map(|peer| buffer.attach(peer).expect("one device"));
    let before = device.stats().moves;
    for _ in 0..10_000 {
        let direct = map_all(&attachments[0]);
        let other = map_all(&attachments[1]);
        turn(&device, &buffer, &direct, &other);
    }
    (device.stats().moves - before, device, buffer)
}

#[test]
fn two_that_map_in_turn_ten_thousand_times_move_the_buffer_at_most_once() {
    let (moves, device, buffer) = moves_of(Place::VRAM, |_, _, _, _| {});
    assert!(moves <= 1, "{moves}");
    expect_bytes(&buffer, 1);
    assert_eq!(device.stats().cpu_waits_in_validate, 0);
}

#[test]
fn two_that_write_and_read_in_turn_settle_in_system_memory_after_one_move() {
    let mut seed = 1;
    let (moves, _device, buffer) = moves_of(Place::VRAM, |device, _, direct, other| {
        seed += 1;
        for (map, seed) in [(direct, seed), (other, seed + 20_000)] {
            if map.is_current() {
                peer_writes(device, map, seed);
            }
        }
        let last = if other.is_current() { seed + 20_000 } else { seed };
        peer_uses(device, if other.is_current() { other } else { direct }, last);
    });
    assert_eq!((moves, buffer.region()), (1, GTT));
}

#[test]
fn what_the_gpu_works_on_stays_in_vram_with_a_copy() {
    let mut seed = 1;
    let (moves, device, buffer) = moves_of(Place::VRAM, |device, buffer, direct, other| {
        seed += 1;
        if seed % 10 == 0 {
            finished(fill(device, buffer, seed));
            peer_uses(device, direct, seed);
            peer_uses(device, other, seed);
        }
    });
    assert_eq!((moves, buffer.region()), (0, VRAM));
    assert!(device.stats().staged_copies > 0);
}

#[test]
fn who_attach_anew_for_each_of_ten_thousand_maps_stop_moving_the_buffer() {
    let device = device(4);
    let (gpu, card) = peers(&device);
    let buffer = device.buffer(Size::bytes(4096)).create().expect("a buffer");
    fill(&device, &buffer, 1).expect("room");
    for _ in 0..10_000 {
        drop(mapped(&buffer, &gpu));
        drop(mapped(&buffer, &card));
    }
    assert!(device.stats().moves <= 10, "{}", device.stats().moves);
}

#[test]
fn whoever_comes_first_all_end_up_with_the_same() {
    for card_first in [false, true] {
        let device = device(4);
        let (gpu, card) = peers(&device);
        let buffer = filled(&device, 1, 1);
        let mut attach = [&gpu, &card];
        if card_first {
            attach.reverse();
        }
        let _attachments: Vec<_> =
            attach.iter().map(|peer| buffer.attach(peer).expect("one device")).collect();
        let maps = [mapped(&buffer, &card), mapped(&buffer, &gpu)];
        assert_eq!(maps.each_ref().map(PeerMap::route), [Route::Staging, Route::Declared], "{card_first}");
        assert_eq!((buffer.region(), device.stats().moves), (VRAM, 0));
    }
}

#[test]
fn one_alone_that_does_not_reach_the_bar_gets_the_buffer_in_system_memory() {
    let device = device(4);
    let (_gpu, card) = peers(&device);
    let buffer = filled(&device, 1, 1);
    let map = mapped(&buffer, &card);
    assert_eq!(
        (way(&map, &buffer), map.why_system()),
        ((Route::System, SYSTEM), Some(PeerReason::NoPeerAccess))
    );
    peer_uses(&device, &map, 1);
}

#[test]
fn a_job_and_one_that_does_not_reach_the_bar_stop_moving_the_buffer_to_and_fro() {
    let device = device(4);
    let (_gpu, card) = peers(&device);
    let buffer = filled(&device, 1, 1);
    let attachment = buffer.attach(&card).expect("one device");
    for seed in 2..100 {
        let job = fill(&device, &buffer, seed);
        finished(job);
        peer_uses(&device, &map_all(&attachment), seed);
    }
    assert_eq!((map_all(&attachment).route(), buffer.region()), (Route::Staging, VRAM));
    assert!(device.stats().moves <= 10, "{} of 98 turns", device.stats().moves);
}

#[test]
fn who_requires_the_bar_has_it_and_the_others_get_a_copy() {
    let device = device(4);
    let (_gpu, card) = peers(&device);
    let (told, must) = Nic::join_as("gpu2", Profile::dynamic().policy(Policy::Required), &device);
    let buffer = device.buffer(Size::mib(1)).prefer(Place::GTT).or(Place::VRAM).create().expect("a buffer");
    fill(&device, &buffer, 1).expect("room");
    let in_gtt = mapped(&buffer, &card);
    assert_eq!(way(&in_gtt, &buffer), (Route::System, GTT));
    let direct = mapped(&buffer, &must);
    assert_eq!(way(&direct, &buffer), (Route::Declared, VRAM));
    assert!(!in_gtt.is_current());
    let staged = mapped(&buffer, &card);
    assert_eq!(way(&staged, &buffer), (Route::Staging, VRAM));
    for seed in 2..50 {
        peer_writes(&device, &staged, seed);
        peer_uses(&device, &direct, seed);
    }
    assert!(direct.is_current() && told.was_told().is_empty());
}

#[test]
fn who_requires_the_bar_and_does_not_reach_it_is_refused_with_the_reasons() {
    let device = device(4);
    let profile = Profile::dynamic().system_only().policy(Policy::Required);
    let (_, must) = Nic::join_as("card", profile, &device);
    let buffer = filled(&device, 1, 1);
    let refused = buffer.attach(&must).expect("one device").map(0..MIB).expect_err("it reaches nothing");
    let Error::NoPeerAccess { why, .. } = &refused else { panic!("{refused}") };
    assert!(!why.is_empty());
    assert_eq!((buffer.region(), device.stats().moves), (VRAM, 0));
}

#[test]
fn who_wants_no_peer_access_gets_none() {
    let device = device(4);
    let (_, never) = Nic::join_as("gpu2", Profile::dynamic().policy(Policy::Forbidden), &device);
    let buffer = filled(&device, 1, 1);
    assert_eq!(way(&mapped(&buffer, &never), &buffer), (Route::System, SYSTEM));
}

#[test]
fn a_limit_that_keeps_one_out_of_the_bar_does_not_take_it_from_one_who_requires_it() {
    let device = device(4);
    let (_, must) = Nic::join_as("gpu2", Profile::dynamic().policy(Policy::Required), &device);
    let (_, poor) = Nic::join("gpu3", &device);
    let poor = poor.p2p_limit(Size::bytes(0));
    let buffer = filled(&device, 1, 1);
    let direct = mapped(&buffer, &must);
    let staged = mapped(&buffer, &poor);
    assert_eq!((direct.is_current(), staged.route()), (true, Route::Staging));
    peer_uses(&device, &staged, 1);
}

#[test]
fn peers_that_are_never_to_have_the_bar_share_system_memory_or_a_copy() {
    let device = device(4);
    let (gpu, card) = peers(&device);
    let buffer = filled(&device, 1, 1);
    buffer.set_p2p(P2p::Never).expect("a slot");
    let maps = [&gpu, &card].map(|peer| mapped(&buffer, peer));
    assert!(maps.iter().all(|map| map.route() == Route::System));
    assert_eq!(device.stats().moves, 1);
}
