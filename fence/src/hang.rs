//! Hangs: what a timeline with a timeout finds out, and who decides about it.
//!
//! The time counts from when the oldest outstanding point became the oldest, because it was handed out while nothing was
//! outstanding or because the one before it completed. Whoever does that notes the moment *after* the fact, under the
//! timeline's lock, together with the point. A look that comes in between finds the moment of another point, and begins to
//! count then. So a hang is never found too early, points handed out behind others need no lock, and neither does the
//! signal of the last one. An idle timeline is looked at once a timeout: a point published in between cannot be overdue
//! before the next look, so publishing needs to wake nobody.

use std::time::{Duration, Instant};

use crate::error::FenceError;
use crate::sync::Arc;

/// What a hang hook is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hang {
    /// Name of the timeline.
    pub timeline: Arc<str>,
    /// The oldest outstanding point, the one that hangs.
    pub seqno: u64,
    /// The last point handed out.
    pub allocated: u64,
    /// How long it has been the oldest outstanding point.
    pub waited: Duration,
}

impl Hang {
    /// The error that says so.
    pub fn error(&self) -> FenceError {
        FenceError::TimedOut {
            timeline: self.timeline.clone(),
            seqno: self.seqno,
            waited_ns: u64::try_from(self.waited.as_nanos()).unwrap_or(u64::MAX),
        }
    }
}

/// What a hang hook decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HangAction {
    /// Still working: look again after another timeout.
    Extend,
    /// Fail the point that hangs; the next one gets a timeout of its own.
    Fail(FenceError),
    /// Fail every point that was handed out when the hang was found.
    FailAll(FenceError),
}

/// Decides about a hang. Called by the watchdog's thread with no lock held; the place to reset an engine.
pub type HangHook = Box<dyn Fn(&Hang) -> HangAction + Send + Sync>;

/// What a look at a timeline's patience finds.
pub(crate) enum Patience {
    /// The owner has left.
    Gone,
    /// Nothing hangs; look again then.
    Until(Instant),
    /// `completed + 1` hangs.
    Over { completed: u64, allocated: u64, waited: Duration },
}

/// Since when a point is the oldest outstanding one, and when to look at it. The timeline's lock.
pub(crate) struct Pulse {
    timeout: Duration, // constant
    oldest: u64,       // the point that is meant
    since: Instant,
    due: Instant,
}

impl Pulse {
    pub(crate) fn new(timeout: Duration, oldest: u64) -> Pulse {
        let now = Instant::now();
        Pulse { timeout, oldest, since: now, due: now + timeout }
    }

    /// Notes that `oldest` is the oldest outstanding point from now on. Those who note may overtake each other.
    pub(crate) fn restart(&mut self, oldest: u64) {
        if oldest > self.oldest {
            *self = Pulse::new(self.timeout, oldest);
        }
    }

    pub(crate) fn look(&mut self, now: Instant, completed: u64, allocated: u64) -> Patience {
        if completed >= allocated {
            // A point published from now on cannot be overdue before that.
            return Patience::Until(now + self.timeout);
        }
        self.restart(completed + 1);
        if now < self.due {
            return Patience::Until(self.due);
        }
        self.due = now + self.timeout;
        let waited = now.saturating_duration_since(self.since);
        Patience::Over { completed, allocated, waited }
    }
}
