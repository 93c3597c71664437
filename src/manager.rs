//! What the buffers of one device share: its regions, its move queue, its driver, its counters.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use devpagemap_allocator::PAGE_BYTES;
#[cfg(not(any(loom, shuttle)))]
use devpagemap_fence::Watchdog;
use devpagemap_fence::lockdep::{self, Signalling};
use devpagemap_fence::sync::atomic::AtomicBool;
use devpagemap_fence::sync::mutant;
use devpagemap_fence::sync::thread::Builder;
use devpagemap_fence::{
    Fence, FenceError, FenceSet, Held, Lock, Outside, Slot, Timeline, Usage, Watched, in_callback, levels,
};
use devpagemap_migrate::{MoveQueue, MoveRequest, Operation};

use crate::aperture::{Ledger, Marks, Windows};
use crate::backend::{DeviceMemory, OutsideRole};
use crate::bo::{CpuAccess, EvictionPolicy, Placement, Transaction, WeakBuffer};
use crate::client::ClientAccount;
use crate::cpu::{Caching, CpuFaults, Faults};
use crate::driver::{Driver, Moved};
use crate::error::{Error, Result};
use crate::events::Hub;
use crate::import::KnownDmaBufs;
use crate::outstanding::{Leaving, Outstanding};
use crate::pagemap::{Revocation, Subscription};
use crate::region::{RegionKind, Resource, SystemRegion, VramRegion};
#[cfg(not(any(loom, shuttle)))]
use crate::share::Exports;
use crate::share::{Drain, Pagemaps, PinWatch, Promoter, SharedBuffers, ShortPins};
use crate::stats::{Counters, Reasons, Stats};
use crate::sync_file::Crossing;

/// The inner side of a [`Device`](crate::Device). Buffers keep it alive.
pub(crate) struct Manager {
    /// For fence callbacks, which must not keep the device alive. Constant.
    this: Weak<Manager>,
    /// Who does the work. Constant until drop.
    engines: Option<Engines>,
    /// Constant; its state under its region lock.
    pub(crate) vram: VramRegion,
    /// What the BAR shows. Its own lock.
    pub(crate) windows: Arc<Windows>,
    /// Constant; its state under its region lock.
    pub(crate) system: Arc<SystemRegion>,
    /// BAR pages in peer use. Its own lock.
    pub(crate) ledger: Arc<Ledger>,
    /// Who owns the buffers that no client has created. Constant.
    pub(crate) nobody: Arc<ClientAccount>,
    /// Who is told. Its own lock.
    pub(crate) events: Arc<Hub>,
    /// Who waits for room in the BAR. Its own locks.
    pub(crate) promoter: Arc<Promoter>,
    /// Its memory in the registry. Constant.
    pub(crate) pagemaps: Pagemaps,
    /// Has shared buffers looked at when decisions change. Constant.
    _rerouting: Subscription,
    /// Which buffers are shared. Its own lock.
    pub(crate) shared: SharedBuffers,
    /// Which of them transfers hold, and until when. Its own lock.
    pub(crate) short_pins: Arc<ShortPins>,
    /// Looks at the clock for `short_pins`. Constant.
    _pin_watch: Arc<PinWatch>,
    /// What others have as dma-bufs. Its own locks.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) exports: Arc<Exports>,
    /// What the CPU sees. Constant.
    pub(crate) cpu: DeviceMemory,
    /// What the CPU's accesses move. Constant.
    pub(crate) cpu_access: CpuAccess,
    /// How the CPU's mappings of VRAM are cached. Constant.
    pub(crate) vram_caching: Caching,
    /// Constant.
    pub(crate) policy: EvictionPolicy,
    /// The last fence of every timeline that was ever queued to: what an idle device has behind it.
    outstanding: Lock<levels::MoveQueue, Outstanding>,
    /// Who serves touches of CPU mappings. Its own locks.
    pub(crate) faults: Arc<Faults>,
    /// Whether it was declared lost. Set once.
    pub(crate) lost: AtomicBool,
    /// Whether VRAM may be used. An atomic.
    pub(crate) revocation: Revocation,
    /// The revoke that is under way, or the last one. Its own lock.
    pub(crate) revoking: Outside<Option<Arc<Drain>>>,
    /// For how long nobody may let go before all are overdue. Constant.
    pub(crate) revoke_bound: Duration,
    /// Which dma-bufs are buffers of this device. Its own lock.
    pub(crate) known_dma_bufs: KnownDmaBufs,
    /// What it has for fences that cross to other drivers and back. Its own locks.
    pub(crate) crossing: Arc<Crossing>,
    /// Atomics.
    pub(crate) counters: Counters,
    /// Its own lock.
    pub(crate) reasons: Reasons,
    /// The next buffer's id. Atomic.
    next_buffer_id: AtomicU64,
    /// The next importer's or attachment's id. Atomic.
    next_peer_id: AtomicU64,
}

