//! The BAR runs short: who gets it, who makes way, who is told, and who comes back.

use devpagemap::{
    Attachment, BarLimit, Buffer, Error, Event, Events, InvalidateReason, OnPressure, P2p, P2pLimits, Peer,
    PeerMap, PeerReason, Place, RegionKind, Route, Size,
};

use crate::setup::importer::*;
use crate::setup::*;

const VRAM: Option<RegionKind> = Some(RegionKind::Vram);
const GTT: Option<RegionKind> = Some(RegionKind::Gtt);
const SYSTEM: Option<RegionKind> = Some(RegionKind::System);
const PAGES_PER_MIB: u64 = 256;

/// 16 MiB of VRAM, 8 of it visible; the gate closes at 4, re-opens at 2, and 6 is the end.
pub fn device() -> Lab {
    let [reopen, soft, hard, cpu_reserve] = [2, 4, 6, 2].map(Size::mib);
    let limits = P2pLimits { soft, reopen, hard, cpu_reserve };
    builder(16).visible(Size::mib(8)).p2p_limits(limits).build().expect("a small device")
}

pub fn tagged(device: &Lab, mib: u64, p2p: P2p, seed: u64) -> Buffer {
    let buffer =
        device.buffer(Size::mib(mib)).p2p(p2p).write_combined().create().expect("a buffer that fits");
    fill(device, &buffer, seed).expect("room");
    buffer
}

pub fn attach(buffer: &Buffer, peer: &Peer) -> Attachment {
    buffer.attach(peer).expect("one device")
}

pub fn mapped(buffer: &Buffer, peer: &Peer) -> PeerMap {
    map_all(&attach(buffer, peer))
}

pub fn told(events: &Events) -> Vec<Event> {
    std::iter::from_fn(|| events.try_next()).collect()
}

#[test]
fn over_the_soft_limit_who_is_merely_allowed_gets_system_memory_and_everybody_hears_why() {
    let device = device();
    let events = device.events();
    let (_nic, peer) = Nic::join("nic", &device);
    let buffers = [3, 2].map(|mib| tagged(&device, mib, P2p::Allowed, mib));
    let first = mapped(&buffers[0], &peer);
    assert_eq!((way(&first, &buffers[0]), told(&events)), ((Route::Declared, VRAM), vec![]));
    let second = mapped(&buffers[1], &peer);
    let reason = PeerReason::Over(BarLimit::Soft);
    assert_eq!((way(&second, &buffers[1]), second.why_system()), ((Route::System, SYSTEM), Some(reason)));
    let (buffer, importer) = (buffers[1].id(), "nic".into());
    let missing_pages = PAGES_PER_MIB;
    assert_eq!(told(&events), [Event::FellBack { buffer, importer, reason, missing_pages }]);
    for (map, seed) in [(&first, 3), (&second, 2)] {
        expect_peer_reads(&device, map, seed);
    }
    let stats = device.stats();
    assert_eq!((stats.p2p_fallbacks, stats.p2p_used_bytes, stats.cpu_waits_in_validate), (1, 3 * MIB, 0));
    assert_eq!(stats.reasons.values().sum::<u64>(), 1, "{:?}", stats.reasons);
}

#[test]
fn who_is_preferred_goes_on_to_the_hard_limit_and_nobody_beyond() {
    let device = device();
    let (_nic, peer) = Nic::join("nic", &device);
    let buffers = [4, 2, 1].map(|mib| tagged(&device, mib, P2p::Prefer, mib));
    let ways: Vec<_> = buffers.iter().map(|buffer| (mapped(buffer, &peer), buffer)).collect();
    let ways: Vec<_> = ways.iter().map(|(map, buffer)| way(map, buffer)).collect();
    assert_eq!(ways, [(Route::Declared, VRAM), (Route::Declared, VRAM), (Route::System, SYSTEM)]);
    assert_eq!(device.stats().p2p_peak_bytes, 6 * MIB);
}

