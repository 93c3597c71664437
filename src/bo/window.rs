//! The cheapest window: which contiguous bytes can be made free by evicting the least.
//!
//! ```text
//!   free ░░░   buffers A B C   immovable ███
//!   ░░AAAA░░░███BB░░CC░░░
//!        └─────┘ blocked     └──────┘ costs B and C
//! ```
//!
//! A cheapest window can always be slid left until it begins where something begins (or at the alignment after it), so only
//! those starts are tried.

use std::ops::Range;

use devpagemap_allocator::{PAGE_BYTES, Span};

/// Bytes that may become part of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) span: Span,
    /// Whose eviction frees it; `None` when it is free.
    pub(crate) owner: Option<usize>,
}

/// The owners to evict so that `len_bytes` within `range` become free, with the least total `cost`; and where.
pub(crate) fn cheapest_window(
    segments: &mut [Segment],
    cost: &[u128],
    len_bytes: u64,
    range: &Range<u64>,
) -> Option<(Range<u64>, Vec<usize>)> {
    segments.sort_unstable_by_key(|segment| segment.span.start_bytes);
    let mut best: Option<(u128, Range<u64>, Vec<usize>)> = None;
    for (index, first) in segments.iter().enumerate() {
        let start = first.span.start_bytes.max(range.start);
        debug_assert_eq!(start % PAGE_BYTES, 0);
        let window = start..start.saturating_add(len_bytes);
        if window.end > range.end || first.span.end_bytes() <= start {
            continue;
        }
        let Some(owners) = owners_of(&segments[index..], &window) else { continue };
        let price = owners.iter().map(|owner| cost[*owner]).sum();
        if best.as_ref().is_none_or(|(least, ..)| price < *least) {
            best = Some((price, window, owners));
        }
    }
    best.map(|(_, window, owners)| (window, owners))
}

/// Who owns a part of `window`, each once; `None` when a byte of it belongs to no segment.
fn owners_of(segments: &[Segment], window: &Range<u64>) -> Option<Vec<usize>> {
    let mut owners = Vec::new();
    let mut reached = window.start;
    for segment in segments {
        if reached >= window.end {
            break;
        }
        if segment.span.start_bytes > reached {
            return None;
        }
        reached = segment.span.end_bytes();
        if let Some(owner) = segment.owner.filter(|owner| !owners.contains(owner)) {
            owners.push(owner);
        }
    }
    (reached >= window.end).then_some(owners)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(page: u64, pages: u64, owner: Option<usize>) -> Segment {
        Segment { span: Span { start_bytes: page * PAGE_BYTES, len_bytes: pages * PAGE_BYTES }, owner }
    }

    fn pages(range: Range<u64>) -> Range<u64> {
        range.start * PAGE_BYTES..range.end * PAGE_BYTES
    }

    #[test]
    fn the_window_that_evicts_the_least_is_taken_though_another_comes_first() {
        let mut segments = vec![segment(0, 4, Some(0)), segment(4, 2, None), segment(6, 2, Some(1))];
        let found = cheapest_window(&mut segments, &[4, 2], 4 * PAGE_BYTES, &pages(0..8));
        assert_eq!(found, Some((pages(4..8), vec![1])));
    }

    #[test]
    fn a_gap_that_belongs_to_nobody_evictable_blocks() {
        let mut segments = vec![segment(0, 2, None), segment(3, 2, None)];
        assert_eq!(cheapest_window(&mut segments, &[], 3 * PAGE_BYTES, &pages(0..5)), None);
    }

    #[test]
    fn a_buffer_in_several_pieces_is_paid_for_once() {
        let mut segments =
            vec![segment(0, 1, Some(0)), segment(1, 1, None), segment(2, 1, Some(0)), segment(3, 3, Some(1))];
        let found = cheapest_window(&mut segments, &[2, 3], 3 * PAGE_BYTES, &pages(0..6));
        assert_eq!(found, Some((pages(0..3), vec![0])));
    }

    #[test]
    fn the_range_cuts_segments_and_windows() {
        let mut segments = vec![segment(0, 8, Some(0)), segment(8, 4, Some(1))];
        let found = cheapest_window(&mut segments, &[1, 9], 4 * PAGE_BYTES, &pages(6..12));
        assert_eq!(
            found,
            Some((pages(8..12), vec![1])),
            "a window may begin inside a segment only at the range's start"
        );
        assert_eq!(cheapest_window(&mut segments, &[1, 9], 7 * PAGE_BYTES, &pages(6..12)), None);
    }
}
