//! Putting threads on cores of their own: two threads that share a core take turns and never contend, and whether they
//! share one is otherwise the scheduler's whim.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Binds the calling thread to the `index`-th of the cores that it may run on, counted round and round.
///
/// # Panics
/// When the system does not let it.
pub fn pin_to_core(index: usize) {
    let allowed = sched_getaffinity(None).expect("a thread may ask where it may run");
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect();
    let mut one = CpuSet::new();
    one.set(cores[index % cores.len()]);
    sched_setaffinity(None, &one).expect("a thread may choose among the cores that it may run on");
}
