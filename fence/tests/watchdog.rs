//! The watchdog and the timeouts of timelines.
#![cfg(not(any(loom, shuttle)))]

use devpagemap_fence::{FenceError, Hang, HangAction, HangHook, Timeline, Watchdog, Watched};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_millis(10);

fn fail_with_its_own_error() -> HangHook {
    Box::new(|hang| HangAction::Fail(hang.error()))
}

fn watched(timeline: &Timeline) -> Arc<dyn Watched> {
    timeline.watched().upgrade().expect("the timeline is there")
}

#[test]
fn a_point_that_hangs_fails_and_its_waiter_wakes() {
    let watchdog = Watchdog::start();
    let timeline = Timeline::builder("stuck").timeout(SHORT, fail_with_its_own_error()).build();
    watchdog.watch(timeline.watched());
    let fence = timeline.next_point();
    match fence.wait() {
        Err(FenceError::TimedOut { timeline, seqno: 1, waited_ns }) => {
            assert_eq!(&*timeline, "stuck");
            assert!(u128::from(waited_ns) >= SHORT.as_nanos());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_point_published_long_after_the_last_check_is_noticed_too() {
    let watchdog = Watchdog::start();
    let timeline = Timeline::builder("stuck").timeout(SHORT, fail_with_its_own_error()).build();
    watchdog.watch(timeline.watched());
    for _ in 0..3 {
        std::thread::sleep(SHORT * 2);
        assert!(matches!(timeline.next_point().wait(), Err(FenceError::TimedOut { .. })));
    }
}

#[test]
fn time_counts_from_when_a_point_became_the_oldest() {
    let hour = Duration::from_secs(3600);
    let timeline = Timeline::builder("slow").timeout(hour, fail_with_its_own_error()).build();
    let watched = watched(&timeline);
    let before = Instant::now();
    let (first, second) = (timeline.next_point(), timeline.next_point());
    let first_due = watched.check(Instant::now()).unwrap();
    assert!(first_due >= before + hour);
    std::thread::sleep(SHORT);
    timeline.signal(first.seqno());
    assert_eq!(watched.check(first_due).filter(|next| *next <= first_due), None);
    assert!(!second.is_signaled(), "the second point has its hour from the first one's completion");
    let second_due = watched.check(first_due).unwrap();
    watched.check(second_due);
    assert!(matches!(second.status(), Some(Err(FenceError::TimedOut { seqno: 2, .. }))));
}

#[test]
fn the_hook_may_give_more_time_and_is_told_how_long_it_took_in_all() {
    let hour = Duration::from_secs(3600);
    let hangs: Arc<Mutex<Vec<Hang>>> = Arc::default();
    let told = hangs.clone();
    let hook: HangHook = Box::new(move |hang| {
        told.lock().unwrap().push(hang.clone());
        match told.lock().unwrap().len() {
            1 => HangAction::Extend,
            _ => HangAction::Fail(FenceError::Cancelled),
        }
    });
    let timeline = Timeline::builder("slow").timeout(hour, hook).build();
    let fence = timeline.next_point();
    let watched = watched(&timeline);
    let first_due = watched.check(Instant::now()).unwrap();
    let second_due = watched.check(first_due).unwrap();
    assert!(!fence.is_signaled() && second_due >= first_due + hour);
    watched.check(second_due);
    assert_eq!(fence.status(), Some(Err(FenceError::Cancelled)));
    let hangs = hangs.lock().unwrap();
    assert_eq!((hangs.len(), hangs[0].seqno, &*hangs[0].timeline), (2, 1, "slow"));
    assert!(hangs[0].waited >= hour && hangs[1].waited >= hour * 2);
}

#[test]
fn a_point_that_makes_progress_is_left_alone() {
    let hook: HangHook = Box::new(|hang| panic!("{hang:?} does not hang"));
    let hour = Duration::from_secs(3600);
    let timeline = Timeline::builder("busy").timeout(hour, hook).build();
    let watched = watched(&timeline);
    let _outstanding: Vec<_> = (0..10).map(|_| timeline.next_point()).collect();
    for seqno in 1..=10 {
        assert!(watched.check(Instant::now() + hour / 2).is_some());
        timeline.signal(seqno);
    }
    assert!(timeline.is_idle());
    assert!(watched.check(Instant::now() + hour * 10).is_some());
}

#[test]
fn failing_all_spares_the_points_that_come_after_the_hang() {
    let hour = Duration::from_secs(3600);
    let timeline = Arc::new_cyclic(|me: &std::sync::Weak<Timeline>| {
        let me = me.clone();
        let hook: HangHook = Box::new(move |_| {
            me.upgrade().expect("the timeline is there").next_point();
            HangAction::FailAll(FenceError::DeviceLost)
        });
        Timeline::builder("dead").timeout(hour, hook).build()
    });
    let fences = [timeline.next_point(), timeline.next_point()];
    watched(&timeline).check(Instant::now() + hour * 2);
    assert!(fences.iter().all(|fence| fence.status() == Some(Err(FenceError::DeviceLost))));
    assert_eq!((timeline.completed(), timeline.allocated()), (2, 3));
}

#[test]
fn failing_one_leaves_the_next_its_own_timeout() {
    let hour = Duration::from_secs(3600);
    let timeline = Timeline::builder("slow").timeout(hour, fail_with_its_own_error()).build();
    let fences = [timeline.next_point(), timeline.next_point()];
    let due = watched(&timeline).check(Instant::now() + hour * 2);
    assert!(fences[0].is_signaled() && !fences[1].is_signaled());
    assert!(due.is_some());
}

#[test]
fn a_hook_that_panics_still_lets_the_fences_signal() {
    let watchdog = Watchdog::start();
    let timeline = Timeline::builder("stuck").timeout(SHORT, |_| panic!("broken hook")).build();
    watchdog.watch(timeline.watched());
    let fence = timeline.next_point();
    assert_eq!(fence.wait(), Err(FenceError::failed("the hang hook panicked")));
}

/// Reports each check, and never has anything to do.
struct Idle(Mutex<mpsc::Sender<()>>);

impl Watched for Idle {
    fn check(&self, _now: Instant) -> Option<Instant> {
        self.0.lock().unwrap().send(()).expect("the test listens");
        None
    }
}

#[test]
fn what_has_no_deadline_is_looked_at_only_when_poked() {
    let (sender, checks) = mpsc::channel();
    let idle: Arc<dyn Watched> = Arc::new(Idle(Mutex::new(sender)));
    let watchdog = Watchdog::start();
    watchdog.watch(Arc::downgrade(&idle));
    checks.recv().unwrap();
    assert!(checks.recv_timeout(SHORT * 3).is_err());
    watchdog.poke();
    checks.recv().unwrap();
    drop(watchdog);
    assert!(checks.try_recv().is_err());
}

#[test]
fn the_watchdog_lets_go_of_what_is_gone_and_ends_at_once() {
    let watchdog = Watchdog::start();
    let timeline =
        Timeline::builder("ring").timeout(Duration::from_secs(3600), fail_with_its_own_error()).build();
    let weak = timeline.watched();
    watchdog.watch(weak.clone());
    drop(timeline);
    while weak.strong_count() > 0 {
        std::thread::yield_now();
    }
    drop(watchdog);
}

#[test]
fn a_check_that_panics_does_not_end_the_watch() {
    struct Broken;
    impl Watched for Broken {
        fn check(&self, _now: Instant) -> Option<Instant> {
            panic!("broken check")
        }
    }
    let watchdog = Watchdog::start();
    let broken: Arc<dyn Watched> = Arc::new(Broken);
    watchdog.watch(Arc::downgrade(&broken));
    let timeline = Timeline::builder("stuck").timeout(SHORT, fail_with_its_own_error()).build();
    watchdog.watch(timeline.watched());
    assert!(matches!(timeline.next_point().wait(), Err(FenceError::TimedOut { .. })));
}

#[test]
fn a_watchdog_may_be_dropped_by_its_own_thread() {
    struct Owner {
        watchdog: Mutex<Option<Watchdog>>,
        drops: Arc<AtomicU32>,
    }
    impl Watched for Owner {
        fn check(&self, _now: Instant) -> Option<Instant> {
            drop(self.watchdog.lock().unwrap().take());
            self.drops.fetch_add(1, Ordering::Release);
            None
        }
    }
    let drops = Arc::new(AtomicU32::new(0));
    let owner = Arc::new(Owner { watchdog: Mutex::new(None), drops: drops.clone() });
    let watched: Arc<dyn Watched> = owner.clone();
    let watchdog = Watchdog::start();
    {
        let mut slot = owner.watchdog.lock().unwrap();
        watchdog.watch(Arc::downgrade(&watched));
        *slot = Some(watchdog);
    }
    while drops.load(Ordering::Acquire) == 0 {
        std::thread::yield_now();
    }
    assert!(owner.watchdog.lock().unwrap().is_none());
}
