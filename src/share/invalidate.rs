//! Telling importers to let go, before a buffer's bytes move or its part of the BAR goes.

use std::sync::Arc;

use devpagemap_fence::sync::mutant;
use devpagemap_fence::{FenceSet, Slot, Usage, lockdep};

use super::importer::{InvalidateReason, Invalidated};
use super::peer_map::Mapped;
use crate::aperture::{Charge, P2p};
use crate::bo::Transaction;

/// What maps that were ended leave behind.
#[derive(Default)]
pub(super) struct EndedMaps {
    /// Until when somebody may use the buffer's bytes.
    pub(super) until: FenceSet,
    /// What they had of the BAR, each with until when it is in use: to be given back.
    pub(super) charges: Vec<(Charge, FenceSet)>,
    /// Whose they were.
    pub(super) importers: Vec<Arc<str>>,
}

impl Transaction<'_, '_, '_> {
    /// Ends the maps that show where the buffer in `slot` is, because it moves or because of `reason`. Whoever touches its bytes from now on
    /// waits for the importers: their fences are in its reservation, in slots that the caller has
    /// [reserved](Transaction::reserve_fences). Returns all of them, and those of holders that had gone before.
    pub(crate) fn invalidate_peers(&mut self, slot: Slot, reason: InvalidateReason) -> FenceSet {
        self.invalidate_those(slot, reason, |mapped| !mapped.is_staged)
    }

    /// The same for the maps of which `ends` says so.
    pub(super) fn invalidate_those(
        &mut self,
        slot: Slot,
        reason: InvalidateReason,
        ends: impl Fn(&Mapped) -> bool,
    ) -> FenceSet {
        let EndedMaps { until, charges, .. } = self.end_maps(slot, reason, ends);
        for (charge, until) in charges {
            self.manager.give_up_bar(charge, until);
        }
        until
    }

    /// As [`invalidate_those`](Transaction::invalidate_those); what the maps had of the BAR is the caller's to give back.
    pub(super) fn end_maps(
        &mut self,
        slot: Slot,
        reason: InvalidateReason,
        ends: impl Fn(&Mapped) -> bool,
    ) -> EndedMaps {
        let mut left = EndedMaps::default();
        let peers = &mut self.exec.set_mut().state_mut(slot).peers;
        if peers.fence_slots() == 0 {
            return left;
        }
        let early = mutant!("who_is_gone_is_asked_before_the_mark").then(|| peers.departed());
        let ended = peers.make_stale(&ends);
        left.until = early.unwrap_or_else(|| peers.departed());
        let buffer = self.exec.set().object(slot).id();
        left.until = self.all_bounded(left.until, buffer);
        for ended in ended {
            left.charges.extend(ended.kept.into_iter().map(|kept| (kept.charge, kept.after)));
            if ended.maps.is_empty() {
                continue;
            }
            lockdep::assert_may_signal();
            let what = Invalidated { buffer, attachment: ended.attached.id, reason };
            let fence = ended.attached.joined.invalidate(&what);
            let fence = fence.map(|fence| self.bounded(fence, &ended.attached.joined.name, buffer));
            if let Some(fence) = &fence {
                self.exec.set_mut().add_fence(slot, fence.clone(), Usage::Bookkeep);
                left.until.add(fence.clone());
            }
            for mapped in &ended.maps {
                self.rescue_write(slot, mapped, fence.as_ref());
                let (charge, until) = mapped.take_holdings(fence.as_ref());
                left.charges.extend(charge.map(|charge| (charge, until)));
            }
            left.importers.push(ended.attached.joined.name.clone());
            tracing::debug!(buffer, importer = &*ended.attached.joined.name, ?reason, "invalidated");
        }
        left
    }

    /// A buffer is tagged otherwise: ends its maps if they are not what the new tag allows, and sees to it that it comes back if
    /// only the old one kept it out of the BAR.
    pub(crate) fn follow_tag(&mut self, slot: Slot, before: P2p, now: P2p) {
        let peers = &self.exec.set().state(slot).peers;
        let hold_system = peers.hold_system(None);
        match now {
            P2p::Never => {
                self.waits_no_more(slot);
                let ends = |mapped: &Mapped| mapped.is_direct() && mapped.attached.is_told();
                self.invalidate_those(slot, InvalidateReason::Retagged, ends);
            }
            P2p::Require => {
                let ends = |mapped: &Mapped| mapped.why_system.is_some() && mapped.attached.is_told();
                self.invalidate_those(slot, InvalidateReason::Retagged, ends);
            }
            P2p::Allowed | P2p::Prefer if before == P2p::Never && hold_system => {
                self.wait_for_promotion(slot)
            }
            P2p::Allowed | P2p::Prefer => {}
        }
    }
}
