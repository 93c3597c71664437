//! Ways: what lies between two places of a machine, as far as decisions need it.
//!
//! Each place that somebody joined at has a [`Spot`]: the bridges from the root of the PCI tree down to it, and for each of them what the
//! way from there down is like. The way between two spots turns where their chains part, so it is two look-ups, however long the chains are:
//!
//! ```text
//!   spot a:   root port ─ upstream ─ downstream ─ GPU       shared = 2: they part below the upstream port
//!   spot b:   root port ─ upstream ─ downstream ─ NIC
//!                            └───────── a.from(2), b.from(2): slowest link, whether a port redirects, atomics
//! ```

use devpagemap_fence::sync::Arc;

use super::observe::Party;
use super::rules::Crossing;
use crate::topology::{CpuInfo, Function, Link, Machine, NodeId, NodeKind, PciAddress, PciIds, PortKind};

/// A machine, and what is looked up in it again and again.
#[derive(Debug)]
pub(super) struct World {
    machine: Arc<Machine>,
    cpu: CpuInfo,
}

/// Whether something holds that needs both: no if one says no, unknown if one is.
fn worst(a: Option<bool>, b: Option<bool>) -> Option<bool> {
    match (a, b) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    }
}

/// The bridges above a place, and what the way from each of them down to it is like.
#[derive(Debug)]
pub(super) struct Spot {
    node: NodeId,
    /// From the top of the PCI tree down to the function itself.
    chain: Vec<NodeId>,
    /// `from[k]`: the way from below the k-th of the chain's bridges (counted from 1; 0: from the root) down to the function.
    from: Vec<Descent>,
    /// Its host bridge.
    root: Option<NodeId>,
    root_ids: Option<PciIds>,
    socket: Option<Socket>,
    /// Where its BARs end on the bus.
    pub bar_end: Option<u64>,
    /// The address of the switch that it is below.
    pub switch: Option<PciAddress>,
    /// The function's own link.
    pub own_bytes_per_s: Option<u64>,
}

/// The CPU package, or if the source has none, the NUMA node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Socket {
    Package(NodeId),
    Numa(u32),
}

/// A way from a bridge, not counted itself, down to a function.
#[derive(Clone, Copy, Debug)]
struct Descent {
    /// The slowest link on it; `None` when one is not known.
    bytes_per_s: Option<u64>,
    redirect: Redirect,
    /// Whether all bridges on it pass atomic operations on.
    atomics: Option<bool>,
    /// How many switches are passed.
    switches: u32,
}

/// Whether ports send peer traffic up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Redirect {
    /// None does.
    No,
    /// Not known of this one, and none of the others does.
    Unknown(Option<PciAddress>),
    /// This one does.
    Yes(Option<PciAddress>),
}

impl Redirect {
    fn of(function: &Function) -> Redirect {
        match function.acs {
            None => Redirect::Unknown(function.address),
            Some(acs) if acs.redirects() => Redirect::Yes(function.address),
            Some(_) => Redirect::No,
        }
    }

    fn or(self, other: Redirect) -> Redirect {
        match (self, other) {
            (Redirect::Yes(_), _) | (_, Redirect::No) => self,
            (_, Redirect::Yes(_)) | (Redirect::No, _) => other,
            _ => self,
        }
    }
}

/// The bus between two places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// The short way, if both are below one bridge.
    pub below: Option<Below>,
    /// The way through the root.
    pub top: Top,
}

/// A way that turns at a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Below {
    pub switch: Option<PciAddress>,
    pub switch_ids: Option<PciIds>,
    pub redirect: Redirect,
    pub bytes_per_s: Option<u64>,
    pub atomics: Option<bool>,
    /// Each has at most one port between itself and the bridge.
    pub is_near: bool,
}

impl Below {
    /// Two below one switch, that is not there.
    pub fn neighbours(switch: Option<PciAddress>, bytes_per_s: Option<u64>, atomics: Option<bool>) -> Below {
        Below { switch, switch_ids: None, redirect: Redirect::No, bytes_per_s, atomics, is_near: true }
    }
}

/// A way through the root of the PCI tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Top {
    pub bytes_per_s: Option<u64>,
    pub atomics: Option<bool>,
    pub crosses_sockets: bool,
    pub exporter: Option<PciIds>,
    pub importer: Option<PciIds>,
    pub is_same: Option<bool>,
}

impl Top {
    pub fn crossing<'a>(&self, world: &'a World) -> Crossing<'a> {
        Crossing { cpu: &world.cpu, exporter: self.exporter, importer: self.importer, is_same: self.is_same }
    }
}

impl World {
    pub fn new(machine: Machine) -> World {
        World { cpu: cpu_of(&machine), machine: Arc::new(machine) }
    }

    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// The private link that carries requests of `from` to `to`.
    pub fn link(&self, from: &Spot, to: &Spot) -> Option<&Link> {
        if self.machine.links().is_empty() { None } else { self.machine.link_between(from.node, to.node) }
    }

    /// What is at an address; `None` if nothing is.
    pub fn spot(&self, address: PciAddress) -> Option<Spot> {
        let node = self.machine.at(address)?;
        let function = self.function(node)?;
        let mut chain: Vec<NodeId> =
            self.machine.upwards(node).take_while(|id| self.function(*id).is_some()).collect();
        chain.reverse();
        let root = self.machine.host_bridge_of(node);
        let root_ids = root.and_then(|root| match self.machine.node(root).kind {
            NodeKind::HostBridge { ids, .. } => ids,
            _ => None,
        });
        let switch = chain[..chain.len() - 1].iter().rev().find(|id| self.is_switch(**id));
        let package = self.machine.package_of(node).map(Socket::Package);
        Some(Spot {
            node,
            from: self.descents(&chain),
            root,
            root_ids,
            socket: package.or_else(|| self.machine.numa_of(node).map(Socket::Numa)),
            bar_end: bar_end(function),
            switch: switch.and_then(|id| self.function(*id)?.address),
            own_bytes_per_s: self.machine.link_above(node).flatten().map(|(rate, _)| rate),
            chain,
        })
    }

