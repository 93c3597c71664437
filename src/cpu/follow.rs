//! Where buffers and their mappings meet: a buffer knows who maps it, and whoever moves it tells them.

use std::sync::{Arc, Weak};

use devpagemap_fence::Slot;
use devpagemap_fence::sync::mutant;

use super::mapping::{Mapping, Way};
use crate::bo::{Placement, Reached, Transaction};
use crate::error::Result;
use crate::region::RegionKind;

/// The mappings that show a buffer's bytes. Protected by its reservation; whoever drops a mapping may hold no reservation, so the
/// dead ones are only forgotten when the next is added.
#[derive(Debug, Default)]
pub(crate) struct Followers {
    mappings: Vec<Weak<Mapping>>,
    /// Whether one of them may have written since [`Followers::may_have_written`] was asked when there was none.
    may_have_written: bool,
}

impl Followers {
    fn add(&mut self, mapping: &Arc<Mapping>, writable: bool) {
        self.mappings.retain(|follower| follower.strong_count() > 0);
        self.mappings.push(Arc::downgrade(mapping));
        self.may_have_written |= writable;
    }

    /// Whether a mapping shows the buffer's bytes, or will.
    pub(crate) fn are_any(&self) -> bool {
        self.mappings.iter().any(|follower| follower.strong_count() > 0)
    }

    fn alive(&self) -> Vec<Arc<Mapping>> {
        self.mappings.iter().filter_map(Weak::upgrade).collect()
    }

    /// Whether the CPU may have written through one since this was asked last.
    pub(crate) fn may_have_written(&mut self) -> bool {
        let may_again = self.may_have_written && self.are_any();
        std::mem::replace(&mut self.may_have_written, may_again)
    }
}

impl Transaction<'_, '_, '_> {
    /// Takes the buffer's bytes away from every mapping of it: what has been written through them by now has been written before
    /// the move that is about to be queued.
    pub(crate) fn zap_mappings(&mut self, slot: Slot) {
        let mappings = self.exec.set().state(slot).followers.alive();
        let (_, mut held) = self.exec.split();
        for mapping in mappings {
            mapping.zap(&mut held);
        }
    }

    /// The same for a buffer that stays where it is: mappings whose touches cannot sleep go on showing its bytes.
    pub(crate) fn zap_watched_mappings(&mut self, slot: Slot) {
        let mut mappings = self.exec.set().state(slot).followers.alive();
        mappings.retain(|mapping| mapping.space.is_watched());
        let (_, mut held) = self.exec.split();
        mappings.iter().for_each(|mapping| mapping.zap(&mut held));
    }

    /// The buffer moves although it is pinned: mappings that rely on that show their loss.
    pub(crate) fn end_pinned_mappings(&mut self, slot: Slot) {
        let mut mappings = self.exec.set().state(slot).followers.alive();
        mappings.retain(|mapping| !mapping.space.is_watched());
        let (_, mut held) = self.exec.split();
        mappings.iter().for_each(|mapping| mapping.lose(&mut held));
    }

    /// The buffer's bytes are lost: every mapping of it shows that.
    pub(crate) fn lose_mappings(&mut self, slot: Slot) {
        let mappings = self.exec.set().state(slot).followers.alive();
        let (_, mut held) = self.exec.split();
        mappings.iter().for_each(|mapping| mapping.lose(&mut held));
    }

    /// Tells every mapping where the buffer's bytes are from now on.
    pub(crate) fn settle_mappings(&mut self, slot: Slot) {
        for mapping in self.exec.set().state(slot).followers.alive() {
            self.settle_mapping(slot, &mapping);
        }
    }

    /// Tells one mapping where the bytes are.
    pub(crate) fn settle_mapping(&mut self, slot: Slot, mapping: &Arc<Mapping>) {
        let way = self.way(slot, mapping);
        let (set, mut held) = self.exec.split();
        let state = set.state(slot);
        let place = state.resource.as_ref().zip(way).map(|(resource, way)| {
            (resource.extents.slice(mapping.range.start, mapping.len_bytes()), state.arrival.clone(), way)
        });
        if mapping.settle(place, &mut held) && !mutant!("mover_forgets_who_sleeps") {
            mapping.post();
        }
    }

    /// Makes a mapping follow the buffer, from where it is now.
    pub(crate) fn follow(&mut self, slot: Slot, mapping: &Arc<Mapping>, writable: bool) {
        self.exec.set_mut().state_mut(slot).followers.add(mapping, writable);
        self.settle_mapping(slot, mapping);
    }

    /// Brings the buffer where `mapping` can show it.
    ///
    /// # Errors
    /// As `make_reachable`.
    pub(crate) fn make_mappable(&mut self, slot: Slot, mapping: &Mapping) -> Result<Reached> {
        let reached = self.make_reachable(slot, &mapping.wish)?;
        if self.way(slot, mapping).is_some() {
            return Ok(reached);
        }
        // The driver has an address for it and no file, so its bytes cannot have a second address there.
        self.validate(slot, &Placement::system())?;
        Ok(Reached { fell_back: Some(NO_FILE), region: RegionKind::System, ..reached })
    }

    /// How a mapping shows the buffer where it is; `None` when it cannot.
    pub(super) fn way(&self, slot: Slot, mapping: &Mapping) -> Option<Way> {
        let resource = self.resource(slot)?;
        let in_vram = resource.region == RegionKind::Vram;
        if in_vram && !self.exec.set().object(slot).may_be_reached_in_vram(mapping.wish.caching) {
            return None;
        }
        if mapping.can_show(&resource.extents.slice(mapping.range.start, mapping.len_bytes())) {
            return Some(Way::Direct);
        }
        let piece_bytes = self.manager.windows.cpu_piece_bytes();
        (in_vram && self.manager.reaches_by_windows()).then_some(Way::Windows { piece_bytes })
    }
}

const NO_FILE: &str = "cpu map: the driver's VRAM cannot be mapped a second time; served from system memory";
