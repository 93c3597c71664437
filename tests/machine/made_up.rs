//! Trees made by hand: what the recorded machine does not have.

use std::os::unix::fs::symlink;

use devpagemap::topology::{
    Acs, CpuVendor, Label, Machine, NodeId, NodeKind, PortKind, RootBus, Vram, pci_bytes_per_s,
};

use crate::lspci::dump;
use crate::tree::Tree;

const BRIDGE: u32 = 0x060400;
const GPU: u32 = 0x030200;

fn read(tree: &Tree) -> Machine {
    Machine::from_sysfs(tree.path()).expect("a machine")
}

fn at(machine: &Machine, address: &str) -> NodeId {
    machine.at(address.parse().expect("an address")).expect("a function of the tree")
}

fn notes(machine: &Machine) -> String {
    machine.notes().iter().map(|note| format!("{note}\n")).collect()
}

#[test]
fn what_is_no_sysfs_is_refused_with_its_name() {
    let tree = Tree::new();
    let error = Machine::from_sysfs(tree.path()).expect_err("an empty directory");
    let name = tree.path().display().to_string();
    assert_eq!(error.to_string(), format!("{name}: there is no directory `devices`, so this is no sysfs"));
    assert!(Machine::from_sysfs(&tree.path().join("none")).is_err());
}

#[test]
fn a_machine_without_pci_is_a_machine() {
    let machine = read(&Tree::with_cpu("GenuineIntel", 6));
    assert!(notes(&machine).contains("there are no PCI devices"), "{}", notes(&machine));
    assert_eq!(machine.cpu_of(machine.root()).and_then(|cpu| cpu.vendor.clone()), Some(CpuVendor::Intel));
}

/// The real switch of the recorded board, with its two cards, as its dump has them.
#[test]
fn a_real_switch_is_read_from_sysfs_and_configuration_space_together() {
    let Some(spaces) = dump("lspci-tree-asus-p6t6.txt.gz") else { return };
    let tree = Tree::with_cpu("GenuineIntel", 6);
    let add = |way: &str, class, ids| {
        let dir = tree.function(way, class, ids);
        tree.write(&format!("{dir}/config"), &spaces[&way[way.len() - 7..]]);
    };
    let switch = "pci0000:00/0000:00:03.0/0000:02:00.0";
    add("pci0000:00/0000:00:00.0", 0x060000, (0x8086, 0x3405));
    add("pci0000:00/0000:00:03.0", BRIDGE, (0x8086, 0x340a));
    add(switch, BRIDGE, (0x10de, 0x05b1));
    add(&format!("{switch}/0000:03:00.0"), BRIDGE, (0x10de, 0x05b1));
    add(&format!("{switch}/0000:03:02.0"), BRIDGE, (0x10de, 0x05b1));
    add(&format!("{switch}/0000:03:00.0/0000:04:00.0"), 0x010700, (0x1000, 0x0072));
    add(&format!("{switch}/0000:03:02.0/0000:06:00.0"), 0x030000, (0x10de, 0x0a65));
    let machine = read(&tree);
    assert_eq!(notes(&machine), "");
    let path = machine.path(at(&machine, "04:00.0"), at(&machine, "06:00.0"));
    assert_eq!((path.label(), path.hops()), (Label::Pix, 4));
    assert_eq!(path.bytes_per_s(), pci_bytes_per_s(5_000, 8), "the slower card");
    assert_eq!(path.meeting, at(&machine, "02:00.0"));
    assert_eq!(machine.port_kind(path.meeting), Some(PortKind::Upstream));
    for id in path.below_meeting() {
        assert_eq!(machine.node(id).function().and_then(|function| function.acs), Some(Acs::default()));
    }
}

