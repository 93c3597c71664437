//! A kernel that is made up: reservation objects, sync_files, fences that expire when its clock is put forward, and calls that fail when they
//! are told to. It remembers every moment at which somebody saw a dma-buf without a fence.

pub(super) mod syncobj;

use std::any::Any;
use std::fmt;
#[cfg(not(any(loom, shuttle)))]
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use devpagemap_fence::sync::{Condvar, Mutex};

#[cfg(not(any(loom, shuttle)))]
use super::kernel::SyncObject;
use super::kernel::{
    Ended, FenceInfo, Kernel, KernelFence, MadeFence, Outcome, Poller, ReservationObject, SyncFile,
    start_thread,
};
use crate::error::{Error, Result};
use crate::submit::Access;

/// One kernel fence.
#[derive(Clone, Debug)]
struct Point {
    info: FenceInfo,
    expires: Option<Instant>,
}

#[derive(Debug, Default)]
struct State {
    points: Vec<Point>,
    /// The fences of each reservation object.
    objects: Vec<Vec<(usize, Access)>>,
    /// The points of each syncobj, with the fences in it, and what stands for the coming of others.
    syncobjs: Vec<syncobj::State>,
    /// What pollers wait for, by what they report.
    watched: Vec<(u64, Vec<usize>)>,
    poked: bool,
    /// How many calls succeed until one fails; none: all do.
    calls_left: Option<u64>,
    calls: u64,
}

impl State {
    fn are_over(&self, points: &[usize]) -> bool {
        points.iter().all(|point| self.points[*point].info.ended.is_some())
    }
}

/// What a kernel is like. Constant.
struct Nature {
    /// How long a fence lasts.
    expiry: Option<Duration>,
    /// Whether a fence can say that its work failed.
    tells_errors: bool,
    has_source: bool,
    /// Whether a keeper has a thread.
    kept: bool,
}

impl Default for Nature {
    fn default() -> Nature {
        Nature { expiry: None, tells_errors: true, has_source: true, kept: true }
    }
}

impl Nature {
    fn like_vgem(expiry: Duration) -> Nature {
        Nature { expiry: Some(expiry), tells_errors: false, ..Nature::default() }
    }
}

/// Shared by all that is made of it.
pub(super) struct FakeKernel {
    this: Weak<FakeKernel>,
    epoch: Instant,
    now_ns: AtomicU64,
    nature: Nature,
    state: Mutex<State>,
    changed: Condvar,
}

impl FakeKernel {
    pub(super) fn new() -> Arc<FakeKernel> {
        FakeKernel::with(Nature::default())
    }

    /// Whose fences last so long.
    #[cfg(not(any(loom, shuttle)))]
    pub(super) fn like_vgem(expiry: Duration) -> Arc<FakeKernel> {
        FakeKernel::with(Nature::like_vgem(expiry))
    }

    /// The same, and nothing can be slept by: whoever tests it does what the keeper would do.
    pub(super) fn unkept(expiry: Duration) -> Arc<FakeKernel> {
        FakeKernel::with(Nature { kept: false, ..Nature::like_vgem(expiry) })
    }

    #[cfg(not(any(loom, shuttle)))]
    pub(super) fn without_source() -> Arc<FakeKernel> {
        FakeKernel::with(Nature { has_source: false, ..Nature::default() })
    }

