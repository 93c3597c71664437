//! What the owner of a timeline leaves for others to call: hooks, and the look of the watchdog.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::deadline::Deadline;
use crate::error::FenceError;
use crate::hang::{Hang, HangAction, HangHook, Patience};
use crate::place::Place;
use crate::sync::{Arc, Mutex, Stable, mutant};
use crate::watchdog::Watched;

/// Told of a deadline. See [`TimelineBuilder::on_deadline`](crate::TimelineBuilder::on_deadline).
pub(crate) type DeadlineHook = Box<dyn Fn(&Deadline) + Send + Sync>;
/// Told that somebody begins to wait. See [`TimelineBuilder::on_first_waiter`](crate::TimelineBuilder::on_first_waiter).
pub(crate) type WaiterHook = Box<dyn Fn() + Send + Sync>;

/// Hooks that strangers ring, in their own threads.
#[derive(Default)]
pub(crate) struct Hooks {
    pub on_deadline: Option<DeadlineHook>,   // constant
    pub on_first_waiter: Option<WaiterHook>, // constant
}

impl Hooks {
    pub(crate) fn is_empty(&self) -> bool {
        self.on_deadline.is_none() && self.on_first_waiter.is_none()
    }

    pub(crate) fn ring_deadline(&self, deadline: &Deadline) {
        let Some(hook) = &self.on_deadline else { return };
        if catch_unwind(AssertUnwindSafe(|| hook(deadline))).is_err() {
            tracing::error!(timeline = %deadline.timeline, "the deadline hook panicked");
        }
    }

    pub(crate) fn ring_first_waiter(&self) {
        let Some(hook) = &self.on_first_waiter else { return };
        if catch_unwind(AssertUnwindSafe(hook)).is_err() {
            tracing::error!("the hook for the first waiter panicked");
        }
    }
}

/// The owner of a place, as the watchdog knows it. Gone when the [`Timeline`](crate::Timeline) is, but for a look that is
/// under way.
pub(crate) struct Owner {
    pub name: Arc<str>,       // constant
    pub place: Stable<Place>, // constant
    pub base: u64,            // constant
    /// Taken when the owner leaves, so that what the hook owns does not go away later, with a look at the timeline.
    pub on_hang: Mutex<Option<Arc<HangHook>>>,
}

impl Watched for Owner {
    fn check(&self, now: Instant) -> Option<Instant> {
        let hook = self.on_hang.lock().clone()?;
        let (completed, allocated, waited) = match self.place.patience(self.base, now) {
            Patience::Gone => return None,
            Patience::Until(next) => return Some(next),
            Patience::Over { completed, allocated, waited } => (completed, allocated, waited),
        };
        let point = completed + 1;
        let hang = Hang {
            timeline: self.name.clone(),
            seqno: point - self.base,
            allocated: allocated - self.base,
            waited,
        };
        tracing::warn!(timeline = %self.name, seqno = hang.seqno, waited = ?hang.waited, "a point hangs");
        let action = catch_unwind(AssertUnwindSafe(|| hook(&hang)))
            .unwrap_or_else(|_| HangAction::FailAll(FenceError::failed("the hang hook panicked")));
        // Should the owner have left meanwhile, these points are complete, whoever has the place now.
        match action {
            HangAction::Extend => {}
            HangAction::Fail(error) => self.place.fail(Some(point), point, error),
            HangAction::FailAll(error) => {
                let late = mutant!("hang_takes_along_what_came_later");
                let last = if late { self.place.allocated() } else { allocated };
                self.place.fail(None, last, error);
            }
        }
        match self.place.patience(self.base, now) {
            Patience::Gone => None,
            Patience::Until(next) => Some(next),
            Patience::Over { .. } => Some(now),
        }
    }
}
