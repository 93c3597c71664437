//! Buffers as dma-bufs, for importers outside of this process.
//!
//! | file | what it is about |
//! |---|---|
//! | `via.rs`, `policy.rs` | the ways there are, why one does not do, and their order |
//! | `export.rs`, `attempt.rs` | exporting: choosing a way, and going it |
//! | `watch.rs`, `exports.rs` | keep-alive: who outside still has what, and who finds that out |
//! | `offers.rs` | what this machine has |
//!
//! Whoever is outside cannot be told that a buffer moves. So all of them together are an importer that is attached for as long as one of them
//! has the dma-buf, and holds the buffer in system memory (see `pinned.rs`).

#[cfg(not(any(loom, shuttle)))]
mod attempt;
#[cfg(not(any(loom, shuttle)))]
#[expect(clippy::module_inception, reason = "the directory is about exports, the file about exporting")]
mod export;
#[cfg(not(any(loom, shuttle)))]
mod exports;
#[cfg(not(any(loom, shuttle)))]
mod offers;
#[cfg(not(any(loom, shuttle)))]
mod policy;
mod via;
mod watch;

#[cfg(not(any(loom, shuttle)))]
pub use export::Export;
#[cfg(not(any(loom, shuttle)))]
pub use offers::Offers;
#[cfg(feature = "gbm")]
pub use via::Image;
pub use via::{ExportRequest, Layout, PassedOver, Plane, Via, WhyNot};
#[cfg(any(loom, shuttle))]
pub use watch::{ExportTable, Kept};

#[cfg(not(any(loom, shuttle)))]
pub(crate) use attempt::Known;
#[cfg(not(any(loom, shuttle)))]
pub(crate) use exports::Exports;
