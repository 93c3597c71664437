//! Reservations: a buffer's lock, and the fences of what is being done to it.
//!
//! The lock is a state machine and not a mutex held for long: a mutex guards the state for instants, and *locked*
//! means that the payload has moved out of the state, into the hands of the holder. That makes the payload
//! unreachable for everybody else without any `unsafe`, lets the lock be *tried* by looking (also in a model), and
//! lets others read the fences while the buffer is locked.
//!
//! ```text
//!            free                               locked
//!   ┌ state ──────────────┐           ┌ state ──────────────┐      ┌ Locked / LockSet ┐
//!   │ payload ──▶ Box<T>  │   lock    │ payload: none       │      │ payload ──▶ Box<T>│
//!   │ holder: none        │ ────────▶ │ holder: ticket 41   │      └───────────────────┘
//!   │ queue: empty        │           │ queue: 17, 52, 60   │  oldest ticket first, each with a bell of its own
//!   │ fences: ...         │           │ fences: ...         │
//!   └─────────────────────┘           └─────────────────────┘
//! ```
//!
//! **Deadlock** between tickets that each lock several buffers is excluded by wait-die: whoever holds something and
//! finds the holder *older* than itself dies, which is to say it is told [`Contended`], lets go of everything and
//! begins again with the age it has. So those who wait while they hold something wait for younger ones only, and no
//! circle of waiting can close; the oldest ticket of all never dies, so somebody always gets on. The rule is applied
//! when a ticket asks and again whenever the lock changes hands, to those in the queue. A ticket that holds nothing
//! may always wait. Whoever locks a single buffer ([`Reservation::lock`]) waits for no other while holding it,
//! therefore nobody dies of it.
//!
//! **Fairness.** An unlock leaves the lock free and rings the oldest waiter alone. Whoever is running may be faster
//! and take it, which keeps a contended lock from costing two context switches each time; but a waiter that lost
//! this race once becomes the *heir* of the next unlock, and nobody overtakes an heir.
//!
//! **Fences** are kept with a [`Usage`]. A fence replaces those of the same timeline that it implies (earlier, and of
//! the same or a weaker usage), and signalled ones are dropped on every occasion, so a reservation holds at most four
//! fences a timeline that is at work, however long its history is.

use std::collections::VecDeque;
use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::error::{Contended, SlotsExhausted};
use crate::fence::Fence;
use crate::fence_set::FenceSet;
use crate::levels::{self, Below, Held, Level, Lock, Tickets};
use crate::lockdep;
use crate::sync::{Arc, Condvar, fresh_stamp};

/// What a fence's work does to the buffer; the order is that of who must be waited for first.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Usage {
    /// Memory management: moves and clears. Everybody waits for these.
    Kernel,
    /// Writes by submissions. Readers and writers wait for these.
    Write,
    /// Reads by submissions. Writers wait for these.
    Read,
    /// Anything that keeps the memory in use, without implicit synchronisation.
    Bookkeep,
}

impl Usage {
    /// Every usage, strongest first.
    pub const ALL: [Usage; 4] = [Usage::Kernel, Usage::Write, Usage::Read, Usage::Bookkeep];

    /// The weakest usage an access has to wait for: a writer waits for readers, a reader for writers.
    pub fn waits_for(write: bool) -> Usage {
        if write { Usage::Read } else { Usage::Write }
    }
}

/// Something that has a reservation, and so can be locked by an [`Exec`](crate::Exec).
pub trait Reservable: Send + Sync + 'static {
    /// What only the lock's holder may touch.
    type State: Send;

    /// The object's reservation; always the same one.
    fn reservation(&self) -> &Reservation<Self::State>;
}

/// Who asks for a lock.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Bidder {
    /// The ticket; smaller is older. 0 for a single lock, which draws one if it has to queue.
    pub stamp: u64,
    /// Whether the ticket may hold several reservations, and so wait for one while holding another.
    pub many: bool,
    /// Whether it holds one now.
    pub holds: bool,
    /// Where the holder keeps the object; given back when the same ticket asks again.
    pub slot: u32,
}

impl Bidder {
    /// Somebody who locks one reservation and no other.
    const SINGLE: Bidder = Bidder { stamp: 0, many: false, holds: false, slot: 0 };
}

