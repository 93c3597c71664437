//! Where transactions meet the kernel's reservation objects.
//!
//! A buffer that has a dma-buf is heard of before it is used: what others do to the bytes becomes a fence of the buffer's reservation, so moves,
//! jobs and the CPU queue behind it as behind any other. Then ours are reserved, in the part of the transaction that may fail:
//!
//! ```text
//!   submission   hear each buffer ─► validate ─► reserve one kernel fence for all │ queue the job ─► arm
//!   move         hear ─► reserve ─► find a place                                  │ queue the copy ─► arm
//! ```
//!
//! | fence of ours | in the dma-buf | fence of theirs | in the reservation |
//! |---|---|---|---|
//! | `Kernel`, `Write` | as a write | what a read waits for | `Write` |
//! | `Read` | as a read | what a write waits for | `Read` |
//! | `Bookkeep` | not at all | | |
//!
//! What others do and fails, or does not end in time, fails the jobs that wait for it and is an error of the CPU's accesses. A move goes on
//! behind it: the bytes are as whoever failed has left them, and another place makes them no worse.

use std::sync::Arc;

use devpagemap_fence::{Fence, FenceSet, Held, Slot, Usage};

use super::Across;
use super::kernel_fence::{Reserved, is_for_want_of_a_source};
use crate::bo::{BoState, Buffer, BufferObject, Transaction};
use crate::error::Result;
use crate::submit::Access;

/// As what a fence of ours is seen by others.
fn seen_as(usage: Usage) -> Option<Access> {
    match usage {
        Usage::Kernel | Usage::Write => Some(Access::Write),
        Usage::Read => Some(Access::Read),
        Usage::Bookkeep => None,
    }
}

impl Across {
    /// Makes it known that such an access is about to be queued; nothing, which is counted, where there is no source of kernel fences.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn announce(self: &Arc<Self>, access: Access) -> Result<Option<Reserved>> {
        self.crossing.announce(vec![(self.clone(), access)])
    }
}

