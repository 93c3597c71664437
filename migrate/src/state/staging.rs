//! What goes through the staging ring, and how it gets there.
//!
//! ```text
//!   fresh or failed chunk --slot, first engine--> Fill --done--> waits for the second --> Empty --done--> slot free
//!   pull                  --slot, a peer------> errand --done--------^
//! ```

use super::{Candidate, Means, Offer, State, Step};
use crate::address::{Extent, ExtentList};
use crate::engine::Chunk;
use crate::ledger::Ledger;
use crate::piece::{Cursor, Operation, Piece};
use crate::request::Urgency;
use crate::ring::{Flow, Fragment, Leg, SlotIndex, Wish, leg_pieces};
use crate::schedule::MoveId;
use crate::slots::{EngineSet, EngineSlot, Part, Role, kind_of_trouble};
use crate::zones::{Way, WaySet, Zone};
use devpagemap_fence::FenceError;
use devpagemap_fence::sync::mutant;
use std::time::Instant;

impl State {
    // Who can do what.

    /// Whether somebody of this role does the way, now or once a reset is over.
    fn does(&self, role: Role, way: Way, out: EngineSet) -> bool {
        let index = self.zones.index(way);
        let does = |(engine, slot): (usize, &EngineSlot)| {
            slot.role == role && slot.has_a_future() && !out.contains(engine) && slot.reaches.contains(index)
        };
        self.engines.iter().enumerate().any(does)
    }

    /// The two legs of a way through the ring.
    pub(super) fn legs(&self, way: Way) -> Option<[Way; 2]> {
        self.ring.zone().map(|zone| legs_through(way, zone))
    }

    /// How a chunk can get where it is to go. `tried` have failed on it, `beyond` of them only could not reach its
    /// addresses, so they may still do a leg.
    fn means(&self, way: Way, tried: EngineSet, beyond: EngineSet, may_stage: bool) -> Means {
        if self.does(Role::Engine, way, tried) {
            return Means::Engine;
        }
        let legs = self.legs(way).filter(|_| may_stage);
        let out = tried.without(beyond);
        let by_engine = |leg: Way| self.does(Role::Engine, leg, out);
        if legs.is_some_and(|legs| legs.into_iter().all(by_engine)) {
            Means::Ring
        } else if self.does(Role::Fallback, way, tried) {
            Means::Fallback
        } else if legs.is_some_and(|legs| {
            legs.into_iter().all(|leg| by_engine(leg) || self.does(Role::Fallback, leg, out))
        }) {
            Means::RingWithFallback
        } else {
            Means::Nobody
        }
    }

    pub(super) fn means_of(&self, part: &Part) -> Means {
        let may_stage = part.leg == Leg::Whole && !part.unstaged;
        self.means(part.way, part.tried, part.beyond, may_stage)
    }

    /// Notes which chunks whom may be offered to; to be called when an engine is quarantined and when the ring comes or
    /// goes.
    pub(super) fn replan(&mut self) {
        let none = EngineSet::default();
        let mut offers = vec![Offer::default(); self.engines.len()];
        let (mut staged, mut unserved) = (WaySet::default(), WaySet::default());
        for way in self.zones.ways() {
            let index = self.zones.index(way);
            let means = self.means(way, none, none, true);
            match means {
                Means::Ring | Means::RingWithFallback => staged = staged.with(index),
                Means::Nobody => unserved = unserved.with(index),
                Means::Engine | Means::Fallback => {}
            }
            for (engine, offer) in offers.iter_mut().enumerate() {
                let slot = &self.engines[engine];
                let role = if means == Means::Engine { Role::Engine } else { Role::Fallback };
                if matches!(means, Means::Engine | Means::Fallback) {
                    if slot.role == role && slot.reaches.contains(index) {
                        offer.direct = offer.direct.with(index);
                    }
                } else if means != Means::Nobody && self.may_fill(engine, way, none) {
                    offer.into_ring = offer.into_ring.with(index);
                }
            }
        }
        (self.offers, self.staged, self.unserved) = (offers, staged, unserved);
    }

    /// Whether this engine may do the first leg of a way through the ring: the fallback only if no engine does.
    fn may_fill(&self, engine: usize, way: Way, out: EngineSet) -> bool {
        let Some([fill, _]) = self.legs(way) else { return false };
        let slot = &self.engines[engine];
        slot.has_a_future()
            && !out.contains(engine)
            && slot.reaches.contains(self.zones.index(fill))
            && (slot.role == Role::Engine || !self.does(Role::Engine, fill, out))
    }

