//! The self-check: everything derived is computed again from the tree, and compared.

use crate::Buddy;
use crate::orders::Orders;
use crate::pages::Pages;
use crate::word::WORD_SHIFT;

impl Buddy {
    /// Panics when the allocator's own data contradict each other. For tests and fuzzing: it looks at every word,
    /// about 10 us for each GiB of the region.
    ///
    /// # Panics
    /// When an invariant is broken, naming it; that is a defect of this crate.
    #[doc(hidden)]
    pub fn debug_check_consistency(&self) {
        let pages = &self.pages;
        let level_words: alloc::vec::Vec<u64> =
            (0..=pages.top()).map(|level| pages.words_of(level)).collect();
        assert_eq!(level_words[level_words.len() - 1], 1, "the root is one word");
        let mut orders = Orders::new(&level_words);
        for level in 0..=pages.top() {
            for word in 0..level_words[level as usize] {
                check_word(pages, level, word);
                orders.word_changed(level, word, 0, pages.full(level, word));
            }
        }
        assert!(&orders == pages.orders(), "the index by order does not match the tree");
        assert_eq!(pages.free(), pages.free_in(0, pages.size()), "the free pages do not add up");
    }
}

fn check_word(pages: &Pages, level: u32, word: u64) {
    let (full, some) = (pages.full(level, word), pages.some(level, word));
    let at = (level, word);
    assert_ne!(full, u64::MAX, "word {at:?} is wholly free, but is not folded into its parent");
    assert_eq!(full & some, 0, "children of word {at:?} are both full and partly free");
    if full != 0 {
        let last = (word << WORD_SHIFT) + u64::from(63 - full.leading_zeros());
        let end = (last + 1) << (level * WORD_SHIFT);
        assert!(end <= pages.size(), "word {at:?} has free pages past the region's end");
    }
    if level == 0 {
        return;
    }
    let mut free = u64::from(full.count_ones()) << (level * WORD_SHIFT);
    for place in 0..64 {
        let child = (word << WORD_SHIFT) + place;
        if child >= pages.words_of(level - 1) {
            assert_eq!((full | some) >> place & 1, 0, "word {at:?} has a child past the level's end");
            continue;
        }
        let below = pages.full(level - 1, child) | pages.some(level - 1, child);
        assert_eq!(some >> place & 1 == 1, below != 0, "child {place} of word {at:?} is partly free or not");
        free += pages.free_under(level - 1, child);
    }
    assert_eq!(pages.free_under(level, word), free, "free pages under word {at:?}");
    check_summaries(pages, level, word);
}

/// Every summary that is not marked, nor under one that is, is what computing it again gives.
fn check_summaries(pages: &Pages, level: u32, word: u64) {
    let stale = if level > 1 { pages.stale_children(level, word) } else { 0 };
    let mut fresh = if level > 1 { pages.some(level, word) & !stale } else { 0 };
    while fresh != 0 {
        let child = (word << WORD_SHIFT) + u64::from(fresh.trailing_zeros());
        let summary = pages.summarize(level - 1, child);
        assert_eq!(pages.summary(level - 1, child), summary, "runs under word {:?}", (level - 1, child));
        let below =
            if level > 2 { pages.stale_children(level - 1, child) & pages.some(level - 1, child) } else { 0 };
        assert_eq!(below, 0, "word {:?} is not marked, but words under it are", (level - 1, child));
        fresh &= fresh - 1;
    }
    if level == pages.top() && !pages.root_is_stale() {
        assert_eq!(pages.summary(level, word), pages.summarize(level, word), "runs under the root");
        assert_eq!(stale & pages.some(level, word), 0, "the root is not marked, but words under it are");
    }
}
