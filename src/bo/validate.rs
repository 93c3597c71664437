//! Validate: give a locked buffer one of the places it wants, without ever waiting for a copy.
//!
//! Two passes over the places, best first. The first evicts nobody and skips FALLBACK places; the second evicts and skips
//! DESIRED ones. A place that the buffer already has ends the search, so a buffer in its second choice comes back to its
//! first as soon as there is room, and not before.
//!
//! Then, in this order, so that everything that can fail comes before the point of no return:
//!
//! ```text
//!   fence slots ─► space (escrowed) ─► │ queue copy ─► swap resource ─► attach fence ─► old place becomes a ghost
//!        may fail                      │               cannot fail
//! ```

use std::sync::Arc;

use devpagemap_fence::sync::atomic::Ordering;
use devpagemap_fence::sync::mutant;
use devpagemap_fence::{Exec, Fence, FenceSet, Slot, Usage, lockdep};
use devpagemap_migrate::{MoveRequest, Operation, Urgency};

use super::transact::Reach;
use super::{Away, BufferObject, Place, Placement};
use crate::error::{Error, Result};
use crate::manager::Manager;
use crate::region::{Node, Pin, RegionKind, Resource};
use crate::share::InvalidateReason;
use crate::stats::Counters;
use crate::sync_file::Reserved;

/// Fences that one transaction may attach to one buffer: a move, its rebind, a job, and an eviction's move and rebind.
pub(super) const FENCES_PER_BUFFER: usize = 5;

/// Buffers locked together, and what can be done with them meanwhile.
pub(crate) struct Transaction<'t, 'h, 'o> {
    pub(crate) manager: &'t Arc<Manager>,
    pub(crate) exec: &'t mut Exec<'h, 'o, BufferObject>,
    /// What of the device it may use.
    pub(crate) reach: Reach<'t>,
    /// The buffers that the caller asked for, in its order; other locked ones are victims.
    pub(crate) members: Vec<Slot>,
    /// Why what is copied now is copied, if for the sake of visibility.
    pub(super) moving_for: Option<&'static str>,
    /// What importers are told when a buffer moves.
    pub(crate) reason: InvalidateReason,
    /// Moves that others have been told of and that are not queued yet; those that never are, are over when this is dropped.
    pub(crate) announced: Vec<(Slot, Reserved)>,
}

/// Who may have to move for a place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Nobody.
    Free,
    /// Others that the CPU does not work on, within VRAM.
    Relocating,
    /// The same, out of VRAM too.
    EvictingIdle,
    /// Others, out of VRAM too.
    Evicting,
}

impl Pass {
    fn considers(self, place: &Place) -> bool {
        match self {
            Pass::Free => !place.fallback,
            Pass::Relocating | Pass::EvictingIdle | Pass::Evicting => !place.desired,
        }
    }

    /// Whether this pass leaves a buffer where it is that others would evict.
    pub(super) fn spares(self, node: &Node) -> bool {
        matches!(self, Pass::Relocating | Pass::EvictingIdle) && node.cpu_works_on_it
    }
}

/// A new place that has been found for a buffer.
pub(crate) enum Found {
    /// Memory of another region, and the fences of its former users.
    Memory(Resource, FenceSet),
    /// The same pages, counted as the other kind of system memory.
    SamePages(RegionKind),
}

impl<'t, 'h, 'o> Transaction<'t, 'h, 'o> {
    pub(crate) fn new(
        manager: &'t Arc<Manager>,
        exec: &'t mut Exec<'h, 'o, BufferObject>,
        members: Vec<Slot>,
        reach: Reach<'t>,
    ) -> Self {
        let (moving_for, reason) = (None, InvalidateReason::Moved);
        Transaction { manager, exec, reach, members, moving_for, reason, announced: Vec::new() }
    }

    /// The slot of the caller's `index`th buffer.
    pub(crate) fn member(&self, index: usize) -> Slot {
        self.members[index]
    }

    pub(crate) fn resource(&self, slot: Slot) -> Option<&Resource> {
        self.exec.set().state(slot).resource.as_ref()
    }

    /// Where a locked buffer's bytes are; `None` before their first use.
    pub(crate) fn region(&self, slot: Slot) -> Option<RegionKind> {
        self.exec.set().state(slot).region()
    }

