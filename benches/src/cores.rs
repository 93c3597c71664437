//! Cores: how much of them this process has had, and putting threads on cores of their own. Two threads that share a core
//! take turns and never contend, and whether they share one is otherwise the scheduler's whim.

use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// How long this process has been on cores, all threads together. Others may want the cores too, and who sleeps often gets
/// more of them, so that whatever contends is to be judged beside what it was given.
///
/// # Panics
/// Never: the clock does not run backwards.
pub fn core_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).expect("a process has run for some time")
}

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
