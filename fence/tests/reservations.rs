//! Reservations: fences by usage, and the lock of a single buffer.
#![cfg(not(any(loom, shuttle)))]

use devpagemap_fence::{Fence, Held, Reservation, Timeline, Usage};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Adds one fence to an unlocked reservation.
fn add(reservation: &Reservation<()>, fence: &Fence, usage: Usage) {
    let mut held = Held::enter();
    let mut locked = reservation.lock(&mut held);
    locked.reserve_fences(1).unwrap();
    locked.add_fence(fence.clone(), usage);
}

fn seqnos(reservation: &Reservation<()>, usage: Usage) -> Vec<u64> {
    let mut seqnos: Vec<u64> = reservation.fences(usage).iter().map(Fence::seqno).collect();
    seqnos.sort_unstable();
    seqnos
}

#[test]
fn a_new_reservation_is_free_and_signalled() {
    let reservation = Reservation::new(());
    assert!(!reservation.is_locked());
    assert!(Usage::ALL.iter().all(|usage| reservation.fences(*usage).is_signaled()));
}

#[test]
fn each_usage_is_seen_by_itself_and_all_weaker_queries() {
    for usage in Usage::ALL {
        let reservation = Reservation::new(());
        let timeline = Timeline::new("ring");
        let fence = timeline.next_point();
        add(&reservation, &fence, usage);
        for query in Usage::ALL {
            assert_eq!(reservation.fences(query).len(), usize::from(usage <= query), "{usage:?} {query:?}");
        }
        timeline.signal(1);
        assert!(reservation.fences(Usage::Bookkeep).is_signaled(), "{usage:?}");
    }
}

#[test]
fn a_writer_waits_for_readers_and_a_reader_for_writers_only() {
    let reservation = Reservation::new(());
    let timelines: Vec<Timeline> =
        Usage::ALL.iter().map(|usage| Timeline::new(format!("{usage:?}"))).collect();
    for (timeline, usage) in timelines.iter().zip(Usage::ALL) {
        add(&reservation, &timeline.next_point(), usage);
    }
    let names = |write| -> Vec<String> {
        let fences = reservation.fences(Usage::waits_for(write));
        fences.iter().map(|fence| fence.timeline_name().to_string()).collect()
    };
    assert_eq!(names(true), ["Kernel", "Write", "Read"]);
    assert_eq!(names(false), ["Kernel", "Write"]);
}

#[test]
fn a_later_fence_of_the_same_timeline_and_usage_replaces_the_earlier() {
    for usage in Usage::ALL {
        let reservation = Reservation::new(());
        let timeline = Timeline::new("ring");
        let fences: Vec<Fence> = (0..3).map(|_| timeline.next_point()).collect();
        for index in [1, 2, 0] {
            add(&reservation, &fences[index], usage);
        }
        assert_eq!(seqnos(&reservation, usage), [3]);
        timeline.signal(3);
    }
}

#[test]
fn a_fence_can_be_promoted_but_never_demoted() {
    let reservation = Reservation::new(());
    let timeline = Timeline::new("ring");
    let fence = timeline.next_point();
    add(&reservation, &fence, Usage::Read);
    assert_eq!(seqnos(&reservation, Usage::Write), []);
    add(&reservation, &fence, Usage::Kernel);
    assert_eq!(seqnos(&reservation, Usage::Kernel), [1]);
    add(&reservation, &fence, Usage::Bookkeep);
    assert_eq!(seqnos(&reservation, Usage::Kernel), [1]);
    assert_eq!(seqnos(&reservation, Usage::Bookkeep), [1]);
}

#[test]
fn a_weaker_later_fence_does_not_hide_a_stronger_earlier_one() {
    let reservation = Reservation::new(());
    let timeline = Timeline::new("ring");
    let (write, bookkeep) = (timeline.next_point(), timeline.next_point());
    add(&reservation, &write, Usage::Write);
    add(&reservation, &bookkeep, Usage::Bookkeep);
    assert_eq!(seqnos(&reservation, Usage::Write), [1]);
    assert_eq!(seqnos(&reservation, Usage::Bookkeep), [2]);
    timeline.signal(1);
    assert_eq!(seqnos(&reservation, Usage::Write), []);
    assert_eq!(seqnos(&reservation, Usage::Bookkeep), [2]);
}

