//! Deadlines, the hook for the first waiter, and when points signalled.
#![cfg(not(any(loom, shuttle)))]

use devpagemap_fence::{Deadline, Fence, FenceError, FenceSet, SignalTime, Timeline};
use proptest::prelude::*;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

type Told = Arc<Mutex<Vec<Deadline>>>;

/// A timeline that notes what it is told.
fn listening(name: &'static str) -> (Timeline, Told) {
    let told = Told::default();
    let theirs = told.clone();
    let hook = move |deadline: &Deadline| theirs.lock().unwrap().push(deadline.clone());
    (Timeline::builder(name).on_deadline(hook).build(), told)
}

fn seqnos(told: &Told) -> Vec<u64> {
    told.lock().unwrap().iter().map(|deadline| deadline.seqno).collect()
}

fn in_ms(ms: u64) -> Instant {
    static BEGIN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    *BEGIN + Duration::from_millis(ms)
}

#[test]
fn the_owner_hears_of_the_earliest_deadline_and_not_of_later_ones() {
    let (timeline, told) = listening("display");
    let fence = timeline.next_point();
    assert_eq!(timeline.earliest_deadline(), None);
    for ms in [20, 30, 10, 10] {
        fence.set_deadline(in_ms(ms));
    }
    let deadline = |ms| Deadline { timeline: "display".into(), seqno: 1, at: in_ms(ms) };
    assert_eq!(*told.lock().unwrap(), [deadline(20), deadline(10)]);
    assert_eq!(timeline.earliest_deadline(), Some(in_ms(10)));
}

#[test]
fn a_deadline_of_a_later_point_covers_the_earlier_ones() {
    let (timeline, told) = listening("display");
    let fences: Vec<Fence> = (0..3).map(|_| timeline.next_point()).collect();
    fences[2].set_deadline(in_ms(10));
    fences[0].set_deadline(in_ms(20));
    assert_eq!(seqnos(&told), [3], "point 1 is done by then anyhow");
    fences[0].set_deadline(in_ms(5));
    assert_eq!((seqnos(&told), timeline.earliest_deadline()), (vec![3, 1], Some(in_ms(5))));
    timeline.signal(1);
    assert_eq!(timeline.earliest_deadline(), Some(in_ms(10)));
}

#[test]
fn a_deadline_goes_with_its_point_and_a_signalled_one_needs_none() {
    let (timeline, told) = listening("display");
    let fences = [timeline.next_point(), timeline.next_point()];
    fences[0].set_deadline(in_ms(10));
    fences[1].set_deadline(in_ms(20));
    timeline.signal(1);
    assert_eq!(timeline.earliest_deadline(), Some(in_ms(20)));
    timeline.fail(2, FenceError::Cancelled);
    assert_eq!(timeline.earliest_deadline(), None);
    fences[1].set_deadline(in_ms(1));
    Fence::signaled().set_deadline(in_ms(1));
    assert_eq!((seqnos(&told), timeline.earliest_deadline()), (vec![1, 2], None));
}

#[test]
fn a_set_passes_its_deadline_on_to_all_members() {
    let ((a, told_a), (b, told_b), (c, told_c)) = (listening("a"), listening("b"), listening("c"));
    let set: FenceSet = [&a, &b, &c].map(Timeline::next_point).into_iter().collect();
    b.signal(1);
    set.set_deadline(in_ms(10));
    assert_eq!([seqnos(&told_a), seqnos(&told_b), seqnos(&told_c)], [vec![1], vec![], vec![1]]);
}

#[test]
fn a_hook_may_ask_its_timeline_and_its_panic_is_its_own() {
    let timeline = Arc::new_cyclic(|me: &std::sync::Weak<Timeline>| {
        let me = me.clone();
        let hook = move |deadline: &Deadline| {
            let timeline = me.upgrade().expect("the timeline is there");
            assert_eq!(timeline.earliest_deadline(), Some(deadline.at));
            panic!("broken hook");
        };
        Timeline::builder("display").on_deadline(hook).build()
    });
    timeline.next_point().set_deadline(in_ms(10));
    assert_eq!(timeline.earliest_deadline(), Some(in_ms(10)));
}

proptest! {
    #[test]
    fn deadlines_behave_like_a_list_of_all_that_were_set(
        steps in prop::collection::vec((1..12u64, prop::option::weighted(0.8, 0..20u64)), 1..60)
    ) {
        let (timeline, told) = listening("display");
        let fences: Vec<Fence> = (0..12).map(|_| timeline.next_point()).collect();
        let mut all: Vec<(u64, u64)> = Vec::new();
        for (seqno, deadline) in steps {
            let Some(ms) = deadline else {
                timeline.signal(timeline.completed() + seqno % 2);
                all.retain(|set| set.0 > timeline.completed());
                continue;
            };
            let is_news = seqno > timeline.completed() && !all.iter().any(|set| set.0 >= seqno && set.1 <= ms);
            let before = told.lock().unwrap().len();
            fences[seqno as usize - 1].set_deadline(in_ms(ms));
            prop_assert_eq!(told.lock().unwrap().len() - before, usize::from(is_news));
            all.extend(is_news.then_some((seqno, ms)));
            let earliest = all.iter().map(|set| set.1).min();
            prop_assert_eq!(timeline.earliest_deadline(), earliest.map(in_ms));
        }
    }
}

