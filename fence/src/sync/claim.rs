//! Claims: a value, and a word that says whose it is.
//!
//! A [`ClaimCell`] is the core of a lock without its waiting: whoever moves the word from an *unclaimed* value to a
//! *claimed* one has the value, as a [`Claim`], until the claim stores an unclaimed word again.
//!
//! ```text
//!   word:  | stamp of the holder, or of the heir (62 bits) | MANY | CLAIMED |
//!
//!      0                free for all
//!      stamp | 0 | 0    free for the heir with that stamp; all ones: for whoever the queue will name
//!          0 | 0 | 1    held by somebody who holds nothing else
//!      stamp | 1 | 1    held by a ticket, which may hold other things and wait for more
//! ```
//!
//! A claim keeps the object that the cell is part of alive: it owns an `Arc`, or borrows one ([`Keep`]). Borrowing costs no
//! reference count, which is half of what locking an object would cost otherwise.
//!
//! The `unsafe` of reservations is here and in `places.rs`, and rests on two facts. *Exclusive*: a claim exists only between a successful
//! compare-and-swap from unclaimed to claimed and the store that ends it, and nobody but the claim stores to a claimed word.
//! *Alive*: the cell was reached from the object by shared reference, and the claim keeps the object in place.

use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::Arc;
use super::atomic::{AtomicU32, AtomicU64, Ordering};
use super::barrier::fence_after_rmw;
use super::mutant;

#[cfg(loom)]
use loom::cell::UnsafeCell;
#[cfg(not(loom))]
use std::cell::UnsafeCell;

const CLAIMED: u64 = 1;
const MANY: u64 = 2;
const STAMP_SHIFT: u32 = 2;

/// A word that says that nobody has the value.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unclaimed(u64);

impl Unclaimed {
    /// Anybody may claim it.
    pub(crate) const FREE: Unclaimed = Unclaimed(0);

    /// Nobody may before whoever keeps the queue has said who is next.
    pub(crate) const FOR_QUEUE: Unclaimed = Unclaimed(u64::MAX << STAMP_SHIFT);

    /// Only the waiter with this stamp may.
    pub(crate) fn for_heir(stamp: u64) -> Unclaimed {
        Unclaimed(stamp << STAMP_SHIFT)
    }
}

/// A word that says who has the value.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claimed(u64);

impl Claimed {
    /// Somebody who holds nothing else, and waits for nothing while holding this.
    pub(crate) const ALONE: Claimed = Claimed(CLAIMED);

    /// The ticket with this stamp.
    pub(crate) fn by_ticket(stamp: u64) -> Claimed {
        Claimed(stamp << STAMP_SHIFT | MANY | CLAIMED)
    }

    /// The stamp of the ticket; none for somebody without one.
    #[inline]
    pub(crate) fn stamp(self) -> Option<u64> {
        (self.0 & MANY != 0).then_some(self.0 >> STAMP_SHIFT)
    }
}

/// A word as found.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Nobody has the value.
    Unclaimed(Unclaimed),
    /// Somebody has.
    Claimed(Claimed),
}

impl Word {
    fn of(word: u64) -> Word {
        if word & CLAIMED == 0 { Word::Unclaimed(Unclaimed(word)) } else { Word::Claimed(Claimed(word)) }
    }

    /// The stamp of the ticket that has the value; none if nobody has, or somebody without a ticket.
    pub(crate) fn ticket(self) -> Option<u64> {
        match self {
            Word::Claimed(claimed) => claimed.stamp(),
            Word::Unclaimed(_) => None,
        }
    }
}

/// A value, and the word that says whose it is.
#[repr(C, align(16))] // what an uncontended lock touches lies in one cache line
pub(crate) struct ClaimCell<T> {
    /// How many wait for it, as whoever keeps their queue says.
    pub(crate) waiting: AtomicU32,
    /// Where the holder keeps its claim; the holder's.
    pub(crate) kept_at: AtomicU32,
    word: AtomicU64,
    value: UnsafeCell<T>, // the claim
}

