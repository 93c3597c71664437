//! Fences across the boundary between our timelines and the kernel's reservation objects.
//!
//! | file | what it holds |
//! |---|---|
//! | `kernel.rs` | what of the kernel this needs, as traits |
//! | `across.rs` | one dma-buf whose reservation object hears of a buffer's fences, and the other way round |

mod across;
#[cfg(not(any(loom, shuttle)))]
mod dma_buf;
mod kernel;
mod transact;

pub(crate) use across::Across;
