//! A heap: the buddy allocator, plus the memory that is free only behind a fence.
//!
//! Allocation takes idle bytes first, then parts of the oldest ghosts, whose fences become dependencies of the new
//! user. How *many* bytes can be had never depends on which fences happen to have signalled, so decisions that are
//! made by counting bytes are the same in every run.

use std::ops::Range;

use devpagemap_allocator::{AllocError, Buddy, Mode, Request, Span};
use devpagemap_fence::FenceSet;
use devpagemap_fence::sync::mutant;

use super::ghost::{Ghost, GhostId, Ghosts, Unreaped};
use super::spans::{intersect_all, merge_adjacent, subtract_all, total_bytes};

/// Bytes taken from a heap, and the fences of their former users.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// In address order, adjacent ones merged. Owned by the taker.
    pub(crate) spans: Vec<Span>,
    /// The parts of `spans` that are not idle, and what ends their use. Owned by the taker.
    pending: Vec<Ghost>,
}

impl Taken {
    /// Bytes that go from one owner to the next without having been free, with what the former one's users wait for.
    pub(crate) fn handed_over(spans: Vec<Span>, fences: FenceSet) -> Taken {
        let pending =
            if fences.is_empty() { Vec::new() } else { vec![Ghost { spans: spans.clone(), fences }] };
        Taken { spans, pending }
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        total_bytes(&self.spans)
    }

    /// What must have signalled before the first access.
    pub(crate) fn after(&self) -> FenceSet {
        let mut after = FenceSet::new();
        if !mutant!("reused_bytes_lose_their_fences") {
            self.pending.iter().for_each(|part| after.merge(&part.fences));
        }
        after.prune();
        after
    }

    /// Adds what another call took.
    pub(crate) fn merge(&mut self, other: Taken) {
        self.spans.extend(other.spans);
        merge_adjacent(&mut self.spans);
        self.pending.extend(other.pending);
    }
}

/// The free memory of a region. Everything here is under the region lock.
#[derive(Debug)]
pub(crate) struct Heap {
    /// The region lock.
    buddy: Buddy,
    /// The region lock.
    ghosts: Ghosts,
}

impl Heap {
    pub(crate) fn new(size_bytes: u64) -> Result<Heap, AllocError> {
        Ok(Heap { buddy: Buddy::new(size_bytes)?, ghosts: Ghosts::default() })
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.buddy.size_bytes()
    }

