//! Serving touches: what one device's fault thread does, and how others tell it that there is news.
//!
//! ```text
//!   userfaultfd ─► an address ──────────┐                 ┌─► served: wake the toucher
//!   a mover, an arrival's callback ─► post ─► touch again ─┼─► arriving: a callback on the fence posts the mapping
//!                                        ▲                ├─► parked: its mover posts it
//!                                        │                └─► out of reach, or no window ─► a transaction on the buffer
//!                                        └── its reservation is taken? once more in a moment
//! ```
//!
//! The thread (`fault_thread.rs`) waits for no fence and for no buffer's reservation, so one mapping holds up no other. A
//! transaction that evicts may wait for its victims' reservations, which everybody holds for instants.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use devpagemap_fence::sync::mutant;
use devpagemap_fence::{FenceSet, Held, Outside, Slot};

use super::CpuFaults;
#[cfg(not(any(loom, shuttle)))]
use super::fault_thread::FaultThread;
use super::mapping::{Mapping, Touched};
use super::windowed::Shown;
use crate::bo::Transaction;
use crate::error::{Error, Result};

/// How touches of one device's mappings are served, and by whom.
#[derive(Debug)]
pub(crate) struct Faults {
    /// As the device's builder was told. Constant.
    pub(crate) wanted: CpuFaults,
    /// The mappings by address. Its own lock.
    mappings: Outside<BTreeMap<usize, Weak<Mapping>>>,
    /// What there is to do beside touches. Its own lock.
    inbox: Outside<Inbox>,
    /// Notified for what comes into the inbox: what a model's toucher sleeps for.
    #[cfg(any(loom, shuttle))]
    news: devpagemap_fence::sync::Condvar,
    /// Started with the first mapping. Its own lock.
    #[cfg(not(any(loom, shuttle)))]
    pub(super) thread: Outside<Option<FaultThread>>,
    /// Atomics.
    pub(crate) counters: FaultCounters,
}

#[derive(Debug, Default)]
struct Inbox {
    /// Mappings about which there is news.
    posted: Vec<Weak<Mapping>>,
    /// Mappings whose buffer has to be brought into reach.
    out_of_reach: Vec<Weak<Mapping>>,
    /// Addresses that somebody has touched which are parked.
    #[cfg(not(any(loom, shuttle)))]
    touches: Vec<usize>,
    /// Wakes the thread; set while it runs.
    #[cfg(not(any(loom, shuttle)))]
    poke: Option<super::fault_thread::Poke>,
}

/// What was served. Statistics.
#[derive(Debug, Default)]
pub(crate) struct FaultCounters {
    touches: AtomicU64,
    points: AtomicU64,
    zaps: AtomicU64,
}

impl FaultCounters {
    pub(super) fn pointed(&self) {
        self.points.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn zapped(&self) {
        self.zaps.fetch_add(1, Ordering::Relaxed);
    }

    /// Touches, groups pointed at, ranges zapped.
    pub(crate) fn read(&self) -> [u64; 3] {
        [&self.touches, &self.points, &self.zaps].map(|counter| counter.load(Ordering::Relaxed))
    }
}

/// What came of an attempt to bring a buffer into reach.
enum Brought {
    /// It is there, or on its way, or gone; or its touchers were refused.
    Settled,
    /// Somebody else holds it.
    Contended,
}

impl Faults {
    pub(crate) fn new(wanted: CpuFaults) -> Arc<Faults> {
        Arc::new(Faults {
            wanted,
            mappings: Outside::new("CPU mappings", BTreeMap::new()),
            inbox: Outside::new("CPU mappings with news", Inbox::default()),
            #[cfg(any(loom, shuttle))]
            news: devpagemap_fence::sync::Condvar::new(),
            #[cfg(not(any(loom, shuttle)))]
            thread: Outside::new("CPU fault thread", None),
            counters: FaultCounters::default(),
        })
    }

    pub(super) fn add(&self, mapping: &Arc<Mapping>) {
        self.mappings.lock().insert(key(mapping.space.start()), Arc::downgrade(mapping));
    }

