//! Exec: many reservations at once, in any order, without deadlock.
//!
//! [`Exec::run`] calls a body that locks what it needs in whatever order it finds out. When an older ticket has one of those,
//! [`lock`](Exec::lock) says [`Contended`](LockError::Contended), the body passes that on, and `run` lets go of
//! everything, waits for the contended object (holding nothing, it may), and calls the body again. As the ticket
//! keeps its age, it is at some point the oldest there is, and then it does not lose any more. The rule behind it is in
//! `reservation/queue.rs`.
//!
//! What is held is a [`LockSet`]. Eviction locks victims too, but under a region's lock, where waiting is forbidden. For that a
//! set can be split from its Exec and [tried](LockSet::try_lock). When nothing more is to be locked, an Exec is
//! [sealed](Exec::seal), and its type says so from there on.

mod interrupt;
mod lock_set;

use std::fmt;
use std::ops::Deref;

use crate::error::LockError;
use crate::fence::Fence;
use crate::levels::{Below, Held, Level, Tickets};
use crate::lockdep;
use crate::reservation::{Locked, Reservable, Usage};
use crate::sync::claim::Keep;
use crate::sync::mutant;
pub use interrupt::Interrupt;
use lock_set::{Asked, Refused};
pub use lock_set::{LockSet, Slot};

/// A ticket, and everything locked with it. Dropping it unlocks everything.
///
/// Its level is [`Tickets`]; the reservations inside are ordered by the age of the ticket and need no other order.
pub struct Exec<'h, 'o, R: Reservable> {
    set: LockSet<'o, R>,
    contended: Option<Keep<'o, R>>, // what an older ticket had when it was asked for last
    interrupt: Option<&'h Interrupt>,
    restarts: u32,
    runs: bool, // inside `run`
    _held: Held<'h, Tickets>,
}

impl<'h, 'o, R: Reservable> Exec<'h, 'o, R> {
    /// An Exec that holds nothing, with a new ticket, younger than all that this thread has drawn. Among threads ages are
    /// told to within a few tickets.
    #[inline]
    pub fn new<H: Level>(held: &'h mut Held<'_, H>) -> Self
    where
        Tickets: Below<H>,
    {
        let _ = held;
        Exec {
            set: LockSet::new(),
            contended: None,
            interrupt: None,
            restarts: 0,
            runs: false,
            _held: Held::token(),
        }
    }

