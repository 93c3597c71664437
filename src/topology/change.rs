//! What is different between two machines: the same one before and after, as a rule.
//!
//! Parts are recognised by what stays the same when a machine is read again: the PCI address, the root bus, the number of a
//! NUMA node, else the first name. What has none of these (a switch that a source has made up) is not compared; what is below
//! it is.

use std::collections::BTreeMap;
use std::fmt;

use super::address::PciAddress;
use super::describe::Rate;
use super::function::{Acs, Bar, Function, PciIds, Vram};
use super::link::LinkKind;
use super::machine::{Machine, NodeId, NodeKind, RootBus};
use crate::Size;

/// A part of a machine, as it is recognised in another one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// A root of a PCI tree, by its bus.
    Root(RootBus),
    /// A PCI function, by its address.
    Function(PciAddress),
    /// A NUMA node, by its number.
    Numa(u32),
    /// Something without an address, by its first name.
    Named(String),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Root(bus) => write!(f, "{bus}"),
            Part::Function(address) => write!(f, "{address}"),
            Part::Numa(number) => write!(f, "NUMA node {number}"),
            Part::Named(name) => f.write_str(name),
        }
    }
}

/// A private link, as it is recognised in another machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PrivateLink {
    /// Whose requests it carries.
    pub from: Part,
    /// Whom it reaches.
    pub to: Part,
    /// What it is.
    pub kind: LinkKind,
}

impl fmt::Display for PrivateLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {} to {}", self.kind, self.from, self.to)
    }
}

/// What a private link carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lanes {
    /// How many lanes or bricks it has.
    pub count: u32,
    /// All of them together, in one direction.
    pub bytes_per_s: Option<u64>,
    /// Whether it carries atomic operations.
    pub atomics: Option<bool>,
}

/// Something that is different.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// A part is there that was not.
    Appeared {
        /// Which.
        part: Part,
        /// What it is below, when that is known by something.
        below: Option<Part>,
    },
    /// A part is not there any more.
    Vanished {
        /// Which.
        part: Part,
    },
    /// It hangs somewhere else.
    Moved {
        /// Which.
        part: Part,
        /// What it was below.
        was: Option<Part>,
        /// What it is below.
        now: Option<Part>,
    },
    /// Another chip is at its address.
    Replaced {
        /// Which.
        part: Part,
        /// The chip that was there.
        was: Option<PciIds>,
        /// The chip that is there.
        now: Option<PciIds>,
    },
    /// Its PCI Express link runs at another rate, in bytes per second.
    Link {
        /// Whose.
        part: Part,
        /// What it carried; `None` when it was down, or not known.
        was: Option<u64>,
        /// What it carries; `None` when it is down, or not known.
        now: Option<u64>,
    },
    /// It redirects peer traffic otherwise.
    Acs {
        /// Whose.
        part: Part,
        /// What it redirected, when that was known.
        was: Option<Acs>,
        /// What it redirects, when that is known.
        now: Option<Acs>,
    },
    /// Whether it passes atomic operations on, or completes them.
    Atomics {
        /// Whose.
        part: Part,
        /// What was known.
        was: Option<bool>,
        /// What is known.
        now: Option<bool>,
    },
    /// A BAR was resized, has moved, has come or gone.
    Bar {
        /// Whose.
        part: Part,
        /// Which, from 0.
        index: u8,
        /// What it was.
        was: Option<Bar>,
        /// What it is.
        now: Option<Bar>,
    },
    /// Its own memory, or how much of it the bus sees.
    Vram {
        /// Whose.
        part: Part,
        /// What it was.
        was: Option<Vram>,
        /// What it is.
        now: Option<Vram>,
    },
    /// A private link was lost, gained, or has other lanes.
    Private {
        /// Which.
        link: PrivateLink,
        /// What it was; `None` when it was not there.
        was: Option<Lanes>,
        /// What it is; `None` when it is not there any more.
        now: Option<Lanes>,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Appeared { part, below: Some(below) } => write!(f, "{part} appeared below {below}"),
            Change::Appeared { part, below: None } => write!(f, "{part} appeared"),
            Change::Vanished { part } => write!(f, "{part} vanished"),
            Change::Moved { part, was, now } => {
                write!(f, "{part} is now below {}, and was below {}", known(now), known(was))
            }
            Change::Replaced { part, was, now } => {
                write!(f, "the chip at {part} is now {}, and was {}", known(now), known(was))
            }
            Change::Link { part, was, now } => write_link(f, part, *was, *now),
            Change::Acs { part, was, now } => {
                write!(f, "ACS of {part} is now {}, and was {}", known(now), known(was))
            }
            Change::Atomics { part, was, now } => {
                let word = |atomics: &Option<bool>| match atomics {
                    Some(true) => "possible",
                    Some(false) => "not possible",
                    None => "unknown",
                };
                write!(f, "atomic operations at {part} are now {}, and were {}", word(now), word(was))
            }
            Change::Bar { part, index, was, now } => write_bar(f, part, *index, *was, *now),
            Change::Vram { part, was, now } => {
                write!(f, "memory of {part} is now {}, and was {}", memory(now), memory(was))
            }
            Change::Private { link, was, now } => write_private(f, link, *was, *now),
        }
    }
}

