//! Jobs of the software GPU that write and check patterns.

use devpagemap::{Buffer, Device, Driver, ExtentList, Fence, JobMemory, Result, SoftwareGpu};

use super::pattern;

/// A driver whose jobs run on a software GPU.
pub trait RunsJobs: Driver {
    fn gpu(&self) -> &SoftwareGpu;
}

impl RunsJobs for SoftwareGpu {
    fn gpu(&self) -> &SoftwareGpu {
        self
    }
}

/// A job that fills the buffer with the pattern of `seed`.
pub fn fill<D: RunsJobs>(device: &Device<D>, buffer: &Buffer, seed: u64) -> Result<Fence> {
    device.submit().writes(buffer).run(|driver, job| {
        // Only what was asked for, not what fills up the last page.
        let extents = job.extents(buffer).slice(0, buffer.size().as_bytes());
        driver.gpu().run(job, move |memory| {
            write_pattern(memory, &extents, seed);
            Ok(())
        })
    })
}

/// A job that fails when the buffer does not hold the pattern of `seed`.
pub fn verify<D: RunsJobs>(device: &Device<D>, buffer: &Buffer, seed: u64) -> Result<Fence> {
    device.submit().reads(buffer).run(|driver, job| {
        let extents = job.extents(buffer).slice(0, buffer.size().as_bytes());
        driver.gpu().run(job, move |memory| check_pattern(memory, &extents, seed))
    })
}

/// What a job does to fill a buffer.
pub fn write_pattern(memory: &JobMemory, extents: &ExtentList, seed: u64) {
    memory.write(extents, |offset, bytes| pattern::write(seed, offset, bytes));
}

/// What a job does to check a buffer.
///
/// # Errors
/// The first byte that is wrong.
pub fn check_pattern(memory: &JobMemory, extents: &ExtentList, seed: u64) -> Result<(), String> {
    let mut verdict = Ok(());
    memory.read(extents, |offset, bytes| {
        if verdict.is_ok() {
            verdict = pattern::check(seed, offset, bytes);
        }
    });
    verdict
}
