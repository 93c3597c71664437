//! Which route a pair gets.

use devpagemap::Size;
use devpagemap::pagemap::{
    BusWindow, Decision, Direction, LatencyClass, Observation, Observed, Owner, Pagemap, PagemapSpec, Policy,
    Profile, Reason, Registry, Route,
};
use devpagemap::topology::{Machine, PciIds};

use crate::sketch::{LISTED, LISTED_ALONE, NOBODY, OFF, ON, Sketch, UNLISTED, XEON, ZEN, address};

const GPU: &str = "03:00.0";
const NIC: &str = "41:00.0";

fn vram(registry: &Registry) -> Pagemap {
    registry.join_pagemap(PagemapSpec::visible(&Owner::at(address(GPU)))).expect("it can join")
}

/// How the NIC reaches the GPU's visible memory.
fn decided(registry: &Registry, profile: Profile) -> Decision {
    let (pagemap, importer) = (vram(registry), registry.join(profile).expect("it can join"));
    registry.decision(pagemap.id(), importer.id())
}

fn nic() -> Profile {
    Profile::dynamic().at(address(NIC))
}

fn below_one_switch() -> Machine {
    let mut sketch = Sketch::new(XEON);
    let host = sketch.host(sketch.package, Some(UNLISTED));
    sketch.switch(host, 0, OFF, &[GPU, NIC]);
    sketch.build()
}

fn in_two_slots(ids: Option<PciIds>, cpu: devpagemap::topology::CpuInfo) -> Machine {
    let mut sketch = Sketch::new(cpu);
    let host = sketch.host(sketch.package, ids);
    sketch.slot(host, "00:01.0", GPU);
    sketch.slot(host, "00:02.0", NIC);
    sketch.build()
}

fn below_two_host_bridges(ids: PciIds) -> Machine {
    let mut sketch = Sketch::new(XEON);
    let (one, other) = (sketch.host(sketch.package, Some(ids)), sketch.host(sketch.package, Some(ids)));
    sketch.slot(one, "00:01.0", GPU);
    sketch.slot(other, "40:01.0", NIC);
    sketch.build()
}

#[test]
fn below_one_switch_it_is_p2p_whatever_the_host_bridge() {
    let decision = decided(&Registry::new(below_one_switch()), nic());
    assert_eq!((decision.route, decision.p2p), (Route::Switch, Some(true)));
    assert_eq!(decision.latency, LatencyClass::Near);
    assert_eq!(decision.bandwidth_bytes_per_s, Some(31_507_692_307));
    assert_eq!((decision.direction, decision.atomics), (Direction::BOTH, Some(true)));
}

#[test]
fn host_bridges_forward_on_zen_and_where_they_are_listed() {
    for (ids, cpu, route, p2p) in [
        (Some(LISTED), XEON, Route::HostBridge, Some(true)),
        (Some(LISTED_ALONE), XEON, Route::HostBridge, Some(true)),
        (Some(UNLISTED), XEON, Route::Staging, Some(false)),
        (Some(UNLISTED), NOBODY, Route::Staging, Some(false)),
        (None, ZEN, Route::HostBridge, Some(true)),
        (None, XEON, Route::Staging, None),
        (None, NOBODY, Route::Staging, None),
    ] {
        let decision = decided(&Registry::new(in_two_slots(ids, cpu.clone())), nic());
        assert_eq!((decision.route, decision.p2p), (route, p2p), "{ids:?} {cpu:?}");
    }
}

#[test]
fn some_host_bridges_forward_only_below_themselves() {
    let decision = |ids| decided(&Registry::new(below_two_host_bridges(ids)), nic());
    assert_eq!(decision(LISTED).route, Route::HostBridge);
    assert_eq!(decision(LISTED_ALONE).route, Route::Staging);
}

#[test]
fn a_chip_of_no_vendor_we_know_on_an_unknown_cpu_is_unknown() {
    let ids = PciIds { vendor: 0x1022, device: 0x1480 };
    let decision = decided(&Registry::new(in_two_slots(Some(ids), NOBODY)), nic());
    assert_eq!((decision.route, decision.p2p), (Route::Staging, None));
    let decision = decided(&Registry::new(in_two_slots(Some(ids), XEON)), nic());
    assert_eq!(decision.p2p, Some(false));
}

