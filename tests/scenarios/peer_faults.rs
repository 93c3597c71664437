//! Peers, copies and windows that fail: what is lost says so, and everybody else gets on.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use devpagemap::pagemap::Profile;
use devpagemap::{
    Access, Bar, Buffer, Device, Error, Fence, FenceError, OnPressure, P2p, P2pLimits, Peer, PeerMap,
    RegionKind, Route, Size, Timeline,
};

use crate::setup::importer::*;
use crate::setup::rig::Rig;
use crate::setup::*;

const VRAM: Option<RegionKind> = Some(RegionKind::Vram);
const SYSTEM: Option<RegionKind> = Some(RegionKind::System);

/// 8 MiB of VRAM, all of it visible; the gate closes at 3, re-opens at 1, and 6 is the end.
fn limits() -> P2pLimits {
    let [reopen, soft, hard, cpu_reserve] = [1, 3, 6, 2].map(Size::mib);
    P2pLimits { soft, reopen, hard, cpu_reserve }
}

fn device() -> Lab {
    builder(8).p2p_limits(limits()).build().expect("a small device")
}

fn mapped(buffer: &Buffer, peer: &Peer) -> PeerMap {
    map_all(&buffer.attach(peer).expect("one device"))
}

#[test]
fn a_peer_that_fails_is_done_and_the_buffer_arrives() {
    let device = device();
    let (nic, peer) = Nic::join("nic", &device);
    let buffer = filled(&device, 3, 1);
    let map = mapped(&buffer, &peer);
    expect_peer_reads(&device, &map, 1);
    let ring = Timeline::new("nic ring");
    let point = ring.next_point();
    nic.is_busy_until(&point);
    let _evictor = filled(&device, 8, 2);
    assert_eq!(buffer.region(), SYSTEM);
    ring.fail(point.seqno(), FenceError::DeviceLost);
    expect_bytes(&buffer, 1);
}

#[test]
fn a_peer_that_hangs_holds_up_its_own_buffer_and_nobody_else() {
    let device = device();
    let (nic, peer) = Nic::join("nic", &device);
    let stuck = filled(&device, 2, 1);
    let held = mapped(&stuck, &peer);
    expect_peer_reads(&device, &held, 1);
    let gate = Gate::closed();
    nic.is_busy_until(gate.fence());
    let others = [2, 3].map(|seed| filled(&device, 3, seed));
    let evictor = vram_buffer(&device, 2);
    evictor.place_now().expect("the first can go");
    assert_eq!((stuck.region(), held.is_current()), (SYSTEM, false));
    for (seed, other) in (2..).zip(&others) {
        finished(verify(&device, other, seed));
        expect_bytes(other, seed);
    }
    drop(others);
    let newcomer = filled(&device, 4, 4);
    expect_bytes(&newcomer, 4);
    assert_eq!(device.stats().p2p_pending_bytes, 2 * MIB, "its pages count until it is done");
    let arriving = verify(&device, &stuck, 1).expect("it has a place");
    assert!(!arriving.is_signaled());
    // A peer that gives up ends its fences too.
    drop(gate);
    finished(Ok(arriving));
    assert_eq!(device.stats().p2p_pending_bytes, 0);
}

/// Its copies to system memory and its windows fail when told to.
fn failing(bar: Bar) -> Device<Rig> {
    Rig::builder(8, bar).gtt(Size::gib(4)).p2p_limits(limits()).build().expect("a small device")
}

#[test]
fn who_is_lost_on_the_way_out_of_the_bar_says_so_and_the_newcomer_has_its_pages() {
    let device = failing(Bar::Prefix(Size::mib(8)));
    let peer = device.join(Nic::new("nic")).expect("an importer that can be");
    let doomed = filled(&device, 3, 1);
    let attachment = doomed.attach(&peer).expect("one device");
    let _map = map_all(&attachment);
    device.wait_idle();
    device.driver().burnt.store(true, Ordering::Release);
    let newcomer = device.buffer(Size::mib(4)).p2p(P2p::Prefer).create().expect("a buffer");
    fill(&device, &newcomer, 2).expect("room");
    let map = mapped(&newcomer, &peer);
    assert_eq!(way(&map, &newcomer), (Route::Declared, VRAM));
    device.wait_idle();
    let refused = attachment.map(0..MIB);
    assert!(
        matches!(&refused, Err(Error::FenceFailed(why)) if why.to_string().contains("burnt")),
        "{refused:?}"
    );
    drop(map);
    assert_eq!(device.promote(), 0, "there is nothing to bring back");
    assert_eq!(device.stats().p2p_used_bytes, 0);
    expect_bytes(&newcomer, 2);
}

