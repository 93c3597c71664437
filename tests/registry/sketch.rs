//! Machines for tests, drawn part by part.

use devpagemap::topology::{
    Acs, Bar, CpuInfo, CpuVendor, Function, Link, LinkKind, Machine, MachineBuilder, NodeId, NodeKind,
    PciAddress, PciIds, PciLink, Place, PortKind, pci_bytes_per_s,
};

pub const OFF: Option<Acs> =
    Some(Acs { request_redirect: false, completion_redirect: false, egress_control: false });
pub const ON: Option<Acs> =
    Some(Acs { request_redirect: true, completion_redirect: true, egress_control: false });

pub const ZEN: CpuInfo = CpuInfo { vendor: Some(CpuVendor::Amd), family: Some(0x17), model: None };
pub const XEON: CpuInfo = CpuInfo { vendor: Some(CpuVendor::Intel), family: Some(6), model: None };
pub const NOBODY: CpuInfo = CpuInfo { vendor: None, family: None, model: None };

/// On no list.
pub const UNLISTED: PciIds = PciIds { vendor: 0x8086, device: 0x3420 };
/// On the kernel's list.
pub const LISTED: PciIds = PciIds { vendor: 0x8086, device: 0x09a2 };
/// On it for devices below the same one.
pub const LISTED_ALONE: PciIds = PciIds { vendor: 0x8086, device: 0x2f00 };

pub fn address(text: &str) -> PciAddress {
    text.parse().expect("an address")
}

pub struct Sketch {
    builder: MachineBuilder,
    place: Place,
    pub package: NodeId,
}

impl Sketch {
    pub fn new(cpu: CpuInfo) -> Sketch {
        let (mut builder, place) = (Machine::builder(), Place::file("sketch"));
        let root = builder.root();
        let package = builder.add(root, NodeKind::Package(cpu), Vec::new(), &place).expect("a package");
        Sketch { builder, place, package }
    }

    pub fn add(&mut self, parent: NodeId, kind: NodeKind) -> NodeId {
        self.builder.add(parent, kind, Vec::new(), &self.place).expect("a part that can be")
    }

    /// Another package, with a CPU like the first.
    pub fn package(&mut self, cpu: CpuInfo) -> NodeId {
        let root = self.builder.root();
        self.add(root, NodeKind::Package(cpu))
    }

    pub fn host(&mut self, parent: NodeId, ids: Option<PciIds>) -> NodeId {
        self.add(parent, NodeKind::HostBridge { bus: None, ids })
    }

    pub fn port(&mut self, parent: NodeId, at: &str, port: PortKind, acs: Option<Acs>) -> NodeId {
        let function = Function {
            address: Some(address(at)),
            port: Some(port),
            acs,
            link: gen4(16),
            atomics: Some(true),
            ..Function::default()
        };
        self.add(parent, NodeKind::Bridge(function))
    }

    /// A switch below a root port at `bus`:00.0, its upstream port at `bus + 1`, a downstream port for each of `devices`.
    pub fn switch(&mut self, host: NodeId, bus: u8, acs: Option<Acs>, devices: &[&str]) {
        let root = self.port(host, &format!("{bus:02x}:01.0"), PortKind::Root, OFF);
        let up = self.port(root, &format!("{:02x}:00.0", bus + 1), PortKind::Upstream, OFF);
        for (index, device) in devices.iter().enumerate() {
            let at = format!("{:02x}:{index:02x}.0", bus + 2);
            let down = self.port(up, &at, PortKind::Downstream, acs);
            self.device(down, device);
        }
    }

    /// Below a root port of its own, on a host bridge.
    pub fn slot(&mut self, host: NodeId, port: &str, device: &str) -> NodeId {
        let root = self.port(host, port, PortKind::Root, OFF);
        self.device(root, device)
    }

    pub fn device(&mut self, parent: NodeId, at: &str) -> NodeId {
        let bar = Bar {
            index: 0,
            start: Some(0x38_0000_0000),
            len_bytes: 16 << 30,
            prefetchable: true,
            sizes: None,
        };
        let function = Function {
            address: Some(address(at)),
            class: Some(0x030200),
            acs: OFF,
            link: gen4(16),
            atomics: Some(true),
            bars: Some(vec![bar]),
            ..Function::default()
        };
        self.add(parent, NodeKind::Function(function))
    }

    /// A private link, in one direction.
    pub fn link(&mut self, from: &str, to: &str, bytes_per_s: u64) {
        let at = |text| self.builder.so_far().at(address(text)).expect("it is there");
        let (from, to) = (at(from), at(to));
        let link = Link {
            from,
            to,
            kind: LinkKind::NvLink,
            count: 4,
            bytes_per_s: Some(bytes_per_s),
            atomics: Some(true),
        };
        self.builder.link(link, &self.place).expect("a link that can be");
    }

    pub fn build(self) -> Machine {
        self.builder.build()
    }
}

pub fn gen4(width: u32) -> PciLink {
    PciLink { bytes_per_s: pci_bytes_per_s(16_000, width), max_bytes_per_s: None }
}