#[test]
fn a_long_history_leaves_no_more_than_what_is_at_work() {
    let reservation = Reservation::new(());
    for _ in 0..1000 {
        let timeline = Timeline::new("short-lived");
        add(&reservation, &timeline.next_point(), Usage::Write);
        timeline.signal(1);
    }
    assert!(reservation.is_idle(Usage::Bookkeep));
    assert!(reservation.fences(Usage::Bookkeep).is_empty() && reservation.fences_with_usage().is_empty());
}

#[test]
fn reserved_slots_take_as_many_fences_and_vanish_with_the_lock() {
    let reservation = Reservation::new(());
    let timelines: Vec<Timeline> = (0..20).map(|_| Timeline::new("ring")).collect();
    let mut held = Held::enter();
    {
        let mut locked = reservation.lock(&mut held);
        locked.reserve_fences(5).unwrap();
        locked.reserve_fences(15).unwrap();
        for timeline in &timelines {
            locked.add_fence(timeline.next_point(), Usage::Read);
        }
        assert_eq!(locked.fences(Usage::Read).len(), 20);
        locked.reserve_fences(1).unwrap();
    }
    assert_eq!(reservation.fences(Usage::Read).len(), 20);
}

#[cfg(debug_assertions)]
#[test]
#[should_panic(expected = "without a reserved slot")]
fn a_slot_reserved_before_an_unlock_is_gone_after_it() {
    let reservation = Reservation::new(());
    let timeline = Timeline::new("ring");
    let mut held = Held::enter();
    reservation.lock(&mut held).reserve_fences(1).unwrap();
    reservation.lock(&mut held).add_fence(timeline.next_point(), Usage::Read);
}

#[test]
fn more_slots_than_memory_are_refused_with_their_number() {
    let reservation = Reservation::new(());
    let mut held = Held::enter();
    let mut locked = reservation.lock(&mut held);
    let refused = locked.reserve_fences(usize::MAX).unwrap_err();
    assert_eq!((refused.wanted, refused.in_use), (usize::MAX, 0));
    locked.reserve_fences(1).unwrap();
}

#[test]
fn the_fences_can_be_read_while_somebody_holds_the_lock() {
    let reservation = Arc::new(Reservation::new(()));
    let timeline = Timeline::new("ring");
    let mut held = Held::enter();
    let mut locked = reservation.lock(&mut held);
    locked.reserve_fences(1).unwrap();
    locked.add_fence(timeline.next_point(), Usage::Kernel);
    let theirs = reservation.clone();
    let reader = thread::spawn(move || (theirs.fences(Usage::Kernel).len(), theirs.try_lock().is_some()));
    assert_eq!(reader.join().unwrap(), (1, false));
    drop(locked);
    assert!(reservation.try_lock().is_some());
}

#[test]
fn the_payload_belongs_to_one_thread_at_a_time() {
    let reservation = Arc::new(Reservation::new(0u64));
    let threads = [0; 4].map(|_| {
        let reservation = reservation.clone();
        thread::spawn(move || {
            let mut held = Held::enter();
            for _ in 0..5000 {
                let mut locked = reservation.lock(&mut held);
                let seen = *locked;
                if seen.is_multiple_of(64) {
                    thread::yield_now();
                }
                *locked = seen + 1;
            }
        })
    });
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let mut reservation = Arc::into_inner(reservation).expect("the threads are gone");
    assert_eq!(*reservation.get_mut(), 20_000);
}

