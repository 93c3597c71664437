//! Callbacks that signal other timelines, which run behind the one that signalled them.
#![cfg(loom)]

use devpagemap_fence::Timeline;
use devpagemap_loom_tests::explore;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use std::sync::Arc;

/// Two threads, exhaustive.
#[test]
fn what_is_queued_behind_a_callback_runs_beside_another_signaller() {
    explore(None, || {
        let (outer, inner) = (Timeline::new("outer"), Arc::new(Timeline::new("inner")));
        let order = Arc::new(AtomicU32::new(0));
        for seqno in 1..=2 {
            let order = order.clone();
            let hung = inner.next_point().on_signal(move |_| {
                assert_eq!(order.fetch_add(1, Ordering::AcqRel) + 1, seqno, "out of order, or twice");
            });
            assert!(hung.is_ok());
        }
        let signals = inner.clone();
        assert!(outer.next_point().on_signal(move |_| signals.signal(1)).is_ok());
        let other = thread::spawn(move || inner.signal(2));
        outer.signal(1);
        other.join().unwrap();
        assert_eq!(order.load(Ordering::Acquire), 2, "a callback was forgotten");
    });
}
