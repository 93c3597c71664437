//! Timelines: numbered points that signal in order.
//!
//! A timeline has an owner (the [`Timeline`] handle), who hands out points and signals them, and any number of
//! [`Fence`]s, which are points. "Point 7 is done" means that all points up to 7 are, so the whole state is one
//! number, the last completed seqno, and signalling a thousand points is one store.
//!
//! ```text
//!   word:  | completed seqno (62 bits)                                   | FAILED | WAITED |
//!
//!   points:  1  2  3  4  5  6  7  8  9
//!            done ───────▶│            │
//!                     completed    allocated
//! ```
//!
//! **Why no wake-up can be missed.** Whoever wants to hear of a point first queues itself (under the timeline's lock)
//! by setting WAITED with a read-modify-write of the word, and looks at the completed seqno which that operation
//! returns. Whoever signals advances the word with a read-modify-write too, and looks at the WAITED bit which *that*
//! returns. All read-modify-writes of one atomic stand in one order. If the waiter's came first, the signaller sees
//! WAITED and goes on to the lock, where it finds the waiter, since the waiter queued itself before letting go of the
//! lock. If the signaller's came first, the waiter sees the new seqno and does not sleep. WAITED is cleared only
//! under the lock, and only when nobody is queued. With nobody waiting a signal is one compare-and-swap.
//!
//! **Errors** are kept for failed points only (`failures.rs`). FAILED is set by the same read-modify-write that completes
//! the failed point, and the error is filed before the lock is let go of, so nobody can see a point complete without
//! seeing that it failed. When nobody holds a fence of the timeline any more, its errors are dropped.
//!
//! **Callbacks** run in seqno order, one thread at a time, after the lock was dropped. A thread that signals while
//! another one is running callbacks (or from inside a callback) leaves its own to that thread, so callbacks neither
//! overtake each other nor nest. Sleepers do not wait for callbacks; every signaller wakes them itself.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::error::FenceError;
use crate::failures::Failures;
use crate::fence::{Fence, Parker};
use crate::hang::{Hang, HangAction, HangHook, Pulse, Timeout};
use crate::levels::{self, Guard, Lock};
use crate::lockdep;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, Weak};
use crate::watchdog::Watched;

/// Somebody is queued: a signal has to take the lock.
const WAITED: u64 = 1;
/// Some point failed: a status has to take the lock.
const FAILED: u64 = 2;
const FLAGS: u64 = WAITED | FAILED;
const SEQNO_SHIFT: u32 = 2;

/// Names a timeline; never reused while the process lives. Ordered by age.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineId(pub(crate) u64);

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "timeline {}", self.0)
    }
}

pub(crate) type Outcome = Result<(), FenceError>;
pub(crate) type Notify = Box<dyn FnOnce(Outcome) + Send>;

struct Queued<T> {
    seqno: u64,
    id: u64,
    what: T,
}

struct State {
    sleepers: VecDeque<Queued<Arc<Parker>>>, // sorted by seqno, then by arrival
    callbacks: VecDeque<Queued<Notify>>,     // sorted by seqno, then by arrival
    next_id: u64,
    draining: bool, // some thread is running callbacks and will run what becomes due meanwhile
    failures: Failures,
    pulse: Option<Pulse>, // with a timeout only
}

/// What fences and their timeline share.
pub(crate) struct Inner {
    id: TimelineId,           // constant
    name: Arc<str>,           // constant
    word: AtomicU64,          // completed seqno and flags; see the module's text
    allocated: AtomicU64,     // last point handed out
    timeout: Option<Timeout>, // constant
    state: Lock<levels::Timeline, State>,
}