#[test]
fn who_is_lost_on_the_way_out_is_not_mapped_behind_a_move_that_has_not_failed_yet() {
    let device = failing(Bar::Prefix(Size::mib(8)));
    let nic = Nic::new("nic");
    let peer = device.join(nic.clone()).expect("an importer that can be");
    let doomed = filled(&device, 3, 1);
    let attachment = doomed.attach(&peer).expect("one device");
    let _map = map_all(&attachment);
    device.wait_idle();
    device.driver().burnt.store(true, Ordering::Release);
    let gate = Gate::closed();
    nic.is_busy_until(gate.fence());
    let _evictor = filled(&device, 8, 2);
    let map = attachment.request(0..MIB).on_pressure(OnPressure::FallBack).map().expect("it has a place");
    gate.open();
    let arrived = map.after().wait();
    assert!(
        arrived.is_err_and(|error| error.to_string().contains("burnt")),
        "the map says what became of it"
    );
}

#[test]
fn a_driver_that_refuses_a_window_is_heard_and_nothing_is_charged() {
    let device = failing(Bar::Windows(Size::mib(8)));
    let nic = Nic::new("nic");
    let peer = device.join(nic.clone()).expect("an importer that can be");
    let buffer = filled(&device, 1, 1);
    let attachment = buffer.attach(&peer).expect("one device");
    device.driver().stiff.store(true, Ordering::Release);
    let refused = attachment.map(0..MIB);
    assert!(matches!(&refused, Err(error) if error.to_string().contains("stiff")), "{refused:?}");
    assert_eq!((device.stats().p2p_used_bytes, buffer.region()), (0, VRAM));
    device.driver().stiff.store(false, Ordering::Release);
    let map = map_all(&attachment);
    assert_eq!((map.route(), device.stats().p2p_used_bytes), (Route::Declared, MIB));
    finished(verify(&device, &buffer, 1));
}

#[test]
fn without_system_memory_to_fall_back_to_the_map_fails_and_the_buffer_stays() {
    let device = builder(8).p2p_limits(limits()).system(Size::mib(2)).gtt(Size::mib(2)).build();
    let device = device.expect("a small device");
    let (_nic, peer) = Nic::join("nic", &device);
    let buffer = filled(&device, 4, 1);
    device.wait_idle();
    let before = device.stats();
    let refused = buffer.attach(&peer).expect("one device").map(0..4 * MIB);
    assert!(matches!(refused, Err(Error::TooLarge { region: RegionKind::System, .. })), "{refused:?}");
    let after = device.stats();
    assert_eq!((after.moves, after.p2p_used_bytes, buffer.region()), (before.moves, 0, VRAM));
    finished(verify(&device, &buffer, 1));
}

#[test]
fn a_peer_that_panics_when_it_is_told_takes_nobody_with_it() {
    struct Fainting;
    impl devpagemap::Importer for Fainting {
        fn name(&self) -> &str {
            "fainting"
        }
        fn invalidate(&self, _what: &devpagemap::Invalidated) -> Option<Fence> {
            panic!("it cannot bear this");
        }
    }
    let device = device();
    let peer = device.join(Arc::new(Fainting)).expect("an importer that can be");
    let buffer = filled(&device, 3, 1);
    let map = mapped(&buffer, &peer);
    let evictor = filled(&device, 8, 2);
    assert_eq!((map.is_current(), buffer.region()), (false, SYSTEM), "it was told");
    expect_bytes(&buffer, 1);
    expect_bytes(&evictor, 2);
    assert_eq!(device.stats().p2p_used_bytes, 0);
}

#[test]
fn a_copy_that_could_not_be_brought_up_to_date_says_so_and_is_copied_again_at_the_next_use() {
    let device = failing(Bar::Prefix(Size::mib(8)));
    let peers = [Profile::dynamic(), Profile::dynamic().system_only()].map(|profile| {
        let nic = Nic::like("nic", profile);
        let peer = device.join(nic.clone()).expect("an importer that can be");
        (nic, peer)
    });
    let buffer = filled(&device, 1, 1);
    let maps = peers.each_ref().map(|(_, peer)| mapped(&buffer, peer));
    assert_eq!(maps.each_ref().map(PeerMap::route), [Route::Declared, Route::Staging]);
    maps[1].wait(Access::Read).expect("it is whole");
    finished(fill(&device, &buffer, 2));
    device.driver().burnt.store(true, Ordering::Release);
    let failed = maps[1].wait(Access::Write).expect_err("the engine is burnt");
    assert!(matches!(failed, Error::FenceFailed(_)), "{failed}");
    let lost = maps[1]
        .end(Access::Write, &Fence::signaled())
        .expect_err("it wrote to what was not brought up to date");
    assert!(matches!(lost, Error::FenceFailed(_)), "{lost}");
    finished(verify(&device, &buffer, 2));
    device.driver().burnt.store(false, Ordering::Release);
    maps[1].wait(Access::Read).expect("it is copied again");
    finished(verify(&device, &buffer, 2));
}
