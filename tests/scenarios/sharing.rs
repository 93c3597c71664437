//! Peers map what others move: every map shows the right bytes for as long as it is one.

use devpagemap::{
    Access, Bar, Error, InvalidateReason, P2p, P2pLimits, PeerReason, Place, RegionKind, Route, Size,
    Timeline,
};

use crate::setup::importer::*;
use crate::setup::*;

const VRAM: Option<RegionKind> = Some(RegionKind::Vram);
const GTT: Option<RegionKind> = Some(RegionKind::Gtt);
const SYSTEM: Option<RegionKind> = Some(RegionKind::System);
const PAGE: u64 = 4096;

/// A device whose BAR peers may have all of.
fn device(vram_mib: u64) -> Lab {
    shown(vram_mib, vram_mib)
}

fn shown(vram_mib: u64, visible_mib: u64) -> Lab {
    let all = Size::mib(visible_mib);
    let limits = P2pLimits { soft: all, reopen: all, hard: all, cpu_reserve: Size::bytes(0) };
    builder(vram_mib).visible(all).p2p_limits(limits).build().expect("a small device")
}

#[test]
fn a_map_is_no_pin_the_peer_is_told_and_finds_the_bytes_again() {
    let device = device(4);
    let (nic, peer) = Nic::join("nic", &device);
    let buffer = filled(&device, 2, 1);
    let attachment = buffer.attach(&peer).expect("one device");
    let map = map_all(&attachment);
    assert_eq!(way(&map, &buffer), (Route::Declared, VRAM));
    expect_peer_reads(&device, &map, 1);
    let others = [2, 3].map(|seed| filled(&device, 2, seed));
    assert_eq!(buffer.region(), SYSTEM, "it was the least recently used");
    assert_eq!(nic.was_told(), [(buffer.id(), InvalidateReason::Moved)]);
    assert!(!map.is_current());
    assert_eq!(peer.p2p_used(), Size::bytes(0));
    let again = map_all(&attachment);
    assert_eq!(way(&again, &buffer), (Route::Declared, VRAM), "there is room in the BAR");
    expect_peer_reads(&device, &again, 1);
    assert_eq!(device.stats().cpu_waits_in_validate, 0);
    for (seed, other) in (2..).zip(&others) {
        expect_bytes(other, seed);
    }
}

#[test]
fn an_eviction_waits_for_what_the_peer_still_writes() {
    let device = device(2);
    let (nic, peer) = Nic::join("nic", &device);
    let buffer = filled(&device, 2, 1);
    let map = map_all(&buffer.attach(&peer).expect("one device"));
    expect_peer_reads(&device, &map, 1);
    let gate = Gate::closed();
    nic.is_busy_until(gate.fence());
    let newcomer = filled(&device, 2, 2);
    assert_eq!((buffer.region(), newcomer.region()), (SYSTEM, VRAM), "nobody waited for the peer");
    let addr = bar_addr(&map);
    device.driver().write_bar(addr, b"the last words").expect("the peer is not done");
    gate.open();
    let mut bytes = [0; 14];
    buffer.read_at(0, &mut bytes).expect("it is in system memory");
    assert_eq!(&bytes, b"the last words");
    expect_bytes(&newcomer, 2);
    assert_eq!(device.stats().cpu_waits_in_validate, 0);
}

#[test]
fn an_eviction_waits_for_a_peer_that_had_unmapped_before_but_was_not_done() {
    let device = device(2);
    let (nic, peer) = Nic::join("nic", &device);
    let buffer = filled(&device, 2, 1);
    let attachment = buffer.attach(&peer).expect("one device");
    let map = map_all(&attachment);
    expect_peer_reads(&device, &map, 1);
    let addr = bar_addr(&map);
    let gate = Gate::closed();
    map.unmap_after(gate.fence().clone());
    drop(attachment);
    assert_eq!(device.stats().p2p_pending_bytes, 2 * MIB);
    let newcomer = filled(&device, 2, 2);
    assert_eq!(nic.was_told(), [], "it maps nothing");
    device.driver().write_bar(addr, b"the last words").expect("the peer is not done");
    gate.open();
    let mut bytes = [0; 14];
    buffer.read_at(0, &mut bytes).expect("it is in system memory");
    assert_eq!(&bytes, b"the last words");
    expect_bytes(&newcomer, 2);
    assert_eq!(device.stats().p2p_pending_bytes, 0);
}