#[test]
fn somebody_who_locks_all_the_time_does_not_starve_the_others() {
    let reservation = Arc::new(Reservation::new(()));
    let stop = Arc::new(AtomicBool::new(false));
    let greedy = [0; 2].map(|_| {
        let (reservation, stop) = (reservation.clone(), stop.clone());
        thread::spawn(move || {
            let mut held = Held::enter();
            while !stop.load(Ordering::Relaxed) {
                drop(reservation.lock(&mut held));
            }
        })
    });
    let mut held = Held::enter();
    for _ in 0..1000 {
        drop(reservation.lock(&mut held));
    }
    stop.store(true, Ordering::Relaxed);
    greedy.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_panic_under_the_lock_unlocks_it() {
    let reservation = Arc::new(Reservation::new(1));
    let theirs = reservation.clone();
    let broken = thread::spawn(move || {
        let mut held = Held::enter();
        let _locked = theirs.lock(&mut held);
        panic!("while it is locked");
    });
    assert!(broken.join().is_err());
    let mut held = Held::enter();
    assert_eq!(*reservation.lock(&mut held), 1);
}

#[test]
fn the_fences_of_one_reservation_can_be_copied_to_another_with_their_usages() {
    let timeline = Timeline::new("ring");
    let (from, to) = (Reservation::new(()), Reservation::new(()));
    let fences: Vec<_> = Usage::ALL.iter().map(|usage| (timeline.next_point(), *usage)).collect();
    for (fence, usage) in &fences {
        add(&from, fence, *usage);
    }
    timeline.signal(1);
    let mut held = Held::enter();
    let mut locked = to.lock(&mut held);
    locked.reserve_fences(1).unwrap();
    locked.copy_fences(&from).unwrap();
    locked.add_fence(timeline.next_point(), Usage::Bookkeep); // the slot that was reserved is still there
    drop(locked);
    assert_eq!(seqnos(&to, Usage::Kernel), [] as [u64; 0], "what has signalled is not copied");
    assert_eq!(seqnos(&to, Usage::Write), [2]);
    assert_eq!(seqnos(&to, Usage::Read), [3]);
    assert_eq!(seqnos(&to, Usage::Bookkeep), [5]);
}

#[test]
fn the_list_grows_with_what_is_outstanding_and_loses_nothing() {
    let timelines: Vec<_> = (0..100).map(|index| Timeline::new(format!("ring {index}"))).collect();
    let reservation = Reservation::new(());
    for round in 0..3 {
        for (index, timeline) in timelines.iter().enumerate() {
            add(&reservation, &timeline.next_point(), Usage::ALL[(index + round) % 4]);
        }
    }
    let all = reservation.fences(Usage::Bookkeep);
    assert_eq!(all.len(), 100);
    assert!(all.iter().all(|fence| fence.seqno() == 3));
    assert_eq!(reservation.fences_with_usage().len(), 300 - superseded());
    timelines.iter().for_each(|timeline| timeline.signal(3));
    assert!(reservation.is_idle(Usage::Bookkeep));
}

/// How many of three rounds with usages that go around are implied by a later one: those that are followed by a stronger one.
fn superseded() -> usize {
    let implied = |index: usize, round: usize| {
        (round + 1..3).any(|later| Usage::ALL[(index + later) % 4] <= Usage::ALL[(index + round) % 4])
    };
    (0..100).map(|index| (0..3).filter(|round| implied(index, *round)).count()).sum()
}

#[test]
fn a_fence_is_seen_by_others_as_soon_as_it_is_added_and_before_the_unlock() {
    let timeline = Timeline::new("ring");
    let reservation = Reservation::new(());
    let mut held = Held::enter();
    let mut locked = reservation.lock(&mut held);
    locked.reserve_fences(1).unwrap();
    assert!(reservation.is_idle(Usage::Bookkeep));
    locked.add_fence(timeline.next_point(), Usage::Write);
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(seqnos(&reservation, Usage::Write), [1]));
    });
    drop(locked);
}

#[test]
fn readers_beside_a_writer_see_every_fence_that_was_there_when_they_began() {
    let timeline = Timeline::new("ring");
    let reservation = Reservation::new(());
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Acquire) {
                    let from = timeline.completed();
                    let fences = reservation.fences(Usage::Bookkeep);
                    assert!(
                        fences.iter().all(|fence| fence.seqno() > from),
                        "an older point is never seen again"
                    );
                }
            });
        }
        for seqno in 1..=20_000 {
            add(&reservation, &timeline.next_point(), Usage::ALL[seqno as usize % 4]);
            if seqno > 3 {
                timeline.signal(seqno - 3);
            }
        }
        done.store(true, std::sync::atomic::Ordering::Release);
    });
    timeline.signal(20_000);
    assert!(reservation.is_idle(Usage::Bookkeep));
}
