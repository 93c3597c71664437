//! A look through a window for a moment: reading and writing at an offset, or one page, where only windows show the bytes.
//!
//! The reservation is held meanwhile, so the buffer does not move, and the window is on loan, so nobody takes it. It stays when the
//! loan is returned, and the next look at the same bytes costs next to nothing.

use std::ops::Range;

use devpagemap_fence::{FenceSet, Held, levels};

use super::Caching;
use super::windowed::{Behind, Piece};
use crate::aperture::Window;
use crate::bo::{BoState, BufferObject, CpuAccess};
use crate::error::Error;
use crate::manager::Manager;

/// Up to here a window is cheaper than an engine's copy and the wait for it, though the CPU reads VRAM slowly.
const SHORT_BYTES: u64 = 64 << 10;

/// What came of a look.
pub(super) enum Glimpse<O> {
    /// What was made of it.
    Seen(O),
    /// The buffer is not where a window could show it.
    Elsewhere,
    /// The driver programs the window behind these. Whoever keeps it until then finds it.
    Queued(Window, FenceSet),
    /// There is no window.
    Refused(Error),
}

impl Manager {
    /// Runs `body` on what the BAR shows of `bytes` of a buffer whose state is locked.
    pub(super) fn glimpse<O>(
        &self,
        state: &mut BoState,
        bytes: &Range<u64>,
        held: &mut Held<'_, levels::Tickets>,
        body: impl FnOnce(&[Piece<'_>]) -> O,
    ) -> Glimpse<O> {
        if !self.reaches_by_windows() {
            return Glimpse::Elsewhere;
        }
        let window = match self.show_in_place(state, bytes, held) {
            Ok(Some(window)) => window,
            Ok(None) => return Glimpse::Elsewhere,
            Err(refused) => return Glimpse::Refused(refused),
        };
        let resource = state.resource.as_ref().expect("a buffer with a window has a place");
        match self.look_behind(&window, &resource.extents) {
            Ok(Behind::Pieces(pieces)) => Glimpse::Seen(body(&pieces)),
            Ok(Behind::Queued(after)) => Glimpse::Queued(window, after),
            Err(refused) => Glimpse::Refused(refused),
        }
    }

    /// Copies with `copy`, which gets an offset in `bytes` and what is behind it, through one window after the other. False when that is
    /// not the best way or does not go all the way: then all of it is to be copied in another.
    pub(super) fn copy_through_windows(
        &self,
        state: &mut BoState,
        bytes: &Range<u64>,
        held: &mut Held<'_, levels::Tickets>,
        mut copy: impl FnMut(usize, &Piece<'_>),
    ) -> bool {
        let is_short = bytes.end - bytes.start <= SHORT_BYTES;
        if !is_short && self.cpu_access != CpuAccess::Window {
            return false;
        }
        let piece_bytes = self.windows.cpu_piece_bytes();
        let mut at = bytes.start;
        while at < bytes.end {
            let end = bytes.end.min(at / piece_bytes * piece_bytes + piece_bytes);
            let seen = self.glimpse(state, &(at..end), held, |pieces| {
                let mut offset = (at - bytes.start) as usize;
                for piece in pieces {
                    copy(offset, piece);
                    offset += piece.len_bytes as usize;
                }
            });
            match seen {
                Glimpse::Seen(()) => at = end,
                // An engine's copy is done as soon as that is.
                Glimpse::Elsewhere | Glimpse::Queued(..) | Glimpse::Refused(_) => return false,
            }
        }
        true
    }
}

impl BufferObject {
    /// Whether the CPU reaches this buffer wherever it is in VRAM, and need not move it.
    pub(super) fn is_windowed(&self) -> bool {
        self.manager.reaches_by_windows() && self.may_be_reached_in_vram(Caching::Uncached)
    }
}
