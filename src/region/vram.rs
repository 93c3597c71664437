//! VRAM: a heap with a CPU-visible prefix, and the buffers that live in it.
//!
//! ```text
//!   0                visible_bytes                              size_bytes
//!   ├── the CPU sees this ──┼────────── only the GPU sees this ──────┤
//!                           ◄── buffers without CPU_VISIBLE start here,
//!        and spill over to the left only when the right is full
//! ```
//!
//! The spill takes every byte on the right first, so the number of visible bytes in use follows from the number of bytes
//! asked for, not from which fences have signalled.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use devpagemap_allocator::{AllocError, PAGE_BYTES, Request, Span};
use devpagemap_fence::{FenceSet, Held, Lock, LockSet, Slot, levels};

use super::{GhostId, Heap, Lru, Node, RegionKind, Resource, Taken, Unreaped, total_bytes};
use crate::bo::{BufferObject, Place, WeakBuffer};
use crate::error::{Error, Result};

/// The VRAM of one device.
#[derive(Debug)]
pub(crate) struct VramRegion {
    /// Constant.
    pub(crate) size_bytes: u64,
    /// The CPU sees the first so many bytes. Constant.
    pub(crate) visible_bytes: u64,
    /// The region lock itself.
    pub(crate) state: Lock<levels::Region, VramState>,
}

/// What the VRAM region lock protects.
#[derive(Debug)]
pub(crate) struct VramState {
    pub(crate) heap: Heap,
    pub(crate) lru: Lru,
    /// Bytes owned by buffers (not by ghosts).
    pub(crate) used_bytes: u64,
    /// The most that `used_bytes` has ever been.
    pub(crate) peak_bytes: u64,
    /// Bytes that are never given to anybody again.
    pub(crate) quarantined_bytes: u64,
    /// Buffers that own bytes which are not on the LRU yet: evictors in the middle of their transaction, each holding
    /// its buffer's reservation. Whoever misses these bytes waits for that reservation instead of giving up.
    pub(crate) claims: BTreeMap<u64, WeakBuffer>,
}

impl VramRegion {
    pub(crate) fn new(size_bytes: u64, visible_bytes: u64) -> Result<VramRegion> {
        let heap = Heap::new(size_bytes).map_err(|_| Error::InvalidSize {
            what: "VRAM",
            bytes: size_bytes,
            why: "is not a positive number of whole 4096-byte pages up to 16 TiB",
        })?;
        let state = VramState {
            heap,
            lru: Lru::default(),
            used_bytes: 0,
            peak_bytes: 0,
            quarantined_bytes: 0,
            claims: BTreeMap::new(),
        };
        let visible_bytes = visible_bytes.min(size_bytes);
        Ok(VramRegion { size_bytes, visible_bytes, state: Lock::new("VRAM region", state) })
    }

    /// The bytes that `place` allows.
    pub(crate) fn range_of(&self, place: &Place) -> Range<u64> {
        let range = place.range.clone().unwrap_or(0..self.size_bytes);
        let end = if place.cpu_visible { self.visible_bytes } else { self.size_bytes };
        range.start.min(end)..range.end.min(end)
    }

    /// Refuses what no eviction could make possible.
    pub(crate) fn check_fits(&self, place: &Place, len_bytes: u64) -> Result<()> {
        let range = self.range_of(place);
        let limit_bytes = range.end - range.start;
        if len_bytes > limit_bytes {
            return Err(Error::TooLarge { region: RegionKind::Vram, wanted_bytes: len_bytes, limit_bytes });
        }
        Ok(())
    }

    /// The ranges of `place` in the order in which bytes are taken from them.
    fn preferred_ranges(&self, place: &Place) -> Vec<Range<u64>> {
        let range = self.range_of(place);
        let hidden = range.start.max(self.visible_bytes)..range.end;
        if place.cpu_visible || hidden.start >= hidden.end || hidden == range {
            return vec![range];
        }
        vec![hidden.clone(), range.start..hidden.start]
    }

    fn request(place: &Place, len_bytes: u64, range: Range<u64>) -> Request {
        let mut request = Request::new(len_bytes).within(range);
        if place.top_down {
            request = request.top_down();
        }
        if place.contiguous {
            request = request.contiguous();
        }
        request
    }

