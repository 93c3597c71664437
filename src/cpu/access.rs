//! Reading and writing at an offset, wherever the bytes are just now.
//!
//! The reservation is held while bytes are touched, so the buffer cannot move meanwhile; it is let go while waiting, so a
//! waiter is in nobody's way. Memory that the BAR does not show is reached through a window (`glimpse.rs`) or a queued copy (`bounce.rs`),
//! or the buffer is moved when that is cheaper (`approach.rs`).

use std::ptr::NonNull;

use devpagemap_fence::sync::mutant;
use devpagemap_fence::{Fence, FenceSet, Held, Locked, Usage, levels};
use devpagemap_migrate::{Extent, ExtentList, MemoryMap};

use super::bracket::{self, Bracket, Missing};
use super::windowed::Piece;
use crate::backend::{DeviceMemory, gather, scatter};
use crate::bo::{BoState, Buffer, Placement};
use crate::error::{Error, Result};
use crate::submit::Access;

/// Why the CPU may not use a buffer's bytes just now.
enum NotYet {
    /// Others use them.
    Busy(FenceSet),
    /// Other drivers do.
    Theirs(Fence),
    /// The kernel has not been told.
    Unannounced(Missing),
}

impl Buffer {
    /// Copies bytes out of the buffer, after all work that writes it. A buffer that was never used reads as zeros.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`], [`Error::FenceFailed`] when a move lost the bytes, [`Error::Exhausted`] when the CPU cannot see
    /// them and there is no system memory to copy them to.
    pub fn read_at(&self, offset_bytes: u64, into: &mut [u8]) -> Result<()> {
        self.check_bounds(offset_bytes, into.len())?;
        if into.is_empty() {
            return Ok(());
        }
        if may_sleep_when_touched(into) {
            let mut plain = vec![0; into.len()];
            self.read_at(offset_bytes, &mut plain)?;
            into.copy_from_slice(&plain);
            return Ok(());
        }
        let len_bytes = into.len() as u64;
        let mut read = || {
            self.when_idle(Usage::Write, |state, held| {
                state.cpu.accessed();
                let Some(resource) = &state.resource else {
                    into.fill(0);
                    return Ok(true);
                };
                let extents = resource.extents.slice(offset_bytes, len_bytes);
                let bytes = offset_bytes..offset_bytes + len_bytes;
                let manager = &self.0.manager;
                Ok(read_extents(&manager.cpu, &extents, into)
                    || manager.copy_through_windows(state, &bytes, held, |at, piece| {
                        read_piece(piece, &mut into[at..])
                    }))
            })
        };
        if read()? || (self.comes_nearer(offset_bytes, len_bytes)? && read()?) {
            return Ok(());
        }
        self.read_bounced(offset_bytes, into)
    }

    /// Copies bytes into the buffer, after all work that uses it. A buffer that was never used gets system memory for it.
    ///
    /// # Errors
    /// As [`Buffer::read_at`]; and [`Error::Exhausted`] when there is no memory for a buffer's first bytes, [`Error::ReadOnly`] for a buffer
    /// that was imported for reading.
    pub fn write_at(&self, offset_bytes: u64, from: &[u8]) -> Result<()> {
        self.check_bounds(offset_bytes, from.len())?;
        self.0.check_writable()?;
        if from.is_empty() {
            return Ok(());
        }
        if may_sleep_when_touched(from) {
            let plain = Vec::from(from);
            return self.write_at(offset_bytes, &plain);
        }
        self.ensure_resource()?;
        let write = || {
            self.when_idle(Usage::Read, |state, held| {
                state.cpu.accessed();
                state.peers.is_written();
                let resource = state.resource.as_ref().expect("a buffer keeps some resource once it has one");
                let extents = resource.extents.slice(offset_bytes, from.len() as u64);
                let bytes = offset_bytes..offset_bytes + from.len() as u64;
                let manager = &self.0.manager;
                Ok(write_extents(&manager.cpu, &extents, from)
                    || manager.copy_through_windows(state, &bytes, held, |at, piece| {
                        write_piece(piece, &from[at..])
                    }))
            })
        };
        if write()? || (self.comes_nearer(offset_bytes, from.len() as u64)? && write()?) {
            return Ok(());
        }
        self.write_bounced(offset_bytes, from)
    }

    fn check_bounds(&self, offset_bytes: u64, len: usize) -> Result<()> {
        let (len_bytes, size_bytes) = (len as u64, self.size().as_bytes());
        match offset_bytes.checked_add(len_bytes) {
            Some(end) if end <= size_bytes => Ok(()),
            _ => Err(Error::OutOfBounds { offset_bytes, len_bytes, size_bytes }),
        }
    }

