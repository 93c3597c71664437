//! The windows of one buffer, by page. They are part of its state, so finding one takes its reservation and no other lock.
//!
//! ```text
//!   page ──► directory ──► leaf: a number for each of 512 pages ──► the window
//!            (leaves are made when they are needed)
//! ```
//!
//! So finding a window costs the same whether there are ten or a hundred thousand. Windows do not overlap. One whose space was
//! taken for somebody else stays here, dead, until its pages are asked for again or it is met on the way: whoever took it had
//! no right to touch this buffer. Each new window looks at two others, so that no more than half of them are dead for long.

use std::ops::Range;

use devpagemap_fence::sync::lending::{Lender, Loan};
use slab::Slab;

use super::window::Shown;
use crate::region::push_run;

/// How many windows each new one looks at, to drop the dead.
const SWEPT_AT_ONCE: usize = 2;

/// Pages a leaf knows.
const LEAF_PAGES: u64 = 512;

/// For each page the number of its window plus one, or 0.
type Leaf = [u32; LEAF_PAGES as usize];

/// All windows of a buffer's present place. The buffer's reservation.
#[derive(Debug, Default)]
pub(crate) struct BufferWindows {
    /// Leaves, by page.
    directory: Vec<Option<Box<Leaf>>>,
    /// By number.
    kept: Slab<Kept>,
    /// Where sweeping goes on.
    sweep_from: usize,
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

/// What windows that stick out of a range mean for who is going to use it.
#[derive(Debug)]
pub(super) struct Trimmed {
    /// Pages that whoever uses the range keeps: those, and what else windows show that others have.
    pub(super) kept: Range<u64>,
    /// Windows that nobody has, dead ones among them.
    pub(super) idle: Vec<Lender<Shown>>,
}

impl BufferWindows {
    /// The one window that shows all of `pages`.
    #[inline]
    pub(super) fn find(&self, pages: &Range<u64>) -> Option<Loan<Shown>> {
        let kept = &self.kept[self.number_at(pages.start)?];
        if kept.end < pages.end {
            return None;
        }
        kept.lender.lend()
    }

    /// Everything that shows a part of `pages`, and what nothing shows.
    pub(super) fn cover(&mut self, pages: &Range<u64>) -> Cover {
        let mut cover = Cover::default();
        let mut page = pages.start;
        while page < pages.end {
            let Some(number) = self.number_at(page) else {
                push_run(&mut cover.gaps, page..page + 1);
                page += 1;
                continue;
            };
            match self.kept[number].lender.lend() {
                Some(loan) => {
                    page = self.kept[number].end;
                    cover.loans.push(loan);
                }
                None => self.remove(number),
            }
        }
        cover
    }

    /// Whoever keeps a part of a window keeps all of it. So this takes out the windows that show a part of `pages`, and more, if
    /// nobody has them: they are the caller's to hide. Of those that somebody has it says how far they reach. Nobody begins to
    /// use one meanwhile, as that takes the reservation.
    pub(super) fn trim(&mut self, pages: &Range<u64>) -> Trimmed {
        let mut trimmed = Trimmed { kept: pages.clone(), idle: Vec::new() };
        // Windows do not overlap, so it is the first or the last page of the range through which one sticks out.
        for page in [pages.start, pages.end - 1] {
            let Some(number) = self.number_at(page) else { continue };
            let lender = &self.kept[number].lender;
            let shown = lender.pages.clone();
            if pages.start <= shown.start && shown.end <= pages.end {
                continue;
            }
            if lender.is_lent() {
                let kept = &mut trimmed.kept;
                *kept = kept.start.min(shown.start)..kept.end.max(shown.end);
                continue;
            }
            trimmed.idle.push(lender.clone());
            self.remove(number);
        }
        trimmed
    }

    /// Adds a window, whose pages nothing shows.
    pub(super) fn insert(&mut self, lender: Lender<Shown>) {
        self.sweep();
        let pages = lender.pages.clone();
        let number = self.kept.insert(Kept { end: pages.end, lender });
        self.write(pages, u32::try_from(number + 1).expect("a device has less than 2^32 windows"));
    }

    fn remove(&mut self, number: usize) {
        let kept = self.kept.remove(number);
        self.write(kept.lender.pages.clone(), 0);
    }

    fn sweep(&mut self) {
        for _ in 0..SWEPT_AT_ONCE {
            let number = self.sweep_from;
            self.sweep_from = if number < self.kept.capacity() { number + 1 } else { 0 };
            if self.kept.get(number).is_some_and(|kept| kept.lender.is_taken_back()) {
                self.remove(number);
            }
        }
    }

    #[inline]
    fn number_at(&self, page: u64) -> Option<usize> {
        let leaf = self.directory.get((page / LEAF_PAGES) as usize)?.as_ref()?;
        (leaf[(page % LEAF_PAGES) as usize] as usize).checked_sub(1)
    }

    fn write(&mut self, pages: Range<u64>, number: u32) {
        let leaves = pages.end.div_ceil(LEAF_PAGES) as usize;
        if self.directory.len() < leaves {
            self.directory.resize_with(leaves, || None);
        }
        let mut page = pages.start;
        while page < pages.end {
            let (index, first) = ((page / LEAF_PAGES) as usize, page % LEAF_PAGES);
            let last = LEAF_PAGES.min(first + pages.end - page);
            let leaf = self.directory[index].get_or_insert_with(|| Box::new([0; LEAF_PAGES as usize]));
            leaf[first as usize..last as usize].fill(number);
            page += last - first;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    pub(super) fn into_lenders(self) -> impl Iterator<Item = Lender<Shown>> {
        self.kept.into_iter().map(|(_, kept)| kept.lender)
    }
}
