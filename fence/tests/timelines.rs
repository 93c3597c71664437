//! Points on timelines: signalling, waiting, callbacks, errors.
#![cfg(not(any(loom, shuttle)))]

use devpagemap_fence::{Fence, FenceError, Timeline, WaitError};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

/// Who was called back, and with what.
type Log<N> = Arc<Mutex<Vec<(N, Result<(), FenceError>)>>>;

/// A callback that notes its name and outcome.
fn note<N: Send + 'static>(
    log: &Log<N>,
    name: N,
) -> impl FnOnce(Result<(), FenceError>) + Send + use<N> + 'static {
    let log = log.clone();
    move |outcome| log.lock().unwrap().push((name, outcome))
}

fn log<N>() -> Log<N> {
    Arc::default()
}

#[test]
fn a_new_point_is_outstanding_until_it_is_signalled_and_signalling_again_is_harmless() {
    let timeline = Timeline::new("ring");
    let fence = timeline.next_point();
    assert!(!fence.is_signaled());
    assert_eq!((timeline.completed(), timeline.allocated(), timeline.is_idle()), (0, 1, false));
    for _ in 0..2 {
        timeline.signal(fence.seqno());
        assert!(fence.is_signaled());
        assert_eq!((timeline.completed(), timeline.allocated(), timeline.is_idle()), (1, 1, true));
    }
}

#[test]
fn one_signal_completes_a_thousand_points() {
    let timeline = Timeline::new("ring");
    let fences: Vec<Fence> = (0..1000).map(|_| timeline.next_point()).collect();
    timeline.signal(999);
    assert!(fences[..999].iter().all(Fence::is_signaled));
    assert!(!fences[999].is_signaled());
    timeline.signal(1000);
}

#[test]
fn an_older_signal_that_comes_late_changes_nothing() {
    let timeline = Timeline::new("ring");
    let (first, second) = (timeline.next_point(), timeline.next_point());
    timeline.signal(2);
    timeline.signal(1);
    timeline.fail(1, FenceError::DeviceLost);
    assert_eq!(timeline.completed(), 2);
    assert_eq!((first.status(), second.status()), (Some(Ok(())), Some(Ok(()))));
}

#[test]
fn a_point_that_was_never_handed_out_cannot_be_signalled() {
    let timeline = Timeline::new("ring");
    let fence = timeline.next_point();
    timeline.signal(u64::MAX);
    timeline.signal(2);
    timeline.fail(2, FenceError::DeviceLost);
    assert_eq!(timeline.completed(), 0);
    assert!(!fence.is_signaled());
    assert!(!timeline.next_point().is_signaled());
    timeline.signal(2);
    assert!(fence.is_signaled());
}

#[test]
fn the_stub_is_always_signalled() {
    let stub = Fence::signaled();
    assert!(stub.is_signaled());
    assert_eq!(stub.status(), Some(Ok(())));
    assert_eq!(stub.wait(), Ok(()));
    assert_eq!(stub.wait_timeout(Duration::ZERO), Ok(()));
    assert!(stub.on_signal(|_| ()).is_err());
}

#[test]
fn a_callback_runs_when_its_point_is_signalled() {
    let timeline = Timeline::new("ring");
    let log = log();
    let fence = timeline.next_point();
    fence.on_signal(note(&log, "mine")).map_err(drop).unwrap();
    assert!(log.lock().unwrap().is_empty());
    timeline.signal(1);
    assert_eq!(*log.lock().unwrap(), [("mine", Ok(()))]);
}

#[test]
fn a_callback_that_comes_too_late_is_handed_back_unrun() {
    let timeline = Timeline::new("ring");
    let log = log();
    let fence = timeline.next_point();
    timeline.signal(1);
    let handed_back = fence.on_signal(note(&log, "mine")).expect_err("the fence has signalled");
    assert!(log.lock().unwrap().is_empty());
    handed_back(Ok(()));
    assert_eq!(log.lock().unwrap().len(), 1);
}

