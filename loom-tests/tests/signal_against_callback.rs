//! A signal against somebody who hangs a callback on the fence, or takes one back.
#![cfg(loom)]

use devpagemap_fence::{FenceSet, Timeline};
use devpagemap_loom_tests::explore;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use std::sync::Arc;

/// Two threads, exhaustive.
#[test]
fn a_callback_runs_once_or_is_handed_back() {
    explore(None, || {
        let timeline = Timeline::new("ring");
        let fence = timeline.next_point();
        let runs = Arc::new(AtomicU32::new(0));
        let signaller = thread::spawn(move || timeline.signal(1));
        let theirs = runs.clone();
        let hung = fence.on_signal(move |outcome| {
            assert_eq!(outcome, Ok(()));
            theirs.fetch_add(1, Ordering::Relaxed);
        });
        let expected = u32::from(hung.is_ok());
        signaller.join().unwrap();
        assert_eq!(runs.load(Ordering::Relaxed), expected);
    });
}

/// Three threads, exhaustive.
#[test]
fn callbacks_of_two_signallers_all_run_and_in_order() {
    explore(None, || {
        let timeline = Arc::new(Timeline::new("ring"));
        let order = Arc::new(Mutex::new(Vec::new()));
        for seqno in 1..=2 {
            let order = order.clone();
            let hung = timeline.next_point().on_signal(move |_| order.lock().unwrap().push(seqno));
            assert!(hung.is_ok());
        }
        let signallers = [1, 2].map(|seqno| {
            let timeline = timeline.clone();
            thread::spawn(move || timeline.signal(seqno))
        });
        signallers.into_iter().for_each(|signaller| signaller.join().unwrap());
        assert_eq!(*order.lock().unwrap(), [1, 2]);
    });
}

/// Two threads, exhaustive.
#[test]
fn a_callback_that_was_cancelled_in_time_does_not_run() {
    explore(None, || {
        let timeline = Timeline::new("ring");
        let fence = timeline.next_point();
        let runs = Arc::new(AtomicU32::new(0));
        let theirs = runs.clone();
        let hung = fence.on_signal(move |_| {
            theirs.fetch_add(1, Ordering::Relaxed);
        });
        let callback = hung.unwrap_or_else(|_| unreachable!("nobody has signalled yet"));
        let signaller = thread::spawn(move || timeline.signal(1));
        let cancelled = callback.cancel();
        signaller.join().unwrap();
        assert_eq!(runs.load(Ordering::Relaxed), u32::from(!cancelled));
    });
}

/// Three threads, exhaustive.
#[test]
fn a_set_calls_back_once_when_the_last_of_its_fences_signals() {
    explore(None, || {
        let timelines = [Timeline::new("a"), Timeline::new("b")];
        let set: FenceSet = timelines.iter().map(Timeline::next_point).collect();
        let runs = Arc::new(AtomicU32::new(0));
        let signallers = timelines.map(|timeline| {
            // The timelines come back and are dropped at the end: leaving is another protocol.
            thread::spawn(move || {
                timeline.signal(1);
                timeline
            })
        });
        let (theirs, members) = (runs.clone(), set.clone());
        let hung = set.on_signaled(move || {
            assert!(members.is_signaled(), "called back too early");
            theirs.fetch_add(1, Ordering::Relaxed);
        });
        let expected = u32::from(hung.is_ok());
        let _timelines = signallers.map(|signaller| signaller.join().unwrap());
        assert_eq!(runs.load(Ordering::Relaxed), expected);
    });
}