/// How asking for a lock ended well.
pub(crate) enum Acquired<T> {
    /// The lock is the bidder's, and this is what it protects.
    Payload(Box<T>),
    /// It has been the bidder's all along, in this slot.
    Already(u32),
}

struct Holder {
    stamp: u64,
    many: bool,
    slot: u32,
}

struct Waiter {
    stamp: u64,
    holds: bool,
    lost: bool, // it was rung, and somebody else was faster
    bell: Arc<Condvar>,
}

struct Booked {
    fence: Fence,
    usage: Usage,
}

impl Booked {
    /// Whether whoever waits for this one waits for `other` as well.
    fn implies(&self, other: &Booked) -> bool {
        self.fence.timeline_id() == other.fence.timeline_id()
            && self.fence.seqno() >= other.fence.seqno()
            && self.usage <= other.usage
    }
}

struct State<T> {
    payload: Option<Box<T>>, // none while locked
    holder: Option<Holder>,
    heir: Option<u64>,         // the one waiter that may take the free lock
    waiters: VecDeque<Waiter>, // oldest first
    fences: Vec<Booked>,
}

impl<T> State<T> {
    fn take(&mut self, bidder: &Bidder) -> Option<Box<T>> {
        if self.heir.is_some_and(|heir| heir != bidder.stamp) {
            return None;
        }
        let payload = self.payload.take()?;
        self.heir = None;
        self.holder = Some(Holder { stamp: bidder.stamp, many: bidder.many, slot: bidder.slot });
        self.ring_the_doomed();
        Some(payload)
    }

    /// Rings those in the queue that must not wait for the present holder.
    fn ring_the_doomed(&self) {
        if cfg!(loom_mutant = "new_holder_rings_nobody") {
            return;
        }
        for waiter in &self.waiters {
            if self.must_die(waiter.stamp, waiter.holds) {
                waiter.bell.notify_one();
            }
        }
    }

    /// Whether a ticket must not wait: it holds something, and what it would wait for is older and may wait as well.
    fn must_die(&self, stamp: u64, holds: bool) -> bool {
        let holds = holds && !cfg!(loom_mutant = "younger_ones_wait_too");
        holds && self.holder.as_ref().is_some_and(|holder| holder.many && holder.stamp < stamp)
    }

    fn held_by(&self, stamp: u64) -> Option<u32> {
        let holder = self.holder.as_ref()?;
        (holder.many && holder.stamp == stamp).then_some(holder.slot)
    }

    fn enqueue(&mut self, bidder: &Bidder) -> Arc<Condvar> {
        let bell = Arc::new(Condvar::new());
        let Bidder { stamp, holds, .. } = *bidder;
        let index = self.waiters.partition_point(|waiter| waiter.stamp < stamp);
        self.waiters.insert(index, Waiter { stamp, holds, lost: false, bell: bell.clone() });
        bell
    }

    fn waiter(&mut self, stamp: u64) -> Option<(usize, &mut Waiter)> {
        self.waiters.iter_mut().enumerate().find(|(_, waiter)| waiter.stamp == stamp)
    }

    fn dequeue(&mut self, stamp: u64) {
        if let Some((index, _)) = self.waiter(stamp) {
            self.waiters.remove(index);
        }
    }

    fn snapshot(&self, usage: Usage) -> FenceSet {
        let wanted = |booked: &&Booked| booked.usage <= usage && !booked.fence.is_signaled();
        self.fences.iter().filter(wanted).map(|booked| booked.fence.clone()).collect()
    }

    fn book(&mut self, new: Booked) {
        self.fences.retain(|old| !old.fence.is_signaled() && !new.implies(old));
        if !new.fence.is_signaled() && !self.fences.iter().any(|old| old.implies(&new)) {
            self.fences.push(new);
        }
    }
}

/// A buffer's lock with its fences. `T` is what only the holder may touch.
pub struct Reservation<T> {
    state: Lock<levels::Timeline, State<T>>,
}

impl<T> Reservation<T> {
    /// An unlocked reservation around `payload`, without fences.
    pub fn new(payload: T) -> Self {
        let state = State {
            payload: Some(Box::new(payload)),
            holder: None,
            heir: None,
            waiters: VecDeque::new(),
            fences: Vec::new(),
        };
        Reservation { state: Lock::new("reservation state", state) }
    }

