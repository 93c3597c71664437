//! The buffer that is exported, on a software GPU of its own.

use crate::error::{Error, Result};
use crate::handover::messages::Comparison;
use crate::replay::pattern::{Pattern, Wrong};
use devpagemap::{Buffer, Device, Fence, Place, Size, SoftwareGpu};
use std::sync::{Arc, Mutex, PoisonError};

/// Video memory is given in whole pieces of this size.
const GRAIN_BYTES: u64 = 1 << 20;

/// The device, and its one buffer.
pub struct Pages {
    device: Device<SoftwareGpu>,
    /// The buffer.
    pub buffer: Buffer,
}

impl Pages {
    /// A buffer in video memory that is as large as it has to be.
    ///
    /// # Errors
    /// When there is not so much memory.
    pub fn new(size_bytes: u64) -> Result<Pages> {
        let make = || {
            let gpu = SoftwareGpu::builder().build()?;
            let vram = Size::bytes(size_bytes.next_multiple_of(GRAIN_BYTES));
            let gtt = Size::bytes(vram.as_bytes().saturating_mul(2));
            let device = Device::builder(gpu).vram(vram).gtt(gtt).build()?;
            let name = format!("devpagemap export {}", std::process::id());
            let buffer = device.buffer(Size::bytes(size_bytes)).name(name).prefer(Place::VRAM).create()?;
            Ok(Pages { device, buffer })
        };
        make().map_err(|source| Error::Device { source })
    }

    /// Queues a job that writes every byte. Nothing waits for it here.
    ///
    /// # Errors
    /// When it cannot be queued.
    pub fn fill(&self, pattern: Pattern) -> devpagemap::Result<Fence> {
        let buffer = &self.buffer;
        self.device.submit().writes(buffer).run(|gpu, job| {
            let extents = job.extents(buffer);
            gpu.run(job, move |memory| {
                memory.write(&extents, |offset, bytes| pattern.fill(offset, bytes));
                Ok(())
            })
        })
    }

    /// Has a job compare every byte, after whatever others do with them, and waits for it.
    ///
    /// # Errors
    /// When it cannot be queued, or what it waited for failed.
    pub fn compare(&self, pattern: Pattern) -> devpagemap::Result<Comparison> {
        let buffer = &self.buffer;
        let found = Arc::new(Mutex::new(Comparison::default()));
        let told = found.clone();
        let done = self.device.submit().reads(buffer).run(|gpu, job| {
            let extents = job.extents(buffer);
            gpu.run(job, move |memory| {
                let mut found = told.lock().unwrap_or_else(PoisonError::into_inner);
                memory.read(&extents, |offset, bytes| found.add(offset, bytes, pattern));
                Ok(())
            })
        })?;
        done.wait()?;
        let found = *found.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(found)
    }
}

impl Comparison {
    /// Compares the bytes at `offset`, and remembers the first wrong ones of all.
    pub fn add(&mut self, offset: u64, bytes: &[u8], pattern: Pattern) {
        self.bytes += bytes.len() as u64;
        let first = |wrong: &Wrong| self.wrong.is_none_or(|known| wrong.offset_bytes < known.offset_bytes);
        if let Some(wrong) = pattern.check(offset, bytes).err().filter(first) {
            self.wrong = Some(wrong);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::messages::bytes_of;

    #[test]
    fn what_a_job_writes_a_job_finds_and_a_changed_byte_too() {
        let pages = Pages::new(3 * 4096).unwrap();
        pages.fill(bytes_of(7)).unwrap();
        assert_eq!(pages.compare(bytes_of(7)).unwrap(), Comparison { bytes: 3 * 4096, wrong: None });
        let mut byte = [0];
        pages.buffer.read_at(8195, &mut byte).unwrap();
        pages.buffer.write_at(8195, &[!byte[0]]).unwrap();
        let wrong = pages.compare(bytes_of(7)).unwrap().wrong.expect("a byte is wrong");
        assert_eq!(wrong.offset_bytes, 8192);
        assert_ne!(wrong.expected, wrong.found);
    }
}