#[test]
fn who_does_not_want_to_fall_back_is_refused_with_the_limit_and_nothing_changes() {
    let device = device();
    let (_nic, peer) = Nic::join("nic", &device);
    let [holder, newcomer] = [6, 1].map(|mib| tagged(&device, mib, P2p::Prefer, mib));
    let _held = mapped(&holder, &peer);
    device.wait_idle();
    let (events, before) = (device.events(), device.stats());
    let refused = attach(&newcomer, &peer).request(0..MIB).on_pressure(OnPressure::Refuse).map();
    let (limit_bytes, used_bytes, wanted_bytes) = (6 * MIB, 6 * MIB, MIB);
    let full = Error::ApertureFull { limit: BarLimit::Hard, limit_bytes, used_bytes, wanted_bytes };
    assert_eq!(refused.map(|_| ()), Err(full));
    let after = device.stats();
    assert_eq!((newcomer.region(), after.moves, after.p2p_used_bytes), (VRAM, before.moves, 6 * MIB));
    assert_eq!((after.p2p_refusals, after.p2p_fallbacks), (1, 0));
    assert!(matches!(told(&events)[..], [Event::Refused { reason: PeerReason::Over(BarLimit::Hard), .. }]));
}

#[test]
fn who_requires_the_bar_never_falls_back_whatever_the_map_says() {
    let device = device();
    let (_nic, peer) = Nic::join("nic", &device);
    let [holder, newcomer] = [6, 1].map(|mib| tagged(&device, mib, P2p::Require, mib));
    let held = mapped(&holder, &peer);
    for on_pressure in [OnPressure::FallBack, OnPressure::Demote, OnPressure::Refuse] {
        let refused = attach(&newcomer, &peer).request(0..MIB).on_pressure(on_pressure).map();
        assert!(matches!(refused, Err(Error::ApertureFull { .. })), "{on_pressure:?}: {refused:?}");
    }
    assert!(held.is_current(), "equals do not make way for each other");
    drop(held);
    assert_eq!(way(&mapped(&newcomer, &peer), &newcomer), (Route::Declared, VRAM));
}

#[test]
fn the_gate_stays_closed_until_use_has_fallen_to_the_reopen_mark() {
    let device = device();
    let events = device.events();
    let (_nic, peer) = Nic::join("nic", &device);
    let held: Vec<_> = (0..4).map(|seed| tagged(&device, 1, P2p::Allowed, seed)).collect();
    let mut maps: Vec<_> = held.iter().map(|buffer| mapped(buffer, &peer)).collect();
    assert!(matches!(told(&events)[..], [Event::BarPressure { limit_pages: 1024, .. }]));
    maps.pop();
    let late = |seed| tagged(&device, 1, P2p::Allowed, seed);
    let too_early = late(5);
    assert_eq!(mapped(&too_early, &peer).route(), Route::System, "3 MiB are above the mark");
    maps.pop();
    let relieved = told(&events);
    assert!(matches!(relieved.last(), Some(Event::BarRelief { used_pages: 512, .. })), "{relieved:?}");
    let in_time = late(6);
    assert_eq!(mapped(&in_time, &peer).route(), Route::Declared);
}

#[test]
fn buffers_of_lower_rank_make_way_the_lowest_first_and_no_more_than_needed() {
    let device = device();
    let events = device.events();
    let (nic, peer) = Nic::join("nic", &device);
    let buffers = [3, 0, 1].map(|priority| {
        let buffer = device.buffer(Size::mib(1)).priority(priority).create().expect("a buffer");
        fill(&device, &buffer, priority as u64).expect("room");
        buffer
    });
    let maps = buffers.each_ref().map(|buffer| mapped(buffer, &peer));
    let newcomer = tagged(&device, 5, P2p::Prefer, 9);
    let map = mapped(&newcomer, &peer);
    assert_eq!(way(&map, &newcomer), (Route::Declared, VRAM));
    assert_eq!(buffers.each_ref().map(|buffer| buffer.region()), [VRAM, SYSTEM, SYSTEM]);
    assert_eq!(maps.each_ref().map(|map| map.is_current()), [true, false, false]);
    let demoted = [1, 2].map(|at: usize| (buffers[at].id(), InvalidateReason::Demoted));
    assert_eq!(nic.was_told(), demoted);
    let reason = PeerReason::Outranked { by: newcomer.id() };
    let told = told(&events);
    let demotions = told.iter().filter_map(|event| match event {
        Event::Demoted { buffer, reason, missing_pages, .. } => Some((*buffer, *reason, *missing_pages)),
        _ => None,
    });
    let expected = [1, 2].map(|at: usize| (buffers[at].id(), reason, 2 * PAGES_PER_MIB));
    assert_eq!(demotions.collect::<Vec<_>>(), expected, "{told:?}");
    let stats = device.stats();
    assert_eq!((stats.demotions, stats.evictions, stats.p2p_used_bytes), (2, 0, 6 * MIB));
    expect_peer_reads(&device, &map, 9);
    for (buffer, seed) in buffers.iter().zip([3, 0, 1]) {
        expect_bytes(buffer, seed);
    }
}

