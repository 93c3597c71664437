//! A bell: one thread sleeps by it until somebody rings.
//!
//! In real builds the sleeper parks, which is one futex, and the one who rings makes no system call unless the sleeper
//! sleeps. The flag tells a ring from a token that somebody else left, and a ring that comes late leaves a token that
//! harms nobody: `park` may return without reason anyhow, so all who park look at a flag of their own.
//!
//! Models use a mutex and a condition variable. loom 0.7.2 has `park`, but its `unpark` also wakes a thread that is
//! blocked on a mutex, which then runs into an assertion; a ring that comes late would do that.

#[cfg(any(loom, shuttle))]
pub(crate) use modelled::Bell;
#[cfg(not(any(loom, shuttle)))]
pub(crate) use parked::Bell;

#[cfg(not(any(loom, shuttle)))]
mod parked {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread::{Thread, current, park, park_timeout};
    use std::time::Instant;

    /// Where one thread sleeps.
    pub(crate) struct Bell {
        rung: AtomicBool,
        sleeper: Thread, // constant
    }

    impl Bell {
        /// A bell by which the calling thread, and no other, may sleep.
        pub(crate) fn mine() -> Bell {
            Bell { rung: AtomicBool::new(false), sleeper: current() }
        }

        /// Wakes the sleeper, or keeps it from going to sleep.
        pub(crate) fn ring(&self) {
            self.rung.store(true, Ordering::Release);
            self.sleeper.unpark();
        }

        /// Sleeps until the bell is rung, and forgets that ring: the next one is for the next call.
        pub(crate) fn hear(&self) {
            // Acquire: what was done before the ring is seen.
            while !self.rung.swap(false, Ordering::Acquire) {
                park();
            }
        }

        fn is_rung(&self) -> bool {
            self.rung.load(Ordering::Acquire)
        }

        /// Sleeps until the bell is rung.
        pub(crate) fn sleep(&self) {
            while !self.is_rung() {
                park();
            }
        }

        /// As [`sleep`](Bell::sleep), but no later than `deadline`; false if that came first.
        pub(crate) fn sleep_until(&self, deadline: Instant) -> bool {
            while !self.is_rung() {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return false;
                }
                park_timeout(left);
            }
            true
        }
    }
}

#[cfg(any(loom, shuttle))]
mod modelled {
    use crate::sync::{Condvar, Mutex};

    /// Where one thread sleeps.
    pub(crate) struct Bell {
        rung: Mutex<bool>,
        wake: Condvar,
    }

    impl Bell {
        /// A bell by which the calling thread, and no other, may sleep.
        pub(crate) fn mine() -> Bell {
            Bell { rung: Mutex::new(false), wake: Condvar::new() }
        }

        /// Wakes the sleeper, or keeps it from going to sleep.
        pub(crate) fn ring(&self) {
            *self.rung.lock() = true;
            self.wake.notify_one();
        }

        /// Sleeps until the bell is rung.
        pub(crate) fn sleep(&self) {
            let mut rung = self.rung.lock();
            while !*rung {
                rung = self.wake.wait(rung);
            }
        }

        /// Sleeps until the bell is rung, and forgets that ring: the next one is for the next call.
        pub(crate) fn hear(&self) {
            let mut rung = self.rung.lock();
            while !std::mem::take(&mut *rung) {
                rung = self.wake.wait(rung);
            }
        }
    }
}