fn known(what: &Option<impl fmt::Display>) -> String {
    what.as_ref().map_or("unknown".to_string(), |what| what.to_string())
}

fn memory(vram: &Option<Vram>) -> String {
    let Some(vram) = vram else { return "unknown".to_string() };
    let visible =
        vram.visible_bytes.map_or("an unknown part".to_string(), |bytes| Size::bytes(bytes).to_string());
    format!("{} ({visible} of it visible)", Size::bytes(vram.total_bytes))
}

fn write_link(f: &mut fmt::Formatter<'_>, part: &Part, was: Option<u64>, now: Option<u64>) -> fmt::Result {
    match (was.map(Rate), now.map(Rate)) {
        (Some(was), Some(now)) if now < was => write!(f, "the link of {part} is slower: {now}, not {was}"),
        (Some(was), Some(now)) => write!(f, "the link of {part} is faster: {now}, not {was}"),
        (Some(was), None) => write!(f, "the link of {part} is lost; it had {was}"),
        (None, Some(now)) => write!(f, "the link of {part} is back at {now}"),
        (None, None) => write!(f, "the link of {part} is as it was"),
    }
}

fn write_bar(
    f: &mut fmt::Formatter<'_>,
    part: &Part,
    index: u8,
    was: Option<Bar>,
    now: Option<Bar>,
) -> fmt::Result {
    let size = |bar: Bar| Size::bytes(bar.len_bytes);
    match (was, now) {
        (Some(was), Some(now)) if was.len_bytes != now.len_bytes => {
            write!(f, "BAR {index} of {part} is now {}, and was {}", size(now), size(was))
        }
        (Some(was), Some(now)) if was.start != now.start => {
            let at = |bar: Bar| bar.start.map_or("nowhere".to_string(), |start| format!("{start:#x}"));
            write!(f, "BAR {index} of {part} is now at {}, and was at {}", at(now), at(was))
        }
        (Some(_), Some(_)) => write!(f, "BAR {index} of {part} has other properties"),
        (Some(was), None) => write!(f, "BAR {index} of {part} is gone; it was {}", size(was)),
        (None, Some(now)) => write!(f, "BAR {index} of {part} is there, {}", size(now)),
        (None, None) => write!(f, "BAR {index} of {part} is as it was"),
    }
}

fn write_private(
    f: &mut fmt::Formatter<'_>,
    link: &PrivateLink,
    was: Option<Lanes>,
    now: Option<Lanes>,
) -> fmt::Result {
    let lanes = |lanes: Lanes| match lanes.bytes_per_s {
        Some(rate) => format!("x{}, {}", lanes.count, Rate(rate)),
        None => format!("x{}", lanes.count),
    };
    match (was.map(lanes), now.map(lanes)) {
        (Some(was), Some(now)) => write!(f, "{link} is now {now}, and was {was}"),
        (Some(was), None) => write!(f, "{link} is lost; it was {was}"),
        (None, Some(now)) => write!(f, "{link} is there, {now}"),
        (None, None) => write!(f, "{link} is as it was"),
    }
}

impl Machine {
    /// What is different in `newer`: what vanished or has changed, then what appeared, then private links.
    pub fn changes(&self, newer: &Machine) -> Vec<Change> {
        let (old, new) = (parts(self), parts(newer));
        let mut changes = Vec::new();
        for (part, was) in &old {
            match new.get(part) {
                None => changes.push(Change::Vanished { part: part.clone() }),
                Some(now) => compare(part, (self, *was), (newer, *now), &mut changes),
            }
        }
        for (part, now) in new.iter().filter(|(part, _)| !old.contains_key(*part)) {
            changes.push(Change::Appeared { part: part.clone(), below: part_above(newer, *now) });
        }
        changes.extend(private_changes(self, newer));
        changes
    }