/// A new timeline id; ids are names and no part of any protocol, so loom need not see them.
fn next_id() -> TimelineId {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    TimelineId(NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Inner {
    fn new(name: Arc<str>, timeout: Option<Timeout>) -> Arc<Inner> {
        let pulse = timeout.as_ref().map(|timeout| Pulse::from_now(timeout.after));
        let state = State {
            sleepers: VecDeque::new(),
            callbacks: VecDeque::new(),
            next_id: 0,
            draining: false,
            failures: Failures::default(),
            pulse,
        };
        Arc::new(Inner {
            id: next_id(),
            name,
            word: AtomicU64::new(0),
            allocated: AtomicU64::new(0),
            timeout,
            state: Lock::new("timeline", state),
        })
    }

    pub(crate) fn id(&self) -> TimelineId {
        self.id
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The last completed seqno.
    #[inline]
    pub(crate) fn completed(&self) -> u64 {
        self.word.load(Ordering::Acquire) >> SEQNO_SHIFT
    }

    fn allocated(&self) -> u64 {
        self.allocated.load(Ordering::Acquire)
    }

    /// How point `seqno` ended, if it has.
    pub(crate) fn status(&self, seqno: u64) -> Option<Outcome> {
        let word = self.word.load(Ordering::Acquire);
        if word >> SEQNO_SHIFT < seqno {
            return None;
        }
        if word & FAILED == 0 {
            return Some(Ok(()));
        }
        Some(self.state.lock_leaf().failures.outcome(seqno))
    }

    /// Moves the completed seqno up to `seqno` and sets `flags`; the word as it was, or nothing if it is there already.
    #[inline]
    fn advance(&self, seqno: u64, flags: u64) -> Option<u64> {
        let mut word = self.word.load(Ordering::Relaxed);
        while word >> SEQNO_SHIFT < seqno {
            let next = seqno << SEQNO_SHIFT | (word & FLAGS) | flags;
            // Release: what the signaller did before is seen by whoever sees the point complete.
            #[cfg(not(loom_mutant = "signal_publishes_nothing"))]
            let success = Ordering::AcqRel;
            #[cfg(loom_mutant = "signal_publishes_nothing")]
            let success = Ordering::Relaxed;
            match self.word.compare_exchange_weak(word, next, success, Ordering::Relaxed) {
                Ok(before) => return Some(before),
                Err(now) => word = now,
            }
        }
        None
    }

    fn is_known(&self, seqno: u64) -> bool {
        let allocated = self.allocated.load(Ordering::Relaxed);
        if seqno > allocated {
            tracing::error!(timeline = %self.name, seqno, allocated, "a point that was never handed out cannot signal");
        }
        seqno <= allocated
    }

    #[track_caller]
    fn signal(&self, seqno: u64) {
        lockdep::assert_may_signal();
        if !self.is_known(seqno) {
            return;
        }
        let before = match &self.timeout {
            None => self.advance(seqno, 0),
            Some(timeout) => {
                let mut state = self.state.lock_leaf();
                let before = self.advance(seqno, 0);
                if before.is_some() {
                    state.pulse = Some(Pulse::from_now(timeout.after));
                }
                before
            }
        };
        if before.is_some_and(|word| word & WAITED != 0) {
            self.notify();
        }
    }

    /// Completes all points up to `last`, of which those from `first` on failed.
    #[track_caller]
    fn fail(&self, first: Option<u64>, last: u64, error: FenceError, forgotten: bool) {
        lockdep::assert_may_signal();
        if !self.is_known(last) {
            return;
        }
        let mut state = self.state.lock_leaf();
        let Some(before) = self.advance(last, FAILED) else { return };
        if forgotten && state.callbacks.is_empty() {
            state.failures.clear();
        }
        let first = first.unwrap_or((before >> SEQNO_SHIFT) + 1);
        #[cfg(loom_mutant = "error_filed_too_late")]
        let mut state = {
            drop(state);
            self.state.lock_leaf()
        };
        state.failures.file(first, last, error);
        if let Some(timeout) = &self.timeout {
            state.pulse = Some(Pulse::from_now(timeout.after));
        }
        drop(state);
        if before & WAITED != 0 && !cfg!(loom_mutant = "failure_wakes_nobody") {
            self.notify();
        }
    }

    /// Wakes the sleepers whose points are complete, then runs the callbacks that are due, unless another thread
    /// is running callbacks, which will then run these too.
    #[track_caller]
    fn notify(&self) {
        let mut state = self.state.lock_leaf();
        let sleepers = state.take_due_sleepers(self.completed());
        let drain = !state.draining || cfg!(loom_mutant = "callbacks_overtake");
        state.draining = true;
        drop(state);
        for sleeper in sleepers {
            sleeper.what.unpark();
        }
        if drain {
            Drainer(self).run();
        }
    }

    /// The next callback that is due, with its point's outcome; with none left, callbacks are nobody's business.
    fn next_due(&self) -> Option<(Notify, Outcome)> {
        let mut state = self.state.lock_leaf();
        let completed = self.completed();
        if state.callbacks.front().is_some_and(|next| next.seqno <= completed) {
            let due = state.callbacks.pop_front()?;
            let outcome = state.failures.outcome(due.seqno);
            return Some((due.what, outcome));
        }
        state.draining = false;
        let nobody_waits = state.sleepers.is_empty() && state.callbacks.is_empty();
        if nobody_waits || cfg!(loom_mutant = "flag_cleared_over_waiters") {
            self.word.fetch_and(!WAITED, Ordering::Relaxed);
        }
        None
    }

    /// Announces a waiter for `seqno`; true if there is nothing left to wait for. The lock must be held.
    fn announce(&self, seqno: u64, _state: &mut Guard<'_, levels::Timeline, State>) -> bool {
        let before = self.word.fetch_or(WAITED, Ordering::AcqRel);
        #[cfg(loom_mutant = "waiter_does_not_look_again")]
        let before = before & FLAGS;
        before >> SEQNO_SHIFT >= seqno
    }

    /// Queues a sleeper for `seqno`, to be unparked when it completes; nothing if it is complete.
    pub(crate) fn queue_sleeper(&self, seqno: u64, parker: &Arc<Parker>) -> Option<u64> {
        let mut state = self.state.lock_leaf();
        if self.announce(seqno, &mut state) {
            return None;
        }
        let id = state.fresh_id();
        insert_sorted(&mut state.sleepers, Queued { seqno, id, what: parker.clone() });
        Some(id)
    }

    /// Takes a sleeper back that does not want to wait any more.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn forget_sleeper(&self, seqno: u64, id: u64) {
        remove_sorted(&mut self.state.lock_leaf().sleepers, seqno, id);
    }

    /// Queues a callback for `seqno`; nothing, and `wrap` is not called, if it is complete.
    pub(crate) fn queue_callback<F>(
        &self,
        seqno: u64,
        callback: F,
        wrap: impl FnOnce(F) -> Notify,
    ) -> Result<u64, F> {
        let mut state = self.state.lock_leaf();
        if self.announce(seqno, &mut state) {
            return Err(callback);
        }
        let id = state.fresh_id();
        insert_sorted(&mut state.callbacks, Queued { seqno, id, what: wrap(callback) });
        Ok(id)
    }

    /// Takes a callback back; false if it was already taken out to be run.
    pub(crate) fn cancel_callback(&self, seqno: u64, id: u64) -> bool {
        let cancelled = remove_sorted(&mut self.state.lock_leaf().callbacks, seqno, id);
        // Dropped after the lock: the closure's own drop may signal or lock.
        cancelled.is_some() || cfg!(loom_mutant = "cancel_always_says_yes")
    }

    /// The point that hangs at `now`, or when to look again.
    fn overdue(&self, timeout: &Timeout, now: Instant) -> Result<Hang, Instant> {
        let mut state = self.state.lock_leaf();
        let (completed, allocated) = (self.completed(), self.allocated());
        if completed == allocated {
            // A point published from now on cannot be overdue before that.
            return Err(now + timeout.after);
        }
        let pulse = state.pulse.get_or_insert_with(|| Pulse::from_now(timeout.after));
        if now < pulse.deadline {
            return Err(pulse.deadline);
        }
        pulse.deadline = now + timeout.after;
        let waited = now.saturating_duration_since(pulse.oldest_since);
        Ok(Hang { timeline: self.name.clone(), seqno: completed + 1, allocated, waited })
    }
}

/// Runs due callbacks until there are none, also when one of them panics: then its drop goes on.
struct Drainer<'a>(&'a Inner);

impl Drainer<'_> {
    #[track_caller]
    fn run(self) {
        self.drain();
        std::mem::forget(self);
    }

    #[track_caller]
    fn drain(&self) {
        let _scope = lockdep::Callback::begin();
        let _inside = crate::fence::InsideCallback::enter();
        while let Some((callback, outcome)) = self.0.next_due() {
            callback(outcome);
        }
    }
}

