//! Others' ways to do the same: locks in the order of their addresses, locks that are tried, and one-shot events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex, MutexGuard};

/// What a lock protects, for everybody in a contest.
pub type Payload = [u64; 8];

/// The work done on each locked object.
#[inline]
pub fn count(payload: &mut Payload) {
    payload.iter_mut().for_each(|word| *word += 1);
}

/// Mutexes, each an allocation of its own, in ascending order of address.
pub fn mutexes(count: usize) -> Vec<Arc<Mutex<Payload>>> {
    let mut mutexes: Vec<_> = (0..count).map(|_| Arc::new(Mutex::new(Payload::default()))).collect();
    mutexes.sort_unstable_by_key(Arc::as_ptr);
    mutexes
}

/// What a thread that locks many mutexes uses again and again.
pub struct Locker<'a> {
    order: Vec<&'a Mutex<Payload>>,
    guards: Vec<MutexGuard<'a, Payload>>,
}

impl<'a> Locker<'a> {
    /// A locker that holds nothing.
    pub fn new() -> Self {
        Locker { order: Vec::new(), guards: Vec::new() }
    }

    /// Locks mutexes that are in order already, and unlocks them.
    #[inline]
    pub fn lock_presorted(&mut self, mutexes: impl Iterator<Item = &'a Mutex<Payload>>) {
        self.guards.extend(mutexes.map(|mutex| mutex.lock()));
    }

    /// Locks mutexes in the order of their addresses.
    #[inline]
    pub fn lock_sorted(&mut self, mutexes: impl Iterator<Item = &'a Mutex<Payload>>) {
        self.order.clear();
        self.order.extend(mutexes);
        self.order.sort_unstable_by_key(|&mutex| std::ptr::from_ref(mutex));
        self.guards.extend(self.order.iter().map(|mutex| mutex.lock()));
    }

    /// Locks mutexes in the order given, by trying: on failure it lets go of all and begins again, after a pause that
    /// doubles each time. How often it began again.
    #[inline]
    pub fn lock_by_trying(&mut self, mutexes: impl Iterator<Item = &'a Mutex<Payload>> + Clone) -> u64 {
        let mut failures = 0;
        while !self.try_all(mutexes.clone()) {
            self.unlock();
            failures += 1;
            if failures <= 6 {
                (0..1 << failures).for_each(|_| std::hint::spin_loop());
            } else {
                std::thread::yield_now();
            }
        }
        failures
    }

    fn try_all(&mut self, mut mutexes: impl Iterator<Item = &'a Mutex<Payload>>) -> bool {
        mutexes.all(|mutex| mutex.try_lock().map(|guard| self.guards.push(guard)).is_some())
    }

    /// Counts in everything that is locked.
    #[inline]
    pub fn work(&mut self) {
        self.guards.iter_mut().for_each(|guard| count(guard));
    }

    /// Unlocks everything.
    #[inline]
    pub fn unlock(&mut self) {
        self.guards.clear();
    }
}

impl Default for Locker<'_> {
    fn default() -> Self {
        Locker::new()
    }
}

/// An event as one writes it with a mutex and a condition variable: a flag, and who waits for it.
#[derive(Default)]
pub struct ParkingLotEvent {
    done: Mutex<bool>,
    wake: Condvar,
}

impl ParkingLotEvent {
    /// Signals.
    #[inline]
    pub fn signal(&self) {
        *self.done.lock() = true;
        self.wake.notify_all();
    }

    /// Whether it was signalled.
    #[inline]
    pub fn is_signaled(&self) -> bool {
        *self.done.lock()
    }

    /// Sleeps until it is signalled.
    pub fn wait(&self) {
        let mut done = self.done.lock();
        while !*done {
            self.wake.wait(&mut done);
        }
    }
}

/// The same with what `std` has.
#[derive(Default)]
pub struct StdEvent {
    done: std::sync::Mutex<bool>,
    wake: std::sync::Condvar,
}

impl StdEvent {
    /// Signals.
    ///
    /// # Panics
    /// When a thread panicked in here.
    #[inline]
    pub fn signal(&self) {
        *self.done.lock().expect("nobody panics with this lock held") = true;
        self.wake.notify_all();
    }

    /// Sleeps until it is signalled.
    ///
    /// # Panics
    /// When a thread panicked in here.
    pub fn wait(&self) {
        let done = self.done.lock().expect("nobody panics with this lock held");
        drop(self.wake.wait_while(done, |done| !*done).expect("nobody panics with this lock held"));
    }
}

/// The same with `event-listener`: a flag, and who listens for it.
#[derive(Default)]
pub struct ListenerEvent {
    done: AtomicBool,
    event: event_listener::Event,
}

impl ListenerEvent {
    /// Signals.
    #[inline]
    pub fn signal(&self) {
        self.done.store(true, Ordering::Release);
        self.event.notify(usize::MAX);
    }

    /// Sleeps until it is signalled.
    pub fn wait(&self) {
        use event_listener::Listener;
        while !self.done.load(Ordering::Acquire) {
            let listener = self.event.listen();
            if !self.done.load(Ordering::Acquire) {
                listener.wait();
            }
        }
    }
}
