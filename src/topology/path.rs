//! The way from one device to another.
//!
//! ```text
//!          NUMA 0 ───────────────┐                    the two chains upwards are compared from the top:
//!            │                   │                    the last node that they share is where they meet
//!        host bridge         host bridge
//!            │                   │                      a to b: meets at the switch's upper port     PIX
//!        root port           root port                  a to c: meets at the NUMA node               NODE
//!            │                   │
//!      upstream port             c
//!        │        │
//!   downstream  downstream
//!        a        b
//! ```
//!
//! Ports say what they are only in their configuration space, which many sources lack. Where they do not, they are counted:
//! below a host bridge comes a root port, below that a switch's upstream port, then its downstream port, and so on.
//!
//! A link has two ends that report the same. It is read from the lower one, and from the port above when that is silent.
//! Where neither says, the rate of the whole path is unknown. Links between host bridges have no rate in any source; they
//! are not counted.

use super::function::PortKind;
use super::label::Label;
use super::link::Link;
use super::machine::{Machine, NodeId, NodeKind};

/// The way from one node to another: the bus, and a private link where there is one.
#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    /// Where it begins.
    pub from: NodeId,
    /// Where it ends.
    pub to: NodeId,
    /// The private link that carries `from`'s requests to `to`.
    pub private: Option<Link>,
    /// How far they are apart on the bus.
    pub bus_label: Label,
    /// What is between `from` and `meeting`, nearest to `from` first.
    pub up: Vec<NodeId>,
    /// The innermost node that both are below: a bridge, a host bridge, or what several host bridges share. One of the two,
    /// when the other is below it.
    pub meeting: NodeId,
    /// What is between `meeting` and `to`, nearest to `meeting` first.
    pub down: Vec<NodeId>,
    /// The rate of the slowest link on the bus, in bytes per second; `None` when one of them is not known.
    pub bus_bytes_per_s: Option<u64>,
    /// Who reports the slowest link on the bus.
    pub slowest: Option<NodeId>,
}

impl Path {
    /// How far they are apart, by the private link where there is one.
    pub fn label(&self) -> Label {
        match self.private {
            Some(Link { kind, count, .. }) => Label::Private { kind, count },
            None => self.bus_label,
        }
    }

    /// What it carries in bytes per second, by the private link where there is one.
    pub fn bytes_per_s(&self) -> Option<u64> {
        self.private.map_or(self.bus_bytes_per_s, |link| link.bytes_per_s)
    }

    /// How many steps it is through the tree: 4 below one switch. Over a private link it is 1.
    pub fn hops(&self) -> usize {
        match self.private {
            Some(_) => 1,
            None => self.bus_hops(),
        }
    }

    /// How many steps it is over the bus.
    pub fn bus_hops(&self) -> usize {
        let steps = |end: NodeId, chain: &[NodeId]| if end == self.meeting { 0 } else { chain.len() + 1 };
        steps(self.from, &self.up) + steps(self.to, &self.down)
    }

    /// Everything that traffic on the bus passes between the two ends, in order.
    pub fn between(&self) -> impl Iterator<Item = NodeId> + '_ {
        let meeting = Some(self.meeting).filter(|id| *id != self.from && *id != self.to);
        self.up.iter().copied().chain(meeting).chain(self.down.iter().copied())
    }

    /// Both ends and everything between, without where they meet: where an ACS setting would redirect.
    pub fn below_meeting(&self) -> impl Iterator<Item = NodeId> + '_ {
        let all = std::iter::once(self.from).chain(self.between()).chain(std::iter::once(self.to));
        all.filter(|id| *id != self.meeting)
    }
}

/// What a bridge must be below a parent of some kind, when it does not say what it is.
pub(super) fn port_below(parent: Option<PortKind>) -> PortKind {
    match parent {
        None => PortKind::Root,
        Some(PortKind::Upstream) => PortKind::Downstream,
        Some(PortKind::Root | PortKind::Downstream | PortKind::Switch) => PortKind::Upstream,
        Some(PortKind::ToPci) => PortKind::ToPci,
    }
}

