//! The choice among free blocks: the smallest that suffices, or the largest there is.
//!
//! Without a range the answer is a bit scan over the orders that are present, and the near end of that order's set. With one,
//! orders are tried in turn, and the two blocks that may lie across the range's ends join in with the part inside:
//!
//! ```text
//!                 start                             end
//!   [   taken   ][   |  part   ][ block ][ taken ][  |   ]
//! ```

use crate::find::Window;
use crate::pages::Pages;

/// Free pages to take from: start and end.
type Area = (u64, u64);

impl Pages {
    /// Whether the window is the whole region.
    #[inline]
    pub fn covered_by(&self, window: &Window) -> bool {
        window.start == 0 && window.end == self.size()
    }

    /// At least `len` pages from one of the smallest free blocks that have them, starting at a multiple of `2^align`.
    pub fn smallest_block(&self, len: u64, align: u32, window: &Window) -> Option<Area> {
        let order = len.next_power_of_two().ilog2();
        let orders = self.orders().present() >> order << order;
        if align > order || !self.covered_by(window) {
            return self.smallest_inside(orders, len, align, window);
        }
        if orders == 0 {
            return None;
        }
        let order = orders.trailing_zeros();
        let start = self.block_anywhere(order, window.top_down);
        Some((start, start + (1 << order)))
    }

    /// The largest free block of at least `2^align` pages; for when none has `len`.
    pub fn largest_block(&self, len: u64, align: u32, window: &Window) -> Option<Area> {
        let below = len.next_power_of_two().ilog2();
        let orders = self.orders().present() & ((1 << below) - 1) >> align << align;
        if !self.covered_by(window) {
            return self.largest_inside(orders, align, window);
        }
        let order = orders.checked_ilog2()?;
        let start = self.block_anywhere(order, window.top_down);
        Some((start, start + (1 << order)))
    }

    fn smallest_inside(&self, mut orders: u64, len: u64, align: u32, window: &Window) -> Option<Area> {
        let parts = self.parts_at_ends(window, align).into_iter().flatten();
        let part = parts.filter(|part| part.1 - part.0 >= len).min_by_key(|part| part.1 - part.0);
        while orders != 0 {
            let order = orders.trailing_zeros();
            if part.is_some_and(|part| (part.1 - part.0).ilog2() < order) {
                break;
            }
            if let Some(start) = self.block_in(order, align, window) {
                return Some((start, start + (1 << order)));
            }
            orders &= orders - 1;
        }
        part
    }

    fn largest_inside(&self, mut orders: u64, align: u32, window: &Window) -> Option<Area> {
        if window.start >= window.end {
            return None;
        }
        let parts = self.parts_at_ends(window, align).into_iter().flatten();
        let part = parts.max_by_key(|part| part.1 - part.0);
        while let Some(order) = orders.checked_ilog2() {
            if part.is_some_and(|part| part.1 - part.0 > 1 << order) {
                break;
            }
            if let Some(start) = self.block_in(order, align, window) {
                return Some((start, start + (1 << order)));
            }
            orders &= !(1 << order);
        }
        part
    }

    /// The parts inside the window of the free blocks that lie across its ends, from their first multiple of `2^align` on.
    fn parts_at_ends(&self, window: &Window, align: u32) -> [Option<Area>; 2] {
        if window.start >= window.end {
            return [None, None];
        }
        let part_with = |page: u64| {
            let (start, order) = self.block_at(page)?;
            let end = start + (1 << order);
            let inside = (start.max(window.start).next_multiple_of(1 << align), end.min(window.end));
            let across = start < window.start || end > window.end;
            (across && inside.0 < inside.1).then_some(inside)
        };
        [part_with(window.start), part_with(window.end - 1)]
    }
}
