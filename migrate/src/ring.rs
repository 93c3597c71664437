//! The staging ring: a piece of system memory through which bytes go that no engine carries all the way.
//!
//! A move that no single engine can do is cut into *fragments*. One engine copies a fragment into a slot of the ring
//! (the first *leg*), another from there to where it belongs (the second), while the first is at work on the next slot.
//! So both engines are busy, and the move costs a few slots of memory instead of a copy of all of it.
//!
//! ```text
//!    VRAM                     the ring, in system memory                   system memory
//!   [0|1|2|3|4|5|6|7]  fill   [ slot 0 | slot 1 | slot 2 | slot 3 ] empty  [0|1| | | | | | ]
//!          `------------------► 4       5 (in)   2 (out)  3  ----------------------^
//!                               full    filling  emptying full
//! ```
//!
//! A leg is a part of a move like any other: it waits for an engine that reaches both of its ends, is redone by
//! another when that one fails, hangs or dies, and by the fallback when none is left. So that nothing gets stuck:
//!
//! - who has a slot needs nothing but engines to finish, and goes before whatever has none;
//! - a slot is free again only when nothing that touches it is in flight;
//! - a way (or a peer) gets no more than its share of the slots while others wait for one;
//! - while an urgent fragment waits for a slot, what is in the ring is as urgent;
//! - a fragment that cannot be finished gives its slot back, and its bytes go the old way, from the start.
//!
//! The memory is asked for when the first such move comes. All of this is protected by the queue's lock.

use crate::address::{Addr, Extent, Space};
use crate::fragment::{FragmentTuner, Trial};
use crate::piece::Piece;
use crate::request::Urgency;
use crate::schedule::MoveId;
use crate::slots::EngineSet;
use crate::zones::{Way, Zone};
use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// Slots start at whole pages.
const SLOT_ALIGN_BYTES: u64 = 4096;

/// Who has the memory for a staging ring.
pub trait StagingMemory: Send + Sync {
    /// Gives up to `len_bytes` of contiguous system memory, all of it at offsets within `within`; what comes is used as
    /// long as the queue lives. `None` when there is none now. Called when the first move needs it, again for later
    /// moves as long as there was none. Less than a page a slot is as good as none, and is not given back.
    ///
    /// Called with none of this library's locks held at region level or further in, on the way to a fence's signal: it may
    /// not wait for a fence.
    fn take(&self, len_bytes: u64, within: Range<u64>) -> Option<Extent>;
}

/// Memory that is set aside already: what of it is within bounds.
impl StagingMemory for Extent {
    fn take(&self, len_bytes: u64, within: Range<u64>) -> Option<Extent> {
        let start = self.addr.offset().max(within.start);
        let end = self.end_offset().min(within.end).min(start.saturating_add(len_bytes));
        let is_there = self.addr.space() == Space::System && start < end;
        is_there.then(|| Extent::new(Addr::new(Space::System, start), end - start))
    }
}

/// The index of a slot.
pub(crate) type SlotIndex = usize;

/// Which part of its way a part of a move goes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leg {
    /// All of it: one engine reaches both ends.
    Whole,
    /// Into this slot.
    Fill(SlotIndex),
    /// Out of this slot.
    Empty(SlotIndex),
}

impl Leg {
    pub(crate) fn slot(self) -> Option<SlotIndex> {
        match self {
            Leg::Whole => None,
            Leg::Fill(slot) | Leg::Empty(slot) => Some(slot),
        }
    }
}

/// Who competes for slots: those who share their engines share their slots.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// All moves that go this way.
    Way(Way),
    /// A pull from another device.
    Pull(MoveId),
}

/// A byte range of a move that has a slot.
#[derive(Clone, Debug)]
pub(crate) struct Fragment {
    pub(crate) id: MoveId,
    pub(crate) flow: Flow,
    pub(crate) offset_bytes: u64,
    pub(crate) len_bytes: u64,
    /// From its source to its destination, as if it went there directly.
    pub(crate) pieces: Vec<Piece>,
    /// The engines that had failed on it before.
    pub(crate) tried: EngineSet,
    /// Those of them that only could not reach its addresses.
    pub(crate) beyond: EngineSet,
    pub(crate) trial: Trial,
}

/// Whether there is memory.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Supply {
    /// Nobody has needed it.
    Unasked,
    /// Some thread is asking.
    Asking,
    /// There was none; the next move may ask again.
    Refused,
    /// The first slot begins here.
    Here(Extent),
}