    /// Whether this engine may begin to bring the part through the ring.
    fn may_stage(&self, engine: usize, part: &Part) -> bool {
        matches!(self.means_of(part), Means::Ring | Means::RingWithFallback)
            && self.may_fill(engine, part.way, part.tried.without(part.beyond))
    }

    // Memory.

    /// Finds the zones of system memory in which a ring helps, the best one first: where it makes most ways possible
    /// for engines alone, then with the fallback, then where most ways lead on from.
    pub(super) fn place_ring(&mut self) {
        let none = EngineSet::default();
        let by_engine = |way| self.does(Role::Engine, way, none);
        let by_any = |way| by_engine(way) || self.does(Role::Fallback, way, none);
        let score = |zone: Zone| {
            let missed = || self.zones.ways().filter(|way| !by_engine(*way));
            let through = |way: Way| legs_through(way, zone);
            let alone = missed().filter(|way| through(*way).into_iter().all(by_engine)).count();
            let together = missed().filter(|way| through(*way).into_iter().all(by_any)).count();
            let onward = self.zones.ways().filter(|way| way.from == Some(zone) && by_any(*way)).count();
            (alone, together, onward)
        };
        let mut zones: Vec<_> = self.zones.of_system().map(|zone| (score(zone), zone)).collect();
        zones.retain(|((_, _, onward), _)| *onward > 0);
        zones.sort_by(|(a, _), (b, _)| b.cmp(a));
        let zones = zones.into_iter().map(|(_, zone)| (zone, self.zones.range(zone))).collect();
        self.ring.set_zones(zones);
    }

    /// Asks for the ring's memory, if a move waits for it.
    pub(super) fn find_ring(&mut self) -> Option<Wish> {
        let is_staged = |part: &Part| matches!(self.means_of(part), Means::Ring | Means::RingWithFallback);
        let is_wanted = !self.ready.wanted(self.staged).is_empty()
            || self.waiting.iter().any(is_staged)
            || Urgency::ALL.into_iter().any(|urgency| self.ring.pulls(urgency).next().is_some());
        if is_wanted { self.ring.wish() } else { None }
    }

    /// Asks for the ring's memory though no move waits for it.
    pub(crate) fn wish_for_ring(&mut self) -> Option<Wish> {
        self.ring.forget_refusal();
        self.ring.wish()
    }

    /// Whether somebody is asking for memory.
    pub(crate) fn is_asking_for_ring(&self) -> bool {
        self.ring.is_asking()
    }

    /// Where the ring is.
    pub(crate) fn ring_extent(&self) -> Option<Extent> {
        self.ring.extent()
    }

    /// What came of a [`Step::FindRing`].
    pub(crate) fn supplied(&mut self, found: Option<(Zone, Extent)>, ledger: &Ledger) {
        self.ring.supplied(found);
        match self.ring.extent() {
            Some(extent) => ledger.ring_is_there(extent.len_bytes),
            None => self.give_reason("no memory for a staging ring".to_owned(), ledger),
        }
        self.replan();
    }

    // Shares of the slots.

    /// Which ways have a share of a free slot left; the flow of each is the way itself.
    fn ways_with_a_share(&self, ways: WaySet) -> WaySet {
        if !self.ring.has_room() {
            return WaySet::default();
        }
        let flows = self.flow_count();
        self.zones
            .set_of(|way| ways.contains(self.zones.index(way)) && self.ring.has_share(Flow::Way(way), flows))
    }

    /// How many flows have slots or want some.
    fn flow_count(&self) -> usize {
        let mut ways = self.ready.wanted(self.staged);
        let mut pulls: Vec<MoveId> = Urgency::ALL.into_iter().flat_map(|at| self.ring.pulls(at)).collect();
        for flow in self.ring.flows() {
            match flow {
                Flow::Way(way) => ways = ways.with(self.zones.index(way)),
                Flow::Pull(id) => pulls.push(id),
            }
        }
        pulls.sort_unstable();
        pulls.dedup();
        ways.count() + pulls.len()
    }

