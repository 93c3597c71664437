//! Imports and outside pages as models have them: a memfd of one page, and a number instead of an inode.

use std::sync::Arc;

use crate::backend::MemfdPages;
use crate::bo::Buffer;
use crate::error::Result;
use crate::import::{Foreign, Import};
use crate::manager::Manager;

const PAGE_BYTES: u64 = devpagemap_allocator::PAGE_BYTES;

impl Import {
    /// Of a page that is known by `inode`.
    pub(crate) fn of_page(manager: &Arc<Manager>, inode: u64) -> Import {
        let foreign = MemfdPages::new(PAGE_BYTES).foreign(true);
        Import::new(manager, Ok(Foreign { inode, ..foreign }))
    }
}

impl Buffer {
    /// Brings a buffer of one page to a new page that is not the arena's, as for an export.
    ///
    /// # Errors
    /// As moves have them.
    pub fn leave_the_arena(&self) -> Result<()> {
        let pages = self.0.manager.cpu.map_outside(MemfdPages::new(PAGE_BYTES).exported(()))?;
        self.transact(|transaction, slot| transaction.bring_outside(slot, &pages))
    }
}