/// What is asked of a [`StagingMemory`].
pub(crate) struct Wish {
    pub(crate) memory: Arc<dyn StagingMemory>,
    pub(crate) len_bytes: u64,
    /// The zones that would do, the best one first.
    pub(crate) within: Vec<(Zone, Range<u64>)>,
}

impl Wish {
    /// Asks for memory in one zone after the other.
    pub(crate) fn ask(self) -> Option<(Zone, Extent)> {
        let Wish { memory, len_bytes, within } = self;
        let take = |(zone, range): (Zone, Range<u64>)| {
            let extent = memory.take(len_bytes, range.clone())?;
            let is_inside = extent.addr.space() == Space::System
                && extent.addr.offset() >= range.start
                && extent.end_offset() <= range.end;
            is_inside.then_some((zone, extent))
        };
        within.into_iter().find_map(take)
    }
}

/// The ring of one queue.
pub(crate) struct Ring {
    memory: Option<Arc<dyn StagingMemory>>,
    /// Zones of system memory where it is of use, the best one first.
    zones: Vec<(Zone, Range<u64>)>,
    /// Where it is, or would be.
    zone: Option<Zone>,
    supply: Supply,
    slots: Vec<Option<Fragment>>,
    /// The slots without a fragment, in the order in which they were left.
    pub(crate) free: VecDeque<SlotIndex>,
    pub(crate) tuner: FragmentTuner,
    /// Pulls that have a fragment to be taken.
    pulls: [BTreeSet<MoveId>; Urgency::ALL.len()],
}

impl Ring {
    /// A ring of so many slots; without memory there never is one.
    pub(crate) fn new(memory: Option<Arc<dyn StagingMemory>>, slots: usize) -> Ring {
        Ring {
            memory,
            zones: Vec::new(),
            zone: None,
            supply: Supply::Unasked,
            slots: vec![None; slots],
            free: (0..slots).collect(),
            tuner: FragmentTuner::new(),
            pulls: Default::default(),
        }
    }

    /// Notes where it is of use.
    pub(crate) fn set_zones(&mut self, zones: Vec<(Zone, Range<u64>)>) {
        self.zone = zones.first().map(|(zone, _)| *zone).filter(|_| self.memory.is_some());
        self.zones = zones;
    }

    /// The zone that fragments go through; `None` while there is no ring and none to be had.
    pub(crate) fn zone(&self) -> Option<Zone> {
        self.zone.filter(|_| self.supply != Supply::Refused)
    }

    pub(crate) fn extent(&self) -> Option<Extent> {
        match self.supply {
            Supply::Here(extent) => Some(extent),
            Supply::Unasked | Supply::Asking | Supply::Refused => None,
        }
    }

