//! System memory: one arena of pages that GTT and System share, so that moving between the two copies nothing.
//!
//! Freed pages stay warm (backed by real memory) up to a limit, because evictions and restores take turns; beyond it they
//! go back to the operating system.

use std::sync::Arc;

use devpagemap_allocator::{AllocError, Request, Span};
use devpagemap_fence::{Lock, levels};

use super::{Heap, Lru, Node, NodeKey, RegionKind, Taken};
use crate::backend::Arena;
use crate::bo::{BufferObject, WeakBuffer};
use crate::error::{Error, Result};

/// Freed bytes that are kept backed by real memory.
const WARM_LIMIT_BYTES: u64 = 512 << 20;

/// The system memory of one device.
#[derive(Debug)]
pub(crate) struct SystemRegion {
    /// How much of it the GPU may reach at once. Constant.
    pub(crate) gtt_bytes: u64,
    /// The pages. Constant.
    pub(crate) arena: Arc<Arena>,
    /// The region lock itself.
    pub(crate) state: Lock<levels::Region, SystemState>,
}

/// What the system region lock protects.
#[derive(Debug)]
pub(crate) struct SystemState {
    pub(crate) heap: Heap,
    /// The buffers in GTT.
    pub(crate) lru: Lru,
    pub(crate) gtt_used_bytes: u64,
    pub(crate) system_used_bytes: u64,
    /// The part of `gtt_used_bytes` whose buffers are not on the LRU yet.
    gtt_claimed_bytes: u64,
    /// Free bytes that are still backed by real memory.
    warm_bytes: u64,
}

impl SystemRegion {
    pub(crate) fn new(arena: Arc<Arena>, gtt_bytes: u64) -> Result<SystemRegion> {
        let size_bytes = arena.len_bytes();
        let heap = Heap::new(size_bytes).map_err(|_| Error::InvalidSize {
            what: "system memory",
            bytes: size_bytes,
            why: "is not a positive number of whole 4096-byte pages up to 16 TiB",
        })?;
        let state = SystemState {
            heap,
            lru: Lru::default(),
            gtt_used_bytes: 0,
            system_used_bytes: 0,
            gtt_claimed_bytes: 0,
            warm_bytes: 0,
        };
        Ok(SystemRegion { gtt_bytes, arena, state: Lock::new("system region", state) })
    }

    /// Pages for one buffer, counted nowhere yet.
    pub(crate) fn take(&self, state: &mut SystemState, len_bytes: u64) -> Result<Taken> {
        let taken = state.heap.take(&Request::new(len_bytes)).map_err(|error| match error {
            AllocError::TooLarge { .. } => Error::TooLarge {
                region: RegionKind::System,
                wanted_bytes: len_bytes,
                limit_bytes: state.heap.size_bytes(),
            },
            _ => Error::Exhausted {
                region: RegionKind::System,
                wanted_bytes: len_bytes,
                free_bytes: state.heap.free_bytes(),
                pinned_bytes: state.lru.pinned_bytes(),
                held_bytes: 0,
            },
        })?;
        state.warm_bytes = state.warm_bytes.saturating_sub(len_bytes);
        Ok(taken)
    }

    /// Which of `spans` should go back to the operating system before they are freed: those beyond the warm limit.
    pub(crate) fn to_cool(state: &mut SystemState, spans: &[Span]) -> Vec<Span> {
        let mut cold = Vec::new();
        for span in spans {
            if state.warm_bytes + span.len_bytes <= WARM_LIMIT_BYTES {
                state.warm_bytes += span.len_bytes;
            } else {
                cold.push(*span);
            }
        }
        cold
    }
}

impl SystemState {
    /// Counts a buffer's pages into `region`. A place in GTT must have been claimed before.
    pub(crate) fn enter(&mut self, region: RegionKind, buffer: &Arc<BufferObject>) -> Option<NodeKey> {
        let len_bytes = buffer.footprint_bytes;
        if region == RegionKind::System {
            self.system_used_bytes += len_bytes;
            return None;
        }
        debug_assert!(
            self.gtt_claimed_bytes >= len_bytes,
            "buffer {} enters GTT without a claim",
            buffer.id()
        );
        self.gtt_claimed_bytes -= len_bytes;
        let node = Node::new(WeakBuffer::of(buffer), buffer.id(), Vec::new(), len_bytes, buffer.priority());
        Some(self.lru.insert(node))
    }

    /// Counts a buffer's pages out of `region`.
    pub(crate) fn leave(&mut self, region: RegionKind, len_bytes: u64, node: Option<NodeKey>) {
        match region {
            RegionKind::Gtt => self.gtt_used_bytes -= len_bytes,
            RegionKind::System => self.system_used_bytes -= len_bytes,
            RegionKind::Vram => unreachable!("VRAM is counted by its own region"),
        }
        if let Some(node) = node {
            self.lru.remove(node);
        }
    }

    /// Sets a part of the GTT budget aside for a buffer that is about to enter.
    pub(crate) fn claim_gtt(&mut self, len_bytes: u64) {
        self.gtt_used_bytes += len_bytes;
        self.gtt_claimed_bytes += len_bytes;
    }

    /// Undoes a claim.
    pub(crate) fn give_up_gtt(&mut self, len_bytes: u64) {
        self.gtt_used_bytes -= len_bytes;
        self.gtt_claimed_bytes -= len_bytes;
    }

    /// Whether somebody is between claiming and entering; that takes an instant.
    pub(crate) fn gtt_in_transit(&self) -> bool {
        self.gtt_claimed_bytes > 0
    }
}
