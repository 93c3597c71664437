//! Public facts about pairs of devices: what was right for them, and what was measured. `$DEVPAGEMAP_TRACES/p2p-facts`, else beside the
//! checkout.
//!
//! A row says little of its machine. So each is put into two: one that holds what the row says and nothing more, where the answer
//! may be that it is not known, and one whose host bridges forward, where what was seen of the pair alone decides.

use std::io::Write;
use std::path::{Path, PathBuf};

use devpagemap::Size;
use devpagemap::pagemap::{
    Decision, Observation, Observed, Owner, PagemapSpec, Policy, Profile, Reason, Registry, Route,
};
use devpagemap::topology::{CpuInfo, Label, Machine, NodeId, NodeKind, PciAddress, PortKind};

use crate::sketch::{NOBODY, OFF, Sketch, XEON, ZEN, address};

/// The rows of a table, without its head. `None` when this machine does not have it; then it says so.
fn rows(name: &str) -> Option<Vec<Vec<String>>> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/traces");
    let traces = std::env::var_os("DEVPAGEMAP_TRACES").map_or(beside, PathBuf::from);
    let path = traces.join("p2p-facts").join(name);
    let Ok(text) = std::fs::read_to_string(&path) else {
        let line = format!("\n*** skipped: no facts {} (set DEVPAGEMAP_TRACES) ***\n", path.display());
        std::io::stderr().write_all(line.as_bytes()).expect("standard error is open");
        return None;
    };
    Some(text.lines().skip(1).map(|line| line.split('\t').map(String::from).collect()).collect())
}

const ONE: &str = "01:00.0";
const OTHER: &str = "02:00.0";

fn two_slots(cpu: CpuInfo) -> Machine {
    let mut sketch = Sketch::new(cpu);
    let host = sketch.host(sketch.package, None);
    sketch.slot(host, "00:01.0", ONE);
    sketch.slot(host, "00:02.0", OTHER);
    sketch.build()
}

/// A row of `pairs.tsv`.
struct Pair {
    name: String,
    label: String,
    driver: Option<bool>,
    peer_access: Option<bool>,
    staged: Option<u64>,
    p2p: Option<u64>,
}

impl Pair {
    fn of(row: &[String]) -> Pair {
        let rate = |text: &String| text.parse::<f64>().ok().map(|gigabytes| (gigabytes * 1e9) as u64);
        let verdict = |text: &String, yes: &str, noes: &[&str]| match text.as_str() {
            "" => None,
            text if text == yes => Some(true),
            text if noes.contains(&text) => Some(false),
            other => panic!("{other} is no verdict that is described"),
        };
        Pair {
            name: format!("{} {} -> {}", row[0], row[1], row[2]),
            label: row[5].clone(),
            driver: verdict(&row[6], "OK", &["CNS", "GNS"]),
            peer_access: verdict(&row[7], "1", &["0"]),
            staged: rate(&row[8]),
            p2p: rate(&row[9]),
        }
    }

    fn refused(&self) -> bool {
        self.driver == Some(false) || self.peer_access == Some(false)
    }

    fn is_slower(&self) -> bool {
        self.p2p.zip(self.staged).is_some_and(|(p2p, staged)| p2p < staged)
    }

    /// The decision after all that the row says was seen.
    fn decided(&self, machine: Machine, policy: Policy) -> Decision {
        let registry = Registry::new(machine);
        let pagemap = registry.join_pagemap(PagemapSpec::visible(&Owner::at(address(OTHER)))).expect("joins");
        let importer = registry.join(Profile::dynamic().at(address(ONE)).policy(policy)).expect("joins");
        let seen = [
            self.driver.map(Observed::DriverAllows),
            self.peer_access.map(Observed::PeerAccess),
            self.staged.map(Observed::StagingRate),
            self.p2p.map(Observed::P2pRate),
        ];
        for what in seen.into_iter().flatten() {
            registry.observe(Observation::new(address(OTHER), address(ONE), what));
        }
        registry.decision(pagemap.id(), importer.id())
    }
}

#[test]
fn every_pair_is_decided_as_it_was_found() {
    let Some(rows) = rows("pairs.tsv") else { return };
    assert!(rows.len() >= 40, "{} rows", rows.len());
    let pairs: Vec<Pair> = rows.iter().map(|row| Pair::of(row)).collect();
    for pair in &pairs {
        let bare = pair.decided(two_slots(NOBODY), Policy::Allowed);
        let expected = match (pair.refused(), pair.peer_access) {
            (true, _) => Some(false),
            (false, Some(true)) => Some(!pair.is_slower()),
            (false, _) => None,
        };
        assert_eq!(bare.p2p, expected, "{}", pair.name);
        let open = pair.decided(two_slots(ZEN), Policy::Allowed);
        assert_eq!(open.route.is_p2p(), !pair.refused() && !pair.is_slower(), "{}", pair.name);
        let measured = if open.route.is_p2p() { pair.p2p } else { pair.staged };
        if measured.is_some() {
            assert_eq!(open.bandwidth_bytes_per_s, measured, "{}", pair.name);
        }
        let insisting = pair.decided(two_slots(ZEN), Policy::Required);
        assert_eq!(insisting.route.is_p2p(), !pair.refused(), "{}", pair.name);
    }
    let count = |what: &dyn Fn(&Pair) -> bool| pairs.iter().filter(|pair| what(pair)).count();
    assert!(count(&Pair::refused) > 0 && count(&Pair::is_slower) > 0, "the counter-examples are among them");
    assert!(count(&|pair| pair.driver == Some(true) && pair.peer_access == Some(false)) > 0);
    assert!(count(&|pair| pair.label == "PHB" && pair.peer_access == Some(true)) > 0);
}

