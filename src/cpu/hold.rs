//! Holding a buffer where it is.

use devpagemap_fence::sync::atomic::Ordering;
use devpagemap_fence::{Slot, levels, lockdep};

use crate::bo::{Buffer, Transaction};
use crate::region::Pin;

/// While it lives, its buffer does not move: nobody evicts it, and who needs it elsewhere gets [`Error::Pinned`](crate::Error::Pinned).
#[derive(Debug)]
pub(crate) struct Hold {
    /// Constant.
    buffer: Buffer,
    /// Keeps it off the LRU of its region, if that has one. Constant.
    pin: Option<Pin>,
}

impl Transaction<'_, '_, '_> {
    /// Holds a member where it is.
    pub(crate) fn hold(&mut self, slot: Slot) -> Hold {
        let buffer = Buffer(self.exec.set().arc(slot));
        // Only ever raised under the reservation, so a mover that has looked is not surprised.
        buffer.0.holds.fetch_add(1, Ordering::AcqRel);
        Hold { pin: self.pin(slot), buffer }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        lockdep::might_lock::<levels::Region>("VRAM region");
        if let Some(pin) = self.pin.take() {
            self.buffer.0.manager.unpin(pin);
        }
        self.buffer.0.holds.fetch_sub(1, Ordering::AcqRel);
    }
}
