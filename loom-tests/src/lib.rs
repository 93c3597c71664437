//! Loom models of the real code: every interleaving of two or three threads, not a sample of them.
//!
//! Each file in `tests/` holds the models of one protocol. They call the code that ships, built with `--cfg loom`, and
//! re-implement nothing. A model that passes says something only if it can fail: for each there are mutants, lines of
//! the real code that are replaced by a plausible mistake under `--cfg loom_mutant="name"`, and with its mutant a model
//! must fail. `models.txt` lists which model goes with which mutant.
//!
//! ```text
//! RUSTFLAGS='--cfg loom' cargo test -p devpagemap-loom-tests --release --test signal_against_wait
//! RUSTFLAGS='--cfg loom --cfg loom_mutant="signal_publishes_nothing"' cargo test ... # must not exit with 0
//! ```
//!
//! A trap in loom 0.7.2 shapes the models: it may not explore that a load sees another thread's store when that thread
//! loads the same atomic before it stores. Somebody who looks once then never sees the change, and a model made of such
//! looks passes with every mutant. Observers here look until they see, yielding in between.
//!
//! A mutant that deadlocks aborts the whole process, since loom cannot unwind out of a deadlock; hence the exit status
//! is what counts. Without `--cfg loom` this package is empty.
#![cfg(loom)]

use loom::model::Builder;

/// Explores every interleaving of `model`, or with `preemption_bound` only those in which no more than that many
/// threads are interrupted while they could go on.
pub fn explore(preemption_bound: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = preemption_bound;
    builder.max_branches = 10_000;
    builder.check(model);
}
