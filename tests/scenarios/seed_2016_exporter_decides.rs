//! Eran, 2016: the exporter decides for each device that attaches whether it gets peer-to-peer access or a copy, and a network card without page
//! faults either pins or is told to invalidate its memory region.

use devpagemap::pagemap::{Profile, Registry};
use devpagemap::{Error, Fence, InvalidateReason, PeerMap, RegionKind, Route, Size};

use crate::setup::importer::*;
use crate::setup::machines::{FAR, GPU, NEAR, at, machine};
use crate::setup::*;

fn gpu() -> Lab {
    let registry = Registry::new(machine(false, false));
    builder(4).registry(&registry).at(at(GPU)).build().expect("a small device")
}

#[test]
fn each_device_that_attaches_gets_peer_access_or_a_copy_and_never_asks_which() {
    let gpu = gpu();
    let cards = [NEAR, FAR].map(|place| Nic::join_as("card", Profile::dynamic().at(at(place)), &gpu).1);
    let buffer = filled(&gpu, 1, 1);
    let maps = cards.each_ref().map(|card| map_all(&buffer.attach(card).expect("one device")));
    assert_eq!(maps.each_ref().map(PeerMap::route), [Route::Switch, Route::Staging]);
    for (seed, writer) in (2..).zip(&maps) {
        peer_writes(&gpu, writer, seed);
        maps.iter().for_each(|reader| peer_uses(&gpu, reader, seed));
    }
    assert_eq!(buffer.region(), Some(RegionKind::Vram));
}

#[test]
fn a_card_without_page_faults_that_cannot_be_told_pins() {
    let gpu = gpu();
    let (told, card) = Nic::join_as("card", Profile::pinned().at(at(NEAR)), &gpu);
    let buffer = filled(&gpu, 1, 1);
    let region = buffer.attach(&card).expect("one device");
    let map = map_all(&region);
    assert_eq!(way(&map, &buffer), (Route::System, Some(RegionKind::System)), "it keeps no VRAM");
    let _others: Vec<_> = (0..4).map(|seed| filled(&gpu, 1, seed)).collect();
    assert!(matches!(fill(&gpu, &buffer, 2), Err(Error::Pinned { .. })));
    peer_uses(&gpu, &map, 1);
    assert_eq!(told.was_told(), [], "it could not do anything about it");
}

#[test]
fn a_card_without_page_faults_that_can_be_told_invalidates_its_memory_region() {
    let gpu = gpu();
    let (told, card) = Nic::join_as("card", Profile::dynamic().at(at(NEAR)), &gpu);
    let buffer = filled(&gpu, 1, 1);
    let region = buffer.attach(&card).expect("one device");
    let map = map_all(&region);
    peer_uses(&gpu, &map, 1);
    // The card still drains its queue pair when it is told.
    let drained = Gate::closed();
    told.is_busy_until(drained.fence());
    let _evictor = filled(&gpu, 4, 2);
    assert_eq!(told.was_told(), [(buffer.id(), InvalidateReason::Moved)]);
    assert!(!map.is_current());
    write_mapped_bytes(&gpu, &map, 3);
    drained.open();
    let again = map_all(&region);
    again.wait(devpagemap::Access::Read).expect("it arrives");
    expect_mapped_bytes(&gpu, &again, 3);
    again.end(devpagemap::Access::Read, &Fence::signaled()).expect("a slot");
    assert_eq!(again.route(), Route::Switch);
    assert_eq!(gpu.stats().p2p_used_bytes, Size::mib(1).as_bytes());
}