    /// Locks this one reservation, sleeping as long as it takes; the oldest waiter is served first.
    ///
    /// Several at once need an [`Exec`](crate::Exec). The lock's level is [`Tickets`].
    #[track_caller]
    pub fn lock<'a, H: Level>(&'a self, held: &'a mut Held<'_, H>) -> Locked<'a, T>
    where
        Tickets: Below<H>,
    {
        let _ = held;
        let record = lockdep::acquire(Tickets::RANK, "reservation", lockdep::ALONE);
        let bidder = Bidder::SINGLE;
        match self.acquire(bidder) {
            Ok(Acquired::Payload(payload)) => Locked::new(self, payload, record),
            Ok(Acquired::Already(_)) | Err(Contended) => {
                unreachable!("a single lock has no ticket to clash with")
            }
        }
    }

    /// Locks if that takes no waiting. Legal whatever else is held, since who does not wait cannot deadlock.
    #[track_caller]
    pub fn try_lock(&self) -> Option<Locked<'_, T>> {
        let bidder = Bidder::SINGLE;
        match self.try_acquire(&bidder)? {
            Acquired::Payload(payload) => {
                let record = lockdep::acquire_tried(Tickets::RANK, "reservation", lockdep::ALONE);
                Some(Locked::new(self, payload, record))
            }
            Acquired::Already(_) => None,
        }
    }

    /// The outstanding fences of all usages up to `usage`, as of now; callable without the lock.
    pub fn fences(&self, usage: Usage) -> FenceSet {
        self.state.lock_leaf().snapshot(usage)
    }

    /// Whether somebody holds the lock; true is old news at once, unless it is the caller.
    pub fn is_locked(&self) -> bool {
        self.state.lock_leaf().payload.is_none()
    }

    /// The payload; no locking, as nobody else can have it.
    ///
    /// # Panics
    /// When the reservation was left locked for good, by forgetting its guard.
    pub fn get_mut(&mut self) -> &mut T {
        self.state.get_mut().payload.as_deref_mut().expect("the guard of this reservation was forgotten")
    }

    /// Takes the lock for `bidder`, sleeping unless wait-die forbids it.
    pub(crate) fn acquire(&self, mut bidder: Bidder) -> Result<Acquired<T>, Contended> {
        let mut state = self.state.lock_leaf();
        if let Some(payload) = state.take(&bidder) {
            return Ok(Acquired::Payload(payload));
        }
        if let Some(slot) = state.held_by(bidder.stamp) {
            return Ok(Acquired::Already(slot));
        }
        if state.must_die(bidder.stamp, bidder.holds) {
            return Err(Contended);
        }
        if !bidder.many {
            bidder.stamp = fresh_stamp();
        }
        let stamp = bidder.stamp;
        #[cfg(loom_mutant = "waiter_queues_too_late")]
        let mut state = {
            drop(state);
            self.state.lock_leaf()
        };
        let bell = state.enqueue(&bidder);
        loop {
            state = state.wait(&bell);
            if let Some(payload) = state.take(&bidder) {
                state.dequeue(stamp);
                return Ok(Acquired::Payload(payload));
            }
            if state.must_die(stamp, bidder.holds) {
                state.dequeue(stamp);
                return Err(Contended);
            }
            if let Some((_, waiter)) = state.waiter(stamp) {
                waiter.lost = true;
            }
        }
    }

    /// Takes the lock for `bidder` if that takes no waiting.
    pub(crate) fn try_acquire(&self, bidder: &Bidder) -> Option<Acquired<T>> {
        let mut state = self.state.lock_leaf();
        let payload = state.take(bidder).map(Acquired::Payload);
        payload.or_else(|| state.held_by(bidder.stamp).map(Acquired::Already))
    }

    /// The slot in which the ticket keeps this lock, if it has it.
    pub(crate) fn slot_of(&self, stamp: u64) -> Option<u32> {
        self.state.lock_leaf().held_by(stamp)
    }

    /// Gives the lock back.
    pub(crate) fn release(&self, payload: Box<T>) {
        let mut state = self.state.lock_leaf();
        state.payload = Some(payload);
        state.holder = None;
        let head = state.waiters.front().map(|head| (head.bell.clone(), head.lost.then_some(head.stamp)));
        let Some((bell, heir)) = head else { return };
        state.heir = heir;
        drop(state);
        let silent = cfg!(loom_mutant = "unlock_rings_nobody")
            || (cfg!(loom_mutant = "heir_is_not_rung") && heir.is_some());
        if !silent {
            bell.notify_one();
        }
    }

    /// Makes room for `slots` fences beside those that are there.
    pub(crate) fn make_room(&self, slots: usize) -> Result<(), SlotsExhausted> {
        let mut state = self.state.lock_leaf();
        state.fences.retain(|booked| !booked.fence.is_signaled());
        let in_use = state.fences.len();
        state.fences.try_reserve(slots).map_err(|_| SlotsExhausted { wanted: slots, in_use })
    }

    pub(crate) fn book(&self, fence: Fence, usage: Usage) {
        self.state.lock_leaf().book(Booked { fence, usage });
    }
}