#[test]
fn nobody_makes_way_if_that_would_not_be_enough() {
    let device = device();
    let (nic, peer) = Nic::join("nic", &device);
    let lower = tagged(&device, 1, P2p::Allowed, 1);
    let equal = tagged(&device, 4, P2p::Prefer, 2);
    let _maps = [mapped(&lower, &peer), mapped(&equal, &peer)];
    let newcomer = tagged(&device, 3, P2p::Prefer, 3);
    assert_eq!(mapped(&newcomer, &peer).route(), Route::System);
    assert_eq!((nic.was_told(), device.stats().demotions), (vec![], 0));
}

#[test]
fn another_priority_counts_for_the_next_who_has_to_make_way() {
    let device = device();
    let (_nic, peer) = Nic::join("nic", &device);
    let buffers = [1, 2].map(|seed| tagged(&device, 2, P2p::Allowed, seed));
    let _maps = buffers.each_ref().map(|buffer| mapped(buffer, &peer));
    buffers[0].set_priority(2).expect("a priority");
    let newcomer = tagged(&device, 3, P2p::Prefer, 3);
    let _map = mapped(&newcomer, &peer);
    assert_eq!(buffers.each_ref().map(|buffer| buffer.region()), [VRAM, SYSTEM], "the first was older");
}

#[test]
fn a_newcomer_queues_behind_those_who_made_way_and_use_never_passes_the_limit() {
    let device = device();
    let (nic, peer) = Nic::join("nic", &device);
    let (_other_nic, other) = Nic::join("gpu1", &device);
    let lower = tagged(&device, 4, P2p::Allowed, 1);
    let held = mapped(&lower, &peer);
    let addr = bar_addr(&held);
    device.wait_idle();
    let gate = Gate::closed();
    nic.is_busy_until(gate.fence());
    let newcomer = tagged(&device, 6, P2p::Prefer, 2);
    let map = mapped(&newcomer, &other);
    assert_eq!(way(&map, &newcomer), (Route::Declared, VRAM), "nobody waits");
    assert!(!map.after().is_signaled(), "the pages are not free yet");
    assert_eq!(device.stats().p2p_peak_bytes, 6 * MIB);
    device.driver().write_bar(addr, b"the last words").expect("the peer is not done");
    gate.open();
    expect_peer_reads(&device, &map, 2);
    let mut bytes = [0; 14];
    lower.read_at(0, &mut bytes).expect("it is in system memory");
    assert_eq!(&bytes, b"the last words");
}

#[test]
fn who_was_demoted_comes_back_when_space_returns() {
    let device = device();
    let events = device.events();
    let (nic, peer) = Nic::join("nic", &device);
    let lower = tagged(&device, 2, P2p::Allowed, 1);
    let attachment = attach(&lower, &peer);
    let _first = map_all(&attachment);
    let newcomer = tagged(&device, 6, P2p::Prefer, 2);
    let taken = mapped(&newcomer, &peer);
    let in_system = map_all(&attachment);
    assert_eq!(way(&in_system, &lower), (Route::System, SYSTEM));
    assert_eq!(device.promote(), 0, "there is no room");
    assert_eq!(nic.was_told(), [(lower.id(), InvalidateReason::Demoted)]);
    drop(taken);
    soon("the promotion", || lower.region() == VRAM);
    assert!(!in_system.is_current());
    assert_eq!(nic.was_told(), [(lower.id(), InvalidateReason::Promoted)]);
    assert_eq!(device.stats().p2p_used_bytes, 2 * MIB, "its pages are kept for it");
    let back = map_all(&attachment);
    assert_eq!(way(&back, &lower), (Route::Declared, VRAM));
    expect_peer_reads(&device, &back, 1);
    let stats = device.stats();
    assert_eq!((stats.promotions, stats.p2p_used_bytes), (1, 2 * MIB));
    let (buffer, importer, pages) = (lower.id(), "nic".into(), 2 * PAGES_PER_MIB);
    assert!(told(&events).contains(&Event::Promoted { buffer, importer, pages }));
    drop((back, attachment));
    assert_eq!(device.stats().p2p_used_bytes, 0);
}

