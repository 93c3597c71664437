//! Reach: bring a locked buffer where the CPU reaches its bytes.
//!
//! System memory is cached and always reachable. VRAM is reachable in its visible part, and there the CPU's reads are slow, so only
//! buffers that opted in are reached in VRAM (or all, where VRAM is cached); the others come to system memory.

use std::ops::Range;

use devpagemap_allocator::PAGE_BYTES;
use devpagemap_fence::Slot;

use super::validate::Transaction;
use super::{BufferObject, Place, Placement};
use crate::cpu::Caching;
use crate::error::{Error, Result};
use crate::region::RegionKind;
use crate::stats::Counters;

/// What the CPU is about to do with a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CpuWish {
    /// The slowest caching that will do. The buffer's own opt-in is asked for too.
    pub(crate) caching: Caching,
    /// Which pages of the buffer, from 0.
    pub(crate) pages: Range<u64>,
}

impl CpuWish {
    /// All of `buffer`, cached as the buffer's creator allows.
    pub(crate) fn whole(buffer: &BufferObject) -> CpuWish {
        CpuWish { caching: buffer.caching(), pages: 0..buffer.footprint_bytes / PAGE_BYTES }
    }
}

/// How the CPU reaches a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    /// Where.
    pub(crate) region: RegionKind,
    /// How fast.
    pub(crate) caching: Caching,
    /// Why it is in system memory although it may be reached in VRAM and wanted to be there.
    pub(crate) fell_back: Option<&'static str>,
}

impl Transaction<'_, '_, '_> {
    /// Brings a locked buffer where the CPU reaches what it wishes for. Queues what is needed and waits for nothing: the bytes are
    /// there once the buffer's `arrival` has signalled.
    ///
    /// # Errors
    /// [`Error::Contended`] (restart), [`Error::Pinned`] when it is pinned where the CPU does not reach it,
    /// [`Error::FenceFailed`] when its bytes are lost, [`Error::Exhausted`] when neither VRAM nor system memory can be had.
    pub(crate) fn make_reachable(&mut self, slot: Slot, wish: &CpuWish) -> Result<Reached> {
        let buffer = self.exec.set().arc(slot);
        let needed = wish.caching.max(buffer.caching());
        let mut fell_back = None;
        if needed > self.manager.vram_caching {
            if !self.is_in_system_memory(slot) {
                self.validate(slot, &buffer.placement().in_system_memory())?;
            }
        } else if let Err(refused) = self.validate(slot, &buffer.placement().for_cpu()) {
            let reason = fallback_reason(&refused).ok_or(refused)?;
            self.validate(slot, &Placement::system())?;
            self.count_fallback(&buffer, reason);
            fell_back = Some(reason);
        }
        Ok(self.reached(slot, fell_back))
    }

    fn is_in_system_memory(&self, slot: Slot) -> bool {
        self.resource(slot).is_some_and(|resource| resource.region != RegionKind::Vram)
    }

    fn reached(&self, slot: Slot, fell_back: Option<&'static str>) -> Reached {
        let region = self.resource(slot).expect("it was brought somewhere just now").region;
        let caching = match region {
            RegionKind::Vram => self.manager.vram_caching,
            RegionKind::Gtt | RegionKind::System => Caching::Cached,
        };
        Reached { region, caching, fell_back }
    }

    fn count_fallback(&mut self, buffer: &BufferObject, reason: &'static str) {
        let (_, mut held) = self.exec.split();
        Counters::count(&self.manager.counters.bar_fallbacks);
        self.manager.reasons.count(reason, &mut held);
        tracing::debug!(buffer = buffer.id(), reason, "the CPU reaches a buffer in system memory instead");
    }
}

impl Placement {
    /// Where in system memory the CPU reaches the buffer: where the GPU does too, if the buffer may be there.
    fn in_system_memory(&self) -> Placement {
        let gtt = self.places().iter().filter(|place| place.region() == RegionKind::Gtt);
        Placement::in_order(gtt.cloned().chain([Place::SYSTEM]).collect())
    }
}

/// Why a buffer may go to system memory instead; `None` for errors that system memory would not cure.
fn fallback_reason(refused: &Error) -> Option<&'static str> {
    match refused {
        Error::TooLarge { region: RegionKind::Vram, .. } => {
            Some("cpu map: larger than the visible part of VRAM; served from system memory")
        }
        Error::Exhausted { region: RegionKind::Vram, .. } => {
            Some("cpu map: the visible part of VRAM is exhausted; served from system memory")
        }
        Error::Fragmented { region: RegionKind::Vram, .. } => {
            Some("cpu map: the visible part of VRAM is fragmented; served from system memory")
        }
        _ => None,
    }
}
