//! What an importer needs that transfers bytes itself, in a thread of this process, instead of having a device do it.

use std::ops::Range;
use std::ptr::NonNull;

use devpagemap_fence::{FenceSet, Held};
use devpagemap_migrate::{Addr, MemoryMap};

use super::peer_map::{PeerAddr, PeerMap};
use crate::error::{Error, Result};
use crate::manager::Manager;
use crate::pagemap::{Observation, Observed};

impl PeerMap {
    /// # Errors
    /// [`Error::ForeignPeer`] for a map of another importer than the one at `importer`.
    pub(crate) fn check_is_of(&self, name: &str, importer: *const ()) -> Result<()> {
        match self.mapped.attached.joined.is(importer) {
            true => Ok(()),
            false => Err(Error::ForeignPeer { importer: name.into() }),
        }
    }

    /// # Errors
    /// [`Error::OutOfBounds`] for bytes of the buffer that the map does not show, and for none.
    pub(crate) fn check_shows(&self, range: &Range<u64>) -> Result<()> {
        let shown = self.range();
        if shown.start <= range.start && range.start < range.end && range.end <= shown.end {
            return Ok(());
        }
        Err(Error::OutOfBounds {
            offset_bytes: range.start,
            len_bytes: range.end.saturating_sub(range.start),
            size_bytes: shown.end,
        })
    }

    /// Where bytes of the buffer are that the map shows, as this process addresses them.
    ///
    /// # Errors
    /// [`Error::NotUsable`] when the CPU has no address for them.
    pub(crate) fn pieces(&self, range: &Range<u64>) -> Result<Vec<(NonNull<u8>, usize)>> {
        let (mut at, mut pieces) = (self.range().start, Vec::new());
        for extent in self.extents() {
            let (start, end) = (range.start.max(at), range.end.min(at + extent.len_bytes));
            if start < end {
                let bytes = self.buffer.0.manager.peer_bytes(extent.addr, start - at, end - start);
                let unseen = || {
                    Error::not_usable(
                        format_args!("buffer {}", self.buffer.id()),
                        "the CPU has no address for its bytes",
                    )
                };
                pieces.push((bytes.ok_or_else(unseen)?, (end - start) as usize));
            }
            at += extent.len_bytes;
        }
        Ok(pieces)
    }

    /// Waits on the CPU.
    ///
    /// # Errors
    /// [`Error::FenceFailed`] when what was waited for has failed.
    pub(crate) fn wait_for(&self, fences: &FenceSet) -> Result<()> {
        self.buffer.0.manager.wait(fences)
    }

    /// Counts a reason for the way that a transfer took.
    pub(crate) fn count(&self, reason: &str) {
        self.buffer.0.manager.reasons.count(reason, &mut Held::in_destructor());
    }

    /// Why its importer reaches the bytes as it does.
    pub(crate) fn why(&self) -> String {
        self.buffer.0.manager.explain(&self.mapped.attached.joined).to_string()
    }

    /// The kernel does not let the importer at this memory: decisions from now on say so.
    pub(crate) fn observe_refusal(&self) {
        let pagemaps = &self.buffer.0.manager.pagemaps;
        let importer = self.mapped.attached.joined.importer_id();
        let refusal = Observation::new(pagemaps.owner(), importer, Observed::DriverAllows(false));
        pagemaps.registry().observe(refusal);
    }
}

impl Manager {
    /// Where the bytes are that a peer has at `addr`, `offset_bytes` further on.
    fn peer_bytes(&self, addr: PeerAddr, offset_bytes: u64, len_bytes: u64) -> Option<NonNull<u8>> {
        match addr {
            PeerAddr::Bar(addr) => Some(self.driver().bar_memory(addr.add(offset_bytes), len_bytes)?.start),
            PeerAddr::System(addr) => self.cpu.resolve(Addr::System(addr).add(offset_bytes), len_bytes),
            PeerAddr::Vram(addr) => self.cpu.resolve(Addr::Vram(addr).add(offset_bytes), len_bytes),
        }
    }
}
