//! The software GPU's rings: each a thread that runs jobs in order, on real bytes.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use devpagemap_fence::lockdep::Signalling;
use devpagemap_fence::{Fence, FenceError, FenceSet, Outside, Timeline};
use devpagemap_migrate::{Extent, ExtentList, MemoryMap, Space, copy};

use super::DeviceMemory;
use crate::submit::{Access, Arrivals, Job};

/// What a job said at its end: `Err` fails its fence with this text.
pub(crate) type JobResult = std::result::Result<(), String>;

struct QueuedJob {
    after: FenceSet,
    needs: Arrivals,
    fence: Fence,
    work: Box<dyn FnOnce() -> JobResult + Send>,
}

/// One ring. Dropping it runs what is queued and joins the thread.
pub(crate) struct Ring {
    /// Signals the ring's jobs. Its own lock.
    timeline: Arc<Timeline>,
    /// Keeps the order of points and the order of jobs the same; `None` once the ring closes.
    jobs: Outside<Option<Sender<QueuedJob>>>,
    /// Constant until drop.
    thread: Option<JoinHandle<()>>,
}

impl Ring {
    pub(crate) fn start(name: String) -> std::io::Result<Ring> {
        let timeline = Arc::new(Timeline::new(name.clone()));
        let (sender, receiver) = channel();
        let signals = timeline.clone();
        let thread = std::thread::Builder::new().name(name).spawn(move || run_jobs(&receiver, &signals))?;
        Ok(Ring { timeline, jobs: Outside::new("software ring", Some(sender)), thread: Some(thread) })
    }

    /// Whether the calling thread is the one that runs this ring's jobs.
    pub(crate) fn is_this_thread(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| thread.thread().id() == std::thread::current().id())
    }

    /// How many jobs have not finished.
    pub(crate) fn backlog(&self) -> u64 {
        // In this order: what is completed was allocated before.
        let completed = self.timeline.completed();
        self.timeline.allocated() - completed
    }

    /// Queues `work` behind the job's fences. Never waits.
    pub(crate) fn queue(&self, job: &Job<'_>, work: Box<dyn FnOnce() -> JobResult + Send>) -> Fence {
        let (after, needs) = (job.after().clone(), job.needs().clone());
        let jobs = self.jobs.lock();
        let fence = self.timeline.next_point();
        let queued = QueuedJob { after, needs, fence: fence.clone(), work };
        let refused = match &*jobs {
            Some(sender) => sender.send(queued).is_err(),
            None => true,
        };
        drop(jobs);
        if refused {
            self.timeline.fail(fence.seqno(), FenceError::DeviceLost);
        }
        fence
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        drop(self.jobs.lock().take());
        // A job may hold the last reference to this GPU; a thread cannot join itself, and ends right after that job.
        if self.is_this_thread() {
            return;
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(ring = self.timeline.name(), "a ring's thread panicked");
        }
    }
}

fn run_jobs(jobs: &Receiver<QueuedJob>, timeline: &Timeline) {
    while let Ok(job) = jobs.recv() {
        let seqno = job.fence.seqno();
        // A ring waits the way hardware does: in the engine, for semaphores, in order. An error there only ends the wait.
        let _ordering_only = job.after.wait();
        let arrived = job.needs.wait();
        let _signalling = Signalling::begin();
        match arrived {
            Err(error) => timeline.fail(seqno, FenceError::Dependency(Box::new(error))),
            Ok(()) => match run(job.work) {
                Ok(Ok(())) => timeline.signal(seqno),
                Ok(Err(reason)) => timeline.fail(seqno, failed(timeline, reason)),
                Err(panic) => timeline.fail(seqno, failed(timeline, panic_text(&*panic))),
            },
        }
    }
}

/// Runs a job; what it has written is there when its fence says so, in memory whose writes are combined too.
fn run(work: Box<dyn FnOnce() -> JobResult + Send>) -> std::thread::Result<JobResult> {
    let done = catch_unwind(AssertUnwindSafe(work));
    copy::publish();
    done
}

