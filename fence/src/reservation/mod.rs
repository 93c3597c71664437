//! Reservations: a buffer's lock, and the fences of what is being done to it.
//!
//! ```text
//!   ┌ reservation ─────────────────────────────────────────┐
//!   │ cell      waiting: how many queue                     │   the queue's lock; read by all
//!   │           word: whose it is │ payload, book of fences │   the holder
//!   │ waiters   the queue                                   │   the queue's lock, held for instants
//!   │ fences    the latest list of fences                   │   written by the holder, read by all
//!   └───────────────────────────────────────────────────────┘
//! ```
//!
//! **The lock** is a word. Nobody waiting, taking it is one compare-and-swap, and giving it back one store, a barrier and a look
//! whether anybody queues (one of each for all that a set lets go of). The payload stays where it is; who has the word has the
//! payload ([`claim`](crate::sync)). Waiting, wait-die and fairness are in `queue.rs`.
//!
//! **Fences** are kept with a [`Usage`]. The holder adds them to a list that everybody may read without any lock
//! (`fence_list.rs`); signalled ones and those that a later one implies are dropped when the list is full, so a
//! reservation stays as small as what is at work, however long its history is.

mod fence_list;
mod queue;
mod usage;

use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::error::{LockError, SlotsExhausted};
use crate::fence::Fence;
use crate::fence_set::FenceSet;
use crate::levels::{self, Below, Held, Level, Lock, Tickets};
use crate::lockdep;
use crate::sync::atomic::Ordering;
use crate::sync::claim::{Claim, ClaimCell, Claimed, Keep, Unclaimed, Word};
use crate::sync::published::Published;
use fence_list::{Book, FenceList};
use queue::Waiters;
pub(crate) use queue::{Bidder, anybody_queues};
pub use usage::Usage;

/// Something that has a reservation, and so can be locked by an [`Exec`](crate::Exec).
pub trait Reservable: Send + Sync + 'static {
    /// What only the lock's holder may touch.
    type State: Send;

    /// The object's reservation; always the same one.
    fn reservation(&self) -> &Reservation<Self::State>;
}

/// What the holder of the lock has.
pub(crate) struct Guarded<T> {
    pub payload: T,
    book: Book,
    slots: usize, // how many fences the holder may still add; 0 when it lets go
}

impl<T> Guarded<T> {
    /// Slots vanish with the lock.
    #[inline]
    pub(crate) fn forget_slots(&mut self) {
        self.slots = 0;
    }
}

/// The lock in somebody's hands.
pub(crate) type Grip<'o, R, T> = Claim<'o, R, Guarded<T>>;

/// A buffer's lock with its fences. `T` is what only the holder may touch.
#[repr(C)]
pub struct Reservation<T> {
    cell: ClaimCell<Guarded<T>>,
    waiters: Lock<levels::Timeline, Waiters>, // held for instants
    fences: Published<FenceList>,             // replaced by the holder
}

impl<T> Reservation<T> {
    /// An unlocked reservation around `payload`, without fences.
    pub fn new(payload: T) -> Self {
        Reservation {
            cell: ClaimCell::new(Guarded { payload, book: Book::default(), slots: 0 }),
            waiters: Lock::new("reservation queue", Waiters::default()),
            fences: Published::none(),
        }
    }

