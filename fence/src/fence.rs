//! Fences: points on timelines, as others see them.
//!
//! A [`Fence`] is a timeline and a number. Asking whether it has signalled is one load and a compare; sleeping on it
//! and hanging a callback on it go through the timeline's queue (see `timeline.rs` for why none is missed). Sleepers
//! are woken one by one, each by its own point and no other.

use std::cell::Cell;
use std::fmt;
#[cfg(not(any(loom, shuttle)))]
use std::time::{Duration, Instant};

use crate::error::FenceError;
#[cfg(not(any(loom, shuttle)))]
use crate::error::WaitError;
use crate::lockdep;
use crate::sync::{Arc, Condvar, Mutex, Weak};
use crate::timeline::{Inner, TimelineId};

crate::sync::thread_local! {
    static WAITS: Cell<u64> = Cell::default();
    static CALLBACKS: Cell<u32> = Cell::default();
}

/// How often this thread has gone to sleep for a fence. Code that promises never to wait compares it before and after.
pub fn blocking_waits() -> u64 {
    WAITS.with(Cell::get)
}

/// Whether this thread is running a fence callback. Destructors that would wait for engines ask, because the thread may
/// be the one whose progress they would wait for.
pub fn in_callback() -> bool {
    CALLBACKS.with(Cell::get) > 0
}

/// While it lives, this thread runs callbacks.
pub(crate) struct InsideCallback(());

impl InsideCallback {
    pub(crate) fn enter() -> InsideCallback {
        CALLBACKS.with(|depth| depth.set(depth.get() + 1));
        InsideCallback(())
    }
}

impl Drop for InsideCallback {
    fn drop(&mut self) {
        CALLBACKS.with(|depth| depth.set(depth.get() - 1));
    }
}

fn count_blocking_wait() {
    WAITS.with(|waits| waits.set(waits.get() + 1));
}

/// Where one thread sleeps until its point completes.
pub(crate) struct Parker {
    due: Mutex<bool>,
    wake: Condvar,
}

impl Parker {
    fn new() -> Arc<Parker> {
        Arc::new(Parker { due: Mutex::new(false), wake: Condvar::new() })
    }

    pub(crate) fn unpark(&self) {
        *self.due.lock() = true;
        self.wake.notify_one();
    }

    fn park(&self) {
        let mut due = self.due.lock();
        while !*due {
            due = self.wake.wait(due);
        }
    }

    /// False if the deadline came first.
    #[cfg(not(any(loom, shuttle)))]
    fn park_until(&self, deadline: Instant) -> bool {
        let mut due = self.due.lock();
        while !*due {
            let timed_out;
            (due, timed_out) = self.wake.wait_until(due, deadline);
            if timed_out {
                return *due;
            }
        }
        true
    }
}

/// A point on a timeline. It signals once, in finite time, with an error or without.
#[derive(Clone)]
pub struct Fence {
    timeline: Option<Arc<Inner>>, // none: the point before all work
    seqno: u64,
}

impl Fence {
    /// A fence that has always been signalled, without error.
    pub fn signaled() -> Fence {
        Fence { timeline: None, seqno: 0 }
    }

    pub(crate) fn point(timeline: Arc<Inner>, seqno: u64) -> Fence {
        Fence { timeline: Some(timeline), seqno }
    }

    /// Whether the point is complete. One load; everything done before the signal is visible afterwards.
    #[inline]
    pub fn is_signaled(&self) -> bool {
        self.timeline.as_ref().is_none_or(|timeline| timeline.completed() >= self.seqno)
    }

    /// The point's number on its timeline; 0 for [`Fence::signaled`].
    pub fn seqno(&self) -> u64 {
        self.seqno
    }

    /// The timeline's id. All fences of [`Fence::signaled`] share one of their own.
    pub fn timeline_id(&self) -> TimelineId {
        self.timeline.as_ref().map_or(TimelineId(0), |timeline| timeline.id())
    }

