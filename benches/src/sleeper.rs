//! A thread that is put to sleep, again and again, and says when it woke.
//!
//! What has to be measured is the waking of a thread that really sleeps. Whether it does is asked of the system, so it
//! is asked in the same way for everybody:
//!
//! ```text
//!   sleeper     takes what to wait for, says "now", waits ............................ wakes, takes the time (3)
//!   waker       hands it over, sees "now", looks until the system says that     takes the time (1), signals,
//!               the sleeper sleeps, lets some more time pass                      takes the time (2)
//! ```
//!
//! A wake-up takes (3) - (1), the signal (2) - (1).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long the sleeper sleeps at least before it is woken.
const SLEEP: Duration = Duration::from_micros(50);

/// What a sleeper does to fall asleep.
type Wait = Box<dyn FnOnce() + Send>;

/// What one wake-up took.
#[derive(Clone, Copy, Debug)]
pub struct WakeUp {
    /// From before the signal to the sleeper running, in nanoseconds.
    pub latency_ns: f64,
    /// The signal call, in nanoseconds.
    pub signal_ns: f64,
}

/// The thread.
pub struct Sleeper {
    waits: Option<SyncSender<Wait>>, // none: no more will come
    woken: Receiver<Instant>,
    about_to_wait: Arc<AtomicBool>,
    stat: File,                     // what the system says about the thread
    thread: Option<JoinHandle<()>>, // taken by drop alone
}

impl Sleeper {
    /// Starts the thread.
    ///
    /// # Panics
    /// When the system does not tell about threads in `/proc`.
    pub fn new() -> Sleeper {
        let (waits, incoming) = sync_channel::<Wait>(1);
        let (woke, woken) = sync_channel(1);
        let (tell_id, id) = sync_channel(1);
        let about_to_wait = Arc::new(AtomicBool::new(false));
        let flag = about_to_wait.clone();
        let thread = std::thread::spawn(move || {
            tell_id.send(rustix::thread::gettid()).expect("whoever started this thread is there");
            for wait in incoming {
                flag.store(true, Ordering::Release);
                wait();
                let now = Instant::now();
                woke.send(now).expect("whoever signalled is there");
            }
        });
        let id = id.recv().expect("the thread says its id first of all");
        let path = format!("/proc/self/task/{}/stat", id.as_raw_nonzero());
        let stat = File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        Sleeper { waits: Some(waits), woken, about_to_wait, stat, thread: Some(thread) }
    }

    /// The thread, for those who wake threads by name.
    ///
    /// # Panics
    /// Never: it is there until the sleeper is dropped.
    pub fn thread(&self) -> &Thread {
        self.thread.as_ref().expect("the thread is there until it is joined").thread()
    }

    /// Puts the thread to sleep with `wait` and wakes it with `signal`.
    ///
    /// # Panics
    /// When the thread has panicked.
    pub fn wake(&self, wait: impl FnOnce() + Send + 'static, signal: impl FnOnce()) -> WakeUp {
        self.about_to_wait.store(false, Ordering::Relaxed);
        let waits = self.waits.as_ref().expect("waits can be sent until the sleeper is dropped");
        waits.send(Box::new(wait)).expect("the thread takes waits until there are no more");
        while !(self.about_to_wait.load(Ordering::Acquire) && self.sleeps()) {
            std::thread::yield_now();
        }
        std::thread::sleep(SLEEP);
        let begin = Instant::now();
        signal();
        let end = Instant::now();
        let woken = self.woken.recv().expect("the thread says when it woke");
        let ns = |time: Duration| time.as_nanos() as f64;
        WakeUp { latency_ns: ns(woken.saturating_duration_since(begin)), signal_ns: ns(end - begin) }
    }

    /// Whether the system says that the thread sleeps: `pid (name) S ...`.
    fn sleeps(&self) -> bool {
        let mut text = [0; 128];
        let len = self.stat.read_at(&mut text, 0).expect("the thread lives");
        let after_name = text[..len].iter().rposition(|&byte| byte == b')').expect("the name is in brackets");
        text.get(after_name + 2) == Some(&b'S')
    }
}

impl Default for Sleeper {
    fn default() -> Self {
        Sleeper::new()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.waits = None;
        if let Some(thread) = self.thread.take() {
            // If it panicked, whoever waited for it has said so.
            let _panicked = thread.join();
        }
    }
}