#[test]
fn a_cancelled_callback_does_not_run_and_one_that_ran_cannot_be_cancelled() {
    let timeline = Timeline::new("ring");
    let log = log();
    let fence = timeline.next_point();
    let hang = |name| fence.on_signal(note(&log, name)).map_err(drop).unwrap();
    let (kept, cancelled) = (hang("kept"), hang("cancelled"));
    assert!(cancelled.clone().cancel());
    assert!(!cancelled.cancel());
    timeline.signal(1);
    assert_eq!(*log.lock().unwrap(), [("kept", Ok(()))]);
    assert!(!kept.cancel());
}

#[test]
fn dropping_the_handle_of_a_callback_does_not_cancel_it() {
    let timeline = Timeline::new("ring");
    let log = log();
    drop(timeline.next_point().on_signal(note(&log, ())));
    timeline.signal(1);
    assert_eq!(log.lock().unwrap().len(), 1);
}

#[test]
fn callbacks_run_in_the_order_of_their_points_and_then_of_their_arrival() {
    let timeline = Timeline::new("ring");
    let log = log();
    let fences: Vec<Fence> = (0..3).map(|_| timeline.next_point()).collect();
    for (index, name) in [(2, "3a"), (0, "1a"), (1, "2a"), (0, "1b"), (2, "3b")] {
        fences[index].on_signal(note(&log, name)).map_err(drop).unwrap();
    }
    timeline.signal(2);
    let names = |log: &Mutex<Vec<(&'static str, _)>>| -> Vec<_> {
        log.lock().unwrap().iter().map(|(name, _)| *name).collect()
    };
    assert_eq!(names(&log), ["1a", "1b", "2a"]);
    timeline.signal(3);
    assert_eq!(names(&log), ["1a", "1b", "2a", "3a", "3b"]);
}

#[test]
fn a_callback_may_signal_the_next_point_without_nesting() {
    let timeline = Arc::new(Timeline::new("ring"));
    let depth = Arc::new(AtomicU32::new(0));
    let runs = Arc::new(AtomicU32::new(0));
    for seqno in 1..=100 {
        let fence = timeline.next_point();
        let (depth, runs, timeline) = (depth.clone(), runs.clone(), Arc::downgrade(&timeline));
        let hung = fence.on_signal(move |_| {
            assert_eq!(depth.fetch_add(1, Ordering::Relaxed), 0, "callbacks nest");
            if let Some(timeline) = timeline.upgrade().filter(|timeline| timeline.allocated() > seqno) {
                timeline.signal(seqno + 1);
            }
            runs.fetch_add(1, Ordering::Relaxed);
            depth.fetch_sub(1, Ordering::Relaxed);
        });
        assert!(hung.is_ok());
    }
    timeline.signal(1);
    assert_eq!(runs.load(Ordering::Relaxed), 100);
    assert!(timeline.is_idle());
}

#[test]
fn a_callback_that_panics_does_not_keep_the_others_from_running() {
    let timeline = Timeline::new("ring");
    let log = log();
    let fence = timeline.next_point();
    fence.on_signal(|_| panic!("this one is broken")).map_err(drop).unwrap();
    fence.on_signal(note(&log, "second")).map_err(drop).unwrap();
    let signalled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| timeline.signal(1)));
    assert!(signalled.is_err());
    assert_eq!(*log.lock().unwrap(), [("second", Ok(()))]);
    let next = timeline.next_point();
    next.on_signal(note(&log, "third")).map_err(drop).unwrap();
    timeline.signal(2);
    assert_eq!(log.lock().unwrap().len(), 2);
}

#[test]
fn the_status_is_none_then_ok() {
    let timeline = Timeline::new("ring");
    let fence = timeline.next_point();
    assert_eq!(fence.status(), None);
    timeline.signal(1);
    assert_eq!(fence.status(), Some(Ok(())));
}