#[test]
fn every_decision_on_record_is_ours() {
    let Some(rows) = rows("decisions.tsv") else { return };
    for row in &rows {
        let found = match row[0].as_str() {
            case if case.contains("host bridge 8086:4c43") => behind_rocket_lake(false),
            case if case.contains("common PCIe switch") => behind_rocket_lake(true),
            case if case.contains("peer writes run at 9.6-10.2 GB/s") => slower_than_staging(),
            case if case.contains("without large BAR") => without_a_large_bar(),
            case => panic!("nobody checks the case {case:?}"),
        };
        let expected = match row[1].as_str() {
            "p2p" => true,
            "staging" => false,
            other => panic!("{other} is no decision"),
        };
        assert_eq!(found.is_p2p(), expected, "{}", row[0]);
    }
}

fn route(registry: &Registry, spec: PagemapSpec) -> Route {
    let pagemap = registry.join_pagemap(spec).expect("joins");
    let importer = registry.join(Profile::dynamic().at(address(ONE))).expect("joins");
    registry.decision(pagemap.id(), importer.id()).route
}

fn other() -> Owner {
    Owner::at(address(OTHER))
}

fn behind_rocket_lake(is_below_switch: bool) -> Route {
    let mut sketch = Sketch::new(XEON);
    let ids = devpagemap::topology::PciIds { vendor: 0x8086, device: 0x4c43 };
    let host = sketch.host(sketch.package, Some(ids));
    if is_below_switch {
        sketch.switch(host, 0x10, OFF, &[ONE, OTHER]);
    } else {
        sketch.slot(host, "00:01.0", ONE);
        sketch.slot(host, "00:06.0", OTHER);
    }
    route(&Registry::new(sketch.build()), PagemapSpec::visible(&other()))
}

fn slower_than_staging() -> Route {
    let registry = Registry::new(two_slots(ZEN));
    for what in [Observed::P2pRate(9_900_000_000), Observed::StagingRate(21_000_000_000)] {
        registry.observe(Observation::new(address(OTHER), address(ONE), what));
    }
    route(&registry, PagemapSpec::visible(&other()))
}

/// What is not in the BAR, which is nearly all.
fn without_a_large_bar() -> Route {
    let registry = Registry::new(two_slots(ZEN));
    let mut specs = PagemapSpec::of_vram(&other(), Size::mib(8192), Size::mib(256));
    let hidden = specs.pop().expect("there is a hidden part");
    assert!(hidden.len_bytes > specs[0].len_bytes);
    route(&registry, hidden)
}

#[test]
fn the_host_bridges_on_the_list_are_those_that_forward() {
    let Some(rows) = rows("kernel_host_bridge_allowlist.tsv") else { return };
    let ids = rows.iter().filter_map(|row| {
        let id = |text: &str| u16::from_str_radix(text, 16).ok();
        Some((devpagemap::topology::PciIds { vendor: id(&row[0])?, device: id(&row[1])? }, row[2] == "1"))
    });
    let ids: Vec<_> = ids.collect();
    assert_eq!(ids.len() + 1, rows.len(), "all but the row about CPU families");
    for (ids, same_only) in ids {
        for is_same in [true, false] {
            let mut sketch = Sketch::new(XEON);
            let one = sketch.host(sketch.package, Some(ids));
            let other_host = if is_same { one } else { sketch.host(sketch.package, Some(ids)) };
            sketch.slot(one, "00:01.0", ONE);
            sketch.slot(other_host, "40:02.0", OTHER);
            let route = route(&Registry::new(sketch.build()), PagemapSpec::visible(&other()));
            assert_eq!(route == Route::HostBridge, is_same || !same_only, "{ids}, same: {is_same}");
        }
    }
    for (family, p2p) in [(0x16, Some(false)), (0x17, Some(true)), (0x19, Some(true)), (0x1a, Some(true))] {
        let ids = Some(devpagemap::topology::PciIds { vendor: 0x1022, device: 1 });
        let mut sketch = Sketch::new(CpuInfo { family: Some(family), ..ZEN });
        let host = sketch.host(sketch.package, ids);
        sketch.slot(host, "00:01.0", ONE);
        sketch.slot(host, "00:02.0", OTHER);
        let registry = Registry::new(sketch.build());
        let pagemap = registry.join_pagemap(PagemapSpec::visible(&other())).expect("joins");
        let importer = registry.join(Profile::dynamic().at(address(ONE))).expect("joins");
        assert_eq!(registry.decision(pagemap.id(), importer.id()).p2p, p2p, "family {family:#x}");
    }
}

