//! Exec: many reservations at once, in any order, without deadlock.
//!
//! An [`Exec`] has a ticket, whose age it keeps for life. [`Exec::run`] calls a body that locks what it needs in
//! whatever order it finds out. When an older ticket has one of those, [`lock`](Exec::lock) says [`Contended`], the
//! body passes that on, and `run` lets go of everything, sleeps until it has the contended object (holding nothing, it
//! may), and calls the body again. As the ticket keeps its age, it is at some point the oldest there is, and then
//! it does not lose any more. The rule behind it is in `reservation.rs`.
//!
//! What is held is a [`LockSet`]. It owns its objects, so they live as long as they are locked, and knows its own
//! by asking them: a reservation remembers the ticket that holds it and the slot where, so that asking twice for one
//! object costs the same for two objects as for two thousand.
//!
//! Eviction locks victims too, but under a region's lock, where waiting is forbidden. For that a set can be split from
//! its Exec and [tried](LockSet::try_lock).

use std::fmt;

use crate::error::{Contended, SlotsExhausted};
use crate::fence::Fence;
use crate::fence_set::FenceSet;
use crate::levels::{Below, Held, Level, Tickets};
use crate::lockdep;
use crate::reservation::{Acquired, Bidder, Reservable, Slots, Usage};
use crate::sync::{Arc, fresh_stamp};

/// Names a locked object inside its [`LockSet`], until that object is unlocked.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    index: u32,
    generation: u32,
}

struct Entry<R: Reservable> {
    object: Arc<R>,
    payload: Box<R::State>,
    slots: Slots,
    generation: u32,
    _record: lockdep::Record,
}

/// What an [`Exec`] holds, with owning references.
///
/// A [`Slot`] is good until its object is unlocked, one by one or all together; using it afterwards panics.
pub struct LockSet<R: Reservable> {
    stamp: u64, // constant
    entries: Vec<Option<Entry<R>>>,
    vacant: Vec<u32>,
    generation: u32, // of the last entry
}

impl<R: Reservable> LockSet<R> {
    fn new() -> Self {
        LockSet { stamp: fresh_stamp(), entries: Vec::new(), vacant: Vec::new(), generation: 0 }
    }

    fn bidder(&self) -> Bidder {
        let next = self.vacant.last().copied().unwrap_or(self.entries.len() as u32);
        Bidder { stamp: self.stamp, many: true, holds: !self.is_empty(), slot: next }
    }

    #[track_caller]
    fn lock(&mut self, object: &Arc<R>) -> Result<Slot, Contended> {
        let record = lockdep::acquire(Tickets::RANK, "reservation", self.stamp);
        let acquired = object.reservation().acquire(self.bidder())?;
        Ok(self.keep(object, acquired, record))
    }

    /// Locks one more if that takes no waiting. Legal under a region's lock; an object already held gives its slot.
    #[track_caller]
    pub fn try_lock(&mut self, object: &Arc<R>) -> Option<Slot> {
        let acquired = object.reservation().try_acquire(&self.bidder())?;
        let record = lockdep::acquire_tried(Tickets::RANK, "reservation", self.stamp);
        Some(self.keep(object, acquired, record))
    }

    fn keep(&mut self, object: &Arc<R>, acquired: Acquired<R::State>, record: lockdep::Record) -> Slot {
        let payload = match acquired {
            Acquired::Payload(payload) => payload,
            Acquired::Already(index) => return self.slot_at(index),
        };
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let slots = Slots::default();
        let entry = Entry { object: object.clone(), payload, slots, generation, _record: record };
        let index = match self.vacant.pop() {
            Some(index) => {
                self.entries[index as usize] = Some(entry);
                index
            }
            None => {
                self.entries.push(Some(entry));
                self.entries.len() as u32 - 1
            }
        };
        Slot { index, generation }
    }

    fn slot_at(&self, index: u32) -> Slot {
        let entry = self.entries[index as usize].as_ref().expect("a reservation's holder knows its slot");
        Slot { index, generation: entry.generation }
    }

    /// The slot of an object, if this set holds it.
    pub fn slot_of(&self, object: &R) -> Option<Slot> {
        object.reservation().slot_of(self.stamp).map(|index| self.slot_at(index))
    }

    /// Unlocks one object.
    ///
    /// # Panics
    /// On a slot whose object was unlocked before; as do all methods that take a slot.
    #[track_caller]
    pub fn unlock(&mut self, slot: Slot) {
        self.entry(slot);
        if let Some(entry) = self.entries[slot.index as usize].take() {
            self.vacant.push(slot.index);
            entry.release();
        }
    }

    fn unlock_all(&mut self) {
        self.vacant.clear();
        while let Some(entry) = self.entries.pop() {
            entry.into_iter().for_each(Entry::release);
        }
    }

    #[track_caller]
    fn entry(&self, slot: Slot) -> &Entry<R> {
        let entry = self.entries.get(slot.index as usize).and_then(Option::as_ref);
        match entry {
            Some(entry) if entry.generation == slot.generation => entry,
            _ => panic!("{slot:?} was unlocked before"),
        }
    }

    #[track_caller]
    fn entry_mut(&mut self, slot: Slot) -> &mut Entry<R> {
        let entry = self.entries.get_mut(slot.index as usize).and_then(Option::as_mut);
        match entry {
            Some(entry) if entry.generation == slot.generation => entry,
            _ => panic!("{slot:?} was unlocked before"),
        }
    }

    /// The object in a slot.
    #[track_caller]
    pub fn object(&self, slot: Slot) -> &Arc<R> {
        &self.entry(slot).object
    }