#[test]
fn who_is_tagged_never_comes_back_only_when_it_is_allowed_again() {
    let device = device();
    let (nic, peer) = Nic::join("nic", &device);
    let holder = tagged(&device, 6, P2p::Prefer, 1);
    let taken = mapped(&holder, &peer);
    let buffer = tagged(&device, 2, P2p::Allowed, 2);
    let attachment = attach(&buffer, &peer);
    let map = map_all(&attachment);
    buffer.set_p2p(P2p::Never).expect("a slot");
    assert!(map.is_current(), "it is in system memory already");
    drop((taken, holder));
    assert_eq!((device.promote(), buffer.region()), (0, SYSTEM));
    buffer.set_p2p(P2p::Prefer).expect("a slot");
    soon("the promotion", || buffer.region() == VRAM);
    assert_eq!(nic.was_told(), [(buffer.id(), InvalidateReason::Promoted)]);
    expect_peer_reads(&device, &map_all(&attachment), 2);
}

#[test]
fn pages_kept_for_a_peer_that_lets_go_are_given_back() {
    let device = device();
    let (_nic, peer) = Nic::join("nic", &device);
    let lower = tagged(&device, 2, P2p::Allowed, 1);
    let attachment = attach(&lower, &peer);
    let newcomer = tagged(&device, 6, P2p::Prefer, 2);
    let taken = mapped(&newcomer, &peer);
    let in_system = map_all(&attachment);
    drop(taken);
    soon("the promotion", || lower.region() == VRAM);
    assert_eq!(device.stats().p2p_used_bytes, 2 * MIB);
    drop(attachment);
    assert_eq!(device.stats().p2p_used_bytes, 0);
    drop(in_system);
    assert_eq!(device.stats().p2p_used_bytes, 0, "once");
}

#[test]
fn those_who_wait_come_back_by_rank_and_only_as_many_as_there_is_room_for() {
    let device = device();
    let (_nic, peer) = Nic::join("nic", &device);
    let holder = tagged(&device, 6, P2p::Require, 9);
    let taken = mapped(&holder, &peer);
    let waiting = [0, 2, 1].map(|priority| {
        let buffer = device.buffer(Size::mib(2)).priority(priority).create().expect("a buffer");
        fill(&device, &buffer, priority as u64).expect("room");
        buffer
    });
    let attachments = waiting.each_ref().map(|buffer| attach(buffer, &peer));
    let _maps = attachments.each_ref().map(map_all);
    assert_eq!(waiting.each_ref().map(|buffer| buffer.region()), [SYSTEM; 3]);
    drop((taken, holder));
    soon("the second promotion", || device.stats().promotions == 2);
    assert_eq!(device.promote(), 0, "the gate is closed again");
    assert_eq!(waiting.each_ref().map(|buffer| buffer.region()), [SYSTEM, VRAM, VRAM]);
    for (buffer, seed) in waiting.iter().zip([0, 2, 1]) {
        expect_bytes(buffer, seed);
    }
}

#[test]
fn an_importer_over_its_own_limit_takes_nobody_elses_buffers_away() {
    let device = device();
    let (_nic, peer) = Nic::join("nic", &device);
    let small = peer.p2p_limit(Size::mib(1));
    let (other_nic, other) = Nic::join("gpu1", &device);
    let buffers = [1, 2].map(|seed| tagged(&device, 1, P2p::Allowed, seed));
    let theirs = mapped(&buffers[1], &other);
    let first = mapped(&buffers[0], &small);
    assert_eq!(first.route(), Route::Declared);
    let third = tagged(&device, 1, P2p::Prefer, 3);
    let denied = attach(&third, &small).request(0..MIB).on_pressure(OnPressure::FallBack).map();
    assert_eq!(denied.expect("system memory").why_system(), Some(PeerReason::Over(BarLimit::Importer)));
    assert!(theirs.is_current() && other_nic.was_told().is_empty());
    let outranked = attach(&third, &small);
    let map = map_all(&outranked);
    assert_eq!((map.route(), first.is_current()), (Route::Declared, false), "its own lower buffer made way");
    assert!(theirs.is_current());
    assert_eq!((small.p2p_used(), other.p2p_used()), (Size::mib(1), Size::mib(1)));
}

#[test]
fn two_importers_of_one_buffer_of_which_one_may_not_have_the_bar_settle_in_system_memory() {
    let device = device();
    let (_nic, peer) = Nic::join("nic", &device);
    let limited = peer.p2p_limit(Size::bytes(0));
    let (other_nic, other) = Nic::join("gpu1", &device);
    let buffer = tagged(&device, 1, P2p::Allowed, 1);
    let attachment = attach(&buffer, &other);
    let first = map_all(&attachment);
    assert_eq!(first.route(), Route::Declared);
    let second = mapped(&buffer, &limited);
    assert_eq!((second.route(), first.is_current()), (Route::System, false));
    let moves = device.stats().moves;
    for _ in 0..10 {
        let again = map_all(&attachment);
        assert_eq!(again.why_system(), Some(PeerReason::SharedInSystemMemory));
        assert_eq!(device.promote(), 0, "one of them may not");
    }
    assert_eq!((device.stats().moves, other_nic.was_told().len()), (moves, 1), "it does not go to and fro");
    limited.set_p2p_limit(Size::mib(1));
    let both = [map_all(&attachment), second];
    assert_eq!(device.promote(), 0, "the first map of the limited one cannot be mapped again");
    let [theirs, second] = both;
    drop(second);
    drop(theirs);
    assert_eq!(map_all(&attachment).route(), Route::Declared);
}

