//! Who does which chunk, and what happens when nobody can.
//!
//! For an engine with room the order is: urgent before not urgent (but see `ReadyMoves::background_turn`), then the
//! older move, then what has to be redone before fresh chunks of the same move. The fallback is asked only for what
//! no copy engine serves: a route that none reaches or all that do are quarantined, or a part on which each has failed.
//! An engine that is being reset may come back, so its chunks wait for it rather than go to the fallback.

use super::{Candidate, State, Step};
use crate::engine::Chunk;
use crate::ledger::Ledger;
use crate::piece::{Cursor, Route};
use crate::request::Urgency;
use crate::schedule::{MoveId, RouteSet};
use crate::slots::{EngineSet, EngineSlot, Health, InFlight, Part, Role, kind_of_trouble};
use devpagemap_fence::FenceError;
use std::time::Instant;

impl State {
    /// The routes that some copy engine serves or will serve again.
    fn served(&self) -> RouteSet {
        let engines = self.engines.iter().filter(|slot| slot.role == Role::Engine && slot.has_a_future());
        engines.fold(RouteSet::default(), |routes, slot| routes.union(slot.reaches))
    }

    /// The routes from which this engine may take fresh chunks: the fallback gets only what no engine serves.
    fn fresh_routes(&self, engine: usize) -> RouteSet {
        let slot = &self.engines[engine];
        match slot.role {
            Role::Engine => slot.reaches,
            Role::Fallback => slot.reaches.without(self.served()),
        }
    }

    /// Whether this engine could do the part, now or later.
    fn could_redo(&self, engine: usize, part: &Part) -> bool {
        let slot = &self.engines[engine];
        slot.has_a_future() && !part.tried.contains(engine) && slot.reaches.contains(self.route_of(part))
    }

    /// Whether this engine may take the part: the fallback only when no copy engine is left for it.
    fn may_redo(&self, engine: usize, part: &Part) -> bool {
        let is_last_resort = self.engines[engine].role == Role::Fallback;
        let others = || (0..self.engines.len()).filter(|other| *other != engine);
        self.could_redo(engine, part)
            && !(is_last_resort && others().any(|other| self.could_redo(other, part)))
    }

    fn route_of(&self, part: &Part) -> Route {
        let operation = &self.moves[&part.id].operation;
        Cursor::at(operation, part.offset_bytes).route(operation).expect("a part has bytes")
    }

    fn candidate(&self, engine: usize, urgency: Urgency) -> Option<Candidate> {
        let redo = self.redo.iter().enumerate();
        let redo =
            redo.filter(|(_, part)| self.moves[&part.id].urgency == urgency && self.may_redo(engine, part));
        let redo = redo.min_by_key(|(_, part)| (part.id, part.offset_bytes));
        let fresh = self.ready.oldest(urgency, self.fresh_routes(engine));
        match (redo, fresh) {
            (Some((at, part)), fresh) if fresh.is_none_or(|id| part.id <= id) => {
                Some(Candidate { id: part.id, redo: Some(at) })
            }
            (_, fresh) => fresh.map(|id| Candidate { id, redo: None }),
        }
    }

