//! An engine as the queue sees it: what it reaches, how it fares, and the chunks it holds.
//!
//! ```text
//!              N failures in a row, or Dead
//!   Working ------------------------------------> Quarantined    (no more chunks, for good)
//!     | no progress for chunk_timeout                  ^
//!     v                 reset says Dead, or Nth        |
//!   Resetting ----------------------------------------'
//!     `--- reset says Recovered ---> Working
//! ```
//!
//! A chunk in flight is known by its *ticket*, a number that is never used twice. Taking the chunk away from the
//! engine (a hang) removes the ticket, so an answer that comes after all finds nothing and changes nothing.

use crate::engine::{CopyEngine, EngineError, Reset};
use crate::ring::Leg;
use crate::schedule::MoveId;
use crate::zones::{Way, WaySet, Zones};
use devpagemap_fence::sync::mutant;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Names one handing-over of one chunk to one engine.
pub(crate) type Ticket = u64;

/// Failures in a row after which an engine gets no more chunks.
pub(crate) const FAILURES_MAX: u32 = 3;

/// A set of engines, by index.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EngineSet(u64);

impl EngineSet {
    /// How many engines there can be.
    pub(crate) const CAPACITY: usize = 64;

    pub(crate) fn insert(&mut self, engine: usize) {
        self.0 |= 1 << engine;
    }

    pub(crate) fn contains(self, engine: usize) -> bool {
        self.0 & 1 << engine != 0
    }

    pub(crate) fn without(self, others: EngineSet) -> EngineSet {
        EngineSet(self.0 & !others.0)
    }
}

/// A byte range of a move, as an engine holds it or as it waits for one.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) id: MoveId,
    pub(crate) offset_bytes: u64,
    pub(crate) len_bytes: u64,
    /// All the way, or into or out of the staging ring.
    pub(crate) leg: Leg,
    /// The way of this leg.
    pub(crate) way: Way,
    /// Engines that failed on it.
    pub(crate) tried: EngineSet,
    /// Those of them that only could not reach its addresses.
    pub(crate) beyond: EngineSet,
    /// It was in the staging ring in vain.
    pub(crate) unstaged: bool,
    /// The last engine that did not do it, and why.
    pub(crate) trouble: Option<(usize, EngineError)>,
}

/// A chunk that an engine holds.
#[derive(Clone, Debug)]
pub(crate) struct InFlight {
    pub(crate) ticket: Ticket,
    pub(crate) since: Instant,
    pub(crate) part: Part,
}

/// Whether an engine is one of the copy engines or the last resort.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Engine,
    Fallback,
}

/// How an engine fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Working,
    Resetting,
    Quarantined(EngineError),
}

/// One engine. All of it is protected by the queue's lock.
pub(crate) struct EngineSlot {
    pub(crate) engine: Arc<dyn CopyEngine>,
    pub(crate) name: Arc<str>,
    pub(crate) role: Role,
    pub(crate) reaches: WaySet,
    pub(crate) depth: usize,
    pub(crate) health: Health,
    failures_in_a_row: u32,
    /// Oldest first.
    pub(crate) in_flight: VecDeque<InFlight>,
    /// When it last answered.
    answered: Option<Instant>,
}

impl EngineSlot {
    /// Asks the engine once for what does not change.
    pub(crate) fn new(engine: Arc<dyn CopyEngine>, role: Role, zones: &Zones) -> EngineSlot {
        EngineSlot {
            name: engine.name().into(),
            role,
            reaches: zones.reached_by(&*engine),
            depth: engine.depth().max(1),
            health: Health::Working,
            failures_in_a_row: 0,
            in_flight: VecDeque::new(),
            answered: None,
            engine,
        }
    }

    /// Whether it takes chunks, now or once its reset is over.
    pub(crate) fn has_a_future(&self) -> bool {
        !matches!(self.health, Health::Quarantined(_))
    }

    pub(crate) fn has_room(&self) -> bool {
        self.health == Health::Working && self.in_flight.len() < self.depth
    }

    /// How it is called in reasons.
    pub(crate) fn title(&self) -> String {
        match self.role {
            Role::Engine => format!("copy engine {}", self.name),
            Role::Fallback => format!("fallback {}", self.name),
        }
    }

    /// Takes the chunk of this ticket from the engine, if it still holds it.
    pub(crate) fn take(&mut self, ticket: Ticket, now: Instant) -> Option<InFlight> {
        let position = self.in_flight.iter().position(|chunk| chunk.ticket == ticket)?;
        self.answered = Some(now);
        self.in_flight.remove(position)
    }

    /// When the engine counts as hung, if it makes no progress before.
    pub(crate) fn hung_at(&self, timeout: Duration) -> Option<Instant> {
        let oldest = self.in_flight.front()?;
        (self.health == Health::Working).then(|| self.last_progress(oldest.since) + timeout)
    }

    /// The last sign of life while a chunk given at `since` was the oldest.
    pub(crate) fn last_progress(&self, since: Instant) -> Instant {
        self.answered.map_or(since, |answered| answered.max(since))
    }

    pub(crate) fn succeeded(&mut self) {
        self.failures_in_a_row = 0;
    }

    /// Notes a failure; true when it was the one too many.
    pub(crate) fn failed(&mut self, error: &EngineError) -> bool {
        self.failures_in_a_row += 1;
        let worn_out = self.role == Role::Engine && self.failures_in_a_row >= FAILURES_MAX;
        let condemned = self.has_a_future() && (worn_out || *error == EngineError::Dead);
        if condemned {
            self.health = Health::Quarantined(error.clone());
            if mutant!("quarantine_forgets_the_chunks") {
                self.in_flight.clear();
            }
        }
        condemned
    }

    /// Notes how a reset ended; true when the engine is quarantined from now on.
    pub(crate) fn was_reset(&mut self, outcome: Reset, hang: &EngineError) -> bool {
        self.health = Health::Working;
        match outcome {
            Reset::Recovered => self.failed(hang),
            Reset::Dead => {
                self.health = Health::Quarantined(hang.clone());
                true
            }
        }
    }
}

/// What went wrong, without the figures that differ each time.
pub(crate) fn kind_of_trouble(error: &EngineError) -> String {
    match error {
        EngineError::Hung { .. } => "hung".to_owned(),
        EngineError::Unreachable { addr, .. } => format!("cannot reach an address in {}", addr.space()),
        EngineError::Failed { .. } | EngineError::Dead => error.to_string(),
    }
}