#[test]
fn a_device_that_vanishes_takes_what_is_below_it_along() {
    let tree = Tree::with_cpu("GenuineIntel", 6);
    tree.function("pci0000:00/0000:00:01.0", BRIDGE, (1, 1));
    let switch = tree.function("pci0000:00/0000:00:02.0", BRIDGE, (1, 1));
    tree.function("pci0000:00/0000:00:02.0/0000:03:00.0", GPU, (1, 2));
    tree.function("pci0000:00/0000:00:01.0/0000:02:00.0", GPU, (1, 2));
    std::fs::remove_file(tree.path().join(switch).join("class")).expect("it was there");
    let machine = read(&tree);
    assert!(machine.at("00:02.0".parse().unwrap()).is_none());
    assert!(machine.at("03:00.0".parse().unwrap()).is_none());
    assert!(machine.at("02:00.0".parse().unwrap()).is_some());
    assert!(notes(&machine).contains("0000:00:02.0: it vanished while it was read, and is left out"));
    assert!(notes(&machine).contains("0000:03:00.0: it is left out with the bridge above it"));
}

#[test]
fn a_link_to_nowhere_is_left_out_and_noted() {
    let tree = Tree::with_cpu("GenuineIntel", 6);
    tree.function("pci0000:00/0000:00:01.0", GPU, (1, 1));
    let devices = tree.path().join("sys/bus/pci/devices");
    symlink("../../../devices/pci0000:00/0000:00:09.0", devices.join("0000:00:09.0")).expect("a link");
    symlink("../../../devices/0000:00:0a.0", devices.join("0000:00:0a.0")).expect("a link");
    tree.write("sys/bus/pci/devices/readme", b"no link");
    let machine = read(&tree);
    assert_eq!(machine.nodes().filter(|(_, node)| node.function().is_some()).count(), 1);
    assert!(notes(&machine).contains("0000:00:09.0: it vanished"));
    assert!(notes(&machine).contains("0000:00:0a.0: it is no link to a device in a PCI tree"));
    assert!(notes(&machine).contains("readme: it is no link"));
}

#[test]
fn links_and_memory_are_read_from_attributes() {
    let tree = Tree::with_cpu("AuthenticAMD", 25);
    let dir = tree.function("pci0000:00/0000:00:01.0", GPU, (0x1002, 0x74a1));
    for (name, text) in [
        ("current_link_speed", "8.0 GT/s PCIe\n"),
        ("current_link_width", "8\n"),
        ("max_link_speed", "32.0 GT/s PCIe\n"),
        ("max_link_width", "16\n"),
        ("mem_info_vram_total", "17163091968\n"),
        ("mem_info_vis_vram_total", "268435456\n"),
        ("drm/card0/dev", "226:0\n"),
        ("drm/controlD64/dev", "226:64\n"),
        ("drm/renderD128/dev", "226:128\n"),
        (
            "resource",
            "0x0000007800000000 0x000000780fffffff 0x000000000014220c\n\
             0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
             0x0000000000000000 0x00000000001fffff 0x000000002014220c\n\
             0x000000000000f000 0x000000000000f0ff 0x0000000000040101\n",
        ),
    ] {
        tree.write(&format!("{dir}/{name}"), text.as_bytes());
    }
    let machine = read(&tree);
    let node = machine.node(at(&machine, "00:01.0"));
    let function = node.function().expect("a function");
    assert_eq!(function.link.bytes_per_s, pci_bytes_per_s(8_000, 8));
    assert_eq!(function.link.max_bytes_per_s, pci_bytes_per_s(32_000, 16));
    assert_eq!(function.vram, Some(Vram { total_bytes: 17163091968, visible_bytes: Some(256 << 20) }));
    assert_eq!(node.names, ["card0", "renderD128"]);
    let bars: Vec<_> =
        function.bars.iter().flatten().map(|bar| (bar.index, bar.start, bar.len_bytes)).collect();
    assert_eq!(bars, [(0, Some(0x78_0000_0000), 256 << 20), (2, None, 2 << 20)]);
}

#[test]
fn a_disk_goes_by_its_controller_and_by_its_own_name() {
    let tree = Tree::with_cpu("GenuineIntel", 6);
    let dir = tree.function("pci0000:00/0000:00:01.0", 0x010802, (0x144d, 0xa808));
    tree.write(&format!("{dir}/nvme/nvme0/nvme0n1/size"), b"1\n");
    tree.write(&format!("{dir}/nvme/nvme0/numa_node"), b"-1\n");
    tree.write(&format!("{dir}/nvme/nvme0/ng0n1/dev"), b"1\n");
    let machine = read(&tree);
    assert_eq!(machine.node(at(&machine, "00:01.0")).names, ["nvme0", "nvme0n1"]);
}

