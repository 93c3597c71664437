//! The graph: which class was wanted while which was held, by whom, and whether that closes a circle.
//!
//! A row of bits a class says what was wanted while it was held. The declared order is part of the graph without being
//! written into it: every class with a level is followed by all that stand further in. So the order needs no thread to
//! take it first, and a class outside of it is placed by its first neighbours.
//!
//! ```text
//!            declared                    on record
//!   Tickets ─────────▶ fences ─────────▶ "driver"        a callback took "driver"
//!      ▲                                     │
//!      └─────────────── refused ─────────────┘           "driver" is held, a reservation is wanted
//! ```
//!
//! Asking for a pair that is on record is one load. A new pair takes a mutex, allocates, and happens once in the life
//! of the process.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::classes::{CAPACITY, ClassId, Classes, Position};
use super::rules::{Bid, Deed};
use super::stack::{Entry, Site};
use crate::levels::{Level, Tickets};

/// One step on the way to a pair.
#[derive(Copy, Clone)]
pub(super) struct Link {
    pub(super) class: ClassId,
    pub(super) deed: Deed,
    pub(super) site: Site,
}

/// How a pair came on record: what the thread held, outermost first, and last what it wanted.
pub(super) struct Chain {
    pub(super) thread: String,
    pub(super) links: Vec<Link>,
}

impl Chain {
    pub(super) fn of_this_thread(entries: &[Entry], bid: &Bid) -> Chain {
        let held = entries.iter().map(|held| Link { class: held.class, deed: held.deed, site: held.site });
        let wanted = Link { class: bid.class, deed: bid.deed, site: bid.site };
        Chain {
            thread: std::thread::current().name().unwrap_or("without a name").to_owned(),
            links: held.chain([wanted]).collect(),
        }
    }
}

/// One step around a circle.
pub(super) struct Step {
    pub(super) from: ClassId,
    pub(super) to: ClassId,
    /// None: by declaration.
    pub(super) chain: Option<Arc<Chain>>,
}

/// The way from what is wanted back to what is held.
pub(super) struct Circle {
    /// The index of what is held.
    pub(super) held: usize,
    pub(super) steps: Vec<Step>,
}

type Chains = BTreeMap<(u8, u8), Arc<Chain>>;

/// All pairs of the process.
pub(super) struct Graph {
    pub(super) classes: Classes,
    /// By the class that was held.
    rows: [AtomicU64; CAPACITY],
    /// The first chain of each pair; whoever adds a pair holds it.
    chains: Mutex<Chains>,
}

pub(super) static GRAPH: Graph = Graph::new();

impl Graph {
    pub(super) const fn new() -> Graph {
        Graph {
            classes: Classes::new(),
            rows: [const { AtomicU64::new(0) }; CAPACITY],
            chains: Mutex::new(BTreeMap::new()),
        }
    }

    /// Whether a pair is on record, or needs not be.
    pub(super) fn knows(&self, held: ClassId, wanted: ClassId) -> bool {
        held == wanted || self.rows[held.index()].load(Ordering::Acquire) & wanted.bit() != 0
    }

    pub(super) fn is_reservation(&self, class: ClassId) -> bool {
        self.classes.get(class).position == Position::Level(Tickets::RANK)
    }

    /// The chain that put a pair on record.
    pub(super) fn chain(&self, held: ClassId, wanted: ClassId) -> Option<Arc<Chain>> {
        self.chains.lock().unwrap_or_else(PoisonError::into_inner).get(&(held.0, wanted.0)).cloned()
    }

    /// Puts on record that `bid` is made while `entries` are held, or says which circle that would close.
    pub(super) fn learn(&self, entries: &[Entry], bid: &Bid) -> Result<(), Circle> {
        let mut chains = self.chains.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = self.declared_inner();
        for (held, entry) in entries.iter().enumerate().rev() {
            if self.knows(entry.class, bid.class) {
                continue;
            }
            if let Some(path) = self.path(bid.class, entry.class, &inner) {
                let step = |pair: &[ClassId]| {
                    let chain = chains.get(&(pair[0].0, pair[1].0)).cloned();
                    Step { from: pair[0], to: pair[1], chain }
                };
                return Err(Circle { held, steps: path.windows(2).map(step).collect() });
            }
        }
        let chain = Arc::new(Chain::of_this_thread(entries, bid));
        for entry in entries.iter().filter(|entry| !entry.repeats && entry.class != bid.class) {
            chains.entry((entry.class.0, bid.class.0)).or_insert_with(|| chain.clone());
            self.rows[entry.class.index()].fetch_or(bid.class.bit(), Ordering::Release);
        }
        Ok(())
    }

    /// For each class those that are declared to stand further in.
    fn declared_inner(&self) -> [u64; CAPACITY] {
        let mut inner = [0; CAPACITY];
        for (id, class) in self.classes.all() {
            let Some(depth) = class.position.depth() else { continue };
            let below = self.classes.all().filter(|(_, other)| other.position.depth() > Some(depth));
            inner[id.index()] = below.fold(0, |set, (other, _)| set | other.bit());
        }
        inner
    }

