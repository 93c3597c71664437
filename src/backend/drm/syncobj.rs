//! Syncobjs: what of the kernel holds a fence, or a timeline of them, under a name that processes and devices share.
//!
//! Any node with syncobjs will do, since a syncobj is no driver's: its descriptor becomes a handle on whatever node. A handle counts as a
//! reference, unlike those of buffers, so each is closed on its own.
//!
//! The kernel takes sync_files in and gives them out for a syncobj as a whole, and moves points from one syncobj to another. So a point is
//! reached through a syncobj that lasts as long as the call:
//!
//! ```text
//!   add       sync_file ──► one that holds it alone ── transfer 0 ─► point ──► this one
//!   snapshot  this one ── transfer point ─► 0 ──► one that holds it alone ──► sync_file
//! ```

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use devpagemap_fence::Outside;
use drm::control::{Device as _, syncobj};
use drm::{Device as _, DriverCapability};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, fcntl_dupfd_cloexec};

use super::node::DrmNode;
use crate::error::{Error, Result, errno_of};
use crate::uapi::syncobj::import_sync_file;

/// A node whose syncobjs have timelines.
#[derive(Clone, Debug)]
pub(crate) struct SyncobjNode(Arc<DrmNode>);

impl SyncobjNode {
    /// The first that there is, one that renders before one that shows.
    ///
    /// # Errors
    /// [`Error::NoSyncobjs`], [`Error::NoDescriptorsLeft`].
    pub(crate) fn find() -> Result<SyncobjNode> {
        let mut why = Vec::new();
        // Rights to render nodes are given to more people.
        for found in DrmNode::all()?.iter().rev() {
            match DrmNode::at(&found.path) {
                Ok(node) if has_timelines(&node) => return Ok(SyncobjNode(Arc::new(node))),
                Ok(node) => why.push(format!("{} of {} has none", found.path.display(), node.driver())),
                Err(error @ Error::NoDescriptorsLeft { .. }) => return Err(error),
                Err(error) => why.push(error.to_string()),
            }
        }
        let why = if why.is_empty() { "there are no DRM nodes".to_owned() } else { why.join("; ") };
        Err(Error::NoSyncobjs { why: why.into() })
    }
}

fn has_timelines(node: &DrmNode) -> bool {
    node.get_driver_capability(DriverCapability::TimelineSyncObj).is_ok_and(|has| has != 0)
}

/// A handle of a syncobj; closed when it is dropped.
pub(crate) struct SyncobjHandle {
    /// Constant.
    node: SyncobjNode,
    /// Constant.
    handle: syncobj::Handle,
    /// What is readable once a point has come, by the point: the kernel takes none of them back, so there is one for all who wait for the
    /// same. Its own lock.
    arrivals: Outside<Vec<(u64, OwnedFd)>>,
}

