//! The fences of a reservation: one adds, others read without a lock.
#![cfg(loom)]

use devpagemap_fence::{Held, Reservation, Timeline, Usage};
use devpagemap_loom_tests::explore;
use loom::thread;
use std::sync::Arc;

/// Two threads, exhaustive.
#[test]
fn a_reader_sees_every_fence_that_was_added_before_and_no_half_of_one() {
    explore(None, || {
        let reservation = Arc::new(Reservation::new(()));
        let timelines = [Timeline::new("first"), Timeline::new("second")];
        let theirs = reservation.clone();
        let reader = thread::spawn(move || {
            let before = theirs.fences(Usage::Bookkeep).len();
            let after = theirs.fences(Usage::Bookkeep).len();
            assert!(before <= after && after <= 2, "what was seen is seen again: {before}, {after}");
        });
        let mut held = Held::enter();
        let mut locked = reservation.lock(&mut held);
        locked.reserve_fences(2).expect("a little memory");
        for timeline in &timelines {
            locked.add_fence(timeline.next_point(), Usage::Write);
        }
        reader.join().unwrap();
        assert_eq!(locked.fences(Usage::Write).len(), 2);
        drop(locked);
        timelines.iter().for_each(|timeline| timeline.signal(1));
    });
}

/// Two threads, exhaustive. Each time the list is full, so it is made anew while it is read.
#[test]
fn a_reader_keeps_what_is_outstanding_while_the_list_is_made_anew() {
    explore(None, || {
        let reservation = Arc::new(Reservation::new(()));
        let (slow, fast) = (Timeline::new("slow"), Timeline::new("fast"));
        let mut held = Held::enter();
        let mut locked = reservation.lock(&mut held);
        locked.reserve_fences(1).expect("a little memory");
        locked.add_fence(slow.next_point(), Usage::Read);
        let theirs = reservation.clone();
        let reader = thread::spawn(move || {
            assert!(!theirs.is_idle(Usage::Read), "the slow one is outstanding all the time");
        });
        locked.reserve_fences(64).expect("a little memory");
        locked.add_fence(fast.next_point(), Usage::Write);
        reader.join().unwrap();
        drop(locked);
        fast.signal(1);
        slow.signal(1);
        assert!(reservation.is_idle(Usage::Bookkeep));
    });
}
