//! The unlock of a reservation against those who wait for it.
#![cfg(loom)]

use devpagemap_fence::{Held, Reservation};
use devpagemap_loom_tests::explore;
use loom::thread;
use std::sync::Arc;

fn count_up(reservation: &Reservation<u32>) {
    let mut held = Held::enter();
    let mut locked = reservation.lock(&mut held);
    let seen = *locked;
    thread::yield_now();
    *locked = seen + 1;
}

fn count_up_in_threads(threads: u32) {
    let reservation = Arc::new(Reservation::new(0));
    let others: Vec<_> = (1..threads)
        .map(|_| {
            let reservation = reservation.clone();
            thread::spawn(move || count_up(&reservation))
        })
        .collect();
    count_up(&reservation);
    others.into_iter().for_each(|other| other.join().unwrap());
    assert!(!reservation.is_locked());
    let mut held = Held::enter();
    assert_eq!(*reservation.lock(&mut held), threads);
}

/// Two threads, exhaustive.
#[test]
fn a_waiter_is_never_forgotten_by_an_unlock() {
    explore(None, || count_up_in_threads(2));
}

/// Three threads, at most three preemptions.
#[test]
fn with_two_waiters_each_gets_its_turn() {
    explore(Some(3), || count_up_in_threads(3));
}

/// Three threads, at most three preemptions.
#[test]
fn a_try_succeeds_or_fails_at_once_beside_a_waiter() {
    explore(Some(3), || {
        let reservation = Arc::new(Reservation::new(0));
        let theirs = reservation.clone();
        let waiter = thread::spawn(move || count_up(&theirs));
        let theirs = reservation.clone();
        let other = thread::spawn(move || count_up(&theirs));
        let tried = reservation.try_lock().map(|mut locked| *locked += 1).is_some();
        waiter.join().unwrap();
        other.join().unwrap();
        let mut held = Held::enter();
        assert_eq!(*reservation.lock(&mut held), 2 + u32::from(tried));
    });
}

/// Two threads, exhaustive. The payload is a cell that the model watches.
#[test]
fn the_next_holder_sees_what_the_last_one_did() {
    explore(None, || {
        let reservation = Arc::new(Reservation::new(0));
        let theirs = reservation.clone();
        let other = thread::spawn(move || {
            if let Some(mut locked) = theirs.try_lock() {
                *locked += 1;
            }
        });
        while let Some(mut locked) = reservation.try_lock()
            && *locked == 0
        {
            *locked = 7;
        }
        other.join().unwrap();
        assert!(!reservation.is_locked());
    });
}
