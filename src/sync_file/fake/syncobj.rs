//! A syncobj of the kernel that is made up.

#[cfg(not(any(loom, shuttle)))]
use std::os::fd::OwnedFd;
use std::sync::Arc;

#[cfg(not(any(loom, shuttle)))]
use super::FakeFence;
use super::{FakeFile, FakeKernel, as_fake};
use crate::error::Result;
use crate::sync_file::kernel::{SyncFile, SyncObject};

/// One point, and the fences in it.
type Point = (u64, Vec<usize>);

/// What a syncobj holds.
#[derive(Debug, Default)]
pub(in crate::sync_file) struct State {
    /// In the order in which they came.
    points: Vec<Point>,
    /// Fences that signal when such a point comes.
    awaited: Vec<(u64, usize)>,
}

/// A reference to a syncobj.
#[derive(Clone, Debug)]
pub(in crate::sync_file) struct FakeSyncobj {
    kernel: Arc<FakeKernel>,
    index: usize,
}

impl FakeSyncobj {
    pub(super) fn new(kernel: Arc<FakeKernel>, index: usize) -> FakeSyncobj {
        FakeSyncobj { kernel, index }
    }

    /// The points that it was given, in the order in which they came.
    pub(in crate::sync_file) fn came(&self) -> Vec<u64> {
        self.kernel.state.lock().syncobjs[self.index].points.iter().map(|(point, _)| *point).collect()
    }

    /// Somebody else adds a point.
    #[cfg(not(any(loom, shuttle)))]
    pub(in crate::sync_file) fn attach(&self, point: u64, fence: &FakeFence) {
        self.comes(point, vec![fence.point]);
    }

    fn comes(&self, point: u64, fences: Vec<usize>) {
        let arrived: Vec<usize> = {
            let mut state = self.kernel.state.lock();
            let syncobj = &mut state.syncobjs[self.index];
            if point == 0 {
                syncobj.points.clear();
            }
            syncobj.points.push((point, fences));
            syncobj.awaited.extract_if(.., |(wanted, _)| *wanted <= point).map(|(_, fence)| fence).collect()
        };
        for fence in arrived {
            self.kernel.end(fence, Ok(()));
        }
    }

    fn call(&self) -> Result<()> {
        self.kernel.call(&mut self.kernel.state.lock())
    }
}

impl SyncObject for FakeSyncobj {
    fn submitted(&self) -> Result<u64> {
        self.call()?;
        Ok(self.came().into_iter().max().unwrap_or(0))
    }

    #[cfg(not(any(loom, shuttle)))]
    fn reached(&self) -> Result<u64> {
        self.call()?;
        let state = self.kernel.state.lock();
        let points = state.syncobjs[self.index].points.iter();
        let over = points.take_while(|(_, fences)| state.are_over(fences));
        Ok(over.map(|(point, _)| *point).max().unwrap_or(0))
    }

    fn add(&self, point: u64, fences: &dyn SyncFile) -> Result<()> {
        self.call()?;
        self.comes(point, as_fake(fences).points.clone());
        Ok(())
    }

    fn signal(&self, point: u64) -> Result<()> {
        self.call()?;
        self.comes(point, Vec::new());
        Ok(())
    }

    #[cfg(not(any(loom, shuttle)))]
    fn clear(&self) -> Result<()> {
        self.call()?;
        self.kernel.state.lock().syncobjs[self.index].points.clear();
        Ok(())
    }

    fn snapshot(&self, point: u64) -> Result<Option<Box<dyn SyncFile>>> {
        self.call()?;
        let state = self.kernel.state.lock();
        let points = &state.syncobjs[self.index].points;
        let Some(at) = points.iter().position(|(known, _)| *known >= point) else { return Ok(None) };
        let last = if point == 0 { points.len() } else { at + 1 };
        let fences = points[..last].iter().flat_map(|(_, fences)| fences.clone()).collect();
        Ok(Some(Box::new(FakeFile { kernel: self.kernel.clone(), points: fences })))
    }

    fn arrival(&self, point: u64) -> Result<Box<dyn SyncFile>> {
        self.call()?;
        let fence = self.kernel.point("syncobj", "a point that is not there", None);
        let is_there = {
            let mut state = self.kernel.state.lock();
            let syncobj = &mut state.syncobjs[self.index];
            let is_there = syncobj.points.iter().any(|(known, _)| *known >= point);
            if !is_there {
                syncobj.awaited.push((point, fence));
            }
            is_there
        };
        if is_there {
            self.kernel.end(fence, Ok(()));
        }
        Ok(Box::new(FakeFile { kernel: self.kernel.clone(), points: vec![fence] }))
    }

    #[cfg(not(any(loom, shuttle)))]
    fn export(&self) -> Result<OwnedFd> {
        Err(crate::Error::Unsupported { what: "descriptors of what is made up" })
    }
}