    /// Free bytes, idle or behind a fence.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.buddy.free_bytes() + self.ghosts.bytes()
    }

    /// Free bytes in a range, idle or behind a fence.
    pub(crate) fn free_bytes_in(&self, range: &Range<u64>) -> u64 {
        if *range == (0..self.size_bytes()) {
            return self.free_bytes();
        }
        self.buddy.free_bytes_in(range.clone()) + self.ghosts.bytes_in(range)
    }

    /// Bytes that are free only once a fence signals.
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
        match request.mode {
            Mode::Scatter { .. } => self.take_scattered(request),
            Mode::Contiguous => self.take_contiguous(request),
        }
    }

    fn take_scattered(&mut self, request: &Request) -> Result<Taken, AllocError> {
        if self.free_bytes_in(&request.range) < request.len_bytes {
            // With less than what is asked for, the allocator refuses for the right reason.
            return self.buddy.alloc(request).map(|spans| Taken { spans, pending: Vec::new() });
        }
        Ok(self.take_up_to(request))
    }

    /// A run may lie across idle bytes and ghosts. Ghosts are lent to the allocator for the search, and what was not
    /// taken of them is theirs again.
    fn take_contiguous(&mut self, request: &Request) -> Result<Taken, AllocError> {
        let mut lent = Vec::new();
        let result = loop {
            match self.buddy.alloc(request) {
                Err(
                    AllocError::Exhausted { .. } | AllocError::Fragmented { .. } | AllocError::Busy { .. },
                ) if let Some(id) = self.ghosts.oldest_in(&request.range) => {
                    let ghost = self.ghosts.remove(id).expect("it was found just now");
                    self.free(&ghost.spans);
                    lent.push((id, ghost));
                }
                result => break result,
            }
        };
        let spans = result.as_deref().unwrap_or_default();
        let mut pending = Vec::new();
        for (id, ghost) in lent {
            let used = intersect_all(&ghost.spans, spans);
            let rest = subtract_all(&ghost.spans, spans);
            for span in &rest {
                self.buddy.alloc(&Request::exactly(*span)).expect("it was freed for the search only");
            }
            if !used.is_empty() {
                pending.push(Ghost { spans: used, fences: ghost.fences.clone() });
            }
            self.ghosts.put_back(id, Ghost { spans: rest, fences: ghost.fences });
        }
        result.map(|spans| Taken { spans, pending })
    }

    /// One run of idle bytes; ghosts stay what they are.
    pub(crate) fn take_idle_run(&mut self, request: &Request) -> Option<Span> {
        debug_assert_eq!(request.mode, Mode::Contiguous);
        self.buddy.alloc(request).ok()?.pop()
    }

    /// As many bytes of a scattered `request` as there are, idle ones first.
    pub(crate) fn take_up_to(&mut self, request: &Request) -> Taken {
        let mut taken = Taken { spans: self.buddy.alloc_up_to(request), pending: Vec::new() };
        while taken.len_bytes() < request.len_bytes
            && let Some(id) = self.ghosts.oldest_in(&request.range)
        {
            let part = self.ghosts.carve(id, &request.range, request.len_bytes - taken.len_bytes());
            taken.merge(Taken { spans: part.spans.clone(), pending: vec![part] });
        }
        taken
    }

    /// Exactly these bytes, all of which the caller knows to be free.
    ///
    /// # Panics
    /// When one of them is in use.
    pub(crate) fn take_exact(&mut self, spans: &[Span]) -> Taken {
        let mut taken = Taken::default();
        for span in spans {
            match self.take(&Request::exactly(*span)) {
                Ok(more) => taken.merge(more),
                Err(error) => panic!("{span} was known to be free: {error}"),
            }
        }
        taken
    }

    /// Gives bytes back behind `fences`. `None` when they are idle at once.
    pub(crate) fn give_back(&mut self, spans: Vec<Span>, mut fences: FenceSet) -> Option<Unreaped> {
        fences.prune();
        if fences.is_empty() {
            self.free(&spans);
            return None;
        }
        let id = self.ghosts.add(spans, fences.clone());
        Some(Unreaped { id, fences })
    }

    /// Undoes a take: the bytes were not touched. What was idle is idle again, what was not is a ghost again.
    pub(crate) fn give_back_unused(&mut self, taken: Taken) -> Vec<Unreaped> {
        let Taken { mut spans, pending } = taken;
        let mut unreaped = Vec::new();
        for part in pending {
            spans = subtract_all(&spans, &part.spans);
            unreaped.extend(self.give_back(part.spans, part.fences));
        }
        self.free(&spans);
        unreaped
    }

    /// Takes out a ghost whose fence has signalled, for the caller to [`Heap::free`]. `None`: somebody reused it.
    pub(crate) fn reap(&mut self, id: GhostId) -> Option<Vec<Span>> {
        self.ghosts.remove(id).map(|ghost| ghost.spans)
    }

    /// All ghosts, with what they wait for.
    pub(crate) fn ghosts(&self) -> impl Iterator<Item = (GhostId, &FenceSet)> {
        self.ghosts.iter().map(|(id, ghost)| (id, &ghost.fences))
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
        let ghosts = self.ghosts.iter().flat_map(|(_, ghost)| ghost.spans.iter().copied());
        let mut all: Vec<Span> = self.buddy.free_spans().chain(ghosts).collect();
        merge_adjacent(&mut all);
        all
    }
}