#[test]
fn malformed_attributes_are_unknown_and_noted() {
    let tree = Tree::with_cpu("GenuineIntel", 6);
    let dir = tree.function("pci0000:00/0000:00:01.0", GPU, (1, 1));
    tree.write(&format!("{dir}/resource"), b"0x10 0x0f 0x200\n");
    tree.write(&format!("{dir}/config"), &[0xff; 256]);
    tree.write(&format!("{dir}/current_link_speed"), b"Unknown speed\n");
    tree.write(&format!("{dir}/current_link_width"), b"0\n");
    tree.write(&format!("{dir}/numa_node"), b"-1\n");
    tree.write(&format!("{dir}/mem_info_vram_total"), b"lots\n");
    let machine = read(&tree);
    let function = machine.node(at(&machine, "00:01.0")).function().expect("a function");
    assert_eq!((&function.bars, function.acs, function.numa, function.vram), (&None, None, None, None));
    assert_eq!(function.link.bytes_per_s, None);
    assert!(notes(&machine).contains("resource, line 1: `0x10 0x0f 0x200` is no range with flags"));
    assert!(notes(&machine).contains("the function is gone; nothing of it is believed"));
}

#[test]
fn host_bridges_go_to_the_numa_node_of_their_devices() {
    let tree = Tree::with_cpu("AuthenticAMD", 23);
    for node in 0..4 {
        tree.numa(node, node / 2, 8 * node..8 * node + 8);
        let dir = tree.function(&format!("pci0000:{node}0/0000:{node}0:01.0"), GPU, (1, 1));
        tree.write(&format!("{dir}/numa_node"), format!("{node}\n").as_bytes());
    }
    tree.function("pci0000:01/0000:01:01.0", GPU, (1, 1));
    let machine = read(&tree);
    let [a, b, c, lost] = ["00:01.0", "10:01.0", "20:01.0", "01:01.0"].map(|address| at(&machine, address));
    assert_eq!((machine.numa_of(a), machine.numa_of(b), machine.numa_of(c)), (Some(0), Some(1), Some(2)));
    assert_eq!(machine.package_of(a), machine.package_of(b));
    assert_ne!(machine.package_of(a), machine.package_of(c));
    assert_eq!(machine.path(a, b).label(), Label::Sys, "two NUMA nodes of one package");
    assert_eq!(machine.path(a, lost).label(), Label::Unknown);
    assert_eq!(machine.cpu_of(lost).and_then(|cpu| cpu.family), Some(0x17), "all CPUs are of one family");
}

#[test]
fn a_pci_domain_within_a_device_hangs_below_it() {
    let tree = Tree::with_cpu("GenuineIntel", 6);
    tree.function("pci0000:00/0000:00:0e.0", 0x010400, (0x8086, 0x467f));
    let inner = "pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0";
    tree.function(inner, BRIDGE, (0x8086, 0x464d));
    tree.function(&format!("{inner}/10000:e1:00.0"), 0x010802, (0x144d, 0xa80a));
    tree.function("pci0000:00/0000:00:02.0", GPU, (0x8086, 0x46a6));
    let machine = read(&tree);
    let disk = at(&machine, "10000:e1:00.0");
    let root = machine.host_bridge_of(disk).expect("a root of its own");
    assert!(matches!(machine.node(root).kind, NodeKind::HostBridge { bus: Some(bus), .. }
            if bus == RootBus { domain: 0x10000, bus: 0xe0 }));
    assert_eq!(machine.node(root).parent, Some(at(&machine, "00:0e.0")));
    assert_eq!(machine.path(disk, at(&machine, "00:02.0")).label(), Label::Phb);
}

