//! Waiting for fences as a [`Future`], under whatever executor polls it.
//!
//! A future hangs one callback on its fence, at the first poll that finds it outstanding. Callback and future share a
//! slot for one waker:
//!
//! ```text
//!   poll:      store the waker in the slot ─▶ hang the callback, if none hangs ─▶ look at the fence
//!   callback:  (the point is complete)     ─▶ take the waker out ─▶ wake
//! ```
//!
//! **No wake-up is lost.** The point is complete before the callback looks into the slot, and the slot has a lock. If
//! the callback got there first, the poll stored its waker too late, but its look at the fence comes later still and
//! finds the point complete. If the poll got there first, the callback finds the new waker. So the look must follow
//! the store; a look before it alone would miss a signal that falls in between.
//!
//! **Dropping** a future empties the slot and takes the callback back: nothing stays behind on the timeline, and a
//! signal that comes afterwards wakes nobody. (A signaller that had the waker in its hand already may still call it;
//! wakers allow for that.) Wakers are cloned, called and dropped with no lock held: they are other people's code, and may
//! run the task, which may drop the future.
//!
//! ```
//! use std::future::{Future, IntoFuture};
//! use std::pin::pin;
//! use std::task::{Context, Poll, Waker};
//! use devpagemap_fence::Timeline;
//!
//! let timeline = Timeline::new("ring");
//! let fence = timeline.next_point();
//! let mut done = pin!(async move { fence.await });
//! let mut context = Context::from_waker(Waker::noop());
//! assert_eq!(done.as_mut().poll(&mut context), Poll::Pending);
//! timeline.signal(1);
//! assert_eq!(done.as_mut().poll(&mut context), Poll::Ready(Ok(())));
//! ```

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::any_of::{AnyOf, First};
use crate::error::FenceError;
use crate::fence::Fence;
use crate::fence_set::FenceSet;
use crate::hung::Hung;
use crate::sync::{Arc, Mutex, mutant};

/// The waker that a future and its callbacks share.
#[derive(Default)]
struct WakerSlot(Mutex<Option<Waker>>);

impl WakerSlot {
    /// Puts `waker` in place of the one that is there, unless both wake the same task.
    fn store(&self, waker: &Waker) {
        if self.0.lock().as_ref().is_some_and(|stored| stored.will_wake(waker)) {
            return;
        }
        let mut stored = Some(waker.clone());
        std::mem::swap(&mut *self.0.lock(), &mut stored);
    }

    fn take(&self) -> Option<Waker> {
        self.0.lock().take()
    }

    fn wake(&self) {
        if let Some(waker) = self.take() {
            waker.wake();
        }
    }
}

/// A task that is woken once one of several fences signals. Dropping it takes the callbacks back and forgets the task.
struct Listening {
    slot: Arc<WakerSlot>,
    _hung: Option<Hung>, // none: one of the fences signalled before all callbacks hung
}

impl Listening {
    fn new(fences: &[Fence], waker: &Waker) -> Listening {
        let slot = Arc::new(WakerSlot::default());
        slot.store(waker);
        let hung = Hung::on_each(fences, || {
            let slot = slot.clone();
            move || slot.wake()
        });
        Listening { slot, _hung: hung }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        drop(self.slot.take());
    }
}

/// What `look` sees, or nothing; then `waker` is woken once one of `fences` signals.
fn poll_fences<T>(
    listening: &mut Option<Listening>,
    fences: &[Fence],
    waker: &Waker,
    look: impl Fn() -> Option<T>,
) -> Poll<T> {
    let mut seen = look();
    if seen.is_none() {
        match listening {
            Some(listening) => listening.slot.store(waker),
            None => *listening = Some(Listening::new(fences, waker)),
        }
        if !mutant!("future_does_not_look_again") {
            seen = look();
        }
    }
    if seen.is_some() {
        *listening = None;
    }
    seen.map_or(Poll::Pending, Poll::Ready)
}