#[test]
fn redirection_by_acs_sends_it_through_the_host_bridge() {
    for (cpu, route, p2p) in [(ZEN, Route::HostBridge, Some(true)), (XEON, Route::Staging, Some(false))] {
        let mut sketch = Sketch::new(cpu);
        let host = sketch.host(sketch.package, Some(UNLISTED));
        sketch.switch(host, 0, ON, &[GPU, NIC]);
        let decision = decided(&Registry::new(sketch.build()), nic());
        assert_eq!((decision.route, decision.p2p), (route, p2p));
    }
}

#[test]
fn where_acs_is_unknown_p2p_is_known_only_if_both_ways_are_open() {
    for (cpu, route, p2p) in [(ZEN, Route::Switch, Some(true)), (XEON, Route::Staging, None)] {
        let mut sketch = Sketch::new(cpu);
        let host = sketch.host(sketch.package, Some(UNLISTED));
        sketch.switch(host, 0, None, &[GPU, NIC]);
        let decision = decided(&Registry::new(sketch.build()), nic());
        assert_eq!((decision.route, decision.p2p), (route, p2p));
    }
}

#[test]
fn across_sockets_it_is_far() {
    let mut sketch = Sketch::new(ZEN);
    let other = sketch.package(ZEN);
    let (one, other) = (sketch.host(sketch.package, None), sketch.host(other, None));
    sketch.slot(one, "00:01.0", GPU);
    sketch.slot(other, "40:01.0", NIC);
    let decision = decided(&Registry::new(sketch.build()), nic());
    assert_eq!((decision.route, decision.latency), (Route::HostBridge, LatencyClass::Remote));
}

#[test]
fn a_private_link_carries_in_its_direction_and_reaches_what_the_bus_does_not_see() {
    let mut sketch = Sketch::new(XEON);
    let host = sketch.host(sketch.package, Some(UNLISTED));
    sketch.slot(host, "00:01.0", GPU);
    sketch.slot(host, "00:02.0", NIC);
    sketch.link(NIC, GPU, 100_000_000_000);
    let registry = Registry::new(sketch.build());
    let ends = [GPU, NIC].map(|at| Owner::at(address(at)));
    let hidden = ends.clone().map(|owner| registry.join_pagemap(PagemapSpec::hidden(&owner)).expect("joins"));
    let importers =
        [GPU, NIC].map(|at| registry.join(Profile::dynamic().system_only().at(address(at))).expect("joins"));
    let there = registry.decision(hidden[0].id(), importers[1].id());
    assert_eq!((there.route, there.bandwidth_bytes_per_s), (Route::PrivateLink, Some(100_000_000_000)));
    assert_eq!((there.latency, there.atomics), (LatencyClass::Near, Some(true)));
    let back = registry.decision(hidden[1].id(), importers[0].id());
    assert_eq!((back.route, back.p2p), (Route::Staging, Some(false)));
}

#[test]
fn vram_that_is_partly_visible_is_two_pagemaps_with_two_answers() {
    let registry = Registry::new(below_one_switch());
    let specs = PagemapSpec::of_vram(&Owner::at(address(GPU)), Size::gib(8), Size::mib(256));
    assert_eq!(
        specs.iter().map(|spec| spec.len_bytes).collect::<Vec<_>>(),
        [Some(256 << 20), Some((8 << 30) - (256 << 20))]
    );
    let pagemaps: Vec<Pagemap> =
        specs.into_iter().map(|spec| registry.join_pagemap(spec).expect("joins")).collect();
    let importer = registry.join(nic()).expect("joins");
    let routes = pagemaps.iter().map(|pagemap| registry.decision(pagemap.id(), importer.id()).route);
    assert_eq!(routes.collect::<Vec<_>>(), [Route::Switch, Route::Staging]);
    assert_eq!(pagemaps[0].owner(), pagemaps[1].owner());
    let whole = PagemapSpec::of_vram(&Owner::new("gpu"), Size::gib(8), Size::gib(64));
    assert_eq!(whole.len(), 1);
    assert!(matches!(whole[0].bus, BusWindow::Visible { .. }));
}

