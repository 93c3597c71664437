//! Models of the real code, and what they are made of.
//!
//! * `tests/`: **loom**, every interleaving of two or three threads (`explore`). One file a protocol.
//! * `shuttle/`: **shuttle**, random interleavings of 8 to 16 threads over whole scenarios (`storm`).
//!
//! Both call the code that ships, built with `--cfg loom` or `--cfg shuttle`, and re-implement nothing; without either this
//! package is empty. A model that passes says something only if it can fail: for each there are mutants, lines of the real
//! code that are replaced by a plausible mistake when `DEVPAGEMAP_MUTANT` names it, and with its mutant a model must fail.
//! `models.txt` and `storms.txt` list which model goes with which mutant.
//!
//! ```text
//! cargo xtask loom FILTER       models and mutants whose names contain FILTER
//! cargo xtask shuttle FILTER
//! RUSTFLAGS='--cfg loom' cargo test -p devpagemap-loom-tests --release --test signal_against_wait
//! DEVPAGEMAP_MUTANT=signal_publishes_nothing RUSTFLAGS='--cfg loom' cargo test ... # the same build; must not exit with 0
//! ```
//!
//! A trap in loom 0.7.2 shapes its models: it may not explore that a load sees another thread's store when that thread
//! loads the same atomic before it stores. Somebody who looks once then never sees the change, and a model made of such
//! looks passes with every mutant. Observers here look until they see, yielding in between.
//!
//! A mutant that deadlocks aborts the whole process, since loom cannot unwind out of a deadlock; hence the exit status
//! is what counts.
#![cfg(any(loom, shuttle))]

#[cfg(loom)]
mod explore;
pub mod gpu;
#[cfg(loom)]
mod peer;
#[cfg(shuttle)]
pub mod ring;
#[cfg(shuttle)]
pub mod storm;
#[cfg(loom)]
mod watched;

#[cfg(loom)]
pub use explore::explore;
#[cfg(loom)]
pub use peer::Peer;
#[cfg(loom)]
pub use watched::Watched;
