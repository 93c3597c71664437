//! Replaying a trace: through a device, with real bytes, in the trace's order.

pub mod contents;
mod cpu_check;
pub mod gpu;
mod job;
pub mod outcome;
pub mod pattern;
pub mod runner;
pub mod samples;

pub use gpu::{Gpu, GpuChoice};
pub use outcome::{Config, Data, FailedBatch, Outcome, Placement, Problem, Slice, Verify};
pub use runner::{Moment, Replay};
pub use samples::Sample;