#[test]
fn the_same_tree_is_the_same_machine() {
    let tree = Tree::with_cpu("GenuineIntel", 6);
    tree.numa(0, 0, 0..2);
    for slot in (1..16).rev() {
        tree.function(&format!("pci0000:00/0000:00:{slot:02x}.0"), GPU, (1, slot));
    }
    assert_eq!(read(&tree), read(&tree));
}

#[test]
fn an_address_that_two_links_claim_is_refused_with_its_place() {
    let tree = Tree::with_cpu("GenuineIntel", 6);
    tree.function("pci0000:00/0000:00:01.0", GPU, (1, 1));
    for name in ["class", "vendor", "device"] {
        tree.write(&format!("sys/devices/pci0000:80/0000:00:01.0/{name}"), b"0x1");
    }
    let other = tree.path().join("sys/bus/pci/devices/00:01.0");
    symlink("../../../devices/pci0000:80/0000:00:01.0", other).expect("a link");
    let error = Machine::from_sysfs(tree.path()).expect_err("two places for one address").to_string();
    assert!(error.ends_with("bus/pci/devices/0000:00:01.0: 0000:00:01.0 is there twice"), "{error}");
}

/// A GPU of amdkfd, and its links: to which node, least and most bandwidth, flags.
fn kfd_node(tree: &Tree, node: u32, location: u32, links: &[(u32, u32, u32, u32)]) {
    let dir = format!("sys/class/kfd/kfd/topology/nodes/{node}");
    let text = format!("cpu_cores_count 0\nvendor_id 4098\nlocation_id {location}\ndomain 0\n");
    tree.write(&format!("{dir}/properties"), text.as_bytes());
    for (index, (to, least, most, flags)) in links.iter().enumerate() {
        let text = format!(
            "type 11\nnode_from {node}\nnode_to {to}\nweight 15\nmin_bandwidth {least}\nmax_bandwidth {most}\n\
             flags {flags}\n"
        );
        tree.write(&format!("{dir}/io_links/{index}/properties"), text.as_bytes());
    }
}

#[test]
fn xgmi_links_are_read_where_amdkfd_shows_them() {
    let tree = Tree::with_cpu("AuthenticAMD", 25);
    for slot in 1..=3 {
        tree.function(&format!("pci0000:00/0000:00:0{slot}.0"), GPU, (0x1002, 0x740f));
    }
    kfd_node(&tree, 0, 0, &[(1, 0, 0, 1)]);
    kfd_node(&tree, 1, 0x08, &[(0, 0, 0, 1), (2, 50_000, 200_000, 1), (3, 0, 0, 1)]);
    kfd_node(&tree, 2, 0x10, &[(1, 50_000, 200_000, 1 | 1 << 3), (3, 50_000, 50_000, 1 | 1 << 4)]);
    kfd_node(&tree, 3, 0x18, &[(9, 50_000, 50_000, 1), (2, 50_000, 50_000, 0)]);
    // A second partition of the first GPU says the same again.
    kfd_node(&tree, 4, 0x08, &[(2, 50_000, 200_000, 1)]);
    let machine = read(&tree);
    let [a, b, c] = ["00:01.0", "00:02.0", "00:03.0"].map(|address| at(&machine, address));
    assert_eq!(machine.path(a, b).label().to_string(), "XGMI4");
    assert_eq!(machine.path(a, b).bytes_per_s(), Some(200_000_000_000));
    assert_eq!(machine.link_between(a, b).and_then(|link| link.atomics), Some(true));
    assert_eq!(machine.link_between(b, a).and_then(|link| link.atomics), Some(false));
    let around = machine.link_between(a, c).expect("through the second GPU");
    assert_eq!((around.count, around.bytes_per_s), (1, None));
    assert_eq!(machine.path(b, c).label(), Label::Phb, "a link that peers cannot use");
    assert_eq!(machine.path(c, b).label(), Label::Phb, "a link that is off");
    assert_eq!(machine.links().len(), 3);
}