/// Who does a device's work, in the order in which it has to end: jobs wait for moves, and moves for the watchdog.
struct Engines {
    /// Its own locks.
    queue: MoveQueue,
    /// Constant.
    driver: Arc<dyn Driver>,
    /// Its own thread, from the first demotion on.
    promoter: Arc<Promoter>,
    /// Its own thread; a model has no clock, and so none.
    #[cfg(not(any(loom, shuttle)))]
    watchdog: Watchdog,
}

impl Engines {
    fn start(queue: MoveQueue, driver: Arc<dyn Driver>, promoter: Arc<Promoter>) -> Engines {
        #[cfg(not(any(loom, shuttle)))]
        let watchdog = Watchdog::start();
        #[cfg(not(any(loom, shuttle)))]
        watchdog.watch(queue.watched());
        Engines {
            queue,
            driver,
            promoter,
            #[cfg(not(any(loom, shuttle)))]
            watchdog,
        }
    }

    /// Finishes what is queued, then lets go of every thread.
    fn shut_down(self) {
        self.promoter.join();
        self.queue.drain();
    }
}

/// The parts that a device's builder puts together.
pub(crate) struct Parts {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) vram: VramRegion,
    pub(crate) windows: Arc<Windows>,
    pub(crate) system: Arc<SystemRegion>,
    pub(crate) cpu: DeviceMemory,
    pub(crate) policy: EvictionPolicy,
    pub(crate) p2p_marks: Marks,
    pub(crate) pagemaps: Pagemaps,
    pub(crate) cpu_access: CpuAccess,
    pub(crate) queue: MoveQueue,
    pub(crate) cpu_faults: CpuFaults,
    pub(crate) revoke_bound: Duration,
    pub(crate) crossing: Arc<Crossing>,
}

impl Manager {
    pub(crate) fn new(parts: Parts) -> Arc<Manager> {
        let vram_caching = parts.driver.vram_caching();
        let promoter = Promoter::new();
        let engines = Engines::start(parts.queue, parts.driver, promoter.clone());
        let ledger = Arc::new(Ledger::new(parts.p2p_marks));
        let short_pins = Arc::new(ShortPins::new());
        let pin_watch = Arc::new(PinWatch { pins: short_pins.clone(), promoter: promoter.clone() });
        #[cfg(not(any(loom, shuttle)))]
        {
            let watched: Arc<dyn devpagemap_fence::Watched> = pin_watch.clone();
            engines.watchdog.watch(Arc::downgrade(&watched));
        }
        Arc::new_cyclic(|this| Manager {
            this: this.clone(),
            engines: Some(engines),
            vram: parts.vram,
            windows: parts.windows,
            system: parts.system,
            nobody: ClientAccount::open("", &ledger),
            ledger,
            events: Hub::new(),
            _rerouting: parts.pagemaps.watch(this.clone(), promoter.clone()),
            promoter,
            pagemaps: parts.pagemaps,
            shared: SharedBuffers::new(),
            short_pins,
            _pin_watch: pin_watch,
            #[cfg(not(any(loom, shuttle)))]
            exports: Exports::new(),
            cpu: parts.cpu,
            vram_caching,
            policy: parts.policy,
            cpu_access: parts.cpu_access,
            outstanding: Lock::new("outstanding fences", Outstanding::new()),
            faults: Faults::new(parts.cpu_faults),
            lost: AtomicBool::new(false),
            revocation: Revocation::new(),
            revoking: Outside::new("revoke under way", None),
            revoke_bound: parts.revoke_bound,
            known_dma_bufs: KnownDmaBufs::new(),
            crossing: parts.crossing,
            counters: Counters::default(),
            reasons: Reasons::new(),
            next_buffer_id: AtomicU64::new(1),
            next_peer_id: AtomicU64::new(1),
        })
    }

    pub(crate) fn queue(&self) -> &MoveQueue {
        &self.engines().queue
    }

    pub(crate) fn driver(&self) -> &dyn Driver {
        &*self.engines().driver
    }

    fn engines(&self) -> &Engines {
        self.engines.as_ref().expect("the engines stay until the manager is dropped")
    }

