//! The real thing: syncobjs of a DRM node, by their calls.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::dma_buf::KernelSyncFile;
use super::kernel::{FenceInfo, SyncFile, SyncObject};
use crate::backend::drm::{SyncobjHandle, has_come};
use crate::error::Result;

impl SyncObject for SyncobjHandle {
    fn submitted(&self) -> Result<u64> {
        self.last(true)
    }

    fn reached(&self) -> Result<u64> {
        self.last(false)
    }

    fn add(&self, point: u64, fences: &dyn SyncFile) -> Result<()> {
        let file = fences.fd().expect("what goes into a syncobj is a sync_file of the kernel's");
        match point {
            0 => self.hold(file),
            point => SyncobjHandle::add(self, point, file),
        }
    }

    fn signal(&self, point: u64) -> Result<()> {
        SyncobjHandle::signal(self, point)
    }

    fn clear(&self) -> Result<()> {
        SyncobjHandle::clear(self)
    }

    fn snapshot(&self, point: u64) -> Result<Option<Box<dyn SyncFile>>> {
        let file = SyncobjHandle::snapshot(self, point)?;
        Ok(file.map(|file| Box::new(KernelSyncFile::of(file)) as Box<dyn SyncFile>))
    }

    fn arrival(&self, point: u64) -> Result<Box<dyn SyncFile>> {
        SyncobjHandle::arrival(self, point)
            .map(|event| Box::new(Arrival { event, point }) as Box<dyn SyncFile>)
    }

    fn export(&self) -> Result<OwnedFd> {
        SyncobjHandle::export(self)
    }
}

/// An eventfd that the kernel writes to when a point comes.
#[derive(Debug)]
struct Arrival {
    /// Constant.
    event: OwnedFd,
    /// Constant.
    point: u64,
}

impl SyncFile for Arrival {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.event.as_fd())
    }

    fn fences(&self) -> Result<Vec<FenceInfo>> {
        Ok(vec![FenceInfo {
            driver: "syncobj".into(),
            timeline: format!("point {}, which nobody has submitted", self.point),
            ended: has_come(self.event.as_fd()).then_some(Ok(())),
        }])
    }
}
