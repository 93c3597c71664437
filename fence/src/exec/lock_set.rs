//! What an Exec holds: objects, locked with one ticket.
//!
//! A set borrows its objects or owns references to them ([`Keep`]), so they live as long as they are locked, and knows its own
//! by asking them: a reservation's word names the ticket that holds it, and beside it stands the slot where, so that
//! asking twice for one object costs the same for two objects as for two thousand.
//!
//! **Letting go** of many costs one barrier and not one each: all words are stored, then the barrier, then one look whether
//! anybody queues at all.

use std::fmt;
use std::num::NonZeroU64;

use crate::error::{LockError, SlotsExhausted};
use crate::exec::Interrupt;
use crate::fence::Fence;
use crate::fence_set::FenceSet;
use crate::levels::{Level, Tickets};
use crate::lockdep;
use crate::reservation::{Bidder, Grip, Guarded, Reservable, Reservation, Usage, anybody_queues};
use crate::sync::atomic::Ordering;
use crate::sync::barrier::fence_after_rmw;
use crate::sync::claim::{Claimed, Keep, Word};
use crate::sync::places::{Held, Places};
use crate::sync::stamp::fresh_stamp;
use crate::sync::{Arc, mutant};

/// Names a locked object inside its [`LockSet`], until that object is unlocked.
#[derive(Copy, Clone, PartialEq, Eq, Hash)]
pub struct Slot(NonZeroU64); // index and generation, in one register

impl Slot {
    #[inline]
    fn new(index: u32, generation: u32) -> Slot {
        // The index counts from one here, which leaves a value for no slot.
        Slot(NonZeroU64::MIN.saturating_add(u64::from(generation) << 32 | u64::from(index)))
    }

    #[inline]
    fn index(self) -> u32 {
        (self.0.get() - 1) as u32
    }

    #[inline]
    fn generation(self) -> u32 {
        ((self.0.get() - 1) >> 32) as u32
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({}, generation {})", self.index(), self.generation())
    }
}

/// One object that is held. Locking writes one for each object, so it is as small as can be.
type Entry<'o, R> = Held<'o, R, Guarded<<R as Reservable>::State>, lockdep::Record>;

/// What an [`Exec`](crate::Exec) holds.
///
/// A [`Slot`] is good until its object is unlocked, one by one or all together; using it afterwards panics.
pub struct LockSet<'o, R: Reservable> {
    claimed: Claimed,      // constant; the word with which it holds: its ticket
    group: lockdep::Group, // constant; what the set's locks have in common for lockdep
    owns: bool,            // a reference to one of its objects
    reserved: bool,        // fence slots in one of them
    places: Places<Entry<'o, R>>,
}

/// What became of asking for an object: the claim, or the object back with whose it is.
pub(super) type Asked<'o, R> = Result<Grip<'o, R, <R as Reservable>::State>, (Keep<'o, R>, Word)>;

/// A lock that was not had, and why: by wait-die, or an interrupt.
pub(super) struct Refused<'o, R> {
    pub(super) object: Keep<'o, R>,
    pub(super) error: LockError,
}

impl<'o, R: Reservable> LockSet<'o, R> {
    #[inline]
    pub(super) fn new() -> Self {
        LockSet {
            claimed: Claimed::by_ticket(fresh_stamp()),
            group: lockdep::Group::fresh(),
            owns: false,
            reserved: false,
            places: Places::new(),
        }
    }

    /// Locks an object in the usual case, that it is free and a place for it is too; anything else is left to `unusual`, which gets
    /// what became of the claim.
    ///
    /// All that is not a comparison is a store that the next object's compare-and-swap has to wait for, so there are few.
    #[inline(always)]
    pub(super) fn lock_at_once(
        &mut self,
        object: Keep<'o, R>,
        record: lockdep::Record,
        unusual: impl FnOnce(&mut Self, Asked<'o, R>, lockdep::Record) -> Option<Slot>,
    ) -> Option<Slot> {
        let Some(index) = self.places.next_at_once() else {
            let asked = self.claim(object);
            return unusual(self, asked, record);
        };
        let grip = match self.claim(object) {
            Ok(grip) => grip,
            refused => return unusual(self, refused, record),
        };
        grip.cell().kept_at.store(index, Ordering::Relaxed);
        self.places.push_at_once(Held { claim: grip, _extra: record });
        Some(self.slot_at(index))
    }

    /// Makes a lock of what was asked for: keeps it, finds it kept, or waits for it.
    pub(super) fn settle(
        &mut self,
        asked: Asked<'o, R>,
        interrupt: Option<&Interrupt>,
        record: lockdep::Record,
    ) -> Result<Slot, Refused<'o, R>> {
        match asked {
            Ok(grip) => Ok(self.keep(grip, record)),
            Err((object, found)) => match self.already(&object, found) {
                Some(slot) => Ok(slot),
                None => self.wait_for(object, found, interrupt, record),
            },
        }
    }