#[test]
fn a_device_reaches_its_own_memory_whatever_it_wants() {
    let registry = Registry::new(below_one_switch());
    let itself = Profile::dynamic().at(address(GPU)).system_only().policy(Policy::Forbidden);
    assert_eq!(decided(&registry, itself).route, Route::SameDevice);
    let registry = Registry::unknown();
    let owner = Owner::new("gpu");
    let pagemap = registry.join_pagemap(PagemapSpec::hidden(&owner)).expect("joins");
    let importer = registry.join(Profile::dynamic().of_device(&owner)).expect("joins");
    assert_eq!(registry.decision(pagemap.id(), importer.id()).route, Route::SameDevice);
}

#[test]
fn an_importer_that_is_nowhere_is_taken_at_its_word() {
    let unplaced = Profile::dynamic();
    for registry in [Registry::unknown(), Registry::new(below_one_switch())] {
        let decision = decided(&registry, unplaced.clone());
        assert_eq!((decision.route, decision.p2p), (Route::Declared, Some(true)));
        assert_eq!(decided(&registry, unplaced.clone().system_only()).route, Route::Staging);
        assert_eq!(decided(&registry, unplaced.clone().with_atomics()).atomics, Some(true));
    }
    assert_eq!(decided(&Registry::unknown(), nic()).route, Route::Declared, "there is no machine");
}

#[test]
fn an_address_where_nothing_is_is_unknown() {
    let decision = decided(&Registry::new(below_one_switch()), Profile::dynamic().at(address("7f:00.0")));
    assert_eq!((decision.route, decision.p2p), (Route::Staging, None));
}

#[test]
fn a_dma_mask_that_ends_below_the_bar_is_no_way_to_it() {
    // The BAR of the sketch ends at 0x3c_0000_0000, which takes 38 bits.
    for (bits, p2p) in [(64, Some(true)), (38, Some(true)), (37, Some(false)), (32, Some(false))] {
        let decision = decided(&Registry::new(below_one_switch()), nic().dma_mask_bits(bits));
        assert_eq!(decision.p2p, p2p, "{bits} bits");
    }
}

#[test]
fn a_pagemap_that_says_where_it_is_needs_no_machine_for_that() {
    let registry = Registry::new(below_one_switch());
    let spec = PagemapSpec::visible(&Owner::at(address(GPU))).len(Size::mib(256)).bus_start(0xd000_0000);
    let pagemap = registry.join_pagemap(spec).expect("joins");
    let importer = registry.join(nic().dma_mask_bits(32)).expect("joins");
    assert_eq!(registry.decision(pagemap.id(), importer.id()).route, Route::Switch);
}

#[test]
fn policies_are_four() {
    let decision = |machine: Machine, policy| decided(&Registry::new(machine), nic().policy(policy));
    let closed = || in_two_slots(Some(UNLISTED), XEON);
    assert_eq!(decision(below_one_switch(), Policy::Forbidden).route, Route::Staging);
    assert_eq!(decision(below_one_switch(), Policy::Required).route, Route::Switch);
    assert_eq!(decision(closed(), Policy::Preferred).route, Route::Staging);
    let refused = decision(closed(), Policy::Required);
    assert_eq!((refused.route, refused.direction), (Route::Refused, Direction::NEITHER));
}

#[test]
fn p2p_that_was_measured_slower_than_staging_is_staged_unless_somebody_insists() {
    for (policy, route) in [
        (Policy::Allowed, Route::Staging),
        (Policy::Preferred, Route::Switch),
        (Policy::Required, Route::Switch),
    ] {
        let registry = Registry::new(below_one_switch());
        let pagemap = vram(&registry);
        let importer = registry.join(nic().policy(policy)).expect("joins");
        let see = |what| registry.observe(Observation::new(address(GPU), address(NIC), what));
        see(Observed::P2pRate(9_900_000_000));
        assert_eq!(
            registry.decision(pagemap.id(), importer.id()).route,
            Route::Switch,
            "one figure says nothing"
        );
        see(Observed::StagingRate(22_000_000_000));
        let decision = registry.decision(pagemap.id(), importer.id());
        assert_eq!(decision.route, route);
        let rate = if route == Route::Staging { 22_000_000_000 } else { 9_900_000_000 };
        assert_eq!(decision.bandwidth_bytes_per_s, Some(rate));
        see(Observed::P2pRate(23_000_000_000));
        assert_eq!(registry.decision(pagemap.id(), importer.id()).route, Route::Switch);
    }
}