    pub(super) fn remove(&self, start: *mut u8) {
        self.mappings.lock().remove(&key(start));
    }

    /// The mapping that owns an address, and the offset in it.
    #[cfg(not(any(loom, shuttle)))]
    pub(super) fn find(&self, address: usize) -> Option<(Arc<Mapping>, u64)> {
        let (start, mapping) = {
            let mappings = self.mappings.lock();
            let (start, mapping) = mappings.range(..=address).next_back()?;
            (*start, mapping.upgrade()?)
        };
        let offset = (address - start) as u64;
        (offset < mapping.len_bytes()).then_some((mapping, offset))
    }

    /// All mappings there are.
    pub(crate) fn all(&self) -> Vec<Arc<Mapping>> {
        self.mappings.lock().values().filter_map(Weak::upgrade).collect()
    }

    /// Has a mapping served again. Legal anywhere.
    pub(crate) fn post(&self, mapping: Weak<Mapping>) {
        let mut inbox = self.inbox.lock();
        inbox.posted.push(mapping);
        #[cfg(not(any(loom, shuttle)))]
        if let Some(poke) = &inbox.poke {
            poke.send();
        }
        #[cfg(any(loom, shuttle))]
        {
            drop(inbox);
            self.news.notify_all();
        }
    }

    /// Somebody has touched an address that is parked. Waits for nobody.
    #[cfg(not(any(loom, shuttle)))]
    pub(super) fn post_touch(&self, address: usize) {
        let mut inbox = self.inbox.lock();
        inbox.touches.push(address);
        if let Some(poke) = &inbox.poke {
            poke.send();
        }
    }

    #[cfg(not(any(loom, shuttle)))]
    pub(super) fn take_touches(&self) -> Vec<usize> {
        std::mem::take(&mut self.inbox.lock().touches)
    }

    #[cfg(not(any(loom, shuttle)))]
    pub(super) fn set_poke(&self, poke: Option<super::fault_thread::Poke>) {
        self.inbox.lock().poke = poke;
    }

    /// Does what there is to do; true when something has to be tried again in a moment.
    pub(crate) fn work(self: &Arc<Self>) -> bool {
        let (posted, out_of_reach) = {
            let mut inbox = self.inbox.lock();
            (std::mem::take(&mut inbox.posted), std::mem::take(&mut inbox.out_of_reach))
        };
        for mapping in posted.iter().filter_map(Weak::upgrade) {
            let wanted = mapping.take_wanted(&mut Held::enter());
            for offset in wanted {
                self.serve(&mapping, offset);
            }
        }
        for mapping in out_of_reach {
            let Some(alive) = mapping.upgrade() else { continue };
            match self.bring(&alive) {
                Brought::Settled => {}
                Brought::Contended => self.inbox.lock().out_of_reach.push(mapping),
            }
        }
        !self.inbox.lock().out_of_reach.is_empty()
    }

    /// Somebody has touched a page that is away.
    pub(super) fn touched(self: &Arc<Self>, mapping: &Arc<Mapping>, offset: u64) {
        self.counters.touches.fetch_add(1, Ordering::Relaxed);
        self.serve(mapping, offset);
    }

    /// Serves one touch, or sees to it that it will be.
    fn serve(self: &Arc<Self>, mapping: &Arc<Mapping>, offset: u64) {
        match mapping.touch(offset, &mut Held::enter()) {
            Touched::Served(range) => mapping.space.wake(range),
            Touched::Parked => {}
            Touched::Arriving(arrival) => self.post_when_signaled(mapping, &arrival),
            Touched::OutOfReach => {
                let (mapping, mut inbox) = (Arc::downgrade(mapping), self.inbox.lock());
                if !inbox.out_of_reach.iter().any(|known| known.ptr_eq(&mapping)) {
                    inbox.out_of_reach.push(mapping);
                }
            }
        }
    }

