//! Locks that stand outside of the declared order.
//!
//! A ledger, the inbox of a queue, the FIFO of an engine, a driver's own tables: such locks have no level, because they
//! are held for a few instructions, or because the order cannot know them. They need no token. What keeps them from
//! closing a circle with each other, with the declared order or with fences is the graph of [`lockdep`].
//!
//! ```
//! use devpagemap_fence::Outside;
//!
//! let ledger = Outside::new("ledger", 0);
//! *ledger.lock() += 4096;
//! assert_eq!(*ledger.lock(), 4096);
//! ```

use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::lockdep;
use crate::sync::{Condvar, Mutex, MutexGuard};

/// A mutex outside of the order, watched by class.
///
/// Two locks of one class are not taken inside one another; give the inner one a name of its own.
pub struct Outside<T> {
    class: lockdep::ClassName, // constant
    mutex: Mutex<T>,
}

impl<T> Outside<T> {
    /// A lock around `value`; `class` names it, and all that are used like it, in the reports of [`lockdep`].
    pub fn new(class: &'static str, value: T) -> Self {
        Outside { class: lockdep::ClassName::new(class), mutex: Mutex::new(value) }
    }

    /// Blocks until the lock is this thread's.
    ///
    /// # Panics
    /// In debug builds and models, when the opposite order is on record, or a lock of its class is held.
    #[inline]
    #[track_caller]
    pub fn lock(&self) -> OutsideGuard<'_, T> {
        let record = lockdep::acquire_outside(self.class.get()).of(self.instance());
        OutsideGuard { guard: self.mutex.lock(), record }
    }

    /// Panics, in debug builds and models, unless this thread holds this very lock.
    #[inline]
    #[track_caller]
    pub fn assert_held(&self) {
        lockdep::assert_held(self.class.get(), self.instance());
    }

    /// The value; no locking, as nobody else can have it.
    pub fn get_mut(&mut self) -> &mut T {
        self.mutex.get_mut()
    }

    /// The value, the lock being gone.
    pub fn into_inner(self) -> T {
        self.mutex.into_inner()
    }

    fn instance(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

impl<T> fmt::Debug for Outside<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Outside({:?})", self.class)
    }
}

/// Access to the value of an [`Outside`] lock, until dropped.
pub struct OutsideGuard<'a, T> {
    guard: MutexGuard<'a, T>, // dropped first: what lockdep says is held is never less than what is held
    record: lockdep::Record,
}

impl<T> OutsideGuard<'_, T> {
    /// Gives the lock back while waiting for a notification, then has it again. May return without one.
    #[track_caller]
    pub fn wait(self, condvar: &Condvar) -> Self {
        let OutsideGuard { guard, record } = self;
        OutsideGuard { guard: condvar.wait(guard), record }
    }

    /// As [`wait`](OutsideGuard::wait), but no later than `deadline`; true when the deadline passed.
    #[cfg(not(any(loom, shuttle)))]
    pub fn wait_until(self, condvar: &Condvar, deadline: std::time::Instant) -> (Self, bool) {
        let OutsideGuard { guard, record } = self;
        let (guard, timed_out) = condvar.wait_until(guard, deadline);
        (OutsideGuard { guard, record }, timed_out)
    }
}

impl<T> Deref for OutsideGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for OutsideGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T: fmt::Debug> fmt::Debug for OutsideGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