impl<T> fmt::Debug for Reservation<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock_leaf();
        f.debug_struct("Reservation")
            .field("locked", &state.payload.is_none())
            .field("waiters", &state.waiters.len())
            .field("fences", &state.fences.len())
            .finish()
    }
}

/// How many fences a holder may still add.
#[derive(Debug, Default)]
pub(crate) struct Slots(usize);

impl Slots {
    pub(crate) fn reserve<T>(&mut self, of: &Reservation<T>, count: usize) -> Result<(), SlotsExhausted> {
        of.make_room(self.0.saturating_add(count))?;
        self.0 += count;
        Ok(())
    }

    #[track_caller]
    pub(crate) fn spend(&mut self) {
        debug_assert!(self.0 > 0, "a fence is added to a reservation without a reserved slot");
        self.0 = self.0.saturating_sub(1);
    }
}

/// A locked reservation, until dropped. Dereferences to what the lock protects.
pub struct Locked<'a, T> {
    reservation: &'a Reservation<T>,
    payload: Option<Box<T>>, // taken by drop alone
    slots: Slots,            // vanish with the lock
    _record: lockdep::Record,
}

impl<'a, T> Locked<'a, T> {
    fn new(reservation: &'a Reservation<T>, payload: Box<T>, record: lockdep::Record) -> Self {
        Locked { reservation, payload: Some(payload), slots: Slots::default(), _record: record }
    }

    /// Makes room for `count` more fences; after this as many [`add_fence`](Locked::add_fence) cannot fail.
    ///
    /// Slots that are not used vanish when the lock is dropped.
    pub fn reserve_fences(&mut self, count: usize) -> Result<(), SlotsExhausted> {
        self.slots.reserve(self.reservation, count)
    }

    /// Adds a fence, in a slot that was reserved. It never replaces a stronger usage by a weaker one.
    ///
    /// # Panics
    /// In debug builds, without a slot.
    #[track_caller]
    pub fn add_fence(&mut self, fence: Fence, usage: Usage) {
        self.slots.spend();
        self.reservation.book(fence, usage);
    }

    /// The outstanding fences of all usages up to `usage`.
    pub fn fences(&self, usage: Usage) -> FenceSet {
        self.reservation.fences(usage)
    }

    /// The token with which to lock further below.
    pub fn held(&mut self) -> Held<'_, Tickets> {
        Held::token()
    }

    /// The payload, and the token with which to lock further below while it is borrowed.
    pub fn split(&mut self) -> (&mut T, Held<'_, Tickets>) {
        (self.payload_mut(), Held::token())
    }

    fn payload_mut(&mut self) -> &mut T {
        self.payload.as_deref_mut().expect("the payload is the guard's until it is dropped")
    }
}

impl<T> Deref for Locked<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.payload.as_deref().expect("the payload is the guard's until it is dropped")
    }
}

impl<T> DerefMut for Locked<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.payload_mut()
    }
}

impl<T> Drop for Locked<'_, T> {
    fn drop(&mut self) {
        if let Some(payload) = self.payload.take() {
            self.reservation.release(payload);
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Locked<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
