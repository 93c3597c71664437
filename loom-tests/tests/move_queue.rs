//! The move queue against who signals what a move waits for, against a look for hung engines, and against two answers
//! for one lane.
#![cfg(loom)]

use devpagemap_fence::{FenceError, Held, Timeline};
use devpagemap_loom_tests::{Watched, explore};
use devpagemap_migrate::{
    Addr, Chunk, Completion, CopyEngine, EngineError, Extent, MoveQueue, MoveRequest, Reset, Space,
};
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Answers inside `submit`.
struct Inline;

impl CopyEngine for Inline {
    fn name(&self) -> &str {
        "inline"
    }

    fn submit(&self, _chunk: Chunk, done: Completion) -> Result<(), EngineError> {
        done.complete(Ok(()));
        Ok(())
    }

    fn reset(&self) -> Reset {
        Reset::Recovered
    }
}

/// Keeps what it is given until the model takes it.
#[derive(Default)]
struct Keeping(Mutex<Vec<Completion>>);

impl Keeping {
    fn take(&self) -> Completion {
        self.0.lock().unwrap().remove(0)
    }
}

impl CopyEngine for Keeping {
    fn name(&self) -> &str {
        "keeping"
    }

    fn submit(&self, _chunk: Chunk, done: Completion) -> Result<(), EngineError> {
        self.0.lock().unwrap().push(done);
        Ok(())
    }

    fn reset(&self) -> Reset {
        Reset::Dead
    }
}

fn clear_one_page() -> MoveRequest {
    MoveRequest::clear(1, Extent::new(Addr::new(Space::Vram, 0), 4096).into())
}

/// Two threads, exhaustive.
#[test]
fn a_move_is_not_lost_when_its_dependency_signals_while_it_is_submitted() {
    explore(None, || {
        let queue = MoveQueue::builder().engine(Arc::new(Inline)).lanes(1).build();
        let job = Timeline::new("job");
        let after = job.next_point();
        let signaller = thread::spawn(move || job.signal(1));
        let fence = queue.submit(clear_one_page().after(after), &mut Held::enter());
        signaller.join().unwrap();
        assert_eq!(fence.status(), Some(Ok(())), "both are through, so the move must be");
    });
}

/// Two threads, exhaustive: the engine's answer and a look at the clock that finds the engine overdue.
#[test]
fn a_late_answer_and_the_watchdog_finish_a_chunk_once() {
    explore(None, || {
        let engine = Arc::new(Keeping::default());
        let queue = MoveQueue::builder()
            .engine(engine.clone())
            .fallback(Arc::new(Inline))
            .lanes(1)
            .chunk_timeout(Duration::ZERO)
            .build();
        let calls = Arc::new(AtomicU32::new(0));
        let fence = queue.submit(clear_one_page(), &mut Held::enter());
        let theirs = calls.clone();
        let hung = fence.on_signal(move |_| {
            theirs.fetch_add(1, Ordering::Relaxed);
        });
        assert!(hung.is_ok());
        let done = engine.take();
        // Overdue is what was handed over before `now`: the chunk, but nothing that is handed over from here on.
        let now = Instant::now();
        while Instant::now() == now {}
        let answering = thread::spawn(move || done.complete(Ok(())));
        let watched = queue.watched().upgrade().expect("the queue is alive");
        watched.check(now);
        answering.join().unwrap();
        assert_eq!((fence.status(), calls.load(Ordering::Relaxed)), (Some(Ok(())), 1));
        let stats = queue.stats();
        assert_eq!(stats.chunks, 1, "one of the two did the chunk");
        assert_eq!(stats.late_completions, stats.engine_hangs, "and the other did nothing");
        assert_eq!(stats.moves, 1);
    });
}