    /// How a part is recognised in another machine, if it can be.
    pub fn part(&self, id: NodeId) -> Option<Part> {
        let node = self.node(id);
        let named = || node.names.first().cloned().map(Part::Named);
        match &node.kind {
            NodeKind::HostBridge { bus: Some(bus), .. } => Some(Part::Root(*bus)),
            NodeKind::Numa(number) => Some(Part::Numa(*number)),
            NodeKind::Bridge(function) | NodeKind::Function(function) => {
                function.address.map(Part::Function).or_else(named)
            }
            NodeKind::Machine | NodeKind::Package(_) | NodeKind::HostBridge { bus: None, .. } => named(),
        }
    }
}

fn parts(machine: &Machine) -> BTreeMap<Part, NodeId> {
    let mut parts = BTreeMap::new();
    for (part, id) in machine.nodes().filter_map(|(id, _)| Some((machine.part(id)?, id))) {
        parts.entry(part).or_insert(id);
    }
    parts
}

/// The innermost part above a node that can be recognised.
fn part_above(machine: &Machine, id: NodeId) -> Option<Part> {
    machine.upwards(id).skip(1).find_map(|id| machine.part(id))
}

fn compare(part: &Part, old: (&Machine, NodeId), new: (&Machine, NodeId), changes: &mut Vec<Change>) {
    let (was, now) = (part_above(old.0, old.1), part_above(new.0, new.1));
    if was != now {
        changes.push(Change::Moved { part: part.clone(), was, now });
    }
    let (was, now) = (old.0.node(old.1), new.0.node(new.1));
    match (&was.kind, &now.kind) {
        (NodeKind::HostBridge { ids: was, .. }, NodeKind::HostBridge { ids: now, .. }) if was != now => {
            changes.push(Change::Replaced { part: part.clone(), was: *was, now: *now });
        }
        _ => {
            if let (Some(was), Some(now)) = (was.function(), now.function()) {
                compare_functions(part, was, now, changes);
            }
        }
    }
}

fn compare_functions(part: &Part, was: &Function, now: &Function, changes: &mut Vec<Change>) {
    let part = || part.clone();
    if was.ids != now.ids {
        changes.push(Change::Replaced { part: part(), was: was.ids, now: now.ids });
    }
    let (before, after) = (was.link.bytes_per_s, now.link.bytes_per_s);
    if before != after {
        changes.push(Change::Link { part: part(), was: before, now: after });
    }
    if was.acs != now.acs {
        changes.push(Change::Acs { part: part(), was: was.acs, now: now.acs });
    }
    if was.atomics != now.atomics {
        changes.push(Change::Atomics { part: part(), was: was.atomics, now: now.atomics });
    }
    if was.vram != now.vram {
        changes.push(Change::Vram { part: part(), was: was.vram, now: now.vram });
    }
    let bar = |function: &Function, index| {
        function.bars.iter().flatten().find(|bar: &&Bar| bar.index == index).copied()
    };
    let highest = was.bars.iter().chain(&now.bars).flatten().map(|bar| bar.index).max();
    for index in highest.into_iter().flat_map(|highest| 0..=highest) {
        let (was, now) = (bar(was, index), bar(now, index));
        if was != now {
            changes.push(Change::Bar { part: part(), index, was, now });
        }
    }
}

fn private_changes(old: &Machine, new: &Machine) -> Vec<Change> {
    let (before, after) = (private_links(old), private_links(new));
    let gained = after.keys().filter(|link| !before.contains_key(*link));
    let all =
        before.keys().chain(gained).map(|link| (link, before.get(link).copied(), after.get(link).copied()));
    let different = all.filter(|(_, was, now)| was != now);
    different.map(|(link, was, now)| Change::Private { link: link.clone(), was, now }).collect()
}

fn private_links(machine: &Machine) -> BTreeMap<PrivateLink, Lanes> {
    let links = machine.links().iter().filter_map(|link| {
        let (from, to) = (machine.part(link.from)?, machine.part(link.to)?);
        let lanes = Lanes { count: link.count, bytes_per_s: link.bytes_per_s, atomics: link.atomics };
        Some((PrivateLink { from, to, kind: link.kind }, lanes))
    });
    links.collect()
}
