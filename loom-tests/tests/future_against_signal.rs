//! A signal against a task that polls, with a waker that changes, or that lets go.
#![cfg(loom)]

use devpagemap_fence::{AnyOf, FenceFuture, Timeline};
use devpagemap_loom_tests::explore;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

struct Task {
    wakes: AtomicU32,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.wakes.fetch_add(1, Ordering::AcqRel);
    }
}

fn task() -> Arc<Task> {
    Arc::new(Task { wakes: AtomicU32::new(0) })
}

fn poll<F: Future + Unpin>(future: &mut F, task: &Arc<Task>) -> Poll<F::Output> {
    let waker = Waker::from(task.clone());
    Pin::new(future).poll(&mut Context::from_waker(&waker))
}

/// Whoever is told to wait is woken, and then finds the outcome.
fn assert_ends(mut future: FenceFuture, last: &Arc<Task>, seen: Poll<()>) {
    let wakes = last.wakes.load(Ordering::Acquire);
    match seen {
        Poll::Pending => assert_eq!(wakes, 1, "told to wait, and never woken"),
        Poll::Ready(()) => assert!(wakes <= 1),
    }
    assert_eq!(poll(&mut future, last), Poll::Ready(Ok(())));
}

/// Two threads, exhaustive.
#[test]
fn a_first_poll_beside_the_signal_is_ready_or_woken() {
    explore(None, || {
        let timeline = Timeline::new("ring");
        let mut future = timeline.next_point().signaled_future();
        let signaller = thread::spawn(move || timeline.signal(1));
        let task = task();
        let seen = poll(&mut future, &task).map(|outcome| assert_eq!(outcome, Ok(())));
        signaller.join().unwrap();
        assert_ends(future, &task, seen);
    });
}

/// Two threads, exhaustive.
#[test]
fn a_poll_with_another_waker_beside_the_signal_is_ready_or_wakes_that_one() {
    explore(None, || {
        let timeline = Timeline::new("ring");
        let mut future = timeline.next_point().signaled_future();
        let (first, second) = (task(), task());
        assert_eq!(poll(&mut future, &first), Poll::Pending);
        let signaller = thread::spawn(move || timeline.signal(1));
        let seen = poll(&mut future, &second).map(|outcome| assert_eq!(outcome, Ok(())));
        signaller.join().unwrap();
        let woken = first.wakes.load(Ordering::Acquire) + second.wakes.load(Ordering::Acquire);
        assert!(woken <= 1, "one signal woke two tasks");
        assert_ends(future, &second, seen);
    });
}

/// Two threads, exhaustive.
#[test]
fn a_future_that_is_dropped_beside_the_signal_keeps_no_task() {
    explore(None, || {
        let timeline = Arc::new(Timeline::new("ring"));
        let mut future = timeline.next_point().signaled_future();
        let task = task();
        assert_eq!(poll(&mut future, &task), Poll::Pending);
        let theirs = timeline.clone();
        let signaller = thread::spawn(move || theirs.signal(1));
        drop(future);
        signaller.join().unwrap();
        assert!(task.wakes.load(Ordering::Acquire) <= 1);
        assert_eq!(Arc::strong_count(&task), 1, "a waker was left behind");
    });
}

/// Two threads, exhaustive.
#[test]
fn the_first_of_two_fences_wakes_the_thread_that_waits_for_any() {
    explore(None, || {
        let [slow, fast] = [Timeline::new("slow"), Timeline::new("fast")];
        let any = AnyOf::new([slow.next_point(), fast.next_point()]).expect("two fences");
        let signaller = thread::spawn(move || fast.signal(1));
        let first = any.wait();
        assert_eq!((first.fence.timeline_name(), first.outcome), ("fast".into(), Ok(())));
        signaller.join().unwrap();
        assert!(!slow.is_idle());
    });
}
