//! Bytes and the pages that hold them, in one place.

use std::ops::Range;

use devpagemap_allocator::PAGE_BYTES;

/// The pages that hold a byte of `bytes`.
pub(crate) fn pages_of(bytes: &Range<u64>) -> Range<u64> {
    bytes.start / PAGE_BYTES..bytes.end.div_ceil(PAGE_BYTES)
}

/// The bytes of whole pages.
pub(crate) fn bytes_of(pages: &Range<u64>) -> Range<u64> {
    pages.start * PAGE_BYTES..pages.end * PAGE_BYTES
}

/// How many pages so many bytes are.
pub(crate) fn page_count(bytes: &Range<u64>) -> u64 {
    let pages = pages_of(bytes);
    pages.end - pages.start
}

/// `len_bytes` in whole pages; `None` when that overflows.
pub(crate) fn round_up_to_pages(len_bytes: u64) -> Option<u64> {
    len_bytes.checked_next_multiple_of(PAGE_BYTES)
}
