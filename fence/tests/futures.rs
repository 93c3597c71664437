//! Waiting for fences as a task, under a small executor of our own.
#![cfg(not(any(loom, shuttle)))]

use devpagemap_fence::{AnyOf, Fence, FenceError, FenceFuture, FenceSet, Timeline};
use std::future::{Future, IntoFuture, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

/// A waker that counts and can be slept on.
struct Counter {
    wakes: AtomicUsize,
    thread: thread::Thread,
}

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.wakes.fetch_add(1, Ordering::Release);
        self.thread.unpark();
    }
}

fn counter() -> (Arc<Counter>, Waker) {
    let counter = Arc::new(Counter { wakes: AtomicUsize::new(0), thread: thread::current() });
    (counter.clone(), Waker::from(counter))
}

impl Counter {
    fn wakes(&self) -> usize {
        self.wakes.load(Ordering::Acquire)
    }
}

/// Runs one future to its end; polls only when woken. Says how often it was polled.
fn block_on<F: Future>(future: F) -> (F::Output, usize) {
    let (counter, waker) = counter();
    let mut future = pin!(future);
    for polls in 1.. {
        let seen = counter.wakes();
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return (output, polls);
        }
        while counter.wakes() == seen {
            thread::park();
        }
    }
    unreachable!("it was polled too often to count")
}

fn poll<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(waker))
}

/// The first of two futures; the other one is dropped.
async fn select<A: Future + Unpin, B: Future + Unpin>(
    mut a: A,
    mut b: B,
) -> (Option<A::Output>, Option<B::Output>) {
    poll_fn(|context| match (Pin::new(&mut a).poll(context), Pin::new(&mut b).poll(context)) {
        (Poll::Ready(a), _) => Poll::Ready((Some(a), None)),
        (_, Poll::Ready(b)) => Poll::Ready((None, Some(b))),
        _ => Poll::Pending,
    })
    .await
}

#[test]
fn a_signalled_fence_is_ready_at_the_first_poll_and_hangs_nothing() {
    let timeline = Timeline::new("ring");
    let fence = timeline.next_point();
    timeline.fail(1, FenceError::Cancelled);
    let (counter, waker) = counter();
    assert_eq!(poll(&mut fence.signaled_future(), &waker), Poll::Ready(Err(FenceError::Cancelled)));
    assert_eq!(poll(&mut Fence::signaled().into_future(), &waker), Poll::Ready(Ok(())));
    drop(waker);
    assert_eq!((Arc::strong_count(&counter), counter.wakes()), (1, 0));
}

#[test]
fn a_signal_wakes_the_task_once_and_the_future_gives_the_outcome_as_often_as_asked() {
    let timeline = Timeline::new("ring");
    let mut future = timeline.next_point().into_future();
    let (counter, waker) = counter();
    assert_eq!(poll(&mut future, &waker), Poll::Pending);
    timeline.signal(1);
    assert_eq!(counter.wakes(), 1);
    for _ in 0..2 {
        assert_eq!(poll(&mut future, &waker), Poll::Ready(Ok(())));
    }
    assert_eq!(counter.wakes(), 1);
}

#[test]
fn an_error_reaches_the_task() {
    let timeline = Timeline::new("ring");
    let fence = timeline.next_point();
    let signaller = thread::spawn(move || timeline.fail(1, FenceError::DeviceLost));
    assert_eq!(block_on(async { fence.await }).0, Err(FenceError::DeviceLost));
    signaller.join().unwrap();
}

#[test]
fn an_owner_that_goes_away_wakes_the_task() {
    let timeline = Timeline::new("ring");
    let mut future = timeline.next_point().into_future();
    let (counter, waker) = counter();
    assert_eq!(poll(&mut future, &waker), Poll::Pending);
    drop(timeline);
    assert_eq!(counter.wakes(), 1);
    let abandoned = FenceError::Abandoned { timeline: "ring".into() };
    assert_eq!(poll(&mut future, &waker), Poll::Ready(Err(abandoned)));
}

#[test]
fn polling_again_hangs_no_second_callback() {
    let timeline = Timeline::new("ring");
    let mut future = timeline.next_point().into_future();
    let (counter, waker) = counter();
    for _ in 0..100 {
        assert_eq!(poll(&mut future, &waker), Poll::Pending);
    }
    // One waker is stored beside the two here.
    assert_eq!(Arc::strong_count(&counter), 3);
    timeline.signal(1);
    assert_eq!(counter.wakes(), 1);
}

#[test]
fn the_waker_of_the_last_poll_is_woken_and_no_other() {
    let timeline = Timeline::new("ring");
    let mut future = timeline.next_point().into_future();
    let (first, first_waker) = counter();
    let (second, second_waker) = counter();
    assert_eq!(poll(&mut future, &first_waker), Poll::Pending);
    assert_eq!(poll(&mut future, &second_waker), Poll::Pending);
    drop((first_waker, second_waker));
    assert_eq!(Arc::strong_count(&first), 1, "the first waker was kept");
    timeline.signal(1);
    assert_eq!((first.wakes(), second.wakes()), (0, 1));
}