// SAFETY: the value is reached through claims alone, of which there is one at a time; so it moves from thread to thread
// but is never shared between them, for which Send is enough.
unsafe impl<T: Send> Sync for ClaimCell<T> {}

impl<T> ClaimCell<T> {
    /// A free cell.
    pub(crate) fn new(value: T) -> ClaimCell<T> {
        ClaimCell {
            waiting: AtomicU32::new(0),
            kept_at: AtomicU32::new(0),
            word: AtomicU64::new(Unclaimed::FREE.0),
            value: UnsafeCell::new(value),
        }
    }

    /// How many wait.
    #[inline(always)]
    pub(crate) fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether somebody waits. True only after that somebody has passed its barrier, or is about to.
    #[inline(always)]
    pub(crate) fn is_waited_for(&self) -> bool {
        self.waiting() != 0
    }

    /// Whose it is, at this moment.
    #[inline]
    pub(crate) fn word(&self) -> Word {
        Word::of(self.word.load(Ordering::Acquire))
    }

    /// Says anew who may claim a cell that nobody has; false if the word is not `from` any more.
    pub(crate) fn reassign(&self, from: Unclaimed, to: Unclaimed) -> bool {
        self.word.compare_exchange(from.0, to.0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// The value; there can be no claim, as nobody else can have the cell.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        #[cfg(not(loom))]
        return self.value.get_mut();
        #[cfg(loom)]
        {
            // How the exclusive reference came about is a matter of reference counts, which a model does not see; so it is
            // shown that whatever was done by a claim was done before.
            self.word.fetch_or(0, Ordering::Acquire);
            // SAFETY: the exclusive reference to the cell excludes every claim, as claims borrow or own what it is part of.
            self.value.with_mut(|value| unsafe { &mut *value })
        }
    }
}

/// How somebody keeps an object alive while holding its lock: by borrowing its `Arc`, or by owning one.
///
/// Made by `from`: from `&Arc<R>`, which must live longer than the holder, or from `Arc<R>`.
pub struct Keep<'o, R> {
    object: NonNull<R>, // what an `Arc` points to
    owned: bool,        // whether that `Arc`'s reference is ours to give back
    lifetime: PhantomData<(&'o R, Arc<R>)>,
}

// SAFETY: a Keep is an `Arc` or a reference to one.
unsafe impl<R: Send + Sync> Send for Keep<'_, R> {}
// SAFETY: as above.
unsafe impl<R: Send + Sync> Sync for Keep<'_, R> {}

impl<'o, R> From<&'o Arc<R>> for Keep<'o, R> {
    #[inline]
    fn from(object: &'o Arc<R>) -> Self {
        Keep { object: NonNull::from(&**object), owned: false, lifetime: PhantomData }
    }
}

impl<R> From<Arc<R>> for Keep<'_, R> {
    #[inline]
    fn from(object: Arc<R>) -> Self {
        // SAFETY: the pointer of an `Arc` is not null.
        let object = unsafe { NonNull::new_unchecked(Arc::into_raw(object).cast_mut()) };
        Keep { object, owned: true, lifetime: PhantomData }
    }
}

impl<R> Keep<'_, R> {
    /// Whether the reference is this holder's own.
    #[inline]
    pub(crate) fn is_owned(&self) -> bool {
        self.owned
    }

    /// The object.
    #[inline]
    pub fn object(&self) -> &R {
        // SAFETY: an `Arc` that is owned, or borrowed for longer than this lives, keeps it alive.
        unsafe { self.object.as_ref() }
    }
}

impl<R> Clone for Keep<'_, R> {
    fn clone(&self) -> Self {
        if self.owned {
            // SAFETY: the pointer came from an `Arc`, which is alive because one of its references is ours.
            unsafe { Arc::increment_strong_count(self.object.as_ptr()) };
        }
        Keep { ..*self }
    }
}

impl<R> Drop for Keep<'_, R> {
    #[inline]
    fn drop(&mut self) {
        if self.owned {
            // SAFETY: the pointer came from `Arc::into_raw`, and this reference has not been given back before.
            drop(unsafe { Arc::from_raw(self.object.as_ptr()) });
        }
    }
}