    fn pick(&mut self, engine: usize) -> Option<Candidate> {
        let urgent = self.candidate(engine, Urgency::Foreground);
        let other = self.candidate(engine, Urgency::Background);
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
                return Some(self.hand_over(engine, &candidate, now, ledger));
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

    fn hand_over(&mut self, engine: usize, candidate: &Candidate, now: Instant, ledger: &Ledger) -> Step {
        let (part, chunk) = match candidate.redo {
            Some(at) => self.take_redo(at),
            None => self.cut(candidate.id),
        };
        self.explain(engine, &part, &chunk, ledger);
        self.moves.get_mut(&part.id).expect("a part keeps its move").in_flight += 1;
        self.busy_since.get_or_insert(now);
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let slot = &mut self.engines[engine];
        slot.in_flight.push_back(InFlight { ticket, since: now, part });
        Step::Submit { engine: slot.engine.clone(), index: engine, ticket, chunk }
    }

    fn take_redo(&mut self, at: usize) -> (Part, Chunk) {
        let part = self.redo.remove(at);
        let record = self.moves.get_mut(&part.id).expect("a part keeps its move");
        record.redo -= 1;
        let pieces =
            Cursor::at(&record.operation, part.offset_bytes).next_chunk(&record.operation, part.len_bytes);
        (part, Chunk::new(pieces))
    }

    /// Cuts the next chunk off a ready move.
    fn cut(&mut self, id: MoveId) -> (Part, Chunk) {
        let record = self.moves.get_mut(&id).expect("a ready move is in the table");
        let offset_bytes = record.cursor.offset_bytes();
        let chunk = Chunk::new(record.cursor.next_chunk(&record.operation, self.chunk_bytes));
        let (route, next) = (chunk.route(), record.cursor.route(&record.operation));
        if next != Some(route) {
            self.ready.remove(id, record.urgency, route);
            if let Some(next) = next {
                self.ready.insert(id, record.urgency, next);
            }
        }
        let len_bytes = record.cursor.offset_bytes() - offset_bytes;
        (Part { id, offset_bytes, len_bytes, tried: EngineSet::default(), trouble: None }, chunk)
    }

    /// Gives the reason when a chunk does not go the usual way.
    fn explain(&mut self, engine: usize, part: &Part, chunk: &Chunk, ledger: &Ledger) {
        let slot = &self.engines[engine];
        if let Some((culprit, error)) = &part.trouble {
            let culprit = self.engines[*culprit].title();
            let kind = kind_of_trouble(error);
            self.give_reason(format!("{culprit} {kind}; chunk redone by {}", slot.name), ledger);
        } else if slot.role == Role::Fallback {
            let why = self.nobody_serves(chunk.route());
            self.give_reason(format!("{why}; chunk done by {}", slot.name), ledger);
        }
    }

    pub(super) fn give_reason(&mut self, reason: String, ledger: &Ledger) {
        ledger.reason(&reason);
        self.notes.push(reason);
    }

    /// Why no copy engine serves a route.
    fn nobody_serves(&self, route: Route) -> String {
        let reaching = |slot: &&EngineSlot| slot.role == Role::Engine && slot.reaches.contains(route);
        if self.engines.iter().any(|slot| reaching(&slot)) {
            format!("every copy engine that can {route} is quarantined")
        } else {
            format!("no copy engine can {route}")
        }
    }

    /// Fails the moves for which nobody is left.
    pub(super) fn fail_hopeless(&mut self, ledger: &Ledger) {
        while let Some(part) = self.hopeless_part().cloned() {
            let error = self.error_for(&part);
            self.fail_move(part.id, error, ledger);
        }
        let helpers = self.engines.iter().filter(|slot| slot.has_a_future());
        let reached = helpers.fold(RouteSet::default(), |routes, slot| routes.union(slot.reaches));
        for route in RouteSet::of(|route| !reached.contains(route)).iter() {
            let only = RouteSet::default().with(route);
            for urgency in Urgency::ALL {
                while let Some(id) = self.ready.oldest(urgency, only) {
                    let error = self.error_for_route(route);
                    self.fail_move(id, error, ledger);
                }
            }
        }
    }

    fn hopeless_part(&self) -> Option<&Part> {
        let is_hopeless = |part: &&Part| !(0..self.engines.len()).any(|engine| self.could_redo(engine, part));
        self.redo.iter().find(is_hopeless)
    }

    /// The error of a move of which nobody could do this part: the last engine that tried, and what it said.
    fn error_for(&self, part: &Part) -> FenceError {
        let Some((engine, error)) = &part.trouble else { return self.error_for_route(self.route_of(part)) };
        FenceError::EngineFailed {
            engine: self.engines[*engine].name.clone(),
            reason: format!("{error}; nobody is left to redo the chunk").into(),
        }
    }

    fn error_for_route(&self, route: Route) -> FenceError {
        let lost =
            self.engines.iter().rev().filter(|slot| slot.reaches.contains(route)).find_map(
                |slot| match &slot.health {
                    Health::Quarantined(error) => Some((slot.name.clone(), error)),
                    Health::Working | Health::Resetting => None,
                },
            );
        match lost {
            Some((engine, error)) => {
                let reason = format!("quarantined ({error}), and nothing else can {route}").into();
                FenceError::EngineFailed { engine, reason }
            }
            None => FenceError::EngineFailed {
                engine: "none".into(),
                reason: format!("no engine and no fallback can {route}").into(),
            },
        }
    }

    /// Gives a move up: nothing more of it is started, and it ends once nothing of it is in flight.
    fn fail_move(&mut self, id: MoveId, error: FenceError, ledger: &Ledger) {
        self.redo.retain(|part| part.id != id);
        let record = self.moves.get_mut(&id).expect("a move to be failed is in the table");
        record.redo = 0;
        record.failure.get_or_insert(error);
        if let Some(route) = record.cursor.route(&record.operation) {
            self.ready.remove(id, record.urgency, route);
        }
        self.end_if_done(id, ledger);
    }
}
