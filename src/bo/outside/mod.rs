//! Buffers in pages that are not the arena's: on the way there, while they have to stay, and on the way back.
//!
//! Going there is a move like any other. There a buffer is in GTT, as the GPU reaches it, but it is on no LRU and counts towards no
//! budget: nobody gains by driving it out. It leaves when a place of its placement in VRAM can be had, or when it is told
//! to ([`Transaction::leave_outside`]), and stays while somebody holds it, or has it mapped: the kernel has no way to make touches of a
//! dma-buf's pages sleep, so a CPU map of them cannot follow the buffer.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use devpagemap_fence::sync::atomic::Ordering;
use devpagemap_fence::{FenceSet, Slot};

use super::validate::{FENCES_PER_BUFFER, Transaction};
use crate::backend::OutsidePages;
use crate::error::{Error, Result};
#[cfg(not(any(loom, shuttle)))]
use crate::region::RegionKind;
use crate::region::Resource;

impl Transaction<'_, '_, '_> {
    /// Brings a locked buffer into the first bytes of `pages`. Queues the copy and does not wait for it.
    ///
    /// # Errors
    /// [`Error::FenceFailed`] for a buffer that is lost, [`Error::DmaBufTooSmall`], [`Error::DmaBufReadOnly`],
    /// [`Error::Pinned`], [`Error::FenceSlots`]. Nothing has changed then.
    pub(crate) fn bring_outside(&mut self, slot: Slot, pages: &Arc<OutsidePages>) -> Result<()> {
        let buffer = self.exec.set().arc(slot);
        self.exec.set().state(slot).check_not_lost()?;
        let wanted_bytes = buffer.footprint_bytes;
        if pages.len_bytes() < wanted_bytes {
            return Err(Error::DmaBufTooSmall { len_bytes: pages.len_bytes(), wanted_bytes });
        }
        if !pages.is_writable() {
            return Err(Error::DmaBufReadOnly);
        }
        let there = self.resource(slot).and_then(|resource| resource.outside.as_ref());
        if there.is_some_and(|there| Arc::ptr_eq(there, pages)) {
            return Ok(());
        }
        self.check_not_pinned(slot, &buffer)?;
        self.reserve_fences(slot, FENCES_PER_BUFFER)?;
        self.announce_move(slot)?;
        let resource = Resource::in_outside(pages, wanted_bytes);
        self.move_bytes(slot, &buffer, resource, FenceSet::new());
        Ok(())
    }

    /// Brings a locked buffer back into the arena, to System, if it is in outside pages and nobody keeps it there. Says whether it is not
    /// there any more.
    ///
    /// # Errors
    /// [`Error::FenceFailed`] for a buffer that is lost, [`Error::Exhausted`] without system memory, [`Error::FenceSlots`].
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn leave_outside(&mut self, slot: Slot) -> Result<bool> {
        if !self.resource(slot).is_some_and(Resource::is_outside) {
            return Ok(true);
        }
        if self.stays_outside(slot) {
            return Ok(false);
        }
        let buffer = self.exec.set().arc(slot);
        self.exec.set().state(slot).check_not_lost()?;
        self.reserve_fences(slot, FENCES_PER_BUFFER)?;
        self.announce_move(slot)?;
        let found = self.take_system(slot, &buffer, RegionKind::System)?;
        self.move_to(slot, &buffer, found);
        Ok(true)
    }

    /// Whether the buffer is in outside pages and may not leave them now. Whoever can use it in system memory does so there.
    pub(crate) fn stays_outside(&self, slot: Slot) -> bool {
        let state = self.exec.set().state(slot);
        let buffer = self.exec.set().object(slot);
        state.resource.as_ref().is_some_and(Resource::is_outside)
            && (buffer.imported.is_some()
                || buffer.holds.load(Ordering::Acquire) > 0
                || state.followers.are_any())
    }
}
