//! What of the kernel the protocol needs, so that models and tests run the protocol that ships on a kernel that they make up.

use std::any::Any;
use std::fmt;
#[cfg(not(any(loom, shuttle)))]
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use devpagemap_fence::FenceError;
use devpagemap_fence::sync::thread::Builder;

use crate::error::{Error, Result};
use crate::submit::Access;

/// One kernel fence of a sync_file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FenceInfo {
    /// The driver whose fence it is.
    pub(super) driver: String,
    /// The timeline that it is on, as that driver calls it.
    pub(super) timeline: String,
    /// How it ended, with the system's number for what went wrong; `None` while it is outstanding.
    pub(super) ended: Option<Result<(), i32>>,
}

impl FenceInfo {
    /// What went wrong, if it has ended and something did.
    pub(super) fn error(&self) -> Option<FenceError> {
        let errno = self.ended?.err()?;
        let (driver, timeline) = (self.driver.as_str().into(), self.timeline.as_str().into());
        Some(FenceError::Foreign { driver, timeline, errno })
    }
}

/// Kernel fences in one descriptor, as many as there are. Which they are never changes.
pub(crate) trait SyncFile: Any + fmt::Debug + Send + Sync {
    /// The descriptor; a made-up one has none.
    #[cfg(not(any(loom, shuttle)))]
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// How far each of its fences is.
    ///
    /// # Errors
    /// What the kernel says.
    fn fences(&self) -> Result<Vec<FenceInfo>>;
}

/// The list of fences that a dma-buf has in the kernel (`dma_resv`).
pub(crate) trait ReservationObject: fmt::Debug + Send + Sync {
    /// Names it; two descriptors of one dma-buf have the same, and nothing else has it.
    fn key(&self) -> u64;

    /// What somebody who begins such an access now has to wait for; `None` for nothing.
    ///
    /// # Errors
    /// What the kernel says.
    fn export(&self, access: Access) -> Result<Option<Box<dyn SyncFile>>>;

    /// Whoever begins an access that does not go together with this one waits for `fences` from now on.
    ///
    /// # Errors
    /// What the kernel says; nothing has changed.
    fn import(&self, fences: &dyn SyncFile, access: Access) -> Result<()>;
}

/// What holds a fence, or a timeline of points with a fence in each, under a name that processes and devices share (a syncobj).
pub(crate) trait SyncObject: fmt::Debug + Send + Sync {
    /// The last point that is there; 0 for none.
    ///
    /// # Errors
    /// What the kernel says.
    fn submitted(&self) -> Result<u64>;

    /// The last point that has signalled.
    ///
    /// # Errors
    /// What the kernel says.
    #[cfg(not(any(loom, shuttle)))]
    fn reached(&self) -> Result<u64>;

    /// Adds a point behind all that are there; puts the fences into the place of all points, for point 0.
    ///
    /// # Errors
    /// What the kernel says; nothing has changed.
    fn add(&self, point: u64, fences: &dyn SyncFile) -> Result<()>;

    /// Adds a point that has signalled.
    ///
    /// # Errors
    /// What the kernel says; nothing has changed.
    fn signal(&self, point: u64) -> Result<()>;

    /// Takes all points away.
    ///
    /// # Errors
    /// What the kernel says; nothing has changed.
    #[cfg(not(any(loom, shuttle)))]
    fn clear(&self) -> Result<()>;

    /// The fences of a point, and of those before that have not signalled; of all, for point 0. `None` when it is not there.
    ///
    /// # Errors
    /// What the kernel says.
    fn snapshot(&self, point: u64) -> Result<Option<Box<dyn SyncFile>>>;

    /// What stands for the coming of a point: it has one fence, which has signalled when the point is there.
    ///
    /// # Errors
    /// [`Error::NoDescriptorsLeft`], [`Error::Unsupported`], what the kernel says.
    fn arrival(&self, point: u64) -> Result<Box<dyn SyncFile>>;

