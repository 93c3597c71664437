//! The first of several fences.
//!
//! **Why this is no fence.** "Any of these is done" says nothing about the others: they are still running, still
//! reading and writing. In a reservation such a fence would let the next user at bytes that are in use, so the kernel,
//! which had this as a mode of its fence array, took it out again. Here [`AnyOf`] is a type of its own. It can be
//! waited for, by a thread, a task ([`signaled_future`](AnyOf::signaled_future)) or an event loop
//! ([`event`](AnyOf::event)), and says *which* fence it was; it never turns into a [`Fence`] or goes into a
//! [`FenceSet`](crate::FenceSet), so nobody can build on it by mistake:
//!
//! ```compile_fail,E0277
//! use devpagemap_fence::{AnyOf, FenceSet, Timeline};
//!
//! let timeline = Timeline::new("ring");
//! let any = AnyOf::new([timeline.next_point()]).unwrap();
//! let set = FenceSet::from(any); // the others would be forgotten
//! ```
//!
//! **A failure is an answer too.** A member that failed is done, and the wait ends with its error. Whoever wants the
//! first *success* goes on with [`without`](AnyOf::without).
//!
//! Of one timeline the *earliest* point is kept, as the later ones cannot come first. Of members that are complete
//! together, the one on the oldest timeline is named.
//!
//! ```
//! use devpagemap_fence::{AnyOf, FenceError, Timeline};
//!
//! let (render, copy) = (Timeline::new("render"), Timeline::new("copy"));
//! let any = AnyOf::new([render.next_point(), copy.next_point()]).unwrap();
//! copy.fail(1, FenceError::DeviceLost);
//! let first = any.wait();
//! assert_eq!((first.fence.timeline_id(), first.outcome), (copy.id(), Err(FenceError::DeviceLost)));
//!
//! let others = any.without(&first.fence).unwrap();
//! assert!(!others.is_signaled());
//! # render.signal(1);
//! ```

use std::fmt;
#[cfg(not(any(loom, shuttle)))]
use std::time::{Duration, Instant};

use crate::error::FenceError;
use crate::fence::{Fence, count_blocking_wait};
use crate::hung::Hung;
use crate::lockdep;
use crate::sync::{Arc, Bell};

/// A fence that was the first of several, and how it ended.
#[derive(Clone, Debug)]
pub struct First {
    /// The fence.
    pub fence: Fence,
    /// Its outcome.
    pub outcome: Result<(), FenceError>,
}

/// Several fences of which the first is waited for; never empty.
#[derive(Clone)]
pub struct AnyOf {
    fences: Vec<Fence>, // constant; sorted by timeline id, each id once, the earliest point
}

impl AnyOf {
    /// The first of `fences`; nothing if there are none, since no first would ever come.
    pub fn new(fences: impl IntoIterator<Item = Fence>) -> Option<AnyOf> {
        let mut fences: Vec<Fence> = fences.into_iter().collect();
        fences.sort_by_key(|fence| (fence.timeline_id(), fence.seqno()));
        fences.dedup_by_key(|fence| fence.timeline_id());
        (!fences.is_empty()).then_some(AnyOf { fences })
    }

    /// The fences that may be the first: one a timeline, by the age of their timelines.
    pub fn fences(&self) -> &[Fence] {
        &self.fences
    }

    /// The others, when `fence` is none to wait for any more; nothing if there are no others.
    pub fn without(&self, fence: &Fence) -> Option<AnyOf> {
        let others = self.fences.iter().filter(|other| other.timeline_id() != fence.timeline_id());
        AnyOf::new(others.cloned())
    }

    /// Whether one of them has signalled.
    pub fn is_signaled(&self) -> bool {
        self.fences.iter().any(Fence::is_signaled)
    }

    /// The first that has signalled, by the age of its timeline; nothing while all are outstanding.
    pub fn first(&self) -> Option<First> {
        self.fences.iter().find_map(|fence| {
            let outcome = fence.status()?;
            Some(First { fence: fence.clone(), outcome })
        })
    }

    /// Sleeps until one of them has signalled, and says which and how.
    ///
    /// # Panics
    /// As [`Fence::wait`].
    #[track_caller]
    pub fn wait(&self) -> First {
        lockdep::assert_may_wait();
        loop {
            if let Some(first) = self.first() {
                return first;
            }
            if let Some((bell, _hung)) = self.bell() {
                count_blocking_wait();
                bell.sleep();
            }
        }
    }

    /// As [`wait`](AnyOf::wait), but gives up after `timeout`: then nothing. A timeout of zero only looks.
    #[cfg(not(any(loom, shuttle)))]
    #[track_caller]
    pub fn wait_timeout(&self, timeout: Duration) -> Option<First> {
        let Some(deadline) = Instant::now().checked_add(timeout) else { return Some(self.wait()) };
        lockdep::assert_may_wait();
        if timeout.is_zero() || self.is_signaled() {
            return self.first();
        }
        if let Some((bell, _hung)) = self.bell() {
            count_blocking_wait();
            bell.sleep_until(deadline);
        }
        self.first()
    }

    /// A bell that rings once one of them signals, until the callbacks are dropped; nothing if one has signalled.
    fn bell(&self) -> Option<(Arc<Bell>, Hung)> {
        let bell = Arc::new(Bell::mine());
        let hung = Hung::on_each(&self.fences, || {
            let bell = bell.clone();
            move || bell.ring()
        })?;
        Some((bell, hung))
    }
}

impl fmt::Debug for AnyOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyOf")?;
        f.debug_list().entries(&self.fences).finish()
    }
}
