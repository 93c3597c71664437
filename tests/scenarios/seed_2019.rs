//! Glisse, 2019: the exporter may refuse a map or serve it from main memory; beyond so much of the BAR all new maps are; the application says
//! which buffers may be mapped by peers, and hears when the BAR runs out; a map is no pin.

use devpagemap::{BarLimit, Error, Event, InvalidateReason, OnPressure, P2p, PeerReason, RegionKind, Route};

use crate::demotion::{attach, device, mapped, tagged, told};
use crate::setup::importer::*;
use crate::setup::*;

#[test]
fn the_exporter_refuses_or_serves_from_main_memory_map_by_map() {
    let device = device();
    let (_, peer) = Nic::join("nic", &device);
    let [holder, other] = [6, 1].map(|mib| tagged(&device, mib, P2p::Prefer, mib));
    let _held = mapped(&holder, &peer);
    let attachment = attach(&other, &peer);
    let refused = attachment.request(0..MIB).on_pressure(OnPressure::Refuse).map();
    assert!(matches!(refused, Err(Error::ApertureFull { limit: BarLimit::Hard, .. })), "{refused:?}");
    let served = attachment.request(0..MIB).on_pressure(OnPressure::FallBack).map();
    let served = served.expect("there is main memory");
    assert_eq!(
        (served.route(), served.why_system()),
        (Route::System, Some(PeerReason::Over(BarLimit::Hard)))
    );
    expect_peer_reads(&device, &served, 1);
}

#[test]
fn beyond_so_many_pages_new_maps_go_to_main_memory_and_old_ones_stay() {
    let device = device();
    let (_, peer) = Nic::join("nic", &device);
    let buffers: Vec<_> = (1..=6).map(|seed| tagged(&device, 1, P2p::Allowed, seed)).collect();
    let maps: Vec<_> = buffers.iter().map(|buffer| mapped(buffer, &peer)).collect();
    let in_bar = maps.iter().take_while(|map| map.route().is_p2p()).count();
    assert_eq!(in_bar, 4, "the soft limit is 4 MiB");
    assert!(maps[in_bar..].iter().all(|map| map.route() == Route::System));
    assert!(maps[..in_bar].iter().all(|map| map.is_current()));
    for (seed, map) in (1..).zip(&maps) {
        expect_peer_reads(&device, map, seed);
    }
}

#[test]
fn the_application_says_which_buffers_peers_may_have() {
    let device = device();
    let (_, peer) = Nic::join("nic", &device);
    let [never, allowed] = [P2p::Never, P2p::Allowed].map(|tag| tagged(&device, 1, tag, 1));
    assert_eq!(mapped(&never, &peer).why_system(), Some(PeerReason::Never));
    let map = mapped(&allowed, &peer);
    assert!(map.route().is_p2p());
    allowed.set_p2p(P2p::Never).expect("room for the fences");
    assert!(!map.is_current(), "it has changed its mind");
    expect_peer_reads(&device, &mapped(&allowed, &peer), 1);
}

#[test]
fn the_application_hears_that_the_bar_runs_out_and_whose_map_that_cost() {
    let device = device();
    let (_, peer) = Nic::join("nic", &device);
    let events = device.events();
    let first = tagged(&device, 4, P2p::Allowed, 1);
    let second = tagged(&device, 1, P2p::Allowed, 2);
    let _held = mapped(&first, &peer);
    let _fallen_back = mapped(&second, &peer);
    let heard = told(&events);
    assert!(heard.iter().any(|event| matches!(event, Event::BarPressure { .. })), "{heard:?}");
    let of_second = |event: &Event| matches!(event, Event::FellBack { buffer, .. } if *buffer == second.id());
    assert!(heard.iter().any(of_second), "{heard:?}");
}

#[test]
fn a_map_is_no_pin_who_is_told_maps_again() {
    let device = device();
    let (nic, peer) = Nic::join("nic", &device);
    let buffer = tagged(&device, 1, P2p::Prefer, 1);
    let map = mapped(&buffer, &peer);
    let _evictors: Vec<_> = (2..6).map(|seed| filled(&device, 4, seed)).collect();
    assert_eq!(nic.was_told(), [(buffer.id(), InvalidateReason::Moved)]);
    assert!(!map.is_current() && buffer.region() != Some(RegionKind::Vram));
    let again = mapped(&buffer, &peer);
    expect_peer_reads(&device, &again, 1);
}
