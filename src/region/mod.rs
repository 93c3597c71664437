//! Regions: one kind of memory each, with its allocator, its LRU and the memory that is only *nearly* free.
//!
//! ```text
//!   Region ── one lock ──┬─ heap    what is free, and what is free behind a fence
//!                        ├─ lru     who lives here, who goes first
//!                        └─ usage   counters that must add up
//! ```
//!
//! The region lock is held for instants. Under it a reservation may be tried, never waited for.

mod ghost;
mod heap;
mod lru;
mod pages;
mod resource;
mod spans;
mod staging;
mod system;
mod vram;

use std::fmt;

pub(crate) use ghost::{GhostId, Unreaped};
pub(crate) use heap::{Heap, Taken};
pub(crate) use lru::{Lru, Node, NodeKey, Pin};
pub(crate) use pages::{bytes_of, page_count, pages_of, round_up_to_pages};
pub(crate) use resource::Resource;
pub(crate) use spans::{bytes_within, intersect, push_run, subtract_all, total_bytes};
pub(crate) use staging::StagingPages;
pub(crate) use system::{SystemRegion, SystemState};
pub(crate) use vram::{VramRegion, VramState};

/// The kinds of memory of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RegionKind {
    /// The device's own memory.
    Vram,
    /// System memory that the GPU can reach.
    Gtt,
    /// System memory that the GPU cannot reach: where evicted buffers wait.
    System,
}

impl fmt::Display for RegionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RegionKind::Vram => "VRAM",
            RegionKind::Gtt => "GTT",
            RegionKind::System => "system memory",
        })
    }
}

/// The eviction priorities of a buffer: 0 is evicted first, as in TTM.
pub const PRIORITIES: usize = 4;
