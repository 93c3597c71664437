//! The dma-buf as a buffer of a device of ours.

use crate::error::{Error, Result};
use crate::handover::messages::Comparison;
use crate::replay::pattern::Pattern;
use devpagemap::{Buffer, Device, DmaBuf, Size, SoftwareGpu};

/// Bytes that are looked at at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// The exporter's pages, in a buffer.
pub struct View {
    buffer: Buffer,
    /// Its device.
    _device: Device<SoftwareGpu>,
}

impl View {
    /// Maps them.
    ///
    /// # Errors
    /// When the system does not map them.
    pub fn of(dma_buf: DmaBuf) -> Result<View> {
        let make = || {
            let gpu = SoftwareGpu::builder().build()?;
            let device = Device::builder(gpu).vram(Size::mib(1)).build()?;
            let buffer = device.import(dma_buf).name("devpagemap import").create()?;
            Ok(View { buffer, _device: device })
        };
        make().map_err(|source| Error::Device { source })
    }

    /// Compares every byte.
    ///
    /// # Errors
    /// When what the kernel had them wait for failed.
    pub fn compare(&self, pattern: Pattern) -> devpagemap::Result<Comparison> {
        let mut found = Comparison::default();
        let mut piece = vec![0; PIECE_BYTES as usize];
        for (offset, len) in self.pieces() {
            self.buffer.read_at(offset, &mut piece[..len])?;
            found.add(offset, &piece[..len], pattern);
        }
        Ok(found)
    }

    /// Writes every byte.
    ///
    /// # Errors
    /// As [`View::compare`].
    pub fn fill(&self, pattern: Pattern) -> devpagemap::Result<()> {
        let mut piece = vec![0; PIECE_BYTES as usize];
        for (offset, len) in self.pieces() {
            pattern.fill(offset, &mut piece[..len]);
            self.buffer.write_at(offset, &piece[..len])?;
        }
        Ok(())
    }

    fn pieces(&self) -> impl Iterator<Item = (u64, usize)> + use<> {
        let size_bytes = self.buffer.size().as_bytes();
        (0..size_bytes)
            .step_by(PIECE_BYTES as usize)
            .map(move |offset| (offset, PIECE_BYTES.min(size_bytes - offset) as usize))
    }
}
