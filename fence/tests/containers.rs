//! One fence for all of a set, and the first of several.
#![cfg(not(any(loom, shuttle)))]

use devpagemap_fence::{AllOf, AnyOf, Fence, FenceError, FenceSet, Timeline, blocking_waits};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

fn timelines<const N: usize>() -> [Timeline; N] {
    std::array::from_fn(|_| Timeline::new("ring"))
}

fn all_of(timelines: &[Timeline]) -> AllOf {
    AllOf::new(timelines.iter().map(Timeline::next_point).collect())
}

fn any_of(timelines: &[Timeline]) -> AnyOf {
    AnyOf::new(timelines.iter().map(Timeline::next_point)).expect("there is a timeline")
}

#[test]
fn the_fence_of_all_signals_with_the_last_member_in_whatever_order() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let timelines = timelines::<3>();
        let all = all_of(&timelines);
        for (signalled, index) in order.into_iter().enumerate() {
            assert!(!all.fence().is_signaled(), "after {signalled} of 3");
            timelines[index].signal(1);
        }
        assert_eq!(all.fence().status(), Some(Ok(())));
    }
}

#[test]
fn a_thread_can_wait_for_the_fence_of_all() {
    let timelines = timelines::<3>();
    let all = all_of(&timelines);
    let fence = all.fence().clone();
    let members = all.members().clone();
    let waiter = thread::spawn(move || {
        let outcome = fence.wait();
        assert!(members.is_signaled());
        outcome
    });
    let signallers = timelines.map(|timeline| thread::spawn(move || timeline.signal(1)));
    signallers.into_iter().for_each(|signaller| signaller.join().unwrap());
    assert_eq!(waiter.join().unwrap(), Ok(()));
}

#[test]
fn all_of_nothing_has_signalled() {
    let all = AllOf::new(FenceSet::new());
    assert_eq!(all.fence().status(), Some(Ok(())));
    assert_eq!(AllOf::new(Fence::signaled().into()).fence().status(), Some(Ok(())));
}

#[test]
fn all_of_one_is_that_one() {
    let [done, open] = timelines::<2>();
    let (first, second) = (done.next_point(), open.next_point());
    let single = AllOf::new(first.clone().into());
    assert_eq!(single.fence().timeline_id(), done.id());
    done.signal(1);
    let last = AllOf::new(FenceSet::from_iter([first, second]));
    assert_eq!(last.fence().timeline_id(), open.id());
    assert_eq!(last.members().len(), 2);
    open.signal(1);
}

#[test]
fn an_error_waits_for_the_others_and_the_first_in_set_order_is_given() {
    let timelines = timelines::<3>();
    let all = all_of(&timelines);
    timelines[2].fail(1, FenceError::DeviceLost);
    timelines[0].fail(1, FenceError::Cancelled);
    assert_eq!(all.fence().status(), None, "one is still running");
    timelines[1].signal(1);
    assert_eq!(all.fence().status(), Some(Err(FenceError::Cancelled)));
    assert_eq!(all.members().wait(), Err(FenceError::Cancelled));
}

#[test]
fn a_member_that_failed_before_fails_the_fence() {
    let [failed, open] = timelines::<2>();
    let fences = [failed.next_point(), open.next_point()];
    failed.fail(1, FenceError::DeviceLost);
    let all = AllOf::new(FenceSet::from_iter(fences));
    assert!(!all.fence().is_signaled());
    open.signal(1);
    assert_eq!(all.fence().status(), Some(Err(FenceError::DeviceLost)));
}

#[test]
fn an_owner_that_goes_away_fails_the_fence_of_all() {
    let [kept, abandoned] = timelines::<2>();
    let all = AllOf::new(FenceSet::from_iter([kept.next_point(), abandoned.next_point()]));
    drop(abandoned);
    kept.signal(1);
    assert_eq!(all.fence().status(), Some(Err(FenceError::Abandoned { timeline: "ring".into() })));
}

#[test]
fn a_container_goes_into_another_as_its_members() {
    let timelines = timelines::<4>();
    let (left, right) = (all_of(&timelines[..2]), all_of(&timelines[1..]));
    let mut set = FenceSet::from(left);
    set.merge(&right.into());
    let seqnos: Vec<_> = set.iter().map(|fence| (fence.timeline_id(), fence.seqno())).collect();
    let expected: Vec<_> = timelines.iter().map(|timeline| (timeline.id(), timeline.allocated())).collect();
    assert_eq!(seqnos, expected);
    timelines.iter().for_each(|timeline| timeline.signal(timeline.allocated()));
}

#[test]
fn the_fence_outlives_its_container_and_the_container_its_fence() {
    let timelines = timelines::<2>();
    let fence = all_of(&timelines).fence().clone();
    timelines.iter().for_each(|timeline| timeline.signal(1));
    assert_eq!(fence.status(), Some(Ok(())));
    drop(all_of(&timelines));
    timelines.iter().for_each(|timeline| timeline.signal(2));
}

#[test]
fn a_million_fences_of_all_that_wait_for_each_other_neither_nest_nor_overflow() {
    const LENGTH: u64 = 1_000_000;
    let (first, other) = (Timeline::new("first"), Timeline::new("other"));
    let gate = other.next_point();
    let mut last = first.next_point();
    for _ in 0..LENGTH {
        let all = AllOf::new(FenceSet::from_iter([last, gate.clone()]));
        assert_eq!(all.members().len(), 2);
        last = all.fence().clone();
    }
    let runs = Arc::new(AtomicU64::new(0));
    let theirs = runs.clone();
    let hung = last.on_signal(move |_| {
        theirs.fetch_add(1, Ordering::Relaxed);
    });
    assert!(hung.is_ok());
    first.fail(1, FenceError::DeviceLost);
    assert!(!last.is_signaled());
    other.signal(1);
    assert_eq!(last.status(), Some(Err(FenceError::DeviceLost)));
    assert_eq!(runs.load(Ordering::Relaxed), 1);
}

