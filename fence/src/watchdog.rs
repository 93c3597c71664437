//! The watchdog: one thread that notices what hangs.
//!
//! Whatever has a deadline (a timeline with a timeout, an engine with a chunk in flight) is [`Watched`]: asked with
//! the current time, it does what is overdue and says when to ask again. The thread sleeps until the earliest of
//! those answers, or for ever when there is none, until somebody [pokes](Watchdog::poke) it. It never polls.

use std::time::Instant;

/// Something with deadlines.
pub trait Watched: Send + Sync {
    /// Does what is overdue at `now` and says when to look again; none: not before the next poke.
    ///
    /// Called by the watchdog's thread with no lock held.
    fn check(&self, now: Instant) -> Option<Instant>;
}

#[cfg(not(any(loom, shuttle)))]
pub use thread::Watchdog;

#[cfg(not(any(loom, shuttle)))]
mod thread {
    use super::Watched;
    use crate::lockdep::Signalling;
    use crate::sync::{Arc, Condvar, Mutex, Weak};
    use std::fmt;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::thread::JoinHandle;
    use std::time::{Duration, Instant};

    /// When to look again at something whose check panicked.
    const AFTER_PANIC: Duration = Duration::from_secs(1);

    #[derive(Default)]
    struct Todo {
        watched: Vec<Weak<dyn Watched>>,
        poked: bool,
        stop: bool,
    }

    #[derive(Default)]
    struct Shared {
        todo: Mutex<Todo>,
        wake: Condvar,
    }

    /// A thread that checks everything it was given when it is due. Dropping it stops and joins the thread.
    pub struct Watchdog {
        shared: Arc<Shared>,
        thread: Option<JoinHandle<()>>, // taken by drop
    }

    impl Watchdog {
        /// Starts the thread, with nothing to watch.
        ///
        /// # Panics
        /// When the system gives no thread.
        pub fn start() -> Watchdog {
            let shared = Arc::new(Shared::default());
            let theirs = shared.clone();
            let thread = std::thread::Builder::new()
                .name("devpagemap-watchdog".into())
                .spawn(move || theirs.run())
                .expect("the system gives no thread for the watchdog");
            Watchdog { shared, thread: Some(thread) }
        }

        /// Looks after `watched` until it is gone.
        pub fn watch(&self, watched: Weak<dyn Watched>) {
            self.shared.todo.lock().watched.push(watched);
            self.poke();
        }

        /// Makes the thread look at everything now.
        pub fn poke(&self) {
            self.shared.todo.lock().poked = true;
            self.shared.wake.notify_one();
        }
    }

    impl Drop for Watchdog {
        fn drop(&mut self) {
            self.shared.todo.lock().stop = true;
            self.shared.wake.notify_one();
            let Some(thread) = self.thread.take() else { return };
            // A check may have held the last reference to whoever owns the watchdog: no thread can join itself.
            if thread.thread().id() != std::thread::current().id() {
                // The thread catches the panics of what it checks.
                let _ = thread.join();
            }
        }
    }

    impl fmt::Debug for Watchdog {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "Watchdog({} watched)", self.shared.todo.lock().watched.len())
        }
    }

    impl Shared {
        fn run(&self) {
            while let Some(watched) = self.next_round() {
                let next = watched.iter().filter_map(|watched| look_at(&**watched)).min();
                drop(watched);
                self.sleep(next);
            }
        }

        /// Everything that is still there, or nothing when it is time to stop.
        fn next_round(&self) -> Option<Vec<Arc<dyn Watched>>> {
            let mut todo = self.todo.lock();
            todo.poked = false;
            todo.watched.retain(|watched| watched.strong_count() > 0);
            (!todo.stop).then(|| todo.watched.iter().filter_map(Weak::upgrade).collect())
        }

        fn sleep(&self, until: Option<Instant>) {
            let mut todo = self.todo.lock();
            while !todo.poked && !todo.stop {
                let Some(deadline) = until else {
                    todo = self.wake.wait(todo);
                    continue;
                };
                let timed_out;
                (todo, timed_out) = self.wake.wait_until(todo, deadline);
                if timed_out {
                    return;
                }
            }
        }
    }

    fn look_at(watched: &dyn Watched) -> Option<Instant> {
        let now = Instant::now();
        // What hangs is failed here: nobody else would notice that this thread waits for it.
        let _signalling = Signalling::begin();
        catch_unwind(AssertUnwindSafe(|| watched.check(now))).unwrap_or_else(|_| {
            tracing::error!("a watched thing panicked when it was checked");
            Some(now + AFTER_PANIC)
        })
    }
}
