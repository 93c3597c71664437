//! The real thing: a dma-buf's reservation object, and sync_files, by their calls.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::kernel::{FenceInfo, ReservationObject, SyncFile};
use crate::backend::DmaBuf;
use crate::error::{Error, Result};
use crate::submit::Access;
use crate::uapi::dma_buf::{Use, export_sync_file, import_sync_file};
use crate::uapi::sync_file::{Status, fences};

/// A sync_file of the kernel's.
#[derive(Debug)]
pub(super) struct KernelSyncFile(OwnedFd);

impl KernelSyncFile {
    /// Around what the kernel has just made, or what somebody says is one.
    pub(super) fn of(fd: OwnedFd) -> KernelSyncFile {
        KernelSyncFile(fd)
    }
}

impl SyncFile for KernelSyncFile {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }

    fn fences(&self) -> Result<Vec<FenceInfo>> {
        let told = fences(self.0.as_fd()).map_err(|errno| match errno {
            // So says any file that does not know the call.
            Errno::NOTTY | Errno::INVAL => Error::NotASyncFile { fd: self.0.as_raw_fd() },
            errno => Error::of_descriptor("ask how far a kernel fence is", errno),
        })?;
        let ended = |status| match status {
            Status::Active => None,
            Status::Signalled => Some(Ok(())),
            Status::Failed(errno) => Some(Err(errno.raw_os_error())),
        };
        let infos = told.into_iter().map(|fence| FenceInfo {
            driver: fence.driver,
            timeline: fence.timeline,
            ended: ended(fence.status),
        });
        Ok(infos.collect())
    }
}

/// The reservation object of a dma-buf.
#[derive(Debug)]
pub(super) struct DmaBufFences {
    /// Constant.
    dma_buf: Arc<DmaBuf>,
}

impl DmaBufFences {
    pub(super) fn new(dma_buf: Arc<DmaBuf>) -> DmaBufFences {
        DmaBufFences { dma_buf }
    }

    /// One call, and no descriptor: most often there is nothing to wait for. A no may be somebody else's poll at the same time.
    fn is_idle(&self, access: Access) -> bool {
        let ready = match access {
            Access::Read => PollFlags::IN,
            Access::Write => PollFlags::OUT,
        };
        let mut asked = [PollFd::new(&*self.dma_buf, ready)];
        // An answer that does not come is no answer: who asks further is told what is wrong.
        poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok()
            && asked[0].revents().contains(ready)
    }
}

impl ReservationObject for DmaBufFences {
    fn key(&self) -> u64 {
        self.dma_buf.inode()
    }

    fn export(&self, access: Access) -> Result<Option<Box<dyn SyncFile>>> {
        if self.is_idle(access) {
            return Ok(None);
        }
        let fences = export_sync_file(self.dma_buf.as_fd(), as_use(access))
            .map_err(|errno| self.refused("ask for the fences of a dma-buf", errno))?;
        Ok(Some(Box::new(KernelSyncFile(fences))))
    }

    fn import(&self, fences: &dyn SyncFile, access: Access) -> Result<()> {
        let fd = fences.fd().expect("what is imported into a dma-buf is a sync_file of the kernel's");
        import_sync_file(self.dma_buf.as_fd(), fd, as_use(access))
            .map_err(|errno| self.refused("add a fence to a dma-buf", errno))
    }
}

impl DmaBufFences {
    fn refused(&self, action: &'static str, errno: Errno) -> Error {
        match errno {
            Errno::NOTTY => {
                Error::Unsupported { what: "fences of a dma-buf as sync_files: the kernel is older than 6.0" }
            }
            errno => Error::io(action, self.dma_buf.len_bytes(), errno),
        }
    }
}

fn as_use(access: Access) -> Use {
    match access {
        Access::Read => Use::Read,
        Access::Write => Use::Write,
    }
}
