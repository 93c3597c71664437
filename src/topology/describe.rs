//! Machines and paths as people read them.
//!
//! ```text
//!   machine
//!   └─ package: Intel, family 0x6, model 0x2d
//!      └─ NUMA node 1
//!         └─ pci0000:80 [8086:3c00]
//!            └─ 0000:80:03.0 root port [8086:3c08]
//!               └─ 0000:83:00.0 NIC [15b3:1003], 4.0 GB/s: ib0, mlx4_0
//! ```
//!
//! The tree is walked with a stack of its own: a machine may be deeper than a thread's stack would bear.

use std::fmt;

use super::function::Function;
use super::machine::{Machine, NodeId, NodeKind};
use super::path::Path;

/// Bytes per second, as vendors print them: `15.8 GB/s`.
///
/// ```
/// use devpagemap::topology::Rate;
/// assert_eq!(Rate(15_753_846_153).to_string(), "15.8 GB/s");
/// assert_eq!(Rate(250_000_000).to_string(), "250 MB/s");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(pub u64);

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0..1_000_000_000 => write!(f, "{} MB/s", self.0 / 1_000_000),
            rate => write!(f, "{:.1} GB/s", rate as f64 / 1e9),
        }
    }
}

/// What a node is called: its PCI address where it has one. From [`Machine::name`].
#[derive(Clone, Copy, Debug)]
pub struct NodeName<'a> {
    machine: &'a Machine,
    id: NodeId,
}

impl fmt::Display for NodeName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = self.machine.node(self.id);
        let address = node.function().and_then(|function| function.address);
        match (&node.kind, address, node.names.first()) {
            (_, Some(address), _) => f.pad(&address.to_string()),
            (NodeKind::HostBridge { bus: Some(bus), .. }, ..) => f.pad(&bus.to_string()),
            (NodeKind::Numa(number), ..) => f.pad(&format!("NUMA node {number}")),
            (_, None, Some(name)) => f.pad(name),
            (NodeKind::Machine, ..) => f.pad("machine"),
            (NodeKind::Package(_), ..) => f.pad("package"),
            (NodeKind::HostBridge { .. }, ..) => f.pad("host bridge"),
            (NodeKind::Bridge(_), ..) => {
                let port =
                    self.machine.port_kind(self.id).map_or("bridge".to_string(), |port| port.to_string());
                f.pad(&format!("{port} without an address"))
            }
            (NodeKind::Function(_), ..) => f.pad("device without an address"),
        }
    }
}

/// A node with what is known of it, in one line. From [`Machine::describe`].
#[derive(Clone, Copy, Debug)]
pub struct NodeLine<'a> {
    machine: &'a Machine,
    id: NodeId,
}

impl fmt::Display for NodeLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (machine, node) = (self.machine, self.machine.node(self.id));
        let name = machine.name(self.id);
        write!(f, "{name}")?;
        match &node.kind {
            NodeKind::Package(info) => {
                let vendor = info.vendor.as_ref().map(|vendor| vendor.to_string());
                let family = info.family.map(|family| format!("family {family:#x}"));
                let model = info.model.map(|model| format!("model {model:#x}"));
                let known: Vec<String> = [vendor, family, model].into_iter().flatten().collect();
                write!(
                    f,
                    ": {}",
                    if known.is_empty() { "unknown CPU".to_string() } else { known.join(", ") }
                )?;
            }
            NodeKind::HostBridge { ids: Some(ids), .. } => write!(f, " [{ids}]")?,
            NodeKind::Bridge(function) => {
                let port = machine.port_kind(self.id).filter(|_| function.address.is_some());
                let port = port.map_or(String::new(), |port| format!(" {port}"));
                write!(f, "{port}{}", Facts(function))?;
            }
            NodeKind::Function(function) => write!(f, " {}{}", purpose(function), Facts(function))?,
            NodeKind::Machine | NodeKind::Numa(_) | NodeKind::HostBridge { .. } => {}
        }
        let shown = name.to_string();
        let others: Vec<&str> = node.names.iter().map(String::as_str).filter(|name| *name != shown).collect();
        if others.is_empty() { Ok(()) } else { write!(f, ": {}", others.join(", ")) }
    }
}

/// What is known of a function besides its name.
struct Facts<'a>(&'a Function);

