//! The `devpagemap` command as a library: read a recorded GPU workload, replay it through a managed VRAM with real
//! bytes, and report what had to move.
//!
//! ```text
//!   options  ->  trace (wsim, rmv, frames)  ->  replay (device, patterns, samples)  ->  report (terminal, JSON, HTML, Perfetto)
//! ```
//!
//! The binary is one call to [`command::main_with`]. Tests use the parts: [`trace::load`], [`replay::Replay`].

pub mod command;
pub mod error;
pub mod options;
pub mod replay;
pub mod report;
pub mod trace;