impl SyncobjHandle {
    /// A syncobj that holds nothing.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn create(node: &SyncobjNode) -> Result<SyncobjHandle> {
        let handle = node.0.create_syncobj(false).map_err(|error| refused("make a syncobj", &error))?;
        Ok(SyncobjHandle::of(node, handle))
    }

    fn of(node: &SyncobjNode, handle: syncobj::Handle) -> SyncobjHandle {
        let arrivals = Outside::new("points to come of a syncobj", Vec::new());
        SyncobjHandle { node: node.clone(), handle, arrivals }
    }

    /// The syncobj behind a descriptor; `None` when that is none.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn open(node: &SyncobjNode, fd: BorrowedFd<'_>) -> Result<Option<SyncobjHandle>> {
        match node.0.fd_to_syncobj(fd, false) {
            Ok(handle) => Ok(Some(SyncobjHandle::of(node, handle))),
            Err(error) if errno_of(&error) == Errno::INVAL => Ok(None),
            Err(error) => Err(refused("open a syncobj", &error)),
        }
    }

    /// A descriptor, for others.
    ///
    /// # Errors
    /// [`Error::NoDescriptorsLeft`].
    pub(crate) fn export(&self) -> Result<OwnedFd> {
        let fd = self.node.0.syncobj_to_fd(self.handle, false);
        fd.map_err(|error| refused("export a syncobj", &error))
    }

    /// Holds the fences of `sync_file` instead of all that it holds.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn hold(&self, sync_file: BorrowedFd<'_>) -> Result<()> {
        import_sync_file(self.node.0.as_fd(), self.handle.into(), sync_file)
            .map_err(|errno| Error::of_descriptor("put a fence into a syncobj", errno))
    }

    /// Has the fences of `sync_file` as its next point.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn add(&self, point: u64, sync_file: BorrowedFd<'_>) -> Result<()> {
        let alone = SyncobjHandle::create(&self.node)?;
        alone.hold(sync_file)?;
        let moved = self.node.0.syncobj_timeline_transfer(alone.handle, self.handle, 0, point);
        moved.map_err(|error| refused("add a point to a syncobj", &error))
    }

    /// Has a point that has signalled as its next.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn signal(&self, point: u64) -> Result<()> {
        let signalled = self.node.0.syncobj_timeline_signal(&[self.handle], &[point]);
        signalled.map_err(|error| refused("signal a point of a syncobj", &error))
    }

    /// The fences of a point, and of all before; of all that it holds, for point 0. `None` when the point has not been submitted.
    ///
    /// # Errors
    /// [`Error::NoDescriptorsLeft`], what the kernel says.
    pub(crate) fn snapshot(&self, point: u64) -> Result<Option<OwnedFd>> {
        let action = "take a fence out of a syncobj";
        let alone = SyncobjHandle::create(&self.node)?;
        match self.node.0.syncobj_timeline_transfer(self.handle, alone.handle, point, 0) {
            Ok(()) => {}
            Err(error) if errno_of(&error) == Errno::INVAL => return Ok(None),
            Err(error) => return Err(refused(action, &error)),
        }
        let file = self.node.0.syncobj_to_fd(alone.handle, true);
        file.map(Some).map_err(|error| refused(action, &error))
    }

    /// An eventfd that is readable once the point has been submitted.
    ///
    /// # Errors
    /// [`Error::NoDescriptorsLeft`]; [`Error::Unsupported`] before Linux 6.6.
    pub(crate) fn arrival(&self, point: u64) -> Result<OwnedFd> {
        let action = "wait for a point of a syncobj";
        let refused_copy = |errno| Error::of_descriptor(action, errno);
        let mut arrivals = self.arrivals.lock();
        arrivals.retain(|(_, event)| !has_come(event.as_fd()));
        if let Some((_, event)) = arrivals.iter().find(|(awaited, _)| *awaited == point) {
            return fcntl_dupfd_cloexec(event, 0).map_err(refused_copy);
        }
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::of_descriptor(action, errno))?;
        match self.node.0.syncobj_eventfd(self.handle, point, event.as_fd(), true) {
            Ok(()) => {
                let copy = fcntl_dupfd_cloexec(&event, 0).map_err(refused_copy);
                arrivals.push((point, event));
                copy
            }
            // So says the kernel of a call that it does not know.
            Err(error) if errno_of(&error) == Errno::INVAL => Err(Error::Unsupported {
                what: "points of a syncobj that are not there yet: the kernel is older than 6.6",
            }),
            Err(error) => Err(refused(action, &error)),
        }
    }

    /// The last point that has signalled, or that has been submitted.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn last(&self, submitted: bool) -> Result<u64> {
        let mut point = [0];
        let asked = self.node.0.syncobj_timeline_query(&[self.handle], &mut point, submitted);
        asked.map(|()| point[0]).map_err(|error| refused("ask how far a syncobj is", &error))
    }

    /// Holds nothing any more.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn clear(&self) -> Result<()> {
        let cleared = self.node.0.syncobj_reset(&[self.handle]);
        cleared.map_err(|error| refused("empty a syncobj", &error))
    }
}

impl Drop for SyncobjHandle {
    fn drop(&mut self) {
        let closed = self.node.0.destroy_syncobj(self.handle);
        debug_assert!(closed.is_ok(), "a handle that is open cannot be closed: {closed:?}");
    }
}

impl fmt::Debug for SyncobjHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SyncobjHandle({} of {:?})", u32::from(self.handle), self.node.0)
    }
}

/// Whether the point of an [arrival](SyncobjHandle::arrival) is there, or was.
pub(crate) fn has_come(arrival: BorrowedFd<'_>) -> bool {
    let mut asked = [PollFd::new(&arrival, PollFlags::IN)];
    // Without an answer it has not, as far as anybody knows.
    poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}

fn refused(action: &'static str, error: &std::io::Error) -> Error {
    Error::of_std(action, 0, error)
}