    /// Whether something urgent waits for a slot.
    pub(super) fn is_ring_pressed(&self) -> bool {
        let is_wanted = || {
            self.ready.oldest(Urgency::Foreground, self.staged).is_some()
                || self.ring.pulls(Urgency::Foreground).next().is_some()
        };
        !self.ring.has_room() && self.ring.extent().is_some() && is_wanted()
    }

    /// The oldest move whose next fragment this engine may bring into the ring.
    pub(super) fn next_into_ring(&self, engine: usize, urgency: Urgency) -> Option<MoveId> {
        let ways = self.offers[engine].into_ring;
        if ways.is_empty() {
            return None;
        }
        self.ready.oldest(urgency, self.ways_with_a_share(ways))
    }

    /// Whether this engine may bring a part into the ring now.
    pub(super) fn may_stage_now(&self, engine: usize, part: &Part) -> bool {
        self.ring.has_room()
            && self.may_stage(engine, part)
            && self.ring.has_share(Flow::Way(part.way), self.flow_count())
    }

    // Through the ring.

    /// Gives the next fragment of a move, or of a part that waits, a slot; the leg that fills it.
    pub(super) fn stage(&mut self, candidate: Candidate, ledger: &Ledger) -> (Part, Chunk) {
        let fragment = match candidate {
            Candidate::WaitingIntoRing(at) => self.take_for_ring(at, ledger),
            Candidate::FreshIntoRing(id) => self.cut_for_ring(id, ledger),
            Candidate::Fresh(_) | Candidate::Waiting(_) => unreachable!("what goes directly has no slot"),
        };
        let Flow::Way(way) = fragment.flow else { unreachable!("a pull is staged by a peer") };
        let [fill, _] = self.legs(way).expect("a way through the ring has two legs");
        let slot = self.ring.occupy(fragment);
        let part = self.leg_of(slot, Leg::Fill(slot), fill);
        let chunk = self.chunk_of_leg(&part, slot);
        (part, chunk)
    }

    fn cut_for_ring(&mut self, id: MoveId, ledger: &Ledger) -> Fragment {
        let (offset_bytes, way, pieces) = self.cut_pieces(id, self.ring.fragment_bytes());
        let why = self.nobody_serves(way);
        self.give_reason(format!("{why}; staged through the ring"), ledger);
        self.new_fragment(
            id,
            Flow::Way(way),
            offset_bytes,
            pieces,
            EngineSet::default(),
            EngineSet::default(),
        )
    }

    /// Takes a fragment off a part that waits.
    fn take_for_ring(&mut self, at: usize, ledger: &Ledger) -> Fragment {
        let limit_bytes = self.ring.fragment_bytes();
        let part = &mut self.waiting[at];
        let (id, offset_bytes, len_bytes) = (part.id, part.offset_bytes, part.len_bytes.min(limit_bytes));
        let (way, tried, beyond, trouble) = (part.way, part.tried, part.beyond, part.trouble.clone());
        part.offset_bytes += len_bytes;
        part.len_bytes -= len_bytes;
        if part.len_bytes == 0 {
            self.wait_no_more(at);
        }
        if let Some((culprit, error)) = trouble {
            let culprit = self.engines[culprit].title();
            self.give_reason(
                format!("{culprit} {}; chunk staged through the ring", kind_of_trouble(&error)),
                ledger,
            );
        }
        let operation = &self.moves[&id].operation;
        let pieces = Cursor::at(operation, offset_bytes).next_chunk_within(operation, len_bytes, &self.zones);
        self.new_fragment(id, Flow::Way(way), offset_bytes, pieces, tried, beyond)
    }

    fn new_fragment(
        &self,
        id: MoveId,
        flow: Flow,
        offset_bytes: u64,
        pieces: Vec<Piece>,
        tried: EngineSet,
        beyond: EngineSet,
    ) -> Fragment {
        let len_bytes = pieces.iter().map(|piece| piece.len_bytes).sum();
        let trial = self.ring.tuner.trial();
        Fragment { id, flow, offset_bytes, len_bytes, pieces, tried, beyond, trial }
    }

    /// A leg of the fragment in a slot, as a part that no engine has tried.
    fn leg_of(&self, slot: SlotIndex, leg: Leg, way: Way) -> Part {
        let fragment = self.ring.fragment(slot);
        Part {
            id: fragment.id,
            offset_bytes: fragment.offset_bytes,
            len_bytes: fragment.len_bytes,
            leg,
            way,
            tried: fragment.tried.without(fragment.beyond),
            beyond: EngineSet::default(),
            unstaged: false,
            trouble: None,
        }
    }