/// Two threads, exhaustive: both moves are on one lane, the first fails.
#[test]
fn the_error_of_a_move_is_not_hidden_by_the_success_of_the_next() {
    explore(None, || {
        let engine = Arc::new(Keeping::default());
        let queue = MoveQueue::builder().engine(engine.clone()).lanes(1).build();
        let fences = [(); 2].map(|()| queue.submit(clear_one_page(), &mut Held::enter()));
        let (first, second) = (engine.take(), engine.take());
        let failing = thread::spawn(move || first.complete(Err(EngineError::failed("parity error"))));
        second.complete(Ok(()));
        failing.join().unwrap();
        let failed = fences[0].status().expect("both answers are in");
        assert!(matches!(failed, Err(FenceError::EngineFailed { .. })), "{failed:?}");
        assert_eq!(fences[1].status(), Some(Ok(())));
    });
}

/// Two threads, exhaustive: the queue is dropped while the fence signals that a move waits for.
#[test]
fn a_move_that_is_abandoned_while_it_is_released_ends_once() {
    explore(None, || {
        let queue = MoveQueue::builder().engine(Arc::new(Inline)).lanes(1).build();
        let job = Timeline::new("job");
        let fence = queue.submit(clear_one_page().after(job.next_point()), &mut Held::enter());
        // A model does not see reference counts: with the queue's inside kept, the callback always finds it.
        let inside = queue.watched().upgrade().expect("the queue is alive");
        let signaller = thread::spawn(move || job.signal(1));
        drop(queue);
        let outcome = fence.status().expect("a queue that is gone owes nothing");
        assert!(matches!(outcome, Ok(()) | Err(FenceError::Abandoned { .. })), "{outcome:?}");
        signaller.join().unwrap();
        assert_eq!(fence.status(), Some(outcome), "a fence does not change its mind");
        drop(inside);
    });
}

/// Two threads, exhaustive: an engine dies of one chunk while it answers another.
#[test]
fn an_engine_that_dies_loses_none_of_its_chunks() {
    explore(None, || {
        let engine = Arc::new(Keeping::default());
        let queue = MoveQueue::builder().engine(engine.clone()).fallback(Arc::new(Inline)).lanes(1).build();
        let fences = [(); 2].map(|()| queue.submit(clear_one_page(), &mut Held::enter()));
        let (first, second) = (engine.take(), engine.take());
        let dying = thread::spawn(move || first.complete(Err(EngineError::Dead)));
        second.complete(Ok(()));
        dying.join().unwrap();
        assert_eq!(fences.map(|fence| fence.status()), [Some(Ok(())), Some(Ok(()))]);
        assert_eq!(queue.stats().chunks, 2, "each was done once, one of them by the fallback");
    });
}

/// Two threads, exhaustive: somebody polls the queue instead of waiting for a fence.
#[test]
fn who_sees_an_idle_queue_sees_what_it_has_copied() {
    explore(None, || {
        let engine = Arc::new(Keeping::default());
        let queue = MoveQueue::builder().engine(engine.clone()).lanes(1).build();
        let fence = queue.submit(clear_one_page(), &mut Held::enter());
        let copied = Arc::new(Watched::default());
        let (theirs, done) = (copied.clone(), engine.take());
        let copying = thread::spawn(move || {
            theirs.write();
            done.complete(Ok(()));
        });
        while !queue.is_idle() {
            thread::yield_now();
        }
        assert!(copied.is_written());
        copying.join().unwrap();
        assert_eq!(fence.status(), Some(Ok(())));
    });
}

/// Three threads, at most three preemptions: two drain the queue while its last chunk ends.
#[test]
fn two_who_drain_a_queue_both_hear_of_its_end() {
    explore(Some(3), || {
        let engine = Arc::new(Keeping::default());
        let queue = Arc::new(MoveQueue::builder().engine(engine.clone()).lanes(1).build());
        let fence = queue.submit(clear_one_page(), &mut Held::enter());
        let done = engine.take();
        let copying = thread::spawn(move || done.complete(Ok(())));
        let other = {
            let queue = queue.clone();
            thread::spawn(move || queue.drain())
        };
        queue.drain();
        assert_eq!(fence.status(), Some(Ok(())));
        copying.join().unwrap();
        other.join().unwrap();
    });
}
