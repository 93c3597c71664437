//! Who does which chunk.
//!
//! For an engine with room the order is: urgent before not urgent (but see `ReadyMoves::background_turn`), then what
//! has a slot of the staging ring, then the older move, then what has to be redone before fresh chunks of the same move.
//! The fallback is asked only for what engines cannot do, not even through the ring: a way that none serves or all that
//! do are quarantined, or a part on which each has failed. An engine that is being reset may come back, so its chunks
//! wait for it rather than go to the fallback.

use super::{Candidate, Means, State, Step};
use crate::engine::Chunk;
use crate::ledger::Ledger;
use crate::piece::{Cursor, Piece};
use crate::request::Urgency;
use crate::ring::Leg;
use crate::schedule::MoveId;
use crate::slots::{EngineSet, EngineSlot, InFlight, Part, Role, kind_of_trouble};
use crate::zones::Way;
use std::time::Instant;

impl State {
    /// Whether this engine may take the part as it is: the fallback only when no copy engine is left for it.
    fn may_redo(&self, engine: usize, part: &Part) -> bool {
        let slot = &self.engines[engine];
        let role = match self.means_of(part) {
            Means::Engine => Role::Engine,
            Means::Fallback => Role::Fallback,
            Means::Ring | Means::RingWithFallback | Means::Nobody => return false,
        };
        slot.role == role
            && slot.has_a_future()
            && !part.tried.contains(engine)
            && slot.reaches.contains(self.zones.index(part.way))
    }

    /// How urgent a part is: what keeps an urgent fragment from a slot is as urgent.
    fn urgency_of(&self, part: &Part, is_ring_pressed: bool) -> Urgency {
        match part.leg.slot() {
            Some(_) if is_ring_pressed => Urgency::Foreground,
            _ => self.moves[&part.id].urgency,
        }
    }

    fn candidate(&self, engine: usize, urgency: Urgency, is_ring_pressed: bool) -> Option<Candidate> {
        let of_urgency = |(_, part): &(usize, &Part)| self.urgency_of(part, is_ring_pressed) == urgency;
        let waiting = self.waiting.iter().enumerate().filter(of_urgency).filter_map(|(at, part)| {
            let key = (part.leg == Leg::Whole, part.id, part.offset_bytes);
            if self.may_redo(engine, part) {
                Some((key, Candidate::Waiting(at)))
            } else {
                self.may_stage_now(engine, part).then_some((key, Candidate::WaitingIntoRing(at)))
            }
        });
        let direct =
            self.ready.oldest(urgency, self.offers[engine].direct).map(|id| (id, Candidate::Fresh(id)));
        let staged = self.next_into_ring(engine, urgency).map(|id| (id, Candidate::FreshIntoRing(id)));
        let fresh = direct.into_iter().chain(staged).map(|(id, candidate)| ((true, id, u64::MAX), candidate));
        waiting.chain(fresh).min_by_key(|(key, _)| *key).map(|(_, candidate)| candidate)
    }

    fn pick(&mut self, engine: usize) -> Option<Candidate> {
        let is_ring_pressed = self.is_ring_pressed();
        let urgent = self.candidate(engine, Urgency::Foreground, is_ring_pressed);
        let other = self.candidate(engine, Urgency::Background, is_ring_pressed);
        match (urgent, other) {
            (Some(_), Some(other)) if self.ready.background_turn() => Some(other),
            (urgent, other) => urgent.or(other),
        }
    }

    /// Finds an engine with room and a chunk for it; the one that holds the fewest chunks goes first.
    pub(super) fn assign(&mut self, now: Instant, ledger: &Ledger) -> Option<Step> {
        if self.ready_count == 0 {
            return None;
        }
        let mut refused = EngineSet::default();
        while let Some(engine) = self.emptiest(refused) {
            if let Some(candidate) = self.pick(engine) {
                self.turn = engine + 1;
                return Some(self.hand_over(engine, candidate, now, ledger));
            }
            refused.insert(engine);
        }
        None
    }

