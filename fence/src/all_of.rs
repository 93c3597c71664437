//! One fence for all of a set.
//!
//! A [`FenceSet`] is the container for "all of these": flat, one point a timeline, merged by a maximum. Some places
//! take a single fence, though: a slot in a reservation, a job's dependency, a descriptor. [`AllOf`] is a set together
//! with a fence that signals once all of the set have.
//!
//! **Containers do not nest.** In the kernel a fence array or chain *is* a fence, so one can hold the other: its lock
//! is taken around its members' locks, signalling and release recurse, and whoever wants the members has to unwrap
//! layer by layer. Each of these has been a source of faults. Here the fence of an [`AllOf`] is an ordinary point on a
//! timeline of its own. It knows no members, nothing walks it, and it is signalled like any other point: by a callback
//! that runs with no lock held and not nested in others, however long the chain. And an [`AllOf`] itself is no fence: it
//! goes into a set, and so into another [`AllOf`], as its members.
//!
//! **Errors.** The fence fails if a member fails, but not before all have signalled: until then the others are using
//! what they use. Of several errors it has the first in set order, the same as [`FenceSet::wait`] gives. A member's
//! error is handed on as it is.
//!
//! ```
//! use devpagemap_fence::{AllOf, FenceSet, Timeline};
//!
//! let (render, copy, video) = (Timeline::new("render"), Timeline::new("copy"), Timeline::new("video"));
//! let both = AllOf::new(FenceSet::from_iter([render.next_point(), copy.next_point()]));
//! let mut three = FenceSet::from(both);
//! three.add(video.next_point());
//! let all = AllOf::new(three);
//! assert_eq!(all.members().len(), 3); // flat
//!
//! render.signal(1);
//! copy.signal(1);
//! assert!(!all.fence().is_signaled());
//! video.signal(1);
//! assert_eq!(all.fence().status(), Some(Ok(())));
//! ```
//!
//! A container is no fence, so it cannot become the member of another:
//!
//! ```compile_fail,E0277
//! use devpagemap_fence::{AllOf, FenceSet};
//!
//! let inner = AllOf::new(FenceSet::new());
//! let outer = FenceSet::from_iter([inner]); // merge its members instead
//! ```

use crate::fence::Fence;
use crate::fence_set::FenceSet;
use crate::lockdep;
use crate::timeline::Timeline;
use crate::timestamps::SignalTime;

/// A set of fences and one fence that signals once all of them have.
#[derive(Clone, Debug)]
pub struct AllOf {
    members: FenceSet, // constant
    fence: Fence,      // constant
}

impl AllOf {
    /// One fence for all of `members`; for none of them, one that has signalled.
    ///
    /// What needs no fence of its own gets none: the fence of a single member, or of the last that is outstanding, is
    /// that member.
    ///
    /// # Panics
    /// In debug builds and models, when a lock of the region level or further in is held: the last member may signal
    /// meanwhile, and then this signals the fence.
    #[track_caller]
    pub fn new(members: FenceSet) -> AllOf {
        lockdep::assert_may_signal();
        let fence = plain(&members).unwrap_or_else(|| joint(&members));
        AllOf { members, fence }
    }

    /// The fence. A reservation that can take all of [`members`](AllOf::members) is better off with those: they replace
    /// older points of their timelines, while this fence is on a timeline of its own.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// When the last member signalled, as far as the members' timelines keep a
    /// [history](crate::TimelineBuilder::timestamps).
    pub fn signal_time(&self) -> SignalTime {
        let times = self.members.iter().map(Fence::signal_time);
        times.reduce(later).unwrap_or(SignalTime::Unrecorded)
    }

    /// The fences it was made of.
    pub fn members(&self) -> &FenceSet {
        &self.members
    }
}

impl From<AllOf> for FenceSet {
    /// The members: a container never becomes part of another.
    fn from(all: AllOf) -> FenceSet {
        all.members
    }
}

/// When two were complete. One that is outstanding says more than one that is unknown, and the later of two moments more
/// than the earlier.
fn later(left: SignalTime, right: SignalTime) -> SignalTime {
    use SignalTime::{At, NoLaterThan, Outstanding, Unrecorded};
    match (left, right) {
        (Outstanding, _) | (_, Outstanding) => Outstanding,
        (Unrecorded, _) | (_, Unrecorded) => Unrecorded,
        (At(a) | NoLaterThan(a), At(b)) if a <= b => At(b),
        (At(a), At(b) | NoLaterThan(b)) if b <= a => At(a),
        (At(a) | NoLaterThan(a), At(b) | NoLaterThan(b)) => NoLaterThan(a.max(b)),
    }
}

/// The fence of a set that needs no timeline of its own.
fn plain(members: &FenceSet) -> Option<Fence> {
    let mut that_matter = members.iter().filter(|member| member.status() != Some(Ok(())));
    match (that_matter.next(), that_matter.next()) {
        (None, _) => Some(Fence::signaled()),
        (Some(only), None) => Some(only.clone()),
        _ => None,
    }
}

/// A point on a new timeline that the last of `members` signals.
fn joint(members: &FenceSet) -> Fence {
    let timeline = Timeline::new("all of a set");
    let fence = timeline.next_point();
    let outcomes = members.clone();
    let signal = move || match outcomes.first_error() {
        None => timeline.signal(1),
        Some(error) => timeline.fail(1, error),
    };
    members.when_signaled(signal);
    fence
}
