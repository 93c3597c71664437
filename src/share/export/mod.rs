//! Buffers as dma-bufs, for importers outside of this process.

#[cfg(not(any(loom, shuttle)))]
mod offers;
#[cfg(not(any(loom, shuttle)))]
mod policy;
mod via;

#[cfg(not(any(loom, shuttle)))]
pub use offers::Offers;
pub use via::{ExportRequest, PassedOver, Via, WhyNot};
