//! Machines with a few GPUs and network cards.

use devpagemap::topology::{
    Acs, CpuInfo, CpuVendor, Function, Link, LinkKind, Machine, MachineBuilder, NodeId, NodeKind, PciAddress,
    PciIds, PciLink, Place, PortKind, RootBus,
};

pub const GPU: &str = "0000:03:00.0";
/// Below the switch of [`GPU`].
pub const NEAR: &str = "0000:04:00.0";
/// Below another host bridge, which nobody knows.
pub const FAR: &str = "0000:41:00.0";

pub fn at(address: &str) -> PciAddress {
    address.parse().expect("an address")
}

fn add(builder: &mut MachineBuilder, parent: NodeId, kind: NodeKind) -> NodeId {
    builder.add(parent, kind, Vec::new(), &Place::file("a test")).expect("a part that can be")
}

fn function(address: &str, port: Option<PortKind>, redirects: bool) -> Function {
    let rate = Some(16_000_000_000);
    Function {
        address: Some(at(address)),
        ids: Some(PciIds { vendor: 0x1234, device: 0x5678 }),
        link: PciLink { bytes_per_s: rate, max_bytes_per_s: rate },
        port,
        acs: Some(Acs { request_redirect: redirects, ..Acs::default() }),
        ..Function::default()
    }
}

/// Two below one switch, which redirects their traffic to the root if it is told to, and one far away; with a private link between the two if that
/// is wanted.
pub fn machine(redirects: bool, linked: bool) -> Machine {
    let mut builder = Machine::builder();
    let top = builder.root();
    let cpu = CpuInfo { vendor: Some(CpuVendor::Intel), family: Some(6), ..CpuInfo::default() };
    let package = add(&mut builder, top, NodeKind::Package(cpu));
    let host = |bus| NodeKind::HostBridge {
        bus: Some(RootBus { domain: 0, bus }),
        ids: Some(PciIds { vendor: 0x8086, device: 0x0001 }),
    };
    let bridge = |address, port| NodeKind::Bridge(function(address, Some(port), redirects));
    let device = |address| NodeKind::Function(function(address, None, false));
    let near = add(&mut builder, package, host(0));
    let root = add(&mut builder, near, bridge("0000:00:01.0", PortKind::Root));
    let switch = add(&mut builder, root, bridge("0000:01:00.0", PortKind::Upstream));
    let ports = ["0000:02:00.0", "0000:02:01.0"]
        .map(|address| add(&mut builder, switch, bridge(address, PortKind::Downstream)));
    let gpu = add(&mut builder, ports[0], device(GPU));
    let neighbour = add(&mut builder, ports[1], device(NEAR));
    let far = add(&mut builder, package, host(0x40));
    let root = add(&mut builder, far, bridge("0000:40:01.0", PortKind::Root));
    add(&mut builder, root, device(FAR));
    for (from, to) in [(gpu, neighbour), (neighbour, gpu)].into_iter().filter(|_| linked) {
        let link = Link {
            from,
            to,
            kind: LinkKind::NvLink,
            count: 4,
            bytes_per_s: Some(100_000_000_000),
            atomics: Some(true),
        };
        builder.link(link, &Place::file("a test")).expect("a link that can be");
    }
    builder.build()
}
