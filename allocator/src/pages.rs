//! Which pages of a region are free: a tree of 64-bit words, each bit standing for 64 times what a bit below stands for.
//!
//! ```text
//!   level 2   one bit a 16 MiB block    [ full 0 0 1 ... | some 1 0 0 ... ]     (a bit of 1 GiB one more level up)
//!                                              |               |
//!                     wholly free: nothing ----+               +---- partly free: look below
//!                     is stored below it
//!   level 1   one bit a 256 KiB block   [ full 0 1 1 0 ... | some 1 0 0 0 ... ]
//!                                                                 |
//!   level 0   one bit a page            [ full 0 0 1 1 0 1 1 1 ... ]
//! ```
//!
//! A child of a word is *full* (every page under it is free), *some* (a few are) or neither. Under a full or an
//! empty child everything is zero. So the tree is a function of the set of free pages alone, and
//! this has three consequences:
//!
//! - Merging is not a step. A word that becomes all ones is replaced by one bit in its parent, which may fill that; buddies
//!   inside a word are found by folding it (`word.rs`). Two neighbours never stay apart because of where they came from.
//! - Taking or returning a span of any length touches at most two words a level: eight for 8 GiB, not one per
//!   power of two the span is made of. Trimming costs nothing: what is not wanted is simply not taken.
//! - Undoing an operation restores every bit.
//!
//! The last word of a level may stand for places past the region's end; those bits are never set, so such a word
//! never becomes all ones and its parts stay roots of their own.
//!
//! Beside the tree, and brought up to date with each changed word: the free blocks by order (`orders.rs`), the free
//! pages under each word, and which summaries of free runs are out of date (`runs.rs`).

use alloc::vec;
use alloc::vec::Vec;

use crate::orders::Orders;
use crate::runs::Runs;
use crate::word::{STARTS, WORD_SHIFT, blocks_of_order, mask};

/// Levels of the tree of the largest region.
const LEVELS_MAX: usize = 6;

/// What a page is, for a search.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(crate) enum PageState {
    Free,
    Taken,
}

/// The tree. Positions and lengths are in pages.
#[derive(Clone)]
pub(crate) struct Pages {
    /// Number of pages; constant.
    size: u64,
    /// The level of the root, which is a single word; at least 1. Constant.
    top: u32,
    /// Where the words of each level begin in `full`; constant.
    bases: [u64; LEVELS_MAX],
    /// All words, level 0 first: the children that are wholly free.
    full: Vec<u64>,
    /// The words from level 1 up: the children that are partly free.
    some: Vec<u64>,
    /// The words from level 1 up: free pages under the word (0 under a full child).
    free_under: Vec<u64>,
    /// Free blocks by order.
    orders: Orders,
    /// Free runs, brought up to date when asked for.
    runs: Runs,
}

/// What a word of the tree has become by returning pages to it.
#[derive(PartialEq, Eq)]
enum Filled {
    Partly,
    Wholly,
}

impl Pages {
    /// `size` free pages.
    pub fn new(size: u64) -> Pages {
        let level_words = level_words(size);
        let mut bases = [0; LEVELS_MAX];
        for level in 1..level_words.len() {
            bases[level] = bases[level - 1] + level_words[level - 1];
        }
        let words: u64 = level_words.iter().sum();
        let inner_words = (words - level_words[0]) as usize;
        let mut pages = Pages {
            size,
            top: level_words.len() as u32 - 1,
            bases,
            full: vec![0; words as usize],
            some: vec![0; inner_words],
            free_under: vec![0; inner_words],
            orders: Orders::new(&level_words),
            runs: Runs::new(&level_words),
        };
        pages.put(0, size);
        pages
    }

    /// Number of pages in all.
    #[inline]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Number of free pages.
    #[inline]
    pub fn free(&self) -> u64 {
        self.free_under[self.free_under.len() - 1]
    }

    pub fn orders(&self) -> &Orders {
        &self.orders
    }