    /// Locks this one reservation, sleeping as long as it takes; the oldest waiter is served first.
    ///
    /// Several at once need an [`Exec`](crate::Exec). The lock's level is [`Tickets`].
    #[inline]
    #[track_caller]
    pub fn lock<'a, H: Level>(&'a self, held: &'a mut Held<'_, H>) -> Locked<'a, T>
    where
        Tickets: Below<H>,
    {
        let _ = held;
        let record = lockdep::acquire(Tickets::RANK, "reservation", lockdep::ALONE).of(self.instance());
        let grip = self.claim_alone(Unclaimed::FREE).unwrap_or_else(|| self.wait_alone());
        Locked { grip, _record: record }
    }

    #[inline(always)]
    fn claim_alone(&self, from: Unclaimed) -> Option<Grip<'_, Self, T>> {
        Claim::take_borrowed(self, |itself| &itself.cell, from, Claimed::ALONE).ok()
    }

    #[cold]
    fn wait_alone(&self) -> Grip<'_, Self, T> {
        let waited = self.wait(&Bidder::alone(), |from| self.claim_alone(from));
        waited.unwrap_or_else(|_| unreachable!("who holds nothing and cannot be interrupted gets the lock"))
    }

    /// Locks if that takes no waiting. Legal whatever else is held, since who does not wait cannot deadlock.
    #[track_caller]
    pub fn try_lock(&self) -> Option<Locked<'_, T>> {
        let grip = self.claim_alone(Unclaimed::FREE)?;
        let record = lockdep::acquire_tried(Tickets::RANK, "reservation", lockdep::ALONE).of(self.instance());
        Some(Locked { grip, _record: record })
    }

    /// The outstanding fences of all usages up to `usage`, as of now. Takes no lock and needs none.
    pub fn fences(&self, usage: Usage) -> FenceSet {
        self.fences.read().as_ref().map_or_else(FenceSet::new, |list| list.outstanding(usage))
    }

    /// The outstanding fences one by one, each with the usage it was added with. Takes no lock and needs none.
    pub fn fences_with_usage(&self) -> Vec<(Fence, Usage)> {
        self.fences.read().as_ref().map_or_else(Vec::new, |list| list.with_usage())
    }

    /// Whether no fence of a usage up to `usage` is outstanding. Takes no lock and needs none.
    pub fn is_idle(&self, usage: Usage) -> bool {
        !self.fences.read().as_ref().is_some_and(|list| list.is_busy(usage))
    }

    /// Panics, in debug builds and models, unless this thread holds this lock.
    #[inline]
    #[track_caller]
    pub fn assert_held(&self) {
        lockdep::assert_held("reservation", self.instance());
    }

    /// Which lock lockdep is told about.
    #[inline]
    pub(crate) fn instance(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Whether somebody holds the lock; true is old news at once, unless it is the caller.
    pub fn is_locked(&self) -> bool {
        matches!(self.cell.word(), Word::Claimed(_))
    }

    /// The payload; no locking, as nobody else can have it.
    pub fn get_mut(&mut self) -> &mut T {
        &mut self.cell.get_mut().payload
    }

    /// Takes the lock of an object if it is free; otherwise the object back, and whose it is.
    #[inline(always)]
    pub(crate) fn claim<'o, R>(
        object: Keep<'o, R>,
        find: impl Fn(&R) -> &Reservation<T>,
        word: Claimed,
    ) -> Result<Grip<'o, R, T>, (Keep<'o, R>, Word)> {
        Claim::take(object, |object| &find(object).cell, Unclaimed::FREE, word)
    }

    /// Waits for the lock of an object, which `found` has, unless wait-die forbids it.
    #[cold]
    pub(crate) fn wait_for<'o, R>(
        object: Keep<'o, R>,
        find: impl Fn(&R) -> &Reservation<T>,
        found: Word,
        bidder: &Bidder<'_>,
    ) -> Result<Grip<'o, R, T>, (Keep<'o, R>, LockError)> {
        if let Some(error) = bidder.must_not_wait(found) {
            return Err((object, error));
        }
        let claim =
            |from| Claim::take(object.clone(), |object| &find(object).cell, from, bidder.claimed).ok();
        let waited = find(object.object()).wait(bidder, claim);
        waited.map_err(|error| (object, error))
    }

    /// Gives the lock back, with all that follows.
    #[inline]
    pub(crate) fn unlock<R>(grip: &mut Grip<'_, R, T>, find: impl Fn(&R) -> &Reservation<T>) {
        if grip.cell().is_waited_for() {
            return grip.release_by(|object, release| find(object).hand_over(release));
        }
        grip.release_and_fence();
        if anybody_queues() && grip.cell().is_waited_for() {
            find(grip.object()).wake_next();
        }
    }

    /// Where the holder's set keeps it; for the holder.
    pub(crate) fn kept_at(&self) -> u32 {
        self.cell.kept_at.load(Ordering::Relaxed)
    }

    /// Where the set of this ticket keeps the lock, if it has it.
    pub(crate) fn kept_by(&self, stamp: u64) -> Option<u32> {
        (self.cell.word().ticket() == Some(stamp)).then(|| self.kept_at())
    }

    /// Makes room for `count` fences more.
    pub(crate) fn reserve_fences(
        &self,
        guarded: &mut Guarded<T>,
        count: usize,
    ) -> Result<(), SlotsExhausted> {
        let slots = guarded.slots.saturating_add(count);
        guarded.book.make_room(&self.fences, slots)?;
        guarded.slots = slots;
        Ok(())
    }

    /// Adds a fence in a slot that was reserved.
    #[track_caller]
    pub(crate) fn add_fence(&self, guarded: &mut Guarded<T>, fence: Fence, usage: Usage) {
        debug_assert!(guarded.slots > 0, "a fence is added to a reservation without a reserved slot");
        guarded.slots = guarded.slots.saturating_sub(1);
        guarded.book.book(&self.fences, fence, usage);
    }

    /// Adds what is outstanding of `other`, leaving the slots that are reserved.
    pub(crate) fn copy_fences<U>(
        &self,
        guarded: &mut Guarded<T>,
        other: &Reservation<U>,
    ) -> Result<(), SlotsExhausted> {
        let fences = other.fences_with_usage();
        guarded.book.make_room(&self.fences, fences.len() + guarded.slots)?;
        fences.into_iter().for_each(|(fence, usage)| guarded.book.book(&self.fences, fence, usage));
        Ok(())
    }
}