#[test]
fn an_error_is_reported_for_its_point_alone() {
    let timeline = Timeline::new("ring");
    let fences: Vec<Fence> = (0..4).map(|_| timeline.next_point()).collect();
    timeline.fail(2, FenceError::Cancelled);
    assert_eq!(fences[0].status(), Some(Ok(())));
    assert_eq!(fences[1].status(), Some(Err(FenceError::Cancelled)));
    assert_eq!(fences[2].status(), None);
    timeline.signal(4);
    assert_eq!(fences[1].wait(), Err(FenceError::Cancelled));
    assert_eq!((fences[2].wait(), fences[3].wait()), (Ok(()), Ok(())));
}

#[test]
fn a_callback_learns_the_error() {
    let timeline = Timeline::new("ring");
    let log = log();
    let (good, bad) = (timeline.next_point(), timeline.next_point());
    good.on_signal(note(&log, 1)).map_err(drop).unwrap();
    bad.on_signal(note(&log, 2)).map_err(drop).unwrap();
    timeline.fail(2, FenceError::DeviceLost);
    assert_eq!(*log.lock().unwrap(), [(1, Ok(())), (2, Err(FenceError::DeviceLost))]);
}

#[test]
fn failing_what_is_outstanding_spares_what_is_done_and_what_comes_later() {
    let timeline = Timeline::new("ring");
    let fences: Vec<Fence> = (0..3).map(|_| timeline.next_point()).collect();
    timeline.signal(1);
    timeline.fail_outstanding(FenceError::DeviceLost);
    timeline.fail_outstanding(FenceError::Cancelled);
    let later = timeline.next_point();
    assert_eq!(fences[0].status(), Some(Ok(())));
    assert_eq!(fences[1].status(), Some(Err(FenceError::DeviceLost)));
    assert_eq!(fences[2].status(), Some(Err(FenceError::DeviceLost)));
    assert_eq!(later.status(), None);
    timeline.signal(later.seqno());
    assert_eq!(later.status(), Some(Ok(())));
}

#[test]
fn an_owner_that_goes_away_fails_what_is_outstanding_and_forgets_nobody() {
    let timeline = Timeline::new("ring");
    let log = log();
    let (done, waited, called) = (timeline.next_point(), timeline.next_point(), timeline.next_point());
    timeline.signal(done.seqno());
    called.on_signal(note(&log, ())).map_err(drop).unwrap();
    let waiter = thread::spawn(move || waited.wait());
    drop(timeline);
    let abandoned = FenceError::Abandoned { timeline: "ring".into() };
    assert_eq!(waiter.join().unwrap(), Err(abandoned.clone()));
    assert_eq!(done.status(), Some(Ok(())));
    assert_eq!(*log.lock().unwrap(), [((), Err(abandoned))]);
}

#[test]
fn thousands_of_different_failures_stay_bounded_and_never_look_better_than_they_were() {
    let timeline = Timeline::new("ring");
    let fences: Vec<Fence> = (0..6000).map(|_| timeline.next_point()).collect();
    for fence in fences.iter().step_by(2) {
        timeline.fail(fence.seqno(), FenceError::failed(format!("point {}", fence.seqno())));
    }
    timeline.signal(6000);
    assert!(fences.iter().step_by(2).all(|fence| matches!(fence.status(), Some(Err(_)))));
    assert_eq!(fences[0].status(), Some(Err(FenceError::Outdated)), "it failed, and why is forgotten");
    let recent = &fences[5000..];
    for (index, fence) in recent.iter().enumerate() {
        let expected = match index % 2 {
            0 => Err(FenceError::failed(format!("point {}", fence.seqno()))),
            _ => Ok(()),
        };
        assert_eq!(fence.status(), Some(expected));
    }
}

#[test]
fn a_wait_with_no_time_only_looks() {
    let timeline = Timeline::new("ring");
    let fence = timeline.next_point();
    let refused = fence.wait_timeout(Duration::ZERO).unwrap_err();
    assert!(
        matches!(&refused, WaitError::TimedOut { timeline, seqno: 1, completed: 0, .. } if **timeline == *"ring"),
        "{refused}"
    );
    timeline.signal(1);
    assert_eq!(fence.wait_timeout(Duration::ZERO), Ok(()));
}