    /// Brings a locked buffer to one of `placement`'s places.
    ///
    /// # Errors
    /// [`Error::Contended`] (restart), or why the last place could not be had. What was moved before stays moved.
    pub(crate) fn validate(&mut self, slot: Slot, placement: &Placement) -> Result<()> {
        self.validate_in(slot, placement, &[Pass::Free, Pass::Evicting])
    }

    /// The same with the passes that the caller allows.
    pub(super) fn validate_in(&mut self, slot: Slot, placement: &Placement, passes: &[Pass]) -> Result<()> {
        lockdep::might_evict();
        let buffer = self.exec.set().arc(slot);
        self.exec.set().state(slot).check_not_lost()?;
        self.reserve_fences(slot, FENCES_PER_BUFFER)?;
        if self.is_kept_by_peers(slot, placement) {
            return Ok(());
        }
        let mut refused = None;
        for pass in passes.iter().copied() {
            for place in placement.places().iter().filter(|place| pass.considers(place)) {
                if self.is_at(slot, place) {
                    return Ok(());
                }
                self.announce_move(slot)?;
                match self.find_or_make_way(slot, &buffer, place, pass) {
                    Ok(Some(found)) => {
                        self.move_to(slot, &buffer, found);
                        return Ok(());
                    }
                    Ok(None) => {}
                    Err(Error::Contended) => return Err(Error::Contended),
                    Err(error) => refused = Some(error),
                }
            }
        }
        Err(refused.unwrap_or_else(|| self.nothing_free(&buffer, placement)))
    }

    /// Makes room for `count` fences, and for those of the importers that a move has to tell.
    pub(crate) fn reserve_fences(&mut self, slot: Slot, count: usize) -> Result<()> {
        let set = self.exec.set_mut();
        let importers = set.state(slot).peers.fence_slots();
        Ok(set.reserve_fences(slot, count + importers)?)
    }

    /// Why a buffer whose places are all DESIRED got none: nobody may be evicted for it.
    fn nothing_free(&mut self, buffer: &BufferObject, placement: &Placement) -> Error {
        let place = placement.places().last().expect("a placement names a place");
        let region = place.region;
        let (_, mut held) = self.exec.split();
        let (free_bytes, pinned_bytes) = match region {
            RegionKind::Vram => {
                let state = self.manager.vram.state.lock(&mut held);
                (state.heap.free_bytes_in(&self.manager.vram.range_of(place)), state.lru.pinned_bytes())
            }
            RegionKind::Gtt | RegionKind::System => {
                let state = self.manager.system.state.lock(&mut held);
                (self.manager.system.gtt_bytes - state.gtt_used_bytes, state.lru.pinned_bytes())
            }
        };
        Error::Exhausted {
            region,
            wanted_bytes: buffer.footprint_bytes,
            free_bytes,
            pinned_bytes,
            held_bytes: 0,
        }
    }

    fn is_at(&self, slot: Slot, place: &Place) -> bool {
        let Some(resource) = self.resource(slot) else { return false };
        if place.region != RegionKind::Vram && resource.is_outside() {
            return true;
        }
        if resource.region != place.region {
            return false;
        }
        if place.region != RegionKind::Vram {
            return true;
        }
        let range = self.manager.vram.range_of(place);
        let inside = resource
            .spans
            .iter()
            .all(|span| span.start_bytes >= range.start && span.end_bytes() <= range.end);
        inside && (!place.contiguous || resource.spans.len() == 1)
    }

    fn find_or_make_way(
        &mut self,
        slot: Slot,
        buffer: &Arc<BufferObject>,
        place: &Place,
        pass: Pass,
    ) -> Result<Option<Found>> {
        match self.find(slot, buffer, place, pass) {
            Err(
                Error::Exhausted { region: RegionKind::Vram, held_bytes: 1.., .. } | Error::Fragmented { .. },
            ) if self.make_way(buffer, place)? => self.find(slot, buffer, place, pass),
            Err(Error::Exhausted { region: RegionKind::Vram, .. } | Error::Fragmented { .. })
                if pass == Pass::Evicting && self.revoke_for(place)? =>
            {
                self.find_or_make_way(slot, buffer, place, pass)
            }
            found => found,
        }
    }

