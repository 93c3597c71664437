//! What the queue's lock protects: the moves, the lanes, the engines, and what each event does to them.
//!
//! ```text
//!   admit --> Blocked --fences signalled--> Ready --every chunk done, or one failed for good--> Ended --> published
//!                 `----- a fence it needs failed, or the queue is dropped ----------------------^
//! ```
//!
//! A ready move is cut into chunks as engines ask for them. A chunk that an engine did not do becomes a *part to be
//! redone*, with the engines that already failed on it; it goes to another engine, then to the fallback, and when
//! nobody is left the move fails. A move ends only when none of its chunks is in flight, so a signalled fence means
//! that nothing touches its memory any more, also when it signals with an error.
//!
//! Nothing here signals, calls an engine or waits. Each method changes the tables, and
//! [`next_step`](State::next_step) says what is to be done outside the lock.

mod dispatch;

use crate::engine::{Chunk, CopyEngine, EngineError, Reset};
use crate::lane::{self, Lane, Place};
use crate::ledger::Ledger;
use crate::piece::{Cursor, Operation};
use crate::request::Urgency;
use crate::schedule::{MoveId, ReadyMoves};
use crate::slots::{EngineSlot, Health, InFlight, Part, Role, Ticket, kind_of_trouble};
use devpagemap_fence::{Fence, FenceError, FenceSet, Timeline};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How far a move has come.
#[derive(Debug)]
enum Phase {
    /// Waits for these fences; the second set's errors fail it.
    Blocked { waits: FenceSet, needs: FenceSet },
    /// Is being copied.
    Ready,
    /// Waits for its turn to be published.
    Ended(Result<(), FenceError>),
}

/// One unpublished move.
struct Move {
    operation: Operation,
    urgency: Urgency,
    phase: Phase,
    lane: usize,
    /// What was not yet cut into chunks.
    cursor: Cursor,
    /// Chunks that some engine holds.
    in_flight: u32,
    /// Chunks that wait to be redone.
    redo: u32,
    /// Why it will fail once no chunk is in flight.
    failure: Option<FenceError>,
    span: tracing::Span,
}

/// What is to be done next, without the lock.
pub(crate) enum Step {
    /// Signal these points of a lane, then call [`State::published`].
    Publish(Publication),
    /// Hand this chunk to an engine.
    Submit { engine: Arc<dyn CopyEngine>, index: usize, ticket: Ticket, chunk: Chunk },
    /// Nothing.
    Rest,
}

/// Points of one lane to be signalled: first those that went well, then one that did not.
pub(crate) struct Publication {
    pub(crate) lane: usize,
    pub(crate) upto: Option<u64>,
    pub(crate) failed: Option<(u64, FenceError)>,
    /// How many points these are.
    pub(crate) count: usize,
    /// The moves' spans, closed once they are signalled.
    pub(crate) spans: Vec<tracing::Span>,
}

/// An engine that made no progress in time, and the chunks that were taken away from it.
pub(crate) struct Hung {
    pub(crate) index: usize,
    pub(crate) engine: Arc<dyn CopyEngine>,
    pub(crate) chunks: Vec<InFlight>,
    pub(crate) error: EngineError,
}

/// A chunk that an engine could take.
struct Candidate {
    id: MoveId,
    /// The position among the parts to be redone, if it is one of them.
    redo: Option<usize>,
}

/// Everything behind the queue's lock.
pub(crate) struct State {
    next_id: MoveId,
    next_ticket: Ticket,
    moves: BTreeMap<MoveId, Move>,
    /// How many of them are `Ready`.
    ready_count: usize,
    ready: ReadyMoves,
    redo: Vec<Part>,
    lanes: Vec<Lane>,
    /// Lanes whose front has ended.
    publishable: VecDeque<usize>,
    /// Lanes being published.
    publishing: usize,
    engines: Vec<EngineSlot>,
    /// Where the search for an engine begins, so that equals take turns.
    turn: usize,
    chunk_bytes: u64,
    busy_since: Option<Instant>,
    /// Reasons to be traced once the lock is dropped.
    notes: Vec<String>,
}

impl State {
    pub(crate) fn new(engines: Vec<EngineSlot>, lanes: Vec<Lane>, chunk_bytes: u64) -> State {
        State {
            next_id: 0,
            next_ticket: 0,
            moves: BTreeMap::new(),
            ready_count: 0,
            ready: ReadyMoves::default(),
            redo: Vec::new(),
            lanes,
            publishable: VecDeque::new(),
            publishing: 0,
            engines,
            turn: 0,
            chunk_bytes,
            busy_since: None,
            notes: Vec::new(),
        }
    }