#[test]
fn a_client_has_its_own_share() {
    let device = device();
    let (_nic, peer) = Nic::join("nic", &device);
    let client = device.client("compositor").p2p_limit(Size::mib(1));
    let ours = [1, 2].map(|seed| {
        let buffer = client.buffer(Size::mib(1)).create().expect("a buffer");
        fill(&device, &buffer, seed).expect("room");
        buffer
    });
    let maps = ours.each_ref().map(|buffer| mapped(buffer, &peer));
    assert_eq!(maps.each_ref().map(PeerMap::route), [Route::Declared, Route::System]);
    assert_eq!(maps[1].why_system(), Some(PeerReason::Over(BarLimit::Client)));
    assert_eq!(client.p2p_used(), Size::mib(1));
    let other = tagged(&device, 1, P2p::Allowed, 3);
    assert_eq!(mapped(&other, &peer).route(), Route::Declared);
}

#[test]
fn who_makes_way_goes_to_gtt_if_its_placement_has_that() {
    let device = device();
    let (_nic, peer) = Nic::join("nic", &device);
    let lower = device.buffer(Size::mib(4)).prefer(Place::VRAM).or(Place::GTT).create().expect("a buffer");
    fill(&device, &lower, 1).expect("room");
    let held = mapped(&lower, &peer);
    let newcomer = tagged(&device, 3, P2p::Prefer, 2);
    let _map = mapped(&newcomer, &peer);
    assert_eq!((lower.region(), held.is_current()), (GTT, false));
    let again = mapped(&lower, &peer);
    finished(verify(&device, &lower, 1));
    assert_eq!((lower.region(), again.is_current()), (GTT, true), "jobs use it there");
}

#[test]
fn a_buffer_that_is_pinned_does_not_make_way_another_does() {
    let device = device();
    let (_nic, peer) = Nic::join("nic", &device);
    let buffers = [1, 2].map(|seed| tagged(&device, 2, P2p::Allowed, seed));
    let _maps = buffers.each_ref().map(|buffer| mapped(buffer, &peer));
    let _pin = buffers[0].vmap().expect("it is visible");
    let newcomer = tagged(&device, 3, P2p::Prefer, 3);
    assert_eq!(mapped(&newcomer, &peer).route(), Route::Declared);
    assert_eq!(buffers.each_ref().map(|buffer| buffer.region()), [VRAM, SYSTEM]);
}

#[test]
fn without_system_memory_for_those_who_would_make_way_nobody_does() {
    let [reopen, soft, hard, cpu_reserve] = [2, 4, 6, 2].map(Size::mib);
    let limits = P2pLimits { soft, reopen, hard, cpu_reserve };
    let device = builder(16).visible(Size::mib(8)).p2p_limits(limits).system(Size::mib(4)).gtt(Size::mib(4));
    let device = device.build().expect("a small device");
    let occupant = buffer_at(&device, Place::SYSTEM, 2);
    occupant.place_now().expect("room");
    let (nic, peer) = Nic::join("nic", &device);
    let lower = tagged(&device, 4, P2p::Allowed, 1);
    let held = mapped(&lower, &peer);
    let newcomer = tagged(&device, 3, P2p::Prefer, 2);
    let refused = attach(&newcomer, &peer).map(0..3 * MIB);
    assert!(matches!(refused, Err(Error::Exhausted { region: RegionKind::System, .. })), "{refused:?}");
    newcomer.set_p2p(P2p::Require).expect("a slot");
    let refused = attach(&newcomer, &peer).map(0..3 * MIB);
    assert!(matches!(refused, Err(Error::ApertureFull { .. })), "{refused:?}");
    assert_eq!((held.is_current(), nic.was_told(), newcomer.region()), (true, vec![], VRAM));
    let reasons = device.stats().reasons;
    assert!(reasons.keys().any(|reason| reason.contains("no system memory for those")), "{reasons:?}");
}
