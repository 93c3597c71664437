//! Building a machine: what cannot be is refused where it was said.
//!
//! A node is added below one that is there already, so there are no cycles, and nothing is ever visited by recursion.

use std::collections::HashMap;

use super::address::PciAddress;
use super::function::{Function, PortKind};
use super::link::Link;
use super::machine::{Machine, Node, NodeId, NodeKind};
use super::path::port_below;
use super::source::{Note, Place, TopologyError};

/// How deep a machine can be. The deepest real ones have about a dozen levels.
pub const MAX_DEPTH: usize = 1_000;

/// A machine in the making.
#[derive(Debug)]
pub struct MachineBuilder {
    machine: Machine,
}

impl MachineBuilder {
    pub(super) fn new() -> MachineBuilder {
        let root = Node { parent: None, kind: NodeKind::Machine, names: Vec::new() };
        let machine = Machine {
            nodes: vec![root],
            depths: vec![0],
            ports: vec![None],
            numa_count: 0,
            package_count: 0,
            children: vec![Vec::new()],
            links: Vec::new(),
            by_address: HashMap::new(),
            notes: Vec::new(),
        };
        MachineBuilder { machine }
    }

    /// The machine as far as it is there, to look things up in. Its links are not sorted yet.
    pub fn so_far(&self) -> &Machine {
        &self.machine
    }

    /// The root.
    pub fn root(&self) -> NodeId {
        NodeId(0)
    }

    /// Adds a part below `parent`.
    ///
    /// # Errors
    /// At `place`, when there is no such parent, when nothing of this kind can be below it, when it would be deeper than
    /// [`MAX_DEPTH`], when there is something at its PCI address or root bus, or a NUMA node of its number, already, and
    /// for memory of which more is visible than there is.
    pub fn add(
        &mut self,
        parent: NodeId,
        kind: NodeKind,
        names: Vec<String>,
        place: &Place,
    ) -> Result<NodeId, TopologyError> {
        let id = NodeId(self.machine.nodes.len() as u32);
        self.check(parent, &kind).map_err(|reason| place.error(reason))?;
        if let NodeKind::Bridge(Function { address: Some(address), .. })
        | NodeKind::Function(Function { address: Some(address), .. }) = &kind
        {
            self.machine.by_address.insert(*address, id);
        }
        let depth = self.machine.depths[parent.index()] + 1;
        let port = match &kind {
            NodeKind::Bridge(function) => {
                Some(function.port.unwrap_or(port_below(self.machine.port_kind(parent))))
            }
            _ => None,
        };
        self.machine.ports.push(port);
        self.machine.numa_count += usize::from(matches!(kind, NodeKind::Numa(_)));
        self.machine.package_count += usize::from(matches!(kind, NodeKind::Package(_)));
        self.machine.nodes.push(Node { parent: Some(parent), kind, names });
        self.machine.depths.push(depth);
        self.machine.children.push(Vec::new());
        self.machine.children[parent.index()].push(id);
        Ok(id)
    }

    fn check(&self, parent: NodeId, kind: &NodeKind) -> Result<(), String> {
        let machine = &self.machine;
        let Some(above) = machine.nodes.get(parent.index()) else {
            return Err("a part below something that is not there".to_string());
        };
        if machine.depth(parent) >= MAX_DEPTH {
            return Err(format!("a part more than {MAX_DEPTH} levels below the machine"));
        }
        if !can_be_below(kind, &above.kind) {
            return Err(format!("{} below {}", what(kind), what(&above.kind)));
        }
        match kind {
            NodeKind::Bridge(function) | NodeKind::Function(function) => self.check_function(function),
            NodeKind::HostBridge { bus: Some(bus), .. } => {
                let same = |node: &Node| matches!(node.kind, NodeKind::HostBridge { bus: Some(own), .. } if own == *bus);
                self.refuse_twice(same, || bus.to_string())
            }
            NodeKind::Numa(number) => {
                let same = |node: &Node| node.kind == *kind;
                self.refuse_twice(same, || format!("NUMA node {number}"))
            }
            NodeKind::Machine | NodeKind::Package(_) | NodeKind::HostBridge { bus: None, .. } => Ok(()),
        }
    }

    fn check_function(&self, function: &Function) -> Result<(), String> {
        if let Some(address) = function.address
            && self.machine.at(address).is_some()
        {
            return Err(format!("{address} is there twice"));
        }
        match function.vram {
            Some(vram) if vram.visible_bytes.is_some_and(|visible| visible > vram.total_bytes) => {
                Err(format!(
                    "{} bytes of {} bytes of memory are visible",
                    vram.visible_bytes.unwrap_or_default(),
                    vram.total_bytes
                ))
            }
            _ => Ok(()),
        }
    }

