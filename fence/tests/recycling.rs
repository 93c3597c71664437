//! Timelines that come and go: their places are used again, and nobody takes a former owner for the next.
#![cfg(not(any(loom, shuttle)))]

use devpagemap_fence::{Fence, FenceError, HangAction, SignalTime, Timeline};
use std::mem::{needs_drop, size_of};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Places are counted for the whole process, so these tests take turns.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// So many timelines that every place that was vacant has a new owner.
fn new_owners(name: &'static str) -> Vec<Timeline> {
    let places = Timeline::places();
    let mut timelines = Vec::new();
    while Timeline::places() == places {
        timelines.push(Timeline::new(name));
    }
    timelines
}

fn abandoned(timeline: &str) -> Result<(), FenceError> {
    Err(FenceError::Abandoned { timeline: timeline.into() })
}

#[test]
fn a_fence_is_three_words_and_its_copies_cost_nothing() {
    assert_eq!(size_of::<Fence>(), 24);
    assert!(!needs_drop::<Fence>());
}

#[test]
fn a_million_timelines_one_after_the_other_live_in_a_few_places_and_each_fence_knows_how_it_ended() {
    const ABANDONED: usize = 4096;
    let _alone = alone();
    let before = Timeline::places();
    let mut fences = Vec::new();
    for index in 0..1_000_000 {
        match index % ABANDONED {
            0 => fences.push(Timeline::new(format!("job {index}")).next_point()),
            _ => {
                let timeline = Timeline::new("job");
                fences.push(timeline.next_point());
                timeline.signal(1);
            }
        }
    }
    assert!(Timeline::places() <= before + 1, "{} places more", Timeline::places() - before);
    for (index, fence) in fences.iter().enumerate() {
        let expected = if index % ABANDONED == 0 { abandoned(&format!("job {index}")) } else { Ok(()) };
        assert_eq!((fence.seqno(), fence.status()), (1, Some(expected)));
    }
    assert!(fences.is_sorted_by_key(Fence::timeline_id), "ids are ordered by age");
}

#[test]
fn there_are_as_many_places_as_timelines_at_once() {
    let _alone = alone();
    drop(new_owners("warm up"));
    let before = Timeline::places();
    for _ in 0..10 {
        let timelines: Vec<Timeline> = (0..before).map(|_| Timeline::new("ring")).collect();
        assert_eq!(timelines.len(), before);
    }
    assert_eq!(Timeline::places(), before);
}

#[test]
fn a_fence_of_a_former_owner_has_nothing_to_do_with_the_next() {
    let _alone = alone();
    let former = Timeline::builder("former").timestamps(8).build();
    let fences: Vec<Fence> = (0..3).map(|_| former.next_point()).collect();
    former.signal(1);
    former.fail(2, FenceError::DeviceLost);
    drop(former);
    let owners = new_owners("next");
    let points: Vec<Fence> = owners.iter().map(Timeline::next_point).collect();
    let outcomes = [Ok(()), Err(FenceError::DeviceLost), abandoned("former")];
    for (fence, outcome) in fences.iter().zip(outcomes) {
        assert!(fence.is_signaled());
        assert_eq!((fence.wait(), fence.status()), (outcome.clone(), Some(outcome)));
        assert!(fence.on_signal(|_| ()).is_err());
        fence.set_deadline(Instant::now());
        assert_eq!(&*fence.timeline_name(), "a timeline that is gone");
        assert_eq!(fence.signal_time(), SignalTime::Unrecorded);
    }
    assert_eq!(fences.iter().map(Fence::seqno).collect::<Vec<_>>(), [1, 2, 3]);
    for (owner, point) in owners.iter().zip(&points) {
        assert_eq!((point.seqno(), owner.completed(), owner.allocated()), (1, 0, 1));
        assert!(owner.id() > fences[0].timeline_id() && !point.is_signaled());
        assert_eq!((&*point.timeline_name(), owner.earliest_deadline()), ("next", None));
        owner.signal(1);
        assert_eq!(point.status(), Some(Ok(())));
    }
}

#[test]
fn the_handle_of_a_former_owners_callback_cancels_nothing_of_the_next() {
    let _alone = alone();
    let former = Timeline::new("former");
    let stale = former.next_point().on_signal(|_| ()).map_err(drop).unwrap();
    drop(former);
    let runs = Arc::new(AtomicU32::new(0));
    let owners = new_owners("next");
    for owner in &owners {
        let theirs = runs.clone();
        let count = move |_| {
            theirs.fetch_add(1, Ordering::Relaxed);
        };
        assert!(owner.next_point().on_signal(count).is_ok());
    }
    assert!(!stale.cancel());
    let count = owners.len();
    owners.iter().for_each(|owner| owner.signal(1));
    assert_eq!(runs.load(Ordering::Relaxed) as usize, count);
}

