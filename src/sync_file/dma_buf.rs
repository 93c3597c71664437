//! The real thing: a dma-buf's reservation object, and sync_files, by their calls.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::fstat;

use super::kernel::{ReservationObject, SyncFile};
use crate::backend::DmaBuf;
use crate::error::{Error, Result};
use crate::submit::Access;
use crate::uapi::dma_buf::{Use, export_sync_file, import_sync_file};

/// A sync_file of the kernel's.
#[derive(Debug)]
pub(super) struct KernelSyncFile(OwnedFd);

impl SyncFile for KernelSyncFile {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

/// The reservation object of a dma-buf.
#[derive(Debug)]
pub(super) struct DmaBufFences {
    /// Constant.
    dma_buf: Arc<DmaBuf>,
    /// The number of its inode, which no two dma-bufs have since the machine started. Constant.
    key: u64,
}

impl DmaBufFences {
    pub(super) fn new(dma_buf: Arc<DmaBuf>) -> DmaBufFences {
        let key = fstat(dma_buf.as_fd()).map_or(0, |status| status.st_ino);
        DmaBufFences { dma_buf, key }
    }

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
        self.key
    }

    fn export(&self, access: Access) -> Result<Option<Box<dyn SyncFile>>> {
        if self.is_idle(access) {
            return Ok(None);
        }
        let fences = export_sync_file(self.dma_buf.as_fd(), as_use(access))
            .map_err(|errno| Error::io("ask for the fences of a dma-buf", self.dma_buf.len_bytes(), errno))?;
        Ok(Some(Box::new(KernelSyncFile(fences))))
    }

    fn import(&self, fences: &dyn SyncFile, access: Access) -> Result<()> {
        let fd = fences.fd().expect("what is imported into a dma-buf is a sync_file of the kernel's");
        import_sync_file(self.dma_buf.as_fd(), fd, as_use(access))
            .map_err(|errno| Error::io("add a fence to a dma-buf", self.dma_buf.len_bytes(), errno))
    }
}

fn as_use(access: Access) -> Use {
    match access {
        Access::Read => Use::Read,
        Access::Write => Use::Write,
    }
}
