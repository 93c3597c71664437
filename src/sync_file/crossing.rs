//! What a device has for fences that cross: the kernel, the dma-bufs that its buffers share, and what is kept.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use devpagemap_fence::Outside;

use super::Across;
use super::keeper::Table;
use super::kernel::{Kernel, MadeFence, ReservationObject};
use crate::error::Result;
use crate::stats::count_reason;

/// Part of a device; fences that are outstanding keep it.
pub(crate) struct Crossing {
    /// Constant.
    pub(super) kernel: Arc<dyn Kernel>,
    /// For how long a fence of somebody else's is waited for. Constant.
    pub(super) timeout: Duration,
    /// Its own lock.
    pub(super) table: Outside<Table>,
    /// The dma-bufs that buffers share now, by the names of their reservation objects. Its own lock.
    known: Outside<HashMap<u64, Weak<Across>>>,
    /// Atomics.
    pub(crate) counts: Counts,
    /// Why something went otherwise than wished, and how often. Its own lock.
    reasons: Outside<BTreeMap<String, u64>>,
}

/// What has crossed so far. Statistics.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(super) reserved: AtomicU64,
    pub(super) renewed: AtomicU64,
    pub(super) expired: AtomicU64,
    pub(super) listened: AtomicU64,
    pub(super) foreign_failed: AtomicU64,
}

impl Counts {
    /// Kernel fences, renewals, expiries, fences from outside, and how many of those failed.
    pub(crate) fn read(&self) -> [u64; 5] {
        let all = [&self.reserved, &self.renewed, &self.expired, &self.listened, &self.foreign_failed];
        all.map(|count| count.load(Ordering::Relaxed))
    }
}

impl Crossing {
    pub(crate) fn new(kernel: Arc<dyn Kernel>, timeout: Duration) -> Arc<Crossing> {
        Arc::new(Crossing {
            kernel,
            timeout,
            table: Outside::new("fences that cross", Table::default()),
            known: Outside::new("dma-bufs of buffers", HashMap::new()),
            counts: Counts::default(),
            reasons: Outside::new("reasons of fences", BTreeMap::new()),
        })
    }

    /// The way to a reservation object; the same for all who ask for the same one.
    pub(crate) fn across(self: &Arc<Self>, theirs: Arc<dyn ReservationObject>) -> Arc<Across> {
        let key = theirs.key();
        let mut known = self.known.lock();
        if let Some(across) = known.get(&key).and_then(Weak::upgrade) {
            return across;
        }
        let across = Arc::new(Across::over(self.clone(), theirs));
        known.insert(key, Arc::downgrade(&across));
        across
    }

    /// Nobody has the way to this one any more, unless somebody has just made it anew.
    pub(super) fn forget_across(&self, key: u64) {
        let mut known = self.known.lock();
        if known.get(&key).is_some_and(|across| across.strong_count() == 0) {
            known.remove(&key);
        }
    }

    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn source(&self) -> Result<&'static str> {
        self.kernel.source()
    }

    pub(super) fn make_fence(&self) -> Result<MadeFence> {
        self.kernel.make_fence()
    }

    pub(super) fn expires_after(&self) -> Option<Duration> {
        self.kernel.expires_after()
    }

    pub(super) fn now(&self) -> Instant {
        self.kernel.now()
    }

    pub(crate) fn count(&self, reason: &str) {
        count_reason(&mut self.reasons.lock(), reason);
    }

    pub(crate) fn reasons(&self) -> BTreeMap<String, u64> {
        self.reasons.lock().clone()
    }
}

impl fmt::Debug for Crossing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crossing")
            .field("kernel", &self.kernel)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