    pub fn runs(&self) -> &Runs {
        &self.runs
    }

    pub fn runs_mut(&mut self) -> &mut Runs {
        &mut self.runs
    }

    pub fn bytes(&self) -> usize {
        let words = self.full.len() + self.some.len() + self.free_under.len();
        words * size_of::<u64>() + self.orders.bytes() + self.runs.bytes()
    }

    /// The root's level.
    #[inline]
    pub(crate) fn top(&self) -> u32 {
        self.top
    }

    /// Number of words of a level.
    pub(crate) fn words_of(&self, level: u32) -> u64 {
        let end = if level == self.top { self.full.len() as u64 } else { self.bases[level as usize + 1] };
        end - self.bases[level as usize]
    }

    /// The children of a word that are wholly free.
    #[inline]
    pub(crate) fn full(&self, level: u32, word: u64) -> u64 {
        self.full[(self.bases[level as usize] + word) as usize]
    }

    /// The children of a word that are partly free; none at level 0, where a child is a page.
    #[inline]
    pub(crate) fn some(&self, level: u32, word: u64) -> u64 {
        if level == 0 { 0 } else { self.some[self.inner(level, word)] }
    }

    /// Free pages stored under a word of level 1 or above.
    pub(crate) fn free_under(&self, level: u32, word: u64) -> u64 {
        self.free_under[self.inner(level, word)]
    }

    /// Index of a word of level 1 or above in the arrays that have no level 0.
    #[inline]
    pub(crate) fn inner(&self, level: u32, word: u64) -> usize {
        (self.bases[level as usize] - self.bases[1] + word) as usize
    }

    /// Marks `start..end`, all of it free, as taken.
    pub fn take(&mut self, start: u64, end: u64) {
        debug_assert!(start < end && self.next(start, PageState::Taken).is_none_or(|taken| taken >= end));
        self.take_under(self.top, 0, start, end, false);
    }

    /// Marks `start..end`, all of it taken, as free.
    pub fn put(&mut self, start: u64, end: u64) {
        debug_assert!(start < end && self.next(start, PageState::Free).is_none_or(|free| free >= end));
        let filled = self.put_under(self.top, 0, start, end);
        debug_assert!(filled == Filled::Partly, "the root word is never all ones");
    }

    /// Takes `start..end` from under a word; true when free pages remain there. `from_full`: the parent's bit
    /// stood for all of this word until now.
    fn take_under(&mut self, level: u32, word: u64, start: u64, end: u64, from_full: bool) -> bool {
        let stored = self.full(level, word);
        let mut full = if from_full { u64::MAX } else { stored };
        let shift = level * WORD_SHIFT;
        let first_child = word << WORD_SHIFT;
        if level == 0 {
            full &= !mask(start - first_child, end - first_child);
            self.store(0, word, stored, full);
            return full != 0;
        }
        let inner = self.inner(level, word);
        let mut some = self.some[inner];
        let (whole_start, whole_end) = (start.div_ceil(1 << shift), end >> shift);
        if whole_start < whole_end {
            full &= !mask(whole_start - first_child, whole_end - first_child);
        }
        for (child, from, to) in edges(start, end, shift).into_iter().flatten() {
            let bit = 1 << (child - first_child);
            let some_left = self.take_under(level - 1, child, from, to, full & bit != 0);
            full &= !bit;
            some = if some_left { some | bit } else { some & !bit };
        }
        let free = if from_full { 64 << shift } else { self.free_under[inner] };
        self.store(level, word, stored, full);
        self.some[inner] = some;
        self.free_under[inner] = free - (end - start);
        self.runs.changed(level, word);
        full | some != 0
    }

