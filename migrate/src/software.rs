//! A copy engine made of a thread: the embedded default, and the one that can be made to fail.
//!
//! The thread takes chunks from a FIFO and performs each with the fastest loop of the machine (see
//! [`copy`](crate::copy)). Faults can be injected to see what the layers above make of them.
//!
//! ```text
//!   submit --> fifo [c3][c2] --> thread: c1 --> complete
//!                 |                  |  a fault stops it half way through the chunk
//!   reset: takes the fifo, raises the epoch, waits until the thread is not inside a copy
//! ```
//!
//! The thread copies only while `copying` is set, and it sets that under the lock after it has seen that the epoch is
//! still the one in which it took its chunk. `reset` raises the epoch and waits for `copying` to be clear. So once
//! `reset` has returned, a chunk of an earlier epoch never touches memory again, though its thread may still hold it.

use crate::address::{Addr, Space};
use crate::copy::Run;
use crate::engine::{Chunk, Completion, CopyEngine, EngineError, Reset};
use crate::memory::MemoryMap;
use crate::piece::Route;
use crate::transfer;
use devpagemap_fence::lockdep::Signalling;
use devpagemap_fence::sync::Condvar;
use devpagemap_fence::{Outside, OutsideGuard};
use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A way for a [`SoftwareEngine`] to go wrong. A chunk hit by a fault is left half written.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The next `chunks` chunks fail; what comes after them is done.
    FailNext {
        /// How many fail.
        chunks: u64,
    },
    /// After `chunks` more chunks every further one fails.
    FailAfter {
        /// How many are still done.
        chunks: u64,
    },
    /// After `chunks` more chunks the engine hangs, for ever if nobody resets it. A reset brings it back, cured.
    HangAfter {
        /// How many are still done.
        chunks: u64,
    },
    /// After `chunks` more chunks the engine hangs, and no reset brings it back.
    DieAfter {
        /// How many are still done.
        chunks: u64,
    },
    /// Every chunk takes this much longer.
    Slow {
        /// How much longer.
        delay: Duration,
    },
}

/// What the fault does to the next chunk.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Fate {
    Done,
    Failed,
    Hung,
    Late(Duration),
}

struct Job {
    chunk: Chunk,
    done: Completion,
}

/// Protected by [`Shared::work`].
#[derive(Default)]
struct Work {
    fifo: VecDeque<Job>,
    fault: Option<Fault>,
    /// Raised by each reset.
    epoch: u64,
    /// The thread is inside a copy loop.
    copying: bool,
    /// The engine takes no more chunks.
    dead: bool,
    /// The thread is to end.
    stop: bool,
}

struct Shared {
    memory: Arc<dyn MemoryMap>,
    /// The offsets of system memory that the engine sees. Constant.
    window: Range<u64>,
    work: Outside<Work>,
    /// Notified on everything the thread may wait for.
    wake: Condvar,
    /// Notified when the thread leaves a copy loop.
    quiet: Condvar,
}

/// A copy engine that is a thread of this process. Dropping it ends and joins the thread, whatever it is doing;
/// chunks that it still holds fail.
pub struct SoftwareEngine {
    /// Constant.
    name: String,
    /// Constant.
    routes: Vec<Route>,
    shared: Arc<Shared>,
    /// Taken by drop.
    thread: Option<JoinHandle<()>>,
}

impl SoftwareEngine {
    /// An engine over this memory that reaches everything.
    ///
    /// # Panics
    /// When the system gives no thread.
    pub fn new(name: impl Into<String>, memory: Arc<dyn MemoryMap>) -> Arc<SoftwareEngine> {
        SoftwareEngine::reaching(name, memory, Route::ALL)
    }

    /// An engine that reaches only these routes.
    ///
    /// # Panics
    /// When the system gives no thread.
    pub fn reaching(
        name: impl Into<String>,
        memory: Arc<dyn MemoryMap>,
        routes: impl IntoIterator<Item = Route>,
    ) -> Arc<SoftwareEngine> {
        SoftwareEngine::seeing(name, memory, routes, 0..u64::MAX)
    }

    /// An engine that reaches only these routes, and only these offsets of system memory, as one behind a DMA mask.
    ///
    /// # Panics
    /// When the system gives no thread.
    pub fn seeing(
        name: impl Into<String>,
        memory: Arc<dyn MemoryMap>,
        routes: impl IntoIterator<Item = Route>,
        window: Range<u64>,
    ) -> Arc<SoftwareEngine> {
        let name = name.into();
        let shared = Arc::new(Shared {
            memory,
            window: window.clone(),
            work: Outside::new("software engine", Work::default()),
            wake: Condvar::new(),
            quiet: Condvar::new(),
        });
        let theirs = shared.clone();
        let thread = thread::Builder::new().name(name.clone()).spawn(move || theirs.run());
        let thread = Some(thread.expect("the system gives no thread for a copy engine"));
        Arc::new(SoftwareEngine { name, routes: routes.into_iter().collect(), shared, thread })
    }