    /// Of the engines that have room and did not refuse, the one that holds the fewest chunks; equals take turns.
    fn emptiest(&self, refused: EngineSet) -> Option<usize> {
        let count = self.engines.len();
        let order = (self.turn..self.turn + count).map(|at| at % count);
        let open = order.filter(|engine| !refused.contains(*engine) && self.engines[*engine].has_room());
        open.min_by_key(|engine| self.engines[*engine].in_flight.len())
    }

    fn hand_over(&mut self, engine: usize, candidate: Candidate, now: Instant, ledger: &Ledger) -> Step {
        let (part, chunk) = match candidate {
            Candidate::Waiting(at) => self.take_waiting(at),
            Candidate::Fresh(id) => self.cut(id),
            Candidate::WaitingIntoRing(_) | Candidate::FreshIntoRing(_) => self.stage(candidate, ledger),
        };
        self.explain(engine, &part, ledger);
        self.moves.get_mut(&part.id).expect("a part keeps its move").in_flight += 1;
        self.busy_since.get_or_insert(now);
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let slot = &mut self.engines[engine];
        slot.in_flight.push_back(InFlight { ticket, since: now, part });
        Step::Submit { engine: slot.engine.clone(), index: engine, ticket, chunk }
    }

    fn take_waiting(&mut self, at: usize) -> (Part, Chunk) {
        let part = self.wait_no_more(at);
        if let Some(slot) = part.leg.slot() {
            let chunk = self.chunk_of_leg(&part, slot);
            return (part, chunk);
        }
        let operation = &self.moves[&part.id].operation;
        let mut cursor = Cursor::at(operation, part.offset_bytes);
        let pieces = cursor.next_chunk_within(operation, part.len_bytes, &self.zones);
        (part, Chunk::new(pieces))
    }

    /// Cuts the next chunk off a ready move.
    fn cut(&mut self, id: MoveId) -> (Part, Chunk) {
        let (offset_bytes, way, pieces) = self.cut_pieces(id, self.chunk_bytes);
        let chunk = Chunk::new(pieces);
        let none = EngineSet::default();
        let part = Part {
            id,
            offset_bytes,
            len_bytes: chunk.len_bytes(),
            leg: Leg::Whole,
            way,
            tried: none,
            beyond: none,
            unstaged: false,
            trouble: None,
        };
        (part, chunk)
    }

    /// Cuts up to `limit_bytes` off a ready move: where they begin, which way they go, and what they are.
    pub(super) fn cut_pieces(&mut self, id: MoveId, limit_bytes: u64) -> (u64, Way, Vec<Piece>) {
        self.unlist(id);
        let record = self.moves.get_mut(&id).expect("a ready move is in the table");
        let offset_bytes = record.cursor.offset_bytes();
        let pieces = record.cursor.next_chunk_within(&record.operation, limit_bytes, &self.zones);
        let way = self.zones.way(&record.operation, &pieces[0]);
        self.list_if_uncut(id);
        (offset_bytes, way, pieces)
    }

    /// Gives the reason when a chunk does not go the usual way.
    fn explain(&mut self, engine: usize, part: &Part, ledger: &Ledger) {
        let slot = &self.engines[engine];
        if let Some((culprit, error)) = &part.trouble {
            let culprit = self.engines[*culprit].title();
            let kind = kind_of_trouble(error);
            self.give_reason(format!("{culprit} {kind}; chunk redone by {}", slot.name), ledger);
        } else if slot.role == Role::Fallback {
            let why = self.nobody_serves(part.way);
            self.give_reason(format!("{why}; chunk done by {}", slot.name), ledger);
        }
    }

    pub(super) fn give_reason(&mut self, reason: String, ledger: &Ledger) {
        ledger.reason(&reason);
        self.notes.push(reason);
    }

    /// Why no copy engine serves a way.
    pub(super) fn nobody_serves(&self, way: Way) -> String {
        let index = self.zones.index(way);
        let reaching = |slot: &EngineSlot| slot.role == Role::Engine && slot.reaches.contains(index);
        let what = self.zones.describe(way);
        if self.engines.iter().any(reaching) {
            format!("every copy engine that can {what} is quarantined")
        } else {
            format!("no copy engine can {what}")
        }
    }
}
