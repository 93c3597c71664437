//! Promotion: buffers that had to leave the BAR come back when there is room again.
//!
//! ```text
//!   demoted, or fell back ─► waiting ──── room returns ────► pass: highest rank first, then who has waited longest
//!                              ▲                               │ the ledger admits every importer that has it mapped
//!                              └───── no, not yet ◄────────────┤ there is visible VRAM without evicting anybody
//!                                                              ▼
//!                       back in VRAM; pages kept for its importers, who were told and map again
//! ```
//!
//! While a level of pressure lasts nobody is promoted, so that what left at the soft limit does not come back before the reopen
//! mark. The pages that the importers had are charged when the buffer comes back and kept until they map it again, let go of
//! it, or it moves: otherwise one free page would bring everybody back.
//!
//! Room returns in destructors and fence callbacks, where the application may hold locks of its own and importers must not be
//! called. So a pass is made by a thread of the device. It starts when the first buffer has to wait, and ends with the device.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use devpagemap_fence::sync::Condvar;
use devpagemap_fence::sync::atomic::{AtomicUsize, Ordering};
use devpagemap_fence::sync::thread::{Builder, JoinHandle};
use devpagemap_fence::{Held, Lock, Outside, Slot, levels};

use super::importer::InvalidateReason;
use super::map::wish;
use super::peer_map::Mapped;
use crate::aperture::Admitted;
use crate::bo::{Buffer, BufferObject, Transaction, WeakBuffer};
use crate::error::Result;
use crate::events::Event;
use crate::manager::Manager;
use crate::region::{RegionKind, page_count, pages_of};

/// Who waits for promotion, and who sees to it.
pub(crate) struct Promoter {
    /// Its own lock.
    waiting: Lock<levels::Aperture, Waiting>,
    /// How many wait. Written under the lock of `waiting`, read by all.
    count: AtomicUsize,
    /// Its own lock.
    thread: Outside<Thread>,
    /// Notified when there is something to look at, and at the end.
    wake: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// By id.
    buffers: BTreeMap<u64, Away>,
    /// How many ever had to wait.
    next: u64,
}

#[derive(Clone)]
struct Away {
    buffer: WeakBuffer,
    /// Less for who has waited longer.
    since: u64,
}

/// What the thread and those who wake it share.
#[derive(Default)]
struct Thread {
    poked: bool,
    over: bool,
    handle: Option<JoinHandle<()>>,
}

impl Promoter {
    pub(crate) fn new() -> Arc<Promoter> {
        Arc::new(Promoter {
            waiting: Lock::new("promotions", Waiting::default()),
            count: AtomicUsize::new(0),
            thread: Outside::new("promoter", Thread::default()),
            wake: Condvar::new(),
        })
    }

    fn remember(&self, buffer: WeakBuffer, id: u64, held: &mut Held<'_, levels::Tickets>) {
        let mut waiting = self.waiting.lock(held);
        let since = waiting.next;
        waiting.next += 1;
        waiting.buffers.entry(id).or_insert(Away { buffer, since });
        self.count.store(waiting.buffers.len(), Ordering::Relaxed);
    }

    pub(crate) fn forget(&self, id: u64, held: &mut Held<'_, levels::Tickets>) {
        let mut waiting = self.waiting.lock(held);
        waiting.buffers.remove(&id);
        self.count.store(waiting.buffers.len(), Ordering::Relaxed);
    }

    /// Who waits, the next to come back first.
    fn in_order(&self) -> Vec<Buffer> {
        let waiting = self.waiting.lock(&mut Held::in_destructor()).buffers.clone();
        let alive = waiting.into_values().filter_map(|away| Some((away.buffer.upgrade()?, away.since)));
        let mut alive: Vec<(Buffer, u64)> = alive.collect();
        alive.sort_by_key(|(buffer, since)| (Reverse(buffer.0.tags.rank()), *since));
        alive.into_iter().map(|(buffer, _)| buffer).collect()
    }

    /// Room may have returned. Costs a load when nobody waits for it.
    pub(crate) fn poke(&self) {
        // Who begins to wait pokes as well, so room that returns just then is not overlooked: either that pass finds it, or
        // this finds who waits, as both have had the lock of whatever gives the room.
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.thread.lock().poked = true;
        self.wake.notify_one();
    }

    /// There is something else to look at: routes that have changed, or what is overdue.
    pub(crate) fn run_errands(&self) {
        self.thread.lock().poked = true;
        self.wake.notify_one();
    }

    /// The device goes. Waits for nothing.
    pub(crate) fn end(&self) {
        self.thread.lock().over = true;
        self.wake.notify_one();
    }

    /// Waits for the end of the thread, if there is one, unless it is this thread.
    pub(crate) fn join(&self) {
        let Some(handle) = self.thread.lock().handle.take() else { return };
        #[cfg(not(any(loom, shuttle)))]
        if handle.thread().id() == std::thread::current().id() {
            return;
        }
        if handle.join().is_err() {
            tracing::error!("the promoter's thread panicked");
        }
    }

    pub(super) fn start(self: &Arc<Self>, manager: Weak<Manager>) {
        let mut thread = self.thread.lock();
        if thread.handle.is_some() || thread.over {
            return;
        }
        let promoter = self.clone();
        let run = move || promoter.run(&manager);
        match Builder::new().name("devpagemap-promoter".into()).spawn(run) {
            Ok(handle) => thread.handle = Some(handle),
            Err(error) => tracing::error!(%error, "no thread to promote buffers; they stay in system memory"),
        }
    }