#[test]
fn a_place_is_not_used_again_while_callbacks_of_its_former_owner_run() {
    let _alone = alone();
    drop(new_owners("warm up"));
    let fail = |_: &_| HangAction::Fail(FenceError::DeviceLost);
    let timeline = Timeline::builder("former").timeout(Duration::ZERO, fail).build();
    let fences = [timeline.next_point(), timeline.next_point()];
    let look = timeline.watched().upgrade().expect("the timeline is there");
    let has_run = Arc::new(AtomicBool::new(false));
    let last = has_run.clone();
    let first = fences[0].on_signal(move |outcome| {
        assert_eq!(outcome, Err(FenceError::DeviceLost));
        drop(timeline);
        for owner in &new_owners("next") {
            let called = Arc::new(AtomicBool::new(false));
            let theirs = called.clone();
            let hung = owner.next_point().on_signal(move |_| theirs.store(true, Ordering::Relaxed));
            assert!(hung.is_ok());
            // From another thread: in this one it would wait for the callback that is running.
            thread::scope(|scope| drop(scope.spawn(|| owner.signal(1))));
            assert!(called.load(Ordering::Relaxed), "left to the callbacks of a former owner");
        }
    });
    let second = fences[1].on_signal(move |outcome| {
        assert_eq!(outcome, abandoned("former"));
        last.store(true, Ordering::Relaxed);
    });
    assert!(first.is_ok() && second.is_ok());
    look.check(Instant::now());
    assert!(has_run.load(Ordering::Relaxed));
    let places = Timeline::places();
    let _owners: Vec<Timeline> = (0..places).map(|_| Timeline::new("after")).collect();
    assert_eq!(Timeline::places(), places, "the place is vacant again");
}

#[test]
fn a_look_of_the_watchdog_that_comes_late_leaves_the_next_owner_alone() {
    let _alone = alone();
    let hour = Duration::from_secs(3600);
    let fail = |_: &_| HangAction::FailAll(FenceError::DeviceLost);
    let former = Timeline::builder("former").timeout(hour, fail).build();
    former.next_point();
    let look = former.watched().upgrade().expect("the timeline is there");
    drop(former);
    let owners = new_owners("next");
    let points: Vec<Fence> = owners.iter().map(Timeline::next_point).collect();
    assert_eq!(look.check(Instant::now() + hour * 2), None);
    assert!(!points.iter().any(Fence::is_signaled));
}

#[test]
fn an_owner_that_leaves_while_its_hang_is_decided_on_does_no_harm_to_the_next() {
    let _alone = alone();
    let former: Arc<Mutex<Option<Timeline>>> = Arc::default();
    let owners: Arc<Mutex<Vec<Timeline>>> = Arc::default();
    let (theirs, next) = (former.clone(), owners.clone());
    let leave = move |_: &_| {
        drop(theirs.lock().unwrap().take());
        *next.lock().unwrap() = new_owners("next");
        next.lock().unwrap().iter().for_each(|owner| drop(owner.next_point().on_signal(|_| ())));
        HangAction::FailAll(FenceError::DeviceLost)
    };
    let timeline = Timeline::builder("former").timeout(Duration::ZERO, leave).build();
    let fence = timeline.next_point();
    let look = timeline.watched().upgrade().expect("the timeline is there");
    *former.lock().unwrap() = Some(timeline);
    assert_eq!(look.check(Instant::now()), None);
    assert_eq!(fence.status(), Some(abandoned("former")));
    assert!(owners.lock().unwrap().iter().all(|owner| owner.completed() == 0));
    let next = std::mem::take(&mut *owners.lock().unwrap());
    drop(next);
}

#[test]
fn hooks_go_with_their_owner_however_many_fences_are_left() {
    let _alone = alone();
    let witness = Arc::new(());
    let (a, b, c) = (witness.clone(), witness.clone(), witness.clone());
    let timeline = Timeline::builder("ring")
        .timeout(Duration::from_secs(1), move |_| {
            let _kept = &a;
            HangAction::Extend
        })
        .on_deadline(move |_| drop(b.clone()))
        .on_first_waiter(move || drop(c.clone()))
        .build();
    let fence = timeline.next_point();
    assert_eq!(Arc::strong_count(&witness), 4);
    drop(timeline);
    assert_eq!(Arc::strong_count(&witness), 1);
    assert_eq!(fence.status(), Some(abandoned("ring")));
}

#[test]
fn owners_that_come_and_go_in_haste_forget_no_sleeper_and_no_callback() {
    const ROUNDS: usize = 2000;
    let _alone = alone();
    let before = Timeline::places();
    let called = Arc::new(AtomicU32::new(0));
    let (fences, inbox) = std::sync::mpsc::channel::<Fence>();
    let waiter = thread::spawn(move || inbox.iter().map(|fence| fence.wait()).collect::<Vec<_>>());
    for round in 0..ROUNDS {
        let timeline = Timeline::new("hasty");
        let fence = timeline.next_point();
        let theirs = called.clone();
        let hung = fence.on_signal(move |_| {
            theirs.fetch_add(1, Ordering::Relaxed);
        });
        assert!(hung.is_ok());
        fences.send(fence).expect("the waiter listens");
        if round % 2 == 0 {
            timeline.signal(1);
        }
    }
    drop(fences);
    for (round, outcome) in waiter.join().unwrap().into_iter().enumerate() {
        let expected = if round % 2 == 0 { Ok(()) } else { abandoned("hasty") };
        // The waiter may ask a thousand failures later, when not all of them are told apart any more.
        assert!(outcome == expected || outcome == Err(FenceError::Outdated), "{round}: {outcome:?}");
    }
    assert_eq!(called.load(Ordering::Relaxed) as usize, ROUNDS);
    assert!(Timeline::places() <= before + 2);
}