    /// What the object's lock protects.
    #[track_caller]
    pub fn state(&self, slot: Slot) -> &R::State {
        &self.entry(slot).payload
    }

    /// What the object's lock protects.
    #[track_caller]
    pub fn state_mut(&mut self, slot: Slot) -> &mut R::State {
        &mut self.entry_mut(slot).payload
    }

    /// Makes room for `count` more fences; after this as many [`add_fence`](LockSet::add_fence) cannot fail.
    #[track_caller]
    pub fn reserve_fences(&mut self, slot: Slot, count: usize) -> Result<(), SlotsExhausted> {
        let entry = self.entry_mut(slot);
        entry.slots.reserve(entry.object.reservation(), count)
    }

    /// Adds a fence, in a slot that was reserved. It never replaces a stronger usage by a weaker one.
    ///
    /// # Panics
    /// In debug builds, without a reserved slot.
    #[track_caller]
    pub fn add_fence(&mut self, slot: Slot, fence: Fence, usage: Usage) {
        let entry = self.entry_mut(slot);
        entry.slots.spend();
        entry.object.reservation().book(fence, usage);
    }

    /// The outstanding fences of all usages up to `usage`.
    #[track_caller]
    pub fn fences(&self, slot: Slot, usage: Usage) -> FenceSet {
        self.entry(slot).object.reservation().fences(usage)
    }

    /// The slots in use.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        let numbered = self.entries.iter().zip(0u32..);
        numbered.filter_map(|(entry, index)| Some(Slot { index, generation: entry.as_ref()?.generation }))
    }

    /// How many objects are held.
    pub fn len(&self) -> usize {
        self.entries.len() - self.vacant.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<R: Reservable> Entry<R> {
    fn release(self) {
        self.object.reservation().release(self.payload);
    }
}

impl<R: Reservable> Drop for LockSet<R> {
    fn drop(&mut self) {
        self.unlock_all();
    }
}

impl<R: Reservable> fmt::Debug for LockSet<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LockSet(ticket {}, {} held)", self.stamp, self.len())
    }
}

/// A ticket, and everything locked with it. Dropping it unlocks everything.
///
/// Its level is [`Tickets`]; the reservations inside are ordered by the age of the ticket and need no other order.
pub struct Exec<'h, R: Reservable> {
    set: LockSet<R>,
    contended: Option<Arc<R>>, // what an older ticket had when it was asked for last
    restarts: u32,
    depth: u32, // of `run` inside `run`
    _held: Held<'h, Tickets>,
}

impl<'h, R: Reservable> Exec<'h, R> {
    /// A new ticket, younger than all there are, holding nothing.
    pub fn new<H: Level>(held: &'h mut Held<'_, H>) -> Self
    where
        Tickets: Below<H>,
    {
        let _ = held;
        Exec { set: LockSet::new(), contended: None, restarts: 0, depth: 0, _held: Held::token() }
    }

    /// Calls `body` until it is not stopped by contention.
    ///
    /// When `body` fails after a [`lock`](Exec::lock) in it said [`Contended`], everything is unlocked, the contended
    /// object is locked (sleeping), and `body` is called again. What it locked is then still locked, or not needed any
    /// more, and in either case held until the end. When `body` succeeds, everything stays locked until the Exec is
    /// dropped or [`unlock_all`](Exec::unlock_all); when it fails for another reason, everything is unlocked.
    ///
    /// A `run` inside `body` does not restart on its own: it passes the error on to the outermost one.
    pub fn run<O, E>(&mut self, mut body: impl FnMut(&mut Exec<'h, R>) -> Result<O, E>) -> Result<O, E> {
        if self.depth > 0 {
            return body(self);
        }
        loop {
            self.lock_contended();
            self.depth = 1;
            let result = body(self);
            self.depth = 0;
            if result.is_ok() {
                self.contended = None;
                return result;
            }
            if self.contended.is_none() {
                self.set.unlock_all();
                return result;
            }
            self.restarts += 1;
        }
    }

    /// Lets go of everything and sleeps for the object that was contended last.
    #[track_caller]
    fn lock_contended(&mut self) {
        let Some(object) = self.contended.take() else { return };
        if !cfg!(loom_mutant = "restart_keeps_what_it_has") {
            self.set.unlock_all();
        }
        let locked = self.set.lock(&object);
        debug_assert!(locked.is_ok(), "a ticket that holds nothing may always wait");
    }

    /// Locks an object, sleeping unless an older ticket has it and this one holds others. An object that is
    /// already held gives its slot again.
    #[track_caller]
    pub fn lock(&mut self, object: &Arc<R>) -> Result<Slot, Contended> {
        let locked = self.set.lock(object);
        if locked.is_err() {
            self.contended = Some(object.clone());
        }
        locked
    }

    /// What is held, and the token with which to lock further below while it is borrowed.
    pub fn split(&mut self) -> (&mut LockSet<R>, Held<'_, Tickets>) {
        (&mut self.set, Held::token())
    }

    /// What is held.
    pub fn set(&self) -> &LockSet<R> {
        &self.set
    }

    /// What is held.
    pub fn set_mut(&mut self) -> &mut LockSet<R> {
        &mut self.set
    }

    /// How often [`run`](Exec::run) had to begin again.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Unlocks everything and forgets what was contended; the ticket keeps its age.
    pub fn unlock_all(&mut self) {
        self.contended = None;
        self.set.unlock_all();
    }
}

impl<R: Reservable> fmt::Debug for Exec<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exec({:?}, {} restarts)", self.set, self.restarts)
    }
}
