//! What cannot be a machine is refused where it was said.

use devpagemap::topology::{
    Function, Link, LinkKind, MAX_DEPTH, Machine, MachineBuilder, NodeId, NodeKind, PciIds, Place, RootBus,
    TopologyError, Vram,
};

fn place() -> Place {
    Place::file("machine.xml").line(7)
}

fn root(builder: &mut MachineBuilder) -> NodeId {
    let kind = NodeKind::HostBridge { bus: None, ids: None };
    builder.add(builder.root(), kind, Vec::new(), &place()).expect("a host bridge")
}

fn function(address: &str) -> Function {
    Function { address: Some(address.parse().expect("an address")), ..Function::default() }
}

fn device(builder: &mut MachineBuilder, parent: NodeId, address: &str) -> Result<NodeId, TopologyError> {
    builder.add(parent, NodeKind::Function(function(address)), Vec::new(), &place())
}

fn link(from: NodeId, to: NodeId, count: u32) -> Link {
    Link { from, to, kind: LinkKind::NvLink, count, bytes_per_s: Some(25_000_000_000), atomics: Some(true) }
}

#[track_caller]
fn says<T: std::fmt::Debug>(result: Result<T, TopologyError>, text: &str) {
    assert_eq!(result.expect_err("it cannot be").to_string(), format!("machine.xml:7: {text}"));
}

#[test]
fn an_address_cannot_be_there_twice() {
    let mut builder = Machine::builder();
    let top = root(&mut builder);
    let first = device(&mut builder, top, "0000:3d:00.0").expect("the first");
    says(device(&mut builder, top, "3d:00.0"), "0000:3d:00.0 is there twice");
    let machine = builder.build();
    assert_eq!(machine.at("3d:00.0".parse().unwrap()), Some(first), "what was refused changed nothing");
    assert_eq!(machine.nodes().count(), 3);
}

#[test]
fn root_buses_and_numa_nodes_are_there_once() {
    let mut builder = Machine::builder();
    let (top, at) = (builder.root(), place());
    let host = || NodeKind::HostBridge { bus: Some(RootBus { domain: 0, bus: 0x3a }), ids: None };
    builder.add(top, host(), Vec::new(), &at).expect("the first");
    says(builder.add(top, host(), Vec::new(), &at), "pci0000:3a is there twice");
    builder.add(top, NodeKind::Numa(1), Vec::new(), &at).expect("the first");
    says(builder.add(top, NodeKind::Numa(1), Vec::new(), &at), "NUMA node 1 is there twice");
}

#[test]
fn nothing_hangs_on_what_cannot_bear_it() {
    let mut builder = Machine::builder();
    let (top, at) = (builder.root(), place());
    says(device(&mut builder, top, "3d:00.0"), "a PCI device below a machine");
    let host = root(&mut builder);
    let card = device(&mut builder, host, "3d:00.0").expect("a device");
    says(device(&mut builder, card, "3e:00.0"), "a PCI device below a PCI device");
    says(builder.add(host, NodeKind::Numa(0), Vec::new(), &at), "a NUMA node below a host bridge");
    says(builder.add(top, NodeKind::Machine, Vec::new(), &at), "a machine below a machine");
}

#[test]
fn a_node_of_another_machine_is_no_parent() {
    let mut other = Machine::builder();
    let foreign = (0..9).map(|_| root(&mut other)).last().expect("nine of them");
    let mut builder = Machine::builder();
    says(device(&mut builder, foreign, "3d:00.0"), "a part below something that is not there");
    let own = root(&mut builder);
    says(builder.link(link(own, foreign, 1), &place()), "a link to something that is no device");
}

#[test]
fn links_have_two_ends_and_lanes() {
    let mut builder = Machine::builder();
    let host = root(&mut builder);
    let a = device(&mut builder, host, "3d:00.0").expect("a device");
    let b = device(&mut builder, host, "3e:00.0").expect("a device");
    says(builder.link(link(a, a, 1), &place()), "a link from a device to itself");
    says(builder.link(link(a, b, 0), &place()), "a link of 0 lanes");
    says(builder.link(link(a, builder.root(), 1), &place()), "a link to something that is no device");
    builder.link(link(a, b, u32::MAX), &place()).expect("many lanes");
    says(builder.link(link(a, b, 1), &place()), "a link of more than 4294967295 lanes");
    assert_eq!(builder.build().links(), [link(a, b, u32::MAX)]);
}

#[test]
fn more_memory_cannot_be_visible_than_there_is() {
    let mut builder = Machine::builder();
    let host = root(&mut builder);
    let vram = Some(Vram { total_bytes: 10, visible_bytes: Some(11) });
    let kind = NodeKind::Function(Function { vram, ..Function::default() });
    says(builder.add(host, kind, Vec::new(), &place()), "11 bytes of 10 bytes of memory are visible");
}

#[test]
fn a_machine_is_not_bottomless() {
    let mut builder = Machine::builder();
    let bridge = || NodeKind::Bridge(Function::default());
    let mut deepest = root(&mut builder);
    for _ in 1..MAX_DEPTH {
        deepest = builder.add(deepest, bridge(), Vec::new(), &place()).expect("a real machine is shallower");
    }
    says(
        builder.add(deepest, bridge(), Vec::new(), &place()),
        "a part more than 1000 levels below the machine",
    );
    let machine = builder.build();
    assert_eq!(machine.depth(deepest), MAX_DEPTH);
    assert_eq!(machine.path(deepest, machine.root()).hops(), MAX_DEPTH);
    assert_eq!(machine.to_string().lines().count(), MAX_DEPTH + 1);
}

#[test]
fn a_root_port_at_device_0_stands_for_its_host_bridge() {
    let ids = PciIds { vendor: 0x8086, device: 0x2030 };
    let host_ids = |bus: Option<RootBus>, address: &str| {
        let mut builder = Machine::builder();
        let kind = NodeKind::HostBridge { bus, ids: None };
        let host = builder.add(builder.root(), kind, Vec::new(), &place()).expect("a host bridge");
        let port = NodeKind::Bridge(Function { ids: Some(ids), ..function(address) });
        builder.add(host, port, Vec::new(), &place()).expect("a port");
        match &builder.build().node(host).kind {
            NodeKind::HostBridge { ids, .. } => *ids,
            _ => None,
        }
    };
    let bus = RootBus { domain: 0, bus: 0x2b };
    assert_eq!(host_ids(Some(bus), "2b:00.0"), Some(ids));
    assert_eq!(host_ids(None, "2b:00.0"), Some(ids));
    assert_eq!(host_ids(Some(bus), "2b:01.0"), None, "not device 0");
    assert_eq!(host_ids(Some(bus), "2b:00.1"), None, "not function 0");
    assert_eq!(host_ids(Some(bus), "2c:00.0"), None, "not its bus");
}