    /// Runs `body` with the reservation held and no fence up to `usage` outstanding.
    pub(super) fn when_idle<O>(
        &self,
        usage: Usage,
        mut body: impl FnMut(&mut BoState, &mut Held<'_, levels::Tickets>) -> Result<O>,
    ) -> Result<O> {
        let mut bracket: Option<Bracket> = None;
        let access = if usage == Usage::Write { Access::Read } else { Access::Write };
        loop {
            let not_yet = {
                let (_pass, reach) = self.0.manager.enter()?;
                let mut held = Held::enter();
                let mut state: Locked<'_, BoState> = self.0.reservation.lock(&mut held);
                reach.check(&state)?;
                // What is lost already need not be waited for.
                state.check_not_lost()?;
                let outstanding = state.fences(usage);
                if outstanding.is_signaled() || mutant!("cpu_does_not_wait_for_moves") {
                    state.check_not_lost()?;
                    match (state.hear(access)?, bracket::missing(&state, bracket.as_ref())) {
                        (None, None) => {
                            let (state, mut held) = state.split();
                            return body(state, &mut held);
                        }
                        (Some(theirs), _) => NotYet::Theirs(theirs),
                        (None, Some(missing)) => NotYet::Unannounced(missing),
                    }
                } else {
                    NotYet::Busy(outstanding)
                }
            };
            bracket = None;
            match not_yet {
                NotYet::Unannounced(missing) => bracket = Some(missing.begin(usage)?),
                // Nobody else hears how that ended.
                NotYet::Theirs(theirs) => self.0.manager.wait(&theirs.into())?,
                // How that work ended is for whoever holds its fence; what counts here is that it has ended.
                NotYet::Busy(outstanding) => drop(self.0.manager.wait(&outstanding)),
            }
        }
    }

    /// The first CPU access to a buffer without memory gives it system memory: the GPU's engines bring it where the GPU
    /// wants it.
    fn ensure_resource(&self) -> Result<()> {
        let has_resource = {
            let mut held = Held::enter();
            self.0.reservation.lock(&mut held).resource.is_some()
        };
        if has_resource {
            return Ok(());
        }
        self.transact(|transaction, slot| match transaction.resource(slot) {
            Some(_) => Ok(()),
            None => transaction.validate(slot, &Placement::system()),
        })
    }
}

/// Whether a slice of the caller's is itself a CPU map, of this device or another. It is not touched with a reservation held: the touch
/// might sleep until that reservation is free.
fn may_sleep_when_touched(slice: &[u8]) -> bool {
    #[cfg(not(any(loom, shuttle)))]
    return super::own_ranges::overlap(slice.as_ptr(), slice.len());
    #[cfg(any(loom, shuttle))]
    {
        let _no_addresses_in_models = slice;
        false
    }
}

/// Copies what the CPU sees of `extents` into `into`; false and nothing copied when it does not see all of it.
pub(super) fn read_extents(cpu: &DeviceMemory, extents: &ExtentList, into: &mut [u8]) -> bool {
    let Some(pieces) = resolve(cpu, extents) else { return false };
    // SAFETY: resolve checked that the pieces are mapped memory of this device, kept alive by `cpu`. The caller holds the buffer's
    // reservation, no writer's fence is outstanding and later ones wait for the reservation, so nobody writes these bytes. `into` is
    // ordinary memory of the caller's, which no device memory overlaps.
    unsafe { gather(pieces, into) };
    true
}

/// Copies `from` to what the CPU sees of `extents`; false and nothing copied when it does not see all of it.
pub(super) fn write_extents(cpu: &DeviceMemory, extents: &ExtentList, from: &[u8]) -> bool {
    let Some(pieces) = resolve(cpu, extents) else { return false };
    // SAFETY: as in read_extents; the caller made sure that no reader's fence is outstanding either.
    unsafe { scatter(from, pieces) };
    true
}

/// Copies what is behind a piece to the start of `into`.
fn read_piece(piece: &Piece<'_>, into: &mut [u8]) {
    let len = piece.len_bytes as usize;
    // SAFETY: the driver vouches for so many bytes behind the BAR, whose window is on loan and shows the buffer that the caller has
    // locked. No writer's fence is outstanding, as in read_extents. `into` is ordinary memory of the caller's.
    unsafe { gather([(piece.memory.start, len)], &mut into[..len]) };
}

/// Copies the start of `from` to what is behind a piece.
fn write_piece(piece: &Piece<'_>, from: &[u8]) {
    let len = piece.len_bytes as usize;
    // SAFETY: as in read_piece; the caller made sure that no reader's fence is outstanding either.
    unsafe { scatter(&from[..len], [(piece.memory.start, len)]) };
}

fn resolve(cpu: &DeviceMemory, extents: &ExtentList) -> Option<Vec<(NonNull<u8>, usize)>> {
    let piece = |extent: &Extent| {
        let start = cpu.resolve(extent.addr, extent.len_bytes)?;
        Some((start, usize::try_from(extent.len_bytes).ok()?))
    };
    extents.iter().map(piece).collect()
}
