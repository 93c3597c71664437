//! System memory: one arena of pages that GTT and System share, so that moving between the two copies nothing.
//!
//! Freed pages stay warm (backed by real memory) up to a limit, because evictions and restores take turns; beyond it they
//! go back to the operating system. While they are on their way there they *cool*: they are neither free nor anybody's, and
//! whoever finds too little free memory waits for them, as they were free a moment ago.

use std::sync::Arc;

use devpagemap_allocator::{AllocError, Request, Span};
use devpagemap_fence::levels::{self, Below, Level};
use devpagemap_fence::sync::mutant;
use devpagemap_fence::sync::thread::yield_now;
use devpagemap_fence::{Held, Lock};

use super::{GhostId, Heap, Lru, Node, NodeKey, RegionKind, Taken, total_bytes};
use crate::backend::Arena;
use crate::bo::BufferObject;
use crate::error::{Error, Result};

/// Freed bytes that are kept backed by real memory.
const WARM_LIMIT_BYTES: u64 = 512 << 20;

/// Whether so many freed bytes may be warm. Not in models: there every freed page cools, and loses what was in it.
fn may_be_warm(bytes: u64) -> bool {
    !cfg!(any(loom, shuttle)) && bytes <= WARM_LIMIT_BYTES
}

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
    /// Bytes that are being given back to the operating system, and will be free after that.
    cooling_bytes: u64,
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
            cooling_bytes: 0,
        };
        Ok(SystemRegion { gtt_bytes, arena, state: Lock::new("system region", state) })
    }

    /// Pages for one buffer, counted nowhere yet; `with` counts them under the same hold of the region lock.
    pub(crate) fn take<H: Level, O>(
        &self,
        len_bytes: u64,
        held: &mut Held<'_, H>,
        with: impl FnOnce(&mut SystemState, Taken) -> O,
    ) -> Result<O>
    where
        levels::Region: Below<H>,
    {
        loop {
            let mut state = self.state.lock(held);
            match state.take(len_bytes) {
                Ok(taken) => return Ok(with(&mut state, taken)),
                Err(Error::Exhausted { .. })
                    if state.cooling_bytes > 0 && !mutant!("cooling_is_exhaustion") => {}
                Err(error) => return Err(error),
            }
            drop(state);
            yield_now();
        }
    }

    /// Frees pages. Those beyond the warm limit go back to the operating system first, while nobody else can be given them.
    pub(crate) fn free<H: Level>(&self, spans: &[Span], held: &mut Held<'_, H>)
    where
        levels::Region: Below<H>,
    {
        let cold = self.state.lock(held).free_warm(spans);
        self.cool(&cold, held);
    }

    /// Frees the pages of a ghost whose fences have signalled, unless somebody has taken them meanwhile.
    pub(crate) fn reap<H: Level>(&self, ghost: GhostId, held: &mut Held<'_, H>)
    where
        levels::Region: Below<H>,
    {
        let cold = {
            let mut state = self.state.lock(held);
            let Some(spans) = state.heap.reap(ghost) else { return };
            if mutant!("pages_are_nobodys_while_they_are_reaped") {
                drop(state);
                state = self.state.lock(held);
            }
            state.free_warm(&spans)
        };
        self.cool(&cold, held);
    }

    fn cool<H: Level>(&self, spans: &[Span], held: &mut Held<'_, H>)
    where
        levels::Region: Below<H>,
    {
        if spans.is_empty() {
            return;
        }
        for span in spans {
            // Refused, they keep memory, and are as free.
            let _is_cold = self.arena.discard(span.start_bytes, span.len_bytes);
        }
        let mut state = self.state.lock(held);
        state.cooling_bytes -= total_bytes(spans);
        state.heap.free(spans);
    }
}

impl SystemState {
    fn take(&mut self, len_bytes: u64) -> Result<Taken> {
        let taken = self.heap.take(&Request::new(len_bytes)).map_err(|error| match error {
            AllocError::TooLarge { .. } => Error::TooLarge {
                region: RegionKind::System,
                wanted_bytes: len_bytes,
                limit_bytes: self.heap.size_bytes(),
            },
            _ => Error::Exhausted {
                region: RegionKind::System,
                wanted_bytes: len_bytes,
                free_bytes: self.heap.free_bytes(),
                pinned_bytes: self.lru.pinned_bytes(),
                held_bytes: 0,
            },
        })?;
        self.warm_bytes = self.warm_bytes.saturating_sub(len_bytes);
        Ok(taken)
    }

    /// One run of idle pages, or none.
    pub(crate) fn take_idle_run(&mut self, request: &Request) -> Option<Span> {
        let span = self.heap.take_idle_run(request)?;
        self.warm_bytes = self.warm_bytes.saturating_sub(span.len_bytes);
        Some(span)
    }

    /// Frees what may stay warm, and notes the rest, which it returns, as cooling.
    fn free_warm(&mut self, spans: &[Span]) -> Vec<Span> {
        let mut cold = Vec::new();
        for span in spans {
            if may_be_warm(self.warm_bytes + span.len_bytes) {
                self.warm_bytes += span.len_bytes;
                self.heap.free(&[*span]);
            } else {
                self.cooling_bytes += span.len_bytes;
                cold.push(*span);
            }
        }
        cold
    }

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
        Some(self.lru.insert(Node::of(buffer, Vec::new())))
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