impl Machine {
    /// The way from `from` to `to`.
    pub fn path(&self, from: NodeId, to: NodeId) -> Path {
        let meeting = self.meeting(from, to);
        let between = |end: NodeId| -> Vec<NodeId> {
            self.upwards(end).take_while(|id| *id != meeting).skip(1).collect()
        };
        let (up, mut down) = (between(from), between(to));
        let rate = self.slowest_link(from, to, meeting);
        down.reverse();
        Path {
            from,
            to,
            private: self.link_between(from, to).copied(),
            bus_label: self.bus_label(from, to, meeting),
            up,
            meeting,
            down,
            bus_bytes_per_s: rate.map(|(rate, _)| rate),
            slowest: rate.map(|(_, id)| id),
        }
    }

    /// The innermost node that both are below, or are.
    pub fn meeting(&self, a: NodeId, b: NodeId) -> NodeId {
        let (mut a, mut b) = (a, b);
        while a != b {
            let deeper = if self.depth(a) >= self.depth(b) { &mut a } else { &mut b };
            *deeper = self.node(*deeper).parent.unwrap_or(self.root());
        }
        a
    }

    /// What kind of port a bridge is: as it says, or by counting from the host bridge. `None` for what is no bridge.
    pub fn port_kind(&self, id: NodeId) -> Option<PortKind> {
        self.ports[id.index()]
    }

    fn bus_label(&self, from: NodeId, to: NodeId, meeting: NodeId) -> Label {
        if from == to {
            return Label::Same;
        }
        match self.node(meeting).kind {
            NodeKind::Bridge(_) if !self.leaves_the_tree(from, to, meeting) => {
                match self.switches(from, meeting) + self.switches(to, meeting) {
                    0 => Label::Pix,
                    _ => Label::Pxb,
                }
            }
            NodeKind::Bridge(_) | NodeKind::Function(_) | NodeKind::HostBridge { .. } => Label::Phb,
            NodeKind::Numa(_) | NodeKind::Package(_) | NodeKind::Machine => self.label_across(from, to),
        }
    }

    /// Whether a host bridge is passed below where they meet, that of a PCI domain within a device.
    fn leaves_the_tree(&self, from: NodeId, to: NodeId, meeting: NodeId) -> bool {
        let roots = |end| self.upwards(end).take_while(move |id| *id != meeting);
        roots(from).chain(roots(to)).any(|id| matches!(self.node(id).kind, NodeKind::HostBridge { .. }))
    }

    /// How many switches are passed below the one, if any, that `meeting` belongs to.
    fn switches(&self, end: NodeId, meeting: NodeId) -> usize {
        let bridges = self.upwards(end).take_while(|id| *id != meeting).skip(1);
        let is_switch = |kind| matches!(kind, Some(PortKind::Upstream | PortKind::Switch | PortKind::ToPci));
        bridges.filter(|id| is_switch(self.port_kind(*id))).count()
    }

    fn label_across(&self, from: NodeId, to: NodeId) -> Label {
        let near = |same: bool| if same { Label::Node } else { Label::Sys };
        if let (Some(a), Some(b)) = (self.package_of(from), self.package_of(to))
            && a != b
        {
            return Label::Sys;
        }
        if let (Some(a), Some(b)) = (self.numa_of(from), self.numa_of(to)) {
            return near(a == b);
        }
        match (self.numa_count, self.package_count) {
            (0 | 1, 1) | (1, 0) => Label::Node,
            _ => Label::Unknown,
        }
    }

    /// The slowest link that is passed, and who reports it; `None` when one is not known, or when there is none.
    fn slowest_link(&self, from: NodeId, to: NodeId, meeting: NodeId) -> Option<(u64, NodeId)> {
        let mut slowest: Option<(u64, NodeId)> = None;
        for end in [from, to] {
            for id in self.upwards(end).take_while(|id| *id != meeting) {
                if let Some(rate) = self.link_above(id) {
                    let rate = rate?;
                    slowest = Some(slowest.map_or(rate, |other| other.min(rate)));
                }
            }
        }
        slowest
    }

