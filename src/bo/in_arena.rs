//! Buffers whose pages in the arena are to be a dma-buf: finding the pages, and coming there.
//!
//! The pages are found first, and the buffer moves only when the kernel has made a dma-buf of them. It comes to GTT if there is any
//! room, whatever its placement says: there the GPU's jobs can use it, and that costs others no copy.

use std::sync::Arc;

use devpagemap_allocator::Span;
use devpagemap_fence::Slot;

use super::validate::{FENCES_PER_BUFFER, Found, Pass, Transaction};
use super::{BufferObject, Place};
use crate::error::{Error, Result};
use crate::region::RegionKind;

impl Transaction<'_, '_, '_> {
    /// Finds pages of the arena for a locked buffer, or what makes those it has reachable for the GPU; `None` when it is well where it
    /// is. Whoever does not use what is found gives it [back](Transaction::give_back).
    ///
    /// # Errors
    /// [`Error::Contended`] (restart), [`Error::FenceFailed`] for a buffer that is lost, [`Error::Pinned`] for one that is held elsewhere,
    /// [`Error::Exhausted`] without system memory, [`Error::FenceSlots`].
    pub(crate) fn find_in_arena(&mut self, slot: Slot) -> Result<Option<Found>> {
        let buffer = self.exec.set().arc(slot);
        self.exec.set().state(slot).check_not_lost()?;
        self.reserve_fences(slot, FENCES_PER_BUFFER)?;
        let in_arena = self.resource(slot).filter(|resource| !resource.is_outside());
        match in_arena.map(|resource| resource.region) {
            Some(RegionKind::Gtt) => Ok(None),
            Some(RegionKind::System) => match self.claim_gtt(&buffer, Pass::Evicting) {
                Ok(claimed) => Ok(claimed.then_some(Found::SamePages(RegionKind::Gtt))),
                Err(Error::Contended) => Err(Error::Contended),
                Err(_no_room) => Ok(None),
            },
            Some(RegionKind::Vram) | None => match self.find(slot, &buffer, &Place::GTT, Pass::Evicting) {
                Err(Error::Exhausted { .. } | Error::TooLarge { .. }) => {
                    self.find(slot, &buffer, &Place::SYSTEM, Pass::Evicting)
                }
                found => found,
            },
        }
    }

    /// The pages that a locked buffer will have with what was found.
    pub(crate) fn spans_with<'a>(&'a self, slot: Slot, found: Option<&'a Found>) -> &'a [Span] {
        match found {
            Some(Found::Memory(resource, _)) => &resource.spans,
            Some(Found::SamePages(_)) | None => {
                &self.resource(slot).expect("what has no pages is given some").spans
            }
        }
    }

    /// What was found is not needed after all.
    pub(crate) fn give_back(&mut self, slot: Slot, found: Option<Found>) {
        let buffer: Arc<BufferObject> = self.exec.set().arc(slot);
        match found {
            Some(Found::Memory(resource, after)) => self.manager.retire(resource, after),
            Some(Found::SamePages(_)) => self.give_up_gtt(&buffer),
            None => {}
        }
    }

    /// Uses what was found: queues the move, and waits for nothing.
    pub(crate) fn settle(&mut self, slot: Slot, found: Option<Found>) {
        let buffer = self.exec.set().arc(slot);
        if let Some(found) = found {
            self.move_to(slot, &buffer, found);
        }
    }
}
