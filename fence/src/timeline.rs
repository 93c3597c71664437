//! Timelines: numbered points that signal in order.
//!
//! A timeline has an owner (the [`Timeline`] handle), who hands out points and signals them, and any number of
//! [`Fence`]s, which are points. "Point 7 is done" means that all points up to 7 are, so the whole state is one
//! number, the last completed point, and signalling a thousand points is one store.
//!
//! ```text
//!   Timeline ──▶ Owner (name, hang hook) ◀── Watchdog, weakly
//!      │
//!      └───────▶ Place (points, queues, errors; never freed) ◀── Fence, Fence, Fence: plain copies
//! ```
//!
//! `place.rs` says why no wake-up is missed, `places.rs` why fences need no reference counts. A point and its signal are one
//! read-modify-write each. Timelines that asked for more note moments: with a timeout whenever another point becomes the
//! oldest that is outstanding, with timestamps at each signal. That is a look at the clock under the timeline's lock.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, Instant};

use crate::deadline::{Deadline, Deadlines};
use crate::error::FenceError;
use crate::fence::Fence;
use crate::hang::{Hang, HangAction, HangHook, Pulse};
use crate::lockdep;
use crate::owner::{Hooks, Owner};
use crate::place::{Place, Tenant};
use crate::places;
use crate::sync::{Arc, Mutex, Stable, Weak};
use crate::timestamps::Timestamps;
use crate::watchdog::Watched;

/// The longest timeout; what is longer might not end in the range of the clock.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Names a timeline; never reused while the process lives. Ordered by age.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineId(pub(crate) u64);

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "timeline {}", self.0)
    }
}

/// Which moments a timeline notes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Notes {
    Nothing,
    /// Since when the oldest outstanding point is that.
    Oldest,
    /// When points signalled; if there is a timeout, the other too.
    Signals,
}

/// The owner's end of a timeline: hands out points and signals them.
///
/// Dropping it fails whatever is outstanding with [`FenceError::Abandoned`]; no fence is ever forgotten. All methods
/// may be called from any thread, those that signal with nothing held at the region level or further in.
pub struct Timeline {
    place: Stable<Place>, // constant
    base: u64,            // constant; the point before the first
    notes: Notes,         // constant
    owner: Arc<Owner>,    // constant
}

impl Timeline {
    /// A timeline without a timeout: its owner promises to signal every point in finite time.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Timeline {
        Timeline::builder(name).build()
    }

    /// A timeline with more than a name: a timeout, hooks, timestamps.
    pub fn builder(name: impl Into<Cow<'static, str>>) -> TimelineBuilder {
        let name = name.into().into();
        TimelineBuilder { name, timeout: None, hooks: Hooks::default(), timestamps: None }
    }

    /// How many places for timelines this process has made: as many as there were ever timelines at once, and a few that
    /// were still busy with a former owner's callbacks. They are never given back to the system.
    pub fn places() -> usize {
        places::count()
    }

    /// The name given at creation.
    pub fn name(&self) -> &str {
        &self.owner.name
    }

    /// The timeline's id.
    pub fn id(&self) -> TimelineId {
        TimelineId(self.base)
    }

    /// The next point. Whoever takes one must see to it that it is signalled.
    #[inline]
    pub fn next_point(&self) -> Fence {
        let point = match self.notes {
            Notes::Nothing => self.place.hand_out(),
            Notes::Oldest | Notes::Signals => self.place.hand_out_noting(),
        };
        Fence::point(self.place.clone(), self.base, point)
    }

    /// The fence of a point that was handed out; that of 0, the point before all work, has always been signalled.
    ///
    /// Nothing for a point that was not: nobody owes a signal for it yet, so who waited for it might wait for ever. Every
    /// number up to [`allocated`](Timeline::allocated) is a point. The kernel's cousin is `dma_fence_chain_find_seqno`.
    pub fn fence(&self, seqno: u64) -> Option<Fence> {
        if seqno == 0 {
            return Some(Fence::signaled());
        }
        let was_handed_out = seqno <= self.allocated();
        was_handed_out.then(|| Fence::point(self.place.clone(), self.base, self.base + seqno))
    }

    /// Completes all points up to `seqno`. Completing what is complete does nothing; a point that was never handed
    /// out is refused (and logged), as a device that reports one lies. Callbacks run in this thread.
    #[inline]
    #[track_caller]
    pub fn signal(&self, seqno: u64) {
        lockdep::assert_may_signal();
        let Some(point) = self.known(seqno) else { return };
        match self.notes {
            Notes::Nothing => self.place.signal(point),
            Notes::Oldest => self.place.signal_timed(point),
            Notes::Signals => self.place.signal_stamped(point),
        }
    }

    /// Completes all points up to `seqno`, of which that one failed. Has no effect on a point that is complete.
    #[track_caller]
    pub fn fail(&self, seqno: u64, error: FenceError) {
        if let Some(point) = self.known(seqno) {
            self.place.fail(Some(point), point, error);
        }
    }

    /// Completes every point handed out so far; those that were outstanding failed.
    #[track_caller]
    pub fn fail_outstanding(&self, error: FenceError) {
        self.place.fail(None, self.place.allocated(), error);
    }

    /// The point of the place that is this timeline's `seqno`, if it was handed out.
    #[inline]
    fn known(&self, seqno: u64) -> Option<u64> {
        let point = self.base.saturating_add(seqno);
        if point > self.place.allocated() {
            self.report_unknown(seqno);
            return None;
        }
        Some(point)
    }

    #[cold]
    fn report_unknown(&self, seqno: u64) {
        let allocated = self.allocated();
        tracing::error!(timeline = %self.name(), seqno, allocated, "a point that was never handed out cannot signal");
    }

    /// The last completed seqno; 0 before the first.
    pub fn completed(&self) -> u64 {
        self.place.completed() - self.base
    }

    /// The last seqno handed out; 0 before the first.
    pub fn allocated(&self) -> u64 {
        self.place.allocated() - self.base
    }

    /// Whether every point handed out has completed.
    pub fn is_idle(&self) -> bool {
        self.place.completed() == self.place.allocated()
    }

    /// The earliest deadline that somebody has set for an outstanding point.
    pub fn earliest_deadline(&self) -> Option<Instant> {
        self.place.earliest_deadline()
    }

    /// The timeline as something a [`Watchdog`](crate::Watchdog) looks after.
    pub fn watched(&self) -> Weak<dyn Watched> {
        let watched: Arc<dyn Watched> = self.owner.clone();
        Arc::downgrade(&watched)
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        if !self.is_idle() {
            lockdep::assert_may_signal();
        }
        let on_hang = (self.notes != Notes::Nothing).then(|| self.owner.on_hang.lock().take());
        self.place.move_out(|| FenceError::Abandoned { timeline: self.owner.name.clone() });
        drop(on_hang);
    }
}

