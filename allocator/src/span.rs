//! A piece of a region, and the page it is counted in.

/// The unit of everything in this crate: 4 KiB, whatever the host's page size.
pub const PAGE_BYTES: u64 = 4096;

/// log2 of [`PAGE_BYTES`].
pub(crate) const PAGE_SHIFT: u32 = PAGE_BYTES.trailing_zeros();

/// A page-aligned range of a region, in bytes from the region's start.
///
/// ```
/// use devpagemap_allocator::Span;
///
/// let span = Span { start_bytes: 0x10_0000, len_bytes: 0x4000 };
/// assert_eq!(span.end_bytes(), 0x10_4000);
/// assert_eq!(span.to_string(), "0x100000+0x4000");
/// ```
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// Where it begins, in bytes from the region's start.
    pub start_bytes: u64,
    /// How long it is, in bytes.
    pub len_bytes: u64,
}

impl Span {
    /// The first byte after it; saturates at `u64::MAX` for a span that no region can hold.
    pub const fn end_bytes(&self) -> u64 {
        self.start_bytes.saturating_add(self.len_bytes)
    }

    pub(crate) const fn of_pages(start: u64, end: u64) -> Span {
        Span { start_bytes: start << PAGE_SHIFT, len_bytes: (end - start) << PAGE_SHIFT }
    }
}

impl core::fmt::Display for Span {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#x}+{:#x}", self.start_bytes, self.len_bytes)
    }
}