fn failed(timeline: &Timeline, reason: String) -> FenceError {
    FenceError::EngineFailed { engine: timeline.name().into(), reason: reason.into() }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("the job panicked: {}", text.unwrap_or_else(|| "without a message".into()))
}

/// What a job on the software GPU may touch: the bytes of the buffers that its submission named.
pub struct JobMemory {
    /// All of the device's memory. Constant.
    memory: Arc<DeviceMemory>,
    /// What the submission named, by space and address. Constant.
    granted: Vec<(Extent, Access)>,
    /// Reads in progress, or -1 for a write. The job's thread.
    borrowed: Cell<i32>,
}

impl JobMemory {
    pub(crate) fn new(memory: Arc<DeviceMemory>, job: &Job<'_>) -> JobMemory {
        let granted =
            job.uses().flat_map(|(extents, access)| extents.iter().map(move |extent| (*extent, access)));
        let mut granted: Vec<_> = granted.collect();
        granted.sort_unstable_by_key(|(extent, _)| position(extent));
        JobMemory { memory, granted, borrowed: Cell::new(0) }
    }

    /// Shows `each` the bytes of `extents`, piece by piece, with their offset in the list.
    ///
    /// # Panics
    /// When the submission did not name these bytes, or from within a [`JobMemory::write`]; the job's fence then fails.
    pub fn read(&self, extents: &ExtentList, mut each: impl FnMut(u64, &[u8])) {
        assert!(self.borrowed.get() >= 0, "memory is read within a write of the same job");
        self.borrowed.set(self.borrowed.get() + 1);
        let _returned = Returned(&self.borrowed, -1);
        let mut offset = 0;
        for extent in extents.iter() {
            let start = self.granted_address(extent, Access::Read);
            // SAFETY: the manager gave these bytes to this submission and queued the job behind the fences of whoever wrote
            // them; writers that come later wait for this job's fence; `borrowed` keeps this job from writing meanwhile.
            each(offset, unsafe { std::slice::from_raw_parts(start, extent.len_bytes as usize) });
            offset += extent.len_bytes;
        }
    }

    /// Lets `each` change the bytes of `extents`, piece by piece, with their offset in the list.
    ///
    /// # Panics
    /// When the submission does not write these bytes, or from within another access; the job's fence then fails.
    pub fn write(&self, extents: &ExtentList, mut each: impl FnMut(u64, &mut [u8])) {
        assert!(self.borrowed.get() == 0, "memory is written within another access of the same job");
        self.borrowed.set(-1);
        let _returned = Returned(&self.borrowed, 1);
        let mut offset = 0;
        for extent in extents.iter() {
            let start = self.granted_address(extent, Access::Write);
            // SAFETY: as for read, and the submission declared a write, so every earlier reader's fence has signalled;
            // `borrowed` keeps this job from a second access.
            each(offset, unsafe { std::slice::from_raw_parts_mut(start, extent.len_bytes as usize) });
            offset += extent.len_bytes;
        }
    }

    fn granted_address(&self, extent: &Extent, access: Access) -> *mut u8 {
        // Buffers do not overlap, so only the last extent that starts at or before this one can hold it.
        let next = self.granted.partition_point(|(granted, _)| position(granted) <= position(extent));
        let granted = next.checked_sub(1).is_some_and(|index| {
            let (granted, allowed) = &self.granted[index];
            let same_space = granted.addr.space() == extent.addr.space();
            let end = granted.addr.offset() + granted.len_bytes;
            same_space && extent.addr.offset() + extent.len_bytes <= end && *allowed >= access
        });
        assert!(granted, "the submission does not {access:?} {extent:?}");
        match self.memory.resolve(extent.addr, extent.len_bytes) {
            Some(address) => address.as_ptr(),
            None => panic!("{extent:?} is not memory of this device"),
        }
    }
}

fn position(extent: &Extent) -> (bool, u64) {
    (extent.addr.space() == Space::Vram, extent.addr.offset())
}

struct Returned<'a>(&'a Cell<i32>, i32);

impl Drop for Returned<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() + self.1);
    }
}