    /// The timeline's name.
    pub fn timeline_name(&self) -> &str {
        self.timeline.as_ref().map_or("signaled", |timeline| timeline.name())
    }

    /// How the point ended; nothing while it is outstanding.
    pub fn status(&self) -> Option<Result<(), FenceError>> {
        match &self.timeline {
            None => Some(Ok(())),
            Some(timeline) => timeline.status(self.seqno),
        }
    }

    /// Sleeps until the point is complete and says how it ended.
    ///
    /// # Panics
    /// In debug builds and models, when a lock of the region level or further in is held, or inside a callback.
    #[track_caller]
    pub fn wait(&self) -> Result<(), FenceError> {
        lockdep::assert_may_wait();
        loop {
            if let Some(outcome) = self.status() {
                return outcome;
            }
            let Some(timeline) = &self.timeline else { return Ok(()) };
            let parker = Parker::new();
            if timeline.queue_sleeper(self.seqno, &parker).is_some() {
                count_blocking_wait();
                parker.park();
            }
        }
    }

    /// As [`wait`](Fence::wait), but gives up after `timeout`. A timeout of zero only looks.
    #[cfg(not(any(loom, shuttle)))]
    #[track_caller]
    pub fn wait_timeout(&self, timeout: Duration) -> Result<(), WaitError> {
        let begin = Instant::now();
        self.wait_until(begin, begin.checked_add(timeout))
    }

    /// As [`wait`](Fence::wait), but no later than `deadline` (none: for ever); `begin` is for the report.
    #[cfg(not(any(loom, shuttle)))]
    #[track_caller]
    pub(crate) fn wait_until(&self, begin: Instant, deadline: Option<Instant>) -> Result<(), WaitError> {
        let Some(deadline) = deadline else { return self.wait().map_err(WaitError::Failed) };
        lockdep::assert_may_wait();
        let (Some(timeline), None) = (&self.timeline, self.status()) else {
            return self.wait().map_err(WaitError::Failed);
        };
        let parker = Parker::new();
        count_blocking_wait();
        if let Some(id) = timeline.queue_sleeper(self.seqno, &parker)
            && !parker.park_until(deadline)
        {
            timeline.forget_sleeper(self.seqno, id);
        }
        match self.status() {
            Some(outcome) => outcome.map_err(WaitError::Failed),
            None => Err(WaitError::TimedOut {
                timeline: timeline.name().clone(),
                seqno: self.seqno,
                completed: timeline.completed(),
                waited_ns: u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX),
            }),
        }
    }

    /// Runs `callback` once the point completes, in the thread that signals it, with the outcome.
    ///
    /// A point that is complete gives `callback` back unrun, so it never runs under the caller's own locks. Callbacks
    /// may signal other fences and take locks below the reservations; they may not wait for fences.
    pub fn on_signal<F>(&self, callback: F) -> Result<Callback, F>
    where
        F: FnOnce(Result<(), FenceError>) + Send + 'static,
    {
        let Some(timeline) = &self.timeline else { return Err(callback) };
        if self.is_signaled() {
            return Err(callback);
        }
        let id = timeline.queue_callback(self.seqno, callback, |callback| Box::new(callback))?;
        Ok(Callback { timeline: Arc::downgrade(timeline), seqno: self.seqno, id })
    }
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.is_signaled() { "signaled" } else { "outstanding" };
        write!(f, "Fence({:?} {}: {state})", self.timeline_name(), self.seqno)
    }
}

/// A callback that was hung on a fence. Dropping it lets the callback be.
#[derive(Clone)]
pub struct Callback {
    timeline: Weak<Inner>,
    seqno: u64,
    id: u64,
}

impl Callback {
    /// Takes the callback back; false if it has run, is running or is about to.
    pub fn cancel(self) -> bool {
        self.timeline.upgrade().is_some_and(|timeline| timeline.cancel_callback(self.seqno, self.id))
    }
}

impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Callback(point {})", self.seqno)
    }
}
