//! A window whose buffer stays where it is.

use std::ops::{Deref, Range};
use std::sync::Arc;

use devpagemap_allocator::PAGE_BYTES;
use devpagemap_fence::{Slot, levels, lockdep};

use super::window::Window;
use super::windows::CpuHold;
use crate::bo::{Buffer, Transaction};
use crate::error::Result;
use crate::manager::Manager;
use crate::region::{Pin, pages_of};

/// A [`Window`] that stays current: its buffer is pinned in VRAM while it exists. For CPU users that need one address for
/// long; it counts against [`P2pLimits::cpu_reserve`](crate::P2pLimits::cpu_reserve), which no peer can use.
#[derive(Debug)]
#[must_use = "a window that is dropped pins nothing"]
pub struct PinnedWindow {
    /// Constant until drop.
    window: Window,
    /// Undone at drop.
    pin: Option<Pin>,
    /// Undone at drop.
    _hold: CpuHold,
    /// Constant.
    manager: Arc<Manager>,
}

impl Buffer {
    /// As [`Buffer::window`], and keeps the buffer where it is.
    ///
    /// # Errors
    /// As [`Buffer::window`]; and [`Error::ApertureFull`](crate::Error::ApertureFull) when the CPU's reserve of a BAR of windows is in use
    /// by other pinned windows. Each counts for itself.
    pub fn pin_window(&self, bytes: Range<u64>) -> Result<PinnedWindow> {
        self.check_range("a window", &bytes)?;
        self.transact_window(|transaction, slot| transaction.pin_window(slot, &bytes))
    }
}

impl Transaction<'_, '_, '_> {
    /// Shows these bytes of a member, which exist, and keeps it where it is.
    ///
    /// # Errors
    /// As [`Buffer::pin_window`].
    pub(crate) fn pin_window(&mut self, slot: Slot, bytes: &Range<u64>) -> Result<PinnedWindow> {
        let pages = pages_of(bytes);
        let kept_bytes = (pages.end - pages.start) * PAGE_BYTES;
        let manager = self.manager.clone();
        let hold = manager.windows.hold_for_cpu(kept_bytes, &mut self.exec.split().1)?;
        self.validate_for_window(slot)?;
        self.trim_windows(slot, &pages);
        let window = self.show(slot, bytes)?;
        let pin = self.pin(slot);
        Ok(PinnedWindow { window, pin, _hold: hold, manager })
    }
}

impl Deref for PinnedWindow {
    type Target = Window;

    fn deref(&self) -> &Window {
        &self.window
    }
}

impl Drop for PinnedWindow {
    fn drop(&mut self) {
        lockdep::might_lock::<levels::Region>("VRAM region");
        if let Some(pin) = self.pin.take() {
            self.manager.unpin(pin);
        }
    }
}
