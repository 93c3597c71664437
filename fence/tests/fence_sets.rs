//! Sets of fences against a plain model, and their waits.
#![cfg(not(any(loom, shuttle)))]

use devpagemap_fence::{Fence, FenceError, FenceSet, Timeline, WaitError};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

fn points(timeline: &Timeline, count: usize) -> Vec<Fence> {
    (0..count).map(|_| timeline.next_point()).collect()
}

#[test]
fn the_same_fence_twice_is_one_fence() {
    let timeline = Timeline::new("ring");
    let fence = timeline.next_point();
    let set = FenceSet::from_iter([fence.clone(), fence]);
    assert_eq!(set.len(), 1);
}

#[test]
fn of_one_timeline_the_latest_stays_in_whatever_order() {
    let timeline = Timeline::new("ring");
    let fences = points(&timeline, 3);
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let set: FenceSet = order.iter().map(|&index| fences[index].clone()).collect();
        assert_eq!(set.iter().map(Fence::seqno).collect::<Vec<_>>(), [3]);
    }
}

#[test]
fn the_stub_leaves_no_trace() {
    let set = FenceSet::from(Fence::signaled());
    assert!(set.is_empty() && set.is_signaled());
    assert_eq!(set.wait(), Ok(()));
    assert!(set.on_signaled(|| ()).is_err());
}

#[test]
fn a_set_is_signalled_when_all_are() {
    let timelines = [Timeline::new("a"), Timeline::new("b")];
    let mut set: FenceSet = timelines.iter().map(Timeline::next_point).collect();
    timelines[0].signal(1);
    assert!(!set.is_signaled());
    set.prune();
    assert_eq!(set.len(), 1);
    timelines[1].signal(1);
    assert!(set.is_signaled());
    set.prune();
    assert!(set.is_empty());
}

#[test]
fn a_wait_lasts_until_the_last_and_reports_the_first_error() {
    let timelines = [Timeline::new("a"), Timeline::new("b"), Timeline::new("c")];
    let set: FenceSet = timelines.iter().map(Timeline::next_point).collect();
    assert_eq!(set.first_error(), None);
    let waited = set.clone();
    let waiter = thread::spawn(move || {
        let outcome = waited.wait();
        assert!(waited.is_signaled());
        outcome
    });
    timelines[2].fail(1, FenceError::DeviceLost);
    timelines[1].fail(1, FenceError::Cancelled);
    timelines[0].signal(1);
    assert_eq!(waiter.join().unwrap(), Err(FenceError::Cancelled));
    assert_eq!(set.first_error(), Some(FenceError::Cancelled));
}

#[test]
fn a_timed_wait_names_the_timeline_that_is_late() {
    let timelines = [Timeline::new("early"), Timeline::new("late")];
    let set: FenceSet = timelines.iter().map(Timeline::next_point).collect();
    timelines[0].fail(1, FenceError::Cancelled);
    let late = set.wait_timeout(Duration::from_millis(1)).unwrap_err();
    assert!(matches!(&late, WaitError::TimedOut { timeline, .. } if **timeline == *"late"), "{late}");
    timelines[1].signal(1);
    assert_eq!(set.wait_timeout(Duration::ZERO), Err(WaitError::Failed(FenceError::Cancelled)));
}

#[test]
fn the_callback_of_a_set_runs_once_after_the_last() {
    let timelines = [Timeline::new("a"), Timeline::new("b"), Timeline::new("c")];
    let set: FenceSet = timelines.iter().map(Timeline::next_point).collect();
    timelines[0].signal(1);
    let runs = Arc::new(AtomicU32::new(0));
    let theirs = runs.clone();
    let hung = set.on_signaled(move || {
        theirs.fetch_add(1, Ordering::Relaxed);
    });
    assert!(hung.is_ok());
    timelines[2].fail(1, FenceError::Cancelled);
    assert_eq!(runs.load(Ordering::Relaxed), 0);
    timelines[1].signal(1);
    assert_eq!(runs.load(Ordering::Relaxed), 1);
}

