//! Questions to the tree of free pages: where the next free or taken page is, how many are free in a range, which block a
//! page is in, and where a block of some order is.
//!
//! All of them walk from the root or straight to a word; none looks at more than the two words a level that a range begins
//! and ends in, except where an alignment or a range rules places out one by one.

use crate::pages::Pages;
use crate::word::{STARTS, WORD_SHIFT, blocks_of_order, mask};

/// What a page is, for a search.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(crate) enum PageState {
    Free,
    Taken,
}

impl Pages {
    /// Whether all of `start..end` is free, or all of it taken.
    pub fn all_are(&self, start: u64, end: u64, state: PageState) -> bool {
        match state {
            PageState::Free => self.next(start, PageState::Taken).is_none_or(|taken| taken >= end),
            PageState::Taken => !self.any_is_free(start, end),
        }
    }

    /// Whether any page of `start..end` is free. At the level at which the span is made of whole children, that is one
    /// of them being free, wholly or partly. Further up, it is a free child in the words that the span begins and ends in,
    /// or a child between the two, free wholly or partly.
    fn any_is_free(&self, start: u64, end: u64) -> bool {
        let level = ((start | end).trailing_zeros() / WORD_SHIFT).min(self.top());
        let (mut first, mut last) = (start >> (level * WORD_SHIFT), (end - 1) >> (level * WORD_SHIFT));
        let mut ends_are_whole = true;
        for level in level..=self.top() {
            let (low, high) = (first >> WORD_SHIFT, last >> WORD_SHIFT);
            let (from_first, to_last) = (u64::MAX << (first % 64), u64::MAX >> (63 - last % 64));
            let (some_from, some_to) = if ends_are_whole {
                (from_first, to_last)
            } else {
                (from_first & (from_first - 1), to_last >> 1)
            };
            let seen = if low == high {
                self.full(level, low) & from_first & to_last | self.some(level, low) & some_from & some_to
            } else {
                let at_low = self.full(level, low) & from_first | self.some(level, low) & some_from;
                at_low | self.full(level, high) & to_last | self.some(level, high) & some_to
            };
            if seen != 0 {
                return true;
            }
            (first, last, ends_are_whole) = (low, high, false);
        }
        false
    }

    /// The first page at or after `from` that is free, or taken.
    pub fn next(&self, from: u64, state: PageState) -> Option<u64> {
        self.next_under(self.top(), 0, from, state).filter(|&page| page < self.size())
    }

    fn next_under(&self, level: u32, word: u64, from: u64, state: PageState) -> Option<u64> {
        let shift = level * WORD_SHIFT;
        let first_child = word << WORD_SHIFT;
        let skipped = (from >> shift).saturating_sub(first_child);
        if skipped >= 64 {
            return None;
        }
        let (full, some) = (self.full(level, word), self.some(level, word));
        let wholly = if state == PageState::Free { full } else { !(full | some) };
        let mut candidates = (wholly | some) & (u64::MAX << skipped);
        while candidates != 0 {
            let place = candidates.trailing_zeros();
            let child = first_child + u64::from(place);
            if wholly >> place & 1 == 1 {
                return Some(from.max(child << shift));
            }
            let below = self.next_under(level - 1, child, from, state);
            if below.is_some() {
                return below;
            }
            candidates &= candidates - 1;
        }
        None
    }

    /// Number of free pages in `start..end`.
    pub fn free_in(&self, start: u64, end: u64) -> u64 {
        if start >= end { 0 } else { self.free_in_under(self.top(), 0, start, end) }
    }

    fn free_in_under(&self, level: u32, word: u64, start: u64, end: u64) -> u64 {
        let shift = level * WORD_SHIFT;
        let first_child = word << WORD_SHIFT;
        let (whole_start, whole_end) = (start.div_ceil(1 << shift), end >> shift);
        let whole = if whole_start < whole_end {
            mask(whole_start - first_child, whole_end - first_child)
        } else {
            0
        };
        let mut free = u64::from((self.full(level, word) & whole).count_ones()) << shift;
        let mut partly = self.some(level, word) & whole;
        while partly != 0 {
            let child = first_child + u64::from(partly.trailing_zeros());
            free += self.free_under(level - 1, child);
            partly &= partly - 1;
        }
        for (child, from, to) in edges(start, end, shift).into_iter().flatten() {
            let bit = 1 << (child - first_child);
            if self.full(level, word) & bit != 0 {
                free += to - from;
            } else if self.some(level, word) & bit != 0 {
                free += self.free_in_under(level - 1, child, from, to);
            }
        }
        free
    }

    /// The maximal free block that `page` is in, as its start and order.
    pub fn block_at(&self, page: u64) -> Option<(u64, u32)> {
        for level in 0..=self.top() {
            let unit = page >> (level * WORD_SHIFT);
            let full = self.full(level, unit >> WORD_SHIFT);
            if full >> (unit % 64) & 1 == 0 {
                continue;
            }
            let place = unit % 64;
            let group = |order: u32| mask(place >> order << order, ((place >> order) + 1) << order);
            let order = (0..WORD_SHIFT).rev().find(|&order| full & group(order) == group(order))?;
            return Some((unit >> order << order << (level * WORD_SHIFT), level * WORD_SHIFT + order));
        }
        None
    }