    /// Whether nothing is left to do and nothing left to signal.
    pub(crate) fn is_idle(&self) -> bool {
        self.moves.is_empty() && self.publishing == 0
    }

    /// Whether whatever is left waits for fences.
    pub(crate) fn is_quiet(&self) -> bool {
        self.ready_count == 0 && self.publishable.is_empty() && self.publishing == 0
    }

    /// The id that the next move will get.
    #[cfg(loom_mutant = "move_listens_before_it_is_admitted")]
    pub(crate) fn next_id(&self) -> MoveId {
        self.next_id
    }

    /// Gives a move its place in a lane. It starts when [`release`](Self::release) is called.
    pub(crate) fn admit(
        &mut self,
        operation: Operation,
        urgency: Urgency,
        waits: FenceSet,
        needs: FenceSet,
        span: tracing::Span,
        timelines: &[Timeline],
    ) -> (MoveId, Fence) {
        let id = self.next_id;
        self.next_id += 1;
        let lane = lane::choose(&self.lanes, urgency, &waits);
        if urgency == Urgency::Foreground {
            self.hurry(&waits);
        }
        let fence = timelines[lane].next_point();
        let record = &mut self.lanes[lane];
        record.line.push_back(Place { id, seqno: fence.seqno() });
        record.blocked += 1;
        record.load_bytes += operation.len_bytes();
        let phase = Phase::Blocked { waits, needs };
        let cursor = Cursor::default();
        self.moves.insert(
            id,
            Move { operation, urgency, phase, lane, cursor, in_flight: 0, redo: 0, failure: None, span },
        );
        (id, fence)
    }

    /// Makes urgent what an urgent move waits for: our own moves behind these fences, what stands before them in
    /// their lanes, and what those wait for in turn.
    fn hurry(&mut self, waits: &FenceSet) {
        let mut todo: Vec<(usize, u64)> = self.own_points(waits);
        while let Some((lane, seqno)) = todo.pop() {
            let places = self.lanes[lane].hurry(seqno);
            for id in places {
                let record = self.moves.get_mut(&id).expect("a move in a lane is in the table");
                if record.urgency == Urgency::Foreground {
                    continue;
                }
                record.urgency = Urgency::Foreground;
                match &record.phase {
                    Phase::Blocked { waits, .. } => {
                        let waits = waits.clone();
                        todo.extend(self.own_points(&waits));
                    }
                    Phase::Ready if record.failure.is_none() => {
                        if let Some(route) = record.cursor.route(&record.operation) {
                            self.ready.remove(id, Urgency::Background, route);
                            self.ready.insert(id, Urgency::Foreground, route);
                        }
                    }
                    Phase::Ready | Phase::Ended(_) => {}
                }
            }
        }
    }

    fn own_points(&self, waits: &FenceSet) -> Vec<(usize, u64)> {
        let slow = self.lanes.iter().enumerate().filter(|(_, lane)| lane.urgency == Urgency::Background);
        slow.filter_map(|(index, lane)| Some((index, waits.get(lane.timeline)?.seqno()))).collect()
    }

    /// The fences a move waited for have signalled. Returns them, to be dropped without the lock.
    pub(crate) fn release(&mut self, id: MoveId, ledger: &Ledger) -> Option<(FenceSet, FenceSet)> {
        let record = self.moves.get_mut(&id)?;
        #[cfg(not(loom_mutant = "abandoned_moves_are_released"))]
        if !matches!(record.phase, Phase::Blocked { .. }) {
            return None;
        }
        let Phase::Blocked { waits, needs } = std::mem::replace(&mut record.phase, Phase::Ready) else {
            return None;
        };
        self.ready_count += 1;
        self.lanes[record.lane].blocked -= 1;
        record.failure = record
            .operation
            .fault()
            .map(FenceError::failed)
            .or_else(|| needs.first_error().map(|error| error.as_dependency()));
        if record.failure.is_none()
            && let Some(route) = record.cursor.route(&record.operation)
        {
            self.ready.insert(id, record.urgency, route);
        }
        self.end_if_done(id, ledger);
        Some((waits, needs))
    }