impl Drop for Drainer<'_> {
    fn drop(&mut self) {
        self.drain();
    }
}

impl State {
    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn take_due_sleepers(&mut self, completed: u64) -> VecDeque<Queued<Arc<Parker>>> {
        let due = self.sleepers.partition_point(|sleeper| sleeper.seqno <= completed);
        self.sleepers.drain(..due).collect()
    }
}

fn insert_sorted<T>(queue: &mut VecDeque<Queued<T>>, entry: Queued<T>) {
    // Points are mostly waited for in the order in which they are handed out.
    if queue.back().is_none_or(|last| last.seqno <= entry.seqno) {
        return queue.push_back(entry);
    }
    let index = queue.partition_point(|queued| queued.seqno <= entry.seqno);
    queue.insert(index, entry);
}

fn remove_sorted<T>(queue: &mut VecDeque<Queued<T>>, seqno: u64, id: u64) -> Option<Queued<T>> {
    let index = queue.binary_search_by_key(&(seqno, id), |queued| (queued.seqno, queued.id)).ok()?;
    queue.remove(index)
}

impl Watched for Inner {
    fn check(&self, now: Instant) -> Option<Instant> {
        let timeout = self.timeout.as_ref()?;
        let hook = timeout.hook.lock().clone()?;
        let hang = match self.overdue(timeout, now) {
            Ok(hang) => hang,
            Err(next) => return Some(next),
        };
        tracing::warn!(timeline = %self.name, seqno = hang.seqno, waited = ?hang.waited, "a point hangs");
        let action = catch_unwind(AssertUnwindSafe(|| hook(&hang)))
            .unwrap_or_else(|_| HangAction::FailAll(FenceError::failed("the hang hook panicked")));
        match action {
            HangAction::Extend => {}
            HangAction::Fail(error) => self.fail(Some(hang.seqno), hang.seqno, error, false),
            HangAction::FailAll(error) => {
                let late = cfg!(loom_mutant = "hang_takes_along_what_came_later");
                let last = if late { self.allocated() } else { hang.allocated };
                self.fail(None, last, error, false);
            }
        }
        Some(self.overdue(timeout, now).err().unwrap_or(now))
    }
}

