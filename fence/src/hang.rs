//! Hangs: what a timeline with a timeout finds out, and who decides about it.
//!
//! The time counts from when the oldest outstanding point became the oldest, because it was handed out or because the
//! one before it completed. Both moments are noted under the timeline's lock together with the point, so a hang is never
//! found too early. An idle timeline is looked at once a timeout: a point published in between cannot be overdue before
//! the next look, so publishing needs to wake nobody.

use std::time::{Duration, Instant};

use crate::error::FenceError;
use crate::sync::{Arc, Mutex};

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

/// A timeline's patience.
pub(crate) struct Timeout {
    pub after: Duration, // constant
    /// Taken by the owner's drop, so that what the hook owns never goes away with some fence, under a lock.
    pub hook: Mutex<Option<Arc<HangHook>>>,
}

/// Since when the oldest outstanding point is the oldest, and when to look at it.
pub(crate) struct Pulse {
    pub oldest_since: Instant,
    pub deadline: Instant,
}

impl Pulse {
    pub(crate) fn from_now(timeout: Duration) -> Pulse {
        let now = Instant::now();
        Pulse { oldest_since: now, deadline: now + timeout }
    }
}