    /// The shortest way from one class to another, both included.
    fn path(&self, from: ClassId, to: ClassId, inner: &[u64; CAPACITY]) -> Option<Vec<ClassId>> {
        let mut came_from = [None; CAPACITY];
        let mut reached = from.bit();
        let mut frontier = vec![from];
        while reached & to.bit() == 0 {
            let mut next = Vec::new();
            for class in frontier {
                let row = self.rows[class.index()].load(Ordering::Acquire) | inner[class.index()];
                for found in members(row & !reached) {
                    came_from[found.index()] = Some(class);
                    next.push(found);
                }
                reached |= row;
            }
            if next.is_empty() {
                return None;
            }
            frontier = next;
        }
        let mut path = vec![to];
        while let Some(before) = came_from[path[path.len() - 1].index()] {
            path.push(before);
        }
        path.reverse();
        Some(path)
    }
}

/// The classes of a set.
fn members(set: u64) -> impl Iterator<Item = ClassId> {
    (0..CAPACITY as u8).map(ClassId).filter(move |class| set & class.bit() != 0)
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::super::rules::Join;
    use super::*;
    use crate::levels::{Device, MoveQueue, Region};
    use proptest::prelude::*;
    use std::panic::Location;

    fn record(graph: &Graph, held: ClassId, wanted: ClassId) {
        graph.rows[held.index()].fetch_or(wanted.bit(), Ordering::Relaxed);
    }

    fn ways(graph: &Graph, from: ClassId, to: ClassId) -> Option<usize> {
        graph.path(from, to, &graph.declared_inner()).map(|path| path.len() - 1)
    }

    #[test]
    fn a_way_is_found_over_what_is_on_record_and_what_is_declared() {
        let graph = Graph::new();
        let id = |name, position| graph.classes.id(name, position).unwrap();
        let (driver, ledger) = (id("driver", Position::Outside), id("ledger", Position::Outside));
        let region = id("vram", Position::Level(Region::RANK));
        let queue = id("queue", Position::Level(MoveQueue::RANK));
        assert_eq!(ways(&graph, region, queue), Some(1), "declared");
        assert_eq!(ways(&graph, queue, region), None);
        assert_eq!(ways(&graph, region, ledger), None);
        record(&graph, queue, ledger);
        record(&graph, driver, region);
        assert_eq!(ways(&graph, driver, ledger), Some(3), "driver, vram, queue, ledger");
        assert_eq!(ways(&graph, ledger, driver), None);
    }

    #[test]
    fn fences_are_declared_between_reservations_and_regions() {
        let graph = Graph::new();
        let id = |name, rank| graph.classes.id(name, Position::Level(rank)).unwrap();
        let device = id("device", Device::RANK);
        let reservation = id("reservation", Tickets::RANK);
        let region = id("vram", Region::RANK);
        for outer in [device, reservation, ClassId::EVICTION] {
            assert_eq!(ways(&graph, outer, ClassId::FENCE), Some(1));
            assert_eq!(ways(&graph, ClassId::FENCE, outer), None);
        }
        assert_eq!(ways(&graph, ClassId::FENCE, region), Some(1));
        assert_eq!(ways(&graph, region, ClassId::FENCE), None);
    }

    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

    /// Whether the pairs lead from one to the other.
    fn leads(pairs: &[(usize, usize)], from: usize, to: usize) -> bool {
        let mut reached = vec![from];
        let mut index = 0;
        while let Some(at) = reached.get(index).copied() {
            index += 1;
            let next = pairs.iter().filter(|(outer, _)| *outer == at).map(|(_, inner)| *inner);
            reached.extend(next.filter(|next| !reached.contains(next)).collect::<Vec<_>>());
        }
        reached.contains(&to)
    }

    proptest! {
        #[test]
        fn a_pair_is_refused_exactly_when_it_closes_a_circle_and_the_circle_is_shown(
            wishes in prop::collection::vec((0..NAMES.len(), 0..NAMES.len()), 1..40),
        ) {
            let graph = Graph::new();
            let ids = NAMES.map(|name| graph.classes.id(name, Position::Outside).unwrap());
            let mut on_record: Vec<(usize, usize)> = Vec::new();
            for (outer, inner) in wishes.into_iter().filter(|(outer, inner)| outer != inner) {
                let (site, class) = (Location::caller(), ids[inner]);
                let bid = Bid { class, join: Join::Never, deed: Deed::Take, site };
                match graph.learn(&[Entry::of(ids[outer])], &bid) {
                    Ok(()) => {
                        prop_assert!(!leads(&on_record, inner, outer), "{outer} then {inner} after {on_record:?}");
                        on_record.push((outer, inner));
                        prop_assert!(graph.knows(ids[outer], ids[inner]));
                    }
                    Err(circle) => {
                        prop_assert!(leads(&on_record, inner, outer));
                        prop_assert_eq!(circle.steps[0].from, ids[inner]);
                        prop_assert_eq!(circle.steps[circle.steps.len() - 1].to, ids[outer]);
                        prop_assert!(circle.steps.windows(2).all(|pair| pair[0].to == pair[1].from));
                        prop_assert!(circle.steps.iter().all(|step| step.chain.is_some()));
                    }
                }
            }
        }
    }
}
