//! Two threads that run at the same time, each on a core of its own, for a while.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::cores::{core_time, pin_to_core};

/// Whether the while is over.
pub struct Clock(AtomicBool);

impl Clock {
    /// Whether to go on.
    #[inline]
    pub fn runs(&self) -> bool {
        !self.0.load(Ordering::Relaxed)
    }
}

/// What came of it.
pub struct Pair<T> {
    /// What each of the threads came to.
    pub results: [T; 2],
    /// How long they ran.
    pub elapsed: Duration,
    /// Cores that they had on average; less than two when others wanted them, or when they slept.
    pub cores: f64,
}

/// Calls `thread` in two threads, with 0 and 1.
///
/// # Panics
/// When one of them does.
pub fn run_pair<T: Send>(time: Duration, thread: impl Fn(usize, &Clock) -> T + Sync) -> Pair<T> {
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
        let (begin, core_time_before) = (Instant::now(), core_time());
        std::thread::sleep(time);
        clock.0.store(true, Ordering::Relaxed);
        let results = handles.map(|handle| handle.join().expect("a thread panicked"));
        let elapsed = begin.elapsed();
        let cores = (core_time() - core_time_before).as_secs_f64() / elapsed.as_secs_f64();
        Pair { results, elapsed, cores }
    })
}