    /// Something has got a deadline.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn poke_watchdog(&self) {
        self.engines().watchdog.poke();
    }

    pub(crate) fn weak(&self) -> Weak<Manager> {
        self.this.clone()
    }

    pub(crate) fn next_buffer_id(&self) -> u64 {
        self.next_buffer_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Importers and attachments share their numbers.
    pub(crate) fn next_peer_id(&self) -> u64 {
        self.next_peer_id.fetch_add(1, Ordering::Relaxed)
    }

    /// # Errors
    /// The reason of the last place, when none of them could hold `len_bytes` even if everything else were gone.
    pub(crate) fn check_fits_somewhere(&self, placement: &Placement, len_bytes: u64) -> Result<()> {
        let mut refused = Ok(());
        for place in placement.places() {
            refused = match place.region() {
                RegionKind::Vram => self.vram.check_fits(place, len_bytes),
                RegionKind::Gtt => check_limit(RegionKind::Gtt, len_bytes, self.system.gtt_bytes),
                RegionKind::System => {
                    check_limit(RegionKind::System, len_bytes, self.system.arena.len_bytes())
                }
            };
            if refused.is_ok() {
                return Ok(());
            }
        }
        refused
    }

    /// Queues a move of the buffer in `slot`, attaches its fence and points the GPU at the new place. Cannot fail: what goes wrong
    /// from here on is an error of the fence.
    pub(crate) fn queue_move(
        &self,
        transaction: &mut Transaction<'_, '_, '_>,
        slot: Slot,
        request: MoveRequest,
        from: Option<RegionKind>,
        new: &Resource,
    ) -> Fence {
        let buffer = transaction.exec.set().arc(slot);
        match &request.operation {
            Operation::Copy { .. } | Operation::Pull { .. } => {
                Counters::count(&self.counters.moves);
                Counters::add(&self.counters.moved_bytes, buffer.footprint_bytes);
            }
            Operation::Clear { .. } => Counters::add(&self.counters.cleared_bytes, buffer.footprint_bytes),
        }
        let leaves_vram = from == Some(RegionKind::Vram) && new.region != RegionKind::Vram;
        let source = match &request.operation {
            Operation::Copy { src, .. } if leaves_vram => Some(src.clone()),
            _ => None,
        };
        let (set, mut held) = transaction.exec.split();
        let _signalling = Signalling::begin();
        let fence = self.queue().submit(request, &mut held);
        if !mutant!("moves_are_not_remembered") {
            self.remember(&fence, &mut held);
        }
        if let Some(from) = source {
            let leaving = Leaving { buffer: WeakBuffer::of(&buffer), from, fence: fence.clone() };
            self.outstanding.lock(&mut held).add_leaving(leaving);
        }
        set.add_fence(slot, fence.clone(), Usage::Kernel);
        let after = FenceSet::from(fence.clone());
        let moved = Moved { buffer: buffer.id(), from, to: new.region, extents: &new.extents, after: &after };
        let rebound = match self.driver().rebind(&moved) {
            Ok(rebound) => rebound,
            Err(error) => Some(failed_rebind(&error)),
        };
        let mut arrival = after;
        if let Some(rebound) = rebound {
            arrival.add(rebound.clone());
            set.add_fence(slot, rebound, Usage::Kernel);
        }
        set.state_mut(slot).arrival = arrival.clone();
        transaction.arm_move(slot, &arrival);
        tracing::debug!(
            buffer = buffer.id(),
            from = from.map(|region| region.to_string()),
            to = %new.region,
            bytes = buffer.footprint_bytes,
            "move queued"
        );
        fence
    }

    /// Makes `fence` something that an idle device has behind it.
    pub(crate) fn remember(&self, fence: &Fence, held: &mut Held<'_, levels::Tickets>) {
        self.outstanding.lock(held).add(fence.clone());
    }

    /// Everything that was queued before this call.
    pub(crate) fn queued_so_far(&self) -> FenceSet {
        self.outstanding.lock(&mut Held::in_destructor()).so_far()
    }

    /// The buffers that are on their way out of VRAM now.
    pub(crate) fn leaving(&self) -> Vec<Leaving> {
        self.outstanding.lock(&mut Held::in_destructor()).leaving()
    }

    /// Has the watchdog look after something.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn watch(&self, watched: Weak<dyn Watched>) {
        self.engines().watchdog.watch(watched);
    }

    /// A model has no clock: it says itself what the watchdog would see.
    #[cfg(any(loom, shuttle))]
    pub(crate) fn watch(&self, _watched: Weak<dyn Watched>) {}

    /// Waits on the CPU, and counts it.
    ///
    /// # Errors
    /// [`Error::FenceFailed`] with the first failure.
    pub(crate) fn wait(&self, fences: &FenceSet) -> Result<()> {
        lockdep::assert_may_wait();
        if fences.is_signaled() {
            return fences.first_error().map_or(Ok(()), |error| Err(error.into()));
        }
        let start = Instant::now();
        let result = fences.wait();
        Counters::count(&self.counters.fence_waits);
        Counters::add(&self.counters.cpu_wait_ns, start.elapsed().as_nanos() as u64);
        Ok(result?)
    }

    /// Waits until everything that was queued before this call is done, whatever its result.
    pub(crate) fn wait_idle(&self) {
        let outstanding = self.outstanding.lock(&mut Held::enter()).so_far();
        // A failed job or move is its buffers' business; here only the end counts.
        let _its_own_affair = self.wait(&outstanding);
        if !mutant!("idle_device_keeps_its_ghosts") {
            self.reap_signalled();
        }
    }

    /// May be called in a fence callback too.
    pub(crate) fn stats(&self) -> Stats {
        let mut held = Held::in_destructor();
        let moves = self.queue().stats();
        let mut stats = self.counters.snapshot();
        [stats.cpu_touches, stats.cpu_points, stats.cpu_zaps] = self.faults.counters.read();
        stats.copy_busy_ns = moves.busy_ns;
        stats.fallback_bytes = moves.fallback_bytes;
        stats.ring_copied_bytes = moves.staged_bytes;
        stats.staging_ring_bytes = moves.staging_ring_bytes;
        stats.reasons = self.reasons.snapshot(&mut held);
        let peers = self.ledger.usage(&mut held);
        stats.p2p_used_bytes = peers.live_pages * PAGE_BYTES;
        stats.p2p_pending_bytes = peers.pending_pages * PAGE_BYTES;
        stats.p2p_peak_bytes = peers.peak_pages * PAGE_BYTES;
        let windows = self.windows.holdings(&mut held);
        stats.window_bytes = windows.window_bytes;
        stats.window_pending_bytes = windows.pending_bytes;
        stats.window_cpu_held_bytes = windows.cpu_held_bytes;
        stats.reasons.extend(moves.reasons);
        stats.reasons.extend(self.crossing.reasons());
        [
            stats.kernel_fences,
            stats.kernel_fences_renewed,
            stats.kernel_fences_expired,
            stats.foreign_fences,
            stats.foreign_fences_failed,
        ] = self.crossing.counts.read();
        stats.imported_bytes = self.cpu.outside_bytes(OutsideRole::Imported);
        stats.export_pages_bytes = self.cpu.outside_bytes(OutsideRole::Exported);
        #[cfg(not(any(loom, shuttle)))]
        {
            stats.exported_bytes = self.exports.len_bytes();
        }
        {
            let state = self.vram.state.lock(&mut held);
            stats.vram_used_bytes = state.used_bytes;
            stats.vram_peak_bytes = state.peak_bytes;
            stats.vram_pending_bytes = state.heap.ghost_bytes();
            stats.vram_ghosts = state.heap.ghost_count() as u64;
            stats.vram_pinned_bytes = state.lru.pinned_bytes();
            stats.vram_quarantined_bytes = state.quarantined_bytes;
        }
        let state = self.system.state.lock(&mut held);
        stats.gtt_used_bytes = state.gtt_used_bytes;
        stats.system_used_bytes = state.system_used_bytes;
        stats.system_pending_bytes = state.heap.ghost_bytes();
        stats
    }
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager")
            .field("vram_bytes", &self.vram.size_bytes)
            .field("visible_bytes", &self.vram.visible_bytes)
            .field("gtt_bytes", &self.system.gtt_bytes)
            .finish_non_exhaustive()
    }
}

