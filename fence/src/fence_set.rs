//! Sets of fences: the latest point of each of several timelines.
//!
//! Since a point implies all earlier ones of its timeline, a set needs one fence a timeline, however many were added;
//! merging two sets is a maximum per timeline. What is lost is the *error* of a point that a later one of the same
//! timeline replaced: whoever needs to know of each failure keeps those fences one by one.

use std::cmp::Ordering as Order;
#[cfg(not(any(loom, shuttle)))]
use std::time::Duration;
use std::time::Instant;

use crate::error::FenceError;
#[cfg(not(any(loom, shuttle)))]
use crate::error::WaitError;
use crate::fence::{Callback, Fence};
use crate::lockdep;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, mutant};
use crate::timeline::TimelineId;

/// At most one fence a timeline, the latest of those added. [`Fence::signaled`] leaves no trace in it.
#[derive(Clone, Default)]
pub struct FenceSet {
    fences: Vec<Fence>, // sorted by timeline id, each id once
}

impl FenceSet {
    /// The empty set, which is signalled.
    pub const fn new() -> FenceSet {
        FenceSet { fences: Vec::new() }
    }

    /// Adds a fence; of two points of one timeline the later stays.
    pub fn add(&mut self, fence: Fence) {
        let id = fence.timeline_id();
        if id == TimelineId(0) {
            return;
        }
        match self.position(id) {
            Ok(index) => {
                if self.fences[index].seqno() < fence.seqno() {
                    self.fences[index] = fence;
                }
            }
            Err(index) => self.fences.insert(index, fence),
        }
    }

    /// Adds every fence of `other`.
    pub fn merge(&mut self, other: &FenceSet) {
        if self.fences.is_empty() {
            self.fences.clone_from(&other.fences);
            return;
        }
        if other.fences.len() <= 2 {
            return other.fences.iter().for_each(|fence| self.add(fence.clone()));
        }
        self.fences = merged(&self.fences, &other.fences);
    }

    /// Takes the fence of a timeline out of the set.
    pub fn remove(&mut self, timeline: TimelineId) -> Option<Fence> {
        self.position(timeline).ok().map(|index| self.fences.remove(index))
    }

    /// Drops the fences that have signalled, with their errors.
    pub fn prune(&mut self) {
        self.fences.retain(|fence| !fence.is_signaled());
    }

    /// The fence of a timeline.
    pub fn get(&self, timeline: TimelineId) -> Option<&Fence> {
        self.position(timeline).ok().map(|index| &self.fences[index])
    }

