//! The buddy allocator: chooses which free pages an allocation gets.
//!
//! # Policy
//!
//! The best-fitting *order* comes first, the address second. Of all free blocks (maximal, aligned, `2^order` pages) a request is
//! served from one of the smallest order that holds it, and among those from the lowest address, or the highest top
//! down. So a small request never breaks a large block while a smaller one would do, and within one order
//! the region fills from one end, which leaves the other end whole.
//!
//! - **Contiguous** requests of any number of pages take the near end of the best-fitting block; the rest of the block stays
//!   free, nothing is rounded up. When no single block is large enough, a free run made of several neighbouring
//!   blocks is found if there is one (`runs.rs`).
//! - **Scattered** requests are served block by block, with few pieces: a block of about what is left is used if there
//!   is one, else the smallest larger one is cut, else the largest there is is used up. Any free page counts: a region can be
//!   filled to the last one.
//! - **Ranges** have blocks across their ends, of which only a part may be used. Such a part competes by its length, like
//!   a block of the next smaller power of two.
//!
//! `best_fit.rs` finds the blocks.
//!
//! Nothing is remembered of an allocation: any page-aligned part or union of what was allocated can be freed.

use alloc::vec::Vec;
use core::fmt;
use core::iter;
use core::ops::Range;

use crate::find::{PageState, Window};
use crate::pages::Pages;
use crate::request::Plan;
use crate::runs::Wanted;
use crate::span::PAGE_SHIFT;
use crate::{AllocError, PAGE_BYTES, Request, Span};

/// The largest region: 16 TiB.
///
/// Bookkeeping takes about 1/26000 of a region (320 KiB for 8 GiB). It is asked for in one piece as zeroed memory, which
/// an operating system hands out as it is written to, so even the largest region begins with about 70 MiB of its 630.
pub const MAX_REGION_BYTES: u64 = 1 << 44;

/// A buddy allocator for one region.
///
/// All lengths and addresses are in bytes and multiples of [`PAGE_BYTES`]. It is plain data without a lock: put it under
/// the lock of the region it describes. Allocating and freeing take time logarithmic in the region's size, and
/// linear in the number of spans.
///
/// ```
/// use devpagemap_allocator::{AllocError, Buddy, Request, Span};
///
/// let mut vram = Buddy::new(1 << 20)?;
/// let spans = vram.alloc(&Request::new(0x5000).contiguous())?;
/// assert_eq!(spans, [Span { start_bytes: 0, len_bytes: 0x5000 }]);
///
/// // Part of it back; the same part twice is refused.
/// let tail = Span { start_bytes: 0x4000, len_bytes: 0x1000 };
/// vram.free(tail)?;
/// assert!(matches!(vram.free(tail), Err(AllocError::AlreadyFree { free_at_bytes: 0x4000, .. })));
/// assert_eq!(vram.free_bytes(), (1 << 20) - 0x4000);
/// # Ok::<(), AllocError>(())
/// ```
#[derive(Clone)]
pub struct Buddy {
    pub(crate) pages: Pages,
}

impl Buddy {
    /// An allocator for a region of `size_bytes`, all of it free: any multiple of [`PAGE_BYTES`] up to
    /// [`MAX_REGION_BYTES`].
    ///
    /// # Errors
    /// [`AllocError::InvalidRegion`] for any other size.
    pub fn new(size_bytes: u64) -> Result<Buddy, AllocError> {
        if size_bytes == 0 || !size_bytes.is_multiple_of(PAGE_BYTES) || size_bytes > MAX_REGION_BYTES {
            return Err(AllocError::InvalidRegion { size_bytes });
        }
        Ok(Buddy { pages: Pages::new(size_bytes >> PAGE_SHIFT) })
    }

    /// Allocates all of `request`, or nothing. The spans are sorted, and those that touch are merged.
    ///
    /// # Errors
    /// A bad request: `Invalid*`, [`TooLarge`](AllocError::TooLarge). A good one that does not fit now:
    /// [`Exhausted`](AllocError::Exhausted), [`Fragmented`](AllocError::Fragmented),
    /// [`Busy`](AllocError::Busy). Fragmented is never an approximation: a scattered request fails only when there are too few
    /// whole blocks, a contiguous one only when no run fits.
    pub fn alloc(&mut self, request: &Request) -> Result<Vec<Span>, AllocError> {
        let mut spans = Vec::new();
        self.alloc_into(request, &mut spans)?;
        Ok(spans)
    }

