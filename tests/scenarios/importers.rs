//! Importers in a machine: near and far, linked and not, of one buffer and of several, while routes come and go.

use devpagemap::pagemap::{Observation, Observed, Policy, Profile, Registry};
use devpagemap::{
    Access, Bar, Buffer, Device, Error, Fence, InvalidateReason, Peer, PeerAddr, PeerMap, PeerReason, Place,
    RegionKind, Route, Size,
};

use crate::setup::importer::*;
use crate::setup::machines::{FAR, GPU, NEAR, at, machine};
use crate::setup::*;

const VRAM: Option<RegionKind> = Some(RegionKind::Vram);
const PAGE: u64 = 4096;

/// A GPU of so many MiB of which the bus sees so many, in a machine.
fn gpu_in(registry: &Registry, vram_mib: u64, visible_mib: u64) -> Lab {
    let all = Size::mib(visible_mib);
    let limits = devpagemap::P2pLimits { soft: all, reopen: all, hard: all, cpu_reserve: Size::bytes(0) };
    let builder = builder(vram_mib).visible(all).p2p_limits(limits);
    builder.registry(registry).at(at(GPU)).build().expect("a small device")
}

fn mapped(buffer: &Buffer, peer: &Peer) -> PeerMap {
    map_all(&buffer.attach(peer).expect("one device"))
}

#[test]
fn near_is_peer_to_peer_and_far_is_a_copy_and_both_are_explained() {
    let registry = Registry::new(machine(false, false));
    let device = gpu_in(&registry, 4, 4);
    let (_, near) = Nic::join_as("near", Profile::dynamic().at(at(NEAR)), &device);
    let (_, far) = Nic::join_as("far", Profile::dynamic().at(at(FAR)), &device);
    let buffer = filled(&device, 1, 1);
    let maps = [&near, &far].map(|peer| mapped(&buffer, peer));
    assert_eq!(maps.each_ref().map(PeerMap::route), [Route::Switch, Route::Staging]);
    for map in &maps {
        peer_uses(&device, map, 1);
    }
    let why = [&near, &far].map(|peer| buffer.explain(peer).expect("one device").to_string());
    assert!(why[0].contains("0000:01:00.0"), "names the switch: {}", why[0]);
    assert!(why[1].contains("8086:0001"), "names the host bridge: {}", why[1]);
    assert_eq!(maps[1].decision().p2p, Some(false));
}

#[test]
fn who_has_a_private_link_maps_vram_that_no_bar_shows_and_uses_none_of_it() {
    let registry = Registry::new(machine(false, true));
    let device = gpu_in(&registry, 8, 1);
    let (told, peer) = Nic::join_as("gpu1", Profile::dynamic().at(at(NEAR)), &device);
    let buffer = filled(&device, 4, 1);
    assert!(!buffer.visible());
    let map = mapped(&buffer, &peer);
    assert_eq!(way(&map, &buffer), (Route::PrivateLink, VRAM));
    assert!(map.extents().iter().all(|extent| matches!(extent.addr, PeerAddr::Vram(_))));
    assert_eq!((device.stats().p2p_used_bytes, device.stats().moves), (0, 0));
    peer_uses(&device, &map, 1);
    peer_writes(&device, &map, 2);
    finished(verify(&device, &buffer, 2));
    let _evictor = filled(&device, 8, 3);
    assert_eq!((map.is_current(), told.was_told().len()), (false, 1), "it is no pin either");
    peer_uses(&device, &mapped(&buffer, &peer), 2);
}

#[test]
fn a_link_that_is_lost_and_comes_back_is_told_and_the_bus_takes_over_meanwhile() {
    let registry = Registry::new(machine(false, true));
    let device = gpu_in(&registry, 4, 4);
    let (told, peer) = Nic::join_as("gpu1", Profile::dynamic().at(at(NEAR)), &device);
    let buffer = filled(&device, 1, 1);
    let attachment = buffer.attach(&peer).expect("one device");
    let mut map = map_all(&attachment);
    for (linked, route) in [(false, Route::Switch), (true, Route::PrivateLink)] {
        registry.set_machine(machine(false, linked));
        soon("that it is told", || !map.is_current());
        soon("why", || told.was_told() == [(buffer.id(), InvalidateReason::Rerouted)]);
        map = map_all(&attachment);
        assert_eq!(way(&map, &buffer), (route, VRAM));
        peer_uses(&device, &map, 1);
    }
}

