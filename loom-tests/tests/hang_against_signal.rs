//! The watchdog's look at a timeline against the signal that comes after all.
#![cfg(loom)]

use devpagemap_fence::{HangAction, Timeline};
use devpagemap_loom_tests::explore;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A timeline on which every point is overdue when it is looked at.
fn impatient(decide: fn(&devpagemap_fence::Hang) -> HangAction) -> Timeline {
    Timeline::builder("impatient").timeout(Duration::ZERO, Box::new(decide)).build()
}

/// A moment after everything that has happened so far.
fn later() -> Instant {
    let now = Instant::now();
    while Instant::now() == now {}
    Instant::now()
}

/// Two threads, exhaustive: the point signals while it is found to hang.
#[test]
fn a_point_that_signals_while_it_is_found_to_hang_ends_one_way() {
    explore(None, || {
        let timeline = Arc::new(impatient(|hang| HangAction::Fail(hang.error())));
        let fences = [(); 2].map(|()| timeline.next_point());
        let calls = Arc::new(AtomicU32::new(0));
        let theirs = calls.clone();
        let hung = fences[0].on_signal(move |outcome| {
            theirs.fetch_add(if outcome.is_ok() { 1 } else { 16 }, Ordering::Relaxed);
        });
        assert!(hung.is_ok());
        let (watched, now) = (timeline.watched(), later());
        let watchdog = thread::spawn(move || {
            watched.upgrade().expect("the timeline is alive").check(now);
        });
        timeline.signal(1);
        let seen = fences[0].status().expect("the signal has returned");
        watchdog.join().unwrap();
        assert_eq!(fences[0].status(), Some(seen.clone()), "a fence does not change its mind");
        assert_eq!(calls.load(Ordering::Relaxed), if seen.is_ok() { 1 } else { 16 }, "{seen:?}");
        timeline.signal(2);
        assert!(fences[1].is_signaled());
    });
}

/// Two threads, exhaustive: a point is handed out, and the one before it signals, while the look goes on. The new point may
/// hang as well, but nothing may fail that was not there when the hang was found.
#[test]
fn a_point_that_is_handed_out_while_others_fail_is_not_among_them() {
    explore(None, || {
        let timeline = Arc::new(impatient(|hang| HangAction::FailAll(hang.error())));
        let first = timeline.next_point();
        let (watched, now) = (timeline.watched(), later());
        let owner = {
            let timeline = timeline.clone();
            thread::spawn(move || {
                timeline.signal(1);
                timeline.next_point()
            })
        };
        watched.upgrade().expect("the timeline is alive").check(now);
        let second = owner.join().unwrap();
        assert!(first.is_signaled());
        assert!(!second.is_signaled(), "it was not there, or not old enough: {:?}", second.status());
    });
}