#[test]
fn what_is_done_when_a_set_is_signalled_is_done_at_once_if_it_is() {
    let timeline = Timeline::new("ring");
    let set = FenceSet::from(timeline.next_point());
    let runs = Arc::new(AtomicU32::new(0));
    let count_one = || {
        let runs = runs.clone();
        move || {
            runs.fetch_add(1, Ordering::Relaxed);
        }
    };
    set.when_signaled(count_one());
    assert_eq!(runs.load(Ordering::Relaxed), 0);
    timeline.signal(1);
    assert_eq!(runs.load(Ordering::Relaxed), 1);
    set.when_signaled(count_one());
    assert_eq!(runs.load(Ordering::Relaxed), 2);
}

#[test]
fn a_timeline_can_be_taken_out() {
    let (a, b) = (Timeline::new("a"), Timeline::new("b"));
    let mut set = FenceSet::from_iter([a.next_point(), b.next_point()]);
    assert_eq!(set.remove(a.id()).map(|fence| fence.seqno()), Some(1));
    assert!(set.remove(a.id()).is_none() && set.get(a.id()).is_none());
    assert_eq!(set.get(b.id()).map(Fence::timeline_name).as_deref(), Some("b"));
}

const TIMELINES: usize = 6;
const POINTS: usize = 8;

type Model = BTreeMap<usize, u64>;

#[derive(Clone, Debug)]
enum Step {
    Add { set: usize, timeline: usize, point: usize },
    Merge { from: usize, into: usize },
    Remove { set: usize, timeline: usize },
    Signal { timeline: usize, point: usize },
    Prune { set: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let add = (0..3usize, 0..TIMELINES, 0..POINTS);
    prop_oneof![
        6 => add.prop_map(|(set, timeline, point)| Step::Add { set, timeline, point }),
        2 => (0..3usize, 0..3usize).prop_map(|(from, into)| Step::Merge { from, into }),
        1 => (0..3usize, 0..TIMELINES).prop_map(|(set, timeline)| Step::Remove { set, timeline }),
        1 => (0..TIMELINES, 0..POINTS).prop_map(|(timeline, point)| Step::Signal { timeline, point }),
        1 => (0..3usize).prop_map(|set| Step::Prune { set }),
    ]
}

proptest! {
    #[test]
    fn sets_behave_like_maps_from_timeline_to_latest_point(steps in prop::collection::vec(step(), 1..80)) {
        let timelines: Vec<Timeline> = (0..TIMELINES).map(|_| Timeline::new("ring")).collect();
        let fences: Vec<Vec<Fence>> = timelines.iter().map(|timeline| points(timeline, POINTS)).collect();
        let mut sets: [FenceSet; 3] = Default::default();
        let mut models: [Model; 3] = Default::default();
        for step in steps {
            match step {
                Step::Add { set, timeline, point } => {
                    sets[set].add(fences[timeline][point].clone());
                    let latest = models[set].entry(timeline).or_default();
                    *latest = (*latest).max(point as u64 + 1);
                }
                Step::Merge { from, into } => {
                    let other = sets[from].clone();
                    sets[into].merge(&other);
                    for (timeline, point) in models[from].clone() {
                        let latest = models[into].entry(timeline).or_default();
                        *latest = (*latest).max(point);
                    }
                }
                Step::Remove { set, timeline } => {
                    let removed = sets[set].remove(timelines[timeline].id());
                    prop_assert_eq!(removed.map(|fence| fence.seqno()), models[set].remove(&timeline));
                }
                Step::Signal { timeline, point } => timelines[timeline].signal(point as u64 + 1),
                Step::Prune { set } => {
                    sets[set].prune();
                    models[set].retain(|timeline, point| timelines[*timeline].completed() < *point);
                }
            }
            for (set, model) in sets.iter().zip(&models) {
                let seen: Vec<_> = set.iter().map(|fence| (fence.timeline_id(), fence.seqno())).collect();
                let expected: Vec<_> = model.iter().map(|(timeline, point)| (timelines[*timeline].id(), *point)).collect();
                prop_assert_eq!(seen, expected);
                let done = model.iter().all(|(timeline, point)| timelines[*timeline].completed() >= *point);
                prop_assert_eq!(set.is_signaled(), done);
            }
        }
    }
}
