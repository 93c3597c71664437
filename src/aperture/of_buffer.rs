//! The windows of one buffer, by page. They are part of its state, so finding one takes its reservation and no other lock.
//!
//! Windows do not overlap. One whose space was taken for somebody else stays here, dead, until its pages are asked for again
//! or it is met on the way: whoever took it had no right to touch this buffer. Each new window looks at two others, so that no
//! more than half of them are dead for long.

use std::collections::BTreeMap;
use std::ops::Range;

use devpagemap_fence::sync::lending::{Lender, Loan};

use super::window::Shown;

/// How many windows each new one looks at, to drop the dead.
const SWEPT_AT_ONCE: usize = 2;

/// All windows of a buffer's present place. The buffer's reservation.
#[derive(Debug, Default)]
pub(crate) struct BufferWindows {
    /// By first page.
    by_page: BTreeMap<u64, Kept>,
    /// Where sweeping goes on.
    sweep_from: u64,
}

#[derive(Debug)]
struct Kept {
    /// Behind its last page.
    end: u64,
    lender: Lender<Shown>,
}

/// How far a range is shown.
#[derive(Debug, Default)]
pub(super) struct Cover {
    /// What is shown of it, in order. They are on loan, so nobody takes them meanwhile.
    pub(super) loans: Vec<Loan<Shown>>,
    /// What is not.
    pub(super) gaps: Vec<Range<u64>>,
}

impl BufferWindows {
    /// The one window that shows all of `pages`.
    #[inline]
    pub(super) fn find(&self, pages: &Range<u64>) -> Option<Loan<Shown>> {
        let (_, kept) = self.by_page.range(..=pages.start).next_back()?;
        if kept.end < pages.end {
            return None;
        }
        kept.lender.lend()
    }

    /// Everything that shows a part of `pages`, and what nothing shows.
    pub(super) fn cover(&mut self, pages: &Range<u64>) -> Cover {
        let before = self.by_page.range(..pages.start).next_back();
        let first =
            before.filter(|(_, kept)| kept.end > pages.start).map_or(pages.start, |(first, _)| *first);
        let (mut cover, mut dead, mut reached) = (Cover::default(), Vec::new(), pages.start);
        for (start, kept) in self.by_page.range(first..pages.end) {
            let Some(loan) = kept.lender.lend() else {
                dead.push(*start);
                continue;
            };
            if reached < *start {
                cover.gaps.push(reached..*start);
            }
            reached = kept.end;
            cover.loans.push(loan);
        }
        if reached < pages.end {
            cover.gaps.push(reached..pages.end);
        }
        for start in dead {
            self.by_page.remove(&start);
        }
        cover
    }

    /// Adds a window, whose pages nothing shows.
    pub(super) fn insert(&mut self, lender: Lender<Shown>) {
        self.sweep();
        let Range { start, end } = lender.pages;
        let replaced = self.by_page.insert(start, Kept { end, lender });
        debug_assert!(replaced.is_none(), "the windows of a buffer do not overlap");
    }

    fn sweep(&mut self) {
        let dead = |(start, kept): (&u64, &Kept)| (*start, kept.lender.is_taken_back());
        let looked_at: Vec<_> = self.by_page.range(self.sweep_from..).take(SWEPT_AT_ONCE).map(dead).collect();
        self.sweep_from = looked_at.last().map_or(0, |(start, _)| start + 1);
        for (start, _) in looked_at.into_iter().filter(|(_, dead)| *dead) {
            self.by_page.remove(&start);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_page.is_empty()
    }

    pub(super) fn into_lenders(self) -> impl Iterator<Item = Lender<Shown>> {
        self.by_page.into_values().map(|kept| kept.lender)
    }
}
