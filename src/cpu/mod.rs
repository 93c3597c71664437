//! The CPU's way to the bytes of a buffer: the only place where a CPU thread waits for the GPU.
//!
//! | file | what it is about |
//! |---|---|
//! | `access.rs`, `bounce.rs`, `approach.rs` | reading and writing at an offset, through a copy where the CPU does not see the bytes |
//! | `map.rs`, `page.rs`, `hold.rs` | maps: an address that follows the buffer, one page for a moment, a buffer held where it is |
//! | `mapping.rs` | the protocol between movers and touches |
//! | `follow.rs` | the mover's side: zap before a move is queued, settle after |
//! | `windowed.rs`, `glimpse.rs` | bytes that only windows in the BAR show: maps of them, and a look at some for a moment |
//! | `faults.rs`, `fault_thread.rs` | the toucher's side: who serves touches |
//! | `address_space/` | the page tables of this process, and their model |
//! | `own_ranges.rs` | which slices of a caller's are maps |
//! | `loss.rs` | a device that is gone |

mod access;
mod address_space;
mod approach;
mod bounce;
mod bracket;
mod caching;
#[cfg(not(any(loom, shuttle)))]
mod fault_thread;
mod faults;
mod follow;
mod glimpse;
mod hold;
mod loss;
mod map;
mod mapping;
#[cfg(not(any(loom, shuttle)))]
mod own_ranges;
mod page;
mod windowed;

pub use address_space::AfterLoss;
pub use caching::Caching;
pub use map::{CpuMap, CpuMapBuilder};

pub(crate) use faults::Faults;
pub(crate) use follow::Followers;
pub(crate) use hold::Hold;

/// How CPU maps follow their buffers. See `docs/cpu-mappings.md`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CpuFaults {
    /// By userfaultfd where the kernel permits it, else [pinned](CpuFaults::Pinned), which is counted with its reason.
    #[default]
    Auto,
    /// By userfaultfd, or not at all.
    Userfaultfd,
    /// They do not: a map keeps its buffer where it is.
    Pinned,
}