    /// Roots and NUMA nodes are few, so they are found by looking.
    fn refuse_twice(&self, same: impl Fn(&Node) -> bool, name: impl Fn() -> String) -> Result<(), String> {
        match self.machine.nodes.iter().any(same) {
            true => Err(format!("{} is there twice", name())),
            false => Ok(()),
        }
    }

    /// Adds a private link in one direction. Said again for the same two ends and kind, it is more lanes of one link.
    ///
    /// # Errors
    /// At `place`, for one whose ends are not there, or are the machine, or are the same, and for one of no lanes or too
    /// many.
    pub fn link(&mut self, link: Link, place: &Place) -> Result<(), TopologyError> {
        let count = self.machine.nodes.len() as u32;
        if [link.from, link.to].iter().any(|end| !(1..count).contains(&end.0)) {
            return Err(place.error("a link to something that is no device"));
        }
        if link.from == link.to {
            return Err(place.error("a link from a device to itself"));
        }
        if link.count == 0 {
            return Err(place.error("a link of 0 lanes"));
        }
        let same = |other: &&mut Link| (other.from, other.to, other.kind) == (link.from, link.to, link.kind);
        match self.machine.links.iter_mut().find(same) {
            None => self.machine.links.push(link),
            Some(other) => {
                let lanes = other.count.checked_add(link.count);
                other.count =
                    lanes.ok_or_else(|| place.error(format!("a link of more than {} lanes", u32::MAX)))?;
                let rates = other.bytes_per_s.zip(link.bytes_per_s);
                other.bytes_per_s = rates.map(|(one, more)| one.saturating_add(more));
                other.atomics = if other.atomics == link.atomics { link.atomics } else { None };
            }
        }
        Ok(())
    }

    /// Says that something was left out.
    pub fn note(&mut self, place: &Place, text: impl Into<String>) {
        self.machine.notes.push(Note { place: place.clone(), text: text.into() });
    }

    /// The machine.
    pub fn build(mut self) -> Machine {
        self.machine.links.sort_by_key(|link| (link.from, link.to, link.kind));
        self.name_host_bridges();
        self.machine
    }

    /// A host bridge without ids is known by the function at device 00.0 of its bus, be it a root port. Where its bus is
    /// not known, nothing but a root port is sure to be on it.
    fn name_host_bridges(&mut self) {
        for index in 0..self.machine.nodes.len() {
            let bus = match self.machine.nodes[index].kind {
                NodeKind::HostBridge { bus, ids: None } => bus,
                _ => continue,
            };
            let on_bus = |id: NodeId, address: PciAddress| match bus {
                Some(bus) => (bus.domain, bus.bus) == (address.domain, address.bus),
                None => self.machine.port_kind(id) == Some(PortKind::Root),
            };
            let first = self.machine.children[index].iter().find_map(|id| {
                let function = self.machine.node(*id).function()?;
                let address =
                    function.address.filter(|address| (address.device, address.function) == (0, 0))?;
                function.ids.filter(|_| on_bus(*id, address))
            });
            if let (Some(found), NodeKind::HostBridge { ids, .. }) =
                (first, &mut self.machine.nodes[index].kind)
            {
                *ids = Some(found);
            }
        }
    }
}

fn can_be_below(kind: &NodeKind, parent: &NodeKind) -> bool {
    use NodeKind::{Bridge, Function, HostBridge, Numa, Package};
    match kind {
        NodeKind::Machine => false,
        Package(_) => matches!(parent, NodeKind::Machine | Numa(_)),
        Numa(_) => matches!(parent, NodeKind::Machine | Package(_) | Numa(_)),
        // Below a function: a controller that opens a PCI domain of its own, such as Intel's VMD.
        HostBridge { .. } => matches!(parent, NodeKind::Machine | Package(_) | Numa(_) | Function(_)),
        Bridge(_) | Function(_) => matches!(parent, HostBridge { .. } | Bridge(_)),
    }
}

fn what(kind: &NodeKind) -> &'static str {
    match kind {
        NodeKind::Machine => "a machine",
        NodeKind::Package(_) => "a CPU package",
        NodeKind::Numa(_) => "a NUMA node",
        NodeKind::HostBridge { .. } => "a host bridge",
        NodeKind::Bridge(_) => "a PCI bridge",
        NodeKind::Function(_) => "a PCI device",
    }
}