/// The device at an address is swapped again and again. Whatever is read is one device, or none.
#[test]
fn half_of_a_device_is_never_kept() {
    const DEVICES: u16 = 60;
    let tree = Tree::with_cpu("GenuineIntel", 6);
    for number in 1..=DEVICES {
        let way = format!("sys/devices/{number}/pci0000:00/0000:00:01.0");
        let text = format!("0x{number:04x}\n");
        for name in ["class", "vendor", "device"] {
            tree.write(&format!("{way}/{name}"), text.as_bytes());
        }
        tree.write(&format!("{way}/mem_info_vram_total"), format!("{number}\n").as_bytes());
        tree.write(&format!("{way}/net/eth{number}/mtu"), b"1500\n");
    }
    let devices = tree.path().join("sys/bus/pci/devices");
    std::fs::create_dir_all(&devices).expect("a directory");
    let plug = |number: u16| {
        let next = tree.path().join("next");
        symlink(format!("../../../devices/{number}/pci0000:00/0000:00:01.0"), &next).expect("a link");
        std::fs::rename(&next, devices.join("0000:00:01.0")).expect("it takes the place of the last");
    };
    plug(1);
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 2..=DEVICES {
                plug(number);
                std::thread::sleep(std::time::Duration::from_micros(50));
            }
            is_over.store(true, std::sync::atomic::Ordering::Release);
        });
        while !is_over.load(std::sync::atomic::Ordering::Acquire) {
            let machine = read(&tree);
            let Some(id) = machine.at("00:01.0".parse().unwrap()) else {
                assert!(notes(&machine).contains("it vanished while it was read"));
                continue;
            };
            let node = machine.node(id);
            let function = node.function().expect("a function");
            let number = u64::from(function.ids.expect("it says so").device);
            assert_eq!(function.vram.map(|vram| vram.total_bytes), Some(number));
            assert_eq!(node.names, [format!("eth{number}")]);
        }
    });
    assert_eq!(machine_ids(&read(&tree)), Some(DEVICES));
}

fn machine_ids(machine: &Machine) -> Option<u16> {
    let function = machine.node(machine.at("00:01.0".parse().ok()?)?).function()?;
    Some(function.ids?.device)
}

/// The first bytes of a root port's configuration space.
fn root_port(vendor: u16, device: u16) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[..2].copy_from_slice(&vendor.to_le_bytes());
    bytes[2..4].copy_from_slice(&device.to_le_bytes());
    bytes[0x06] = 1 << 4;
    bytes[0x0a..0x0c].copy_from_slice(&[0x04, 0x06]);
    bytes[0x0e] = 1;
    bytes[0x34] = 0x40;
    bytes[0x40..0x44].copy_from_slice(&[0x10, 0, 0x42, 0]);
    bytes
}

/// As the kernel asks who stands for a host bridge: the first function of its bus, if that is at 00.0 or a root port.
#[test]
fn a_root_port_that_is_the_first_on_its_bus_stands_for_its_host_bridge_wherever_it_is() {
    let tree = Tree::with_cpu("GenuineIntel", 6);
    // A Skylake-E: no 00.0, and root ports that are on the kernel's list.
    let dir = tree.function("pci0000:3a/0000:3a:02.0", BRIDGE, (0x8086, 0x2032));
    tree.write(&format!("{dir}/config"), &root_port(0x8086, 0x2032));
    tree.function("pci0000:3a/0000:3a:02.0/0000:3b:00.0", GPU, (1, 1));
    // Another whose first function is something else.
    tree.function("pci0000:80/0000:80:01.0", 0x088000, (0x8086, 0x2025));
    let dir = tree.function("pci0000:80/0000:80:02.0", BRIDGE, (0x8086, 0x2032));
    tree.write(&format!("{dir}/config"), &root_port(0x8086, 0x2032));
    tree.function("pci0000:80/0000:80:02.0/0000:81:00.0", GPU, (1, 2));
    let machine = read(&tree);
    let ids = |address| {
        let root = machine.host_bridge_of(at(&machine, address)).expect("it hangs on one");
        match &machine.node(root).kind {
            NodeKind::HostBridge { ids, .. } => ids.map(|ids| ids.to_string()),
            _ => None,
        }
    };
    assert_eq!(ids("3b:00.0").as_deref(), Some("8086:2032"));
    assert_eq!(ids("81:00.0"), None, "the kernel takes the first or nothing");
}
