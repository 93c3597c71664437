//! A saved tree of a real machine: two Xeons, an accelerator card, a network card, an NVMe disk.

use std::process::Command;
use std::sync::OnceLock;

use devpagemap::topology::{CpuVendor, Label, Machine, NodeId, NodeKind};

use crate::recordings::{output_of, recording};
use crate::tree::Tree;

const ARCHIVE: &str = "pci-sysfs-and-lspci/sysfs-32em64t-2n8c-dax-nvme-mic.tar.bz2";

/// The machine, or `None`, said loudly, when the recording or `tar` is not here.
fn machine() -> Option<&'static Machine> {
    static MACHINE: OnceLock<Option<Machine>> = OnceLock::new();
    MACHINE
        .get_or_init(|| {
            let archive = recording(ARCHIVE)?;
            let tree = Tree::new();
            output_of(Command::new("tar").arg("xjf").arg(archive).arg("-C").arg(tree.path()))?;
            Some(Machine::from_sysfs(&tree.path().join("32em64t-2n8c+1mic")).expect("a saved tree"))
        })
        .as_ref()
}

fn at(machine: &Machine, address: &str) -> NodeId {
    machine.at(address.parse().expect("an address")).expect("a function of the tree")
}

#[test]
fn every_device_of_the_saved_tree_is_found() {
    let Some(machine) = machine() else { return };
    let functions = machine.nodes().filter(|(_, node)| node.function().is_some()).count();
    assert_eq!(functions, 137, "as many as `bus/pci/devices` has");
    let count = |is: fn(&NodeKind) -> bool| machine.nodes().filter(|(_, node)| is(&node.kind)).count();
    assert_eq!(count(|kind| matches!(kind, NodeKind::Package(_))), 2);
    assert_eq!(count(|kind| matches!(kind, NodeKind::Numa(_))), 2);
    assert_eq!(count(|kind| matches!(kind, NodeKind::HostBridge { .. })), 4);
}

#[test]
fn devices_are_near_the_cpu_that_they_hang_on() {
    let Some(machine) = machine() else { return };
    let infiniband = at(machine, "0000:82:00.0");
    assert_eq!(machine.numa_of(infiniband), Some(1));
    assert_eq!(machine.numa_of(at(machine, "0000:02:00.0")), Some(0));
    let cpu = machine.cpu_of(infiniband).expect("a Xeon");
    assert_eq!((cpu.vendor.clone(), cpu.family, cpu.model), (Some(CpuVendor::Intel), Some(6), Some(45)));
}

#[test]
fn devices_have_the_names_that_people_type() {
    let Some(machine) = machine() else { return };
    let named = |name| machine.named(name).collect::<Vec<_>>();
    assert_eq!(named("mlx4_0"), [at(machine, "0000:82:00.0")]);
    assert_eq!(named("ib0"), [at(machine, "0000:82:00.0")]);
    assert_eq!(named("eth1"), [at(machine, "0000:02:00.3")]);
    assert_eq!(named("nvme0n1"), [at(machine, "0000:00:02.0")]);
    assert_eq!(named("gpu0"), []);
}

#[test]
fn labels_of_the_saved_tree_are_those_of_its_sockets() {
    let Some(machine) = machine() else { return };
    let label = |a, b| machine.path(at(machine, a), at(machine, b)).label();
    assert_eq!(label("0000:02:00.0", "0000:02:00.3"), Label::Pix, "two functions of one card");
    assert_eq!(label("0000:82:00.0", "0000:83:00.0"), Label::Phb, "two root ports of one socket");
    assert_eq!(label("0000:02:00.0", "0000:83:00.0"), Label::Sys, "two sockets");
}

#[test]
fn a_host_bridge_is_known_by_device_0_of_its_bus_and_by_nothing_else() {
    let Some(machine) = machine() else { return };
    let ids = |address| {
        let root = machine.host_bridge_of(at(machine, address)).expect("it hangs on one");
        match &machine.node(root).kind {
            NodeKind::HostBridge { ids, .. } => *ids,
            _ => None,
        }
    };
    let found = ids("0000:02:00.0").expect("00:00.0 is there");
    assert_eq!(found.to_string(), "8086:3c00", "as the kernel's list has it");
    assert_eq!(ids("0000:82:00.0"), None, "bus 80 begins with device 02");
}

#[test]
fn bars_of_the_saved_tree_are_read_from_its_resources() {
    let Some(machine) = machine() else { return };
    let card = machine.node(at(machine, "0000:83:00.0")).function().expect("a function");
    let bars = card.bars.as_ref().expect("its resources are there");
    let largest = bars.iter().max_by_key(|bar| bar.len_bytes).expect("the card has memory");
    assert_eq!((largest.index, largest.start, largest.len_bytes), (0, Some(0x3bc_0000_0000), 8 << 30));
    assert!(largest.prefetchable);
}

#[test]
fn what_nobody_had_the_rights_to_read_stays_unknown() {
    let Some(machine) = machine() else { return };
    for (id, node) in machine.nodes().filter(|(_, node)| matches!(node.kind, NodeKind::Bridge(_))) {
        let function = node.function().expect("a bridge is a function");
        assert_eq!(
            (function.acs, function.port, function.atomics),
            (None, None, None),
            "{}",
            machine.name(id)
        );
    }
    let notes: Vec<String> = machine.notes().iter().map(|note| note.text.clone()).collect();
    // The header of 57 devices on the CPU itself says that they have no capabilities at all.
    assert!(notes.iter().any(|text| text.contains("of 80 functions")), "{notes:?}");
}

#[test]
fn the_saved_tree_is_printed_with_every_bridge() {
    let Some(machine) = machine() else { return };
    let text = machine.to_string();
    assert!(text.contains("│        │  └─ 0000:02:00.3 NIC [8086:1521]: eth1\n"), "{text}");
    let path = machine.path(at(machine, "0000:02:00.0"), at(machine, "0000:83:00.0"));
    let lines: Vec<String> = path.describe(machine).to_string().lines().map(str::to_string).collect();
    assert_eq!(lines[0], "0000:02:00.0 to 0000:83:00.0: SYS, 10 hops, bandwidth unknown");
    assert_eq!(lines[1], "  up    0000:00:01.1 root port [8086:3c03]");
    assert_eq!(lines[5], "  meet  machine");
}