    /// Locks one object and no other, sleeping as long as it takes, as [`Reservation::lock`](crate::Reservation::lock) does: who
    /// waits for nothing while holding it needs no ticket and no set, and nobody begins again because of it.
    ///
    /// ```
    /// # use devpagemap_fence::{Exec, Held, Reservable, Reservation};
    /// # struct Buffer(Reservation<u32>);
    /// # impl Reservable for Buffer { type State = u32; fn reservation(&self) -> &Reservation<u32> { &self.0 } }
    /// let buffer = Buffer(Reservation::new(1));
    /// let mut held = Held::enter();
    /// *Exec::one(&mut held, &buffer) += 1;
    /// assert_eq!(*Exec::one(&mut held, &buffer), 2);
    /// ```
    #[inline]
    #[track_caller]
    pub fn one<'a, H: Level>(held: &'a mut Held<'_, H>, object: &'a R) -> Locked<'a, R::State>
    where
        Tickets: Below<H>,
    {
        object.reservation().lock(held)
    }

    /// As [`new`](Exec::new), but its waits end when `interrupt` is raised: [`lock`](Exec::lock) then says
    /// [`Interrupted`](LockError::Interrupted). What takes no waiting is still locked.
    pub fn interruptible<H: Level>(held: &'h mut Held<'_, H>, interrupt: &'h Interrupt) -> Self
    where
        Tickets: Below<H>,
    {
        Exec { interrupt: Some(interrupt), ..Exec::new(held) }
    }

    /// Calls `body` until it is not stopped by contention.
    ///
    /// When `body` fails after a [`lock`](Exec::lock) in it said [`Contended`](LockError::Contended), everything is unlocked, the
    /// contended object is waited for, and `body` is called again. If the wait was long, that object is locked by then; it is held
    /// until the end, needed or not. When `body` succeeds, everything stays locked until the Exec is
    /// dropped or [`unlock_all`](Exec::unlock_all); when it fails for another reason, everything is unlocked.
    ///
    /// A `run` inside `body` does not restart on its own: it passes the error on to the outermost one.
    pub fn run<O, E>(&mut self, mut body: impl FnMut(&mut Exec<'h, 'o, R>) -> Result<O, E>) -> Result<O, E> {
        if self.runs {
            return body(self);
        }
        loop {
            if self.contended.is_some() {
                self.lock_contended();
            }
            self.runs = true;
            let result = body(self);
            self.runs = false;
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

    /// Lets go of everything and waits for the object that was contended last.
    #[cold]
    fn lock_contended(&mut self) {
        let Some(object) = self.contended.take() else { return };
        if !mutant!("restart_keeps_what_it_has") {
            self.set.unlock_all();
        }
        // If it comes free at once, the body takes it in its own time: by then its older holder is done, and age sees to it
        // that this ticket does not lose for ever. Only who has to sleep for it takes it along.
        if object.object().reservation().comes_free_soon() {
            return;
        }
        // A ticket that holds nothing may always wait, so this fails only when interrupted. Then the body is told by
        // whatever it has to wait for next, and can say so in its own words.
        let locked = self.lock(object);
        debug_assert_ne!(locked.err(), Some(LockError::Contended));
    }

    /// Locks an object, sleeping unless an older ticket has it and this one holds others. An object that is
    /// already held gives its slot again.
    ///
    /// The object is borrowed (`&arc`) for as long as the Exec lives, or given (`arc`).
    #[inline]
    #[track_caller]
    pub fn lock(&mut self, object: impl Into<Keep<'o, R>>) -> Result<Slot, LockError> {
        let object = object.into();
        let instance = object.object().reservation().instance();
        let record = lockdep::acquire(Tickets::RANK, "reservation", self.set.group()).of(instance);
        let Exec { set, contended, interrupt, .. } = self;
        let slot = set.lock_at_once(object, record, |set, asked, record| {
            Self::lock_unusually(set, asked, record, *interrupt, contended)
        });
        slot.ok_or_else(|| self.why_refused())
    }

    #[cold]
    fn why_refused(&self) -> LockError {
        if self.contended.is_some() { LockError::Contended } else { LockError::Interrupted }
    }

    #[inline(never)]
    fn lock_unusually(
        set: &mut LockSet<'o, R>,
        asked: Asked<'o, R>,
        record: lockdep::Record,
        interrupt: Option<&Interrupt>,
        contended: &mut Option<Keep<'o, R>>,
    ) -> Option<Slot> {
        match set.settle(asked, interrupt, record) {
            Ok(slot) => Some(slot),
            Err(Refused { object, error }) => {
                *contended = (error == LockError::Contended).then_some(object);
                None
            }
        }
    }

    /// What is held, and the token with which to lock further below while it is borrowed.
    pub fn split(&mut self) -> (&mut LockSet<'o, R>, Held<'_, Tickets>) {
        (&mut self.set, Held::token())
    }

    /// What is held.
    pub fn set(&self) -> &LockSet<'o, R> {
        &self.set
    }

    /// What is held.
    pub fn set_mut(&mut self) -> &mut LockSet<'o, R> {
        &mut self.set
    }

    /// How often [`run`](Exec::run) had to begin again.
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Unlocks everything and forgets what was contended; the ticket keeps its age.
    #[inline]
    pub fn unlock_all(&mut self) {
        self.contended = None;
        self.set.unlock_all();
    }

    /// Ends the locking: what is held stays locked, and nothing can be locked any more. The kernel's cousin is
    /// `ww_acquire_done`, which says so at run time.
    ///
    /// ```compile_fail,E0599
    /// # use devpagemap_fence::{Held, Exec, Reservable, Reservation};
    /// # use std::sync::Arc;
    /// # struct Buffer(Reservation<u32>);
    /// # impl Reservable for Buffer { type State = u32; fn reservation(&self) -> &Reservation<u32> { &self.0 } }
    /// let buffer = Arc::new(Buffer(Reservation::new(0)));
    /// let mut held = Held::enter();
    /// let mut sealed = Exec::new(&mut held).seal();
    /// sealed.lock(&buffer); // a sealed Exec has no `lock`
    /// ```
    pub fn seal(self) -> Sealed<'h, 'o, R> {
        Sealed { set: self.set, held: self._held }
    }
}

impl<R: Reservable> fmt::Debug for Exec<'_, '_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exec({:?}, {} restarts)", self.set, self.restarts)
    }
}

/// An [`Exec`] that locks no more. Dereferences to what it holds; dropping it unlocks everything.
#[derive(Debug)]
pub struct Sealed<'h, 'o, R: Reservable> {
    set: LockSet<'o, R>,
    held: Held<'h, Tickets>,
}

impl<R: Reservable> Sealed<'_, '_, R> {
    /// What the object's lock protects.
    #[track_caller]
    pub fn state_mut(&mut self, slot: Slot) -> &mut R::State {
        self.set.state_mut(slot)
    }

    /// As [`LockSet::add_fence`], in a slot that was reserved before.
    #[track_caller]
    pub fn add_fence(&mut self, slot: Slot, fence: Fence, usage: Usage) {
        self.set.add_fence(slot, fence, usage);
    }

    /// As [`LockSet::unlock`].
    #[track_caller]
    pub fn unlock(&mut self, slot: Slot) {
        self.set.unlock(slot);
    }

    /// The token with which to lock further below.
    pub fn held(&mut self) -> Held<'_, Tickets> {
        self.held.reborrow()
    }
}

impl<'o, R: Reservable> Deref for Sealed<'_, 'o, R> {
    type Target = LockSet<'o, R>;

    fn deref(&self) -> &LockSet<'o, R> {
        &self.set
    }
}
