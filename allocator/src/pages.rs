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

use crate::find::PageState;
use crate::orders::Orders;
use crate::runs::Summary;
use crate::word::{WORD_SHIFT, mask};

/// Levels of the tree of the largest region.
const LEVELS_MAX: usize = 6;

/// A word of level 1 or above.
#[derive(Copy, Clone, Default)]
struct Node {
    /// Children that are wholly free.
    full: u64,
    /// Children that are partly free.
    some: u64,
    /// Free pages under this word; 0 where its parent's bit stands for all of them.
    free: u64,
    /// Children that are partly free and have changed since their summary was computed.
    stale: u64,
}

/// The tree. Positions and lengths are in pages.
#[derive(Clone)]
pub(crate) struct Pages {
    /// Number of pages; constant.
    size: u64,
    /// The level of the root, which is a single word; at least 1. Constant.
    top: u32,
    /// Where the words of each level from 1 up begin in `nodes`; constant.
    bases: [u64; LEVELS_MAX + 1],
    /// The words of level 0: one bit a free page.
    leaves: Vec<u64>,
    /// The words of the levels above.
    nodes: Vec<Node>,
    /// Free blocks by order.
    orders: Orders,
    /// Free runs under each of the `nodes`, right where they are not marked.
    summaries: Vec<Summary>,
    /// The mark of the root's summary, which has no parent to keep it.
    root_stale: bool,
}

/// The children of one word that a change covers: `from..to` wholly, and in part the one before `from`, the one at
/// `to`, or both.
#[derive(Copy, Clone)]
struct Covered {
    from: u64,
    to: u64,
    part_before: bool,
    part_behind: bool,
}

impl Covered {
    #[inline]
    fn first(&self) -> u64 {
        self.from - u64::from(self.part_before)
    }

    #[inline]
    fn last(&self) -> u64 {
        self.to + u64::from(self.part_behind) - 1
    }

    /// The part of it that is in one word, of which `first_child` is the first child.
    #[inline]
    fn in_word(&self, first_child: u64) -> Covered {
        Covered {
            from: self.from.max(first_child),
            to: self.to.min(first_child + 64),
            part_before: self.part_before && self.from > first_child,
            part_behind: self.part_behind && self.to < first_child + 64,
        }
    }

    /// As bits of that word: the children that are covered wholly, and in part.
    #[inline]
    fn masks(&self, first_child: u64) -> (u64, u64) {
        let (from, to) = (self.from - first_child, self.to - first_child);
        let before = if self.part_before { 1 << (from - 1) } else { 0 };
        let behind = if self.part_behind { 1 << to } else { 0 };
        (mask(from, to), before | behind)
    }
}