impl super::Crossing {
    fn announce(self: &Arc<Self>, into: Vec<(Arc<Across>, Access)>) -> Result<Option<Reserved>> {
        if into.is_empty() {
            return Ok(None);
        }
        match self.reserve(into) {
            Ok(reserved) => Ok(Some(reserved)),
            Err(error) if is_for_want_of_a_source(&error) => {
                self.count(&format!("fences: others do not hear of work on a shared buffer: {error}"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl BoState {
    /// What others do to the bytes that such an access has to wait for.
    ///
    /// # Errors
    /// As [`Across::hear`].
    pub(crate) fn hear(&self, access: Access) -> Result<Option<Fence>> {
        self.across.as_ref().map_or(Ok(None), |across| across.hear(access))
    }

    /// [`Across::announce`]; nothing for a buffer that nobody outside has.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn announce(&self, access: Access) -> Result<Option<Reserved>> {
        self.across.as_ref().map_or(Ok(None), |across| across.announce(access))
    }
}

impl Buffer {
    /// Waits for what other drivers do to the bytes that such an access has to wait for. Nothing for a buffer that nobody outside has.
    ///
    /// # Errors
    /// [`Error::FenceFailed`](crate::Error::FenceFailed) when that failed, or took too long; what the kernel says.
    pub(crate) fn wait_for_others(&self, access: Access) -> Result<()> {
        let theirs = self.0.reservation.lock(&mut Held::enter()).hear(access)?;
        theirs.map_or(Ok(()), |fence| self.0.manager.wait(&fence.into()))
    }
}

impl Transaction<'_, '_, '_> {
    /// From now on the buffer in `slot` and the dma-buf hear of each other's fences. What is outstanding on the buffer is told first, moves
    /// that were queued in this transaction included.
    ///
    /// # Errors
    /// What the kernel says to its fences; the buffer has no dma-buf then, and nothing is outstanding in the kernel on its account.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn cross_over(&mut self, slot: Slot, across: &Arc<Across>) -> Result<()> {
        let outstanding = self.exec.set().object(slot).reservation.fences_with_usage();
        let mut told = Vec::new();
        for access in [Access::Write, Access::Read] {
            let of_this_kind = outstanding.iter().filter(|(_, usage)| seen_as(*usage) == Some(access));
            let fences: FenceSet = of_this_kind.map(|(fence, _)| fence.clone()).collect();
            if !fences.is_signaled() {
                told.extend(across.announce(access)?.map(|reserved| (reserved, fences)));
            }
        }
        for (reserved, fences) in told {
            reserved.arm(&fences);
        }
        self.exec.set_mut().state_mut(slot).across = Some(across.clone());
        Ok(())
    }

    /// Nobody outside has the dma-buf any more. What others still do to the bytes protects them as long as it takes.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn end_crossing(&mut self, slot: Slot) {
        if let Err(error) = self.hear(slot, Access::Write) {
            tracing::error!(%error, "whether others still use a buffer that nobody has any more is not known");
            self.manager.crossing.count(&format!("fences: others could not be asked at the end: {error}"));
        }
        self.exec.set_mut().state_mut(slot).across = None;
    }

    /// Has the buffer in `slot` wait for what others do that such an access has to wait for. Returns that.
    ///
    /// # Errors
    /// What the kernel says, [`Error::FenceSlots`](crate::Error::FenceSlots).
    pub(crate) fn hear(&mut self, slot: Slot, access: Access) -> Result<Option<Fence>> {
        let Some(across) = self.exec.set().state(slot).across.clone() else { return Ok(None) };
        self.reserve_fences(slot, 1)?;
        let theirs = across.hear(access)?;
        if let Some(fence) = &theirs {
            self.exec.set_mut().add_fence(slot, fence.clone(), Usage::waits_for(access == Access::Write));
        }
        Ok(theirs)
    }

    /// [`Transaction::hear`] for a submission's buffers, which are the members in this order.
    pub(crate) fn hear_members(&mut self, uses: &[(Arc<BufferObject>, Access)]) -> Result<Vec<Fence>> {
        let mut theirs = Vec::new();
        for (index, (_, access)) in uses.iter().enumerate() {
            theirs.extend(self.hear(self.member(index), *access)?);
        }
        Ok(theirs)
    }

    /// One kernel fence for a submission's buffers, in the dma-bufs of those that have one.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn announce_members(
        &mut self,
        uses: &[(Arc<BufferObject>, Access)],
    ) -> Result<Option<Reserved>> {
        let state = |index| self.exec.set().state(self.member(index));
        let across = uses.iter().enumerate().filter_map(|(index, (_, access))| {
            let across = state(index).across.clone()?;
            Some((across, *access))
        });
        self.manager.crossing.announce(across.collect())
    }

    /// To be called in the part of a transaction that may fail, before a place is found for the bytes of the buffer in `slot`.
    ///
    /// # Errors
    /// As [`Transaction::hear`].
    pub(crate) fn announce_move(&mut self, slot: Slot) -> Result<()> {
        if self.exec.set().state(slot).across.is_none() || self.announced.iter().any(|(of, _)| *of == slot) {
            return Ok(());
        }
        self.hear(slot, Access::Write)?;
        if let Some(reserved) = self.exec.set().state(slot).announce(Access::Write)? {
            self.announced.push((slot, reserved));
        }
        Ok(())
    }

    /// The same for moves that must not fail for it, because the bytes would be lost: what the kernel refuses is counted.
    pub(crate) fn try_to_announce_move(&mut self, slot: Slot) {
        if let Err(error) = self.announce_move(slot) {
            tracing::error!(%error, "others do not hear of a move of a buffer that they share");
            self.manager.crossing.count(&format!("fences: others do not hear of a move: {error}"));
        }
    }

    /// Makes known, as far as that is possible, what is about to be queued on the buffer in `slot` and cannot be called off.
    pub(crate) fn try_to_announce(&mut self, slot: Slot, usage: Usage) -> Option<Reserved> {
        let announced = self.exec.set().state(slot).announce(seen_as(usage)?);
        announced.unwrap_or_else(|error| {
            self.manager.crossing.count(&format!("fences: others do not hear of a copy: {error}"));
            None
        })
    }

    /// The move of the buffer in `slot` is queued, and over when `arrival` has signalled.
    pub(crate) fn arm_move(&mut self, slot: Slot, arrival: &FenceSet) {
        if let Some(index) = self.announced.iter().position(|(of, _)| *of == slot) {
            let (_, reserved) = self.announced.swap_remove(index);
            reserved.arm(arrival);
        }
    }
}
