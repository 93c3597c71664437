//! Dumb buffers: memory that any driver with a screen makes, and vgem, which has none.

use std::os::fd::AsFd;
use std::sync::Arc;

use devpagemap_allocator::PAGE_BYTES;
use drm::buffer::{Buffer as _, DrmFourcc};
use drm::control::Device as _;

use super::node::DrmNode;
use super::prime::GemHandle;
use crate::error::{Error, Result};
use crate::uapi;

/// The side of a buffer whose shape nobody looks at: a line of so many pixels is a page, so no driver pads it.
const PIXELS_PER_LINE: u32 = PAGE_BYTES as u32 / 4;

/// The most a dumb buffer has: the kernel multiplies its sides in 32 bits.
pub(crate) const MAX_BYTES: u64 = (u32::MAX as u64 / PAGE_BYTES) * PAGE_BYTES;

impl GemHandle {
    /// A new buffer of whole pages, zeroed. Only on a primary node.
    ///
    /// # Errors
    /// [`Error::InvalidSize`] for what is not whole pages below 4 GiB, [`Error::Io`] when the driver makes none, or not of this size.
    pub(crate) fn dumb(node: &Arc<DrmNode>, len_bytes: u64) -> Result<GemHandle> {
        let invalid = |why| Error::InvalidSize { what: "a dumb buffer", bytes: len_bytes, why };
        if len_bytes == 0 || len_bytes > MAX_BYTES || !len_bytes.is_multiple_of(PAGE_BYTES) {
            return Err(invalid("are not whole pages below 4 GiB"));
        }
        let lines = (len_bytes / PAGE_BYTES) as u32;
        let mut pitch_bytes = 0;
        let handle = GemHandle::from_kernel(node, |node| {
            // Any format: the kernel is told how many bits a pixel has, and virtio-gpu takes 32 and nothing else.
            let made = node.create_dumb_buffer((PIXELS_PER_LINE, lines), DrmFourcc::Xrgb8888, 32);
            let made = made.map_err(|error| Error::of_std("make a dumb buffer", len_bytes, &error))?;
            pitch_bytes = made.pitch();
            Ok(made.handle())
        })?;
        if u64::from(pitch_bytes) == PAGE_BYTES {
            Ok(handle)
        } else {
            Err(invalid("were padded by the driver"))
        }
    }

    /// Where on the node it can be mapped.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn dumb_offset(&self) -> Result<u64> {
        uapi::dumb::map_offset(self.node().as_fd(), self.number())
            .map_err(|errno| Error::io("map a dumb buffer", 0, errno))
    }
}