impl fmt::Debug for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timeline")
            .field("name", &self.name())
            .field("id", &self.base)
            .field("completed", &self.completed())
            .field("allocated", &self.allocated())
            .finish()
    }
}

/// What a timeline shall have beyond its name.
///
/// ```
/// use devpagemap_fence::{HangAction, SignalTime, Timeline};
/// use std::time::Duration;
///
/// let ring = Timeline::builder("ring 0")
///     .timeout(Duration::from_secs(2), |hang| HangAction::FailAll(hang.error()))
///     .on_deadline(|deadline| println!("point {} is wanted by {:?}", deadline.seqno, deadline.at))
///     .timestamps(64)
///     .build();
/// let fence = ring.next_point();
/// ring.signal(fence.seqno());
/// assert!(matches!(fence.signal_time(), SignalTime::At(_)));
/// ```
pub struct TimelineBuilder {
    name: Arc<str>,
    timeout: Option<(Duration, HangHook)>,
    hooks: Hooks,
    timestamps: Option<usize>,
}

impl TimelineBuilder {
    /// The oldest outstanding point is `hook`'s business once it has been that for `timeout`.
    ///
    /// Somebody has to look: hand [`watched`](Timeline::watched) to a [`Watchdog`](crate::Watchdog). The time counts
    /// from when the point was handed out or the one before it completed, whichever came later. `hook` runs in the
    /// watchdog's thread with no lock held.
    pub fn timeout<F>(mut self, timeout: Duration, hook: F) -> Self
    where
        F: Fn(&Hang) -> HangAction + Send + Sync + 'static,
    {
        self.timeout = Some((timeout.min(LONGEST), Box::new(hook)));
        self
    }

    /// `hook` is told of every deadline that asks for more than was asked before ([`Fence::set_deadline`]).
    ///
    /// It runs in the thread that sets the deadline, under whatever locks that thread holds (none of the timeline's). So it
    /// may note the deadline and wake somebody, and not lock, wait or signal. Two threads may call it in either order;
    /// [`Timeline::earliest_deadline`] is the truth.
    pub fn on_deadline(mut self, hook: impl Fn(&Deadline) + Send + Sync + 'static) -> Self {
        self.hooks.on_deadline = Some(Box::new(hook));
        self
    }

    /// `hook` is called whenever somebody begins to wait, or hangs a callback on a point, while nobody else does.
    ///
    /// The place to turn an interrupt on that is off while nobody cares. The waiter stands in the queue before the hook
    /// runs. So an owner who turns the interrupt on, *then* looks at the device again (in a thread of its own) and signals
    /// what it finds, misses no completion. It runs under the same conditions as [`on_deadline`](Self::on_deadline)'s.
    pub fn on_first_waiter(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.hooks.on_first_waiter = Some(Box::new(hook));
        self
    }

    /// Keeps the moments of the last `signals` signals, at least one, for [`Fence::signal_time`].
    pub fn timestamps(mut self, signals: usize) -> Self {
        self.timestamps = Some(signals);
        self
    }

    /// The timeline, with nothing handed out.
    pub fn build(self) -> Timeline {
        let TimelineBuilder { name, timeout, hooks, timestamps } = self;
        let (after, hook) = timeout.unzip();
        let notes = match (after, timestamps) {
            (None, None) => Notes::Nothing,
            (Some(_), None) => Notes::Oldest,
            (_, Some(_)) => Notes::Signals,
        };
        let (place, base) = places::take(|base| Tenant {
            base,
            name: name.clone(),
            hooks: (!hooks.is_empty()).then(|| Arc::new(hooks)),
            pulse: after.map(|timeout| Pulse::new(timeout, base)),
            timestamps: timestamps.map(Timestamps::new),
            deadlines: Deadlines::default(),
        });
        let on_hang = Mutex::new(hook.map(Arc::new));
        let owner = Arc::new(Owner { name, place: place.clone(), base, on_hang });
        Timeline { place, base, notes, owner }
    }
}

impl fmt::Debug for TimelineBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimelineBuilder")
            .field("name", &self.name)
            .field("timeout", &self.timeout.as_ref().map(|(after, _)| after))
            .field("timestamps", &self.timestamps)
            .finish_non_exhaustive()
    }
}