#[test]
fn a_dropped_future_is_not_woken_and_leaves_nothing_behind() {
    let timeline = Timeline::new("ring");
    let fence = timeline.next_point();
    let (counter, waker) = counter();
    let mut futures: Vec<_> = (0..1000).map(|_| fence.signaled_future()).collect();
    for future in &mut futures {
        assert_eq!(poll(future, &waker), Poll::Pending);
    }
    assert_eq!(Arc::strong_count(&counter), 1002);
    drop(futures);
    drop(waker);
    assert_eq!(Arc::strong_count(&counter), 1);
    timeline.signal(1);
    assert_eq!(counter.wakes(), 0);
}

#[test]
fn the_loser_of_a_select_is_taken_back() {
    let (fast, slow) = (Timeline::new("fast"), Timeline::new("slow"));
    let (won, lost) = (fast.next_point(), slow.next_point());
    let (counter, waker) = counter();
    let mut either = Box::pin(select(won.into_future(), lost.into_future()));
    assert!(poll(&mut either, &waker).is_pending());
    fast.signal(1);
    assert_eq!(counter.wakes(), 1);
    assert_eq!(poll(&mut either, &waker), Poll::Ready((Some(Ok(())), None)));
    drop((either, waker));
    assert_eq!(Arc::strong_count(&counter), 1);
    slow.signal(1);
    assert_eq!(counter.wakes(), 1);
}

#[test]
fn a_waker_may_drop_its_future_while_it_is_woken() {
    struct Owner(Mutex<Option<FenceFuture>>);
    impl Wake for Owner {
        fn wake(self: Arc<Self>) {
            self.0.lock().unwrap().take();
        }
    }
    let timeline = Timeline::new("ring");
    let mut future = timeline.next_point().into_future();
    let owner = Arc::new(Owner(Mutex::default()));
    assert!(poll(&mut future, &owner.clone().into()).is_pending());
    *owner.0.lock().unwrap() = Some(future);
    timeline.signal(1);
    assert!(owner.0.lock().unwrap().is_none());
    assert_eq!(Arc::strong_count(&owner), 1);
}

#[test]
fn a_waker_may_poll_its_future_while_it_is_woken() {
    #[derive(Default)]
    struct Task {
        future: Option<FenceFuture>,
        outcomes: Vec<Result<(), FenceError>>,
    }
    #[derive(Default)]
    struct Inline(Mutex<Task>);
    impl Wake for Inline {
        fn wake(self: Arc<Self>) {
            let mut task = self.0.lock().unwrap();
            if let Some(Poll::Ready(outcome)) =
                task.future.as_mut().map(|future| poll(future, &self.clone().into()))
            {
                task.outcomes.push(outcome);
            }
        }
    }
    let timeline = Timeline::new("ring");
    let mut future = timeline.next_point().into_future();
    let task = Arc::new(Inline::default());
    assert!(poll(&mut future, &task.clone().into()).is_pending());
    task.0.lock().unwrap().future = Some(future);
    timeline.signal(1);
    assert_eq!(task.0.lock().unwrap().outcomes, [Ok(())]);
}

#[test]
fn a_thousand_futures_on_one_timeline_each_wake_at_their_own_point() {
    let timeline = Timeline::new("ring");
    let (counters, mut futures): (Vec<_>, Vec<_>) = (0..1000)
        .map(|_| {
            let (counter, waker) = counter();
            let mut future = timeline.next_point().into_future();
            assert_eq!(poll(&mut future, &waker), Poll::Pending);
            (counter, future)
        })
        .unzip();
    for completed in [1, 500, 1000] {
        timeline.signal(completed as u64);
        let woken = counters.iter().filter(|counter| counter.wakes() == 1).count();
        assert_eq!(woken, completed);
        assert!(counters[..completed].iter().all(|counter| counter.wakes() == 1));
    }
    let (_, waker) = counter();
    assert!(futures.iter_mut().all(|future| poll(future, &waker) == Poll::Ready(Ok(()))));
}

#[test]
fn a_set_is_ready_when_all_are_and_gives_the_first_error_in_set_order() {
    let timelines = [Timeline::new("a"), Timeline::new("b"), Timeline::new("c")];
    let set: FenceSet = timelines.iter().map(Timeline::next_point).collect();
    let mut future = set.signaled_future();
    let (counter, waker) = counter();
    assert_eq!(poll(&mut future, &waker), Poll::Pending);
    timelines[2].fail(1, FenceError::DeviceLost);
    timelines[1].fail(1, FenceError::Cancelled);
    assert_eq!(counter.wakes(), 0, "it waits for the first");
    timelines[0].signal(1);
    assert_eq!(counter.wakes(), 1);
    for _ in 0..2 {
        assert_eq!(poll(&mut future, &waker), Poll::Ready(Err(FenceError::Cancelled)));
    }
    assert_eq!(poll(&mut FenceSet::new().into_future(), &waker), Poll::Ready(Ok(())));
}