/// A timeline that counts how often somebody began to wait.
fn counting() -> (Timeline, Arc<AtomicU32>) {
    let calls = Arc::new(AtomicU32::new(0));
    let theirs = calls.clone();
    let hook = move || {
        theirs.fetch_add(1, Ordering::Relaxed);
    };
    (Timeline::builder("ring").on_first_waiter(hook).build(), calls)
}

#[test]
fn the_owner_hears_when_the_first_begins_to_wait_and_again_after_the_last() {
    let (timeline, calls) = counting();
    let fences: Vec<Fence> = (0..3).map(|_| timeline.next_point()).collect();
    assert!(!fences[0].is_signaled() && fences[0].status().is_none());
    assert_eq!(calls.load(Ordering::Relaxed), 0, "looking is not waiting");
    let hang = |index: usize| fences[index].on_signal(|_| ()).map_err(drop);
    assert!(hang(0).is_ok() && hang(1).is_ok());
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    timeline.signal(1);
    assert!(hang(1).is_ok());
    assert_eq!(calls.load(Ordering::Relaxed), 1, "somebody has been waiting all along");
    timeline.signal(2);
    assert!(hang(1).is_err());
    assert_eq!(calls.load(Ordering::Relaxed), 1, "too late to wait");
    assert!(hang(2).is_ok_and(|callback| callback.cancel()) && hang(2).is_ok());
    assert_eq!(calls.load(Ordering::Relaxed), 3);
    timeline.signal(3);
}

#[test]
fn an_interrupt_that_is_off_while_nobody_waits_wakes_whoever_begins() {
    let (turn_on, turned_on) = mpsc::channel();
    let timeline = Timeline::builder("ring").on_first_waiter(move || turn_on.send(()).unwrap_or(())).build();
    let fences: Vec<Fence> = (0..100).map(|_| timeline.next_point()).collect();
    // The device is always done; its driver looks at it only when it is told that somebody cares.
    let driver = thread::spawn(move || {
        for _ in turned_on.iter().take(100) {
            timeline.signal(timeline.completed() + 1);
        }
        timeline
    });
    assert!(fences.iter().all(|fence| fence.wait() == Ok(())));
    assert!(driver.join().unwrap().is_idle());
}

#[test]
fn the_moment_of_a_signal_is_kept_for_all_points_that_it_completed() {
    let timeline = Timeline::builder("ring").timestamps(4).build();
    let fences: Vec<Fence> = (0..4).map(|_| timeline.next_point()).collect();
    let before = Instant::now();
    timeline.signal(2);
    let between = Instant::now();
    timeline.fail(3, FenceError::Cancelled);
    let after = Instant::now();
    let at = |index: usize| match fences[index].signal_time() {
        SignalTime::At(at) => at,
        other => panic!("{other:?}"),
    };
    assert!(before <= at(0) && at(0) == at(1) && at(1) <= between);
    assert!(between <= at(2) && at(2) <= after);
    assert_eq!(fences[3].signal_time(), SignalTime::Outstanding);
}

#[test]
fn of_points_older_than_the_history_it_is_known_that_they_are_no_later() {
    let timeline = Timeline::builder("ring").timestamps(2).build();
    let fences: Vec<Fence> = (0..6).map(|_| timeline.next_point()).collect();
    for seqno in [2, 3, 4, 6] {
        timeline.signal(seqno);
    }
    let times: Vec<SignalTime> = fences.iter().map(Fence::signal_time).collect();
    let SignalTime::At(oldest) = times[3] else { panic!("{times:?}") };
    assert!(times[..3].iter().all(|time| *time == SignalTime::NoLaterThan(oldest)), "{times:?}");
    assert_eq!(times[4], times[5]);
    assert!(matches!(times[5], SignalTime::At(last) if last >= oldest));
}

#[test]
fn without_a_history_nothing_is_known() {
    let timeline = Timeline::new("ring");
    let fence = timeline.next_point();
    assert_eq!(fence.signal_time(), SignalTime::Outstanding);
    timeline.signal(1);
    assert_eq!(fence.signal_time(), SignalTime::Unrecorded);
    assert_eq!(Fence::signaled().signal_time(), SignalTime::Unrecorded);
}