    /// Locks one more if that takes no waiting. Legal under a region's lock; an object already held gives its slot.
    #[track_caller]
    pub fn try_lock(&mut self, object: impl Into<Keep<'o, R>>) -> Option<Slot> {
        match self.claim(object.into()) {
            Ok(grip) => {
                let instance = grip.object().reservation().instance();
                let record = lockdep::acquire_tried(Tickets::RANK, "reservation", self.group).of(instance);
                Some(self.keep(grip, record))
            }
            Err((object, found)) => self.already(&object, found),
        }
    }

    /// Claims an object if it is free.
    #[inline(always)]
    fn claim(&mut self, object: Keep<'o, R>) -> Asked<'o, R> {
        self.owns |= object.is_owned();
        Reservation::claim(object, R::reservation, self.claimed)
    }

    fn stamp(&self) -> u64 {
        self.claimed.stamp().expect("a set holds by its ticket")
    }

    /// What the set's locks have in common for lockdep.
    pub(super) fn group(&self) -> lockdep::Group {
        self.group
    }

    /// Locks an object that somebody else has, who is waited for unless wait-die forbids it.
    #[cold]
    fn wait_for(
        &mut self,
        object: Keep<'o, R>,
        found: Word,
        interrupt: Option<&Interrupt>,
        record: lockdep::Record,
    ) -> Result<Slot, Refused<'o, R>> {
        self.tell_the_doomed();
        let bidder =
            Bidder { stamp: self.stamp(), claimed: self.claimed, holds: !self.is_empty(), interrupt };
        match Reservation::wait_for(object, R::reservation, found, &bidder) {
            Ok(grip) => Ok(self.keep(grip, record)),
            Err((object, error)) => Err(Refused { object, error }),
        }
    }

    /// Rings those who wait for what this set holds and must not. Until the set waits itself they do no harm, as it comes to its
    /// end without them; so it is here that they are told, and not whenever it takes an object.
    fn tell_the_doomed(&mut self) {
        // Every object was taken by a read-modify-write, or handed over.
        fence_after_rmw();
        self.places.for_each(|entry| {
            if entry.claim.cell().is_waited_for() && !mutant!("new_holder_rings_nobody") {
                entry.claim.object().reservation().tell_the_doomed();
            }
        });
    }

    /// The slot of an object whose word is this set's.
    fn already(&self, object: &Keep<'o, R>, found: Word) -> Option<Slot> {
        (found.ticket() == Some(self.stamp())).then(|| self.slot_at(object.object().reservation().kept_at()))
    }

    /// Keeps what was locked, in a vacant place if there is one.
    fn keep(&mut self, grip: Grip<'o, R, R::State>, record: lockdep::Record) -> Slot {
        let index = self.places.next();
        grip.cell().kept_at.store(index, Ordering::Relaxed);
        self.places.insert(Held { claim: grip, _extra: record });
        self.slot_at(index)
    }

    #[inline]
    fn slot_at(&self, index: u32) -> Slot {
        Slot::new(index, self.places.generation(index))
    }

    /// The slot of an object, if this set holds it.
    pub fn slot_of(&self, object: &R) -> Option<Slot> {
        object.reservation().kept_by(self.stamp()).map(|index| self.slot_at(index))
    }

    /// Unlocks one object.
    ///
    /// # Panics
    /// On a slot whose object was unlocked before; as do all methods that take a slot.
    #[track_caller]
    pub fn unlock(&mut self, slot: Slot) {
        self.entry_mut(slot).claim.forget_slots();
        if let Some(entry) = self.places.vacate(slot.index()) {
            Self::end(entry);
        }
    }

