//! Which addresses of this process are CPU mappings, of whatever device.
//!
//! Whoever copies with a reservation held must not touch one: the touch may sleep until that very reservation is free. So a slice
//! that overlaps one is copied by way of ordinary memory.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use devpagemap_fence::Outside;

/// Length by first address; they do not overlap.
static RANGES: LazyLock<Outside<BTreeMap<usize, usize>>> =
    LazyLock::new(|| Outside::new("own CPU ranges", BTreeMap::new()));

/// How many there are. Who has no mapping asks nobody.
static COUNT: AtomicUsize = AtomicUsize::new(0);

pub(crate) fn add(start: usize, len: usize) {
    RANGES.lock().insert(start, len);
    COUNT.fetch_add(1, Ordering::Release);
}

pub(crate) fn remove(start: usize) {
    RANGES.lock().remove(&start);
    COUNT.fetch_sub(1, Ordering::Release);
}

/// Whether one of these addresses belongs to a CPU mapping. A caller's own slice cannot become one while it is borrowed.
pub(crate) fn overlap(slice: *const u8, len: usize) -> bool {
    if COUNT.load(Ordering::Acquire) == 0 {
        return false;
    }
    let start = slice.addr();
    let ranges = RANGES.lock();
    let last_before_the_end = ranges.range(..start + len).next_back();
    last_before_the_end.is_some_and(|(range, range_len)| range + range_len > start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_found_by_any_byte_that_it_shares_with_a_range() {
        let (start, len) = (0x7000_0000_0000, 0x3000);
        add(start, len);
        let overlaps = |at: usize, len| overlap(std::ptr::without_provenance(at), len);
        assert!(overlaps(start, 1) && overlaps(start + len - 1, 1) && overlaps(start - 5, 6));
        assert!(overlaps(start - 1, len + 2));
        assert!(!overlaps(start - 5, 5) && !overlaps(start + len, 10));
        remove(start);
        assert!(!overlaps(start, 1));
    }
}
