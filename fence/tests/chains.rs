//! Chains of dependencies across timelines, and points of a timeline looked up by their number.
#![cfg(not(loom))]

use devpagemap_fence::{FenceError, Timeline};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[test]
fn a_million_timelines_that_signal_each_other_do_not_nest() {
    const LENGTH: u64 = 1_000_000;
    let first = Timeline::new("first");
    let runs = Arc::new(AtomicU64::new(0));
    let mut previous = first.next_point();
    for _ in 0..LENGTH {
        let next = Timeline::new("next");
        let (fence, runs) = (next.next_point(), runs.clone());
        let hung = previous.on_signal(move |outcome| {
            runs.fetch_add(1, Ordering::Relaxed);
            match outcome {
                Ok(()) => next.signal(1),
                Err(error) => next.fail(1, error.as_dependency()),
            }
        });
        assert!(hung.is_ok());
        previous = fence;
    }
    first.fail(1, FenceError::DeviceLost);
    assert_eq!(previous.status(), Some(Err(FenceError::DeviceLost.as_dependency())));
    assert_eq!(runs.load(Ordering::Relaxed), LENGTH);
}
