//! What fences and locks would cost at least: the memory operations that cannot be left out, and nothing around them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::peers::Payload;

/// A number on cache lines of its own.
#[repr(align(128))]
#[derive(Default)]
struct Padded(AtomicU64);

/// A timeline with nobody to tell: points are counted, and the completed one never goes backwards.
#[derive(Default)]
pub struct Timeline {
    allocated: Padded,
    completed: Padded,
}

impl Timeline {
    /// Hands out the next point.
    #[inline]
    pub fn next_point(&self) -> u64 {
        self.allocated.0.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Completes all points up to `seqno`; may be called by anybody, in any order.
    #[inline]
    pub fn signal(&self, seqno: u64) {
        self.completed.0.fetch_max(seqno, Ordering::AcqRel);
    }

    /// Whether a point is complete.
    #[inline]
    pub fn is_complete(&self, seqno: u64) -> bool {
        self.completed.0.load(Ordering::Acquire) >= seqno
    }
}

/// A lock that a ticket takes with one compare-and-swap and gives back with one store.
pub struct Object {
    holder: AtomicU64, // the ticket, or 0
    _payload: Payload,
}

/// So many of them, each an allocation of its own.
pub fn objects(count: usize) -> Vec<Arc<Object>> {
    let object = |_| Arc::new(Object { holder: AtomicU64::new(0), _payload: Payload::default() });
    (0..count).map(object).collect()
}

/// Draws a ticket, locks all with it, unlocks all. What is held is what was given, so nothing is recorded.
///
/// # Panics
/// When somebody else locks too.
#[inline]
pub fn lock_all(tickets: &AtomicU64, objects: &[Arc<Object>]) {
    let ticket = tickets.fetch_add(1, Ordering::Relaxed);
    for object in objects {
        let locked = object.holder.compare_exchange(0, ticket, Ordering::Acquire, Ordering::Relaxed);
        assert!(locked.is_ok(), "the floor does not wait");
    }
    for object in objects {
        object.holder.store(0, Ordering::Release);
    }
}