    /// As [`alloc`](Buddy::alloc), but appends to `spans`, so that a loop can reuse one list. On an error `spans` is as it was.
    ///
    /// # Errors
    /// As [`alloc`](Buddy::alloc).
    pub fn alloc_into(&mut self, request: &Request, spans: &mut Vec<Span>) -> Result<(), AllocError> {
        let plan = Plan::new(request, self.size_bytes())?;
        let Window { start, end, .. } = plan.window;
        if plan.exact {
            let span = self.take_exactly(start, end)?;
            spans.push(span);
            return Ok(());
        }
        let free = if self.pages.covered_by(&plan.window) {
            self.pages.free()
        } else {
            self.pages.free_in(start, end)
        };
        if free < plan.len {
            let (wanted_bytes, free_bytes) = (request.len_bytes, free << PAGE_SHIFT);
            return Err(AllocError::Exhausted { wanted_bytes, free_bytes });
        }
        let kept = spans.len();
        let done = if plan.contiguous { self.take_run(&plan, spans) } else { self.take_blocks(&plan, spans) };
        if done < plan.len {
            self.put_back(spans, kept);
            return Err(self.fragmented(request));
        }
        merge(spans, kept);
        Ok(())
    }

    /// Allocates as much of `request` as there is: less than asked for, or nothing, when no more is free in blocks that it
    /// allows. A contiguous request gets the longest run. A request that is not valid gets nothing.
    ///
    /// ```
    /// use devpagemap_allocator::{Buddy, Request};
    ///
    /// let mut vram = Buddy::new(1 << 20)?;
    /// vram.alloc(&Request::new(0x8_0000))?;
    /// let spans = vram.alloc_up_to(&Request::new(0xc_0000));
    /// assert_eq!(spans.iter().map(|span| span.len_bytes).sum::<u64>(), 0x8_0000);
    /// # Ok::<(), devpagemap_allocator::AllocError>(())
    /// ```
    pub fn alloc_up_to(&mut self, request: &Request) -> Vec<Span> {
        let mut spans = Vec::new();
        let Ok(plan) = Plan::new(&self.shortened(request), self.size_bytes()) else { return spans };
        if !plan.contiguous {
            self.take_blocks(&plan, &mut spans);
        } else if self.take_run(&plan, &mut spans) == 0 {
            self.pages.refresh_runs();
            let longest = self.pages.longest_run_in(plan.align, plan.window);
            if let Some(run) = longest {
                self.take_near(run, &Plan { len: run.1 - run.0, ..plan }, &mut spans);
            }
        }
        merge(&mut spans, 0);
        spans
    }

    /// Gives `span` back: any part or union of allocated bytes.
    ///
    /// # Errors
    /// [`AllocError::InvalidSpan`], and [`AllocError::AlreadyFree`] when any page of it is free; nothing changes then.
    pub fn free(&mut self, span: Span) -> Result<(), AllocError> {
        let Span { start_bytes, len_bytes } = span;
        let Some((start, end)) = self.pages_of(span) else {
            return Err(AllocError::InvalidSpan { start_bytes, len_bytes, size_bytes: self.size_bytes() });
        };
        if !self.pages.all_are(start, end, PageState::Taken) {
            let free_at_bytes = self.pages.next(start, PageState::Free).unwrap_or(start) << PAGE_SHIFT;
            return Err(AllocError::AlreadyFree { start_bytes, len_bytes, free_at_bytes });
        }
        self.pages.put(start, end);
        Ok(())
    }

    /// Free bytes in all.
    pub fn free_bytes(&self) -> u64 {
        self.pages.free() << PAGE_SHIFT
    }

    /// Free bytes in the whole pages of `range`; what lies outside the region counts as taken.
    pub fn free_bytes_in(&self, range: Range<u64>) -> u64 {
        let start = range.start.div_ceil(PAGE_BYTES);
        let end = range.end.min(self.size_bytes()) >> PAGE_SHIFT;
        self.pages.free_in(start, end) << PAGE_SHIFT
    }

    /// The largest contiguous allocation that would succeed now, at page alignment.
    ///
    /// Constant time right after a contiguous allocation that failed or needed several blocks; otherwise it looks at what
    /// changed since.
    pub fn largest_free_bytes(&self) -> u64 {
        self.pages.longest_run() << PAGE_SHIFT
    }

    /// Free blocks of `2^order` pages that are not part of a larger free block: how fragmented the region is.
    pub fn free_blocks(&self, order: u32) -> u64 {
        let known = self.pages.orders().present() & 1u64.checked_shl(order).unwrap_or(0) != 0;
        if known { self.pages.count_blocks(order, u64::MAX) } else { 0 }
    }

    /// The region's size.
    pub fn size_bytes(&self) -> u64 {
        self.pages.size() << PAGE_SHIFT
    }

    /// What the allocator itself occupies on the heap.
    pub fn metadata_bytes(&self) -> u64 {
        self.pages.bytes() as u64
    }

    /// Whether `span` is in the region, page aligned, not empty, and wholly free.
    pub fn is_free(&self, span: Span) -> bool {
        self.pages_of(span).is_some_and(|(start, end)| self.first_taken(start, end).is_none())
    }