#[test]
fn a_driver_or_a_runtime_that_refuses_is_believed_and_one_that_confirms_settles_only_what_is_open() {
    let closed = || in_two_slots(Some(UNLISTED), XEON);
    let open = || in_two_slots(None, XEON);
    for (machine, what, p2p) in [
        (below_one_switch(), Observed::DriverAllows(false), Some(false)),
        (below_one_switch(), Observed::PeerAccess(false), Some(false)),
        (below_one_switch(), Observed::Carries(Direction::NEITHER), Some(false)),
        (open(), Observed::DriverAllows(true), None),
        (open(), Observed::PeerAccess(true), Some(true)),
        (closed(), Observed::PeerAccess(true), Some(false)),
    ] {
        let registry = Registry::new(machine);
        registry.observe(Observation::new(address(GPU), address(NIC), what));
        assert_eq!(decided(&registry, nic()).p2p, p2p, "{what:?}");
    }
}

#[test]
fn what_was_seen_to_carry_writes_only_is_said_to() {
    let registry = Registry::new(below_one_switch());
    let writes = Direction { reads: false, writes: true };
    registry.observe(Observation::new(address(GPU), address(NIC), Observed::Carries(writes)));
    let decision = decided(&registry, nic());
    assert_eq!((decision.route, decision.direction), (Route::Switch, writes));
    assert!(decision.to_string().ends_with("writes only"), "{decision}");
}

#[test]
fn who_needs_atomic_operations_gets_one_place_for_all_where_they_do_not_arrive() {
    let mut sketch = Sketch::new(ZEN);
    let host = sketch.host(sketch.package, None);
    sketch.switch(host, 0, OFF, &[GPU]);
    sketch.add(
        host,
        devpagemap::topology::NodeKind::Function(devpagemap::topology::Function {
            address: Some(address(NIC)),
            acs: OFF,
            ..Default::default()
        }),
    );
    let registry = Registry::new(sketch.build());
    assert_eq!(decided(&registry, nic().with_atomics()).route, Route::HostBridge, "all ports pass them on");
    let importer = registry.join(Profile::dynamic().at(address(GPU)).with_atomics()).expect("joins");
    let mute = registry.join_pagemap(PagemapSpec::visible(&Owner::at(address(NIC)))).expect("joins");
    let decision = registry.decision(mute.id(), importer.id());
    assert_eq!(
        (decision.route, decision.p2p),
        (Route::System, None),
        "whether the NIC completes them is not known"
    );
    let reasons = registry.explain(mute.id(), importer.id()).reasons;
    assert!(reasons.contains(&Reason::AtomicsUnknown), "{reasons:?}");
}

#[test]
fn the_rules_can_be_others() {
    let registry = Registry::new(in_two_slots(Some(UNLISTED), XEON))
        .rules(devpagemap::pagemap::KernelRules::default().and(UNLISTED, true));
    assert_eq!(decided(&registry, nic()).route, Route::HostBridge);
}

/// What the kernel did in the guests of `tests/kernel/pci.rs`, where a drive read into another's controller memory with `O_DIRECT`: QEMU's q35 with
/// the processors `max` (which calls itself AMD, and is of a family before Zen) and `EPYC`.
#[test]
fn drives_of_the_guests_reach_controller_memory_where_their_kernels_let_them() {
    const SAME: &str = "03:00.0";
    const BELOW_THE_SWITCH: &str = "04:00.0";
    const OTHER_PORT: &str = "05:00.0";
    const Q35: PciIds = PciIds { vendor: 0x8086, device: 0x29c0 };
    for (family, through_root) in [(0xf, false), (0x17, true)] {
        let cpu = devpagemap::topology::CpuInfo { family: Some(family), ..ZEN };
        let mut sketch = Sketch::new(cpu);
        let host = sketch.host(sketch.package, Some(Q35));
        sketch.switch(host, 0, OFF, &[SAME, BELOW_THE_SWITCH]);
        sketch.slot(host, "00:02.0", OTHER_PORT);
        let registry = Registry::new(sketch.build());
        let memory =
            registry.join_pagemap(PagemapSpec::visible(&Owner::at(address(SAME)))).expect("it can join");
        let decided = [SAME, BELOW_THE_SWITCH, OTHER_PORT].map(|drive| {
            let drive = registry.join(Profile::dynamic().at(address(drive))).expect("it can join");
            registry.decision(memory.id(), drive.id()).p2p
        });
        assert_eq!(decided, [Some(true), Some(true), Some(through_root)], "family {family:#x}");
    }
}