/// A [`Fence`] as a future: ready once the point is complete, with its outcome. See [`Fence::signaled_future`].
///
/// Polled again after that it gives the outcome again.
#[must_use = "futures do nothing unless polled"]
pub struct FenceFuture {
    fence: Fence,                 // constant
    listening: Option<Listening>, // once polled, until ready
}

impl Future for FenceFuture {
    type Output = Result<(), FenceError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let FenceFuture { fence, listening } = &mut *self;
        poll_fences(listening, std::slice::from_ref(fence), context.waker(), || fence.status())
    }
}

impl Fence {
    /// The point as a future, without giving the fence away. `fence.await` does the same with a fence of one's own.
    pub fn signaled_future(&self) -> FenceFuture {
        FenceFuture { fence: self.clone(), listening: None }
    }
}

impl IntoFuture for Fence {
    type Output = Result<(), FenceError>;
    type IntoFuture = FenceFuture;

    fn into_future(self) -> FenceFuture {
        FenceFuture { fence: self, listening: None }
    }
}

/// A [`FenceSet`] as a future: ready once all of its fences are, with the first error in set order. See
/// [`FenceSet::signaled_future`].
///
/// It waits for one fence after the other, so it has at most one callback hung, and a task is polled at most once per
/// timeline of the set.
#[must_use = "futures do nothing unless polled"]
pub struct FenceSetFuture {
    waiting_for: FenceFuture, // the first that may be outstanding
    rest: std::vec::IntoIter<Fence>,
    outcome: Result<(), FenceError>, // of those before `waiting_for`
}

impl FenceSetFuture {
    fn new(set: FenceSet) -> FenceSetFuture {
        FenceSetFuture {
            waiting_for: Fence::signaled().into_future(),
            rest: set.into_iter(),
            outcome: Ok(()),
        }
    }
}

impl Future for FenceSetFuture {
    type Output = Result<(), FenceError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        while let Poll::Ready(outcome) = Pin::new(&mut this.waiting_for).poll(context) {
            this.outcome = this.outcome.clone().and(outcome);
            match this.rest.next() {
                Some(next) => this.waiting_for = next.into_future(),
                None => return Poll::Ready(this.outcome.clone()),
            }
        }
        Poll::Pending
    }
}

impl FenceSet {
    /// All of the set as a future, without giving the set away. `set.await` does the same with a set of one's own.
    pub fn signaled_future(&self) -> FenceSetFuture {
        FenceSetFuture::new(self.clone())
    }
}

impl IntoFuture for FenceSet {
    type Output = Result<(), FenceError>;
    type IntoFuture = FenceSetFuture;

    fn into_future(self) -> FenceSetFuture {
        FenceSetFuture::new(self)
    }
}

/// An [`AnyOf`] as a future: ready once the first of its fences is. See [`AnyOf::signaled_future`].
#[must_use = "futures do nothing unless polled"]
pub struct AnyOfFuture {
    any: AnyOf,                   // constant
    listening: Option<Listening>, // once polled, until ready
}

impl Future for AnyOfFuture {
    type Output = First;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let AnyOfFuture { any, listening } = &mut *self;
        poll_fences(listening, any.fences(), context.waker(), || any.first())
    }
}

impl AnyOf {
    /// The first of the fences as a future, without giving them away.
    pub fn signaled_future(&self) -> AnyOfFuture {
        AnyOfFuture { any: self.clone(), listening: None }
    }
}

impl IntoFuture for AnyOf {
    type Output = First;
    type IntoFuture = AnyOfFuture;

    fn into_future(self) -> AnyOfFuture {
        AnyOfFuture { any: self, listening: None }
    }
}

impl fmt::Debug for FenceFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FenceFuture({:?})", self.fence)
    }
}

impl fmt::Debug for FenceSetFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FenceSetFuture({:?}, then {} more)", self.waiting_for.fence, self.rest.len())
    }
}

impl fmt::Debug for AnyOfFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AnyOfFuture({:?})", self.any)
    }
}