#[test]
fn the_bytes_of_a_destroyed_buffer_are_the_peers_until_it_is_done() {
    let device = device(2);
    let (_nic, peer) = Nic::join("nic", &device);
    let buffer = filled(&device, 2, 1);
    let attachment = buffer.attach(&peer).expect("one device");
    let map = map_all(&attachment);
    expect_peer_reads(&device, &map, 1);
    let addr = bar_addr(&map);
    let gate = Gate::closed();
    map.unmap_after(gate.fence().clone());
    drop((attachment, buffer));
    assert_eq!(device.stats().vram_pending_bytes, 2 * MIB);
    let heir = filled(&device, 2, 2);
    device.driver().write_bar(addr, &[0xff; 64]).expect("the peer is not done");
    gate.open();
    expect_bytes(&heir, 2);
}

#[test]
fn one_range_is_mapped_once_however_often_it_is_asked_for() {
    let device = device(4);
    let (nic, peer) = Nic::join("nic", &device);
    let buffer = filled(&device, 2, 1);
    let attachment = buffer.attach(&peer).expect("one device");
    let maps = [(); 3].map(|()| map_all(&attachment));
    assert_eq!((peer.p2p_used(), device.stats().peer_maps), (Size::mib(2), 3));
    assert!(maps.iter().all(|map| map.extents() == maps[0].extents()));
    let part = attachment.map(PAGE..PAGE + 1).expect("a page of it");
    assert_eq!((part.range(), part.extents()[0].len_bytes), (PAGE..2 * PAGE, PAGE), "whole pages");
    assert_eq!(peer.p2p_used(), Size::mib(2), "these pages are mapped already");
    let [first, second, third] = maps;
    drop((first, second));
    assert!(third.is_current());
    assert_eq!(peer.p2p_used(), Size::mib(2));
    drop(third);
    assert_eq!(peer.p2p_used(), Size::bytes(PAGE));
    drop(part);
    assert_eq!((peer.p2p_used(), device.stats().p2p_peak_bytes), (Size::bytes(0), 2 * MIB));
    let _evictor = filled(&device, 4, 2);
    assert_eq!(nic.was_told(), [], "it maps nothing any more");
}

#[test]
fn a_peer_is_told_once_for_all_the_maps_of_an_attachment() {
    let device = device(4);
    let (nic, peer) = Nic::join("nic", &device);
    let (other_nic, other) = Nic::join("gpu1", &device);
    let buffer = filled(&device, 2, 1);
    let attachments = [&peer, &peer, &other].map(|peer| buffer.attach(peer).expect("one device"));
    let ranges = [0..MIB, MIB..2 * MIB, 0..2 * MIB];
    let maps: Vec<_> = attachments
        .iter()
        .flat_map(|attachment| ranges.clone().map(|range| attachment.map(range).expect("room")))
        .collect();
    assert_eq!(device.stats().p2p_used_bytes, 2 * MIB, "a page counts once");
    let _evictor = filled(&device, 4, 2);
    let moved = (buffer.id(), InvalidateReason::Moved);
    assert_eq!((nic.was_told(), other_nic.was_told()), (vec![moved, moved], vec![moved]));
    assert!(maps.iter().all(|map| !map.is_current()));
    assert_eq!(device.stats().p2p_used_bytes, 0);
}

#[test]
fn a_peer_may_drop_its_maps_and_its_attachment_while_it_is_told() {
    let device = device(2);
    let (nic, peer) = Nic::join("nic", &device);
    let buffer = filled(&device, 2, 1);
    nic.keeps(map_all(&buffer.attach(&peer).expect("one device")));
    let _evictor = filled(&device, 2, 2);
    assert_eq!(nic.was_told().len(), 1);
    assert_eq!(device.stats().p2p_used_bytes, 0);
    drop(nic);
    expect_bytes(&buffer, 1);
}