    /// Makes the engine go wrong, from the next chunk it begins; replaces an earlier fault.
    pub fn inject(&self, fault: Fault) {
        self.shared.work.lock().fault = Some(fault);
    }

    /// Takes an injected fault back. What hangs already goes on hanging until it is reset.
    pub fn heal(&self) {
        self.shared.work.lock().fault = None;
    }

    fn is_own_thread(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| thread.thread().id() == thread::current().id())
    }
}

impl CopyEngine for SoftwareEngine {
    fn name(&self) -> &str {
        &self.name
    }

    fn reaches(&self, from: Option<Space>, to: Space) -> bool {
        self.routes.contains(&Route { from, to })
    }

    fn window(&self, space: Space) -> Range<u64> {
        match space {
            Space::Vram => 0..u64::MAX,
            Space::System => self.shared.window.clone(),
        }
    }

    fn submit(&self, chunk: Chunk, done: Completion) -> Result<(), EngineError> {
        let mut work = self.shared.work.lock();
        if work.dead || work.stop {
            // The caller's answer is the error; the completion is dropped without our lock.
            drop(work);
            return Err(EngineError::Dead);
        }
        work.fifo.push_back(Job { chunk, done });
        drop(work);
        self.shared.wake.notify_one();
        Ok(())
    }

    fn reset(&self) -> Reset {
        let mut work = self.shared.work.lock();
        work.epoch += 1;
        let jobs = std::mem::take(&mut work.fifo);
        match work.fault {
            Some(Fault::DieAfter { chunks: 0 }) => work.dead = true,
            Some(Fault::HangAfter { chunks: 0 }) => work.fault = None,
            _ => {}
        }
        self.shared.wake.notify_all();
        while work.copying {
            work = work.wait(&self.shared.quiet);
        }
        let outcome = if work.dead { Reset::Dead } else { Reset::Recovered };
        drop(work);
        // Without our lock: a dropped completion calls back.
        drop(jobs);
        outcome
    }
}

impl Drop for SoftwareEngine {
    fn drop(&mut self) {
        let mut work = self.shared.work.lock();
        work.stop = true;
        work.epoch += 1;
        let jobs = std::mem::take(&mut work.fifo);
        drop(work);
        self.shared.wake.notify_all();
        drop(jobs);
        // The last reference may go inside a completion that the thread itself runs; it ends right after.
        let own = self.is_own_thread();
        if let Some(thread) = self.thread.take().filter(|_| !own)
            && let Err(panic) = thread.join()
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

impl fmt::Debug for SoftwareEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SoftwareEngine({:?})", self.name)
    }
}

/// When the thread ends, also by a panic in a completion, the engine is dead and nobody waits for it.
struct Deathbed<'a>(&'a Shared);

impl Drop for Deathbed<'_> {
    fn drop(&mut self) {
        let mut work = self.0.work.lock();
        work.dead = true;
        work.copying = false;
        let jobs = std::mem::take(&mut work.fifo);
        drop(work);
        self.0.quiet.notify_all();
        drop(jobs);
    }
}

impl Shared {
    fn run(&self) {
        let _deathbed = Deathbed(self);
        while let Some((Job { chunk, done }, fate, epoch)) = self.next_job() {
            // The fence of the chunk's move waits for what follows.
            let _signalling = Signalling::begin();
            match self.perform(&chunk, fate, epoch) {
                Some(result) => done.complete(result),
                // Reset or stopped meanwhile: dropped unanswered.
                None => drop(done),
            }
        }
    }

    /// Sleeps until there is a chunk; `None` when it is time to end.
    fn next_job(&self) -> Option<(Job, Fate, u64)> {
        let mut work = self.work.lock();
        loop {
            if work.stop {
                return None;
            }
            if let Some(job) = work.fifo.pop_front() {
                let fate = work.next_fate();
                return Some((job, fate, work.epoch));
            }
            work = work.wait(&self.wake);
        }
    }

