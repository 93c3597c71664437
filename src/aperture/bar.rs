//! The BAR: its two shapes, and addresses in it.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use devpagemap_allocator::PAGE_BYTES;

use crate::error::{Error, Result};
use crate::size::Size;

/// What a device's BAR shows of its VRAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bar {
    /// The first so many bytes of VRAM, always. An offset in the BAR is the same offset in VRAM.
    Prefix(Size),
    /// Nothing by itself. Each page of a BAR of this size shows the page of VRAM that the driver programs it to show, so any
    /// page of VRAM can be shown, but not all at once.
    Windows(Size),
}

impl Bar {
    /// The size of the BAR.
    pub const fn size(self) -> Size {
        match self {
            Bar::Prefix(size) | Bar::Windows(size) => size,
        }
    }

    /// How much of VRAM is shown without programming anything.
    pub const fn visible(self) -> Size {
        match self {
            Bar::Prefix(size) => size,
            Bar::Windows(_) => Size::bytes(0),
        }
    }

    /// # Errors
    /// [`Error::InvalidSize`] for a BAR that is larger than VRAM, not whole pages, or has no page for a window.
    pub(crate) fn check(self, vram_bytes: u64) -> Result<()> {
        let (what, least_bytes) = match self {
            Bar::Prefix(_) => ("the visible part of VRAM", 0),
            Bar::Windows(_) => ("a BAR of windows", PAGE_BYTES),
        };
        let bytes = self.size().as_bytes();
        let error = |why| Err(Error::InvalidSize { what, bytes, why });
        if bytes > vram_bytes {
            return error("is more than there is VRAM");
        }
        if bytes < least_bytes {
            return error("is nothing");
        }
        if !bytes.is_multiple_of(PAGE_BYTES) {
            return error("is not a number of whole 4096-byte pages");
        }
        Ok(())
    }
}

/// A byte offset in a device's BAR: what a peer adds to the BAR's bus address. Not an offset in VRAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BarAddr(pub u64);

impl BarAddr {
    pub(crate) fn add(self, bytes: u64) -> BarAddr {
        BarAddr(self.0 + bytes)
    }
}

impl fmt::Display for BarAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bar:{:#x}", self.0)
    }
}

/// A contiguous run of bytes in a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BarExtent {
    /// The first byte.
    pub addr: BarAddr,
    /// How many bytes.
    pub len_bytes: u64,
}

/// Memory behind a part of a BAR, as the CPU can have it.
#[derive(Clone, Copy, Debug)]
pub struct BarMemory<'a> {
    /// What can be mapped: the resource file of a PCI device, or what stands in for it. `None`: these bytes have no second address.
    pub file: Option<BorrowedFd<'a>>,
    /// Where in `file` the memory begins.
    pub offset_bytes: u64,
    /// Where the driver has mapped it.
    pub start: NonNull<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_refused_by_shape_when_it_cannot_be() {
        let check = |bar: Bar| bar.check(1 << 20).map_err(|error| error.to_string());
        assert_eq!(check(Bar::Prefix(Size::bytes(0))), Ok(()), "a device may have none that is visible");
        assert!(check(Bar::Windows(Size::bytes(0))).is_err_and(|why| why.contains("a BAR of windows")));
        assert!(check(Bar::Windows(Size::mib(2))).is_err_and(|why| why.contains("more than there is VRAM")));
        assert!(check(Bar::Prefix(Size::bytes(5000))).is_err_and(|why| why.contains("5000")));
    }

    #[test]
    fn only_a_prefix_is_visible_by_itself() {
        assert_eq!(Bar::Prefix(Size::mib(1)).visible(), Size::mib(1));
        assert_eq!(Bar::Windows(Size::mib(1)).visible(), Size::bytes(0));
    }
}
