//! A place: the points of a timeline, who waits for them, and how they ended.
//!
//! ```text
//!   word:  | completed point (63 bits)                                            | WAITED |
//!
//!   points:  1  2  3  4  5  6  7  8  9
//!            done ───────▶│            │
//!                     completed    allocated
//! ```
//!
//! **Why no wake-up can be missed.** Whoever wants to hear of a point first queues itself (under the place's lock) by
//! setting WAITED with a read-modify-write of the word, and looks at the completed point which that operation returns.
//! Whoever signals advances the word with a read-modify-write too, and looks at the WAITED bit which *that* returns. All
//! read-modify-writes of one atomic stand in one order. If the waiter's came first, the signaller sees WAITED and goes on
//! to the lock, where it finds the waiter, since the waiter queued itself before letting go of the lock. If the
//! signaller's came first, the waiter sees the new point and does not sleep. WAITED is cleared only under the lock, and
//! only when nobody is queued. With nobody waiting a signal is one compare-and-swap.
//!
//! **Errors** are kept for failed points only (`failures.rs`). Who fails a point raises `last_failed` before it advances the
//! word, and files the error before it lets go of the lock. So whoever sees a point complete that lies beyond `last_failed`
//! knows that it succeeded, without the lock, and whoever looks into the files sees the error there.
//!
//! **Callbacks** run in the order of their points, one thread at a time, after the lock was dropped. A thread that signals
//! while another one is running callbacks leaves its own to that thread, so callbacks do not overtake each other. Nor do they
//! nest, in one place or across many (`draining.rs`). Sleepers do not wait for callbacks; every signaller wakes them itself.
//!
//! Points are those of the place, which outlives its owners (`places.rs`).

use std::time::Instant;

use crate::deadline::{Deadline, Deadlines};
use crate::draining;
use crate::error::FenceError;
use crate::failures::Failures;
use crate::hang::{Patience, Pulse};
use crate::levels::{self, Guard, Lock};
use crate::lockdep;
use crate::owner::Hooks;
use crate::places;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Bell, Stable, mutant};
use crate::timestamps::{SignalTime, Timestamps};
use crate::waiters::{Notify, Outcome, Waiters};

/// Somebody is queued: a signal has to take the lock.
const WAITED: u64 = 1;
const POINT_SHIFT: u32 = 1;

/// What a place knows of the owner that it has, or had last.
pub(crate) struct Tenant {
    pub base: u64,                      // constant
    pub name: Arc<str>,                 // constant
    pub hooks: Option<Arc<Hooks>>,      // taken when the owner leaves
    pub pulse: Option<Pulse>,           // with a timeout only
    pub timestamps: Option<Timestamps>, // if asked for
    pub deadlines: Deadlines,
}

impl Tenant {
    /// Notes that the points up to `point` are complete.
    fn note_progress(&mut self, point: u64) {
        if let Some(pulse) = &mut self.pulse {
            pulse.restart(point + 1);
        }
        if let Some(timestamps) = &mut self.timestamps {
            timestamps.note(point, Instant::now());
        }
    }
}

/// Whose a place is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Tenancy {
    /// An owner's.
    Taken,
    /// Nobody's, but somebody still has to be woken or called.
    Left,
    /// Nobody's, and given back.
    Vacant,
}

struct State {
    waiters: Waiters,
    failures: Failures,
    tenancy: Tenancy,
    tenant: Tenant,
}

/// The memory behind one timeline at a time. Two places share no cache line, nor a pair that is fetched together.
#[repr(align(128))]
pub(crate) struct Place {
    word: AtomicU64,        // completed point and WAITED; see the module's text
    allocated: AtomicU64,   // last point handed out; written by owners
    last_failed: AtomicU64, // no point beyond it has failed; written under the lock
    state: Lock<levels::Timeline, State>,
}

type Locked<'a> = Guard<'a, levels::Timeline, State>;

impl Place {
    /// A new place with its first owner.
    pub(crate) fn new(tenant: Tenant) -> Place {
        let base = tenant.base;
        let state = State {
            waiters: Waiters::default(),
            failures: Failures::default(),
            tenancy: Tenancy::Taken,
            tenant,
        };
        Place {
            word: AtomicU64::new(base << POINT_SHIFT),
            allocated: AtomicU64::new(base),
            last_failed: AtomicU64::new(0),
            state: Lock::new("timeline", state),
        }
    }

