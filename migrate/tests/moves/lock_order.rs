//! What engines may do, as far as debug builds watch it.

use crate::rig::{HandEngine, PAGE, memory, submit, upload, uploaded};
use devpagemap_fence::Timeline;
#[cfg(debug_assertions)]
use devpagemap_fence::{Fence, Held};
use devpagemap_migrate::{Chunk, Completion, CopyEngine, EngineError, MoveQueue, Reset};
use std::sync::Arc;

/// An engine whose chunks wait for fences of its own, and are answered in the callbacks of those.
struct FencedEngine {
    hand: Arc<HandEngine>,
    ring: Timeline,
}

impl CopyEngine for FencedEngine {
    fn name(&self) -> &str {
        self.hand.name()
    }

    fn submit(&self, chunk: Chunk, done: Completion) -> Result<(), EngineError> {
        let hand = self.hand.clone();
        let answer = move |_| {
            hand.perform(&chunk);
            done.complete(Ok(()));
        };
        assert!(self.ring.next_point().on_signal(answer).is_ok(), "nobody has signalled it yet");
        Ok(())
    }

    fn reset(&self) -> Reset {
        Reset::Dead
    }
}

#[test]
fn an_engine_may_answer_in_a_callback_of_its_own_fence() {
    let memory = memory(8, 8);
    let hand = HandEngine::new("hand", 2, &memory);
    let engine = Arc::new(FencedEngine { hand, ring: Timeline::new("ring") });
    let queue = MoveQueue::builder().engine(engine.clone()).chunk_bytes(PAGE).build();
    let fence = submit(&queue, upload(1, 0, 0, 4));
    while !fence.is_signaled() {
        engine.ring.signal(engine.ring.allocated());
    }
    assert_eq!(fence.status(), Some(Ok(())));
    assert!(uploaded(&memory, 0, 0, 4));
}

#[cfg(debug_assertions)]
mod watched {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Mutex;
    use std::time::Duration;

    fn report_of<O>(deed: impl FnOnce() -> O) -> String {
        let panic = catch_unwind(AssertUnwindSafe(|| drop(deed()))).expect_err("nothing was reported");
        *panic.downcast().expect("a report is a text")
    }

    /// An engine that waits for a fence wherever it is called.
    struct Waiting {
        fence: Fence,
        reports: Mutex<Vec<String>>,
        chunks: Mutex<Vec<Completion>>,
    }

    impl Waiting {
        fn wait(&self) {
            self.reports.lock().unwrap().push(report_of(|| self.fence.wait()));
        }
    }

    impl CopyEngine for Waiting {
        fn name(&self) -> &str {
            "waiting"
        }

        fn submit(&self, _chunk: Chunk, done: Completion) -> Result<(), EngineError> {
            self.wait();
            self.chunks.lock().unwrap().push(done);
            Ok(())
        }

        fn reset(&self) -> Reset {
            self.wait();
            let chunks = std::mem::take(&mut *self.chunks.lock().unwrap());
            drop(chunks);
            Reset::Dead
        }
    }

    #[test]
    fn an_engine_that_waits_for_a_fence_is_reported() {
        let timeline = Timeline::new("elsewhere");
        let fence = timeline.next_point();
        let engine = Arc::new(Waiting { fence, reports: Mutex::default(), chunks: Mutex::default() });
        let timeout = Duration::from_millis(1);
        let queue = MoveQueue::builder().engine(engine.clone()).chunk_timeout(timeout).build();
        let moved = submit(&queue, upload(1, 0, 0, 1));
        queue.drain();
        assert!(matches!(moved.status(), Some(Err(_))), "the only engine is dead");
        let reports = engine.reports.lock().unwrap();
        assert_eq!(reports.len(), 2, "once in submit and once in reset: {reports:?}");
        for report in &*reports {
            for part in
                ["may not wait for a fence", "a signalling section is open since", "migrate/src/drive.rs"]
            {
                assert!(report.contains(part), "{part:?} is missing in: {report}");
            }
        }
    }

    #[test]
    fn a_queue_that_would_wait_in_a_callback_of_somebody_else_is_reported() {
        let memory = memory(8, 8);
        let queue = MoveQueue::builder().engine(HandEngine::new("hand", 2, &memory)).build();
        let timeline = Timeline::new("elsewhere");
        let queue = Mutex::new(Some(queue));
        let hung = timeline.next_point().on_signal(move |_| drop(queue.lock().unwrap().take()));
        assert!(hung.is_ok());
        let report = report_of(|| timeline.signal(1));
        assert!(report.contains("may not wait for a fence"), "{report}");
    }

    #[test]
    fn a_move_is_not_queued_under_a_region_lock_by_a_token_made_before() {
        use devpagemap_fence::{Lock, levels::Region};
        let memory = memory(8, 8);
        let engine = HandEngine::new("hand", 2, &memory);
        let queue = MoveQueue::builder().engine(engine.clone()).build();
        let region = Lock::<Region, _>::new("region", ());
        let (mut held, mut forged) = (Held::enter(), Held::enter());
        let guard = region.lock(&mut held);
        let report = report_of(|| queue.submit(upload(1, 0, 0, 1), &mut forged));
        drop(guard);
        assert!(report.contains("may not begin a signalling section at migrate/src/queue.rs"), "{report}");
        assert!(queue.stats().moves == 0 && engine.held().is_empty(), "nothing was queued");
        assert!(queue.is_idle(), "nothing was counted");
    }
}