    /// What an engine has to do for a leg.
    pub(super) fn chunk_of_leg(&self, part: &Part, slot: SlotIndex) -> Chunk {
        let is_fill = matches!(part.leg, Leg::Fill(_));
        Chunk::new(leg_pieces(&self.ring.fragment(slot).pieces, self.ring.slot_at(slot), is_fill))
    }

    /// A slot is full: the second leg may begin.
    pub(super) fn filled(&mut self, slot: SlotIndex) {
        let fragment = self.ring.fragment(slot);
        let zone = self.ring.zone().expect("a slot in use has memory");
        let to = self.zones.way(&self.moves[&fragment.id].operation, &fragment.pieces[0]).to;
        let part = self.leg_of(slot, Leg::Empty(slot), Way { from: Some(zone), to });
        if mutant!("slot_is_free_before_it_is_empty") {
            self.ring.free.push_back(slot);
        }
        self.wait(part);
    }

    /// A fragment has arrived.
    pub(super) fn emptied(&mut self, slot: SlotIndex, now: Instant, ledger: &Ledger) {
        let fragment = self.ring.arrived(slot, now);
        ledger.staged(fragment.len_bytes, self.ring.fragment_bytes());
    }

    /// Gives a slot back whose fragment cannot be finished; its bytes go the old way. `None` for a pull: there is none.
    pub(super) fn unstage(&mut self, leg: &Part) -> Option<Part> {
        let slot = leg.leg.slot()?;
        let Flow::Way(way) = self.ring.fragment(slot).flow else { return None };
        let Fragment { id, offset_bytes, len_bytes, tried, beyond, .. } = self.ring.vacate(slot);
        let trouble = leg.trouble.clone();
        Some(Part {
            id,
            offset_bytes,
            len_bytes,
            leg: Leg::Whole,
            way,
            tried,
            beyond,
            unstaged: true,
            trouble,
        })
    }

    // Pulls.

    /// The next fragment that a peer is to bring.
    pub(super) fn next_errand(&mut self) -> Option<Step> {
        if !self.ring.has_room() {
            return None;
        }
        let flows = self.flow_count();
        let is_pressed = self.ready.oldest(Urgency::Foreground, self.staged).is_some();
        let open = Urgency::ALL.into_iter().filter(|urgency| *urgency == Urgency::Foreground || !is_pressed);
        let id = open
            .flat_map(|urgency| self.ring.pulls(urgency))
            .find(|id| self.ring.has_share(Flow::Pull(*id), flows))?;
        let (offset_bytes, _, pieces) = self.cut_pieces(id, self.ring.fragment_bytes());
        let none = EngineSet::default();
        let fragment = self.new_fragment(id, Flow::Pull(id), offset_bytes, pieces, none, none);
        let src: ExtentList = fragment.pieces.iter().filter_map(source_of).collect();
        let slot = self.ring.occupy(fragment);
        let record = self.moves.get_mut(&id).expect("a pull that is listed is in the table");
        record.in_flight += 1;
        let Operation::Pull { from, ring_at, .. } = &record.operation else {
            unreachable!("only pulls are listed as pulls");
        };
        let dst = Extent::new(ring_at.add(self.ring.slot_offset(slot)), src.len_bytes()).into();
        let (peer, urgency) = (from.clone(), record.urgency);
        Some(Step::Errand { peer, operation: Operation::Copy { src, dst }, urgency, slot })
    }

    /// A peer has filled a slot, or has not.
    pub(crate) fn errand_ended(&mut self, slot: SlotIndex, outcome: Result<(), FenceError>, ledger: &Ledger) {
        let id = self.ring.fragment(slot).id;
        self.moves.get_mut(&id).expect("an errand keeps its move").in_flight -= 1;
        match outcome {
            Ok(()) => self.filled(slot),
            Err(error) => {
                self.ring.vacate(slot);
                self.fail_move(id, error, ledger);
            }
        }
        self.end_if_done(id, ledger);
    }
}

fn legs_through(way: Way, zone: Zone) -> [Way; 2] {
    [Way { from: way.from, to: zone }, Way { from: Some(zone), to: way.to }]
}

fn source_of(piece: &Piece) -> Option<Extent> {
    piece.src.map(|src| Extent::new(src, piece.len_bytes))
}