impl fmt::Display for Facts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(ids) = self.0.ids {
            write!(f, " [{ids}]")?;
        }
        if let Some(rate) = self.0.link.bytes_per_s {
            write!(f, ", {}", Rate(rate))?;
        }
        if let Some(best) = self.0.link.max_bytes_per_s.filter(|_| self.0.link.is_degraded()) {
            write!(f, " of {}", Rate(best))?;
        }
        match self.0.acs.filter(|acs| acs.redirects()) {
            Some(acs) => write!(f, ", ACS redirects ({acs})"),
            None => Ok(()),
        }
    }
}

fn purpose(function: &Function) -> String {
    match function.class {
        _ if function.is_gpu() => "GPU".to_string(),
        _ if function.is_nic() => "NIC".to_string(),
        _ if function.is_nvme() => "NVMe".to_string(),
        Some(class) => format!("class {class:06x}"),
        None => "device".to_string(),
    }
}

/// The way from one node to another, bridge by bridge. From [`Path::describe`].
#[derive(Clone, Copy, Debug)]
pub struct PathLines<'a> {
    machine: &'a Machine,
    path: &'a Path,
}

impl fmt::Display for PathLines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PathLines { machine, path } = *self;
        let rate =
            |rate: Option<u64>| rate.map_or("bandwidth unknown".to_string(), |rate| Rate(rate).to_string());
        let (from, to) = (machine.name(path.from), machine.name(path.to));
        if let Some(link) = path.private {
            writeln!(
                f,
                "{from} to {to}: {}, {} x{}, {}",
                path.label(),
                link.kind,
                link.count,
                rate(link.bytes_per_s)
            )?;
        }
        let (label, hops) = (path.bus_label, path.bus_hops());
        write!(f, "{from} to {to}: {label}, {hops} hops, {}", rate(path.bus_bytes_per_s))?;
        if let Some(slowest) = path.slowest {
            write!(f, " (slowest: {})", machine.name(slowest))?;
        }
        let line =
            |f: &mut fmt::Formatter<'_>, way: &str, id| write!(f, "\n  {way:<5} {}", machine.describe(id));
        path.up.iter().try_for_each(|id| line(f, "up", *id))?;
        line(f, "meet", path.meeting)?;
        path.down.iter().try_for_each(|id| line(f, "down", *id))
    }
}

impl Path {
    /// The whole path as people read it: a line for each bridge on the way.
    pub fn describe<'a>(&'a self, machine: &'a Machine) -> PathLines<'a> {
        PathLines { machine, path: self }
    }
}

impl Machine {
    /// What a node is called: its PCI address where it has one, else the name that the system gives it, else what it is.
    pub fn name(&self, id: NodeId) -> NodeName<'_> {
        NodeName { machine: self, id }
    }

    /// A node with what is known of it, in one line.
    pub fn describe(&self, id: NodeId) -> NodeLine<'_> {
        NodeLine { machine: self, id }
    }

    fn is_last_child(&self, id: NodeId) -> bool {
        let siblings = self.node(id).parent.map_or(&[][..], |parent| self.children(parent));
        siblings.last() == Some(&id)
    }
}

/// The tree, a line for each part, and the private links below it.
impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = vec![self.root()];
        while let Some(id) = left.pop() {
            left.extend(self.children(id).iter().rev());
            let mut rails: Vec<&str> = Vec::new();
            for above in self.upwards(id).skip(1).filter(|above| *above != self.root()) {
                rails.push(if self.is_last_child(above) { "   " } else { "│  " });
            }
            rails.iter().rev().try_for_each(|rail| f.write_str(rail))?;
            let elbow = match (id == self.root(), self.is_last_child(id)) {
                (true, _) => "",
                (false, true) => "└─ ",
                (false, false) => "├─ ",
            };
            writeln!(f, "{elbow}{}", self.describe(id))?;
        }
        for link in self.links() {
            let rate = link.bytes_per_s.map_or(String::new(), |rate| format!(", {}", Rate(rate)));
            writeln!(
                f,
                "{} -> {}: {} x{}{rate}",
                self.name(link.from),
                self.name(link.to),
                link.kind,
                link.count
            )?;
        }
        Ok(())
    }
}