    /// `len_bytes` at `place`, without evicting anybody. All or nothing.
    pub(crate) fn take(&self, state: &mut VramState, place: &Place, len_bytes: u64) -> Option<Taken> {
        if place.contiguous {
            return self.take_contiguous(state, place, len_bytes);
        }
        // Asked first: what is taken in vain and given back makes ghosts younger than they are.
        let free_bytes = state.heap.free_bytes_in(&self.range_of(place));
        (free_bytes >= len_bytes).then(|| self.take_up_to(state, place, len_bytes))
    }

    /// As many of `len_bytes` as `place` has, scattered, without evicting anybody.
    pub(crate) fn take_up_to(&self, state: &mut VramState, place: &Place, len_bytes: u64) -> Taken {
        let mut taken = Taken::default();
        for range in self.preferred_ranges(place) {
            let missing_bytes = len_bytes - taken.len_bytes();
            if missing_bytes > 0 {
                taken.merge(state.heap.take_up_to(&Self::request(place, missing_bytes, range)));
            }
        }
        taken
    }

    fn take_contiguous(&self, state: &mut VramState, place: &Place, len_bytes: u64) -> Option<Taken> {
        let mut ranges = self.preferred_ranges(place);
        if ranges.len() > 1 {
            ranges[1] = self.range_of(place);
        }
        ranges.into_iter().find_map(|range| match state.heap.take(&Self::request(place, len_bytes, range)) {
            Ok(taken) => Some(taken),
            Err(AllocError::InvalidSize { .. } | AllocError::InvalidRange { .. }) => {
                debug_assert!(false, "sizes and ranges are checked when a buffer is created");
                None
            }
            Err(_) => None,
        })
    }

    /// Makes taken bytes the resource of a buffer: on the LRU, counted.
    pub(crate) fn install(
        &self,
        state: &mut VramState,
        buffer: &Arc<BufferObject>,
        spans: Vec<Span>,
    ) -> Resource {
        let len_bytes = total_bytes(&spans);
        debug_assert_eq!(len_bytes % PAGE_BYTES, 0);
        state.used_bytes += len_bytes;
        state.peak_bytes = state.peak_bytes.max(state.used_bytes);
        let node = state.lru.insert(Node::of(buffer, spans.clone()));
        Resource::new(RegionKind::Vram, spans, Some(node))
    }

    /// Enters a locked buffer that was moved within VRAM from `old` on the LRU, as old as it was. `old` is still to be retired,
    /// under the same hold of the lock. Nothing is done for one that left VRAM.
    pub(crate) fn enter_relocated(
        &self,
        state: &mut VramState,
        set: &mut LockSet<'_, BufferObject>,
        slot: Slot,
        old: &Resource,
    ) {
        let buffer = set.arc(slot);
        let Some(resource) = set.state_mut(slot).resource.as_mut() else { return };
        let (RegionKind::Vram, Some(old)) = (resource.region, old.node) else { return };
        let node = Node::of(&buffer, resource.spans.clone());
        resource.node = Some(state.lru.insert_beside(node, old));
        state.used_bytes += resource.len_bytes();
    }

    /// Everybody who has bytes here, pinned or not.
    pub(crate) fn residents(&self, held: &mut Held<'_, levels::Tickets>) -> Vec<WeakBuffer> {
        self.state.lock(held).lru.all().map(|node| node.buffer.clone()).collect()
    }

    /// Never gives the bytes of a ghost to anybody again; how many that were. Nothing for one that is idle by now.
    pub(crate) fn quarantine(&self, ghost: GhostId, held: &mut Held<'_, levels::Tickets>) -> u64 {
        let mut state = self.state.lock(held);
        let bytes = state.heap.reap(ghost).map_or(0, |spans| total_bytes(&spans));
        state.quarantined_bytes += bytes;
        bytes
    }

    /// Takes a resource off the LRU; its bytes become a ghost behind `fences`.
    pub(crate) fn retire(
        &self,
        state: &mut VramState,
        resource: &Resource,
        fences: FenceSet,
    ) -> Option<Unreaped> {
        debug_assert_eq!(resource.region, RegionKind::Vram);
        if let Some(node) = resource.node {
            state.lru.remove(node);
        }
        state.used_bytes -= resource.len_bytes();
        state.heap.give_back(resource.spans.clone(), fences)
    }
}