#[test]
fn a_peer_that_is_gone_uses_nothing_and_keeps_nothing_alive() {
    let device = device(2);
    let (nic, peer) = Nic::join("nic", &device);
    let buffer = filled(&device, 2, 1);
    nic.keeps(map_all(&buffer.attach(&peer).expect("one device")));
    drop((nic, peer));
    assert_eq!(device.stats().p2p_used_bytes, 0, "its maps went with it");
    let _evictor = filled(&device, 2, 2);
    expect_bytes(&buffer, 1);
}

#[test]
fn what_the_bar_does_not_show_is_brought_where_it_does() {
    let device = shown(8, 4);
    let (_nic, peer) = Nic::join("nic", &device);
    let buffer = filled(&device, 2, 1);
    assert!(!buffer.visible());
    let map = map_all(&buffer.attach(&peer).expect("one device"));
    assert_eq!((map.route(), buffer.visible()), (Route::Declared, true));
    assert!(!map.after().is_empty(), "the copy is queued, not waited for");
    expect_peer_reads(&device, &map, 1);
}

#[test]
fn a_part_that_the_bar_shows_is_mapped_where_it_is() {
    let device = shown(8, 4);
    let (nic, peer) = Nic::join("nic", &device);
    let buffer = buffer_at(&device, Place::VRAM.within(3 * MIB..5 * MIB), 2);
    fill(&device, &buffer, 1).expect("room");
    let attachment = buffer.attach(&peer).expect("one device");
    let part = attachment.map(0..MIB).expect("the BAR shows it");
    assert_eq!((part.route(), device.stats().moves), (Route::Declared, 0));
    expect_peer_reads(&device, &part, 1);
    let whole = attachment.map(0..2 * MIB).expect("in system memory");
    assert_eq!(whole.why_system(), Some(PeerReason::NoVisibleRoom), "its placement ends in the hidden part");
    assert_eq!((part.is_current(), nic.was_told().len()), (false, 1), "a buffer is in one place");
    expect_peer_reads(&device, &whole, 1);
}

#[test]
fn a_buffer_that_lives_in_system_memory_is_mapped_there_and_nothing_fell_back() {
    let device = device(4);
    let (_nic, peer) = Nic::join("nic", &device);
    let only = buffer_at(&device, Place::GTT, 1);
    let rather = device.buffer(Size::mib(1)).prefer(Place::GTT).or(Place::VRAM).create().expect("a buffer");
    let maps = [&only, &rather].map(|buffer| {
        fill(&device, buffer, 1).expect("room");
        let map = map_all(&buffer.attach(&peer).expect("one device"));
        assert_eq!(way(&map, buffer), (Route::System, GTT));
        assert_eq!(map.why_system(), Some(PeerReason::LivesInSystemMemory));
        expect_peer_reads(&device, &map, 1);
        map
    });
    let stats = device.stats();
    assert_eq!((stats.moves, stats.p2p_fallbacks, stats.reasons.len()), (0, 0, 0), "{:?}", stats.reasons);
    rather.set_p2p(P2p::Prefer).expect("it can be had");
    let map = map_all(&rather.attach(&peer).expect("one device"));
    assert_eq!(way(&map, &rather), (Route::System, GTT));
    assert_eq!(map.why_system(), Some(PeerReason::SharedInSystemMemory));
    assert!(maps.iter().all(|map| map.is_current()));
}

#[test]
fn a_preferred_buffer_is_brought_from_gtt_into_the_bar() {
    let device = device(4);
    let (_nic, peer) = Nic::join("nic", &device);
    let places = device.buffer(Size::mib(1)).prefer(Place::GTT).or(Place::VRAM);
    let buffer = places.p2p(P2p::Prefer).create().expect("a buffer");
    fill(&device, &buffer, 1).expect("room");
    assert_eq!(buffer.region(), GTT);
    let map = map_all(&buffer.attach(&peer).expect("one device"));
    assert_eq!(way(&map, &buffer), (Route::Declared, VRAM));
    expect_peer_reads(&device, &map, 1);
}