impl Drop for Manager {
    /// Work that is still queued is finished first: by the thread that drops the last handle or buffer, or, where that thread may
    /// itself be one of the engines, by a thread made for it.
    fn drop(&mut self) {
        self.events.close();
        self.promoter.end();
        let Some(engines) = self.engines.take() else { return };
        let (faults, crossing) = (self.faults.clone(), self.crossing.clone());
        let in_callback = in_callback() && !mutant!("teardown_waits_in_a_callback");
        let may_wait = !in_callback && !engines.driver.is_engine_thread() && !faults.is_this_thread();
        let shut_down = move || {
            engines.shut_down();
            faults.stop();
            crossing.device_is_gone();
        };
        if may_wait {
            shut_down();
            return;
        }
        let last = Builder::new().name("devpagemap-end".into()).spawn(shut_down);
        if let Err(error) = last {
            tracing::error!(%error, "no thread to finish a device's work; what is queued fails");
        }
    }
}

/// A fence that says why the GPU does not see a buffer where it is.
fn failed_rebind(error: &Error) -> Fence {
    tracing::error!(%error, "a rebind failed; the buffer is lost");
    let timeline = Timeline::new("rebind");
    let fence = timeline.next_point();
    timeline.fail(fence.seqno(), FenceError::failed(error.to_string()));
    fence
}

fn check_limit(region: RegionKind, wanted_bytes: u64, limit_bytes: u64) -> Result<()> {
    if wanted_bytes > limit_bytes {
        return Err(Error::TooLarge { region, wanted_bytes, limit_bytes });
    }
    Ok(())
}
