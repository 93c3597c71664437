//! Fences across the boundary between our timelines and the kernel's reservation objects, both ways.
//!
//! A buffer that others have as a dma-buf has two lists of fences: its reservation here, and the dma-buf's in the kernel. What we queue on the
//! buffer stands in the other list too, so that whoever polls the dma-buf, or another driver's job, waits for it; what others queue on the
//! dma-buf is waited for here.
//!
//! ```text
//!       our reservation                                       the dma-buf's (dma_resv)
//!       job, move ──── reserve, arm: a kernel fence ────────►  vgem or sw_sync fence, in the shape of a sync_file
//!       timeline  ◄─── hear: a snapshot, waited for ────────   fences of other drivers and processes
//! ```
//!
//! | file | what it holds |
//! |---|---|
//! | `across.rs` | one dma-buf and its buffers; which fences there are ours, and which others' |
//! | `kernel_fence.rs` | ours for them: reserve, arm, renew |
//! | `foreign.rs` | theirs for us: a sync_file as a fence, with a deadline |
//! | `keeper.rs` | the one thread, which exists while there is something to wait for or to renew |
//! | `transact.rs` | where submissions, moves and CPU accesses meet all this |
//! | `points.rs`, `syncobj.rs` | points of a syncobj, ours for them and theirs for us; what users see of it |
//! | `explicit.rs` | fences that are handed over as descriptors |
//! | `crossing.rs` | what a device has for it, and what it counts |
//! | `kernel.rs` | what of the kernel it needs, as traits |
//! | `machine.rs`, `vgem.rs`, `sw_sync.rs`, `dma_buf.rs`, `sync_object.rs`, `epoll.rs` | this machine's kernel |
//! | `fake.rs`, `model.rs`, `tests.rs` | a kernel that is made up, for tests and models |

mod across;
mod crossing;
#[cfg(not(any(loom, shuttle)))]
mod dma_buf;
#[cfg(not(any(loom, shuttle)))]
mod epoll;
#[cfg(not(any(loom, shuttle)))]
mod explicit;
#[cfg(any(test, loom, shuttle))]
mod fake;
mod foreign;
mod keeper;
mod kernel;
mod kernel_fence;
#[cfg(not(any(loom, shuttle)))]
mod machine;
#[cfg(any(loom, shuttle))]
mod model;
mod points;
#[cfg(not(any(loom, shuttle)))]
mod sw_sync;
#[cfg(not(any(loom, shuttle)))]
mod sync_object;
#[cfg(not(any(loom, shuttle)))]
mod syncobj;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
mod transact;
#[cfg(not(any(loom, shuttle)))]
mod vgem;

pub(crate) use across::Across;
pub(crate) use crossing::Crossing;
pub(crate) use kernel::Kernel;
pub(crate) use kernel_fence::Reserved;
#[cfg(not(any(loom, shuttle)))]
pub use machine::FenceSource;
#[cfg(not(any(loom, shuttle)))]
pub(crate) use machine::Machine;
#[cfg(any(loom, shuttle))]
pub(crate) use model::NoKernel;
#[cfg(any(loom, shuttle))]
pub use model::{CrossingModel, ModelDmaBuf, ModelFence, ModelReserved, ModelSyncobj};
#[cfg(not(any(loom, shuttle)))]
pub(crate) use sw_sync::open_timeline;
#[cfg(not(any(loom, shuttle)))]
pub use syncobj::Syncobj;