    pub(crate) fn find(
        &mut self,
        slot: Slot,
        buffer: &Arc<BufferObject>,
        place: &Place,
        pass: Pass,
    ) -> Result<Option<Found>> {
        self.check_not_pinned(slot, buffer)?;
        match place.region {
            RegionKind::Vram => {
                self.check_may_use_vram()?;
                self.manager.vram.check_fits(place, buffer.footprint_bytes)?;
                if let Some(found) = self.take_free_vram(buffer, place) {
                    return Ok(Some(found));
                }
                match pass {
                    Pass::Free => Ok(None),
                    Pass::Relocating | Pass::EvictingIdle | Pass::Evicting => {
                        self.evict_for(buffer, place, pass)
                    }
                }
            }
            RegionKind::Gtt => {
                if !self.claim_gtt(buffer, pass)? {
                    return Ok(None);
                }
                let found = self.take_system(slot, buffer, RegionKind::Gtt);
                found.inspect_err(|_| self.give_up_gtt(buffer)).map(Some)
            }
            RegionKind::System => self.take_system(slot, buffer, RegionKind::System).map(Some),
        }
    }

    pub(super) fn check_not_pinned(&mut self, slot: Slot, buffer: &Arc<BufferObject>) -> Result<()> {
        let Some(region) = self.region(slot) else { return Ok(()) };
        let is_held = buffer.holds.load(Ordering::Acquire) > 0 || self.stays_outside(slot);
        match is_held || self.is_pinned(slot) {
            true => Err(Error::Pinned { buffer: buffer.id(), region }),
            false => Ok(()),
        }
    }

    /// Whether its resource is pinned.
    pub(super) fn is_pinned(&mut self, slot: Slot) -> bool {
        let (set, mut held) = self.exec.split();
        let resource = set.state(slot).resource.as_ref();
        let node = resource.and_then(|resource| Some((resource.region, resource.node?)));
        node.is_some_and(|(region, node)| self.manager.with_lru(region, &mut held, |lru| lru.is_pinned(node)))
    }

    fn take_free_vram(&mut self, buffer: &Arc<BufferObject>, place: &Place) -> Option<Found> {
        let (_, mut held) = self.exec.split();
        let vram = &self.manager.vram;
        let mut state = vram.state.lock(&mut held);
        let taken = vram.take(&mut state, place, buffer.footprint_bytes)?;
        let after = taken.after();
        let resource = vram.install(&mut state, buffer, taken.spans);
        Some(Found::Memory(resource, after))
    }

    /// Pages of the arena; the ones it has, if it is there already.
    pub(super) fn take_system(
        &mut self,
        slot: Slot,
        buffer: &Arc<BufferObject>,
        region: RegionKind,
    ) -> Result<Found> {
        let in_arena = |here: &Resource| here.region != RegionKind::Vram && !here.is_outside();
        if self.resource(slot).is_some_and(in_arena) {
            return Ok(Found::SamePages(region));
        }
        let (_, mut held) = self.exec.split();
        self.manager.take_pages(buffer.footprint_bytes, &mut held, |state, taken| {
            let node = state.enter(region, buffer);
            let after = taken.after();
            Found::Memory(Resource::new(region, taken.spans, node), after)
        })
    }

    /// The point of no return is behind; nothing below fails.
    pub(super) fn move_to(&mut self, slot: Slot, buffer: &Arc<BufferObject>, found: Found) {
        match found {
            Found::SamePages(region) => {
                let (set, mut held) = self.exec.split();
                let mut state = self.manager.system.state.lock(&mut held);
                self.manager.recount(set, slot, region, &mut state);
            }
            Found::Memory(new, after) => self.move_bytes(slot, buffer, new, after),
        }
    }

    pub(super) fn give_up_gtt(&mut self, buffer: &Arc<BufferObject>) {
        let (_, mut held) = self.exec.split();
        self.manager.system.state.lock(&mut held).give_up_gtt(buffer.footprint_bytes);
    }

    /// Moves the bytes into `new` and makes the old place a ghost.
    pub(super) fn move_bytes(
        &mut self,
        slot: Slot,
        buffer: &Arc<BufferObject>,
        new: Resource,
        after: FenceSet,
    ) {
        let comes_back = (new.region == RegionKind::Vram).then(|| self.comes_back(slot, buffer)).flatten();
        let reason = self.moving_for.or(comes_back);
        let (old, fence) = self.moving_for(reason, |transaction| {
            transaction.queue_bytes(slot, buffer, new, after, Urgency::Foreground)
        });
        if let Some(old) = old {
            self.manager.retire(old, FenceSet::from(fence));
        }
    }

