//! Runs of free pages that no power of two bounds: what serves a contiguous request when no single block does.
//!
//! A free run may consist of blocks that are neighbours but not buddies:
//!
//! ```text
//!   pages     0       4       8       12      16
//!             [ taken ][ free, 4 ][ free, 4 ][ taken ]       no free block of 8, a free run of 8
//! ```
//!
//! For each word of the tree above level 0 there is a [`Summary`]: the run it begins with, the longest inside, the run it ends
//! with, and the best alignment of any free page. A search walks the tree in address order, joins the ends of neighbours, and
//! skips every word whose summary says that nothing in it is long enough or aligned well enough. "There is no such run"
//! is answered by the root alone.
//!
//! Summaries are not kept up to date by each operation: that would cost more than the operation. A changed word
//! is marked, and the next contiguous search that needs the summaries computes those that were marked, each
//! once. Whoever never needs the search pays one bit an operation for it. A search that may not write walks into marked words
//! instead of trusting them.

use crate::find::Window;
use crate::pages::Pages;
use crate::word::{STARTS, WORD_SHIFT, has_run, longest_run, mask};

/// The free runs under one word of the tree. Lengths are in pages.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Free pages at its start.
    pub first: u64,
    /// The longest free run inside.
    pub longest: u64,
    /// Free pages at its end.
    pub last: u64,
    /// The most that the number of a free page is a multiple of, as a power of two.
    pub align: u32,
}

/// What a search wants.
#[derive(Copy, Clone)]
pub(crate) struct Wanted {
    /// At least so many pages,
    pub len: u64,
    /// from a multiple of `2^align` on,
    pub align: u32,
    /// in here.
    pub window: Window,
}

impl Pages {
    /// Computes the summaries that are out of date.
    pub fn refresh_runs(&mut self) {
        if self.root_is_stale() {
            self.refresh_under(self.top(), 0);
        }
    }

    fn refresh_under(&mut self, level: u32, word: u64) {
        // Those of level 0 are not stored.
        let mut stale = if level > 1 { self.stale_children(level, word) & self.some(level, word) } else { 0 };
        while stale != 0 {
            self.refresh_under(level - 1, (word << WORD_SHIFT) + u64::from(stale.trailing_zeros()));
            stale &= stale - 1;
        }
        let summary = self.summarize(level, word);
        self.set_summary(level, word, summary);
        self.set_fresh(level, word);
    }

    /// The longest free run.
    pub fn longest_run(&self) -> u64 {
        if !self.root_is_stale() {
            return self.summary(self.top(), 0).longest;
        }
        let window = Window { start: 0, end: self.size(), top_down: false };
        self.longest_run_in(0, window).map_or(0, |(start, end)| end - start)
    }

    /// The longest free run in a window, counted from its first multiple of `2^align`.
    pub fn longest_run_in(&self, align: u32, window: Window) -> Option<(u64, u64)> {
        // In all of the region there is a run at least as long as the largest block: shorter ones need no look.
        let everywhere = window.start == 0 && window.end == self.size() && align == 0;
        let known = if everywhere { self.orders().present().checked_ilog2().unwrap_or(0) } else { 0 };
        let mut search = Search::new(Wanted { len: 1 << known, align, window }, true);
        self.visit(self.top(), 0, &mut search);
        search.close();
        search.found
    }

    /// The first or last free run that fits, from its first aligned page on.
    pub fn run_in(&self, wanted: Wanted) -> Option<(u64, u64)> {
        if !self.root_is_stale() && self.summary(self.top(), 0).longest < wanted.len {
            return None;
        }
        let mut search = Search::new(wanted, false);
        self.visit(self.top(), 0, &mut search);
        search.close();
        search.found
    }

    /// Computes the summary of a word from its children's.
    pub(crate) fn summarize(&self, level: u32, word: u64) -> Summary {
        let shift = level * WORD_SHIFT;
        let (full, some) = (self.full(level, word), self.some(level, word));
        let mut summary = Summary {
            align: if full == 0 { 0 } else { shift + best_align(full, word) },
            ..Summary::default()
        };
        // The run that the children so far end with, and the child behind it.
        let (mut open, mut behind) = (0, 0);
        let mut children = full | some;
        while children != 0 {
            let place = children.trailing_zeros();
            let joins = place == behind;
            let run = if full >> place & 1 == 1 {
                let count = (!(full >> place)).trailing_zeros();
                children &= !mask(place.into(), (place + count).into());
                behind = place + count;
                let whole = u64::from(count) << shift;
                Summary { first: whole, longest: whole, last: whole, align: 0 }
            } else {
                children &= children - 1;
                behind = place + 1;
                self.child_summary(level - 1, (word << WORD_SHIFT) + u64::from(place), &summary)
            };
            let joined = if joins { open + run.first } else { run.first };
            summary.longest = summary.longest.max(joined).max(run.longest);
            summary.align = summary.align.max(run.align);
            let through = full >> place & 1 == 1 && joins;
            open = if through { open + run.last } else { run.last };
        }
        summary.first = self.first_run(level, word);
        summary.last = if behind == 64 { open } else { 0 };
        summary
    }