    /// The way between two spots, for requests of `importer` to `exporter`.
    pub fn way(&self, exporter: &Spot, importer: &Spot) -> Way {
        let pairs = exporter.chain.iter().zip(&importer.chain);
        let shared = pairs.take_while(|(one, other)| one == other).count();
        let (up, down) = (&importer.from[0], &exporter.from[0]);
        let top = Top {
            bytes_per_s: rate_of(up, down),
            atomics: worst(worst(up.atomics, down.atomics), self.completes_atomics(exporter)),
            crosses_sockets: exporter.socket.zip(importer.socket).is_some_and(|(one, other)| one != other),
            exporter: exporter.root_ids,
            importer: importer.root_ids,
            is_same: exporter.root.zip(importer.root).map(|(one, other)| one == other),
        };
        let below = shared.checked_sub(1).and_then(|last| self.below(exporter, importer, last));
        Way { below, top }
    }

    /// Whether there is the same between two parties in both worlds; not for a party that is in none.
    pub fn is_same_way(before: &World, now: &World, exporter: &Party, importer: &Party) -> bool {
        let (Party::At(exporter), Party::At(importer)) = (exporter, importer) else { return true };
        let facts = |world: &World| {
            let (exporter, importer) = (world.spot(*exporter)?, world.spot(*importer)?);
            let link = world.link(&importer, &exporter).map(|link| (link.kind, link.count, link.bytes_per_s));
            Some((world.way(&exporter, &importer), link))
        };
        facts(before).is_some_and(|facts_before| facts(now) == Some(facts_before))
    }

    /// The way that turns at the bridge that is `last` in both chains.
    fn below(&self, exporter: &Spot, importer: &Spot, last: usize) -> Option<Below> {
        let bridge = self.function(exporter.chain[last])?;
        // One of the two may be that bridge itself, and then nothing leads down to it.
        let (up, down) = (importer.from.get(last + 1)?, exporter.from.get(last + 1)?);
        Some(Below {
            switch: bridge.address,
            switch_ids: bridge.ids,
            redirect: down.redirect.or(Redirect::of(bridge)).or(up.redirect),
            bytes_per_s: rate_of(up, down),
            atomics: worst(
                worst(worst(up.atomics, down.atomics), bridge.atomics),
                self.completes_atomics(exporter),
            ),
            is_near: up.switches + down.switches == 0,
        })
    }

    fn completes_atomics(&self, spot: &Spot) -> Option<bool> {
        self.function(spot.node).and_then(|function| function.atomics)
    }

    fn function(&self, id: NodeId) -> Option<&Function> {
        self.machine.node(id).function()
    }

    fn is_switch(&self, id: NodeId) -> bool {
        matches!(self.machine.port_kind(id), Some(PortKind::Upstream | PortKind::Switch))
    }

    /// For the root, and for each bridge of a chain, the way down to the chain's end.
    fn descents(&self, chain: &[NodeId]) -> Vec<Descent> {
        let mut way =
            Descent { bytes_per_s: Some(u64::MAX), redirect: Redirect::No, atomics: Some(true), switches: 0 };
        let mut ways = Vec::with_capacity(chain.len());
        for (index, id) in chain.iter().enumerate().rev() {
            let Some(function) = self.function(*id) else { continue };
            way.redirect = way.redirect.or(Redirect::of(function));
            if let Some(link) = self.machine.link_above(*id) {
                way.bytes_per_s = way.bytes_per_s.zip(link).map(|(slowest, (rate, _))| slowest.min(rate));
            }
            if index + 1 < chain.len() {
                way.atomics = worst(way.atomics, function.atomics);
                way.switches += u32::from(self.is_switch(*id));
            }
            ways.push(way);
        }
        ways.reverse();
        ways
    }
}

/// The slowest link of a way up and down again.
fn rate_of(up: &Descent, down: &Descent) -> Option<u64> {
    let rates = up.bytes_per_s.zip(down.bytes_per_s).map(|(up, down)| up.min(down));
    rates.filter(|rate| *rate < u64::MAX)
}

impl Spot {
    /// The slowest link between the device and system memory.
    pub fn up_bytes_per_s(&self) -> Option<u64> {
        self.from[0].bytes_per_s.filter(|rate| *rate < u64::MAX)
    }
}

/// Where the BAR that shows memory ends: the largest, of those that are prefetchable if there is one.
fn bar_end(function: &Function) -> Option<u64> {
    let bars = function.bars.as_ref()?;
    let bar = bars.iter().max_by_key(|bar| (bar.prefetchable, bar.len_bytes))?;
    bar.start?.checked_add(bar.len_bytes)
}

/// The CPUs as one: what all that say something agree on.
fn cpu_of(machine: &Machine) -> CpuInfo {
    let mut packages = machine.nodes().filter_map(|(_, node)| match &node.kind {
        NodeKind::Package(cpu) if cpu.vendor.is_some() => Some(cpu),
        _ => None,
    });
    let Some(mut cpu) = packages.next().cloned() else { return CpuInfo::default() };
    for other in packages {
        cpu.vendor = cpu.vendor.filter(|vendor| other.vendor.as_ref() == Some(vendor));
        cpu.family = cpu.family.filter(|family| other.family == Some(*family));
    }
    cpu
}
