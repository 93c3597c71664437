//! The `devpagemap` command as a library: read a recorded GPU workload, replay it through a managed VRAM with real
//! bytes, and report what had to move; read a machine, and say who can reach whose memory there; hand buffers to other processes.
//!
//! ```text
//!   options  ->  trace (wsim, rmv, frames)  ->  replay (device, patterns, samples)  ->  report (terminal, JSON, HTML, Perfetto)
//!            ->  topology (machine, devices, registry)  ->  matrix, explanation, JSON
//!            ->  doctor (what this machine offers)  ->  table, JSON
//!            ->  export  ── handover (socket, header, descriptor) ──►  import
//! ```
//!
//! The binary is one call to [`command::main_with`]. Tests use the parts:
//!
//! ```
//! use devpagemap_cli::{options::ReplayOptions, replay::Replay, trace};
//!
//! let options = ReplayOptions { scale: 64, ..ReplayOptions::default_workload() };
//! let trace = trace::load(&options.source, options.format, options.seed)?;
//! let trace = trace.scaled(options.scale).expect("every buffer keeps a page");
//! let outcome = Replay::new(options.config(&trace))?.run(&trace, |_, _| {});
//! assert_eq!(outcome.batches_done, 101);
//! assert_eq!(outcome.verify.mismatches, 0);
//! # Ok::<(), devpagemap_cli::error::Error>(())
//! ```

pub mod command;
pub mod doctor;
pub mod error;
pub mod export;
pub mod handover;
pub mod import;
pub mod options;
pub mod replay;
pub mod report;
pub mod topology;
pub mod trace;
