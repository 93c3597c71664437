//! The choice among free blocks: the smallest that suffices, or for a scattered request the one that breaks least.
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
        let smallest = (orders != 0).then(|| orders.trailing_zeros())?;
        self.block_of(smallest, align, window)
    }

    /// The block to use next for a scattered request of which `len` pages are left. It may be shorter than that.
    ///
    /// Cutting the next larger block leaves a rest of odd size, and using up smaller ones makes many pieces. So of the
    /// two orders around `len` the smaller comes first when it leaves at most a quarter of `len` for further
    /// pieces, else the larger; blocks that are larger still are broken only when there is neither.
    pub fn best_piece(&self, len: u64, align: u32, window: &Window) -> Option<Area> {
        let (below, above) = (len.ilog2(), len.next_power_of_two().ilog2());
        let orders = if 4 << below >= 3 * len { [below, above] } else { [above, below] };
        let near = orders.into_iter().find_map(|order| self.block_of(order, align, window));
        near.or_else(|| self.smallest_block(len, align, window))
            .or_else(|| self.largest_block(len, align, window))
    }

    /// A whole free block of exactly this order that starts at a multiple of `2^align`.
    fn block_of(&self, order: u32, align: u32, window: &Window) -> Option<Area> {
        if self.orders().present() >> order & 1 == 0 || window.start >= window.end {
            return None;
        }
        let start = if align <= order && self.covered_by(window) {
            self.block_anywhere(order, window.top_down)
        } else {
            self.block_in(order, align, window)?
        };
        Some((start, start + (1 << order)))
    }

    /// The largest free block of at least `2^align` pages; for when none has `len`.
    fn largest_block(&self, len: u64, align: u32, window: &Window) -> Option<Area> {
        let below = len.next_power_of_two().ilog2();
        let orders = self.orders().present() & ((1 << below) - 1) >> align << align;
        if !self.covered_by(window) {
            return self.largest_inside(orders, align, window);
        }
        self.block_of(orders.checked_ilog2()?, align, window)
    }

    fn smallest_inside(&self, mut orders: u64, len: u64, align: u32, window: &Window) -> Option<Area> {
        let parts = self.parts_at_ends(window, align).into_iter().flatten();
        let part = parts.filter(|part| part.1 - part.0 >= len).min_by_key(|part| part.1 - part.0);
        while orders != 0 {
            let order = orders.trailing_zeros();
            if part.is_some_and(|part| (part.1 - part.0).ilog2() < order) {
                break;
            }
            let block = self.block_of(order, align, window);
            if block.is_some() {
                return block;
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
            let block = self.block_of(order, align, window);
            if block.is_some() {
                return block;
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