impl<T> fmt::Debug for Reservation<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation")
            .field("locked", &self.is_locked())
            .field("waiters", &self.waiters.lock_leaf().len())
            .field("fences", &self.fences(Usage::Bookkeep))
            .finish()
    }
}

/// A locked reservation, until dropped. Dereferences to what the lock protects.
pub struct Locked<'a, T> {
    grip: Grip<'a, Reservation<T>, T>,
    _record: lockdep::Record,
}

impl<T> Locked<'_, T> {
    /// Makes room for `count` more fences; after this as many [`add_fence`](Locked::add_fence) cannot fail.
    ///
    /// Slots that are not used vanish when the lock is dropped.
    pub fn reserve_fences(&mut self, count: usize) -> Result<(), SlotsExhausted> {
        let (reservation, guarded) = self.grip.parts();
        reservation.reserve_fences(guarded, count)
    }

    /// Adds a fence, in a slot that was reserved. It never replaces a stronger usage by a weaker one.
    ///
    /// # Panics
    /// In debug builds, without a slot.
    #[track_caller]
    pub fn add_fence(&mut self, fence: Fence, usage: Usage) {
        let (reservation, guarded) = self.grip.parts();
        reservation.add_fence(guarded, fence, usage);
    }

    /// Adds the outstanding fences of `other`, each with its usage.
    ///
    /// # Errors
    /// [`SlotsExhausted`], and nothing is copied, when there is no memory for that many. Slots that were reserved before are
    /// not spent.
    pub fn copy_fences<U>(&mut self, other: &Reservation<U>) -> Result<(), SlotsExhausted> {
        let (reservation, guarded) = self.grip.parts();
        reservation.copy_fences(guarded, other)
    }

    /// The outstanding fences of all usages up to `usage`.
    pub fn fences(&self, usage: Usage) -> FenceSet {
        self.grip.object().fences(usage)
    }

    /// The token with which to lock further below.
    pub fn held(&mut self) -> Held<'_, Tickets> {
        Held::token()
    }

    /// The payload, and the token with which to lock further below while it is borrowed.
    pub fn split(&mut self) -> (&mut T, Held<'_, Tickets>) {
        (&mut self.grip.payload, Held::token())
    }
}

impl<T> Deref for Locked<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.grip.payload
    }
}

impl<T> DerefMut for Locked<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.grip.payload
    }
}

impl<T> Drop for Locked<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.grip.forget_slots();
        Reservation::unlock(&mut self.grip, |reservation| reservation);
    }
}

impl<T: fmt::Debug> fmt::Debug for Locked<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
