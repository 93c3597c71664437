//! The model of a machine, whatever it was read from.

use std::collections::HashMap;
use std::fmt;

use super::address::PciAddress;
use super::builder::MachineBuilder;
use super::function::{Function, PciIds, PortKind};
use super::link::Link;
use super::source::Note;

/// A node of a [`Machine`]. Good for the machine that it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(super) u32);

impl NodeId {
    /// Counted from 0, the root, in the order of [`Machine::nodes`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

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

impl CpuVendor {
    /// From the name that the CPU gives itself.
    pub fn from_name(name: &str) -> CpuVendor {
        match name {
            "GenuineIntel" => CpuVendor::Intel,
            "AuthenticAMD" => CpuVendor::Amd,
            other => CpuVendor::Other(other.to_string()),
        }
    }
}

impl fmt::Display for CpuVendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CpuVendor::Intel => f.write_str("Intel"),
            CpuVendor::Amd => f.write_str("AMD"),
            CpuVendor::Other(name) => f.write_str(name),
        }
    }
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

/// The bus at the root of a PCI tree. It is written as the system names its directory, `pci0000:3a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootBus {
    /// The domain, or segment.
    pub domain: u32,
    /// The bus.
    pub bus: u8,
}

impl fmt::Display for RootBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pci{:04x}:{:02x}", self.domain, self.bus)
    }
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
    /// A root of a PCI tree.
    HostBridge {
        /// Its bus, when known.
        bus: Option<RootBus>,
        /// The chip at device 00.0 of its bus. Where a source leaves it out, the builder takes it from the function there.
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

impl Node {
    /// The PCI function that it is, if it is one: a bridge, or an end point.
    pub fn function(&self) -> Option<&Function> {
        match &self.kind {
            NodeKind::Bridge(function) | NodeKind::Function(function) => Some(function),
            _ => None,
        }
    }
}

/// A machine. Immutable: a change is a new machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    pub(super) nodes: Vec<Node>,
    /// Of each node, how far below the root it is.
    pub(super) depths: Vec<u16>,
    /// Of each node, what is directly below it, in the order in which it was added.
    pub(super) children: Vec<Vec<NodeId>>,
    /// Of each node, what kind of port it is, as it says or by counting.
    pub(super) ports: Vec<Option<PortKind>>,
    pub(super) numa_count: usize,
    pub(super) package_count: usize,
    /// Sorted by ends, then kind.
    pub(super) links: Vec<Link>,
    pub(super) by_address: HashMap<PciAddress, NodeId>,
    pub(super) notes: Vec<Note>,
}

impl Machine {
    /// Begins a machine.
    pub fn builder() -> MachineBuilder {
        MachineBuilder::new()
    }

    /// The root.
    pub fn root(&self) -> NodeId {
        NodeId(0)
    }

    /// A part.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// All parts, each after what it is part of.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(index, node)| (NodeId(index as u32), node))
    }

    /// What is directly below a part.
    pub fn children(&self, id: NodeId) -> &[NodeId] {
        &self.children[id.index()]
    }

    /// How far below the root a part is.
    pub fn depth(&self, id: NodeId) -> usize {
        usize::from(self.depths[id.index()])
    }

    /// All private links, sorted by their ends.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// The private links that go out from a node.
    pub fn links_from(&self, from: NodeId) -> &[Link] {
        let begin = self.links.partition_point(|link| link.from < from);
        let len = self.links[begin..].partition_point(|link| link.from == from);
        &self.links[begin..begin + len]
    }

    /// The private link that carries `from`'s requests to `to`; of several kinds, the fastest.
    pub fn link_between(&self, from: NodeId, to: NodeId) -> Option<&Link> {
        let links = self.links_from(from).iter().filter(|link| link.to == to);
        links.max_by_key(|link| (link.bytes_per_s, link.count))
    }

    /// What the reader left out, and went on.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// The function at an address.
    pub fn at(&self, address: PciAddress) -> Option<NodeId> {
        self.by_address.get(&address).copied()
    }

    /// What the system calls `name`. A name may be given twice.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = NodeId> + 'a {
        let has = move |node: &Node| node.names.iter().any(|own| own == name);
        self.nodes().filter(move |(_, node)| has(node)).map(|(id, _)| id)
    }

    /// `id` and everything above it, innermost first.
    pub fn upwards(&self, id: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        std::iter::successors(Some(id), |id| self.node(*id).parent)
    }

    /// The root of the PCI tree that a node is in.
    pub fn host_bridge_of(&self, id: NodeId) -> Option<NodeId> {
        self.upwards(id).find(|id| matches!(self.node(*id).kind, NodeKind::HostBridge { .. }))
    }

    /// The CPU package that a node is part of, when the source says so.
    pub fn package_of(&self, id: NodeId) -> Option<NodeId> {
        self.upwards(id).find(|id| matches!(self.node(*id).kind, NodeKind::Package(_)))
    }

    /// The NUMA node that a node is in or near: where it is in the tree, else what it or a bridge above it says.
    pub fn numa_of(&self, id: NodeId) -> Option<u32> {
        let in_tree = self.upwards(id).find_map(|id| match self.node(id).kind {
            NodeKind::Numa(number) => Some(number),
            _ => None,
        });
        let said =
            || self.upwards(id).find_map(|id| self.node(id).function().and_then(|function| function.numa));
        in_tree.or_else(said)
    }

    /// The CPU that a node is near: of its package, or of any when all packages are alike.
    pub fn cpu_of(&self, id: NodeId) -> Option<&CpuInfo> {
        let info = |id| match &self.node(id).kind {
            NodeKind::Package(info) => Some(info),
            _ => None,
        };
        if let Some(package) = self.package_of(id) {
            return info(package);
        }
        let mut all = self.nodes().filter_map(|(id, _)| info(id));
        let first = all.next()?;
        all.all(|other| other == first).then_some(first)
    }
}