    /// Gives a vacant place to its next owner, who counts on from its base.
    pub(crate) fn move_in(&self, tenant: Tenant) {
        let base = tenant.base;
        let mut state = self.state.lock_leaf();
        state.tenancy = Tenancy::Taken;
        let former = std::mem::replace(&mut state.tenant, tenant);
        self.allocated.store(base, Ordering::Release);
        self.advance(base);
        drop(state);
        drop(former);
    }

    /// The last completed point.
    #[inline]
    pub(crate) fn completed(&self) -> u64 {
        self.word.load(Ordering::Acquire) >> POINT_SHIFT
    }

    /// The last point handed out.
    #[inline]
    pub(crate) fn allocated(&self) -> u64 {
        self.allocated.load(Ordering::Acquire)
    }

    /// Hands out the next point.
    #[inline]
    pub(crate) fn hand_out(&self) -> u64 {
        self.allocated.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// As [`hand_out`](Place::hand_out); if nothing was outstanding, the owner's patience begins now.
    #[inline]
    pub(crate) fn hand_out_noting(&self) -> u64 {
        let point = self.hand_out();
        if self.completed() + 1 == point {
            self.restart_pulse(point);
        }
        point
    }

    /// Notes that `oldest` has become the oldest outstanding point.
    fn restart_pulse(&self, oldest: u64) {
        if let Some(pulse) = &mut self.state.lock_leaf().tenant.pulse {
            pulse.restart(oldest);
        }
    }

    /// How `point` ended, if it has.
    #[inline]
    pub(crate) fn status(&self, point: u64) -> Option<Outcome> {
        if self.completed() < point {
            return None;
        }
        if self.last_failed.load(Ordering::Relaxed) < point {
            return Some(Ok(()));
        }
        Some(self.state.lock_leaf().failures.outcome(point))
    }

    /// Moves the completed point up to `point`; the word as it was, or nothing if it is there already.
    #[inline]
    fn advance(&self, point: u64) -> Option<u64> {
        let mut word = self.word.load(Ordering::Relaxed);
        while word >> POINT_SHIFT < point {
            let next = point << POINT_SHIFT | (word & WAITED);
            // Release: what the signaller did before is seen by whoever sees the point complete.
            let success =
                if mutant!("signal_publishes_nothing") { Ordering::Relaxed } else { Ordering::AcqRel };
            match self.word.compare_exchange_weak(word, next, success, Ordering::Relaxed) {
                Ok(before) => return Some(before),
                Err(now) => word = now,
            }
        }
        None
    }

    /// Completes the points up to `last` and says that those from `first` on (none: all that were outstanding) failed.
    /// The word as it was, or nothing if they are complete already.
    fn advance_failed<'a>(
        &'a self,
        mut state: Locked<'a>,
        first: Option<u64>,
        last: u64,
        error: FenceError,
    ) -> (Locked<'a>, Option<u64>) {
        if self.completed() >= last {
            return (state, None);
        }
        let raises_first = !mutant!("failure_is_announced_too_late");
        if raises_first {
            self.last_failed.fetch_max(last, Ordering::Relaxed);
        }
        let Some(before) = self.advance(last) else { return (state, None) };
        if !raises_first {
            self.last_failed.fetch_max(last, Ordering::Relaxed);
        }
        let first = first.unwrap_or((before >> POINT_SHIFT) + 1);
        if mutant!("error_filed_too_late") {
            drop(state);
            state = self.state.lock_leaf();
        }
        state.failures.file(first, last, error);
        state.tenant.note_progress(last);
        (state, Some(before))
    }

    /// Announces a waiter for `point`; true if there is nothing left to wait for.
    fn announce(&self, point: u64, _state: &mut Locked<'_>) -> bool {
        let before = self.word.fetch_or(WAITED, Ordering::AcqRel);
        before >> POINT_SHIFT >= point && !mutant!("waiter_does_not_look_again")
    }