impl Pages {
    /// `size` free pages.
    pub fn new(size: u64) -> Pages {
        let level_words = level_words(size);
        let mut bases = [0; LEVELS_MAX + 1];
        for level in 1..level_words.len() {
            bases[level + 1] = bases[level] + level_words[level];
        }
        let inner_words = bases[level_words.len()] as usize;
        let mut pages = Pages {
            size,
            top: level_words.len() as u32 - 1,
            bases,
            leaves: vec![0; level_words[0] as usize],
            nodes: vec![Node::default(); inner_words],
            orders: Orders::new(&level_words),
            summaries: vec![Summary::default(); inner_words],
            root_stale: true,
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
        self.nodes[self.nodes.len() - 1].free
    }

    pub fn orders(&self) -> &Orders {
        &self.orders
    }

    /// What it occupies on the heap.
    pub fn bytes(&self) -> usize {
        let leaves = self.leaves.len() * size_of::<u64>();
        leaves + self.nodes.len() * (size_of::<Node>() + size_of::<Summary>()) + self.orders.bytes()
    }

    /// The root's level.
    #[inline]
    pub fn top(&self) -> u32 {
        self.top
    }

    /// Number of words of a level.
    pub fn words_of(&self, level: u32) -> u64 {
        if level == 0 {
            return self.leaves.len() as u64;
        }
        self.bases[level as usize + 1] - self.bases[level as usize]
    }

    #[inline]
    fn index(&self, level: u32, word: u64) -> usize {
        (self.bases[level as usize] + word) as usize
    }

    /// The children of a word that are wholly free.
    #[inline]
    pub fn full(&self, level: u32, word: u64) -> u64 {
        if level == 0 { self.leaves[word as usize] } else { self.nodes[self.index(level, word)].full }
    }

    /// The children of a word that are partly free; none at level 0, where a child is a page.
    #[inline]
    pub fn some(&self, level: u32, word: u64) -> u64 {
        if level == 0 { 0 } else { self.nodes[self.index(level, word)].some }
    }

    /// Free pages under a word, but for those its parent's bit stands for.
    pub fn free_under(&self, level: u32, word: u64) -> u64 {
        if level == 0 {
            self.leaves[word as usize].count_ones().into()
        } else {
            self.nodes[self.index(level, word)].free
        }
    }

    /// The last computed summary of a word of level 1 or above.
    #[inline]
    pub fn summary(&self, level: u32, word: u64) -> Summary {
        self.summaries[self.index(level, word)]
    }

    pub fn set_summary(&mut self, level: u32, word: u64, summary: Summary) {
        let index = self.index(level, word);
        self.summaries[index] = summary;
    }

    /// Whether the root's summary is out of date.
    #[inline]
    pub fn root_is_stale(&self) -> bool {
        self.root_stale
    }

    /// The children of a word of level 2 or above whose summaries are out of date.
    #[inline]
    pub fn stale_children(&self, level: u32, word: u64) -> u64 {
        self.nodes[self.index(level, word)].stale
    }

    /// The summaries of a word and all below are up to date.
    pub fn set_fresh(&mut self, level: u32, word: u64) {
        let index = self.index(level, word);
        self.nodes[index].stale = 0;
        self.root_stale &= level != self.top;
    }

    /// Marks `start..end`, all of it free, as taken.
    pub fn take(&mut self, start: u64, end: u64) {
        debug_assert!(
            start < end && self.all_are(start, end, PageState::Free),
            "{start}..{end} is not all free"
        );
        self.change(start, end, Self::take_from, Self::take_child);
    }

    /// Marks `start..end`, all of it taken, as free.
    pub fn put(&mut self, start: u64, end: u64) {
        debug_assert!(
            start < end && self.all_are(start, end, PageState::Taken),
            "{start}..{end} is not all taken"
        );
        self.change(start, end, Self::put_into, Self::put_child);
    }

    /// Applies `change_word` to the words that `start..end` begins and ends in, level by level, until both are one word, and then
    /// `change_child` to the words above it. Both say whether the word has become uniform: wholly free when
    /// pages are put, wholly taken when they are taken. Then it counts as wholly covered one level up.
    #[inline(always)]
    fn change(
        &mut self,
        start: u64,
        end: u64,
        change_word: impl Fn(&mut Pages, u32, u64, Covered, u64) -> bool,
        change_child: impl Fn(&mut Pages, u32, u64, bool, u64) -> bool,
    ) {
        // Below the level at which the span is made of whole children there is nothing to do.
        let mut level = ((start | end).trailing_zeros() / WORD_SHIFT).min(self.top);
        let (from, to) = (start >> (level * WORD_SHIFT), end >> (level * WORD_SHIFT));
        let mut covered = Covered { from, to, part_before: false, part_behind: false };
        // A word that is covered from end to end, with no word below it changed, has its place further up.
        let (mut low_changed, mut high_changed) = (false, false);
        let (mut low, mut high) = (from >> WORD_SHIFT, (to - 1) >> WORD_SHIFT);
        while low != high {
            let mut above = Covered { from: low, to: high + 1, part_before: false, part_behind: false };
            low_changed |= !covered.from.is_multiple_of(64);
            if low_changed {
                let pages = ((low + 1) << ((level + 1) * WORD_SHIFT)) - start;
                let uniform = change_word(self, level, low, covered.in_word(low << WORD_SHIFT), pages);
                (above.from, above.part_before) = (low + u64::from(!uniform), !uniform);
            }
            high_changed |= !covered.to.is_multiple_of(64);
            if high_changed {
                let pages = end - (high << ((level + 1) * WORD_SHIFT));
                let uniform = change_word(self, level, high, covered.in_word(high << WORD_SHIFT), pages);
                (above.to, above.part_behind) = (high + u64::from(uniform), !uniform);
            }
            covered = above;
            level += 1;
            (low, high) = (covered.first() >> WORD_SHIFT, covered.last() >> WORD_SHIFT);
        }
        let mut uniform = change_word(self, level, low, covered, end - start);
        let mut child = low;
        for level in level + 1..=self.top {
            uniform = change_child(self, level, child, uniform, end - start);
            child >>= WORD_SHIFT;
        }
        self.root_stale = true;
    }

    /// Takes the covered children, with `pages` pages, from a word; true when nothing free is left there.
    #[inline]
    fn take_from(&mut self, level: u32, word: u64, covered: Covered, pages: u64) -> bool {
        let (wholly, partly) = covered.masks(word << WORD_SHIFT);
        if level > 0 {
            return self.take_from_node(level, word, wholly, partly, pages);
        }
        let leaf = &mut self.leaves[word as usize];
        let stored = *leaf;
        // What is taken was free. If that is not to be seen here, a bit further up stands for all of this word.
        *leaf = if stored & wholly == 0 { !wholly } else { stored & !wholly };
        let left = *leaf;
        self.orders.word_changed(0, word, stored, left);
        left == 0
    }

    /// The same, where a single child is covered.
    #[inline(always)]
    fn take_child(&mut self, level: u32, child: u64, wholly: bool, pages: u64) -> bool {
        let bit = 1 << (child % 64);
        let (gone, partly) = if wholly { (bit, 0) } else { (0, bit) };
        self.take_from_node(level, child >> WORD_SHIFT, gone, partly, pages)
    }

    #[inline(always)]
    fn take_from_node(&mut self, level: u32, word: u64, wholly: u64, partly: u64, pages: u64) -> bool {
        let index = self.index(level, word);
        let node = &mut self.nodes[index];
        let (stored, covered) = (node.full, wholly | partly);
        if (stored | node.some) & covered == 0 {
            (node.full, node.free) = (u64::MAX, 64 << (level * WORD_SHIFT));
        }
        node.full &= !covered;
        node.some = node.some & !covered | partly;
        node.stale |= partly;
        node.free -= pages;
        let (left, empty) = (node.full, node.free == 0);
        if left != stored {
            self.orders.word_changed(level, word, stored, left);
        }
        empty
    }

    /// Returns the covered children, with `pages` pages, to a word; true when all of it is free now. Then it is left zero, for
    /// its parent's bit to stand for it.
    #[inline]
    fn put_into(&mut self, level: u32, word: u64, covered: Covered, pages: u64) -> bool {
        let (wholly, partly) = covered.masks(word << WORD_SHIFT);
        if level > 0 {
            return self.put_into_node(level, word, wholly, partly, pages);
        }
        let leaf = &mut self.leaves[word as usize];
        let stored = *leaf;
        let filled = stored | wholly == u64::MAX;
        *leaf = if filled { 0 } else { stored | wholly };
        let left = *leaf;
        self.orders.word_changed(0, word, stored, left);
        filled
    }

    /// The same, where a single child is covered.
    #[inline(always)]
    fn put_child(&mut self, level: u32, child: u64, wholly: bool, pages: u64) -> bool {
        let bit = 1 << (child % 64);
        let (filled, partly) = if wholly { (bit, 0) } else { (0, bit) };
        self.put_into_node(level, child >> WORD_SHIFT, filled, partly, pages)
    }

    #[inline(always)]
    fn put_into_node(&mut self, level: u32, word: u64, wholly: u64, partly: u64, pages: u64) -> bool {
        let index = self.index(level, word);
        let node = &mut self.nodes[index];
        let stored = node.full;
        node.full |= wholly;
        node.some = (node.some | partly) & !wholly;
        node.stale |= partly;
        node.free += pages;
        let filled = node.full == u64::MAX;
        if filled {
            *node = Node::default();
        }
        let left = node.full;
        if left != stored {
            self.orders.word_changed(level, word, stored, left);
        }
        filled
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
