//! A heap: the buddy allocator, plus the memory that is free only behind a fence.
//!
//! Allocation takes idle bytes first, then fenced bytes and the oldest ghosts, whose fences become dependencies of the
//! new user. How *many* bytes can be had never depends on which fences happen to have signalled, so decisions that are
//! made by counting bytes are the same in every run.

use std::ops::Range;

use devpagemap_allocator::{AllocError, Buddy, PAGE_BYTES, Request, Span};
use devpagemap_fence::FenceSet;

use super::ghost::{FencedSpans, GhostId, Ghosts};

/// Bytes taken from a heap, and the fences of their former users.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// In address order, adjacent ones merged. Owned by the taker.
    pub(crate) spans: Vec<Span>,
    /// What must have signalled before the first access. Owned by the taker.
    pub(crate) after: FenceSet,
}

impl Taken {
    pub(crate) fn len_bytes(&self) -> u64 {
        self.spans.iter().map(|span| span.len_bytes).sum()
    }

    /// Adds what another call took.
    pub(crate) fn merge(&mut self, other: Taken) {
        self.spans.extend(other.spans);
        self.spans.sort_unstable();
        self.spans.dedup_by(|next, kept| {
            let adjacent = kept.end_bytes() == next.start_bytes;
            if adjacent {
                kept.len_bytes += next.len_bytes;
            }
            adjacent
        });
        self.after.merge(&other.after);
    }
}

/// The free memory of a region. Everything here is under the region lock.
#[derive(Debug)]
pub(crate) struct Heap {
    /// The region lock.
    buddy: Buddy,
    /// The region lock.
    ghosts: Ghosts,
    /// The region lock.
    fenced: FencedSpans,
}

impl Heap {
    pub(crate) fn new(size_bytes: u64) -> Result<Heap, AllocError> {
        Ok(Heap { buddy: Buddy::new(size_bytes)?, ghosts: Ghosts::default(), fenced: FencedSpans::default() })
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.buddy.size_bytes()
    }

    /// Free bytes, idle or behind a fence.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.buddy.free_bytes() + self.ghosts.bytes()
    }

    /// Bytes that are free only once a fence signals and have not been made allocatable.
    pub(crate) fn ghost_bytes(&self) -> u64 {
        self.ghosts.bytes()
    }

    /// How many moved or destroyed buffers still keep their old place.
    pub(crate) fn ghost_count(&self) -> usize {
        self.ghosts.len()
    }

    pub(crate) fn largest_free_bytes(&self) -> u64 {
        self.buddy.largest_free_bytes()
    }

    /// All or nothing: `request`, from idle memory if that can serve it, else with ghosts, oldest first.
    pub(crate) fn take(&mut self, request: &Request) -> Result<Taken, AllocError> {
        loop {
            match self.buddy.alloc(request) {
                Ok(spans) => return Ok(self.taken(spans)),
                Err(
                    error @ (AllocError::Exhausted { .. }
                    | AllocError::Fragmented { .. }
                    | AllocError::Busy { .. }),
                ) => {
                    let Some(ghost) = self.oldest_ghost_in(&request.range) else { return Err(error) };
                    self.make_allocatable(ghost);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// As many bytes of a scattered `request` as there are, idle ones first.
    pub(crate) fn take_up_to(&mut self, request: &Request) -> Taken {
        let mut taken = Taken::default();
        loop {
            let missing = request.len_bytes - taken.len_bytes();
            if missing == 0 {
                return taken;
            }
            let spans = self.buddy.alloc_up_to(&Request { len_bytes: missing, ..request.clone() });
            let more = self.taken(spans);
            taken.merge(more);
            if taken.len_bytes() == request.len_bytes {
                return taken;
            }
            let Some(ghost) = self.oldest_ghost_in(&request.range) else { return taken };
            self.make_allocatable(ghost);
        }
    }

    /// Exactly these bytes.
    ///
    /// # Errors
    /// [`AllocError::Busy`] and nothing taken when one of them is in use.
    pub(crate) fn take_exact(&mut self, spans: &[Span]) -> Result<Taken, AllocError> {
        let mut taken = Taken::default();
        for span in spans {
            let request =
                Request::new(span.len_bytes).within(span.start_bytes..span.end_bytes()).contiguous();
            match self.take(&request) {
                Ok(more) => taken.merge(more),
                Err(error) => {
                    self.give_back_unused(taken);
                    return Err(error);
                }
            }
        }
        Ok(taken)
    }

    /// Gives bytes back behind `fences`. `None` when they are idle at once.
    pub(crate) fn give_back(&mut self, spans: Vec<Span>, mut fences: FenceSet) -> Option<GhostId> {
        fences.prune();
        if fences.is_empty() {
            self.free(&spans);
            return None;
        }
        Some(self.ghosts.add(spans, fences))
    }

    /// Undoes a take: the bytes were not touched, so they keep the fences they came with.
    pub(crate) fn give_back_unused(&mut self, taken: Taken) {
        self.free(&taken.spans);
        if taken.after.is_signaled() {
            return;
        }
        for span in &taken.spans {
            self.fenced.add(*span, &taken.after);
        }
    }

    /// Takes out a ghost whose fence has signalled, for the caller to [`Heap::free`]. `None`: somebody reused it.
    pub(crate) fn reap(&mut self, id: GhostId) -> Option<Vec<Span>> {
        self.ghosts.remove(id).map(|ghost| ghost.spans)
    }

    /// The ghosts whose fences have signalled.
    pub(crate) fn signalled_ghosts(&self) -> Vec<GhostId> {
        self.ghosts.signalled()
    }

    /// Marks bytes idle.
    pub(crate) fn free(&mut self, spans: &[Span]) {
        for span in spans {
            if let Err(error) = self.buddy.free(*span) {
                panic!("a region gave back memory that it does not own: {error}");
            }
        }
    }

    /// The bytes that could be had without evicting anybody, in address order, merged.
    pub(crate) fn free_spans(&self) -> Vec<Span> {
        let ghosts = self.ghosts.iter().flat_map(|ghost| ghost.spans.iter().copied());
        let mut all = Taken::default();
        all.merge(Taken { spans: self.buddy.free_spans().chain(ghosts).collect(), after: FenceSet::new() });
        all.spans
    }

    fn taken(&mut self, spans: Vec<Span>) -> Taken {
        let mut after = FenceSet::new();
        if !self.fenced.is_empty() {
            for span in &spans {
                let fences = self.fenced.take(*span);
                #[cfg(not(loom_mutant = "reused_bytes_lose_their_fences"))]
                after.merge(&fences);
            }
            after.prune();
        }
        Taken { spans, after }
    }

    fn oldest_ghost_in(&self, range: &Range<u64>) -> Option<GhostId> {
        self.ghosts.oldest_where(|span| span.start_bytes < range.end && span.end_bytes() > range.start)
    }

    fn make_allocatable(&mut self, id: GhostId) {
        let Some(ghost) = self.ghosts.remove(id) else { return };
        self.free(&ghost.spans);
        self.fenced.prune();
        if ghost.fences.is_signaled() {
            return;
        }
        for span in &ghost.spans {
            self.fenced.add(*span, &ghost.fences);
        }
    }
}

/// `len_bytes` in whole pages; `None` when that overflows.
pub(crate) fn round_up_to_pages(len_bytes: u64) -> Option<u64> {
    len_bytes.checked_next_multiple_of(PAGE_BYTES)
}
