//! Two threads that run at the same time, each on a core of its own, for a while.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::cores::pin_to_core;

/// Whether the while is over.
pub struct Clock(AtomicBool);

impl Clock {
    /// Whether to go on.
    #[inline]
    pub fn runs(&self) -> bool {
        !self.0.load(Ordering::Relaxed)
    }
}

/// Calls `thread` in two threads, with 0 and 1; what they came to, and how long they ran.
///
/// # Panics
/// When one of them does.
pub fn run_pair<T: Send>(time: Duration, thread: impl Fn(usize, &Clock) -> T + Sync) -> ([T; 2], Duration) {
    let (start, clock) = (Barrier::new(3), Clock(AtomicBool::new(false)));
    std::thread::scope(|scope| {
        let (thread, start, clock) = (&thread, &start, &clock);
        let spawn = |index: usize| {
            scope.spawn(move || {
                pin_to_core(index);
                start.wait();
                thread(index, clock)
            })
        };
        let handles = [0, 1].map(spawn);
        start.wait();
        let begin = Instant::now();
        std::thread::sleep(time);
        clock.0.store(true, Ordering::Relaxed);
        (handles.map(|handle| handle.join().expect("a thread panicked")), begin.elapsed())
    })
}
