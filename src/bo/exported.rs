//! Buffers whose pages in the arena are to be a dma-buf: finding the pages, and staying there.
//!
//! The pages are found first, and the buffer moves only when the kernel has made a dma-buf of them. It comes to GTT if there is any
//! room, whatever its placement says: there the GPU's jobs can use it, and that costs others no copy.

use std::sync::Arc;

use devpagemap_allocator::Span;
use devpagemap_fence::{Held, Slot, levels};

use super::validate::{FENCES_PER_BUFFER, Found, Pass, Transaction};
use super::{BufferObject, Place};
use crate::error::{Error, Result};
use crate::manager::Manager;
use crate::region::{RegionKind, SystemState, Taken};

impl Manager {
    /// Pages of the arena for one buffer, counted nowhere yet; `with` counts them under the same hold of the region lock. When there are too
    /// few, exported buffers that nobody has any more are let go of first.
    ///
    /// # Errors
    /// [`Error::Exhausted`], [`Error::TooLarge`].
    pub(crate) fn take_pages<O>(
        &self,
        len_bytes: u64,
        held: &mut Held<'_, levels::Tickets>,
        with: impl Fn(&mut SystemState, Taken) -> O,
    ) -> Result<O> {
        let departures = self.export_departures();
        match self.system.take(len_bytes, held, &with) {
            Err(Error::Exhausted { .. }) if self.let_go_of_exports(departures) => {
                self.system.take(len_bytes, held, &with)
            }
            taken => taken,
        }
    }

    /// How often an exported buffer was let go of so far.
    #[cfg(not(any(loom, shuttle)))]
    pub(super) fn export_departures(&self) -> usize {
        self.exports.departures()
    }

    /// Lets go of exported buffers that nobody outside has any more; says whether any were since there were so many `departures`.
    #[cfg(not(any(loom, shuttle)))]
    pub(super) fn let_go_of_exports(&self, departures: usize) -> bool {
        self.exports.let_go_since(departures, self.weak())
    }

    /// A model has no kernel, and so exports nothing.
    #[cfg(any(loom, shuttle))]
    pub(super) fn export_departures(&self) -> usize {
        0
    }

    /// As above.
    #[cfg(any(loom, shuttle))]
    pub(super) fn let_go_of_exports(&self, _departures: usize) -> bool {
        false
    }
}

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

    /// Whether a job uses a buffer where it is, wherever it may be: it is in system memory, the GPU reaches it, and somebody outside
    /// holds it there.
    pub(super) fn stays_for_outsiders(&self, slot: Slot) -> bool {
        let (state, object) = (self.exec.set().state(slot), self.exec.set().object(slot));
        self.stays_outside(slot) || state.region() == Some(RegionKind::Gtt) && object.is_exported()
    }
}