    /// Points what somebody sleeps for at windows, as far as the bytes need that and have arrived.
    fn show_wanted(
        self: &Arc<Self>,
        transaction: &mut Transaction<'_, '_, '_>,
        slot: Slot,
        mapping: &Arc<Mapping>,
        served: &mut Vec<Range<u64>>,
    ) -> Result<()> {
        let hidden = mapping.hidden_groups(false, &mut transaction.exec.split().1);
        for range in hidden {
            match transaction.show_range(slot, mapping, &range)? {
                Shown::Done => served.push(range),
                Shown::Queued(window, after) => {
                    let mapping = mapping.clone();
                    // The window is on loan until there is somebody who can use it.
                    after.when_signaled(move || drop((mapping.post(), window)));
                }
                Shown::FellBack => return Ok(()),
            }
        }
        Ok(())
    }

    fn post_when_signaled(self: &Arc<Self>, mapping: &Arc<Mapping>, arrival: &FenceSet) {
        let (faults, mapping) = (self.clone(), Arc::downgrade(mapping));
        let post = move || faults.post(mapping);
        match mutant!("arrival_that_is_early_posts_nobody") {
            false => arrival.when_signaled(post),
            true => drop(arrival.on_signaled(post)),
        }
    }

    fn bring(self: &Arc<Self>, mapping: &Arc<Mapping>) -> Brought {
        // Served is told when the buffer has been let go: who wakes may be the one to drop it.
        let mut served = Vec::new();
        let brought = self.bring_buffer(mapping, &mut served);
        served.into_iter().for_each(|range| mapping.space.wake(range));
        brought
    }

    fn bring_buffer(self: &Arc<Self>, mapping: &Arc<Mapping>, served: &mut Vec<Range<u64>>) -> Brought {
        // The buffer is dropped at the end, perhaps as the last of its device.
        let Some(buffer) = mapping.buffer.upgrade() else { return Brought::Settled };
        let manager = &buffer.0.manager;
        let brought = buffer.transact_if_free(|transaction, slot| {
            transaction.make_mappable(slot, mapping)?;
            transaction.settle_mapping(slot, mapping);
            self.show_wanted(transaction, slot, mapping, served)
        });
        match brought {
            Ok(Some(())) => Brought::Settled,
            Ok(None) => Brought::Contended,
            Err(Error::FenceFailed(_) | Error::DeviceLost) => {
                mapping.lose(&mut Held::enter());
                Brought::Settled
            }
            // It is taken out of VRAM, or VRAM is given back: in a moment it is somewhere.
            Err(Error::Revoked { .. }) => Brought::Contended,
            Err(error) => {
                tracing::error!(buffer = buffer.id(), %error, "a touched page cannot be shown: SIGBUS");
                let mut held = Held::enter();
                for page in mapping.refuse_wanted(&mut held) {
                    mapping.space.wake(page);
                }
                manager.reasons.count(UNREACHABLE, &mut Held::in_destructor());
                Brought::Settled
            }
        }
    }
}

/// In a model whoever touches serves itself.
#[cfg(any(loom, shuttle))]
impl Faults {
    pub(super) fn watcher(
        &self,
        _cpu: &crate::backend::DeviceMemory,
    ) -> crate::error::Result<Result<Arc<super::address_space::Watcher>, &'static str>> {
        match self.wanted {
            CpuFaults::Pinned => Ok(Err("cpu map: pinned, as the device's builder asked for")),
            CpuFaults::Auto | CpuFaults::Userfaultfd => Ok(Ok(Arc::new(super::address_space::Watcher))),
        }
    }

    pub(crate) fn is_this_thread(&self) -> bool {
        false
    }

    pub(crate) fn stop(&self) {}

    /// Sleeps until there is something to do.
    pub(super) fn wait_for_news(&self) {
        let mut inbox = self.inbox.lock();
        while inbox.posted.is_empty() && inbox.out_of_reach.is_empty() {
            inbox = inbox.wait(&self.news);
        }
    }
}

const UNREACHABLE: &str = "cpu map: a touched page could not be brought where the CPU reaches it; SIGBUS";

fn key(start: *mut u8) -> usize {
    start.addr()
}