    fn run(&self, manager: &Weak<Manager>) {
        while self.wait_for_poke() {
            // The device may go meanwhile; then this is the thread that takes it down.
            let Some(manager) = manager.upgrade() else { return };
            manager.revoke_overdue();
            manager.reroute();
            manager.promote();
        }
    }

    /// False when it is over.
    fn wait_for_poke(&self) -> bool {
        let mut thread = self.thread.lock();
        while !thread.poked && !thread.over {
            thread = thread.wait(&self.wake);
        }
        thread.poked = false;
        !thread.over
    }
}

impl Manager {
    /// One pass over those who wait. Returns how many came back.
    pub(crate) fn promote(self: &Arc<Self>) -> usize {
        let mut promoted = 0;
        for buffer in self.promoter.in_order() {
            if self.ledger.usage(&mut Held::in_destructor()).level.is_some() {
                break;
            }
            let result = buffer.transact(|transaction, slot| transaction.promote(slot));
            match result {
                Ok(came_back) => promoted += usize::from(came_back),
                Err(error) => tracing::debug!(buffer = buffer.id(), %error, "not promoted"),
            }
        }
        promoted
    }
}

impl Transaction<'_, '_, '_> {
    /// The buffer is in system memory only for want of room.
    pub(super) fn wait_for_promotion(&mut self, slot: Slot) {
        let manager = self.manager;
        let buffer = self.exec.set().arc(slot);
        let (set, mut held) = self.exec.split();
        set.state_mut(slot).peers.away = true;
        manager.promoter.remember(WeakBuffer::of(&buffer), buffer.id(), &mut held);
        // A model says itself when a pass is made, and where.
        if !cfg!(any(loom, shuttle)) {
            manager.promoter.start(manager.weak());
            manager.promoter.poke();
        }
    }

    /// Brings a buffer back, if there is room for all who have mapped it.
    ///
    /// # Errors
    /// Why there is no room in VRAM.
    fn promote(&mut self, slot: Slot) -> Result<bool> {
        let state = self.exec.set().state(slot);
        let is_in_vram = state.resource.as_ref().is_some_and(|resource| resource.region == RegionKind::Vram);
        let maps: Vec<Arc<Mapped>> = state.peers.live().cloned().collect();
        // It may wait no more by now; and who maps it when nobody has, asks for the BAR anyway.
        if !state.peers.away || is_in_vram || maps.is_empty() || state.check_not_lost().is_err() {
            self.waits_no_more(slot);
            return Ok(false);
        }
        let buffer = self.exec.set().arc(slot);
        // Who cannot map again would lose the bytes.
        let may_come = !maps.iter().any(|mapped| mapped.attached.is_detached());
        let shown = buffer.placement().for_peers(self.manager.windows.bar());
        let Some(shown) = shown.filter(|_| may_come) else { return Ok(false) };
        let Some(admitted) = self.admit_all(slot, &buffer, &maps) else { return Ok(false) };
        self.reason = InvalidateReason::Promoted;
        let moved = self.validate(slot, &shown.if_free());
        self.reason = InvalidateReason::Moved;
        if let Err(error) = moved {
            self.give_up_admitted(admitted);
            return Err(error);
        }
        self.waits_no_more(slot);
        for (admitted, mapped) in admitted.into_iter().zip(&maps) {
            self.keep_for(&buffer, mapped, admitted);
        }
        tracing::debug!(buffer = buffer.id(), "promoted");
        Ok(true)
    }

    pub(super) fn waits_no_more(&mut self, slot: Slot) {
        let manager = self.manager;
        let (set, mut held) = self.exec.split();
        set.state_mut(slot).peers.away = false;
        manager.promoter.forget(set.object(slot).id(), &mut held);
    }

    /// Charges what is mapped as if it were mapped in the BAR, all of it or nothing. What is in system memory has no windows
    /// that would keep more than that.
    fn admit_all(
        &mut self,
        slot: Slot,
        buffer: &Arc<BufferObject>,
        maps: &[Arc<Mapped>],
    ) -> Option<Vec<Admitted>> {
        let manager = self.manager;
        let (set, mut held) = self.exec.split();
        let generation = set.state(slot).generation + 1;
        let mut admitted = Vec::with_capacity(maps.len());
        for mapped in maps {
            let wish = wish(buffer, &mapped.attached, pages_of(&mapped.range), generation);
            match manager.admit_peer(&wish, &mut manager.room(), &mut held) {
                Ok(more) => admitted.push(more),
                Err(_over) => {
                    self.give_up_admitted(admitted);
                    return None;
                }
            }
        }
        Some(admitted)
    }

    fn give_up_admitted(&mut self, admitted: Vec<Admitted>) {
        let manager = self.manager;
        let (_, mut held) = self.exec.split();
        for Admitted { charge, after } in admitted {
            manager.release_peer(charge, after, &mut held);
        }
    }

    fn keep_for(&mut self, buffer: &BufferObject, mapped: &Mapped, admitted: Admitted) {
        let manager = self.manager;
        let (_, mut held) = self.exec.split();
        let (importer, pages) = (mapped.attached.joined.name.clone(), page_count(&mapped.range));
        manager.tell(Event::Promoted { buffer: buffer.id(), importer, pages }, &mut held);
        if let Some(Admitted { charge, after }) = mapped.attached.keep(admitted) {
            manager.release_peer(charge, after, &mut held);
        }
    }
}