#[test]
fn threads_that_signal_the_members_of_one_container_end_it_once() {
    for _ in 0..2000 {
        let timelines = timelines::<4>();
        let members: FenceSet = timelines.iter().map(Timeline::next_point).collect();
        let signallers = timelines.map(|timeline| thread::spawn(move || timeline.signal(1)));
        let all = AllOf::new(members.clone());
        let runs = Arc::new(AtomicU32::new(0));
        let theirs = runs.clone();
        let called = move |outcome| {
            assert_eq!(outcome, Ok(()));
            assert!(members.is_signaled());
            theirs.fetch_add(1, Ordering::Relaxed);
        };
        all.fence().on_signal(called).err().into_iter().for_each(|called| called(Ok(())));
        signallers.into_iter().for_each(|signaller| signaller.join().unwrap());
        assert_eq!(all.fence().wait(), Ok(()));
        assert_eq!(runs.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn there_is_no_first_of_nothing() {
    assert!(AnyOf::new([]).is_none());
}

#[test]
fn the_first_of_several_is_named_with_its_outcome() {
    let timelines = timelines::<3>();
    let any = any_of(&timelines);
    assert!(!any.is_signaled() && any.first().is_none());
    timelines[1].fail(1, FenceError::DeviceLost);
    let first = any.wait();
    assert_eq!(first.fence.timeline_id(), timelines[1].id());
    assert_eq!(first.outcome, Err(FenceError::DeviceLost));
}

#[test]
fn of_two_that_are_complete_the_one_on_the_older_timeline_is_first() {
    let timelines = timelines::<3>();
    let any = any_of(&timelines);
    timelines[2].signal(1);
    timelines[1].signal(1);
    assert_eq!(any.wait().fence.timeline_id(), timelines[1].id());
}

#[test]
fn of_one_timeline_the_earliest_point_can_be_first() {
    let [timeline] = timelines();
    let fences: Vec<Fence> = (0..3).map(|_| timeline.next_point()).collect();
    let any = AnyOf::new([2, 0, 1].map(|index| fences[index].clone())).unwrap();
    assert_eq!(any.fences().iter().map(Fence::seqno).collect::<Vec<_>>(), [1]);
    timeline.signal(1);
    assert!(any.is_signaled());
}

#[test]
fn a_signalled_member_makes_a_wait_return_at_once() {
    let [timeline] = timelines();
    let any = AnyOf::new([timeline.next_point(), Fence::signaled()]).unwrap();
    let waits = blocking_waits();
    assert_eq!(any.wait().outcome, Ok(()));
    assert!(any.wait_timeout(Duration::ZERO).is_some());
    assert_eq!(blocking_waits(), waits);
}

#[test]
fn whoever_wants_the_first_success_goes_on_without_the_failures() {
    let timelines = timelines::<3>();
    let mut any = any_of(&timelines);
    timelines[0].fail(1, FenceError::Cancelled);
    timelines[2].signal(1);
    let success = loop {
        let first = any.wait();
        match first.outcome {
            Ok(()) => break first.fence,
            Err(_) => any = any.without(&first.fence).expect("one of them succeeds"),
        }
    };
    assert_eq!(success.timeline_id(), timelines[2].id());
    assert!(AnyOf::new([success.clone()]).unwrap().without(&success).is_none());
}

#[test]
fn a_thread_that_waits_for_any_is_woken_by_the_first() {
    let timelines = timelines::<4>();
    let any = any_of(&timelines);
    let waiter = thread::spawn(move || {
        let before = blocking_waits();
        let first = any.wait();
        (first.fence.timeline_id(), blocking_waits() - before)
    });
    thread::sleep(Duration::from_millis(5));
    timelines[3].signal(1);
    let (first, waits) = waiter.join().unwrap();
    assert_eq!(first, timelines[3].id());
    assert!(waits <= 1);
}

#[test]
fn a_timed_wait_for_any_gives_up_and_leaves_nothing_behind() {
    let timelines = timelines::<2>();
    let any = any_of(&timelines);
    assert!(any.wait_timeout(Duration::ZERO).is_none());
    assert!(any.wait_timeout(Duration::from_millis(2)).is_none());
    timelines[1].signal(1);
    assert_eq!(any.wait_timeout(Duration::from_secs(3600)).unwrap().fence.timeline_id(), timelines[1].id());
    assert_eq!(any.wait_timeout(Duration::MAX).unwrap().fence.timeline_id(), timelines[1].id());
}

#[test]
fn no_first_is_missed_when_waits_race_with_signals() {
    for round in 0..2000 {
        let timelines = timelines::<3>();
        let any = any_of(&timelines);
        let signallers = timelines.map(|timeline| thread::spawn(move || timeline.signal(1)));
        let first = match round % 2 {
            0 => Some(any.wait()),
            _ => any.wait_timeout(Duration::from_secs(3600)),
        };
        assert_eq!(first.map(|first| first.outcome), Some(Ok(())));
        signallers.into_iter().for_each(|signaller| signaller.join().unwrap());
    }
}
