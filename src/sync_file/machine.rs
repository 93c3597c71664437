//! This machine's kernel, and what on it makes kernel fences that we signal.
//!
//! | source | where | lasts | says that work failed |
//! |---|---|---|---|
//! | `sw_sync` | kernels built for debugging, with debugfs mounted | for ever | yes: `ENOENT` |
//! | `vgem` | wherever its module is loaded, for who may open its primary node | 10 s, so it is renewed | no |

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use devpagemap_fence::Outside;
use rustix::io::Errno;

use super::epoll::Epoll;
use super::kernel::{Kernel, MadeFence, Poller, SyncObject};
use super::sw_sync::SwSync;
use crate::backend::drm::{SyncobjHandle, SyncobjNode};
use crate::error::{Error, Result};

/// What makes kernel fences that we signal.
pub(super) trait Source: fmt::Debug + Send + Sync {
    fn name(&self) -> &'static str;

    /// After how long the kernel itself signals one.
    fn expires_after(&self) -> Option<Duration>;

    /// # Errors
    /// What the kernel says.
    fn make(&self) -> Result<MadeFence>;
}

/// From where a device has kernel fences that it signals, so that others wait for its work on a shared buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum FenceSource {
    /// The first of the others that the machine has.
    #[default]
    Auto,
    /// `sw_sync`, in debugfs of kernels that are built for debugging.
    SwSync,
    /// The `vgem` driver. Its fences last 10 s; those of work that takes longer are renewed.
    Vgem,
    /// None: others hear of nothing.
    None,
}

/// The kernel that this process runs on.
#[derive(Debug)]
pub(crate) struct Machine {
    /// Constant.
    wanted: FenceSource,
    /// What was found, or why nothing was. Its own lock.
    found: Outside<Option<Found>>,
    /// Where syncobjs are made, once somebody has asked for one. Its own lock.
    syncobjs: Outside<Option<SyncobjNode>>,
}

type Found = Result<Arc<dyn Source>>;

impl Machine {
    pub(crate) fn new(wanted: FenceSource) -> Machine {
        Machine {
            wanted,
            found: Outside::new("source of kernel fences", None),
            syncobjs: Outside::new("node with syncobjs", None),
        }
    }

    /// On the node that was found before, and on another if that has gone: devices come and go.
    fn on_a_node<O>(&self, body: impl Fn(&SyncobjNode) -> Result<O>) -> Result<O> {
        let known = self.syncobjs.lock().clone();
        if let Some(node) = known {
            match body(&node) {
                Err(Error::Io { errno, .. }) if errno == Errno::NODEV.raw_os_error() => {}
                done => return done,
            }
        }
        let node = SyncobjNode::find()?;
        *self.syncobjs.lock() = Some(node.clone());
        body(&node)
    }

    /// What was found when somebody looked; looks if nobody has.
    fn found(&self) -> Found {
        let mut found = self.found.lock();
        if let Some(found) = &*found {
            return found.clone();
        }
        let now = find(self.wanted);
        // A full table of descriptors says nothing of the machine.
        if !matches!(now, Err(Error::NoDescriptorsLeft { .. })) {
            *found = Some(now.clone());
        }
        now
    }
}

/// The first that this machine has of those that are wanted.
fn find(wanted: FenceSource) -> Found {
    let sw_sync = || SwSync::find().map(|source| Arc::new(source) as Arc<dyn Source>);
    let vgem = || super::vgem::Vgem::find().map(|source| Arc::new(source) as Arc<dyn Source>);
    let all: [(FenceSource, &str, &dyn Fn() -> Found); 2] =
        [(FenceSource::SwSync, "sw_sync", &sw_sync), (FenceSource::Vgem, "vgem", &vgem)];
    let mut why = Vec::new();
    for (source, name, find) in all {
        if wanted != FenceSource::Auto && wanted != source {
            continue;
        }
        match find() {
            Ok(found) => return Ok(found),
            Err(error @ Error::NoDescriptorsLeft { .. }) => return Err(error),
            Err(error) => why.push(format!("{name}: {error}")),
        }
    }
    let why = if why.is_empty() { "the device was built without".to_owned() } else { why.join("; ") };
    Err(Error::NoKernelFences { why: why.into() })
}

impl Kernel for Machine {
    /// Looks again if nothing was found before: modules come and go.
    fn source(&self) -> Result<&'static str> {
        self.found.lock().take_if(|found| found.is_err());
        self.found().map(|source| source.name())
    }

    fn make_fence(&self) -> Result<MadeFence> {
        self.found()?.make()
    }

    fn expires_after(&self) -> Option<Duration> {
        self.found().ok().and_then(|source| source.expires_after())
    }

    fn create_syncobj(&self) -> Result<Box<dyn SyncObject>> {
        Ok(Box::new(self.on_a_node(SyncobjHandle::create)?))
    }

    fn open_syncobj(&self, fd: BorrowedFd<'_>) -> Result<Box<dyn SyncObject>> {
        match self.on_a_node(|node| SyncobjHandle::open(node, fd))? {
            Some(syncobj) => Ok(Box::new(syncobj)),
            None => Err(Error::NotASyncobj { fd: fd.as_raw_fd() }),
        }
    }

    fn poller(&self) -> Result<Arc<dyn Poller>> {
        Ok(Arc::new(Epoll::new()?))
    }

    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// A descriptor of a sync_file, out of one that is kept.
pub(super) fn descriptor_of(file: &dyn super::kernel::SyncFile) -> Result<OwnedFd> {
    let fd = file.fd().expect("this machine's sync_files have descriptors");
    rustix::io::fcntl_dupfd_cloexec(fd, 0)
        .map_err(|errno| Error::of_descriptor("copy the descriptor of a sync_file", errno))
}
