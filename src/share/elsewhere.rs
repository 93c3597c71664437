//! Maps that are not in the BAR: over a private link, in system memory with all others, or of a copy.

use std::ops::Range;
use std::sync::Arc;

use devpagemap_fence::Slot;

use super::accord::reaches_bar;
use super::arbiter::Accord;
use super::attachment::Attached;
use super::importer::InvalidateReason;
use super::map::{Asked, Denied};
use super::peer_map::{Mapped, NewMap, PeerExtent};
use super::scatter::Kind;
use crate::aperture::{Admitted, OnPressure, P2p};
use crate::bo::{BufferObject, Placement, Transaction};
use crate::error::{Error, Result};
use crate::events::{Event, PeerReason};
use crate::region::{RegionKind, page_count};
use crate::stats::Counters;

impl Transaction<'_, '_, '_> {
    /// Falls back to system memory, or says why not.
    pub(super) fn do_without(
        &mut self,
        slot: Slot,
        asked: &Asked<'_>,
        denied: Denied,
    ) -> Result<Arc<Mapped>> {
        let (error, reason, missing_pages) = match denied {
            Denied::Over(over, error) => (error, PeerReason::Over(over.limit), over.missing_pages),
            Denied::Place(error @ Error::ApertureFull { limit, .. }) => {
                (error, PeerReason::Over(limit), page_count(&asked.range))
            }
            Denied::Place(error) if is_lack_of_vram(&error) => {
                (error, PeerReason::NoVisibleRoom, page_count(&asked.range))
            }
            Denied::Place(error) => return Err(error),
        };
        let may_not = asked.buffer.tags.p2p() == P2p::Require
            || asked.attached.joined.requires_p2p()
            || asked.on_pressure == OnPressure::Refuse;
        if may_not {
            let (buffer, importer) = (asked.buffer.id(), asked.attached.joined.name.clone());
            let (_, mut held) = self.exec.split();
            self.manager.tell(Event::Refused { buffer, importer, reason, missing_pages }, &mut held);
            return Err(error);
        }
        if self.is_required_by_another(slot, asked.attached) {
            return self.map_staged(slot, asked, reason, missing_pages);
        }
        let mapped = self.map_in_system(slot, asked, reason, missing_pages)?;
        self.wait_for_promotion(slot);
        Ok(mapped)
    }

    /// Whether another importer takes nothing but the BAR, and so the buffer cannot leave VRAM for this one.
    pub(super) fn is_required_by_another(&self, slot: Slot, attached: &Attached) -> bool {
        let mut parties = self.exec.set().state(slot).peers.parties();
        parties.any(|other| {
            let reaches = || reaches_bar(&self.manager.decision(&other.joined));
            other.id != attached.id && other.joined.requires_p2p() && reaches()
        })
    }

    /// A copy in system memory, brought up to date. The buffer stays where it is.
    pub(super) fn map_staged(
        &mut self,
        slot: Slot,
        asked: &Asked<'_>,
        reason: PeerReason,
        missing_pages: u64,
    ) -> Result<Arc<Mapped>> {
        if self.resource(slot).is_none() {
            self.validate(slot, asked.buffer.placement())?;
        }
        let copy = self.staged_copy(slot)?;
        let after = self.refresh(slot, &copy, &asked.range)?;
        let extents = copy.extents(&asked.range).iter().map(PeerExtent::from).collect();
        let new = NewMap { extents, why_system: Some(reason), after, copy: Some(copy), ..NewMap::of(asked) };
        let mapped = Mapped::new(new);
        self.exec.set_mut().state_mut(slot).peers.keep(mapped.clone());
        Counters::count(&self.manager.counters.staged_maps);
        let (_, mut held) = self.exec.split();
        self.manager.tell(asked.fell_back(reason, missing_pages), &mut held);
        Ok(mapped)
    }

    /// Moves the buffer to system memory, unless it is there.
    pub(super) fn bring_to_system(&mut self, slot: Slot, buffer: &BufferObject) -> Result<()> {
        match self.is_in_system(slot) {
            true => Ok(()),
            false => self.validate(slot, &buffer.placement().beside_vram()),
        }
    }

    /// Whether its bytes are in system memory.
    pub(super) fn is_in_system(&self, slot: Slot) -> bool {
        self.region(slot).is_some_and(|region| region != RegionKind::Vram)
    }

    /// System memory, to which the buffer moves if it has to, and the addresses there.
    pub(super) fn map_in_system(
        &mut self,
        slot: Slot,
        asked: &Asked<'_>,
        reason: PeerReason,
        missing_pages: u64,
    ) -> Result<Arc<Mapped>> {
        self.bring_to_system(slot, asked.buffer)?;
        if self.exec.set().state(slot).peers.copy.strong_count() > 0 {
            // All meet in system memory now: nobody needs a copy of it.
            self.reserve_fences(slot, 0)?;
            self.invalidate_those(slot, InvalidateReason::Rerouted, |mapped| mapped.is_staged);
        }
        let new = NewMap {
            extents: self.addresses(slot, &asked.range, Kind::Bus),
            why_system: Some(reason),
            hold: self.hold_for(slot, asked.attached),
            ..NewMap::of(asked)
        };
        let mapped = self.note_map(slot, new);
        if reason != PeerReason::LivesInSystemMemory {
            let (_, mut held) = self.exec.split();
            self.manager.tell(asked.fell_back(reason, missing_pages), &mut held);
        }
        Ok(mapped)
    }

    /// VRAM, wherever the buffer is in it: a private link needs no BAR.
    ///
    /// # Errors
    /// Why there is no room in VRAM.
    pub(super) fn map_over_link(&mut self, slot: Slot, asked: &Asked<'_>) -> Result<Arc<Mapped>> {
        let placement = asked.buffer.placement().in_vram().expect("who may not be in VRAM does not get here");
        if self.region(slot) != Some(RegionKind::Vram) {
            self.validate(slot, &placement)?;
        }
        let new = NewMap {
            extents: self.addresses(slot, &asked.range, Kind::Link),
            hold: self.hold_for(slot, asked.attached),
            ..NewMap::of(asked)
        };
        let mapped = self.note_map(slot, new);
        let (_, mut held) = self.exec.split();
        for Admitted { charge, after } in asked.attached.take_kept() {
            self.manager.release_peer(charge, after, &mut held);
        }
        Ok(mapped)
    }

    /// Where the bytes are, as the bus addresses them, or a private link.
    pub(super) fn addresses(&mut self, slot: Slot, range: &Range<u64>, kind: Kind) -> Arc<[PeerExtent]> {
        let manager = self.manager;
        let state = self.exec.set_mut().state_mut(slot);
        let resource = state.resource.as_ref().expect("it was brought where it is mapped");
        let extents = &resource.extents;
        state.peers.lists.get(state.generation, kind, range, || {
            Counters::count(&manager.counters.scatter_lists);
            let extents = extents.slice(range.start, range.end - range.start);
            match kind {
                Kind::Bus => extents.iter().map(PeerExtent::from).collect(),
                Kind::Link => extents.iter().map(PeerExtent::over_link).collect(),
            }
        })
    }

    /// Makes the map, behind the moves that bring the bytes there. Cannot fail.
    pub(super) fn note_map(&mut self, slot: Slot, mut new: NewMap) -> Arc<Mapped> {
        let state = self.exec.set_mut().state_mut(slot);
        new.after.merge(&state.arrival);
        new.after.prune();
        let mapped = Mapped::new(new);
        state.peers.keep(mapped.clone());
        mapped
    }

    /// Whether importers have the buffer mapped in GTT, where `placement` lets it be: then it stays there, instead of taking
    /// their maps away for a better place.
    pub(crate) fn is_kept_by_peers(&self, slot: Slot, placement: &Placement) -> bool {
        let state = self.exec.set().state(slot);
        if state.peers.arbiter.present() == Accord::Staged {
            return false;
        }
        let is_in_gtt = state.resource.as_ref().is_some_and(|resource| resource.region == RegionKind::Gtt);
        is_in_gtt && placement.allows(RegionKind::Gtt) && state.peers.hold_system(None)
    }
}

/// Whether system memory helps against it.
fn is_lack_of_vram(error: &Error) -> bool {
    matches!(
        error,
        Error::TooLarge { region: RegionKind::Vram, .. }
            | Error::Exhausted { region: RegionKind::Vram, .. }
            | Error::Fragmented { region: RegionKind::Vram, .. }
    )
}