#[test]
fn redirection_that_is_switched_on_ends_peer_access_and_off_brings_it_back() {
    let registry = Registry::new(machine(false, false));
    let device = gpu_in(&registry, 4, 4);
    let (_, near) = Nic::join_as("near", Profile::dynamic().at(at(NEAR)), &device);
    let buffer = filled(&device, 1, 1);
    let attachment = buffer.attach(&near).expect("one device");
    let direct = map_all(&attachment);
    registry.set_machine(machine(true, false));
    soon("that it is told", || !direct.is_current());
    let other = map_all(&attachment);
    assert_eq!((other.route(), other.why_system()), (Route::System, Some(PeerReason::NoPeerAccess)));
    peer_writes(&device, &other, 2);
    registry.set_machine(machine(false, false));
    soon("that it is told", || !other.is_current());
    let again = map_all(&attachment);
    assert_eq!(way(&again, &buffer), (Route::Switch, VRAM));
    peer_uses(&device, &again, 2);
}

#[test]
fn peer_access_that_is_slower_than_staging_is_staged_unless_it_is_required() {
    let registry = Registry::new(machine(false, false));
    let device = gpu_in(&registry, 4, 4);
    let (_, near) = Nic::join_as("near", Profile::dynamic().at(at(NEAR)), &device);
    let buffer = filled(&device, 1, 1);
    let attachment = buffer.attach(&near).expect("one device");
    let direct = map_all(&attachment);
    for (rate, what) in
        [(1_000_000_000, Observed::P2pRate as fn(u64) -> _), (9_000_000_000, Observed::StagingRate)]
    {
        registry.observe(Observation::new(device.owner(), at(NEAR), what(rate)));
    }
    soon("that it is told", || !direct.is_current());
    assert!(!map_all(&attachment).decision().route.is_p2p());
    let (_, must) = Nic::join_as("must", Profile::dynamic().at(at(NEAR)).policy(Policy::Required), &device);
    assert_eq!(mapped(&buffer, &must).route(), Route::Switch);
}

#[test]
fn a_route_that_carries_one_direction_only_is_not_taken_for_both() {
    let registry = Registry::new(machine(false, false));
    let device = gpu_in(&registry, 4, 4);
    let (_, near) = Nic::join_as("near", Profile::dynamic().at(at(NEAR)), &device);
    let reads = devpagemap::pagemap::Direction { reads: true, writes: false };
    registry.observe(Observation::new(device.owner(), at(NEAR), Observed::Carries(reads)));
    let buffer = filled(&device, 1, 1);
    let map = mapped(&buffer, &near);
    assert!(!map.route().is_p2p(), "{map:?}");
    peer_writes(&device, &map, 2);
    expect_bytes(&buffer, 2);
}

#[test]
fn two_devices_of_one_registry_reach_each_other_as_importers() {
    let registry = Registry::new(machine(false, true));
    let first = gpu_in(&registry, 4, 4);
    let second = builder(4).registry(&registry).at(at(NEAR)).build().expect("a small device");
    let (_, as_importer) = Nic::join_as("second", Profile::dynamic().of_device(second.owner()), &first);
    let (_, itself) = Nic::join_as("first", Profile::dynamic().of_device(first.owner()), &first);
    let buffer = filled(&first, 1, 1);
    let routes = [&as_importer, &itself].map(|peer| mapped(&buffer, peer).route());
    assert_eq!(routes, [Route::PrivateLink, Route::SameDevice]);
    assert_eq!(first.stats().p2p_used_bytes, 0);
}

#[test]
fn an_importer_that_cannot_be_is_refused_when_it_joins() {
    let device = device(4);
    let refused = device.join(Nic::like("nic", Profile::dynamic().dma_mask_bits(0))).expect_err("no bits");
    assert!(matches!(refused, Error::InvalidImporter { .. }), "{refused}");
}

#[test]
fn a_device_leaves_its_registry_when_it_goes() {
    let registry = Registry::new(machine(false, false));
    let device = gpu_in(&registry, 4, 1);
    assert_eq!(device.pagemaps().len(), 2, "what the bus sees and what it does not");
    let count = |registry: &Registry| registry.snapshot().pagemaps().count();
    assert_eq!(count(&registry), 2);
    drop(device);
    let _swept = Nic::join("nic", &gpu_in(&registry, 4, 4));
    soon("the first is swept", || count(&registry) <= 1);
}

