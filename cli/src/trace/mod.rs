//! Recorded workloads: one model that every format is read into, and a reader a format.
//!
//! A reader turns text into a [`Trace`]: buffers, batches that use them, CPU maps, delays. It checks everything that
//! can be checked without a device, so that a replay never meets a reference to a buffer that does not exist. What
//! is wrong is reported with file, line and reason, and nothing of the file is used.

pub mod builder;
pub mod bytes;
pub mod detect;
pub mod frames;
pub mod model;
pub mod rmv;
pub mod wsim;

pub use builder::TraceBuilder;
pub use detect::{Format, load};
pub use model::{
    Access, After, Batch, Bo, BoId, FirstBytes, Heap, RecordedHeaps, RecordedTotals, Step, Trace, Use,
};