#[test]
fn a_timed_wait_that_gave_up_leaves_nothing_behind() {
    let timeline = Timeline::new("ring");
    let fence = timeline.next_point();
    assert!(fence.wait_timeout(Duration::from_millis(2)).is_err());
    timeline.signal(1);
    assert_eq!(fence.wait(), Ok(()));
}

#[test]
fn a_timed_wait_ends_early_when_somebody_signals() {
    let timeline = Timeline::new("ring");
    let fence = timeline.next_point();
    let waiter = thread::spawn(move || fence.wait_timeout(Duration::MAX));
    let second = timeline.next_point();
    let long = thread::spawn(move || second.wait_timeout(Duration::from_secs(3600)));
    thread::sleep(Duration::from_millis(5));
    timeline.signal(1);
    timeline.fail(2, FenceError::Cancelled);
    assert_eq!(waiter.join().unwrap(), Ok(()));
    assert_eq!(long.join().unwrap(), Err(WaitError::Failed(FenceError::Cancelled)));
}

#[test]
fn each_waiter_wakes_at_its_own_point() {
    let timeline = Timeline::new("ring");
    let waiters: Vec<_> = (0..8)
        .map(|_| {
            let fence = timeline.next_point();
            thread::spawn(move || {
                let outcome = fence.wait();
                assert!(fence.is_signaled());
                outcome
            })
        })
        .collect();
    for (waiter, seqno) in waiters.into_iter().zip(1..) {
        timeline.signal(seqno);
        assert_eq!(waiter.join().unwrap(), Ok(()));
    }
}

/// Two threads hand each other fences; each signals the other's and waits for, or hangs a callback on, its own.
fn exchange_fences(look_first: bool) {
    const ROUNDS: u64 = 20_000;
    let timelines = Arc::new([Timeline::new("left"), Timeline::new("right")]);
    let meet = Arc::new(Barrier::new(2));
    let missed = Arc::new(AtomicU64::new(0));
    let fences: Arc<[Mutex<Option<Fence>>; 2]> = Arc::default();
    let threads = [0, 1].map(|me| {
        let (timelines, meet, missed, fences) =
            (timelines.clone(), meet.clone(), missed.clone(), fences.clone());
        thread::spawn(move || {
            for round in 1..=ROUNDS {
                *fences[me].lock().unwrap() = Some(timelines[me].next_point());
                meet.wait();
                let theirs = fences[1 - me].lock().unwrap().clone().expect("put there before we met");
                timelines[me].signal(round);
                missed.fetch_add(1, Ordering::Relaxed);
                let seen = missed.clone();
                let called = move |_| {
                    seen.fetch_sub(1, Ordering::Relaxed);
                };
                // What comes too late is handed back and called here, so that every round calls once.
                match look_first && theirs.is_signaled() {
                    true => called(Ok(())),
                    false => theirs.on_signal(called).err().into_iter().for_each(|called| called(Ok(()))),
                }
                theirs.wait().unwrap();
                meet.wait();
            }
        })
    });
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(missed.load(Ordering::Relaxed), 0, "callbacks were missed");
}

#[test]
fn no_callback_is_missed_when_two_threads_race_and_look_first() {
    exchange_fences(true);
}

#[test]
fn no_callback_is_missed_when_two_threads_race_and_do_not_look() {
    exchange_fences(false);
}

#[test]
fn a_chain_of_dependencies_keeps_only_its_root() {
    let error = FenceError::failed("bad parity").as_dependency().as_dependency();
    assert_eq!(error, FenceError::Dependency(Box::new(FenceError::failed("bad parity"))));
    assert_eq!(error.to_string(), "something it depended on failed: bad parity");
    assert_eq!(error.root_cause(), &FenceError::failed("bad parity"));
}