#[test]
fn jobs_use_a_buffer_in_gtt_where_peers_have_mapped_it() {
    let device = shown(4, 1);
    let (nic, peer) = Nic::join("nic", &device);
    let places = device.buffer(Size::mib(2)).prefer(Place::VRAM).or(Place::GTT);
    let buffer = places.p2p(P2p::Never).create().expect("a buffer");
    fill(&device, &buffer, 1).expect("room");
    let map = map_all(&buffer.attach(&peer).expect("one device"));
    assert_eq!(way(&map, &buffer), (Route::System, GTT));
    finished(verify(&device, &buffer, 1));
    assert_eq!((buffer.region(), map.is_current(), nic.was_told().len()), (GTT, true, 0));
    drop(map);
    finished(verify(&device, &buffer, 1));
    assert_eq!(buffer.region(), VRAM, "nobody keeps it");
}

#[test]
fn a_buffer_that_never_was_used_reads_as_zeros_through_a_map() {
    let device = device(4);
    let (_nic, peer) = Nic::join("nic", &device);
    let buffer = vram_buffer(&device, 1);
    let map = map_all(&buffer.attach(&peer).expect("one device"));
    assert_eq!(way(&map, &buffer), (Route::Declared, VRAM));
    map.after().wait_timeout(FOREVER).expect("it is cleared");
    let addr = bar_addr(&map);
    let mut bytes = [1; 4096];
    device.driver().read_bar(addr, &mut bytes).expect("it is visible");
    assert_eq!(bytes, [0; 4096]);
}

#[test]
fn a_job_queues_behind_the_work_of_a_peer_that_said_so() {
    let device = device(4);
    let (_nic, peer) = Nic::join("nic", &device);
    let buffer = filled(&device, 1, 1);
    let attachment = buffer.attach(&peer).expect("one device");
    let (ring, gate) = (Timeline::new("nic ring"), Gate::closed());
    let read = ring.next_point();
    attachment.add_fence(&read, Access::Read).expect("a slot");
    attachment.add_fence(gate.fence(), Access::Write).expect("a slot");
    let job = fill(&device, &buffer, 2).expect("it is there");
    ring.signal(read.seqno());
    assert!(!job.is_signaled(), "the peer writes");
    gate.open();
    finished(Ok(job));
    expect_bytes(&buffer, 2);
}

#[test]
fn a_tag_that_changes_takes_away_the_maps_that_it_does_not_allow() {
    let device = device(4);
    let (nic, peer) = Nic::join("nic", &device);
    let buffer = filled(&device, 1, 1);
    let attachment = buffer.attach(&peer).expect("one device");
    let retagged = vec![(buffer.id(), InvalidateReason::Retagged)];

    let in_bar = map_all(&attachment);
    buffer.set_p2p(P2p::Prefer).expect("a slot");
    assert_eq!((in_bar.is_current(), buffer.p2p()), (true, P2p::Prefer));
    buffer.set_p2p(P2p::Never).expect("a slot");
    assert_eq!((in_bar.is_current(), nic.was_told(), buffer.region()), (false, retagged.clone(), VRAM));
    assert_eq!(device.stats().p2p_used_bytes, 0);

    let in_system = map_all(&attachment);
    assert_eq!(
        (way(&in_system, &buffer), in_system.why_system()),
        ((Route::System, SYSTEM), Some(PeerReason::Never))
    );
    assert_eq!(nic.was_told(), []);
    expect_peer_reads(&device, &in_system, 1);
    buffer.set_p2p(P2p::Require).expect("a slot");
    assert_eq!((in_system.is_current(), nic.was_told(), buffer.region()), (false, retagged, SYSTEM));

    let again = map_all(&attachment);
    assert_eq!(way(&again, &buffer), (Route::Declared, VRAM));
    expect_peer_reads(&device, &again, 1);
}