    /// The free bytes as the longest possible spans, in address order.
    pub fn free_spans(&self) -> impl Iterator<Item = Span> + '_ {
        let mut at = 0;
        iter::from_fn(move || {
            let start = self.pages.next(at, PageState::Free)?;
            at = self.pages.next(start, PageState::Taken).unwrap_or(self.pages.size());
            Some(Span::of_pages(start, at))
        })
    }

    /// `span` as start and end in pages, when it is one that the region can hold.
    fn pages_of(&self, span: Span) -> Option<(u64, u64)> {
        let end_bytes = span.start_bytes.checked_add(span.len_bytes)?;
        let aligned =
            span.start_bytes.is_multiple_of(PAGE_BYTES) && span.len_bytes.is_multiple_of(PAGE_BYTES);
        let inside = span.len_bytes > 0 && end_bytes <= self.size_bytes();
        (aligned && inside).then_some((span.start_bytes >> PAGE_SHIFT, end_bytes >> PAGE_SHIFT))
    }

    fn first_taken(&self, start: u64, end: u64) -> Option<u64> {
        self.pages.next(start, PageState::Taken).filter(|&taken| taken < end)
    }

    fn take_exactly(&mut self, start: u64, end: u64) -> Result<Span, AllocError> {
        let span = Span::of_pages(start, end);
        if let Some(taken) = self.first_taken(start, end) {
            let Span { start_bytes, len_bytes } = span;
            return Err(AllocError::Busy { start_bytes, len_bytes, taken_at_bytes: taken << PAGE_SHIFT });
        }
        self.pages.take(start, end);
        Ok(span)
    }

    /// The request cut down to what its range could hold if all of it were free.
    fn shortened(&self, request: &Request) -> Request {
        match Plan::new(request, self.size_bytes()) {
            Err(AllocError::TooLarge { range_bytes, .. }) => {
                Request { len_bytes: range_bytes, ..request.clone() }
            }
            _ => request.clone(),
        }
    }

    /// The scattered allocation: whole blocks first, then what is less than one. Returns how many pages it got.
    fn take_blocks(&mut self, plan: &Plan, spans: &mut Vec<Span>) -> u64 {
        let whole = plan.len >> plan.align << plan.align;
        let window = Window { end: plan.window.end >> plan.align << plan.align, ..plan.window };
        let mut done = 0;
        while done < whole {
            let rest = Plan { len: whole - done, window, ..*plan };
            let Some(block) = self.pages.best_piece(rest.len, rest.align, &window) else { return done };
            done += self.take_near(block, &rest, spans);
        }
        if done < plan.len {
            done += self.take_run(&Plan { len: plan.len - done, ..*plan }, spans);
        }
        done
    }

    /// The contiguous allocation. Returns how many pages it got: all or none.
    fn take_run(&mut self, plan: &Plan, spans: &mut Vec<Span>) -> u64 {
        let mut run = self.pages.smallest_block(plan.len, plan.align, &plan.window);
        if run.is_none() {
            self.pages.refresh_runs();
            run = self.pages.run_in(Wanted { len: plan.len, align: plan.align, window: plan.window });
        }
        run.map_or(0, |run| self.take_near(run, plan, spans))
    }

    /// Takes the plan's pages, or as many as there are, from the near end of a free run that starts aligned.
    fn take_near(&mut self, run: (u64, u64), plan: &Plan, spans: &mut Vec<Span>) -> u64 {
        let len = plan.len.min(run.1 - run.0);
        let start = if plan.window.top_down { (run.1 - len) >> plan.align << plan.align } else { run.0 };
        self.pages.take(start, start + len);
        spans.push(Span::of_pages(start, start + len));
        len
    }

    /// Undoes the allocations in `spans` from `kept` on.
    fn put_back(&mut self, spans: &mut Vec<Span>, kept: usize) {
        for span in spans.drain(kept..) {
            self.pages.put(span.start_bytes >> PAGE_SHIFT, span.end_bytes() >> PAGE_SHIFT);
        }
    }

    fn fragmented(&mut self, request: &Request) -> AllocError {
        self.pages.refresh_runs();
        let end = request.range.end.min(self.size_bytes());
        let window =
            Window { start: request.range.start >> PAGE_SHIFT, end: end >> PAGE_SHIFT, top_down: false };
        let longest = if self.pages.covered_by(&window) {
            self.pages.longest_run()
        } else {
            self.pages.longest_run_in(0, window).map_or(0, |(start, end)| end - start)
        };
        AllocError::Fragmented { wanted_bytes: request.len_bytes, largest_bytes: longest << PAGE_SHIFT }
    }
}

impl fmt::Debug for Buddy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buddy")
            .field("size_bytes", &self.size_bytes())
            .field("free_bytes", &self.free_bytes())
            .field("largest_free_bytes", &self.largest_free_bytes())
            .finish()
    }
}

/// Sorts `spans` from `kept` on, and joins those that touch.
fn merge(spans: &mut Vec<Span>, kept: usize) {
    if spans.len() - kept < 2 {
        return;
    }
    spans[kept..].sort_unstable();
    let mut last = kept;
    for next in kept + 1..spans.len() {
        if spans[last].end_bytes() == spans[next].start_bytes {
            spans[last].len_bytes += spans[next].len_bytes;
        } else {
            last += 1;
            spans[last] = spans[next];
        }
    }
    spans.truncate(last + 1);
}
