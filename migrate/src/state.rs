//! What the queue's lock protects: the moves, the lanes, the engines, and what each event does to them.
//!
//! ```text
//!   admit --> Blocked --fences signalled--> Ready --every chunk done, or one failed for good--> Ended --> published
//!                 `----- a fence it needs failed, or the queue is dropped ----------------------^
//! ```
//!
//! A ready move is cut into chunks as engines ask for them. A chunk that an engine did not do becomes a *part to be
//! redone*, with the engines that already failed on it; it goes to another engine, then to the fallback, and when
//! nobody is left the move fails. What no single engine can do goes through the staging ring (`ring.rs`): what is in
//! there waits for its second engine among the parts that are to be redone. A move ends only when none of its chunks is in flight, so a signalled fence means
//! that nothing touches its memory any more, also when it signals with an error.
//!
//! Nothing here signals, calls an engine or waits. Each method changes the tables, and
//! [`next_step`](State::next_step) says what is to be done outside the lock.

mod dispatch;
mod ending;
mod hopeless;
mod staging;

use crate::engine::{Chunk, CopyEngine, EngineError, Reset};
use crate::lane::{self, Lane, Place};
use crate::ledger::Ledger;
use crate::peer::{PeerQueue, Report};
use crate::piece::{Cursor, Operation};
use crate::request::Urgency;
use crate::ring::{Leg, Ring, SlotIndex, Wish};
use crate::schedule::{MoveId, ReadyMoves};
use crate::slots::{EngineSlot, Health, InFlight, Part, Role, Ticket, kind_of_trouble};
use crate::zones::{WaySet, Zones};
use devpagemap_fence::sync::mutant;
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

/// Who hears of a move's end.
enum Outlet {
    /// Everybody: it has a point in this lane.
    Lane(usize),
    /// Whoever has sent it as an errand; no point signals. Taken when it ends.
    Errand(Option<Report>),
}

/// One unpublished move.
struct Move {
    operation: Operation,
    urgency: Urgency,
    phase: Phase,
    outlet: Outlet,
    /// What was not yet cut into chunks.
    cursor: Cursor,
    /// Chunks that some engine holds.
    in_flight: u32,
    /// Parts of it that wait for an engine.
    waiting: u32,
    /// Why it will fail once no chunk is in flight.
    failure: Option<FenceError>,
    span: tracing::Span,
}

impl Move {
    fn new(
        operation: Operation,
        urgency: Urgency,
        phase: Phase,
        outlet: Outlet,
        span: tracing::Span,
    ) -> Move {
        let (cursor, failure) = (Cursor::default(), None);
        Move { operation, urgency, phase, outlet, cursor, in_flight: 0, waiting: 0, failure, span }
    }
}

/// What is to be done next, without the lock.
pub(crate) enum Step {
    /// Signal these points of a lane, then call [`State::published`].
    Publish(Publication),
    /// Hand this chunk to an engine.
    Submit { engine: Arc<dyn CopyEngine>, index: usize, ticket: Ticket, chunk: Chunk },
    /// Tell who sent an errand how it ended.
    Tell(Report, Result<(), FenceError>),
    /// Look for memory for the ring, then call [`State::supplied`].
    FindRing(Wish),
    /// Have a peer fill a slot, and answer with [`State::errand_ended`].
    Errand { peer: PeerQueue, operation: Operation, urgency: Urgency, slot: SlotIndex },
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
#[derive(Copy, Clone, Debug)]
enum Candidate {
    /// The next one of this move.
    Fresh(MoveId),
    /// The next one of this move, into the ring.
    FreshIntoRing(MoveId),
    /// This one of those that wait.
    Waiting(usize),
    /// This one of those that wait, into the ring.
    WaitingIntoRing(usize),
}

/// How bytes can get where they are to go.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Means {
    /// A copy engine does it.
    Engine,
    /// Copy engines do it, through the ring.
    Ring,
    /// The fallback does it.
    Fallback,
    /// The fallback does it, together with an engine.
    RingWithFallback,
    /// Nobody can.
    Nobody,
}

/// Which fresh chunks an engine may take.
#[derive(Copy, Clone, Debug, Default)]
struct Offer {
    /// Those that go these ways, to where they belong.
    direct: WaySet,
    /// Those that go these ways, into the ring.
    into_ring: WaySet,
}