#[test]
fn who_must_be_in_the_bar_and_cannot_be_is_refused_loudly() {
    let device = device(4);
    let (_nic, peer) = Nic::join("nic", &device);
    let buffer = device.buffer(Size::mib(1)).prefer(Place::GTT).p2p(P2p::Require).create().expect("a buffer");
    let refused = buffer.attach(&peer).expect("one device").map(0..PAGE);
    assert!(matches!(refused, Err(Error::NotPeerCapable { .. })), "{refused:?}");
    assert_eq!(buffer.region(), None, "nothing has changed");
}

#[test]
fn what_cannot_be_mapped_is_refused_and_says_why() {
    let (here, elsewhere) = (device(4), device(4));
    let (_nic, peer) = Nic::join("nic", &elsewhere);
    let buffer = vram_buffer(&here, 1);
    let foreign = buffer.attach(&peer).expect_err("another device");
    assert_eq!(foreign.to_string(), "nic has joined another device");
    let (_nic, peer) = Nic::join("nic", &here);
    let attachment = buffer.attach(&peer).expect("one device");
    let empty = attachment.map(PAGE..PAGE);
    assert!(matches!(empty, Err(Error::InvalidSize { what: "a peer map", .. })), "{empty:?}");
    let beyond = attachment.map(0..MIB + 1);
    assert!(matches!(beyond, Err(Error::OutOfBounds { .. })), "{beyond:?}");
    #[expect(clippy::reversed_empty_ranges, reason = "it is what is refused")]
    let reversed = attachment.map(PAGE..0);
    assert!(matches!(reversed, Err(Error::InvalidSize { .. })), "{reversed:?}");
    assert_eq!((buffer.region(), here.stats().peer_maps), (None, 0));
}

fn windows(bar_mib: u64) -> Lab {
    let all = Size::mib(bar_mib);
    let limits = P2pLimits { soft: all, reopen: all, hard: all, cpu_reserve: Size::bytes(0) };
    builder(16).bar(Bar::Windows(all)).p2p_limits(limits).build().expect("a small device")
}

#[test]
fn through_windows_any_vram_is_mapped_where_it_is() {
    let device = windows(2);
    let (nic, peer) = Nic::join("nic", &device);
    let buffer = filled(&device, 8, 1);
    let attachment = buffer.attach(&peer).expect("one device");
    let parts = [0..MIB, 7 * MIB..8 * MIB].map(|range| attachment.map(range).expect("a window"));
    for part in &parts {
        assert_eq!(part.route(), Route::Declared);
        expect_peer_reads(&device, part, 1);
    }
    assert_eq!((device.stats().moves, device.stats().p2p_used_bytes), (0, 2 * MIB));
    let _evictor = filled(&device, 16, 2);
    assert_eq!(nic.was_told().len(), 1);
    let addr = bar_addr(&parts[0]);
    assert!(device.driver().read_bar(addr, &mut [0]).is_err(), "it shows nothing any more");
    expect_bytes(&buffer, 1);
}

#[test]
fn bar_pages_that_a_peer_still_uses_show_something_else_only_behind_it() {
    let device = windows(2);
    let (_nic, peer) = Nic::join("nic", &device);
    let buffers = [1, 2].map(|seed| filled(&device, 2, seed));
    device.wait_idle();
    let gate = Gate::closed();
    let first = map_all(&buffers[0].attach(&peer).expect("one device"));
    expect_peer_reads(&device, &first, 1);
    let addr = bar_addr(&first);
    first.unmap_after(gate.fence().clone());
    let second = map_all(&buffers[1].attach(&peer).expect("one device"));
    assert_eq!(second.route(), Route::Declared);
    assert!(!second.after().is_signaled(), "the pages are another's");
    device.driver().write_bar(addr, b"the last words").expect("the peer is not done");
    gate.open();
    expect_peer_reads(&device, &second, 2);
    let mut bytes = [0; 14];
    buffers[0].read_at(0, &mut bytes).expect("it did not move");
    assert_eq!(&bytes, b"the last words");
}