#[test]
fn a_set_is_polled_at_most_once_per_timeline() {
    let timelines: Vec<_> = (0..10).map(|_| Timeline::new("ring")).collect();
    let set: FenceSet = timelines.iter().map(Timeline::next_point).collect();
    let signaller = thread::spawn(move || timelines.iter().rev().for_each(|timeline| timeline.signal(1)));
    let (outcome, polls) = block_on(set.into_future());
    signaller.join().unwrap();
    assert_eq!(outcome, Ok(()));
    assert!(polls <= 11, "{polls} polls");
}

#[test]
fn the_first_of_several_is_ready_with_its_name_and_the_others_are_let_go() {
    let timelines = [Timeline::new("a"), Timeline::new("b"), Timeline::new("c")];
    let any = AnyOf::new(timelines.iter().map(Timeline::next_point)).unwrap();
    let mut future = any.signaled_future();
    let (counter, waker) = counter();
    assert!(poll(&mut future, &waker).is_pending());
    timelines[1].signal(1);
    assert_eq!(counter.wakes(), 1);
    let Poll::Ready(first) = poll(&mut future, &waker) else { panic!("one has signalled") };
    assert_eq!((first.fence.timeline_id(), first.outcome), (timelines[1].id(), Ok(())));
    timelines[0].signal(1);
    timelines[2].signal(1);
    drop(waker);
    assert_eq!((Arc::strong_count(&counter), counter.wakes()), (1, 1));
}

#[test]
fn no_wake_up_is_lost_when_polls_race_with_signals() {
    const ROUNDS: usize = 20_000;
    let meet = Arc::new(Barrier::new(2));
    let timeline = Arc::new(Timeline::new("ring"));
    let (signaller_meets, signaller_timeline) = (meet.clone(), timeline.clone());
    let signaller = thread::spawn(move || {
        for seqno in 1..=ROUNDS {
            signaller_meets.wait();
            signaller_timeline.signal(seqno as u64);
        }
    });
    for round in 0..ROUNDS {
        let mut future = timeline.next_point().into_future();
        let (_, stale) = counter();
        if round % 3 == 0 {
            assert_eq!(poll(&mut future, &stale), Poll::Pending);
        }
        meet.wait();
        if round % 3 == 1 {
            let _ = poll(&mut future, &stale);
        }
        assert_eq!(block_on(future).0, Ok(()));
    }
    signaller.join().unwrap();
}

#[test]
fn futures_dropped_beside_their_signal_leave_nothing_behind() {
    const ROUNDS: usize = 20_000;
    let meet = Arc::new(Barrier::new(2));
    let timeline = Arc::new(Timeline::new("ring"));
    let (signaller_meets, signaller_timeline) = (meet.clone(), timeline.clone());
    let signaller = thread::spawn(move || {
        for seqno in 1..=ROUNDS {
            signaller_meets.wait();
            signaller_timeline.signal(seqno as u64);
            signaller_meets.wait();
        }
    });
    for _ in 0..ROUNDS {
        let mut future = timeline.next_point().into_future();
        let (counter, waker) = counter();
        assert_eq!(poll(&mut future, &waker), Poll::Pending);
        meet.wait();
        drop(future);
        meet.wait();
        drop(waker);
        assert!(counter.wakes() <= 1);
        assert_eq!(Arc::strong_count(&counter), 1);
    }
    signaller.join().unwrap();
}

#[test]
fn many_threads_each_run_many_futures_of_one_timeline() {
    const THREADS: usize = 4;
    const FUTURES: usize = 250;
    let timeline = Arc::new(Timeline::new("ring"));
    let fences: Vec<Fence> = (0..THREADS * FUTURES).map(|_| timeline.next_point()).collect();
    let workers: Vec<_> = fences
        .chunks(FUTURES)
        .map(|mine| {
            let mine = mine.to_vec();
            thread::spawn(move || {
                let mut futures: Vec<_> = mine.into_iter().map(Fence::into_future).collect();
                // One task with all of them: polled again for whichever wakes it.
                block_on(poll_fn(|context| {
                    futures.retain_mut(|future| Pin::new(future).poll(context) == Poll::Pending);
                    match futures.is_empty() {
                        true => Poll::Ready(()),
                        false => Poll::Pending,
                    }
                }))
            })
        })
        .collect();
    for seqno in 1..=timeline.allocated() {
        timeline.signal(seqno);
    }
    workers.into_iter().for_each(|worker| {
        worker.join().unwrap();
    });
}