    /// Unlocks what was taken out of its place before, so that the places hold live claims only.
    #[inline]
    fn end(Held { mut claim, _extra }: Entry<'o, R>) {
        Reservation::unlock(&mut claim, R::reservation);
        claim.finish();
    }

    #[inline]
    pub(super) fn unlock_all(&mut self) {
        if self.reserved {
            self.forget_slots();
        }
        match self.places.take_only() {
            Some(only) => {
                Self::end(only);
                self.places.clear();
            }
            None if self.places.is_empty() => {}
            None => self.unlock_many(),
        }
        self.owns = false;
    }

    #[inline]
    fn unlock_many(&mut self) {
        self.places.release_all(self.owns, anybody_queues, |object| object.reservation().wake_next());
    }

    #[cold]
    fn forget_slots(&mut self) {
        self.reserved = false;
        self.places.for_each(|entry| entry.claim.forget_slots());
    }

    #[track_caller]
    fn entry(&self, slot: Slot) -> &Entry<'o, R> {
        match self.places.get(slot.index(), slot.generation()) {
            Some(entry) => entry,
            None => panic!("{slot:?} was unlocked before"),
        }
    }

    #[track_caller]
    fn entry_mut(&mut self, slot: Slot) -> &mut Entry<'o, R> {
        match self.places.get_mut(slot.index(), slot.generation()) {
            Some(entry) => entry,
            None => panic!("{slot:?} was unlocked before"),
        }
    }

    /// The object in a slot.
    #[track_caller]
    pub fn object(&self, slot: Slot) -> &R {
        self.entry(slot).claim.object()
    }

    /// One more reference to the object in a slot.
    #[track_caller]
    pub fn arc(&self, slot: Slot) -> Arc<R> {
        self.entry(slot).claim.to_arc()
    }

    /// What the object's lock protects.
    #[track_caller]
    pub fn state(&self, slot: Slot) -> &R::State {
        &self.entry(slot).claim.payload
    }

    /// What the object's lock protects.
    #[track_caller]
    pub fn state_mut(&mut self, slot: Slot) -> &mut R::State {
        &mut self.entry_mut(slot).claim.payload
    }

    /// Makes room for `count` more fences; after this as many [`add_fence`](LockSet::add_fence) cannot fail.
    #[track_caller]
    pub fn reserve_fences(&mut self, slot: Slot, count: usize) -> Result<(), SlotsExhausted> {
        self.reserved = true;
        let (object, guarded) = self.entry_mut(slot).claim.parts();
        object.reservation().reserve_fences(guarded, count)
    }

    /// Adds a fence, in a slot that was reserved. It never replaces a stronger usage by a weaker one.
    ///
    /// # Panics
    /// In debug builds, without a reserved slot.
    #[track_caller]
    pub fn add_fence(&mut self, slot: Slot, fence: Fence, usage: Usage) {
        let (object, guarded) = self.entry_mut(slot).claim.parts();
        object.reservation().add_fence(guarded, fence, usage);
    }

    /// Adds the outstanding fences of `other`, each with its usage.
    ///
    /// # Errors
    /// [`SlotsExhausted`], and nothing is copied, when there is no memory for that many. Slots that were reserved before are
    /// not spent.
    #[track_caller]
    pub fn copy_fences<T>(&mut self, slot: Slot, other: &Reservation<T>) -> Result<(), SlotsExhausted> {
        let (object, guarded) = self.entry_mut(slot).claim.parts();
        object.reservation().copy_fences(guarded, other)
    }

    /// The outstanding fences of all usages up to `usage`.
    #[track_caller]
    pub fn fences(&self, slot: Slot, usage: Usage) -> FenceSet {
        self.object(slot).reservation().fences(usage)
    }

    /// The slots in use.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.places.numbered().map(|(index, _)| self.slot_at(index))
    }

    /// How many objects are held.
    #[inline]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether none is held.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<R: Reservable> Drop for LockSet<'_, R> {
    #[inline]
    fn drop(&mut self) {
        self.unlock_all();
    }
}

impl<R: Reservable> fmt::Debug for LockSet<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LockSet(ticket {}, {} held)", self.stamp(), self.len())
    }
}
