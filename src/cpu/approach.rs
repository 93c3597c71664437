//! An access at an offset to bytes that the CPU does not see: whether the buffer comes nearer, or just these bytes are copied.
//!
//! What the buffer's hint has counted decides (see `bo/cpu_hint.rs`), or the device's policy does. A buffer that cannot be moved is no
//! obstacle: its bytes are copied, and the next attempt comes when copies have cost as much again.

use devpagemap_fence::Held;

use crate::bo::{Buffer, CpuAccess, CpuWish};
use crate::error::{Error, Result};
use crate::region::pages_of;

const COULD_NOT_MOVE: &str =
    "cpu access: the buffer could not be moved where the CPU sees it; its bytes were copied";

impl Buffer {
    /// Moves the buffer where the CPU reaches these bytes, if it should be moved for them. False: it stays, they are to be copied.
    ///
    /// # Errors
    /// [`Error::FenceFailed`] when its bytes are lost.
    pub(super) fn comes_nearer(&self, offset_bytes: u64, len_bytes: u64) -> Result<bool> {
        if !self.should_move() {
            return Ok(false);
        }
        let pages = pages_of(&(offset_bytes..offset_bytes + len_bytes));
        let wish = CpuWish { caching: self.0.caching(), pages };
        let manager = &self.0.manager;
        let moved = self.transact(|transaction, slot| transaction.make_reachable(slot, &wish));
        match moved {
            Ok(_) => Ok(true),
            Err(lost @ Error::FenceFailed(_)) => Err(lost),
            Err(refused) => {
                tracing::debug!(buffer = self.id(), %refused, "not moved for the CPU");
                let mut held = Held::enter();
                let mut state = self.0.reservation.lock(&mut held);
                state.cpu.moved();
                let (_, mut inner) = state.split();
                manager.reasons.count(COULD_NOT_MOVE, &mut inner);
                Ok(false)
            }
        }
    }

    fn should_move(&self) -> bool {
        if self.0.is_windowed() {
            return false;
        }
        match self.0.manager.cpu_access {
            CpuAccess::Visible | CpuAccess::System => true,
            CpuAccess::Auto | CpuAccess::Window => {
                let mut held = Held::enter();
                let state = self.0.reservation.lock(&mut held);
                state.cpu.is_worth_a_move(self.0.footprint_bytes)
            }
        }
    }
}
