//! The shim: one set of names over `parking_lot` and `std`, or over `loom` or `shuttle` when the code is modelled.
//!
//! Every lock, condition variable, atomic and thread of this workspace that takes part in a protocol comes from
//! here, so that the models in `loom-tests` explore the code that ships and not a copy of it. `--cfg loom` is for every
//! interleaving of two or three threads, `--cfg shuttle` for random ones of a dozen. What holds for both is written
//! `cfg(any(loom, shuttle))`.
//!
//! What is not here, and why:
//!
//! * `Mutex::try_lock`: loom 0.7.2 reports a false deadlock when a tried mutex is contended. What must be tried
//!   ([`Reservation`](crate::Reservation)) is a word that is claimed by compare-and-swap.
//! * timed waits in models: a model has no time. `Condvar::wait_until` and whatever is built on it is compiled
//!   out, so a model cannot use it by mistake.
//! * `Arc`: always the one of `std`, since loom's has neither `Weak` nor unsizing. Reference counts are therefore
//!   opaque to the models.
//! * weak memory under shuttle: it runs every atomic access as if it were `SeqCst`. Orderings are loom's business.
//!
//! The `unsafe` of this crate is in this room: `lending.rs`, `claim.rs` (a value and the word that says
//! whose it is), `places.rs` (many of them) and `barrier.rs`.

#[cfg(loom)]
use loom::sync as imp;
#[cfg(not(any(loom, shuttle)))]
use parking_lot as imp;
#[cfg(shuttle)]
use shuttle::sync as imp;

use std::fmt;

pub(crate) mod barrier;
mod bell;
pub(crate) mod claim;
pub mod lending;
pub mod mutants;
pub(crate) mod places;
pub mod published;
mod stable;
pub(crate) mod stamp;

pub use crate::mutant;
pub(crate) use bell::Bell;
pub(crate) use stable::Stable;

/// Atomics whose every access is explored in models.
pub mod atomic {
    #[cfg(loom)]
    pub use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
    #[cfg(shuttle)]
    pub use shuttle::sync::atomic::{
        AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    #[cfg(not(any(loom, shuttle)))]
    pub use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
}

/// Threads: real ones, or a model's coroutines.
pub mod thread {
    #[cfg(loom)]
    pub use loom::thread::{Builder, JoinHandle, spawn, yield_now};
    #[cfg(shuttle)]
    pub use shuttle::thread::{Builder, JoinHandle, spawn, yield_now};
    #[cfg(not(any(loom, shuttle)))]
    pub use std::thread::{Builder, JoinHandle, spawn, yield_now};
}

/// `thread_local!`: in models a value per model thread (all of which share one thread of the system).
#[cfg(loom)]
pub use loom::thread_local;
/// `thread_local!`: in models a value per model thread (all of which share one thread of the system).
#[cfg(shuttle)]
pub use shuttle::thread_local;
/// `thread_local!`: in models a value per model thread (all of which share one thread of the system).
#[cfg(not(any(loom, shuttle)))]
pub use std::thread_local;

/// Declares a static that is made when it is first used, or (`const static`) before; each execution of a model has its own.
macro_rules! process_wide {
    (static $name:ident: $type:ty = $init:expr) => {
        #[cfg(not(any(loom, shuttle)))]
        static $name: std::sync::LazyLock<$type> = std::sync::LazyLock::new(|| $init);
        process_wide!(@modelled $name: $type = $init);
    };
    (const static $name:ident: $type:ty = $init:expr) => {
        #[cfg(not(any(loom, shuttle)))]
        static $name: $type = $init;
        process_wide!(@modelled $name: $type = $init);
    };
    (@modelled $name:ident: $type:ty = $init:expr) => {
        #[cfg(loom)]
        loom::lazy_static! {
            static ref $name: $type = $init;
        }
        #[cfg(shuttle)]
        shuttle::lazy_static! {
            static ref $name: $type = $init;
        }
    };
}
pub(crate) use process_wide;

pub use std::sync::{Arc, Weak};

/// The guard of a [`Mutex`].
pub type MutexGuard<'a, T> = imp::MutexGuard<'a, T>;

/// A mutex without poisoning and without `try_lock`.
pub struct Mutex<T>(imp::Mutex<T>);

impl<T> Mutex<T> {
    /// A mutex around `value`.
    pub fn new(value: T) -> Self {
        Mutex(imp::Mutex::new(value))
    }

    /// Blocks until the mutex is this thread's.
    #[inline]
    #[track_caller]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        #[cfg(not(any(loom, shuttle)))]
        return self.0.lock();
        #[cfg(any(loom, shuttle))]
        return self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    }

    /// The value; no locking, as nobody else can have it.
    pub fn get_mut(&mut self) -> &mut T {
        #[cfg(not(any(loom, shuttle)))]
        return self.0.get_mut();
        #[cfg(any(loom, shuttle))]
        return self.0.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
    }

    /// The value, the mutex being gone.
    pub fn into_inner(self) -> T {
        #[cfg(not(any(loom, shuttle)))]
        return self.0.into_inner();
        #[cfg(any(loom, shuttle))]
        return self.0.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Mutex::new(T::default())
    }
}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mutex { .. }")
    }
}

/// A condition variable that takes the guard by value and gives it back.
pub struct Condvar(imp::Condvar);

impl Condvar {
    /// A condition variable nobody waits on.
    pub fn new() -> Self {
        Condvar(imp::Condvar::new())
    }

    /// Gives the mutex back, sleeps until notified, takes the mutex again. May return without a notification.
    #[track_caller]
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        #[cfg(not(any(loom, shuttle)))]
        {
            let mut guard = guard;
            self.0.wait(&mut guard);
            guard
        }
        #[cfg(any(loom, shuttle))]
        return self.0.wait(guard).unwrap_or_else(std::sync::PoisonError::into_inner);
    }

    /// As [`wait`](Condvar::wait), but no later than `deadline`; true when the deadline passed.
    #[cfg(not(any(loom, shuttle)))]
    pub fn wait_until<'a, T>(
        &self,
        mut guard: MutexGuard<'a, T>,
        deadline: std::time::Instant,
    ) -> (MutexGuard<'a, T>, bool) {
        let timed_out = self.0.wait_until(&mut guard, deadline).timed_out();
        (guard, timed_out)
    }

    /// Wakes one waiter, if there is any.
    #[track_caller]
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Wakes every waiter.
    #[track_caller]
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

impl Default for Condvar {
    fn default() -> Self {
        Condvar::new()
    }
}

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Condvar { .. }")
    }
}