    /// Why there is none.
    pub(crate) fn why_none(&self) -> &'static str {
        if self.memory.is_none() {
            "the queue has no staging ring"
        } else {
            "there is no memory for a staging ring"
        }
    }

    /// Begins to ask for memory, unless there is some, or somebody is asking.
    pub(crate) fn wish(&mut self) -> Option<Wish> {
        let is_open = self.supply == Supply::Unasked && !self.zones.is_empty();
        let memory = self.memory.clone().filter(|_| is_open)?;
        self.supply = Supply::Asking;
        let len_bytes = FragmentTuner::MAX_BYTES * self.slots.len() as u64;
        Some(Wish { memory, len_bytes, within: self.zones.clone() })
    }

    pub(crate) fn is_asking(&self) -> bool {
        self.supply == Supply::Asking
    }

    /// Notes what came of a wish.
    pub(crate) fn supplied(&mut self, found: Option<(Zone, Extent)>) {
        let slots = self.slots.len() as u64;
        let fits = |extent: &Extent| extent.len_bytes / slots >= SLOT_ALIGN_BYTES;
        let Some((zone, extent)) = found.filter(|(_, extent)| fits(extent)) else {
            self.supply = Supply::Refused;
            return;
        };
        self.zone = Some(zone);
        self.supply = Supply::Here(extent);
        self.tuner.limit_to(self.slot_bytes());
    }

    /// Makes it possible to ask again; true if that changes anything.
    pub(crate) fn forget_refusal(&mut self) -> bool {
        let was_refused = self.supply == Supply::Refused;
        if was_refused {
            self.supply = Supply::Unasked;
        }
        was_refused
    }

    fn slot_bytes(&self) -> u64 {
        let bytes = self.extent().map_or(0, |extent| extent.len_bytes / self.slots.len() as u64);
        bytes / SLOT_ALIGN_BYTES * SLOT_ALIGN_BYTES
    }

    /// The offset of a slot in the ring.
    pub(crate) fn slot_offset(&self, slot: SlotIndex) -> u64 {
        slot as u64 * self.slot_bytes()
    }

    pub(crate) fn slot_at(&self, slot: SlotIndex) -> Addr {
        let extent = self.extent().expect("a slot in use has memory");
        extent.addr.add(self.slot_offset(slot))
    }

    pub(crate) fn fragment(&self, slot: SlotIndex) -> &Fragment {
        self.slots[slot].as_ref().expect("a leg has a fragment")
    }

    /// Whether a fragment could have a slot now.
    pub(crate) fn has_room(&self) -> bool {
        self.extent().is_some() && !self.free.is_empty()
    }

    /// Who has slots.
    pub(crate) fn flows(&self) -> impl Iterator<Item = Flow> {
        self.slots.iter().flatten().map(|fragment| fragment.flow)
    }

    /// Whether a flow may have another slot while `flows` flows in all want some.
    pub(crate) fn has_share(&self, flow: Flow, flows: usize) -> bool {
        let share = (self.slots.len() / flows.max(1)).max(1);
        self.flows().filter(|other| *other == flow).count() < share
    }

    /// Gives a fragment a slot; there must be [room](Self::has_room).
    pub(crate) fn occupy(&mut self, fragment: Fragment) -> SlotIndex {
        let slot = self.free.pop_front().expect("who takes a slot has seen a free one");
        self.slots[slot] = Some(fragment);
        slot
    }

    /// Frees a slot; nothing that touches it may be in flight.
    pub(crate) fn vacate(&mut self, slot: SlotIndex) -> Fragment {
        let fragment = self.slots[slot].take().expect("a leg has a fragment");
        self.free.push_back(slot);
        if self.slots.iter().all(Option::is_none) {
            self.tuner.pause();
        }
        fragment
    }

    /// As [`vacate`](Self::vacate), of a fragment that has arrived.
    pub(crate) fn arrived(&mut self, slot: SlotIndex, now: Instant) -> Fragment {
        let fragment = self.slots[slot].as_ref().expect("a leg has a fragment");
        self.tuner.arrived(fragment.trial, fragment.len_bytes, now);
        self.vacate(slot)
    }

    /// How many bytes of one piece of memory a slot takes now.
    pub(crate) fn fragment_bytes(&self) -> u64 {
        self.tuner.fragment_bytes()
    }

    pub(crate) fn add_pull(&mut self, id: MoveId, urgency: Urgency) {
        self.pulls[urgency as usize].insert(id);
    }

    pub(crate) fn remove_pull(&mut self, id: MoveId) {
        self.pulls.iter_mut().for_each(|pulls| {
            pulls.remove(&id);
        });
    }

    /// The pulls that have a fragment to be taken, oldest first.
    pub(crate) fn pulls(&self, urgency: Urgency) -> impl Iterator<Item = MoveId> {
        self.pulls[urgency as usize].iter().copied()
    }
}

/// The pieces of a fragment as one leg has them: into the slot, or out of it.
pub(crate) fn leg_pieces(pieces: &[Piece], slot_at: Addr, is_fill: bool) -> Vec<Piece> {
    let mut offset_bytes = 0;
    let mut legs: Vec<Piece> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let within = slot_at.add(offset_bytes);
        offset_bytes += piece.len_bytes;
        let leg =
            if is_fill { Piece { dst: within, ..*piece } } else { Piece { src: Some(within), ..*piece } };
        match legs.last_mut() {
            Some(last) if continues(last, &leg) => last.len_bytes += leg.len_bytes,
            _ => legs.push(leg),
        }
    }
    legs
}

/// Whether one piece goes on where the other ends, at both ends.
fn continues(last: &Piece, next: &Piece) -> bool {
    let follows = |a: Addr, b: Addr| a.space() == b.space() && a.offset() + last.len_bytes == b.offset();
    let src = match (last.src, next.src) {
        (Some(a), Some(b)) => follows(a, b),
        (None, None) => true,
        _ => false,
    };
    src && follows(last.dst, next.dst)
}