    /// The fences, by the age of their timelines.
    pub fn iter(&self) -> std::slice::Iter<'_, Fence> {
        self.fences.iter()
    }

    /// The number of timelines in the set.
    pub fn len(&self) -> usize {
        self.fences.len()
    }

    /// Whether no fence is in the set.
    pub fn is_empty(&self) -> bool {
        self.fences.is_empty()
    }

    /// Whether all have signalled.
    pub fn is_signaled(&self) -> bool {
        self.fences.iter().all(Fence::is_signaled)
    }

    /// The error of the first fence, by the age of its timeline, that has failed so far.
    pub fn first_error(&self) -> Option<FenceError> {
        self.fences.iter().find_map(|fence| fence.status()?.err())
    }

    /// Sleeps until all have signalled, whatever their outcome, and returns the first error in set order.
    ///
    /// # Panics
    /// As [`Fence::wait`].
    #[track_caller]
    pub fn wait(&self) -> Result<(), FenceError> {
        lockdep::assert_may_wait();
        let mut outcome = Ok(());
        for fence in &self.fences {
            outcome = outcome.and(fence.wait());
        }
        outcome
    }

    /// As [`wait`](FenceSet::wait), but gives up after `timeout`, which covers all of the set.
    #[cfg(not(any(loom, shuttle)))]
    #[track_caller]
    pub fn wait_timeout(&self, timeout: Duration) -> Result<(), WaitError> {
        lockdep::assert_may_wait();
        let begin = Instant::now();
        let deadline = begin.checked_add(timeout);
        let mut outcome = Ok(());
        for fence in &self.fences {
            match fence.wait_until(begin, deadline) {
                Err(timed_out @ WaitError::TimedOut { .. }) => return Err(timed_out),
                result => outcome = outcome.and(result),
            }
        }
        outcome
    }

    /// Says that somebody would like all to have signalled by `at`; see [`Fence::set_deadline`].
    pub fn set_deadline(&self, at: Instant) {
        self.fences.iter().for_each(|fence| fence.set_deadline(at));
    }

    /// Runs `callback` once, when all have signalled with or without error, in the thread that signals the last one.
    ///
    /// A set that is signalled gives `callback` back unrun.
    pub fn on_signaled<F: FnOnce() + Send + 'static>(&self, callback: F) -> Result<(), F> {
        self.count_down(callback, drop).map_or(Ok(()), Err)
    }

    /// The same, but runs `callback` at once, in this thread, when the set is signalled already.
    pub fn when_signaled(&self, callback: impl FnOnce() + Send + 'static) {
        if let Err(signalled_already) = self.on_signaled(callback) {
            signalled_already();
        }
    }

    /// As [`on_signaled`](FenceSet::on_signaled), and gives what hangs on the fences to `keep`, one by one. The callback comes back
    /// if all have signalled.
    pub(crate) fn count_down<F: FnOnce() + Send + 'static>(
        &self,
        callback: F,
        mut keep: impl FnMut(Callback),
    ) -> Option<F> {
        // One more than there are fences, so that it cannot end before all were looked at.
        let registrar = usize::from(!mutant!("registration_is_not_counted"));
        let countdown = Arc::new(Countdown {
            remaining: AtomicUsize::new(self.fences.len() + registrar),
            callback: Mutex::new(Some(callback)),
        });
        for fence in &self.fences {
            let theirs = countdown.clone();
            let hung = fence.on_signal(move |_| {
                if let Some(callback) = theirs.arrive() {
                    callback();
                }
            });
            match hung {
                Ok(hung) => keep(hung),
                Err(_) => drop(countdown.arrive()),
            }
        }
        countdown.arrive()
    }

    fn position(&self, id: TimelineId) -> Result<usize, usize> {
        self.fences.binary_search_by_key(&id, Fence::timeline_id)
    }
}

/// Counts a set's fences down to the one callback.
struct Countdown<F> {
    remaining: AtomicUsize,
    callback: Mutex<Option<F>>,
}

impl<F> Countdown<F> {
    /// The callback, for whoever arrives last.
    fn arrive(&self) -> Option<F> {
        let order = if mutant!("last_to_arrive_sees_nothing") { Ordering::Relaxed } else { Ordering::AcqRel };
        if self.remaining.fetch_sub(1, order) > 1 {
            return None;
        }
        self.callback.lock().take()
    }
}

/// The union of two sorted lists, the later point of each timeline.
fn merged(left: &[Fence], right: &[Fence]) -> Vec<Fence> {
    let mut union = Vec::with_capacity(left.len() + right.len());
    let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let next = match a.timeline_id().cmp(&b.timeline_id()) {
            Order::Less => left.next(),
            Order::Greater => right.next(),
            Order::Equal => {
                let (a, b) = (left.next(), right.next());
                if a.map(Fence::seqno) >= b.map(Fence::seqno) { a } else { b }
            }
        };
        union.extend(next.cloned());
    }
    union.extend(left.chain(right).cloned());
    union
}

impl std::fmt::Debug for FenceSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(&self.fences).finish()
    }
}

impl From<Fence> for FenceSet {
    fn from(fence: Fence) -> Self {
        FenceSet::from_iter([fence])
    }
}

impl FromIterator<Fence> for FenceSet {
    fn from_iter<I: IntoIterator<Item = Fence>>(fences: I) -> Self {
        let mut set = FenceSet::new();
        set.extend(fences);
        set
    }
}

impl Extend<Fence> for FenceSet {
    fn extend<I: IntoIterator<Item = Fence>>(&mut self, fences: I) {
        fences.into_iter().for_each(|fence| self.add(fence));
    }
}

impl<'a> IntoIterator for &'a FenceSet {
    type Item = &'a Fence;
    type IntoIter = std::slice::Iter<'a, Fence>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl IntoIterator for FenceSet {
    type Item = Fence;
    type IntoIter = std::vec::IntoIter<Fence>;

    fn into_iter(self) -> Self::IntoIter {
        self.fences.into_iter()
    }
}