/// Everything behind the queue's lock.
pub(crate) struct State {
    next_id: MoveId,
    next_ticket: Ticket,
    moves: BTreeMap<MoveId, Move>,
    /// How many of them are `Ready`.
    ready_count: usize,
    ready: ReadyMoves,
    /// Parts that an engine did not do, and what is in the ring and waits for its second engine.
    waiting: Vec<Part>,
    /// Errands that have ended.
    told: VecDeque<(Report, Result<(), FenceError>)>,
    ring: Ring,
    /// Constant.
    zones: Zones,
    /// Ways that nothing but the ring serves. Kept by `replan`.
    staged: WaySet,
    /// Ways that nobody serves. Kept by `replan`.
    unserved: WaySet,
    /// Beside the engines. Kept by `replan`.
    offers: Vec<Offer>,
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
    pub(crate) fn new(
        engines: Vec<EngineSlot>,
        zones: Zones,
        ring: Ring,
        lanes: Vec<Lane>,
        chunk_bytes: u64,
    ) -> State {
        let mut state = State {
            next_id: 0,
            next_ticket: 0,
            moves: BTreeMap::new(),
            ready_count: 0,
            ready: ReadyMoves::new(zones.ways().count()),
            waiting: Vec::new(),
            told: VecDeque::new(),
            ring,
            zones,
            staged: WaySet::default(),
            unserved: WaySet::default(),
            offers: Vec::new(),
            lanes,
            publishable: VecDeque::new(),
            publishing: 0,
            engines,
            turn: 0,
            chunk_bytes,
            busy_since: None,
            notes: Vec::new(),
        };
        state.place_ring();
        state.replan();
        state
    }

    /// Whether nothing is left to do and nothing left to signal.
    pub(crate) fn is_idle(&self) -> bool {
        self.moves.is_empty() && self.publishing == 0 && self.told.is_empty()
    }

    /// Whether whatever is left waits for fences.
    pub(crate) fn is_quiet(&self) -> bool {
        self.ready_count == 0 && self.publishable.is_empty() && self.publishing == 0 && self.told.is_empty()
    }