#[test]
fn several_buffers_are_mapped_as_one_in_their_order() {
    let device = device(8);
    let (told, peer) = Nic::join("nic", &device);
    let buffers = [1, 2, 3].map(|seed| filled(&device, 1, seed));
    let small = device.buffer(Size::bytes(100)).write_combined().create().expect("a buffer");
    fill(&device, &small, 4).expect("room");
    let all = [&buffers[0], &small, &buffers[1], &buffers[2]].map(Buffer::clone);
    let group = peer.attach_all(&all).expect("one device");
    assert_eq!(group.size(), Size::bytes(3 * MIB + PAGE));
    let map = group.map(MIB - PAGE..2 * MIB + PAGE).expect("room");
    let ranges: Vec<_> = map.maps().iter().map(|part| (part.buffer().id(), part.range())).collect();
    assert_eq!(ranges, [(all[0].id(), MIB - PAGE..MIB), (all[1].id(), 0..PAGE), (all[2].id(), 0..MIB)]);
    assert_eq!(map.extents().map(|extent| extent.len_bytes).sum::<u64>(), MIB + 2 * PAGE);
    map.begin(Access::Read).expect("it is current").wait_timeout(FOREVER).expect("it arrives");
    for (part, seed) in map.maps().iter().zip([1, 4, 2]) {
        expect_mapped_bytes(&device, part, seed);
    }
    map.end(Access::Read, &Fence::signaled()).expect("a slot");
    let _evictor = filled(&device, 8, 9);
    assert!(!map.is_current());
    assert_eq!(told.was_told().len(), 3, "of each that it had mapped");
    assert!(matches!(map.begin(Access::Read), Err(Error::StaleMap { .. })));
    let again = group.map(0..group.size().as_bytes()).expect("they come back, or are shared elsewhere");
    assert!(again.is_current());
    again.begin(Access::Read).expect("it is current").wait_timeout(FOREVER).expect("it arrives");
    for (part, seed) in again.maps().iter().zip([1, 4, 2, 3]) {
        expect_mapped_bytes(&device, part, seed);
    }
}

#[test]
fn a_group_is_mapped_wholly_or_not_at_all() {
    let device = device(8);
    let (_, peer) = Nic::join("nic", &device);
    let peer = peer.p2p_limit(Size::mib(1));
    let buffers = [1, 2].map(|seed| filled(&device, 1, seed));
    buffers[1].set_p2p(devpagemap::P2p::Require).expect("a slot");
    let group = peer.attach_all(&buffers).expect("one device");
    let refused = group.map(0..2 * MIB).expect_err("2 MiB of 1");
    assert!(matches!(refused, Error::ApertureFull { .. }), "{refused}");
    assert_eq!((device.stats().p2p_used_bytes, device.stats().peer_maps), (0, 0));
    assert!(matches!(peer.attach_all(&[]), Err(Error::InvalidSize { .. })));
    assert!(matches!(group.map(0..2 * MIB + 1), Err(Error::OutOfBounds { .. })));
    #[expect(clippy::reversed_empty_ranges, reason = "it is what is refused")]
    let reversed = group.map(PAGE..0);
    assert!(matches!(reversed, Err(Error::InvalidSize { .. })));
}

#[test]
fn those_of_a_group_do_not_drive_each_other_out_of_the_bar() {
    let all = Size::mib(1);
    let limits = devpagemap::P2pLimits { soft: all, reopen: all, hard: all, cpu_reserve: Size::bytes(0) };
    let device = builder(8).visible(all).p2p_limits(limits).build().expect("a small device");
    let (_, peer) = Nic::join("nic", &device);
    let buffers = [1, 2].map(|seed| filled(&device, 1, seed));
    let group = peer.attach_all(&buffers).expect("one device");
    let map = group.map(0..2 * MIB).expect("one of them in system memory");
    assert!(map.is_current());
    map.begin(Access::Read).expect("it is current").wait_timeout(FOREVER).expect("it arrives");
    for (part, seed) in map.maps().iter().zip([1, 2]) {
        expect_mapped_bytes(&device, part, seed);
    }
}

#[test]
fn a_list_of_addresses_is_made_once_until_the_buffer_moves() {
    let device = device(4);
    let (_, peer) = Nic::join("nic", &device);
    let buffer = filled(&device, 1, 1);
    let attachment = buffer.attach(&peer).expect("one device");
    for _ in 0..100 {
        drop(attachment.map(0..MIB).expect("room"));
        drop(attachment.map(PAGE..2 * PAGE).expect("room"));
    }
    assert_eq!(device.stats().scatter_lists, 2);
    let _evictor = filled(&device, 4, 2);
    for _ in 0..100 {
        drop(attachment.map(0..MIB).expect("room"));
    }
    assert_eq!(device.stats().scatter_lists, 3);
}

#[test]
fn windows_serve_those_who_reach_the_bar_and_copies_those_who_do_not() {
    let gpu = devpagemap::SoftwareGpu::builder().build().expect("threads");
    let device = Device::builder(gpu).vram(Size::mib(8)).bar(Bar::Windows(Size::mib(4)));
    let device = device.system(Size::mib(64)).build().expect("a small device");
    let (_, gpu) = Nic::join("gpu1", &device);
    let (_, card) = Nic::join_as("card", Profile::dynamic().system_only(), &device);
    let buffer = device.buffer(Size::mib(1)).prefer(Place::VRAM).create().expect("a buffer");
    fill(&device, &buffer, 1).expect("room");
    let maps = [&gpu, &card].map(|peer| mapped(&buffer, peer));
    assert_eq!(maps.each_ref().map(PeerMap::route), [Route::Declared, Route::Staging]);
    peer_writes(&device, &maps[0], 3);
    peer_uses(&device, &maps[1], 3);
    peer_writes(&device, &maps[1], 4);
    peer_uses(&device, &maps[0], 4);
}
