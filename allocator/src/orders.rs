//! Which free blocks there are of each size: what makes "the smallest block that suffices" a bit scan.
//!
//! The tree in `pages.rs` is the truth; this is an index over it. For each order it keeps the set of tree words that hold a
//! maximal free block of that order, and how many such blocks there are in all. It is brought up to date one word at a
//! time, from the word's old and new value.

use alloc::vec::Vec;

use crate::summary_set::SummarySet;
use crate::word::{ORDERS_PER_WORD, maximal, pair_up};

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Orders {
    /// Per order: the words of its level that hold a maximal free block of this order.
    words: Vec<SummarySet>,
    /// Per order: the number of maximal free blocks.
    counts: Vec<u64>,
    /// Bit k: there is a free block of order k.
    present: u64,
}

impl Orders {
    /// No free block at all, in a tree whose levels have `level_words` words, the lowest first.
    pub fn new(level_words: &[u64]) -> Orders {
        let orders = level_words.len() * ORDERS_PER_WORD as usize;
        let set_of = |order: usize| SummarySet::new(level_words[order / ORDERS_PER_WORD as usize] as usize);
        Orders { words: (0..orders).map(set_of).collect(), counts: alloc::vec![0; orders], present: 0 }
    }

    /// Bit k is set when there is a free block of order k.
    #[inline]
    pub fn present(&self) -> u64 {
        self.present
    }

    /// Words of the order's level that hold a free block of that order.
    #[inline]
    pub fn words_with(&self, order: u32) -> &SummarySet {
        &self.words[order as usize]
    }

    /// Number of free blocks of this order that are not part of a larger free block.
    pub fn count(&self, order: u32) -> u64 {
        self.counts.get(order as usize).copied().unwrap_or(0)
    }

    /// Free, aligned groups of `2^order` pages, counting each inside the larger blocks.
    pub fn whole_groups(&self, order: u32) -> u64 {
        let larger = self.counts.iter().zip(0u32..).skip(order as usize);
        larger.map(|(count, larger_order)| count << (larger_order - order)).sum()
    }

    /// Word `word` of `level` has changed from `old` to `new`.
    #[inline]
    pub fn word_changed(&mut self, level: u32, word: u64, old: u64, new: u64) {
        let (mut whole_old, mut whole_new) = (old, new);
        for j in 0..ORDERS_PER_WORD {
            let (pairs_old, pairs_new) = (pair_up(whole_old, j), pair_up(whole_new, j));
            let (blocks_old, blocks_new) = (maximal(whole_old, pairs_old, j), maximal(whole_new, pairs_new, j));
            if blocks_old != blocks_new {
                self.blocks_changed(level * ORDERS_PER_WORD + j, word, blocks_old, blocks_new);
            }
            (whole_old, whole_new) = (pairs_old, pairs_new);
            if whole_old | whole_new == 0 {
                return;
            }
        }
    }

    #[inline]
    fn blocks_changed(&mut self, order: u32, word: u64, old: u64, new: u64) {
        let count = &mut self.counts[order as usize];
        *count = *count + u64::from(new.count_ones()) - u64::from(old.count_ones());
        let none_left = u64::from(*count == 0);
        self.present = self.present & !(1 << order) | (1 - none_left) << order;
        if old == 0 {
            self.words[order as usize].insert(word as usize);
        } else if new == 0 {
            self.words[order as usize].remove(word as usize);
        }
    }

    pub fn bytes(&self) -> usize {
        let sets: usize = self.words.iter().map(SummarySet::bytes).sum();
        sets + self.counts.len() * size_of::<u64>()
    }
}