    /// Fails every move that still waits for fences. Returns those, to be dropped without the lock.
    pub(crate) fn abandon_blocked(&mut self, timelines: &[Timeline], ledger: &Ledger) -> Vec<FenceSet> {
        let mut fences = Vec::new();
        for record in self.moves.values_mut() {
            if !matches!(record.phase, Phase::Blocked { .. }) {
                continue;
            }
            let error = FenceError::Abandoned { timeline: timelines[record.lane].name().into() };
            if let Phase::Blocked { waits, needs } =
                std::mem::replace(&mut record.phase, Phase::Ended(Err(error)))
            {
                fences.extend([waits, needs]);
            }
            let lane = &mut self.lanes[record.lane];
            lane.blocked -= 1;
            lane.load_bytes -= record.operation.len_bytes();
            ledger.move_ended(&record.operation, false);
        }
        (0..self.lanes.len()).for_each(|lane| self.list_if_publishable(lane));
        fences
    }

    /// An engine has answered.
    pub(crate) fn answered(
        &mut self,
        engine: usize,
        ticket: Ticket,
        result: Result<(), EngineError>,
        now: Instant,
        ledger: &Ledger,
    ) {
        let Some(chunk) = self.engines.get_mut(engine).and_then(|slot| slot.take(ticket, now)) else {
            return ledger.late_completion();
        };
        self.note_idle_engines(now, ledger);
        let id = chunk.part.id;
        self.moves.get_mut(&id).expect("a chunk in flight keeps its move").in_flight -= 1;
        match result {
            Ok(()) => {
                let slot = &mut self.engines[engine];
                slot.succeeded();
                ledger.chunk_done(engine, slot.role == Role::Fallback, chunk.part.len_bytes);
            }
            Err(error) => {
                self.blame(engine, &error, ledger);
                self.redo_later(chunk.part, Some(engine), engine, error);
            }
        }
        self.end_if_done(id, ledger);
    }

    /// Counts a failure against the engine that is responsible for it.
    fn blame(&mut self, engine: usize, error: &EngineError, ledger: &Ledger) {
        if matches!(error, EngineError::Unreachable { .. }) {
            return;
        }
        ledger.engine_failed(engine);
        if self.engines[engine].failed(error) {
            self.note_quarantine(engine, error, ledger);
        }
    }

    fn note_quarantine(&mut self, engine: usize, error: &EngineError, ledger: &Ledger) {
        let kind = kind_of_trouble(error);
        ledger.quarantined(engine, &kind);
        self.give_reason(format!("{} quarantined: {kind}", self.engines[engine].title()), ledger);
    }

    fn redo_later(&mut self, mut part: Part, guilty: Option<usize>, engine: usize, error: EngineError) {
        let record = self.moves.get_mut(&part.id).expect("a part keeps its move");
        if record.failure.is_some() {
            return;
        }
        record.redo += 1;
        if let Some(guilty) = guilty {
            part.tried.insert(guilty);
        }
        part.trouble = Some((engine, error));
        self.redo.push(part);
    }

    /// The engines that made no progress by `now`: their chunks are taken away. The caller resets each engine and
    /// then calls [`was_reset`](Self::was_reset).
    pub(crate) fn take_hung(&mut self, now: Instant, timeout: Duration, ledger: &Ledger) -> Option<Hung> {
        let overdue = |slot: &EngineSlot| slot.hung_at(timeout).is_some_and(|at| at <= now);
        let index = self.engines.iter().position(overdue)?;
        let slot = &mut self.engines[index];
        let since = slot.in_flight.front().map_or(now, |oldest| slot.last_progress(oldest.since));
        let waited_ns = u64::try_from(now.saturating_duration_since(since).as_nanos()).unwrap_or(u64::MAX);
        slot.health = Health::Resetting;
        #[cfg(not(loom_mutant = "hung_engine_keeps_its_tickets"))]
        let chunks = std::mem::take(&mut slot.in_flight).into();
        #[cfg(loom_mutant = "hung_engine_keeps_its_tickets")]
        let chunks = slot.in_flight.iter().cloned().collect();
        let engine = slot.engine.clone();
        ledger.engine_hung(index);
        self.note_idle_engines(now, ledger);
        Some(Hung { index, engine, chunks, error: EngineError::Hung { waited_ns } })
    }