    /// Queues a sleeper for `point`, to be woken when it completes; nothing if it is complete.
    pub(crate) fn queue_sleeper(&self, point: u64, bell: &Arc<Bell>) -> Option<u64> {
        let mut state = self.state.lock_leaf();
        if self.announce(point, &mut state) {
            return None;
        }
        let hooks = state.hooks_of_first_waiter();
        let id = state.waiters.add_sleeper(point, bell.clone());
        drop(state);
        if let Some(hooks) = hooks {
            hooks.ring_first_waiter();
        }
        Some(id)
    }

    /// Takes a sleeper back that does not want to wait any more.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn forget_sleeper(&self, point: u64, id: u64) {
        self.state.lock_leaf().waiters.remove_sleeper(point, id);
    }

    /// Queues a callback for `point`; nothing, and `wrap` is not called, if it is complete.
    pub(crate) fn queue_callback<F>(
        &self,
        point: u64,
        callback: F,
        wrap: impl FnOnce(F) -> Notify,
    ) -> Result<u64, F> {
        let mut state = self.state.lock_leaf();
        if self.announce(point, &mut state) {
            return Err(callback);
        }
        let hooks = state.hooks_of_first_waiter();
        let id = state.waiters.add_callback(point, wrap(callback));
        drop(state);
        if let Some(hooks) = hooks {
            hooks.ring_first_waiter();
        }
        Ok(id)
    }

    /// Takes a callback back; false if it was already taken out to be run.
    pub(crate) fn cancel_callback(&self, point: u64, id: u64) -> bool {
        let cancelled = self.state.lock_leaf().waiters.remove_callback(point, id);
        // Dropped after the lock: the closure's own drop may signal or lock.
        cancelled.is_some() || mutant!("cancel_always_says_yes")
    }

    /// Somebody would like `point` by `at`: notes it and tells the owner, unless that is nothing new.
    pub(crate) fn set_deadline(&self, point: u64, at: Instant) {
        let mut state = self.state.lock_leaf();
        let completed = self.completed();
        // A point that is outstanding is one of the present owner's.
        if completed >= point || !state.tenant.deadlines.add(point, at, completed) {
            return;
        }
        let Some(hooks) = state.tenant.hooks.clone() else { return };
        let tenant = &state.tenant;
        let deadline = Deadline { timeline: tenant.name.clone(), seqno: point - tenant.base, at };
        drop(state);
        hooks.ring_deadline(&deadline);
    }

    /// The earliest deadline of an outstanding point.
    pub(crate) fn earliest_deadline(&self) -> Option<Instant> {
        let mut state = self.state.lock_leaf();
        let completed = self.completed();
        state.tenant.deadlines.earliest(completed)
    }

    /// The name of the owner with this base, while the place has no later one.
    pub(crate) fn name_of(&self, base: u64) -> Option<Arc<str>> {
        let state = self.state.lock_leaf();
        (state.tenant.base == base).then(|| state.tenant.name.clone())
    }

    /// When `point` of the owner with this base signalled.
    pub(crate) fn signal_time(&self, base: u64, point: u64) -> SignalTime {
        if self.completed() < point {
            return SignalTime::Outstanding;
        }
        let state = self.state.lock_leaf();
        match &state.tenant.timestamps {
            Some(timestamps) if state.tenant.base == base => timestamps.of(point),
            _ => SignalTime::Unrecorded,
        }
    }

    /// Whether a point of the owner with this base hangs at `now`.
    pub(crate) fn patience(&self, base: u64, now: Instant) -> Patience {
        let mut state = self.state.lock_leaf();
        let is_here = state.tenancy == Tenancy::Taken && state.tenant.base == base;
        // In this order: what is handed out after the oldest point has signalled must not count among those that hang with it.
        let allocated = self.allocated();
        let completed = self.completed();
        match &mut state.tenant.pulse {
            Some(pulse) if is_here => pulse.look(now, completed, allocated),
            _ => Patience::Gone,
        }
    }
}

/// What may end with giving the place back.
impl Stable<Place> {
    /// Completes the points up to `point`.
    #[inline]
    #[track_caller]
    pub(crate) fn signal(&self, point: u64) {
        if self.advance(point).is_some_and(|word| word & WAITED != 0) {
            self.notify();
        }
    }

