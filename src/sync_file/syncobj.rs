//! Syncobjs: timelines, or single fences, that processes and devices share by descriptor.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use devpagemap_fence::{Fence, FenceSet};

use super::points::Points;
use crate::device::Device;
use crate::driver::Driver;
use crate::error::Result;

/// A holder of kernel fences that processes, devices and APIs share: what a timeline semaphore of Vulkan is to the kernel.
///
/// It is used in one of two ways. As a *timeline* it has points that go up, and each stands for all work up to it. Without points it holds
/// what was put there last ([`replace`](Syncobj::replace), [`fence`](Syncobj::fence)). Clones are the same syncobj, and fences that are outstanding keep
/// it.
///
/// ```no_run
/// # use devpagemap::{Device, FenceSet, Size, SoftwareGpu};
/// # fn main() -> devpagemap::Result<()> {
/// # let device = Device::builder(SoftwareGpu::builder().build()?).vram(Size::mib(16)).build()?;
/// # let buffer = device.buffer(Size::mib(1)).create()?;
/// # let from_elsewhere: std::os::fd::OwnedFd = std::fs::File::open("syncobj").expect("it is there").into();
/// let frames = device.import_syncobj(from_elsewhere)?;
/// // Draws once point 1 has come and signalled, and is point 2 for whoever shows what was drawn.
/// let drawn = device.submit().writes(&buffer).after(&frames.fence_at(1)?).run(|gpu, job| gpu.run(job, |_| Ok(())))?;
/// frames.signal_after(2, &FenceSet::from(drawn))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Syncobj {
    points: Arc<Points>,
}

impl<D: Driver> Device<D> {
    /// A syncobj that holds nothing, on the first DRM node of this machine that has them with timelines.
    ///
    /// # Errors
    /// [`Error::NoSyncobjs`](crate::Error::NoSyncobjs), which says what was looked at,
    /// [`Error::NoDescriptorsLeft`](crate::Error::NoDescriptorsLeft), what the kernel says.
    pub fn create_syncobj(&self) -> Result<Syncobj> {
        let crossing = &self.manager().crossing;
        let theirs = crossing.kernel.create_syncobj()?;
        Ok(Syncobj { points: Points::new(crossing.clone(), theirs) })
    }

    /// The syncobj behind a descriptor of somebody else's, of whatever device it came from.
    ///
    /// # Errors
    /// [`Error::NotASyncobj`](crate::Error::NotASyncobj), and as [`create_syncobj`](Device::create_syncobj).
    pub fn import_syncobj(&self, syncobj: OwnedFd) -> Result<Syncobj> {
        let crossing = &self.manager().crossing;
        let theirs = crossing.kernel.open_syncobj(syncobj.as_fd())?;
        Ok(Syncobj { points: Points::new(crossing.clone(), theirs) })
    }
}

impl Syncobj {
    /// A descriptor of it, for another process or API.
    ///
    /// # Errors
    /// [`Error::NoDescriptorsLeft`](crate::Error::NoDescriptorsLeft).
    pub fn export(&self) -> Result<OwnedFd> {
        self.points.theirs.export()
    }

    /// Adds a point, which signals when all of `fences` have. It is there at once, so that other drivers' jobs can wait for it.
    ///
    /// Where vgem is the [source](crate::FenceSource), the kernel signals it after ten seconds, whatever is at work: what others have may
    /// not be renewed. For work that may take longer there is [`signal_after`](Syncobj::signal_after).
    ///
    /// # Errors
    /// [`Error::NoKernelFences`](crate::Error::NoKernelFences); [`Error::PointOutOfOrder`](crate::Error::PointOutOfOrder) for one that is not behind
    /// all others, or before one of `signal_after` has come; [`Error::NoDescriptorsLeft`](crate::Error::NoDescriptorsLeft), what the kernel says.
    pub fn attach(&self, point: u64, fences: &FenceSet) -> Result<()> {
        match point {
            0 => self.points.refuse_zero(),
            point => self.points.attach(point, fences),
        }
    }

    /// Adds a point once all of `fences` have signalled, by work that takes as long as it takes. Until then it is not there: who waits
    /// for it has to be willing to wait for its coming, as all timeline waits of Vulkan are.
    ///
    /// Needs no source of kernel fences. That the work failed is not told, but counted in [`Stats`](crate::Stats).
    ///
    /// # Errors
    /// [`Error::PointOutOfOrder`](crate::Error::PointOutOfOrder), what the kernel says.
    pub fn signal_after(&self, point: u64, fences: &FenceSet) -> Result<()> {
        self.points.signal_after(point, fences)
    }

    /// Adds a point that has signalled.
    ///
    /// # Errors
    /// [`Error::PointOutOfOrder`](crate::Error::PointOutOfOrder), what the kernel says.
    pub fn signal(&self, point: u64) -> Result<()> {
        self.points.signal(point)
    }

    /// A fence that signals when that point has, with the first error among the kernel fences that it stands for.
    ///
    /// A point that is not there yet is waited for. One that does not come, or does not signal, fails in time: each may take others the
    /// device's [`foreign_fence_timeout`](crate::DeviceBuilder::foreign_fence_timeout). Work in it that was promised through this syncobj, or a clone, may
    /// take as long as it likes, also when that very point is promised later. What is found is kept, whatever becomes of the syncobj.
    ///
    /// # Errors
    /// [`Error::PointOutOfOrder`](crate::Error::PointOutOfOrder) for point 0, [`Error::NoDescriptorsLeft`](crate::Error::NoDescriptorsLeft),
    /// [`Error::Unsupported`](crate::Error::Unsupported) when the kernel (before 6.6) cannot say when a point comes, what the kernel says.
    pub fn fence_at(&self, point: u64) -> Result<Fence> {
        match point {
            0 => self.points.refuse_zero(),
            point => self.points.fence_at(point),
        }
    }

    /// The last point that has signalled.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn reached(&self) -> Result<u64> {
        self.points.theirs.reached()
    }

    /// The last point that is there.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn submitted(&self) -> Result<u64> {
        self.points.theirs.submitted()
    }

    /// Holds one fence, which signals when all of `fences` have, and nothing of what it held before.
    ///
    /// # Errors
    /// As [`attach`](Syncobj::attach).
    pub fn replace(&self, fences: &FenceSet) -> Result<()> {
        self.points.attach(0, fences)
    }

    /// A fence that signals when all has that it holds now; if that is nothing, all that it holds next.
    ///
    /// # Errors
    /// As [`fence_at`](Syncobj::fence_at).
    pub fn fence(&self) -> Result<Fence> {
        self.points.fence_at(0)
    }

    /// Holds nothing any more.
    ///
    /// # Errors
    /// [`Error::PointOutOfOrder`](crate::Error::PointOutOfOrder) while a point of [`signal_after`](Syncobj::signal_after) has not come, what the
    /// kernel says.
    pub fn reset(&self) -> Result<()> {
        self.points.clear()
    }
}
