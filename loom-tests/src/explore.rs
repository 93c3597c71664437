//! Runs a model under loom, and counts the executions that it took.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use loom::model::Builder;

/// Explores every interleaving of `model`, or with `preemption_bound` only those in which no more than that many
/// threads are interrupted while they could go on. Prints how many executions that were.
pub fn explore(preemption_bound: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = preemption_bound;
    builder.max_branches = 10_000;
    // Of std: the count is about the executions, not a part of them.
    let executions = Arc::new(AtomicU64::new(0));
    let counted = executions.clone();
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    println!("explored {} executions", executions.load(Ordering::Relaxed));
}
