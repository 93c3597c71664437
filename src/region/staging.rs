//! The memory of the move queue's staging ring: pages of the arena that no buffer has.
//!
//! The queue asks when the first move comes that no engine can do alone, so a device whose engines reach everything
//! pays nothing. Where engines say that they see only a part of system memory it asks at once: later, buffers may
//! have all of that part. What it gets stays its own as long as the device lives.

use std::ops::Range;
use std::sync::Arc;

use devpagemap_allocator::{PAGE_BYTES, Request};
use devpagemap_fence::Held;
use devpagemap_migrate::{Addr, Extent, Space, StagingMemory};

use super::SystemRegion;

/// At most this part of the arena becomes a ring.
const ARENA_PART: u64 = 8;
/// A ring that is smaller than this costs more than it brings.
const MIN_BYTES: u64 = 16 * PAGE_BYTES;

/// Hands out pages of a system region.
pub(crate) struct StagingPages(Arc<SystemRegion>);

impl StagingPages {
    pub(crate) fn new(system: Arc<SystemRegion>) -> StagingPages {
        StagingPages(system)
    }
}

impl StagingMemory for StagingPages {
    /// The largest run of idle pages up to `len_bytes`, by halves. Bytes that are free behind a fence are left alone: the
    /// fence may be that of the very move that waits for the ring.
    fn take(&self, len_bytes: u64, within: Range<u64>) -> Option<Extent> {
        let size_bytes = self.0.arena.len_bytes();
        let start = within.start.next_multiple_of(PAGE_BYTES);
        let end = within.end.min(size_bytes) / PAGE_BYTES * PAGE_BYTES;
        let most_bytes = len_bytes.min(size_bytes / ARENA_PART).min(end.saturating_sub(start));
        let mut wanted_bytes = most_bytes / PAGE_BYTES * PAGE_BYTES;
        let mut held = Held::in_destructor();
        while wanted_bytes >= MIN_BYTES {
            let request = Request::new(wanted_bytes).within(start..end).contiguous();
            if let Some(span) = self.0.state.lock(&mut held).take_idle_run(&request) {
                return Some(Extent::new(Addr::new(Space::System, span.start_bytes), span.len_bytes));
            }
            wanted_bytes = wanted_bytes / 2 / PAGE_BYTES * PAGE_BYTES;
        }
        None
    }
}