    /// A descriptor, for others.
    ///
    /// # Errors
    /// [`Error::NoDescriptorsLeft`].
    #[cfg(not(any(loom, shuttle)))]
    fn export(&self) -> Result<OwnedFd>;
}

/// A kernel fence that we signal. Dropping it signals it too, by the means of the kernel, which may be an error.
pub(crate) trait KernelFence: fmt::Debug + Send + Sync {
    /// Signals it.
    fn end(self: Box<Self>, outcome: Outcome) -> Ended;
}

/// How the work behind a fence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Failed,
}

/// What became of a kernel fence that was signalled.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It says how the work ended.
    AsTold,
    /// It says that all was well; the work has failed.
    WithoutTheError,
    /// The kernel had signalled it already, when its time was up.
    Expired,
    /// The kernel did not take it.
    #[cfg(not(any(loom, shuttle)))]
    Refused(Error),
}

/// A new kernel fence, and what shows it to others.
pub(crate) struct MadeFence {
    pub(super) fence: Box<dyn KernelFence>,
    pub(super) file: Box<dyn SyncFile>,
}

/// Waits for many sync_files at once. One thread waits, all others may do the rest.
pub(crate) trait Poller: fmt::Debug + Send + Sync {
    /// Reports `id` once all fences of `file` have signalled.
    ///
    /// # Errors
    /// What the kernel says.
    fn watch(&self, file: &dyn SyncFile, id: u64) -> Result<()>;

    /// Reports `id` no more. To be called before the file is dropped.
    fn forget(&self, file: &dyn SyncFile, id: u64);

    /// Sleeps until something is to be reported, `until` is over (`None`: it never is) or somebody pokes; may return without a reason.
    fn wait(&self, until: Option<Instant>) -> Vec<u64>;

    /// Wakes who waits.
    fn poke(&self);
}

/// What a machine offers.
pub(crate) trait Kernel: fmt::Debug + Send + Sync {
    /// The name of what makes kernel fences here.
    ///
    /// # Errors
    /// [`Error::NoKernelFences`].
    fn source(&self) -> Result<&'static str>;

    /// A kernel fence that we signal.
    ///
    /// # Errors
    /// [`Error::NoKernelFences`], [`Error::NoDescriptorsLeft`], what the kernel says.
    fn make_fence(&self) -> Result<MadeFence>;

    /// After how long the kernel itself signals what was made here; `None`: never.
    fn expires_after(&self) -> Option<Duration>;

    /// A syncobj without points.
    ///
    /// # Errors
    /// [`Error::NoSyncobjs`], [`Error::NoDescriptorsLeft`], what the kernel says.
    #[cfg(not(any(loom, shuttle)))]
    fn create_syncobj(&self) -> Result<Box<dyn SyncObject>>;

    /// The syncobj behind a descriptor.
    ///
    /// # Errors
    /// [`Error::NotASyncobj`], [`Error::NoSyncobjs`], [`Error::NoDescriptorsLeft`], what the kernel says.
    #[cfg(not(any(loom, shuttle)))]
    fn open_syncobj(&self, fd: BorrowedFd<'_>) -> Result<Box<dyn SyncObject>>;

    /// Something to wait with.
    ///
    /// # Errors
    /// [`Error::NoDescriptorsLeft`].
    fn poller(&self) -> Result<Arc<dyn Poller>>;

    /// Runs the keeper in a thread of its own.
    ///
    /// # Errors
    /// What the system says when it has no thread left.
    fn start(&self, keeper: Box<dyn FnOnce() + Send>) -> Result<()> {
        start_thread(keeper)
    }

    /// The time.
    fn now(&self) -> Instant;
}

/// # Errors
/// What the system says when it has no thread left.
pub(super) fn start_thread(keeper: Box<dyn FnOnce() + Send>) -> Result<()> {
    let thread = Builder::new().name("devpagemap-fences".into()).spawn(keeper);
    thread.map(drop).map_err(|error| Error::Io {
        action: "start the thread that keeps fences",
        bytes: 0,
        errno: error.raw_os_error().unwrap_or_default(),
    })
}