    /// A hung engine was reset: nothing it held touches memory any more, so its chunks may be redone. The oldest one
    /// is held guilty of the hang and is not given to this engine again.
    pub(crate) fn was_reset(&mut self, hung: Hung, outcome: Reset, ledger: &Ledger) {
        let Hung { index, chunks, error, .. } = hung;
        if self.engines[index].was_reset(outcome, &error) {
            self.note_quarantine(index, &error, ledger);
        }
        let mut guilty = Some(index);
        for chunk in chunks {
            let id = chunk.part.id;
            self.moves.get_mut(&id).expect("a chunk in flight keeps its move").in_flight -= 1;
            self.redo_later(chunk.part, guilty.take(), index, error.clone());
            self.end_if_done(id, ledger);
        }
    }

    /// When the first engine counts as hung, if nothing happens before.
    pub(crate) fn first_deadline(&self, timeout: Duration) -> Option<Instant> {
        self.engines.iter().filter_map(|slot| slot.hung_at(timeout)).min()
    }

    /// What to do next. Publishing goes before copying: somebody may wait for it, and inline engines copy long.
    pub(crate) fn next_step(&mut self, now: Instant, ledger: &Ledger) -> Step {
        self.fail_hopeless(ledger);
        if let Some(lane) = self.publishable.pop_front() {
            return self.publish(lane);
        }
        self.assign(now, ledger).unwrap_or(Step::Rest)
    }

    /// Reasons that were given since the last call.
    pub(crate) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// The engines, to be dropped without the lock; nothing may be left to do.
    pub(crate) fn take_engines(&mut self) -> Vec<EngineSlot> {
        std::mem::take(&mut self.engines)
    }

    // Ending and publishing.

    fn end_if_done(&mut self, id: MoveId, ledger: &Ledger) {
        let Some(record) = self.moves.get_mut(&id) else { return };
        if record.in_flight > 0 || !matches!(record.phase, Phase::Ready) {
            return;
        }
        let is_cut = record.cursor.offset_bytes() == record.operation.len_bytes();
        let outcome = match record.failure.take() {
            Some(error) => Err(error),
            None if is_cut && record.redo == 0 => Ok(()),
            None => return,
        };
        ledger.move_ended(&record.operation, outcome.is_ok());
        record.phase = Phase::Ended(outcome);
        self.ready_count -= 1;
        let lane = record.lane;
        self.lanes[lane].load_bytes -= record.operation.len_bytes();
        self.list_if_publishable(lane);
    }

    fn list_if_publishable(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        let has_ended = |place: &Place| matches!(self.moves[&place.id].phase, Phase::Ended(_));
        if !lane.publishing && !lane.listed && lane.line.front().is_some_and(has_ended) {
            lane.listed = true;
            self.publishable.push_back(index);
        }
    }

    /// Takes the ended moves off the lane's front, up to and including the first one that failed.
    fn publish(&mut self, index: usize) -> Step {
        let lane = &mut self.lanes[index];
        lane.listed = false;
        lane.publishing = cfg!(not(loom_mutant = "lane_has_two_publishers"));
        self.publishing += 1;
        let mut publication =
            Publication { lane: index, upto: None, failed: None, count: 0, spans: Vec::new() };
        while publication.failed.is_none()
            && let Some(Place { id, seqno }) = lane.line.front().copied()
            && matches!(self.moves[&id].phase, Phase::Ended(_))
        {
            lane.line.pop_front();
            let record = self.moves.remove(&id).expect("a move in a lane is in the table");
            match record.phase {
                Phase::Ended(Err(error)) => publication.failed = Some((seqno, error)),
                _ => publication.upto = Some(seqno),
            }
            publication.count += 1;
            if !record.span.is_disabled() {
                publication.spans.push(record.span);
            }
        }
        Step::Publish(publication)
    }

    /// The points of a [`Step::Publish`] have been signalled.
    pub(crate) fn published(&mut self, lane: usize) {
        self.lanes[lane].publishing = false;
        self.publishing -= 1;
        self.list_if_publishable(lane);
    }

    /// Accounts the busy time when the last chunk has come back.
    fn note_idle_engines(&mut self, now: Instant, ledger: &Ledger) {
        if self.engines.iter().all(|slot| slot.in_flight.is_empty())
            && let Some(since) = self.busy_since.take()
        {
            let ns = now.saturating_duration_since(since).as_nanos();
            ledger.busy(u64::try_from(ns).unwrap_or(u64::MAX));
        }
    }
}