    fn with(nature: Nature) -> Arc<FakeKernel> {
        Arc::new_cyclic(|this| FakeKernel {
            this: this.clone(),
            epoch: Instant::now(),
            now_ns: AtomicU64::new(0),
            nature,
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    fn this(&self) -> Arc<FakeKernel> {
        self.this.upgrade().expect("it is used")
    }

    pub(super) fn dma_buf(&self) -> Arc<FakeDmaBuf> {
        let mut state = self.state.lock();
        state.objects.push(Vec::new());
        Arc::new(FakeDmaBuf { kernel: self.this(), index: state.objects.len() - 1 })
    }

    pub(super) fn syncobj(&self) -> syncobj::FakeSyncobj {
        let mut state = self.state.lock();
        state.syncobjs.push(syncobj::State::default());
        syncobj::FakeSyncobj::new(self.this(), state.syncobjs.len() - 1)
    }

    /// A fence of somebody else's.
    pub(super) fn stranger(&self) -> FakeFence {
        FakeFence { kernel: self.this(), point: self.point("stranger", "its ring", None) }
    }

    fn point(&self, driver: &str, timeline: &str, expires: Option<Instant>) -> usize {
        let info = FenceInfo { driver: driver.into(), timeline: timeline.into(), ended: None };
        let mut state = self.state.lock();
        state.points.push(Point { info, expires });
        state.points.len() - 1
    }

    /// Puts its clock forward.
    pub(super) fn pass(&self, time: Duration) {
        self.now_ns.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
        let now = self.now();
        let mut state = self.state.lock();
        for point in &mut state.points {
            if point.info.ended.is_none() && point.expires.is_some_and(|at| at <= now) {
                point.info.ended = Some(Ok(()));
            }
        }
        self.changed.notify_all();
    }

    /// Has the call fail that comes after so many that succeed.
    #[cfg(not(any(loom, shuttle)))]
    pub(super) fn fail_after(&self, calls: u64) {
        self.state.lock().calls_left = Some(calls);
    }

    #[cfg(not(any(loom, shuttle)))]
    pub(super) fn fail_no_more(&self) {
        self.state.lock().calls_left = None;
    }

    /// How many calls that may fail there were.
    #[cfg(not(any(loom, shuttle)))]
    pub(super) fn calls(&self) -> u64 {
        self.state.lock().calls
    }

    /// How many fences are outstanding.
    pub(super) fn outstanding(&self) -> usize {
        self.state.lock().points.iter().filter(|point| point.info.ended.is_none()).count()
    }

    /// How many have signalled with an error.
    #[cfg(not(any(loom, shuttle)))]
    pub(super) fn failed(&self) -> usize {
        let state = self.state.lock();
        state.points.iter().filter(|point| matches!(point.info.ended, Some(Err(_)))).count()
    }

    fn call(&self, state: &mut State) -> Result<()> {
        state.calls += 1;
        match &mut state.calls_left {
            Some(0) => Err(Error::Io { action: "do as it is told", bytes: 0, errno: 12 }),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn end(&self, point: usize, outcome: std::result::Result<(), i32>) -> bool {
        let mut state = self.state.lock();
        let ended = &mut state.points[point].info.ended;
        let in_time = ended.is_none();
        if in_time {
            *ended = Some(outcome);
        }
        self.changed.notify_all();
        in_time
    }
}

impl fmt::Debug for FakeKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeKernel")
    }
}

impl Kernel for FakeKernel {
    fn source(&self) -> Result<&'static str> {
        match self.nature.has_source {
            true => Ok("made up"),
            false => Err(Error::NoKernelFences { why: "nothing was made up".into() }),
        }
    }

    fn make_fence(&self) -> Result<MadeFence> {
        self.source()?;
        self.call(&mut self.state.lock())?;
        let point = self.point("devpagemap", "ours", self.nature.expiry.map(|after| self.now() + after));
        Ok(MadeFence {
            fence: Box::new(FakeFence { kernel: self.this(), point }),
            file: Box::new(FakeFile { kernel: self.this(), points: vec![point] }),
        })
    }

    fn expires_after(&self) -> Option<Duration> {
        self.nature.expiry
    }

    fn start(&self, keeper: Box<dyn FnOnce() + Send>) -> Result<()> {
        if self.nature.kept { start_thread(keeper) } else { Ok(()) }
    }

    #[cfg(not(any(loom, shuttle)))]
    fn create_syncobj(&self) -> Result<Box<dyn SyncObject>> {
        self.call(&mut self.state.lock())?;
        Ok(Box::new(self.syncobj()))
    }

    #[cfg(not(any(loom, shuttle)))]
    fn open_syncobj(&self, fd: BorrowedFd<'_>) -> Result<Box<dyn SyncObject>> {
        Err(Error::NotASyncobj { fd: fd.as_raw_fd() })
    }

    fn poller(&self) -> Result<Arc<dyn Poller>> {
        self.call(&mut self.state.lock())?;
        Ok(Arc::new(FakePoller(self.this())))
    }

    fn now(&self) -> Instant {
        self.epoch + Duration::from_nanos(self.now_ns.load(Ordering::Relaxed))
    }
}

/// A kernel fence in somebody's hands.
#[derive(Debug)]
pub(super) struct FakeFence {
    kernel: Arc<FakeKernel>,
    point: usize,
}

impl FakeFence {
    pub(super) fn signal(&self) {
        self.kernel.end(self.point, Ok(()));
    }

    #[cfg(any(loom, shuttle))]
    pub(super) fn is_signaled(&self) -> bool {
        self.kernel.state.lock().points[self.point].info.ended.is_some()
    }

    #[cfg(not(any(loom, shuttle)))]
    pub(super) fn fail(&self, errno: i32) {
        self.kernel.end(self.point, Err(errno));
    }
}

impl KernelFence for FakeFence {
    fn end(self: Box<Self>, outcome: Outcome) -> Ended {
        let fails = outcome == Outcome::Failed && self.kernel.nature.tells_errors;
        let in_time = self.kernel.end(self.point, if fails { Err(2) } else { Ok(()) });
        match (in_time, outcome) {
            (false, _) => Ended::Expired,
            (true, Outcome::Failed) if !fails => Ended::WithoutTheError,
            (true, _) => Ended::AsTold,
        }
    }
}

#[derive(Debug)]
pub(super) struct FakeFile {
    kernel: Arc<FakeKernel>,
    points: Vec<usize>,
}

impl SyncFile for FakeFile {
    #[cfg(not(any(loom, shuttle)))]
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn fences(&self) -> Result<Vec<FenceInfo>> {
        let mut state = self.kernel.state.lock();
        self.kernel.call(&mut state)?;
        Ok(self.points.iter().map(|point| state.points[*point].info.clone()).collect())
    }
}

fn as_fake(file: &dyn SyncFile) -> &FakeFile {
    let file: &dyn Any = file;
    file.downcast_ref().expect("there is nothing but what was made up")
}

/// A reservation object.
#[derive(Debug)]
pub(super) struct FakeDmaBuf {
    kernel: Arc<FakeKernel>,
    index: usize,
}

impl FakeDmaBuf {
    /// Whether who polls for such an access has to wait.
    pub(super) fn is_busy(&self, access: Access) -> bool {
        !self.outstanding(&self.kernel.state.lock(), access).is_empty()
    }

    /// Somebody else begins such an access.
    pub(super) fn attach(&self, fence: &FakeFence, access: Access) {
        self.kernel.state.lock().objects[self.index].push((fence.point, access));
    }

    fn outstanding(&self, state: &State, access: Access) -> Vec<usize> {
        let concerned = |(point, of): &(usize, Access)| {
            let waited_for = access == Access::Write || *of == Access::Write;
            (waited_for && state.points[*point].info.ended.is_none()).then_some(*point)
        };
        state.objects[self.index].iter().filter_map(concerned).collect()
    }
}

impl ReservationObject for FakeDmaBuf {
    fn key(&self) -> u64 {
        self.index as u64
    }

    fn export(&self, access: Access) -> Result<Option<Box<dyn SyncFile>>> {
        let mut state = self.kernel.state.lock();
        let points = self.outstanding(&state, access);
        if points.is_empty() {
            return Ok(None);
        }
        self.kernel.call(&mut state)?;
        Ok(Some(Box::new(FakeFile { kernel: self.kernel.clone(), points })))
    }

    fn import(&self, fences: &dyn SyncFile, access: Access) -> Result<()> {
        let mut state = self.kernel.state.lock();
        self.kernel.call(&mut state)?;
        let added: Vec<_> = as_fake(fences).points.iter().map(|point| (*point, access)).collect();
        state.objects[self.index].extend(added);
        Ok(())
    }
}

/// What the keeper sleeps by.
#[derive(Debug)]
struct FakePoller(Arc<FakeKernel>);

impl Poller for FakePoller {
    fn watch(&self, file: &dyn SyncFile, id: u64) -> Result<()> {
        let mut state = self.0.state.lock();
        self.0.call(&mut state)?;
        state.watched.push((id, as_fake(file).points.clone()));
        // One that is over already is reported at once.
        self.0.changed.notify_all();
        Ok(())
    }

    fn forget(&self, _file: &dyn SyncFile, id: u64) {
        self.0.state.lock().watched.retain(|(watched, _)| *watched != id);
    }

    fn wait(&self, until: Option<Instant>) -> Vec<u64> {
        let mut state = self.0.state.lock();
        loop {
            let over = state.watched.iter().filter(|(_, points)| state.are_over(points));
            let over: Vec<u64> = over.map(|(id, _)| *id).collect();
            let is_time = until.is_some_and(|until| until <= self.0.now());
            if std::mem::take(&mut state.poked) || !over.is_empty() || is_time {
                return over;
            }
            state = self.0.changed.wait(state);
        }
    }

    fn poke(&self) {
        self.0.state.lock().poked = true;
        self.0.changed.notify_all();
    }
}
