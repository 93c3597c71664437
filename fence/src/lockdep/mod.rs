//! The lock order at run time: what types cannot see, seen in debug builds and in models, free in release.
//!
//! Each thread keeps a stack of what it holds: the lock's class, the lock itself, and the place in the source where it
//! was taken. Whoever is about to wait for a lock is checked against two things:
//!
//! * **the declared order.** Classes with a level have a rank, and a lock may be waited for only when its rank is above
//!   every rank that is held. No second thread and no unlucky schedule is needed to find a violation.
//! * **the graph.** Each time a class is wanted while another is held, the pair is put on record with the chain of
//!   call sites that led to it. Locks that stand [outside of the order](crate::Outside) have no rank; what keeps them in
//!   line is that a new pair must not close a circle with those on record and with the declared order.
//!
//! ```text
//!   thread A   holds "driver" ──▶ waits for a fence          on record: "driver" before fences, with call sites
//!   thread B   runs a callback ─▶ wants "driver"             fences before "driver": refused, both chains are shown
//! ```
//!
//! **Pseudo-locks.** A fence stands in the order between the reservations and the regions. Waiting for one is taking it
//! for an instant: locks further out may be held, locks further in may not. While a thread is on the way to a signal it
//! *holds* the fence: inside a fence callback, and inside a [`Signalling`] section, which lasts from the publication of a
//! fence to its signal. There it may take locks further in, but no reservation, it may not allocate through
//! [eviction](might_evict), and it may not wait for a fence.
//!
//! **Tickets.** Reservations share one rank, and may repeat within one group, which is the ticket of one
//! [`Exec`](crate::Exec). A lock that is only *tried* cannot close a circle of waiters, so trying is legal at any point;
//! but it is on the stack from then on, and counts when the next lock is waited for.
//!
//! A report names both ends: where the offending lock was asked for with all that was held, and where what is in
//! its way was taken, or which thread put the opposite order on record and at which places.
//!
//! | file | what it holds |
//! |---|---|
//! | `watched.rs` | what the rest of the crate calls in debug builds and models |
//! | `watched/classes.rs` | the names of classes and where they stand |
//! | `watched/stack.rs` | what a thread holds |
//! | `watched/rules.rs` | what may be wanted while something is held |
//! | `watched/graph.rs` | the pairs on record, and circles among them |
//! | `watched/report.rs` | the text of a violation |
//! | `watched/prime.rs` | the declared order, taken once at start-up |
//! | `unwatched.rs` | the same calls in release builds: nothing |

use std::fmt;

use crate::levels::Level;

#[cfg(not(any(debug_assertions, loom, shuttle)))]
mod unwatched;
#[cfg(any(debug_assertions, loom, shuttle))]
mod watched;

#[cfg(not(any(debug_assertions, loom, shuttle)))]
use unwatched as imp;
#[cfg(any(debug_assertions, loom, shuttle))]
use watched as imp;

pub(crate) use imp::{
    ClassName, Group, Record, acquire, acquire_outside, acquire_tried, assert_held, enter_root,
};

/// The group of a lock that may not be joined by another of its rank.
pub(crate) const ALONE: Group = Group::ALONE;

/// Panics, in debug builds and models, when this thread may not wait for a fence: when it holds what a fence may need
/// before it can signal (a lock of the region level or further in, or one that some callback takes), or when it is
/// itself on the way to a signal. Every wait for a fence calls it.
#[inline]
#[track_caller]
pub fn assert_may_wait() {
    imp::may_wait();
}

/// Panics, in debug builds and models, when this thread holds a lock of the region level or further in: signalling
/// runs callbacks, and those may take such locks. Every signal calls it.
#[inline]
#[track_caller]
pub fn assert_may_signal() {
    imp::may_signal();
}

/// Declares that the calling function takes a lock of this level and class on some path, and checks as if it did. A path
/// that locks once in a million calls is so found out by the first.
///
/// # Panics
/// In debug builds and models, when such a lock may not be taken here.
#[inline]
#[track_caller]
pub fn might_lock<L: Level>(class: &'static str) {
    imp::might_lock(L::RANK, class);
}

/// Declares that the calling function allocates memory which others may have to be evicted for: it may take
/// reservations, in the ticket of its caller, and whatever stands below them.
///
/// # Panics
/// In debug builds and models, when a lock of the region level or further in is held, inside a [`Signalling`] section,
/// and inside a fence callback: eviction takes reservations, and whoever holds those may wait for the fence.
#[inline]
#[track_caller]
pub fn might_evict() {
    imp::might_evict();
}

/// Takes the whole declared order once, so that it is on record before the first real lock. The first token of the process
/// does it too.
///
/// # Panics
/// In debug builds and models, when the declared order contradicts the rules for fences.
#[inline]
pub fn prime() {
    imp::prime();
}

/// How many locks of this thread are on record; always 0 in release builds, where nobody counts.
#[inline]
pub fn held_count() -> usize {
    imp::held_count()
}

/// A signalling section: the thread is on the way from publishing a fence to its signal, until dropped.
///
/// Inside, what could make the fence wait for its own waiter is reported, also when no schedule deadlocks today: taking
/// a reservation (unless by a try), [allocating through eviction](might_evict), waiting for a fence. Sections nest, and
/// may begin inside a fence callback. Begin it before the fence is published.
///
/// ```
/// use devpagemap_fence::lockdep::Signalling;
/// use devpagemap_fence::{Fence, Timeline};
///
/// fn start_job(ring: &Timeline) -> Fence {
///     let _signalling = Signalling::begin();
///     let fence = ring.next_point();
///     // Whatever hands the work to the engine: the fence is owed a signal from here on.
///     fence
/// }
/// # let ring = Timeline::new("ring");
/// # start_job(&ring);
/// # ring.signal(1);
/// ```
#[must_use = "the section ends when this is dropped"]
pub struct Signalling {
    _record: Record,
}

impl Signalling {
    /// Begins a section.
    ///
    /// # Panics
    /// In debug builds and models, when a lock of the region level or further in is held: others take such a lock
    /// inside their sections.
    #[inline]
    #[track_caller]
    pub fn begin() -> Signalling {
        Signalling { _record: imp::begin_section() }
    }
}

impl fmt::Debug for Signalling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signalling")
    }
}

/// While this lives, the thread runs fence callbacks.
pub(crate) struct Callback {
    _record: Record,
}

impl Callback {
    #[inline]
    #[track_caller]
    pub(crate) fn begin() -> Callback {
        Callback { _record: imp::begin_callback() }
    }
}