/// The owner's end of a timeline: hands out points and signals them.
///
/// Dropping it fails whatever is outstanding with [`FenceError::Abandoned`]; no fence is ever forgotten. All methods
/// may be called from any thread, those that signal with nothing held at the region level or further in.
pub struct Timeline(Arc<Inner>);

impl Timeline {
    /// A timeline without a timeout: its owner promises to signal every point in finite time.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Timeline {
        Timeline(Inner::new(name.into().into(), None))
    }

    /// A timeline whose oldest outstanding point is `hook`'s business once it has been that for `timeout`.
    ///
    /// Somebody has to look: hand [`watched`](Timeline::watched) to a [`Watchdog`](crate::Watchdog). The time counts
    /// from when the point was handed out or the one before it completed, whichever came later.
    pub fn with_timeout(name: impl Into<Cow<'static, str>>, timeout: Duration, hook: HangHook) -> Timeline {
        let timeout = Timeout { after: timeout, hook: Mutex::new(Some(Arc::new(hook))) };
        Timeline(Inner::new(name.into().into(), Some(timeout)))
    }

    /// The name given at creation.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The timeline's id, shared by all its fences.
    pub fn id(&self) -> TimelineId {
        self.0.id
    }

    /// Hands out the next point. It is published from here on: the owner owes a signal for it.
    pub fn next_point(&self) -> Fence {
        let inner = &self.0;
        let seqno = match &inner.timeout {
            None => inner.allocated.fetch_add(1, Ordering::AcqRel) + 1,
            Some(timeout) => {
                let mut state = inner.state.lock_leaf();
                let seqno = inner.allocated.fetch_add(1, Ordering::AcqRel) + 1;
                if inner.completed() + 1 == seqno {
                    state.pulse = Some(Pulse::from_now(timeout.after));
                }
                seqno
            }
        };
        Fence::point(inner.clone(), seqno)
    }

    /// Completes all points up to `seqno`. Completing what is complete does nothing; a point that was never handed
    /// out is refused (and logged), as a device that reports one lies. Callbacks run in this thread.
    #[inline]
    #[track_caller]
    pub fn signal(&self, seqno: u64) {
        self.0.signal(seqno);
    }

    /// Completes all points up to `seqno`, of which that one failed. Has no effect on a point that is complete.
    #[track_caller]
    pub fn fail(&self, seqno: u64, error: FenceError) {
        self.0.fail(Some(seqno), seqno, error, self.is_forgotten());
    }

    /// Completes every point handed out so far; those that were outstanding failed.
    #[track_caller]
    pub fn fail_outstanding(&self, error: FenceError) {
        self.0.fail(None, self.0.allocated(), error, self.is_forgotten());
    }

    /// The last completed seqno; 0 before the first.
    pub fn completed(&self) -> u64 {
        self.0.completed()
    }

    /// The last seqno handed out; 0 before the first.
    pub fn allocated(&self) -> u64 {
        self.0.allocated()
    }

    /// Whether every point handed out has completed.
    pub fn is_idle(&self) -> bool {
        self.completed() == self.allocated()
    }

    /// The timeline as something a [`Watchdog`](crate::Watchdog) looks after.
    pub fn watched(&self) -> Weak<dyn Watched> {
        let watched: Arc<dyn Watched> = self.0.clone();
        Arc::downgrade(&watched)
    }

    /// Whether no fence of this timeline is left that could ask how an old point ended.
    fn is_forgotten(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        if !self.is_idle() {
            let error = FenceError::Abandoned { timeline: self.0.name.clone() };
            self.0.fail(None, self.0.allocated(), error, false);
        }
        let hook = self.0.timeout.as_ref().and_then(|timeout| timeout.hook.lock().take());
        drop(hook);
    }
}

impl fmt::Debug for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timeline")
            .field("name", &self.name())
            .field("id", &self.0.id.0)
            .field("completed", &self.completed())
            .field("allocated", &self.allocated())
            .finish()
    }
}