    /// A buffer comes to VRAM. Says why, if visibility had driven it out.
    fn comes_back(&mut self, slot: Slot, buffer: &BufferObject) -> Option<&'static str> {
        let state = self.exec.set_mut().state_mut(slot);
        let away = state.away.take()?;
        if away == Away::ForLackOfVisibility {
            state.cpu.came_back();
        }
        if matches!(away, Away::Evicted | Away::EvictedForVisibility) {
            Counters::count(&self.manager.counters.restores);
            Counters::add(&self.manager.counters.restored_bytes, buffer.footprint_bytes);
        }
        (away != Away::Evicted).then_some("visibility: came back to VRAM, which it had left for visibility")
    }

    /// Takes the bytes away from CPU maps and tells importers, queues the copy into `new` behind all users of the buffer and of
    /// the new space, and swaps the resource. Returns the old one, which is the caller's to give back, and the copy's fence.
    pub(crate) fn queue_bytes(
        &mut self,
        slot: Slot,
        buffer: &Arc<BufferObject>,
        new: Resource,
        mut after: FenceSet,
        urgency: Urgency,
    ) -> (Option<Resource>, Fence) {
        if !mutant!("mappings_are_zapped_behind_the_copy") {
            self.zap_mappings(slot);
        }
        after.merge(&self.invalidate_peers(slot, self.reason));
        let windows = std::mem::take(&mut self.exec.set_mut().state_mut(slot).windows);
        after.merge(&self.manager.hide_windows(windows, &mut self.exec.split().1));
        let needs = self.exec.set().state(slot).arrival.clone();
        if !mutant!("copy_overtakes_the_writer") {
            after.merge(&self.exec.set().fences(slot, Usage::Bookkeep));
        }
        let state = self.exec.set_mut().state_mut(slot);
        state.generation += 1;
        let old = state.resource.take();
        let operation = match &old {
            Some(old) => Operation::Copy { src: old.extents.clone(), dst: new.extents.clone() },
            None => Operation::Clear { dst: new.extents.clone() },
        };
        let request = MoveRequest { label: buffer.id(), operation, urgency, after, needs };
        if old.is_some() {
            self.count_for_visibility(buffer.footprint_bytes);
        }
        let from = old.as_ref().map(|old| old.region);
        let fence = self.manager.queue_move(self, slot, request, from, &new);
        if mutant!("mappings_are_zapped_behind_the_copy") {
            self.zap_mappings(slot);
        }
        self.exec.set_mut().state_mut(slot).resource = Some(new);
        self.settle_mappings(slot);
        (old, fence)
    }

    /// Counts a copy that is made for the sake of visibility only.
    fn count_for_visibility(&mut self, len_bytes: u64) {
        let Some(reason) = self.moving_for else { return };
        let (_, mut held) = self.exec.split();
        Counters::add(&self.manager.counters.visibility_moved_bytes, len_bytes);
        self.manager.reasons.count(reason, &mut held);
    }

    /// Makes the caller's buffers the most recently used of their regions, in its order.
    pub(crate) fn touch_members(&mut self) {
        let (set, mut held) = self.exec.split();
        let nodes = |region| {
            let states = self.members.iter().map(|slot| set.state(*slot));
            let here = states.filter_map(|state| {
                let resource = state.resource.as_ref().filter(|resource| resource.region == region)?;
                Some((resource.node?, state.cpu.is_alive()))
            });
            here.collect::<Vec<_>>()
        };
        for region in [RegionKind::Vram, RegionKind::Gtt] {
            let nodes = nodes(region);
            if !nodes.is_empty() {
                self.manager.with_lru(region, &mut held, |lru| {
                    nodes.into_iter().for_each(|(node, cpu_works_on_it)| lru.touch(node, cpu_works_on_it));
                });
            }
        }
    }

    /// Keeps a member where it is until [`Manager::unpin`]. In System it may move on: the GPU can use nothing there.
    pub(crate) fn pin(&mut self, slot: Slot) -> Option<Pin> {
        let (set, mut held) = self.exec.split();
        let resource = set.state(slot).resource.as_ref()?;
        let (region, node) = (resource.region, resource.node?);
        let serial = self.manager.with_lru(region, &mut held, |lru| lru.pin(node));
        Some(Pin { region, node, serial })
    }
}
