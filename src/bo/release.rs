//! How memory is given back: behind fences, by their callbacks. No thread waits for it, and no worker exists for it.

use devpagemap_allocator::Span;
use devpagemap_fence::sync::mutant;
use devpagemap_fence::{FenceSet, Held, LockSet, Slot, levels};

use super::BufferObject;
use crate::manager::Manager;
use crate::region::{GhostId, Lru, Pin, RegionKind, Resource, SystemState, Unreaped};

impl Manager {
    /// Takes a resource out of its region; its bytes are free once `fences` have signalled. For destructors and fence
    /// callbacks: takes the region lock, under any reservation.
    pub(crate) fn retire(&self, mut resource: Resource, fences: FenceSet) {
        if let Some(pages) = resource.outside.take() {
            return self.cpu.retire_outside(pages, fences);
        }
        let mut held = Held::in_destructor();
        match resource.region {
            RegionKind::Vram => drop(self.retire_from_vram(&resource, fences)),
            RegionKind::Gtt | RegionKind::System => {
                let mut state = self.system.state.lock(&mut held);
                state.leave(resource.region, resource.len_bytes(), resource.node);
                drop(state);
                self.give_back_system(resource.spans, fences, &mut held);
            }
        }
    }

    /// The same for one in VRAM; names the ghost that it leaves, if it leaves one.
    pub(crate) fn retire_from_vram(&self, resource: &Resource, fences: FenceSet) -> Option<GhostId> {
        let ghost = {
            let mut held = Held::in_destructor();
            let mut state = self.vram.state.lock(&mut held);
            self.vram.retire(&mut state, resource, fences)
        };
        let id = ghost.as_ref().map(|ghost| ghost.id);
        self.reap_when_signaled(RegionKind::Vram, ghost);
        id
    }

    /// Frees system pages that are counted nowhere, behind `fences`.
    pub(crate) fn give_back_system(
        &self,
        spans: Vec<Span>,
        fences: FenceSet,
        held: &mut Held<'_, levels::Tickets>,
    ) {
        if fences.is_signaled() {
            self.system.free(&spans, held);
            return;
        }
        let ghost = self.system.state.lock(held).heap.give_back(spans, fences);
        self.reap_when_signaled(RegionKind::System, ghost);
    }

    /// Turns ghosts into idle memory as soon as their fences signal, on whatever thread that happens.
    pub(crate) fn reap_when_signaled(&self, region: RegionKind, ghosts: impl IntoIterator<Item = Unreaped>) {
        for Unreaped { id, fences } in ghosts {
            let manager = self.weak();
            let reap = move || {
                if let Some(manager) = manager.upgrade() {
                    manager.reap(region, id);
                }
            };
            match mutant!("ghost_that_is_late_is_forgotten") {
                false => fences.when_signaled(reap),
                true => drop(fences.on_signaled(reap)),
            }
        }
    }

    fn reap(&self, region: RegionKind, ghost: GhostId) {
        let mut held = Held::in_destructor();
        match region {
            RegionKind::Vram => {
                let mut state = self.vram.state.lock(&mut held);
                if let Some(spans) = state.heap.reap(ghost) {
                    if mutant!("bytes_are_nobodys_while_they_are_reaped") {
                        drop(state);
                        state = self.vram.state.lock(&mut held);
                    }
                    state.heap.free(&spans);
                }
            }
            RegionKind::Gtt | RegionKind::System => self.system.reap(ghost, &mut held),
        }
    }

    /// Counts a locked buffer's pages as the other kind of system memory. The pages stay, and so do the fences.
    pub(crate) fn recount(
        &self,
        set: &mut LockSet<'_, BufferObject>,
        slot: Slot,
        to: RegionKind,
        state: &mut SystemState,
    ) {
        let buffer = set.arc(slot);
        let resource = set.state_mut(slot).resource.as_mut().expect("only a buffer with pages is recounted");
        state.leave(resource.region, buffer.footprint_bytes, resource.node.take());
        resource.node = state.enter(to, &buffer);
        resource.region = to;
    }

    /// Ends a pin.
    pub(crate) fn unpin(&self, pin: Pin) {
        self.with_lru(pin.region, &mut Held::in_destructor(), |lru| lru.unpin(pin.node, pin.serial));
    }

    /// Runs `body` on the LRU of VRAM or of GTT, under its region lock.
    pub(crate) fn with_lru<O>(
        &self,
        region: RegionKind,
        held: &mut Held<'_, levels::Tickets>,
        body: impl FnOnce(&mut Lru) -> O,
    ) -> O {
        match region {
            RegionKind::Vram => body(&mut self.vram.state.lock(held).lru),
            RegionKind::Gtt | RegionKind::System => body(&mut self.system.state.lock(held).lru),
        }
    }

    /// Reaps what has signalled but whose callback has not run yet, so that an idle device reads as idle.
    pub(crate) fn reap_signalled(&self) {
        let mut held = Held::in_destructor();
        self.ledger.reap_signalled(&mut held);
        self.windows.reap_signalled(&mut held);
        self.cpu.reap_signalled();
        let vram = self.vram.state.lock(&mut held).heap.signalled_ghosts();
        let system = self.system.state.lock(&mut held).heap.signalled_ghosts();
        for ghost in vram {
            self.reap(RegionKind::Vram, ghost);
        }
        for ghost in system {
            self.reap(RegionKind::System, ghost);
        }
    }
}
