//! What becomes of one buffer when VRAM is taken away. Its reservation is held, and whoever uses it is told.
//!
//! | revoked for | readable? | its bytes | its users |
//! |---|---|---|---|
//! | unplug, with notice | yes | queued to system memory | importers told; CPU maps follow |
//! | unplug, without | the driver says so | queued to system memory | the same |
//! | | no, but importers have a copy in step | queued to system memory from there | the same |
//! | | no, or there is no system memory | lost: [`Error::FenceFailed`](crate::Error::FenceFailed) from now on | importers told; CPU maps show their loss |
//! | reset | | stay where they are, until the driver has said what it kept | importers told; CPU touches sleep |
//!
//! What pins a buffer keeps it from being evicted, not from being unplugged: the pin ends with the place. A CPU map that was pinned
//! shows [its loss](crate::AfterLoss), as there is nobody to tell of touches; the buffer's bytes go along as they were.

use std::sync::Arc;

use devpagemap_fence::{Fence, FenceError, FenceSet, Slot, Timeline, Usage};
use devpagemap_migrate::Urgency;

use super::validate::{FENCES_PER_BUFFER, Found};
use super::{Away, BufferObject, Transaction};
use crate::error::{Error, Result};
use crate::region::{RegionKind, Resource};
use crate::share::{Drain, InvalidateReason, LostBytes};

/// Why bytes are lost whose device was unplugged.
const UNREADABLE: &str = "its VRAM cannot be read any more";