    /// The summary of a word of any level. At level 0 it is computed, but the longest run only when it could beat that
    /// found `so_far`.
    fn child_summary(&self, level: u32, word: u64, so_far: &Summary) -> Summary {
        if level > 0 {
            return self.summary(level, word);
        }
        let pages = self.full(0, word);
        Summary {
            first: pages.trailing_ones().into(),
            longest: if has_run(pages, so_far.longest + 1) { longest_run(pages) } else { 0 },
            last: pages.leading_ones().into(),
            align: best_align(pages, word),
        }
    }

    fn first_run(&self, level: u32, word: u64) -> u64 {
        let count = self.full(level, word).trailing_ones();
        let partly = self.some(level, word) >> count & 1 == 1;
        let child = (word << WORD_SHIFT) + u64::from(count);
        let rest = match (partly, level) {
            (false, _) => 0,
            (true, 1) => self.full(0, child).trailing_ones().into(),
            (true, _) => self.summary(level - 1, child).first,
        };
        (u64::from(count) << (level * WORD_SHIFT)) + rest
    }

    /// Feeds the free runs under a word to the search, in its direction; true when it has found what it wants.
    fn visit(&self, level: u32, word: u64, search: &mut Search) -> bool {
        let shift = level * WORD_SHIFT;
        let inside = search.wanted.window.children_touching(word, shift);
        let (full, some) = (self.full(level, word) & inside, self.some(level, word) & inside);
        let stale = self.stale_children(level, word);
        let mut children = full | some;
        while children != 0 {
            let place = search.next_of(children);
            children &= !(1 << place);
            let child = (word << WORD_SHIFT) + u64::from(place);
            let (start, end) = (child << shift, (child + 1) << shift);
            let found = if full >> place & 1 == 1 {
                search.feed(start, end)
            } else if level == 1 {
                self.visit_pages(child, search)
            } else if stale >> place & 1 == 1 || self.may_hold(level - 1, child, search) {
                self.visit(level - 1, child, search)
            } else {
                let summary = self.summary(level - 1, child);
                search.feed_ends(start, end, summary.first, summary.last)
            };
            if found {
                return true;
            }
        }
        false
    }

    fn may_hold(&self, level: u32, word: u64, search: &Search) -> bool {
        let summary = self.summary(level, word);
        summary.longest >= search.wanted.len && summary.align >= search.wanted.align
    }

    fn visit_pages(&self, word: u64, search: &mut Search) -> bool {
        let mut pages = self.full(0, word);
        let start = word << WORD_SHIFT;
        if !has_run(pages, search.wanted.len) {
            return search.feed_ends(
                start,
                start + 64,
                pages.trailing_ones().into(),
                pages.leading_ones().into(),
            );
        }
        while pages != 0 {
            let (from, to) = if search.wanted.window.top_down {
                let to = 64 - pages.leading_zeros();
                (to - (pages << (64 - to)).leading_ones(), to)
            } else {
                let from = pages.trailing_zeros();
                (from, from + (pages >> from).trailing_ones())
            };
            pages &= !mask(from.into(), to.into());
            if search.feed(start + u64::from(from), start + u64::from(to)) {
                return true;
            }
        }
        false
    }
}

/// The most that a number of the units of a word is a multiple of, as a power of two; `units` is not zero.
fn best_align(units: u64, word: u64) -> u32 {
    if units & 1 == 1 {
        return WORD_SHIFT + word.trailing_zeros();
    }
    (0..WORD_SHIFT).rev().find(|&j| units & STARTS[j as usize] != 0).unwrap_or(0)
}

/// A walk over free runs in address order, up or down.
struct Search {
    wanted: Wanted,
    /// Look for the longest, not for the first: what is wanted grows with what is found.
    for_longest: bool,
    /// The run that is still growing; empty in the beginning.
    open: (u64, u64),
    found: Option<(u64, u64)>,
}

impl Search {
    fn new(wanted: Wanted, for_longest: bool) -> Search {
        Search { wanted, for_longest, open: (0, 0), found: None }
    }

    /// The next child to visit.
    fn next_of(&self, children: u64) -> u32 {
        if self.wanted.window.top_down { 63 - children.leading_zeros() } else { children.trailing_zeros() }
    }

    /// The next free piece; joins the open run when it touches it. True when what was wanted is found.
    fn feed(&mut self, start: u64, end: u64) -> bool {
        if start == self.open.1 {
            self.open.1 = end;
            return false;
        }
        if end == self.open.0 {
            self.open.0 = start;
            return false;
        }
        let found = self.close();
        self.open = (start, end);
        found
    }

    /// The runs at both ends of `start..end`, between which nothing is of interest.
    fn feed_ends(&mut self, start: u64, end: u64, first: u64, last: u64) -> bool {
        let (low, high) = ((start, start + first), (end - last, end));
        let in_order = if self.wanted.window.top_down { [high, low] } else { [low, high] };
        in_order.into_iter().any(|(start, end)| start < end && self.feed(start, end))
    }

    /// The open run is complete: is it what is wanted?
    fn close(&mut self) -> bool {
        let Wanted { len, align, window } = self.wanted;
        let start = self.open.0.max(window.start).next_multiple_of(1 << align);
        let end = self.open.1.min(window.end);
        if start >= end || end - start < len || (self.found.is_some() && !self.for_longest) {
            return false;
        }
        self.found = Some((start, end));
        self.wanted.len = end - start + 1;
        !self.for_longest
    }
}
