//! CPU maps: a buffer that stays put where the CPU sees it.

use devpagemap_fence::{levels, lockdep};

use crate::bo::{Buffer, CpuWish};
use crate::error::Result;
use crate::region::Pin;
use crate::stats::Counters;

/// A buffer mapped for the CPU. While one exists, a buffer in visible VRAM or in GTT is pinned there. One in System, which the
/// GPU cannot use, still moves when a submission needs it; the map reads and writes it wherever it is.
///
/// A [write-combined](crate::BufferBuilder::write_combined) buffer was brought into the visible part of VRAM where its placement
/// allows that; what could not be had is told by [`CpuMap::fell_back`]. Any other is in system memory.
#[derive(Debug)]
pub struct CpuMap {
    buffer: Buffer,
    pin: Option<Pin>,
    fell_back: Option<&'static str>,
}

impl Buffer {
    /// Maps the buffer for the CPU, and waits until its bytes have arrived.
    ///
    /// # Errors
    /// [`Error::Pinned`] when it is pinned where the CPU cannot see it, [`Error::FenceFailed`] when its bytes are
    /// lost, [`Error::Exhausted`] when neither visible VRAM nor system memory can be had.
    pub fn map(&self) -> Result<CpuMap> {
        let manager = &self.0.manager;
        let wish = CpuWish::whole(&self.0);
        let (pin, fell_back) = manager.transact(std::slice::from_ref(&self.0), |transaction| {
            let slot = transaction.member(0);
            let reached = transaction.make_reachable(slot, &wish)?;
            transaction.touch_members();
            Ok((transaction.pin(slot), reached.fell_back))
        })?;
        Counters::count(&manager.counters.cpu_maps);
        let map = CpuMap { buffer: self.clone(), pin, fell_back };
        let _submitters_business = manager.wait(&self.fences());
        self.0.reservation.lock(&mut devpagemap_fence::Held::enter()).check_not_lost()?;
        Ok(map)
    }
}

impl CpuMap {
    /// Why the bytes are in system memory although the placement wanted visible VRAM; `None` when they are where it wanted.
    pub fn fell_back(&self) -> Option<&str> {
        self.fell_back
    }

    /// The mapped buffer.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Reads through the map, after all work that writes the buffer.
    ///
    /// # Errors
    /// As [`Buffer::read_at`].
    pub fn read(&self, offset_bytes: u64, into: &mut [u8]) -> Result<()> {
        self.buffer.read_at(offset_bytes, into)
    }

    /// Writes through the map, after all work that uses the buffer.
    ///
    /// # Errors
    /// As [`Buffer::write_at`].
    pub fn write(&self, offset_bytes: u64, from: &[u8]) -> Result<()> {
        self.buffer.write_at(offset_bytes, from)
    }
}

impl Drop for CpuMap {
    fn drop(&mut self) {
        lockdep::might_lock::<levels::Region>("VRAM region");
        if let Some(pin) = self.pin.take() {
            self.buffer.0.manager.unpin(pin);
        }
    }
}
