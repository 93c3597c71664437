//! Which free blocks there are of each size: what makes "the smallest block that suffices" a bit scan.
//!
//! The tree in `pages.rs` is the truth; this is an index over it. For each order it keeps the set of tree words that hold a
//! maximal free block of that order, and one bit that says whether there are any. It is brought up to date one word at a
//! time, from the word's old and new value; a set changes only when the word gets its first block of an order or
//! loses its last.

use alloc::vec::Vec;

use crate::summary_set::SummarySet;
use crate::word::{ORDERS_PER_WORD, orders_in};

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Orders {
    /// Per order: the words of its level that hold a maximal free block of this order.
    holders: Vec<SummarySet>,
    /// Bit k: there is a free block of order k.
    present: u64,
}

impl Orders {
    /// No free block at all, in a tree whose levels have `level_words` words, the lowest first.
    pub fn new(level_words: &[u64]) -> Orders {
        let per_level = level_words.iter().map(|&words| SummarySet::new(words as usize));
        let holders = per_level.flat_map(|set| core::iter::repeat_n(set, ORDERS_PER_WORD as usize)).collect();
        Orders { holders, present: 0 }
    }

    /// Bit k is set when there is a free block of order k.
    #[inline]
    pub fn present(&self) -> u64 {
        self.present
    }

    /// Words of the order's level that hold a free block of that order.
    #[inline]
    pub fn holders(&self, order: u32) -> &SummarySet {
        &self.holders[order as usize]
    }

    /// Word `word` of `level` has changed from `old` to `new`.
    #[inline]
    pub fn word_changed(&mut self, level: u32, word: u64, old: u64, new: u64) {
        let orders = orders_in(new);
        let mut changed = orders_in(old) ^ orders;
        while changed != 0 {
            let j = changed.trailing_zeros();
            self.holder_changed(level * ORDERS_PER_WORD + j, word as usize, orders >> j & 1 == 1);
            changed &= changed - 1;
        }
    }

    #[inline]
    fn holder_changed(&mut self, order: u32, word: usize, holds: bool) {
        let holders = &mut self.holders[order as usize];
        if holds {
            holders.insert(word);
            self.present |= 1 << order;
        } else {
            holders.remove(word);
            self.present &= !(u64::from(holders.is_empty()) << order);
        }
    }

    pub fn bytes(&self) -> usize {
        self.holders.iter().map(SummarySet::bytes).sum()
    }
}
