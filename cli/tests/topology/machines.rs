//! What is read of recorded machines.

use std::collections::BTreeMap;

use devpagemap::topology::{LinkKind, Machine, NodeId, NodeKind, PciIds};

use crate::recordings::{all, one};

fn at(machine: &Machine, address: &str) -> NodeId {
    machine.at(address.parse().expect("an address")).unwrap_or_else(|| panic!("nothing is at {address}"))
}

fn label(machine: &Machine, from: NodeId, to: NodeId) -> String {
    machine.path(from, to).label().to_string()
}

fn gpus(machine: &Machine) -> Vec<NodeId> {
    let is_gpu = |kind: &NodeKind| matches!(kind, NodeKind::Function(function) if function.is_gpu());
    machine.nodes().filter(|(_, node)| is_gpu(&node.kind)).map(|(id, _)| id).collect()
}

/// How many of the text's elements begin with `opening`.
fn count(text: &[u8], opening: &str) -> usize {
    String::from_utf8_lossy(text).matches(opening).count()
}

#[test]
fn every_file_is_read_with_every_device_in_it() {
    for recording in all() {
        let machine = recording.machine();
        let functions = machine.nodes().filter(|(_, node)| node.function().is_some()).count();
        let listed = count(&recording.bytes, "<pci ")
            + count(&recording.bytes, "type=\"PCIDev\"")
            + count(&recording.bytes, "bridge_type=\"1-1\"");
        assert_eq!(functions, listed, "{}", recording.name);
        assert!(gpus(&machine).len() >= 2, "{}", recording.name);
        let cpus = machine.nodes().filter(|(_, node)| matches!(node.kind, NodeKind::Package(_))).count();
        assert!(cpus >= 1, "{}", recording.name);
    }
}

#[test]
fn two_files_slip_with_an_address_and_the_device_that_can_be_there_has_it() {
    let noted: Vec<String> = all()
        .iter()
        .flat_map(|recording| recording.machine().notes().to_vec())
        .map(|note| note.to_string())
        .collect();
    if let Some(recording) = one("sandybridge-mixed-gpus") {
        let sandybridge = "sandybridge-mixed-gpus:243: 0000:04:00.0 is not on 0000:[84-84], the buses of the bridge above \
            it: its address is unknown";
        let switch = "topo_8p1h_1:63: 0000:a1:00.0: a device is there too, and has it: the address of the switch is unknown";
        assert_eq!(noted, [sandybridge, switch]);
        let machine = recording.machine();
        let adapter = machine.named("mlx5_0").next().unwrap();
        assert_eq!(machine.node(adapter).function().unwrap().address, None);
        assert_eq!(label(&machine, adapter, at(&machine, "84:00.0")), "PIX");
    }
    if let Some(recording) = one("topo_8p1h_1") {
        let machine = recording.machine();
        assert_eq!(
            machine.named("mlx5_7").next(),
            machine.at("a1:00.0".parse().unwrap()),
            "and a switch has not"
        );
    }
}

#[test]
fn the_dgx_2_is_two_boards_of_eight_gpus_and_switches() {
    let Some(recording) = one("dgx2-v100x16") else { return };
    let machine = recording.machine();
    let gpus = gpus(&machine);
    assert_eq!(gpus.len(), 16);
    assert_eq!(machine.named("nvml0").collect::<Vec<_>>(), [gpus[0]]);
    let bus = |from: usize, to: usize| machine.path(gpus[from], gpus[to]).bus_label.to_string();
    // As its own tool groups them: 0 and 1, 2 and 3, and 4 below another root.
    assert_eq!([bus(0, 1), bus(2, 3), bus(0, 2), bus(0, 4), bus(0, 8)], ["PIX", "PIX", "PXB", "NODE", "SYS"]);
    let six = machine.link_between(gpus[0], gpus[7]).copied().unwrap();
    assert_eq!((six.kind, six.count, six.bytes_per_s), (LinkKind::NvLink, 6, Some(150_000_000_000)));
    assert_eq!(machine.links().len(), 2 * 8 * 7, "nothing in the file leads from one board to the other");
    assert_eq!(label(&machine, gpus[0], gpus[8]), "SYS");
    let root = machine.host_bridge_of(gpus[0]).unwrap();
    let NodeKind::HostBridge { ids, .. } = machine.node(root).kind else { panic!("a host bridge") };
    assert_eq!(ids, Some(PciIds { vendor: 0x8086, device: 0x2030 }));
}