    /// Returns `start..end` under a word. When that fills it, it is left zero, for its parent's bit to stand for it.
    fn put_under(&mut self, level: u32, word: u64, start: u64, end: u64) -> Filled {
        let stored = self.full(level, word);
        let mut full = stored;
        let shift = level * WORD_SHIFT;
        let first_child = word << WORD_SHIFT;
        if level == 0 {
            full |= mask(start - first_child, end - first_child);
            return self.store_or_fold(0, word, stored, full);
        }
        let inner = self.inner(level, word);
        let mut some = self.some[inner];
        let (whole_start, whole_end) = (start.div_ceil(1 << shift), end >> shift);
        if whole_start < whole_end {
            full |= mask(whole_start - first_child, whole_end - first_child);
        }
        for (child, from, to) in edges(start, end, shift).into_iter().flatten() {
            let bit = 1 << (child - first_child);
            match self.put_under(level - 1, child, from, to) {
                Filled::Wholly => (full, some) = (full | bit, some & !bit),
                Filled::Partly => some |= bit,
            }
        }
        let filled = self.store_or_fold(level, word, stored, full);
        self.some[inner] = some;
        self.free_under[inner] =
            if filled == Filled::Wholly { 0 } else { self.free_under[inner] + (end - start) };
        self.runs.changed(level, word);
        filled
    }

    #[inline]
    fn store_or_fold(&mut self, level: u32, word: u64, stored: u64, full: u64) -> Filled {
        let wholly = full == u64::MAX;
        self.store(level, word, stored, if wholly { 0 } else { full });
        if wholly { Filled::Wholly } else { Filled::Partly }
    }

    #[inline]
    fn store(&mut self, level: u32, word: u64, stored: u64, full: u64) {
        if stored != full {
            self.full[(self.bases[level as usize] + word) as usize] = full;
            self.orders.word_changed(level, word, stored, full);
        }
    }

    /// The first page at or after `from` that is free, or taken.
    pub fn next(&self, from: u64, state: PageState) -> Option<u64> {
        self.next_under(self.top, 0, from, state).filter(|&page| page < self.size)
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
        if start >= end { 0 } else { self.free_in_under(self.top, 0, start, end) }
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
            free += if level == 1 {
                u64::from(self.full(0, child).count_ones())
            } else {
                self.free_under(level - 1, child)
            };
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
        for level in 0..=self.top {
            let unit = page >> (level * WORD_SHIFT);
            let full = self.full(level, unit >> WORD_SHIFT);
            if full >> (unit % 64) & 1 == 0 {
                continue;
            }
            let group = |order: u32| mask(unit % 64 >> order << order, (unit % 64 >> order << order) + (1 << order));
            let order = (0..WORD_SHIFT).rev().find(|&order| full & group(order) == group(order))?;
            return Some((unit >> order << order << (level * WORD_SHIFT), level * WORD_SHIFT + order));
        }
        None
    }

    /// A maximal free block of exactly `order` inside `window`, the first or the last one, that starts at a multiple of
    /// `2^align`. With `align > order` that is a search, which gives up after a few words.
    pub fn block_in(&self, order: u32, align: u32, window: &Window) -> Option<u64> {
        const WORDS_TRIED: u32 = 4;
        let (level, j) = (order / WORD_SHIFT, order % WORD_SHIFT);
        let (unit_shift, word_shift) = (level * WORD_SHIFT, (level + 1) * WORD_SHIFT);
        let holders = self.orders.words_with(order);
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
                let bit = if window.top_down { 63 - starts.leading_zeros() } else { starts.trailing_zeros() };
                return Some(((word << WORD_SHIFT) + u64::from(bit)) << unit_shift);
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

/// Number of words of each level, the lowest first. The root is a single word that is never all ones: where its 64
/// children would fill it, one more level follows.
fn level_words(size: u64) -> Vec<u64> {
    let mut level_words = Vec::with_capacity(LEVELS_MAX);
    let mut children = size;
    loop {
        let words = children.div_ceil(64);
        level_words.push(words);
        if children < 64 && level_words.len() > 1 {
            return level_words;
        }
        children = words;
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
