//! Chains: the points of one timeline, looked up by number and signalled in any order, and dependencies across many.
#![cfg(not(any(loom, shuttle)))]

use devpagemap_fence::{Fence, FenceError, FenceSet, Timeline};
use proptest::prelude::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;

const LENGTH: u64 = 256;

/// A timeline with its points 1 to `length`.
fn chain(length: u64) -> (Timeline, Vec<Fence>) {
    let timeline = Timeline::new("chain");
    let fences = (0..length).map(|_| timeline.next_point()).collect();
    (timeline, fences)
}

/// A cheap sequence of numbers that looks random.
fn scramble(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

fn same(fence: &Fence, other: &Fence) -> bool {
    (fence.timeline_id(), fence.seqno()) == (other.timeline_id(), other.seqno())
}

#[test]
fn each_point_is_found_by_its_number() {
    let (timeline, fences) = chain(LENGTH);
    for (seqno, fence) in (1..).zip(&fences) {
        assert_eq!(fence.seqno(), seqno);
        assert!(timeline.fence(seqno).is_some_and(|found| same(&found, fence)));
    }
    timeline.signal(LENGTH);
}

#[test]
fn the_point_before_all_work_has_signalled() {
    let (timeline, _fences) = chain(1);
    let before = timeline.fence(0).unwrap();
    assert!(same(&before, &Fence::signaled()) && before.is_signaled());
    assert!(!timeline.fence(1).unwrap().is_signaled());
    timeline.signal(1);
}

#[test]
fn a_point_that_was_not_handed_out_is_not_found_until_it_is() {
    let (timeline, _fences) = chain(3);
    for later in [4, 5, u64::MAX - 1, u64::MAX] {
        assert!(timeline.fence(later).is_none(), "{later}");
    }
    timeline.signal(3);
    assert!(timeline.fence(4).is_none(), "being idle changes nothing");
    let fourth = timeline.next_point();
    assert!(timeline.fence(4).is_some_and(|found| same(&found, &fourth)));
    timeline.signal(4);
}

#[test]
fn a_signalled_point_is_found_and_knows_how_it_ended() {
    let (timeline, fences) = chain(4);
    drop(fences);
    timeline.signal(1);
    timeline.fail(2, FenceError::DeviceLost);
    timeline.signal(3);
    let outcomes: Vec<_> = (1..=4).map(|seqno| timeline.fence(seqno).unwrap().status()).collect();
    assert_eq!(outcomes, [Some(Ok(())), Some(Err(FenceError::DeviceLost)), Some(Ok(())), None]);
    timeline.signal(4);
}

#[test]
fn work_that_ends_out_of_order_is_complete_when_what_came_before_is() {
    // Three jobs of one chain run on timelines of their own; the chain's owner signals the prefix that is done.
    let (timeline, fences) = chain(3);
    let timeline = Arc::new(timeline);
    let jobs: Vec<Timeline> = (0..3).map(|_| Timeline::new("job")).collect();
    let mut before = FenceSet::new();
    for (job, seqno) in jobs.iter().zip(1..) {
        before.add(job.next_point());
        let chain = timeline.clone();
        assert!(before.on_signaled(move || chain.signal(seqno)).is_ok());
    }
    jobs[1].signal(1);
    assert!(!fences[0].is_signaled() && !fences[1].is_signaled(), "the second waits for the first");
    jobs[0].signal(1);
    assert!(fences[0].is_signaled() && fences[1].is_signaled() && !fences[2].is_signaled());
    jobs[2].signal(1);
    assert!(timeline.is_idle());
}

#[test]
fn a_number_between_two_that_somebody_kept_completes_with_the_next_that_is_signalled() {
    let (timeline, fences) = chain(9);
    let kept = [fences[2].clone(), fences[8].clone()];
    drop(fences);
    let between = timeline.fence(5).unwrap();
    timeline.signal(3);
    assert!(kept[0].is_signaled() && !between.is_signaled());
    timeline.signal(9);
    assert!(kept[1].is_signaled() && between.is_signaled());
}

#[test]
fn a_set_answers_for_earlier_points_with_the_later_one_it_has() {
    let (timeline, fences) = chain(9);
    let set = FenceSet::from_iter([fences[2].clone(), fences[8].clone()]);
    assert_eq!(set.get(timeline.id()).map(Fence::seqno), Some(9));
    timeline.signal(5);
    assert!(!set.is_signaled());
    timeline.signal(9);
    assert!(set.is_signaled());
}

#[test]
fn lookups_race_with_random_signals_and_new_points() {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 20_000;
    let timeline = Arc::new(Timeline::new("chain"));
    let done = Arc::new(AtomicBool::new(false));
    let lookers: Vec<_> = (1..=THREADS)
        .map(|seed| {
            let (timeline, done, mut random) = (timeline.clone(), done.clone(), seed);
            thread::spawn(move || {
                let mut found = 0;
                while found < 1000 || !done.load(Ordering::Relaxed) {
                    let (completed, allocated) = (timeline.completed(), timeline.allocated());
                    let seqno = scramble(&mut random) % (allocated + 2);
                    let Some(fence) = timeline.fence(seqno) else {
                        assert!(seqno > allocated, "{seqno} was handed out long ago");
                        continue;
                    };
                    found += 1;
                    assert_eq!(fence.seqno(), seqno);
                    assert!(fence.is_signaled() || seqno > completed, "{seqno} had signalled");
                    if scramble(&mut random).is_multiple_of(8) {
                        timeline.signal(seqno);
                        assert!(fence.is_signaled());
                    }
                }
            })
        })
        .collect();
    for _ in 0..ROUNDS {
        let fence = timeline.next_point();
        assert!(timeline.fence(fence.seqno()).is_some_and(|found| same(&found, &fence)));
    }
    done.store(true, Ordering::Relaxed);
    lookers.into_iter().for_each(|looker| looker.join().unwrap());
    timeline.signal(timeline.allocated());
}

#[test]
fn signalling_forward_completes_one_point_after_the_other() {
    let (timeline, fences) = chain(LENGTH);
    for (seqno, fence) in (1..).zip(&fences) {
        assert!(!fence.is_signaled());
        timeline.signal(seqno);
        assert!(fence.is_signaled());
        assert!(fences[seqno as usize..].iter().all(|later| !later.is_signaled()));
    }
}

#[test]
fn signalling_backward_completes_all_at_once_and_the_rest_is_late() {
    let (timeline, fences) = chain(LENGTH);
    for seqno in (1..=LENGTH).rev() {
        timeline.signal(seqno);
        assert!(fences.iter().all(Fence::is_signaled));
        assert_eq!(timeline.completed(), LENGTH);
    }
}

/// One thread waits for the last point while the points are signalled in `order`.
fn wait_for_the_last(order: impl Iterator<Item = u64>) {
    let (timeline, fences) = chain(LENGTH);
    let last = fences[fences.len() - 1].clone();
    let meet = Arc::new(Barrier::new(2));
    let theirs = meet.clone();
    let waiter = thread::spawn(move || {
        theirs.wait();
        let outcome = last.wait();
        assert!(fences.iter().all(Fence::is_signaled));
        outcome
    });
    meet.wait();
    order.for_each(|seqno| timeline.signal(seqno));
    assert_eq!(waiter.join().unwrap(), Ok(()));
}

#[test]
fn who_waits_for_the_last_wakes_when_the_chain_is_signalled_forward() {
    wait_for_the_last(1..=LENGTH);
}

#[test]
fn who_waits_for_the_last_wakes_when_the_chain_is_signalled_backward() {
    wait_for_the_last((1..=LENGTH).rev());
}

#[test]
fn waiters_at_random_points_each_wake_when_the_chain_is_signalled_at_random() {
    let (timeline, fences) = chain(LENGTH);
    let timeline = Arc::new(timeline);
    let mut random = 42;
    let (woken, wakes) = mpsc::channel();
    let waiters: Vec<_> = (0..16)
        .map(|_| {
            let fence = fences[(scramble(&mut random) % LENGTH) as usize].clone();
            let (timeline, woken) = (timeline.clone(), woken.clone());
            thread::spawn(move || {
                assert_eq!(fence.wait(), Ok(()));
                assert!(timeline.completed() >= fence.seqno());
                woken.send(fence.seqno()).unwrap();
            })
        })
        .collect();
    drop(woken);
    let mut order: Vec<u64> = (1..=LENGTH).collect();
    for index in (1..order.len()).rev() {
        order.swap(index, (scramble(&mut random) % (index as u64 + 1)) as usize);
    }
    order.into_iter().for_each(|seqno| timeline.signal(seqno));
    waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
    assert_eq!(wakes.iter().count(), 16);
}

#[test]
fn a_million_timelines_that_signal_each_other_do_not_nest() {
    const TIMELINES: u64 = 1_000_000;
    let first = Timeline::new("first");
    let runs = Arc::new(AtomicU64::new(0));
    let mut previous = first.next_point();
    for _ in 0..TIMELINES {
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
    assert_eq!(runs.load(Ordering::Relaxed), TIMELINES);
}

#[test]
fn owners_that_callbacks_drop_do_not_nest_either() {
    const TIMELINES: usize = 100_000;
    let first = Timeline::new("first");
    let mut previous = first.next_point();
    for _ in 0..TIMELINES {
        let next = Timeline::new("next");
        let fence = next.next_point();
        assert!(previous.on_signal(move |_| drop(next)).is_ok());
        previous = fence;
    }
    drop(first);
    assert_eq!(previous.wait(), Err(FenceError::Abandoned { timeline: "next".into() }));
}

#[test]
fn a_callback_that_panics_does_not_keep_those_queued_behind_it_from_running() {
    let (first, second) = (Timeline::new("first"), Timeline::new("second"));
    let ran = Arc::new(AtomicBool::new(false));
    let theirs = ran.clone();
    let behind = second.next_point();
    assert!(behind.on_signal(move |_| theirs.store(true, Ordering::Relaxed)).is_ok());
    let hung = first.next_point().on_signal(move |_| {
        second.signal(1);
        panic!("this one is broken");
    });
    assert!(hung.is_ok());
    let signalled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| first.signal(1)));
    assert!(signalled.is_err());
    assert!(ran.load(Ordering::Relaxed));
}