    /// Performs a chunk as its fate has it; `None` when the epoch has changed before it was done.
    fn perform(&self, chunk: &Chunk, fate: Fate, epoch: u64) -> Option<Result<(), EngineError>> {
        if let Some((addr, len_bytes)) = self.unseen(chunk) {
            return Some(Err(EngineError::Unreachable { addr, len_bytes }));
        }
        let runs = match transfer::resolve(&*self.memory, chunk) {
            Ok(runs) => runs,
            Err(error) => return Some(Err(error)),
        };
        let is_clear = chunk.route().from.is_none();
        if fate == Fate::Done {
            self.copy(&runs, is_clear, epoch)?;
            return Some(Ok(()));
        }
        let (first, second) = halves(&runs);
        self.copy(&first, is_clear, epoch)?;
        match fate {
            Fate::Failed => return Some(Err(EngineError::failed("injected fault"))),
            Fate::Hung => self.sleep(None, epoch)?,
            Fate::Late(delay) => self.sleep(Some(Instant::now() + delay), epoch)?,
            Fate::Done => {}
        }
        self.copy(&second, is_clear, epoch)?;
        Some(Ok(()))
    }

    /// The first end of a piece that is not within the window.
    fn unseen(&self, chunk: &Chunk) -> Option<(Addr, u64)> {
        let ends = chunk
            .pieces()
            .iter()
            .flat_map(|piece| piece.src.into_iter().chain([piece.dst]).map(|addr| (addr, piece.len_bytes)));
        let is_seen = |addr: Addr, len_bytes: u64| {
            let end = addr.offset().saturating_add(len_bytes);
            addr.space() == Space::Vram || (self.window.start <= addr.offset() && end <= self.window.end)
        };
        ends.into_iter().find(|(addr, len_bytes)| !is_seen(*addr, *len_bytes))
    }

    /// Copies, unless the epoch has changed.
    fn copy(&self, runs: &[Run], is_clear: bool, epoch: u64) -> Option<()> {
        let mut work = self.work.lock();
        if work.epoch != epoch {
            return None;
        }
        work.copying = true;
        drop(work);
        // SAFETY: resolved from our own map, which `self` keeps alive; `reset` waits until `copying` is clear.
        unsafe { transfer::perform(runs, is_clear) };
        self.work.lock().copying = false;
        self.quiet.notify_all();
        Some(())
    }

    /// Sleeps until the deadline, or for ever; `None` when the epoch changes.
    fn sleep(&self, deadline: Option<Instant>, epoch: u64) -> Option<()> {
        let mut work: OutsideGuard<'_, Work> = self.work.lock();
        while work.epoch == epoch {
            let Some(deadline) = deadline else {
                work = work.wait(&self.wake);
                continue;
            };
            let timed_out;
            (work, timed_out) = work.wait_until(&self.wake, deadline);
            if timed_out {
                return Some(());
            }
        }
        None
    }
}

impl Work {
    /// What happens to the chunk that is begun now.
    fn next_fate(&mut self) -> Fate {
        let (fate, fault) = match self.fault {
            Some(Fault::FailNext { chunks: 0 }) | None => (Fate::Done, None),
            Some(Fault::FailNext { chunks }) => (Fate::Failed, Some(Fault::FailNext { chunks: chunks - 1 })),
            Some(Fault::Slow { delay }) => (Fate::Late(delay), self.fault),
            Some(Fault::FailAfter { chunks: 0 }) => (Fate::Failed, self.fault),
            Some(Fault::HangAfter { chunks: 0 } | Fault::DieAfter { chunks: 0 }) => (Fate::Hung, self.fault),
            Some(Fault::FailAfter { chunks }) => (Fate::Done, Some(Fault::FailAfter { chunks: chunks - 1 })),
            Some(Fault::HangAfter { chunks }) => (Fate::Done, Some(Fault::HangAfter { chunks: chunks - 1 })),
            Some(Fault::DieAfter { chunks }) => (Fate::Done, Some(Fault::DieAfter { chunks: chunks - 1 })),
        };
        self.fault = fault;
        fate
    }
}

/// The runs of a chunk cut in two at half its bytes.
fn halves(runs: &[Run]) -> (Vec<Run>, Vec<Run>) {
    let half = runs.iter().map(|run| run.len_bytes).sum::<usize>() / 2;
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let mut before = 0;
    for run in runs {
        let cut = half.saturating_sub(before).min(run.len_bytes);
        before += run.len_bytes;
        first.push(Run { len_bytes: cut, ..*run });
        // Wrapping, as the source of a clear is null and not looked at.
        let (dst, src) = (run.dst.wrapping_add(cut), run.src.wrapping_add(cut));
        second.push(Run { dst, src, len_bytes: run.len_bytes - cut });
    }
    (first, second)
}