/// A machine drawn after the labels of a public report, and where its devices are.
struct Drawn {
    machine: Machine,
    devices: Vec<(String, PciAddress)>,
}

/// Draws switches: of each, the root it is below, and its devices.
fn draw(switches: &[(NodeOf, &[&str])]) -> Drawn {
    let mut sketch = Sketch::new(XEON);
    let packages = [sketch.package, sketch.package(XEON)];
    let packages = [0, 1].map(|number| sketch.add(packages[number], NodeKind::Numa(number as u32)));
    let mut roots: Vec<(NodeOf, NodeId)> = Vec::new();
    let mut devices = Vec::new();
    for (index, (of, names)) in switches.iter().enumerate() {
        let known = roots.iter().find(|(known, _)| known == of).map(|(_, node)| *node);
        let bus = 0x10 * (index as u8 + 1);
        let top = known.unwrap_or_else(|| {
            let host = sketch.host(packages[of.package], None);
            let node = match of.tree {
                Tree::Host => host,
                Tree::Switch => {
                    let root = sketch.port(host, &format!("{bus:02x}:1f.0"), PortKind::Root, OFF);
                    sketch.port(root, &format!("{:02x}:1e.0", bus + 1), PortKind::Upstream, OFF)
                }
            };
            roots.push((*of, node));
            node
        });
        let above = match of.tree {
            Tree::Host => sketch.port(top, &format!("{bus:02x}:02.0"), PortKind::Root, OFF),
            Tree::Switch => sketch.port(top, &format!("{:02x}:1d.0", bus + 2), PortKind::Downstream, OFF),
        };
        let up = sketch.port(above, &format!("{:02x}:00.0", bus + 3), PortKind::Upstream, OFF);
        for (slot, name) in names.iter().enumerate() {
            let down = sketch.port(up, &format!("{:02x}:{slot:02x}.0", bus + 4), PortKind::Downstream, OFF);
            let at = format!("{:02x}:00.0", bus + 5 + slot as u8);
            sketch.device(down, &at);
            devices.push((name.to_string(), address(&at)));
        }
    }
    Drawn { machine: sketch.build(), devices }
}

#[derive(Clone, Copy, PartialEq)]
enum Tree {
    /// Switches are directly on a host bridge.
    Host,
    /// They are below one further switch.
    Switch,
}

#[derive(Clone, Copy, PartialEq)]
struct NodeOf {
    package: usize,
    tree: Tree,
    number: usize,
}

fn dgx2() -> Drawn {
    let below = |package, number| NodeOf { package, tree: Tree::Switch, number };
    draw(&[
        (below(0, 0), &["GPU0", "GPU1", "mlx5_0"]),
        (below(0, 0), &["GPU2", "GPU3", "mlx5_1"]),
        (below(0, 1), &["GPU4", "mlx5_2"]),
        (below(0, 1), &["mlx5_3"]),
        (below(1, 2), &["mlx5_4", "mlx5_5"]),
        (below(1, 2), &["mlx5_6", "mlx5_7"]),
        (below(1, 3), &["mlx5_8", "mlx5_9"]),
    ])
}

fn nccl_1439() -> Drawn {
    let on = |package| NodeOf { package, tree: Tree::Host, number: package };
    draw(&[
        (on(0), &["GPU0", "GPU1"]),
        (on(0), &["GPU2", "GPU3"]),
        (on(1), &["GPU4", "GPU5"]),
        (on(1), &["GPU6", "GPU7"]),
    ])
}

#[test]
fn a_machine_that_is_drawn_after_its_labels_has_them_and_its_switches_are_p2p() {
    let Some(rows) = rows("labels.tsv") else { return };
    let machines = [("dgx2", dgx2()), ("nccl-1439-8gpu", nccl_1439())];
    for row in &rows {
        let (_, drawn) = machines.iter().find(|(name, _)| *name == row[0]).expect("a machine that was drawn");
        let at = |name: &str| drawn.devices.iter().find(|(own, _)| own == name).expect("it was drawn").1;
        let (from, to) = (at(&row[1]), at(&row[2]));
        let node = |at| drawn.machine.at(at).expect("it is there");
        let label = drawn.machine.path(node(from), node(to)).label();
        assert_eq!(label.to_string(), row[3], "{row:?}");
        let registry = Registry::new(drawn.machine.clone());
        let pagemap = registry.join_pagemap(PagemapSpec::visible(&Owner::at(from))).expect("joins");
        let importer = registry.join(Profile::dynamic().at(to)).expect("joins");
        let explanation = registry.explain(pagemap.id(), importer.id());
        if matches!(label, Label::Pix | Label::Pxb) {
            assert_eq!(explanation.decision.route, Route::Switch, "{row:?}");
        } else {
            assert_eq!(explanation.decision.p2p, None, "{row:?}");
            assert!(explanation.reasons.contains(&Reason::HostBridgeUnknown), "{row:?}");
        }
    }
}