    /// As [`signal`](Stable::signal), for owners with a timeout.
    #[inline]
    #[track_caller]
    pub(crate) fn signal_timed(&self, point: u64) {
        let Some(before) = self.advance(point) else { return };
        if self.allocated() > point {
            self.restart_pulse(point + 1);
        }
        if before & WAITED != 0 {
            self.notify();
        }
    }

    /// As [`signal`](Stable::signal), for owners who keep the moment: whoever sees the point complete finds it.
    #[track_caller]
    pub(crate) fn signal_stamped(&self, point: u64) {
        let mut state = self.state.lock_leaf();
        let Some(before) = self.advance(point) else { return };
        state.tenant.note_progress(point);
        drop(state);
        if before & WAITED != 0 {
            self.notify();
        }
    }

    /// Completes the points up to `last`, of which those from `first` on (none: all that are outstanding) failed.
    #[track_caller]
    pub(crate) fn fail(&self, first: Option<u64>, last: u64, error: FenceError) {
        lockdep::assert_may_signal();
        let (state, before) = self.advance_failed(self.state.lock_leaf(), first, last, error);
        drop(state);
        if before.is_some_and(|word| word & WAITED != 0) && !mutant!("failure_wakes_nobody") {
            self.notify();
        }
    }

    /// The owner leaves: what is outstanding fails with `error`, and the place is given back once nobody needs it.
    #[track_caller]
    pub(crate) fn move_out(&self, error: impl FnOnce() -> FenceError) {
        let mut state = self.state.lock_leaf();
        state.tenancy = Tenancy::Left;
        let hooks = state.tenant.hooks.take();
        let last = self.allocated();
        let mut before = None;
        if self.completed() < last {
            (state, before) = self.advance_failed(state, None, last, error());
        }
        if before.is_some_and(|word| word & WAITED != 0) && !mutant!("failure_wakes_nobody") {
            drop(state);
            self.notify();
        } else {
            self.settle(state);
        }
        drop(hooks);
    }

    /// Wakes the sleepers whose points are complete, then runs the callbacks that are due, unless another thread is running
    /// callbacks, which will then run these too.
    #[cold]
    #[track_caller]
    fn notify(&self) {
        let mut state = self.state.lock_leaf();
        let completed = self.completed();
        let sleepers = state.waiters.take_due_sleepers(completed);
        let drain = state.waiters.start_draining(completed);
        if drain {
            drop(state);
        } else {
            self.settle(state);
        }
        for sleeper in sleepers {
            sleeper.ring();
        }
        if drain {
            draining::run_callbacks(self.clone());
        }
    }

    /// The next callback that is due, with its point's outcome; with none left, callbacks are nobody's business.
    pub(crate) fn next_due(&self) -> Option<(Notify, Outcome)> {
        let mut state = self.state.lock_leaf();
        if let Some(due) = state.waiters.pop_due_callback(self.completed()) {
            let outcome = state.failures.outcome(due.point);
            return Some((due.what, outcome));
        }
        state.waiters.draining = false;
        self.settle(state);
        None
    }

    /// Clears WAITED if nobody is queued, and gives the place back if it has become vacant.
    fn settle(&self, mut state: Locked<'_>) {
        if state.waiters.is_empty() || mutant!("flag_cleared_over_waiters") {
            self.word.fetch_and(!WAITED, Ordering::Relaxed);
            state.waiters.shrink();
        }
        let is_vacant = state.vacate();
        drop(state);
        if is_vacant {
            places::give_back(self.clone());
        }
    }
}

impl State {
    /// The owner's hooks, for whoever is about to be the only one in the queues.
    fn hooks_of_first_waiter(&self) -> Option<Arc<Hooks>> {
        let hooks = self.tenant.hooks.as_ref()?;
        self.waiters.is_empty().then(|| hooks.clone())
    }

    /// Whether the place has just become vacant; true once an owner.
    fn vacate(&mut self) -> bool {
        let left = self.tenancy == Tenancy::Left
            || (self.tenancy == Tenancy::Vacant && mutant!("place_is_given_back_twice"));
        let is_quiet = self.waiters.is_empty() && !self.waiters.draining;
        let is_vacant = left && is_quiet;
        if is_vacant {
            self.tenancy = Tenancy::Vacant;
        }
        is_vacant
    }
}
