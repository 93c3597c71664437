//! A set of small integers in which the next and the previous member are found in a few loads.
//!
//! A bitmap, over it a bitmap that says which of its words are not zero, over that one another, up to a single word. With
//! 64 bits a word, four levels serve 16 million members. An update stops at the first level that needs no change,
//! which is nearly always the lowest.

use alloc::vec;
use alloc::vec::Vec;

/// Levels that suffice for the largest region's pages.
const LEVELS_MAX: usize = 6;

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SummarySet {
    /// All levels, the lowest first.
    words: Vec<u64>,
    /// Where each level begins in `words`, and the last one ends; constant.
    starts: [u32; LEVELS_MAX + 1],
    /// Number of levels; constant.
    levels: usize,
}

impl SummarySet {
    /// An empty set of members below `capacity`.
    pub fn new(capacity: usize) -> SummarySet {
        let (mut starts, mut levels, mut total, mut len) = ([0; LEVELS_MAX + 1], 0, 0, capacity.max(1));
        loop {
            len = len.div_ceil(64);
            levels += 1;
            total += len;
            starts[levels] = total as u32;
            if len == 1 {
                return SummarySet { words: vec![0; total], starts, levels };
            }
        }
    }

    #[inline]
    pub fn insert(&mut self, member: usize) {
        let mut at = member;
        for level in 0..self.levels {
            let word = &mut self.words[self.starts[level] as usize + at / 64];
            let was = *word;
            *word = was | 1 << (at % 64);
            if was != 0 {
                return;
            }
            at /= 64;
        }
    }

    #[inline]
    pub fn remove(&mut self, member: usize) {
        let mut at = member;
        for level in 0..self.levels {
            let word = &mut self.words[self.starts[level] as usize + at / 64];
            *word &= !(1 << (at % 64));
            if *word != 0 {
                return;
            }
            at /= 64;
        }
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.words[self.words.len() - 1] == 0
    }

    /// The smallest member of a set that is not empty.
    #[inline]
    pub fn first(&self) -> usize {
        self.descend(self.levels, 0, true)
    }

    /// The largest member of a set that is not empty.
    #[inline]
    pub fn last(&self) -> usize {
        self.descend(self.levels, 0, false)
    }

    /// The smallest member that is at least `from`.
    #[inline]
    pub fn next(&self, from: usize) -> Option<usize> {
        let mut at = from;
        for level in 0..self.levels {
            let start = self.starts[level] as usize;
            if start + at / 64 >= self.starts[level + 1] as usize {
                return None;
            }
            let word = self.words[start + at / 64] & (u64::MAX << (at % 64));
            if word != 0 {
                return Some(self.descend(level, at / 64 * 64 + word.trailing_zeros() as usize, true));
            }
            at = at / 64 + 1;
        }
        None
    }

    /// The largest member that is at most `upto`, which must be below the capacity.
    #[inline]
    pub fn previous(&self, upto: usize) -> Option<usize> {
        let mut at = upto;
        for level in 0..self.levels {
            let word = self.words[self.starts[level] as usize + at / 64] & (u64::MAX >> (63 - at % 64));
            if word != 0 {
                return Some(self.descend(level, at / 64 * 64 + 63 - word.leading_zeros() as usize, false));
            }
            at = (at / 64).checked_sub(1)?;
        }
        None
    }

    /// From bit `at` of `level`, which stands for word `at` below, down to the first or last member under it.
    #[inline]
    fn descend(&self, level: usize, mut at: usize, first: bool) -> usize {
        for below in (0..level).rev() {
            let word = self.words[self.starts[below] as usize + at];
            let bit = if first { word.trailing_zeros() } else { 63 - word.leading_zeros() };
            at = at * 64 + bit as usize;
        }
        at
    }

    pub fn bytes(&self) -> usize {
        self.words.len() * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_answers_like_a_sorted_set(
            capacity in prop_oneof![1usize..200, 4000usize..4200, 262_000usize..262_300],
            steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..80),
        ) {
            let (mut set, mut model) = (SummarySet::new(capacity), BTreeSet::new());
            for (insert, index) in steps {
                let member = index.index(capacity);
                if insert {
                    set.insert(member);
                    model.insert(member);
                } else {
                    set.remove(member);
                    model.remove(&member);
                }
                prop_assert_eq!(set.is_empty(), model.is_empty());
                if !set.is_empty() {
                    prop_assert_eq!((Some(&set.first()), Some(&set.last())), (model.first(), model.last()));
                }
                for probe in [0, member, (member * 7 + 3) % capacity, capacity - 1] {
                    prop_assert_eq!(set.next(probe), model.range(probe..).next().copied());
                    prop_assert_eq!(set.previous(probe), model.range(..=probe).next_back().copied());
                }
                prop_assert_eq!(set.next(capacity), None);
            }
        }
    }
}
