//! A signal against somebody who waits for it, or only asks.
#![cfg(loom)]

use devpagemap_fence::{FenceError, Timeline};
use devpagemap_loom_tests::explore;
use loom::cell::Cell;
use loom::thread;
use std::rc::Rc;
use std::sync::Arc;

/// Memory that an engine writes before it signals. Loom fails the model when the accesses are not ordered. Model threads
/// share one thread of the system, so the count need not be atomic.
type Work = Rc<Cell<u32>>;

/// Two threads, exhaustive.
#[test]
fn a_waiter_wakes_and_sees_the_work_that_was_done() {
    explore(None, || {
        let timeline = Timeline::new("ring");
        let fence = timeline.next_point();
        let work = Work::new(Cell::new(0));
        let theirs = work.clone();
        let engine = thread::spawn(move || {
            theirs.set(7);
            timeline.signal(1);
        });
        assert_eq!(fence.wait(), Ok(()));
        assert_eq!(work.get(), 7);
        engine.join().unwrap();
    });
}

/// Two threads, exhaustive.
#[test]
fn who_sees_a_fence_signalled_sees_the_work_that_was_done() {
    explore(None, || {
        let timeline = Timeline::new("ring");
        let fence = timeline.next_point();
        let work = Work::new(Cell::new(0));
        let theirs = work.clone();
        let engine = thread::spawn(move || {
            theirs.set(7);
            timeline.signal(1);
        });
        while !fence.is_signaled() {
            thread::yield_now();
        }
        assert_eq!(work.get(), 7);
        engine.join().unwrap();
    });
}

/// Three threads, at most three preemptions.
#[test]
fn waiters_for_two_points_each_wake_at_their_own() {
    explore(Some(3), || {
        let timeline = Timeline::new("ring");
        let (first, second) = (timeline.next_point(), timeline.next_point());
        let early = thread::spawn(move || first.wait());
        let late = thread::spawn(move || second.wait());
        timeline.signal(1);
        timeline.signal(2);
        assert_eq!(early.join().unwrap(), Ok(()));
        assert_eq!(late.join().unwrap(), Ok(()));
    });
}

/// Three threads, at most three preemptions.
#[test]
fn a_point_that_fails_and_signals_at_once_ends_one_way_for_everybody() {
    explore(Some(3), || {
        let timeline = Arc::new(Timeline::new("ring"));
        let fence = timeline.next_point();
        let (good, bad) = (timeline.clone(), timeline);
        let signaller = thread::spawn(move || good.signal(1));
        let failer = thread::spawn(move || bad.fail(1, FenceError::Cancelled));
        let seen = loop {
            match fence.status() {
                Some(outcome) => break outcome,
                None => thread::yield_now(),
            }
        };
        signaller.join().unwrap();
        failer.join().unwrap();
        assert_eq!(fence.status(), Some(seen), "the outcome changed");
    });
}

/// Two threads, exhaustive.
#[test]
fn an_owner_that_goes_away_wakes_the_waiter_with_an_error() {
    explore(None, || {
        let timeline = Timeline::new("ring");
        let fence = timeline.next_point();
        let owner = thread::spawn(move || drop(timeline));
        assert_eq!(fence.wait(), Err(FenceError::Abandoned { timeline: "ring".into() }));
        owner.join().unwrap();
    });
}