#[test]
fn the_power_8_has_nvlinks_in_pairs_and_to_its_cpus() {
    let Some(recording) = one("power8-p100x4-nvlink") else { return };
    let machine = recording.machine();
    let gpus = gpus(&machine);
    let labels: Vec<String> = gpus.iter().map(|to| label(&machine, gpus[0], *to)).collect();
    assert_eq!(labels, ["X", "NV2", "SYS", "SYS"]);
    let package = machine.package_of(gpus[0]).unwrap();
    assert_eq!(machine.link_between(gpus[0], package).unwrap().bytes_per_s, Some(40_000_000_000));
    assert_eq!(machine.links().len(), 12);
}

#[test]
fn the_epyc_has_a_gpu_in_each_of_four_numa_nodes() {
    let Some(recording) = one("epyc-mi50x4") else { return };
    let machine = recording.machine();
    let gpus: Vec<NodeId> =
        ["13:00.0", "23:00.0", "53:00.0", "73:00.0"].iter().map(|gpu| at(&machine, gpu)).collect();
    let numa: Vec<_> = gpus.iter().map(|gpu| machine.numa_of(*gpu)).collect();
    assert_eq!(numa, [Some(1), Some(2), Some(5), Some(7)]);
    assert_eq!(machine.cpu_of(gpus[0]).unwrap().family, Some(0x17));
    assert_eq!(label(&machine, gpus[0], gpus[1]), "SYS");
}

#[test]
fn the_version_1_file_has_devices_in_its_numa_nodes() {
    let Some(recording) = one("workstation-nvidia-amd") else { return };
    let machine = recording.machine();
    let (nvidia, amd) = (at(&machine, "08:00.0"), at(&machine, "44:00.0"));
    assert_eq!([machine.numa_of(nvidia), machine.numa_of(amd)], [Some(0), Some(2)]);
    assert_eq!(machine.named("card1").next(), Some(amd));
    assert_eq!(label(&machine, nvidia, amd), "SYS");
    assert_eq!(machine.cpu_of(amd).unwrap().family, Some(0x17));
}

#[test]
fn cloud_machines_have_switches_without_addresses() {
    let Some(recording) = one("aws-p4d-a100x8") else { return };
    let machine = recording.machine();
    let gpu = at(&machine, "10:1c.0");
    let labels: Vec<String> = ["10:1d.0", "10:1b.0", "20:1c.0", "90:1c.0"]
        .iter()
        .map(|to| label(&machine, gpu, at(&machine, to)))
        .collect();
    assert_eq!(labels, ["PIX", "PIX", "PHB", "SYS"]);
    let switch = machine.node(machine.node(gpu).parent.unwrap()).function().unwrap();
    assert_eq!((switch.address, switch.ids), (None, None));
}

#[test]
fn the_h100s_are_linked_all_to_all_through_switches_that_are_not_listed() {
    let Some(recording) = one("oci-h100x8") else { return };
    let machine = recording.machine();
    let gpus = gpus(&machine);
    for (from, to) in
        gpus.iter().flat_map(|from| gpus.iter().map(move |to| (*from, *to))).filter(|(a, b)| a != b)
    {
        let link = machine.link_between(from, to).unwrap();
        assert_eq!((link.count, link.bytes_per_s), (18, Some(450_000_000_000)));
    }
    assert_eq!(machine.links().len(), 56);
}

#[test]
fn families_are_those_that_the_cpus_count_themselves() {
    let mut families: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for recording in all() {
        let machine = recording.machine();
        for (_, node) in machine.nodes() {
            if let NodeKind::Package(info) = &node.kind
                && let (Some(vendor), Some(family)) = (&info.vendor, info.family)
            {
                let known = families.entry(vendor.to_string()).or_default();
                known.push(family);
            }
        }
    }
    for known in families.values_mut() {
        known.sort();
        known.dedup();
    }
    if !families.is_empty() {
        assert_eq!(families["AMD"], [0x17, 0x19]);
        assert_eq!(families["Intel"], [6]);
    }
}

#[test]
fn xgmi_links_are_read_both_ways() {
    let Some(recording) = one("topo_8p_940") else { return };
    let machine = recording.machine();
    let gpus = gpus(&machine);
    assert_eq!(machine.links().len(), 56);
    let link = machine.link_between(gpus[3], gpus[5]).unwrap();
    assert_eq!((link.kind, link.count, link.bytes_per_s), (LinkKind::Xgmi, 1, Some(64_000_000_000)));
}
