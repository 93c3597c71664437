//! The end of a timeline, and the next owner of its place, against those who still deal with the former one.
#![cfg(loom)]

use devpagemap_fence::{FenceError, HangAction, Timeline};
use devpagemap_loom_tests::explore;
use loom::thread;
use std::time::{Duration, Instant};

/// Two threads, exhaustive.
#[test]
fn a_waiter_of_a_former_owner_is_not_kept_by_the_next() {
    explore(None, || {
        let former = Timeline::new("former");
        let (_first, second) = (former.next_point(), former.next_point());
        let theirs = second.clone();
        let waiter = thread::spawn(move || theirs.wait());
        drop(former);
        let next = Timeline::new("next");
        let fence = next.next_point();
        let abandoned = Err(FenceError::Abandoned { timeline: "former".into() });
        assert_eq!(waiter.join().unwrap(), abandoned);
        assert!(!fence.is_signaled());
        next.signal(1);
        assert_eq!((fence.status(), second.status()), (Some(Ok(())), Some(abandoned)));
    });
}

/// Two threads, exhaustive.
#[test]
fn a_late_look_of_the_watchdog_gives_no_place_back_twice() {
    explore(None, || {
        let hook = |_: &_| HangAction::FailAll(FenceError::Cancelled);
        let former = Timeline::builder("former").timeout(Duration::ZERO, hook).build();
        let fence = former.next_point();
        // Leaves a mark that somebody waits, so that who fails the point looks into the queues.
        let hung = fence.on_signal(|_| ()).map_err(drop);
        assert!(hung.is_ok_and(|callback| callback.cancel()));
        let owner = former.watched().upgrade().expect("the timeline is there");
        let watchdog = thread::spawn(move || owner.check(Instant::now()));
        drop(former);
        let next = Timeline::new("next");
        let outstanding = next.next_point();
        watchdog.join().unwrap();
        let other = Timeline::new("other");
        other.signal(other.next_point().seqno());
        assert!(fence.is_signaled());
        assert!(!outstanding.is_signaled(), "two owners share a place");
    });
}