    /// Some free block of `order`, the first or the last one; there must be one.
    #[inline]
    pub fn block_anywhere(&self, order: u32, top_down: bool) -> u64 {
        let holders = self.orders().holders(order);
        let word = if top_down { holders.last() } else { holders.first() } as u64;
        let starts = blocks_of_order(self.full(order / WORD_SHIFT, word), order % WORD_SHIFT);
        start_of(word, starts, order, top_down)
    }

    /// Number of free blocks of `order`, counted up to `enough`.
    pub fn count_blocks(&self, order: u32, enough: u64) -> u64 {
        let (level, j) = (order / WORD_SHIFT, order % WORD_SHIFT);
        let (mut count, mut at) = (0, self.orders().holders(order).next(0));
        while let Some(word) = at.filter(|_| count < enough) {
            count += u64::from(blocks_of_order(self.full(level, word as u64), j).count_ones());
            at = self.orders().holders(order).next(word + 1);
        }
        count
    }

    /// A maximal free block of exactly `order` inside `window`, the first or the last one, that starts at a multiple of
    /// `2^align`. With `align > order` that is a search, which gives up after a few words.
    pub fn block_in(&self, order: u32, align: u32, window: &Window) -> Option<u64> {
        const WORDS_TRIED: u32 = 4;
        let (level, j) = (order / WORD_SHIFT, order % WORD_SHIFT);
        let (unit_shift, word_shift) = (level * WORD_SHIFT, (level + 1) * WORD_SHIFT);
        let holders = self.orders().holders(order);
        let mut tried = 0;
        let mut at = if window.top_down {
            holders.previous(((window.end - 1) >> word_shift) as usize)
        } else {
            holders.next((window.start >> word_shift) as usize)
        };
        while let Some(word) = at.map(|word| word as u64).filter(|&word| window.touches(word, word_shift)) {
            let starts = blocks_of_order(self.full(level, word), j)
                & window.starts_inside(word, unit_shift, 1 << j)
                & aligned_starts(word, unit_shift, align);
            if starts != 0 {
                return Some(start_of(word, starts, order, window.top_down));
            }
            tried += 1;
            if align > order && tried == WORDS_TRIED {
                return None;
            }
            at = if !window.top_down {
                holders.next(word as usize + 1)
            } else {
                word.checked_sub(1).and_then(|word| holders.previous(word as usize))
            };
        }
        None
    }
}

/// Where a search may look, and from which end: pages `start..end`, not empty.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub start: u64,
    pub end: u64,
    pub top_down: bool,
}

impl Window {
    /// Whether any page under word `word` of `2^word_shift` pages is inside.
    #[inline]
    fn touches(&self, word: u64, word_shift: u32) -> bool {
        word << word_shift < self.end && (word + 1) << word_shift > self.start
    }

    /// Units of a word at which a block of `block_units` lies wholly inside.
    #[inline]
    fn starts_inside(&self, word: u64, unit_shift: u32, block_units: u64) -> u64 {
        let first_unit = word << WORD_SHIFT;
        let from = self.start.div_ceil(1 << unit_shift).saturating_sub(first_unit);
        let units = (self.end >> unit_shift).saturating_sub(first_unit).min(64);
        let to = (units + 1).saturating_sub(block_units);
        if from < to { mask(from, to) } else { 0 }
    }

    /// Children of a word that have a page inside.
    #[inline]
    pub(crate) fn children_touching(&self, word: u64, unit_shift: u32) -> u64 {
        let first_unit = word << WORD_SHIFT;
        let from = (self.start >> unit_shift).saturating_sub(first_unit);
        let to = self.end.div_ceil(1 << unit_shift).saturating_sub(first_unit).min(64);
        if from < to { mask(from, to) } else { 0 }
    }
}

/// First page of the first or last of the blocks of `order` that begin at the units `starts` of a word.
#[inline]
fn start_of(word: u64, starts: u64, order: u32, top_down: bool) -> u64 {
    let bit = if top_down { 63 - starts.leading_zeros() } else { starts.trailing_zeros() };
    ((word << WORD_SHIFT) + u64::from(bit)) << (order / WORD_SHIFT * WORD_SHIFT)
}

/// Units of a word whose first page is a multiple of `2^align`.
#[inline]
fn aligned_starts(word: u64, unit_shift: u32, align: u32) -> u64 {
    match align.checked_sub(unit_shift) {
        None => u64::MAX,
        Some(j) if j <= WORD_SHIFT => STARTS[j as usize],
        Some(j) => u64::from(word.is_multiple_of(1 << (j - WORD_SHIFT).min(63))),
    }
}

/// The children, of `2^shift` pages each, that `start..end` covers only in part, with the part: the one it starts in
/// and the one it ends in.
#[inline]
fn edges(start: u64, end: u64, shift: u32) -> [Option<(u64, u64, u64)>; 2] {
    let (first, last) = (start >> shift, end >> shift);
    let starts_inside = first << shift != start;
    let ends_inside = last << shift != end;
    if first == last {
        return [Some((first, start, end)), None];
    }
    [
        starts_inside.then_some((first, start, (first + 1) << shift)),
        ends_inside.then_some((last, last << shift, end)),
    ]
}