/// Somebody's possession of a cell's value, and of the object that the cell is part of. A claim that is dropped without
/// [`release_by`](Claim::release_by) leaves the cell claimed for good.
///
/// Two words, because a set writes one for each object, between read-modify-writes that wait for every write before them.
pub(crate) struct Claim<'o, R, T> {
    object: NonNull<R>,
    /// The cell, part of the object. A cell is a word at least, so its address has room for three flags.
    cell: NonNull<ClaimCell<T>>,
    lifetime: PhantomData<(&'o R, Arc<R>)>,
}

/// The object is kept by a reference count that is the claim's.
const OWNED: usize = 1;
/// The object is what some `Arc` points to.
const SHARED: usize = 2;
/// The value was given back.
const RELEASED: usize = 4;
const FLAGS: usize = OWNED | SHARED | RELEASED;

// SAFETY: a claim is a reference to the object and exclusive access to the value; both may go to another thread if they may on
// their own. The pointers add nothing to that.
unsafe impl<R: Send + Sync, T: Send> Send for Claim<'_, R, T> {}

impl<'o, R, T> Claim<'o, R, T> {
    /// Claims the cell that `find` finds in an object, if its word is `from`; otherwise the object, and the word.
    #[inline(always)]
    pub(crate) fn take(
        keep: Keep<'o, R>,
        find: impl FnOnce(&R) -> &ClaimCell<T>,
        from: Unclaimed,
        to: Claimed,
    ) -> Result<Self, (Keep<'o, R>, Word)> {
        let flags = if keep.owned { OWNED | SHARED } else { SHARED };
        match Self::try_claim(find(keep.object()), from, to) {
            Ok(cell) => {
                let keep = ManuallyDrop::new(keep);
                Ok(Claim {
                    object: keep.object,
                    cell: cell.map_addr(|addr| addr | flags),
                    lifetime: PhantomData,
                })
            }
            Err(found) => Err((keep, found)),
        }
    }

    /// As [`take`](Claim::take), of an object that is borrowed and need not be shared.
    #[inline(always)]
    pub(crate) fn take_borrowed(
        object: &'o R,
        find: impl FnOnce(&R) -> &ClaimCell<T>,
        from: Unclaimed,
        to: Claimed,
    ) -> Result<Self, Word> {
        let cell = Self::try_claim(find(object), from, to)?;
        Ok(Claim { object: NonNull::from(object), cell, lifetime: PhantomData })
    }

    #[inline(always)]
    fn try_claim(cell: &ClaimCell<T>, from: Unclaimed, to: Claimed) -> Result<NonNull<ClaimCell<T>>, Word> {
        // Acquire: what the last holder did to the value is seen.
        let success = if mutant!("claim_does_not_acquire") { Ordering::Relaxed } else { Ordering::Acquire };
        let claimed = cell.word.compare_exchange(from.0, to.0, success, Ordering::Relaxed);
        claimed.map(|_| NonNull::from(cell)).map_err(Word::of)
    }

    #[inline]
    fn has(&self, flag: usize) -> bool {
        self.cell.addr().get() & flag != 0
    }

    /// The cell, claimed or released.
    #[inline]
    pub(crate) fn cell(&self) -> &ClaimCell<T> {
        let cell = self.cell.as_ptr().map_addr(|addr| addr & !FLAGS);
        // SAFETY: the cell was reached from the object by shared reference, and the claim keeps the object in place: a
        // borrow of it or of its `Arc`, or a reference count.
        unsafe { &*cell }
    }

    /// The object.
    #[inline]
    pub(crate) fn object(&self) -> &R {
        // SAFETY: as for the cell.
        unsafe { self.object.as_ref() }
    }

    /// One more reference to an object that is shared.
    pub(crate) fn to_arc(&self) -> Arc<R> {
        assert!(self.has(SHARED), "only what came from an Arc is given as one");
        // SAFETY: the pointer came from an `Arc`, which the claim keeps alive; the count that is added is the result's.
        unsafe {
            Arc::increment_strong_count(self.object.as_ptr());
            Arc::from_raw(self.object.as_ptr())
        }
    }