    /// The rate of the link above a node, and who reports it: `None` when no link is above it, `Some(None)` when the rate is
    /// not known.
    pub(crate) fn link_above(&self, id: NodeId) -> Option<Option<(u64, NodeId)>> {
        let function = self.node(id).function()?;
        if matches!(self.port_kind(id), Some(PortKind::Root | PortKind::Downstream)) {
            return None;
        }
        let rate_of = |id: NodeId| {
            self.node(id).function().and_then(|function| function.link.bytes_per_s).map(|rate| (rate, id))
        };
        let above = self
            .node(id)
            .parent
            .filter(|above| matches!(self.port_kind(*above), Some(PortKind::Root | PortKind::Downstream)));
        Some(function.link.bytes_per_s.map(|rate| (rate, id)).or_else(|| above.and_then(rate_of)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Function, LinkKind, MachineBuilder, PciLink, Place, pci_bytes_per_s};

    struct Sketch {
        machine: MachineBuilder,
        place: Place,
    }

    impl Sketch {
        fn new() -> Sketch {
            Sketch { machine: Machine::builder(), place: Place::file("sketch") }
        }

        fn add(&mut self, parent: NodeId, kind: NodeKind) -> NodeId {
            self.machine.add(parent, kind, Vec::new(), &self.place).unwrap()
        }

        fn root(&mut self, parent: NodeId) -> NodeId {
            self.add(parent, NodeKind::HostBridge { bus: None, ids: None })
        }

        fn bridges(&mut self, parent: NodeId, count: usize) -> NodeId {
            (0..count).fold(parent, |parent, _| self.add(parent, NodeKind::Bridge(Function::default())))
        }

        fn device(&mut self, parent: NodeId, width: u32) -> NodeId {
            let link = PciLink { bytes_per_s: pci_bytes_per_s(8_000, width), max_bytes_per_s: None };
            self.add(parent, NodeKind::Function(Function { link, ..Function::default() }))
        }
    }

    #[test]
    fn labels_are_those_of_the_legend() {
        let mut sketch = Sketch::new();
        let package = sketch.add(sketch.machine.root(), NodeKind::Package(Default::default()));
        let near = sketch.add(package, NodeKind::Numa(0));
        let far = sketch.add(package, NodeKind::Numa(1));
        let (one, other, remote) = (sketch.root(near), sketch.root(near), sketch.root(far));
        let switch = sketch.bridges(one, 2);
        let (left, right) = (sketch.bridges(switch, 1), sketch.bridges(switch, 1));
        let nested = sketch.bridges(right, 2);
        let ends = [left, right, nested, one, other, remote].map(|parent| sketch.device(parent, 16));
        let machine = sketch.machine.build();
        let labels = ends.map(|end| machine.path(ends[0], end).label());
        let expected = [Label::Same, Label::Pix, Label::Pxb, Label::Phb, Label::Node, Label::Sys];
        assert_eq!(labels, expected);
        for (end, label) in ends.iter().zip(expected) {
            assert_eq!(machine.path(*end, ends[0]).label(), label, "the other way round");
        }
    }

    #[test]
    fn a_switch_that_is_drawn_as_one_counts_as_one() {
        let mut sketch = Sketch::new();
        let root = sketch.root(sketch.machine.root());
        let whole = || NodeKind::Bridge(Function { port: Some(PortKind::Switch), ..Function::default() });
        let outer = sketch.add(root, whole());
        let inner = sketch.add(outer, whole());
        let ends = [outer, outer, inner, inner].map(|parent| sketch.device(parent, 16));
        let machine = sketch.machine.build();
        assert_eq!(machine.path(ends[0], ends[1]).label(), Label::Pix);
        assert_eq!(machine.path(ends[2], ends[3]).label(), Label::Pix);
        assert_eq!(machine.path(ends[0], ends[2]).label(), Label::Pxb);
    }

    #[test]
    fn host_bridges_of_unknown_numa_nodes_have_no_known_label() {
        let mut sketch = Sketch::new();
        let root = sketch.machine.root();
        let (one, other) = (sketch.root(root), sketch.root(root));
        let (a, b) = (sketch.device(one, 16), sketch.device(other, 16));
        sketch.add(root, NodeKind::Numa(0));
        assert_eq!(sketch.machine.so_far().path(a, b).label(), Label::Node, "there is one node only");
        sketch.add(root, NodeKind::Numa(1));
        assert_eq!(sketch.machine.build().path(a, b).label(), Label::Unknown);
    }

    #[test]
    fn a_path_is_as_fast_as_its_slowest_link() {
        let mut sketch = Sketch::new();
        let root = sketch.root(sketch.machine.root());
        let port = sketch.bridges(root, 3);
        let narrow = sketch.device(port, 4);
        let wide = sketch.device(port, 16);
        let mute = sketch.device(port, 0);
        let machine = sketch.machine.build();
        let path = machine.path(wide, narrow);
        assert_eq!((path.bytes_per_s(), path.slowest), (pci_bytes_per_s(8_000, 4), Some(narrow)));
        assert_eq!(machine.path(wide, mute).bytes_per_s(), None, "one link says nothing");
    }

    #[test]
    fn the_port_above_speaks_for_a_device_that_says_nothing() {
        let mut sketch = Sketch::new();
        let root = sketch.root(sketch.machine.root());
        let link = PciLink { bytes_per_s: pci_bytes_per_s(8_000, 8), max_bytes_per_s: None };
        let port = sketch.add(root, NodeKind::Bridge(Function { link, ..Function::default() }));
        let mute = sketch.device(port, 0);
        let machine = sketch.machine.build();
        let path = machine.path(mute, root);
        assert_eq!((path.bytes_per_s(), path.slowest), (pci_bytes_per_s(8_000, 8), Some(port)));
    }

    #[test]
    fn a_private_link_goes_before_the_bus_in_its_direction_only() {
        let mut sketch = Sketch::new();
        let root = sketch.root(sketch.machine.root());
        let (a, b) = (sketch.device(root, 16), sketch.device(root, 16));
        let link =
            Link { from: a, to: b, kind: LinkKind::NvLink, count: 2, bytes_per_s: Some(40), atomics: None };
        sketch.machine.link(link, &sketch.place).unwrap();
        sketch.machine.link(link, &sketch.place).unwrap();
        let machine = sketch.machine.build();
        let there = machine.path(a, b);
        assert_eq!((there.label().to_string(), there.bytes_per_s()), ("NV4".to_string(), Some(80)));
        assert_eq!((there.bus_label, there.hops(), there.bus_hops()), (Label::Phb, 1, 2));
        assert_eq!(machine.path(b, a).label(), Label::Phb);
    }

    #[test]
    fn a_path_names_every_bridge_in_order() {
        let mut sketch = Sketch::new();
        let root = sketch.root(sketch.machine.root());
        let top = sketch.bridges(root, 2);
        let (left, right) = (sketch.bridges(top, 1), sketch.bridges(top, 3));
        let (a, b) = (sketch.device(left, 16), sketch.device(right, 16));
        let machine = sketch.machine.build();
        let path = machine.path(a, b);
        let above_right: Vec<NodeId> = machine.upwards(b).skip(1).take(3).collect();
        assert_eq!((path.up.clone(), path.meeting), (vec![left], top));
        assert_eq!(path.down, above_right.iter().rev().copied().collect::<Vec<_>>());
        assert_eq!(path.between().count(), 5);
        assert_eq!(path.below_meeting().count(), 6);
        assert_eq!(path.hops(), 6);
        assert_eq!(machine.path(a, a).hops(), 0);
    }
}