impl Transaction<'_, '_, '_> {
    /// Takes the VRAM of the buffer in `slot` away, if it has any.
    ///
    /// # Errors
    /// When the buffer has to go to system memory and there is none; nothing has changed. After a surprise that is a loss instead.
    pub(crate) fn evacuate(&mut self, slot: Slot, drain: &Arc<Drain>) -> Result<()> {
        if !self.exec.set().state(slot).is_in_vram() {
            return Ok(());
        }
        let unreadable_bytes = match drain.is_surprise() {
            true => self.unreadable_bytes(slot),
            false => 0,
        };
        if unreadable_bytes > 0 {
            return self.save_or_lose(slot, drain, unreadable_bytes);
        }
        match self.move_out(slot, drain) {
            Err(error) if drain.is_surprise() => self.lose_for(error, slot, drain),
            moved => moved,
        }
    }

    /// The buffer has lost what it had in VRAM, or what is still being copied from there.
    pub(crate) fn lose_unless_arrived(&mut self, slot: Slot, drain: &Arc<Drain>) -> Result<()> {
        let state = self.exec.set().state(slot);
        let is_whole = !state.is_in_vram() && state.arrival.is_signaled();
        if is_whole || state.check_not_lost().is_err() {
            return Ok(());
        }
        let size_bytes = self.exec.set().object(slot).footprint_bytes;
        self.save_or_lose(slot, drain, size_bytes)
    }

    /// Bytes in VRAM cannot be had any more. A copy for importers that is in step has them too.
    fn save_or_lose(&mut self, slot: Slot, drain: &Arc<Drain>, bytes: u64) -> Result<()> {
        if self.exec.set().state(slot).is_in_vram() && self.read_from_copy(slot) {
            return match self.move_out(slot, drain) {
                Ok(()) => Ok(()),
                Err(error) => self.lose_for(error, slot, drain),
            };
        }
        self.lose(slot, drain, bytes, UNREADABLE);
        Ok(())
    }

    /// There is no place for bytes that could be had.
    fn lose_for(&mut self, error: Error, slot: Slot, drain: &Arc<Drain>) -> Result<()> {
        if error == Error::Contended {
            return Err(error);
        }
        let size_bytes = self.exec.set().object(slot).footprint_bytes;
        self.lose(slot, drain, size_bytes, &error.to_string());
        Ok(())
    }

    fn unreadable_bytes(&self, slot: Slot) -> u64 {
        let Some(resource) = self.resource(slot) else { return 0 };
        let driver = self.manager.driver();
        let unreadable = resource.extents.iter().filter(|extent| !driver.is_readable(extent));
        unreadable.map(|extent| extent.len_bytes).sum()
    }

    /// Queues the copy to system memory.
    fn move_out(&mut self, slot: Slot, drain: &Arc<Drain>) -> Result<()> {
        let buffer = self.exec.set().arc(slot);
        self.reserve_fences(slot, FENCES_PER_BUFFER)?;
        let Found::Memory(new, after) = self.take_system(slot, &buffer, RegionKind::System)? else {
            unreachable!("the buffer is in VRAM");
        };
        self.try_to_announce_move(slot);
        // From here on nothing fails.
        self.reason = InvalidateReason::Revoked;
        self.end_pinned_mappings(slot);
        self.end_pinned_attachments(slot);
        let (old, fence) = self.queue_bytes(slot, &buffer, new, after, Urgency::Background);
        self.keep_copy_until(slot, &FenceSet::from(fence.clone()));
        let state = self.exec.set_mut().state_mut(slot);
        state.away = Some(Away::Evicted);
        drain.await_arrival(buffer.id(), buffer.footprint_bytes, state.arrival.clone());
        if let Some(ghost) = old.and_then(|old| self.manager.retire_from_vram(&old, fence.into())) {
            drain.left(buffer.id(), ghost);
        }
        tracing::debug!(buffer = buffer.id(), "evacuated");
        Ok(())
    }

    /// The bytes are gone: whoever uses the buffer is told, and whoever asks for it from now on gets the error.
    fn lose(&mut self, slot: Slot, drain: &Arc<Drain>, bytes: u64, why: &str) {
        let buffer = self.exec.set().arc(slot);
        self.exec.set_mut().state_mut(slot).arrival = failed_arrival(why).into();
        self.lose_mappings(slot);
        self.end_pinned_attachments(slot);
        let mut until = self.exec.set().fences(slot, Usage::Bookkeep);
        match self.reserve_fences(slot, 0) {
            Ok(()) => until.merge(&self.invalidate_peers(slot, InvalidateReason::Revoked)),
            Err(error) => tracing::error!(%error, buffer = buffer.id(), "its importers cannot be told"),
        }
        let windows = std::mem::take(&mut self.exec.set_mut().state_mut(slot).windows);
        until.merge(&self.manager.hide_windows(windows, &mut self.exec.split().1));
        let state = self.exec.set_mut().state_mut(slot);
        state.generation += 1;
        // What others see as a dma-buf stays what they see, whatever is in it.
        let is_seen = buffer.is_exported() || buffer.imported.is_some();
        if let Some(old) = state.resource.take_if(|here| here.region == RegionKind::Vram || !is_seen) {
            self.retire_lost(&buffer, old, until, drain);
        }
        let bytes = bytes.min(buffer.footprint_bytes);
        drain.lost(LostBytes { buffer: buffer.id(), bytes, why: why.into() });
    }

    fn retire_lost(&mut self, buffer: &BufferObject, old: Resource, until: FenceSet, drain: &Drain) {
        if old.region != RegionKind::Vram {
            return self.manager.retire(old, until);
        }
        if let Some(ghost) = self.manager.retire_from_vram(&old, until) {
            drain.left(buffer.id(), ghost);
        }
    }

    /// The device is about to be reset: nobody reaches the buffer's VRAM until [`Transaction::resume`]. Whoever maps it for the CPU
    /// without sleeping touches it at their own risk.
    ///
    /// # Errors
    /// When there is no memory for the importers' fences.
    pub(crate) fn suspend(&mut self, slot: Slot) -> Result<()> {
        if !self.exec.set().state(slot).is_in_vram() {
            return Ok(());
        }
        self.reserve_fences(slot, 0)?;
        self.zap_watched_mappings(slot);
        drop(self.invalidate_peers(slot, InvalidateReason::Revoked));
        Ok(())
    }

    /// The device has been reset and has kept the buffer's bytes.
    pub(crate) fn resume(&mut self, slot: Slot) {
        self.settle_mappings(slot);
    }
}

fn failed_arrival(why: &str) -> Fence {
    let timeline = Timeline::new("lost");
    let fence = timeline.next_point();
    timeline.fail(fence.seqno(), FenceError::failed(why));
    fence
}
