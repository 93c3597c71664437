//! Fences that are handed over as descriptors, beside any buffer.

use std::os::fd::OwnedFd;

use devpagemap_fence::{Fence, FenceSet};

use super::dma_buf::KernelSyncFile;
use super::machine::descriptor_of;
use crate::device::Device;
use crate::driver::Driver;
use crate::error::Result;

impl<D: Driver> Device<D> {
    /// A fence that signals when all kernel fences of a `sync_file` have, with the first error among theirs, which names the driver and its
    /// timeline ([`FenceError::Foreign`](crate::FenceError::Foreign)). One that has not signalled after the device's
    /// [`foreign_fence_timeout`](crate::DeviceBuilder::foreign_fence_timeout) fails ([`FenceError::TimedOut`](crate::FenceError::TimedOut)).
    ///
    /// ```no_run
    /// # use devpagemap::{Device, Size, SoftwareGpu};
    /// # fn main() -> devpagemap::Result<()> {
    /// # let device = Device::builder(SoftwareGpu::builder().build()?).vram(Size::mib(16)).build()?;
    /// # let buffer = device.buffer(Size::mib(1)).create()?;
    /// # let fd: std::os::fd::OwnedFd = std::fs::File::open("fence").expect("it is there").into();
    /// let rendered = device.import_sync_file(fd)?;
    /// device.submit().reads(&buffer).after(&rendered).run(|gpu, job| gpu.run(job, |_| Ok(())))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotASyncFile`](crate::Error::NotASyncFile), [`Error::NoDescriptorsLeft`](crate::Error::NoDescriptorsLeft).
    pub fn import_sync_file(&self, sync_file: OwnedFd) -> Result<Fence> {
        self.manager().crossing.fence_of(Box::new(KernelSyncFile::of(sync_file)))
    }

    /// A `sync_file` that signals when all of `fences` have, for another driver or process to wait for. It becomes readable for poll.
    ///
    /// Where vgem is the [source](crate::FenceSource), the kernel signals it after ten seconds, whatever is at work: a descriptor that was
    /// handed out cannot be renewed. That, and an error that could not be told, is counted in [`Stats`](crate::Stats).
    ///
    /// # Errors
    /// [`Error::NoKernelFences`](crate::Error::NoKernelFences), which says why, [`Error::NoDescriptorsLeft`](crate::Error::NoDescriptorsLeft).
    pub fn export_sync_file(&self, fences: &FenceSet) -> Result<OwnedFd> {
        let crossing = &self.manager().crossing;
        let (reserved, file) = crossing.reserve_to_hand_out()?;
        let fd = descriptor_of(&*file)?;
        reserved.arm(fences);
        Ok(fd)
    }
}
