//! Fences: points on timelines, as others see them.
//!
//! A [`Fence`] is a place (see `places.rs`) and a number: three words, copied without touching any count. Asking whether it
//! has signalled is one load and a compare; sleeping on it and hanging a callback on it go through the place's queue (see
//! `place.rs` for why none is missed). Sleepers are woken one by one, each by its own point and no other.

use std::cell::Cell;
use std::fmt;
#[cfg(not(any(loom, shuttle)))]
use std::time::Duration;
use std::time::Instant;

use crate::error::FenceError;
#[cfg(not(any(loom, shuttle)))]
use crate::error::WaitError;
use crate::lockdep;
use crate::place::Place;
use crate::sync::{Arc, Bell, Stable};
use crate::timeline::TimelineId;
use crate::timestamps::SignalTime;

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

pub(crate) fn count_blocking_wait() {
    WAITS.with(|waits| waits.set(waits.get() + 1));
}

/// A point on a timeline. It signals once, in finite time, with an error or without.
#[derive(Clone)]
pub struct Fence {
    place: Option<Stable<Place>>, // none: the point before all work
    base: u64,                    // the timeline's; 0 with no place
    point: u64,                   // of the place; 0 with no place
}

impl Fence {
    /// A fence that has always been signalled, without error.
    pub const fn signaled() -> Fence {
        Fence { place: None, base: 0, point: 0 }
    }

    #[inline]
    pub(crate) fn point(place: Stable<Place>, base: u64, point: u64) -> Fence {
        Fence { place: Some(place), base, point }
    }

    /// Whether the point is complete. One load; everything done before the signal is visible afterwards.
    #[inline]
    pub fn is_signaled(&self) -> bool {
        self.place.as_ref().is_none_or(|place| place.completed() >= self.point)
    }

    /// The point's number on its timeline, the first being 1; 0 for [`Fence::signaled`].
    #[inline]
    pub fn seqno(&self) -> u64 {
        self.point - self.base
    }

    /// The timeline's id. All fences of [`Fence::signaled`] share one of their own.
    #[inline]
    pub fn timeline_id(&self) -> TimelineId {
        TimelineId(self.base)
    }

    /// The timeline's name. That of a timeline that was dropped is known until its memory is used by another; from then on
    /// it is a text that says so.
    pub fn timeline_name(&self) -> Arc<str> {
        match &self.place {
            None => "signaled".into(),
            Some(place) => place.name_of(self.base).unwrap_or_else(|| "a timeline that is gone".into()),
        }
    }

    /// When the point signalled, as far as its timeline keeps a [history](crate::TimelineBuilder::timestamps).
    pub fn signal_time(&self) -> SignalTime {
        self.place.as_ref().map_or(SignalTime::Unrecorded, |place| place.signal_time(self.base, self.point))
    }

    /// Says that somebody would like the point to have signalled by `at`. A hint to the timeline's owner; of several the
    /// earliest counts, and a point that is complete needs none.
    ///
    /// May be called with any lock held that is further out than timelines. Runs the owner's hook.
    pub fn set_deadline(&self, at: Instant) {
        if let Some(place) = &self.place
            && !self.is_signaled()
        {
            place.set_deadline(self.point, at);
        }
    }

    /// How the point ended; nothing while it is outstanding. A failure that lies very far back may have become
    /// [`FenceError::Outdated`]; none is ever taken for a success.
    #[inline]
    pub fn status(&self) -> Option<Result<(), FenceError>> {
        match &self.place {
            None => Some(Ok(())),
            Some(place) => place.status(self.point),
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
            let Some(place) = &self.place else { return Ok(()) };
            let bell = Arc::new(Bell::mine());
            if place.queue_sleeper(self.point, &bell).is_some() {
                count_blocking_wait();
                bell.sleep();
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
        let (Some(place), None) = (&self.place, self.status()) else {
            return self.wait().map_err(WaitError::Failed);
        };
        let bell = Arc::new(Bell::mine());
        count_blocking_wait();
        if let Some(id) = place.queue_sleeper(self.point, &bell)
            && !bell.sleep_until(deadline)
        {
            place.forget_sleeper(self.point, id);
        }
        // Read before the status: a place that has gone on to its next owner is not one of an outstanding point.
        let completed = place.completed();
        match self.status() {
            Some(outcome) => outcome.map_err(WaitError::Failed),
            None => Err(WaitError::TimedOut {
                timeline: self.timeline_name(),
                seqno: self.seqno(),
                completed: completed - self.base,
                waited_ns: u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX),
            }),
        }
    }

    /// Runs `callback` once the point completes, in the thread that signals it, with the outcome.
    ///
    /// A point that is complete gives `callback` back unrun, so it never runs under the caller's own locks. Callbacks
    /// may signal other fences, whose callbacks then run after this one, and take locks below the reservations; they may not
    /// wait for fences.
    pub fn on_signal<F>(&self, callback: F) -> Result<Callback, F>
    where
        F: FnOnce(Result<(), FenceError>) + Send + 'static,
    {
        let Some(place) = &self.place else { return Err(callback) };
        if self.is_signaled() {
            return Err(callback);
        }
        let id = place.queue_callback(self.point, callback, |callback| Box::new(callback))?;
        Ok(Callback { place: place.clone(), point: self.point, id })
    }
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.is_signaled() { "signaled" } else { "outstanding" };
        write!(f, "Fence({:?} {}: {state})", self.timeline_name(), self.seqno())
    }
}

/// A callback that was hung on a fence. Dropping it lets the callback be.
#[derive(Clone)]
pub struct Callback {
    place: Stable<Place>,
    point: u64,
    id: u64, // among all callbacks that the place ever had
}

impl Callback {
    /// Takes the callback back; false if it has run, is running or is about to.
    pub fn cancel(self) -> bool {
        self.place.cancel_callback(self.point, self.id)
    }
}

impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Callback({})", self.id)
    }
}