#[test]
fn a_callback_sees_what_it_signalled_complete_and_its_callbacks_run_after_itself() {
    let (first, second) = (Timeline::new("first"), Timeline::new("second"));
    let (log, lines) = mpsc::channel();
    let target = second.next_point();
    let behind = log.clone();
    assert!(target.on_signal(move |_| behind.send("behind").unwrap()).is_ok());
    let hung = first.next_point().on_signal(move |_| {
        second.signal(1);
        assert!(target.is_signaled());
        log.send("first").unwrap();
    });
    assert!(hung.is_ok());
    first.signal(1);
    assert_eq!(lines.iter().collect::<Vec<_>>(), ["first", "behind"]);
}

proptest! {
    #[test]
    fn a_point_has_signalled_when_it_or_a_later_one_was(order in Just((1..=32u64).collect::<Vec<_>>()).prop_shuffle()) {
        let (timeline, fences) = chain(32);
        let mut latest = 0;
        for seqno in order {
            timeline.signal(seqno);
            latest = latest.max(seqno);
            for fence in &fences {
                prop_assert_eq!(fence.is_signaled(), fence.seqno() <= latest);
                prop_assert_eq!(timeline.fence(fence.seqno()).unwrap().is_signaled(), fence.is_signaled());
            }
        }
    }
}
