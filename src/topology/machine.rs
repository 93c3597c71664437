//! The model of a machine, whatever it was read from.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::address::PciAddress;

/// A node of a [`Machine`]. Good for the machine that it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

/// Where a source says something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, or what else it was read from.
    pub file: Arc<str>,
    /// The line, counted from 1; `None` when the whole file is meant.
    pub line: Option<u64>,
}

/// A source that cannot be read, or that says what cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopologyError {
    /// Where.
    pub place: Place,
    /// What is wrong there.
    pub reason: String,
}

impl fmt::Display for TopologyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place.line {
            Some(line) => write!(f, "{}:{line}: {}", self.place.file, self.reason),
            None => write!(f, "{}: {}", self.place.file, self.reason),
        }
    }
}

impl std::error::Error for TopologyError {}

/// Who made a CPU.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CpuVendor {
    /// `GenuineIntel`.
    Intel,
    /// `AuthenticAMD`.
    Amd,
    /// Somebody else, by name.
    Other(String),
}

/// What is known of a CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CpuInfo {
    /// Who made it.
    pub vendor: Option<CpuVendor>,
    /// Its family as the CPU itself counts, base and extended: Zen 2 is 0x17.
    pub family: Option<u32>,
    /// Its model, base and extended.
    pub model: Option<u32>,
}

/// Which chip a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PciIds {
    /// Its vendor.
    pub vendor: u16,
    /// The device, as its vendor counts.
    pub device: u16,
}

impl fmt::Display for PciIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.device)
    }
}

/// What a PCI Express port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortKind {
    /// Of a root complex.
    Root,
    /// The side of a switch that faces the CPU.
    Upstream,
    /// A side of a switch that faces devices.
    Downstream,
}

/// Access control services of a port, as far as they redirect peer traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Acs {
    /// Requests between peers go up to the root first.
    pub request_redirect: bool,
    /// Completions do.
    pub completion_redirect: bool,
    /// Requests are checked against where they may go.
    pub egress_control: bool,
}

impl Acs {
    /// Whether traffic between peers below this port does not take the short way.
    pub fn redirects(&self) -> bool {
        self.request_redirect || self.completion_redirect || self.egress_control
    }
}

/// The link between a function and the port above it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PciLink {
    /// Bytes per second in one direction, as the link is trained now.
    pub bytes_per_s: Option<u64>,
    /// As it could be at best.
    pub max_bytes_per_s: Option<u64>,
}

/// A base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Which, from 0.
    pub index: u8,
    /// Where it begins on the bus; `None` when that is not known.
    pub start: Option<u64>,
    /// How long it is.
    pub len_bytes: u64,
    /// Whether reading has no side effects.
    pub prefetchable: bool,
}

/// A PCI function: a bridge, or what is at the end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Function {
    /// `None` for one that a source has made up.
    pub address: Option<PciAddress>,
    /// Base class, sub-class and interface, as in `0x030200`.
    pub class: Option<u32>,
    /// Which chip it is.
    pub ids: Option<PciIds>,
    /// The link to the port above.
    pub link: PciLink,
    /// What kind of port it is, if it is one.
    pub port: Option<PortKind>,
    /// `None` when it is not known whether it redirects. A port without the capability redirects nothing.
    pub acs: Option<Acs>,
    /// `None` when they are not known.
    pub bars: Option<Vec<Bar>>,
    /// Whether it passes atomic operations on, or completes them.
    pub atomics: Option<bool>,
    /// The NUMA node that it says it is near.
    pub numa: Option<u32>,
    /// Size of its own memory, and how much of that the bus sees; in bytes.
    pub vram: Option<(u64, u64)>,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeKind {
    /// The root.
    Machine,
    /// A CPU package.
    Package(CpuInfo),
    /// A NUMA node, by its number.
    Numa(u32),
    /// A root of the PCI tree.
    HostBridge {
        /// The chip at function 00.0 of its root bus, when known.
        ids: Option<PciIds>,
    },
    /// A PCI bridge.
    Bridge(Function),
    /// An end point.
    Function(Function),
}

/// A part of a machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it is part of, or below; `None` for the machine.
    pub parent: Option<NodeId>,
    /// What it is.
    pub kind: NodeKind,
    /// What the system calls it, such as `mlx5_0`.
    pub names: Vec<String>,
}

/// What a private link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkKind {
    /// NVIDIA's.
    NvLink,
    /// AMD's.
    Xgmi,
    /// Another one.
    Other,
}

/// A private link, in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whose requests it carries.
    pub from: NodeId,
    /// Whom it reaches.
    pub to: NodeId,
    /// What it is.
    pub kind: LinkKind,
    /// How many lanes or bricks it has; at least 1.
    pub count: u32,
    /// All of them together.
    pub bytes_per_s: Option<u64>,
    /// Whether it carries atomic operations.
    pub atomics: Option<bool>,
}

/// A machine. Immutable: a change is a new machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    nodes: Vec<Node>,
    links: Vec<Link>,
    by_address: HashMap<PciAddress, NodeId>,
}

impl Machine {
    /// Begins a machine.
    pub fn builder() -> MachineBuilder {
        let root = Node { parent: None, kind: NodeKind::Machine, names: Vec::new() };
        let machine = Machine { nodes: vec![root], links: Vec::new(), by_address: HashMap::new() };
        MachineBuilder { machine }
    }

    /// The root.
    pub fn root(&self) -> NodeId {
        NodeId(0)
    }

    /// A part.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// All parts, each after what it is part of.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(index, node)| (NodeId(index as u32), node))
    }

    /// All private links.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// The function at an address.
    pub fn at(&self, address: PciAddress) -> Option<NodeId> {
        self.by_address.get(&address).copied()
    }

    /// `id` and everything above it, innermost first.
    pub fn upwards(&self, id: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        std::iter::successors(Some(id), |id| self.node(*id).parent)
    }
}

/// A machine in the making. What cannot be is refused where it was said.
#[derive(Debug)]
pub struct MachineBuilder {
    machine: Machine,
}

impl MachineBuilder {
    /// The root.
    pub fn root(&self) -> NodeId {
        NodeId(0)
    }

    /// Adds a part below `parent`.
    ///
    /// # Errors
    /// At `place`, when there is something at its PCI address already.
    pub fn add(
        &mut self,
        parent: NodeId,
        kind: NodeKind,
        names: Vec<String>,
        place: &Place,
    ) -> Result<NodeId, TopologyError> {
        let id = NodeId(self.machine.nodes.len() as u32);
        if let NodeKind::Bridge(function) | NodeKind::Function(function) = &kind
            && let Some(address) = function.address
            && self.machine.by_address.insert(address, id).is_some()
        {
            let reason = format!("{address} is there twice");
            return Err(TopologyError { place: place.clone(), reason });
        }
        self.machine.nodes.push(Node { parent: Some(parent), kind, names });
        Ok(id)
    }

    /// The function at an address, of those added so far.
    pub fn at(&self, address: PciAddress) -> Option<NodeId> {
        self.machine.at(address)
    }

    /// Adds a private link in one direction.
    ///
    /// # Errors
    /// At `place`, for one from a node to itself and one without lanes.
    pub fn link(&mut self, link: Link, place: &Place) -> Result<(), TopologyError> {
        let wrong = |reason: &str| Err(TopologyError { place: place.clone(), reason: reason.to_string() });
        if link.from == link.to {
            return wrong("a link from a device to itself");
        }
        if link.count == 0 {
            return wrong("a link of 0 lanes");
        }
        self.machine.links.push(link);
        Ok(())
    }

    /// The machine.
    pub fn build(self) -> Machine {
        self.machine
    }
}