    /// The id that the next move will get.
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
        self.moves.insert(id, Move::new(operation, urgency, phase, Outlet::Lane(lane), span));
        (id, fence)
    }

    /// Begins what the queue of a peer asks for.
    pub(crate) fn admit_errand(
        &mut self,
        operation: Operation,
        urgency: Urgency,
        report: Report,
        ledger: &Ledger,
    ) {
        let id = self.next_id;
        self.next_id += 1;
        let (outlet, span) = (Outlet::Errand(Some(report)), tracing::Span::none());
        let mut record = Move::new(operation, urgency, Phase::Ready, outlet, span);
        record.failure = record.operation.fault().map(FenceError::failed);
        self.moves.insert(id, record);
        self.begin(id, ledger);
    }

    /// A move is ready: it may be cut, unless it has failed already.
    fn begin(&mut self, id: MoveId, ledger: &Ledger) {
        self.ready_count += 1;
        if self.ring.forget_refusal() {
            self.replan();
        }
        if self.moves[&id].failure.is_none() {
            self.list_if_uncut(id);
        }
        self.end_if_done(id, ledger);
    }

    /// Lists a move that has bytes left to be cut.
    fn list_if_uncut(&mut self, id: MoveId) {
        let record = &self.moves[&id];
        match record.cursor.way(&record.operation, &self.zones) {
            Some(_) if record.operation.is_pull() => self.ring.add_pull(id, record.urgency),
            Some(way) => self.ready.insert(id, record.urgency, self.zones.index(way)),
            None => {}
        }
    }

    fn unlist(&mut self, id: MoveId) {
        let record = &self.moves[&id];
        match record.cursor.way(&record.operation, &self.zones) {
            Some(_) if record.operation.is_pull() => self.ring.remove_pull(id),
            Some(way) => self.ready.remove(id, record.urgency, self.zones.index(way)),
            None => {}
        }
    }

    /// Makes urgent what an urgent move waits for: our own moves behind these fences, what stands before them in
    /// their lanes, and what those wait for in turn.
    fn hurry(&mut self, waits: &FenceSet) {
        let mut todo: Vec<(usize, u64)> = self.own_points(waits);
        while let Some((lane, seqno)) = todo.pop() {
            let places = self.lanes[lane].hurry(seqno);
            for id in places {
                todo.extend(self.make_urgent(id));
            }
        }
    }

    /// Makes one move urgent; what of ours it waits for.
    fn make_urgent(&mut self, id: MoveId) -> Vec<(usize, u64)> {
        let record = &self.moves[&id];
        if record.urgency == Urgency::Foreground {
            return Vec::new();
        }
        let is_listed = matches!(record.phase, Phase::Ready) && record.failure.is_none();
        if is_listed {
            self.unlist(id);
        }
        let record = self.moves.get_mut(&id).expect("a move in a lane is in the table");
        record.urgency = Urgency::Foreground;
        if is_listed {
            self.list_if_uncut(id);
            return Vec::new();
        }
        match &self.moves[&id].phase {
            Phase::Blocked { waits, .. } => self.own_points(waits),
            Phase::Ready | Phase::Ended(_) => Vec::new(),
        }
    }

    fn own_points(&self, waits: &FenceSet) -> Vec<(usize, u64)> {
        let slow = self.lanes.iter().enumerate().filter(|(_, lane)| lane.urgency == Urgency::Background);
        slow.filter_map(|(index, lane)| Some((index, waits.get(lane.timeline)?.seqno()))).collect()
    }

    /// The fences a move waited for have signalled. Returns them, to be dropped without the lock.
    pub(crate) fn release(&mut self, id: MoveId, ledger: &Ledger) -> Option<(FenceSet, FenceSet)> {
        let record = self.moves.get_mut(&id)?;
        if !matches!(record.phase, Phase::Blocked { .. }) && !mutant!("abandoned_moves_are_released") {
            return None;
        }
        let Phase::Blocked { waits, needs } = std::mem::replace(&mut record.phase, Phase::Ready) else {
            return None;
        };
        if let Outlet::Lane(lane) = record.outlet {
            self.lanes[lane].blocked -= 1;
        }
        record.failure = record
            .operation
            .fault()
            .map(FenceError::failed)
            .or_else(|| needs.first_error().map(|error| error.as_dependency()));
        self.begin(id, ledger);
        Some((waits, needs))
    }

    /// Fails every move that still waits for fences. Returns those, to be dropped without the lock.
    pub(crate) fn abandon_blocked(&mut self, timelines: &[Timeline], ledger: &Ledger) -> Vec<FenceSet> {
        let mut fences = Vec::new();
        for record in self.moves.values_mut() {
            let (Phase::Blocked { .. }, Outlet::Lane(lane)) = (&record.phase, &record.outlet) else {
                continue;
            };
            let lane = *lane;
            let error = FenceError::Abandoned { timeline: timelines[lane].name().into() };
            if let Phase::Blocked { waits, needs } =
                std::mem::replace(&mut record.phase, Phase::Ended(Err(error)))
            {
                fences.extend([waits, needs]);
            }
            let lane = &mut self.lanes[lane];
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
                match chunk.part.leg {
                    Leg::Whole => {}
                    Leg::Fill(slot) => self.filled(slot),
                    Leg::Empty(slot) => self.emptied(slot, now, ledger),
                }
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
        self.replan();
        self.give_reason(format!("{} quarantined: {kind}", self.engines[engine].title()), ledger);
    }

    fn redo_later(&mut self, mut part: Part, guilty: Option<usize>, engine: usize, error: EngineError) {
        if let Some(guilty) = guilty {
            part.tried.insert(guilty);
            if matches!(error, EngineError::Unreachable { .. }) {
                part.beyond.insert(guilty);
            }
        }
        part.trouble = Some((engine, error));
        if let Leg::Empty(slot) = part.leg
            && mutant!("slot_is_free_when_its_second_engine_fails")
        {
            self.ring.free.push_back(slot);
        }
        self.wait(part);
    }

    /// Has a part wait for an engine, unless its move has failed.
    fn wait(&mut self, part: Part) {
        let record = self.moves.get_mut(&part.id).expect("a part keeps its move");
        if record.failure.is_none() {
            record.waiting += 1;
            self.waiting.push(part);
        } else if let Some(slot) = part.leg.slot()
            && !mutant!("failed_move_keeps_its_slot")
        {
            self.ring.vacate(slot);
        }
    }

    /// Takes a part from those that wait.
    fn wait_no_more(&mut self, at: usize) -> Part {
        let part = self.waiting.remove(at);
        self.moves.get_mut(&part.id).expect("a part keeps its move").waiting -= 1;
        part
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
        let chunks = if mutant!("hung_engine_keeps_its_tickets") {
            slot.in_flight.iter().cloned().collect()
        } else {
            std::mem::take(&mut slot.in_flight).into()
        };
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
        if let Some((report, outcome)) = self.told.pop_front() {
            return Step::Tell(report, outcome);
        }
        if let Some(lane) = self.publishable.pop_front() {
            return self.publish(lane);
        }
        let staging = self.find_ring().map(Step::FindRing).or_else(|| self.next_errand());
        staging.or_else(|| self.assign(now, ledger)).unwrap_or(Step::Rest)
    }

    /// Reasons that were given since the last call.
    pub(crate) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// The engines, to be dropped without the lock; nothing may be left to do.
    pub(crate) fn take_engines(&mut self) -> Vec<EngineSlot> {
        let engines = std::mem::take(&mut self.engines);
        self.replan();
        engines
    }
}