    /// Lets go of the object. Not a destructor, so that a set of claims that own nothing is thrown away without a look at each;
    /// a claim that is only dropped leaks the reference that it owns.
    pub(crate) fn finish(self) {
        if self.has(OWNED) {
            // SAFETY: the count came with the Keep, and is given back once, as this ends the claim.
            drop(unsafe { Arc::from_raw(self.object.as_ptr()) });
        }
    }

    /// The object and the value in it, apart.
    #[inline]
    pub(crate) fn parts(&mut self) -> (&R, &mut T) {
        let value: *mut T = &mut **self;
        // SAFETY: the exclusive borrow of this claim is one of the value too. The object is borrowed shared, and reaches the
        // value only through an UnsafeCell.
        (self.object(), unsafe { &mut *value })
    }

    /// Gives the value back: to all, or if somebody waits, to whom the queue will say. Returns how many wait. The claim goes on
    /// keeping the object. A full barrier must follow before the caller looks again whether somebody
    /// [waits](ClaimCell::is_waited_for).
    ///
    /// Decides nothing, as it stands in a loop over many.
    ///
    /// # Safety
    /// The claim must not have been released, and is not marked as released; from now on nothing of it may be used but its cell,
    /// its object and [`finish`](Claim::finish).
    #[inline]
    pub(super) unsafe fn release_unmarked(&mut self) -> u32 {
        debug_assert!(!self.has(RELEASED), "a claim is released once");
        let waiting = self.cell().waiting();
        let to = Unclaimed(if waiting == 0 { Unclaimed::FREE.0 } else { Unclaimed::FOR_QUEUE.0 });
        Release(self.cell()).store(to);
        waiting
    }

    /// Gives the value back to all, and passes the barrier.
    #[inline]
    pub(crate) fn release_and_fence(&mut self) {
        self.release_by(|_, release| release.swap(Unclaimed::FREE));
    }

    /// Gives the value back to whom `decide` says, which may look at the object before and after.
    #[inline]
    pub(crate) fn release_by(&mut self, decide: impl FnOnce(&R, Release<'_, T>)) {
        self.check_not_released();
        decide(self.object(), Release(self.cell()));
        self.cell = self.cell.map_addr(|addr| addr | RELEASED);
    }

    #[inline]
    fn check_not_released(&self) {
        assert!(!self.has(RELEASED), "a claim is not used after its release");
    }
}

/// The end of a claim: good for one store.
pub(crate) struct Release<'c, T>(&'c ClaimCell<T>);

impl<T> Release<'_, T> {
    // Release: what was done to the value is seen by the next holder.
    #[inline(always)]
    fn order() -> Ordering {
        if mutant!("release_publishes_nothing") { Ordering::Relaxed } else { Ordering::Release }
    }

    /// The value is nobody's any more.
    #[inline]
    pub(crate) fn store(self, to: Unclaimed) {
        self.0.word.store(to.0, Self::order());
    }

    /// The same by a read-modify-write, which does for a barrier where [`fence_after_rmw`] is none.
    #[inline]
    fn swap(self, to: Unclaimed) {
        self.0.word.swap(to.0, Self::order());
        fence_after_rmw();
    }
}

impl<R, T> Deref for Claim<'_, R, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.check_not_released();
        let cell = self.cell();
        #[cfg(not(loom))]
        let value = cell.value.get().cast_const();
        #[cfg(loom)]
        let value = cell.value.with(|value| value);
        // SAFETY: this claim is the only one, and it is borrowed for as long as the reference lives.
        unsafe { &*value }
    }
}

impl<R, T> DerefMut for Claim<'_, R, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        self.check_not_released();
        let cell = self.cell();
        #[cfg(not(loom))]
        let value = cell.value.get();
        #[cfg(loom)]
        let value = cell.value.with_mut(|value| value);
        // SAFETY: this claim is the only one, and it is borrowed exclusively for as long as the reference lives.
        unsafe { &mut *value }
    }
}
