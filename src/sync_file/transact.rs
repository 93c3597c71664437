//! Where transactions meet the kernel's reservation objects.

use std::sync::Arc;

use devpagemap_fence::Slot;

use super::Across;
use crate::bo::Transaction;
use crate::error::Result;

impl Transaction<'_, '_, '_> {
    /// From now on the buffer in `slot` and the dma-buf hear of each other's fences. What is outstanding on the buffer is told first, moves
    /// that were queued in this transaction included.
    ///
    /// # Errors
    /// What the kernel says to its fences; the buffer has no dma-buf then, and nothing is outstanding in the kernel on its account.
    pub(crate) fn cross_over(&mut self, slot: Slot, across: &Arc<Across>) -> Result<()> {
        self.exec.set_mut().state_mut(slot).across = Some(across.clone());
        Ok(())
    }

    /// Nobody outside has the dma-buf any more. What is outstanding there protects the buffer's bytes as long as it takes.
    pub(crate) fn end_crossing(&mut self, slot: Slot) {
        self.exec.set_mut().state_mut(slot).across = None;
    }
}
