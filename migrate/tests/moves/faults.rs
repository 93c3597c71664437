//! Engines that fail, hang and die in the middle of a move: every byte right, everything counted.

use crate::rig::{HandEngine, PAGE, memory, submit, system, upload, uploaded, vram};
use devpagemap_fence::{Fence, FenceError, Watchdog};
use devpagemap_migrate::{
    Addr, Chunk, Completion, CopyEngine, CpuEngine, EngineError, Fault, HeapMemory, MoveQueue,
    MoveQueueBuilder, MoveRequest, Reset, Route, SoftwareEngine, Space,
};
use proptest::prelude::*;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PAGES: u64 = 32;
/// Long enough that a loaded machine does not count as hung, short enough to wait for.
const TIMEOUT: Duration = Duration::from_millis(150);

struct Rig {
    memory: Arc<HeapMemory>,
    engines: [Arc<SoftwareEngine>; 2],
}

impl Rig {
    fn new() -> Rig {
        let memory = memory(PAGES, PAGES);
        let engines = ["sdma0", "sdma1"].map(|name| SoftwareEngine::new(name, memory.clone()));
        Rig { memory, engines }
    }

    fn queue(&self) -> MoveQueueBuilder {
        let [a, b] = &self.engines;
        let builder = MoveQueue::builder().engine(a.clone()).engine(b.clone());
        builder.chunk_bytes(PAGE).chunk_timeout(TIMEOUT)
    }

    fn queue_with_fallback(&self) -> MoveQueue {
        self.queue().fallback(CpuEngine::new("cpu", self.memory.clone())).build()
    }

    /// Moves everything up and checks every byte.
    fn upload_all(&self, queue: &MoveQueue) {
        let fence = submit(queue, upload(1, 0, 0, PAGES));
        queue.drain();
        assert_eq!(fence.status(), Some(Ok(())));
        assert!(uploaded(&self.memory, 0, 0, PAGES));
    }
}

fn far_future() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// Lets a watchdog find what hangs; the fence's result.
fn watched(queue: &MoveQueue, fence: &Fence) -> Result<(), FenceError> {
    let watchdog = Watchdog::start();
    watchdog.watch(queue.watched());
    fence.wait()
}

#[test]
fn a_chunk_that_fails_once_is_redone_by_the_other_engine() {
    let rig = Rig::new();
    let queue = rig.queue().build();
    rig.engines[1].inject(Fault::FailNext { chunks: 1 });
    rig.upload_all(&queue);
    let stats = queue.stats();
    assert_eq!((stats.engine_failures, stats.engines[1].failures, stats.fallback_bytes), (1, 1, 0));
    assert_eq!(stats.chunks, PAGES);
    assert_eq!(stats.reasons["copy engine sdma1 failed: injected fault; chunk redone by sdma0"], 1);
    assert_eq!(stats.engines[1].quarantined, None);
}

#[test]
fn an_engine_that_fails_for_ever_is_quarantined_and_the_other_does_the_rest() {
    let rig = Rig::new();
    let queue = rig.queue().build();
    rig.engines[0].inject(Fault::FailAfter { chunks: 2 });
    while queue.stats().engines[0].quarantined.is_none() {
        rig.upload_all(&queue);
    }
    let stats = queue.stats();
    assert_eq!(stats.engines[0].quarantined.as_deref(), Some("failed: injected fault"));
    assert!((3..=4).contains(&stats.engine_failures), "its failures: {}", stats.engine_failures);
    assert_eq!(stats.reasons["copy engine sdma0 quarantined: failed: injected fault"], 1);
    assert_eq!(stats.fallback_bytes, 0);
}

#[test]
fn a_hung_engine_is_reset_and_its_chunks_are_redone() {
    let rig = Rig::new();
    let queue = rig.queue().build();
    rig.engines[1].inject(Fault::HangAfter { chunks: 0 });
    let fence = submit(&queue, upload(1, 0, 0, PAGES));
    assert_eq!(watched(&queue, &fence), Ok(()));
    assert!(uploaded(&rig.memory, 0, 0, PAGES));
    let stats = queue.stats();
    assert_eq!(
        (stats.engine_hangs, stats.engines[1].hangs, stats.engines[1].quarantined.clone()),
        (1, 1, None)
    );
    assert_eq!(stats.reasons["copy engine sdma1 hung; chunk redone by sdma0"], 1);
    while queue.stats().engines[1].chunks == 0 {
        rig.upload_all(&queue);
    }
}

#[test]
fn an_engine_that_dies_hanging_gets_no_more_chunks() {
    let rig = Rig::new();
    let queue = rig.queue().build();
    rig.engines[1].inject(Fault::DieAfter { chunks: 1 });
    let fence = submit(&queue, upload(1, 0, 0, PAGES));
    assert_eq!(watched(&queue, &fence), Ok(()));
    while queue.stats().engines[1].quarantined.is_none() {
        rig.upload_all(&queue);
    }
    let stats = queue.stats();
    assert_eq!((stats.engines[1].chunks, stats.engines[1].quarantined.as_deref()), (1, Some("hung")));
    rig.upload_all(&queue);
    assert_eq!(queue.stats().engines[0].chunks, stats.engines[0].chunks + PAGES);
}

#[test]
fn a_slow_engine_is_not_taken_for_a_hung_one() {
    let rig = Rig::new();
    let queue = rig.queue().chunk_timeout(Duration::from_secs(60)).build();
    rig.engines[0].inject(Fault::Slow { delay: Duration::from_millis(5) });
    rig.upload_all(&queue);
    let stats = queue.stats();
    assert_eq!((stats.engine_hangs, stats.engine_failures), (0, 0));
    assert!(stats.engines[1].chunks > stats.engines[0].chunks, "the faster engine does more");
}

#[test]
fn the_fallback_copies_when_every_engine_is_dead() {
    let rig = Rig::new();
    let queue = rig.queue_with_fallback();
    for engine in &rig.engines {
        engine.inject(Fault::FailAfter { chunks: 4 });
    }
    rig.upload_all(&queue);
    let stats = queue.stats();
    assert_eq!(stats.fallback_bytes, (PAGES - 8) * PAGE);
    assert_eq!(stats.engines[2].bytes, stats.fallback_bytes);
    assert!(
        stats.reasons["every copy engine that can copy system to vram is quarantined; chunk done by cpu"] > 0
    );
    let redone: u64 = ["sdma0", "sdma1"]
        .iter()
        .filter_map(|name| {
            stats.reasons.get(&format!("copy engine {name} failed: injected fault; chunk redone by cpu"))
        })
        .sum();
    assert!(redone > 0, "{:?}", stats.reasons);
}

#[test]
fn a_move_that_nobody_can_do_fails_naming_engine_and_cause() {
    let rig = Rig::new();
    let queue = rig.queue().build();
    for engine in &rig.engines {
        engine.inject(Fault::FailAfter { chunks: 0 });
    }
    let fence = submit(&queue, upload(1, 0, 0, PAGES));
    let Err(FenceError::EngineFailed { engine, reason }) = fence.wait() else { panic!("it cannot succeed") };
    assert!(engine.starts_with("sdma"), "{engine}");
    assert_eq!(&*reason, "failed: injected fault; nobody is left to redo the chunk");
    (0..8).for_each(|at| drop(submit(&queue, upload(at, 0, 0, 1)).wait()));
    let Err(error) = submit(&queue, upload(1, 0, 0, PAGES)).wait() else { panic!("it cannot succeed") };
    let text = error.to_string();
    assert!(
        text.contains("quarantined (failed: injected fault), and nothing else can copy system to vram"),
        "{text}"
    );
}

#[test]
fn a_move_on_a_route_that_nobody_serves_fails_at_once() {
    let memory = memory(4, 4);
    let up = Route { from: Some(Space::System), to: Space::Vram };
    let queue = MoveQueue::builder().engine(SoftwareEngine::reaching("up", memory, [up])).build();
    let fence = submit(&queue, MoveRequest::clear(1, vram(0, 1)));
    let text = fence.status().expect("nothing has to be waited for").unwrap_err().to_string();
    assert!(text.contains("no engine and no fallback can clear vram"), "{text}");
}

#[test]
fn a_failing_move_does_not_stop_its_lane() {
    let memory = memory(8, 8);
    let engine = HandEngine::new("sdma0", 4, &memory);
    let queue = MoveQueue::builder().engine(engine.clone()).chunk_bytes(PAGE).lanes(1).build();
    let fences: Vec<_> = (0..3).map(|page| submit(&queue, upload(page, page, page, 1))).collect();
    let dependent = submit(&queue, upload(4, 4, 4, 1).needs(fences[1].clone()));
    engine.finish_at(2);
    engine.finish();
    engine.fail();
    let failed = fences[1].status();
    assert!(matches!(failed, Some(Err(FenceError::EngineFailed { .. }))), "{failed:?}");
    assert_eq!((fences[0].status(), fences[2].status()), (Some(Ok(())), Some(Ok(()))));
    assert!(matches!(dependent.status(), Some(Err(FenceError::Dependency(_)))));
    let next = submit(&queue, upload(5, 5, 5, 1));
    engine.finish();
    assert_eq!(next.status(), Some(Ok(())));
}

#[test]
fn a_failed_move_signals_only_when_nothing_of_it_is_in_flight() {
    let engine = HandEngine::new("sdma0", 2, &memory(8, 8));
    let queue = MoveQueue::builder().engine(engine.clone()).chunk_bytes(PAGE).build();
    let fence = submit(&queue, upload(1, 0, 0, 8));
    engine.fail();
    assert!(!fence.is_signaled(), "the second chunk may still be written");
    assert_eq!(engine.held(), [1], "and no further one is begun");
    engine.finish();
    assert!(matches!(fence.status(), Some(Err(FenceError::EngineFailed { .. }))));
}

#[test]
fn an_answer_for_a_chunk_that_was_taken_away_is_ignored() {
    let memory = memory(8, 8);
    let (a, b) = (HandEngine::new("sdma0", 1, &memory), HandEngine::new("sdma1", 1, &memory));
    let queue = MoveQueue::builder().engine(a.clone()).engine(b.clone()).chunk_bytes(PAGE).build();
    let fence = submit(&queue, upload(1, 0, 0, 2));
    b.finish();
    let (_, late) = a.take(0);
    queue.watched().upgrade().unwrap().check(far_future());
    assert_eq!(b.held(), [0], "redone elsewhere");
    late.complete(Ok(()));
    assert!(!fence.is_signaled(), "the late answer does not stand for the new chunk");
    b.finish();
    assert_eq!(fence.status(), Some(Ok(())));
    let stats = queue.stats();
    assert_eq!((stats.late_completions, stats.engine_hangs, stats.chunks), (1, 1, 2));
}

#[test]
fn only_the_oldest_chunk_of_a_hung_engine_is_kept_from_it() {
    let memory = memory(8, 8);
    let engine = HandEngine::new("sdma0", 2, &memory);
    let queue = MoveQueue::builder().engine(engine.clone()).chunk_bytes(PAGE).build();
    let guilty = submit(&queue, upload(1, 0, 0, 1));
    let behind = submit(&queue, upload(2, 1, 1, 1));
    queue.watched().upgrade().unwrap().check(far_future());
    let Some(Err(FenceError::EngineFailed { engine: name, reason })) = guilty.status() else {
        panic!("{guilty:?}")
    };
    assert!(&*name == "sdma0" && reason.contains("hung"), "{name}: {reason}");
    assert_eq!(engine.held(), [1]);
    engine.finish();
    assert_eq!(behind.status(), Some(Ok(())));
}

#[test]
fn an_engine_without_anything_in_flight_does_not_hang() {
    let engine = HandEngine::new("sdma0", 2, &memory(8, 8));
    let queue = MoveQueue::builder().engine(engine).chunk_timeout(TIMEOUT).build();
    let now = far_future();
    let next = queue.watched().upgrade().unwrap().check(now);
    assert_eq!(next, Some(now + TIMEOUT));
    assert_eq!(queue.stats().engine_hangs, 0);
}

#[test]
fn a_completion_dropped_without_an_answer_is_a_failure() {
    let memory = memory(8, 8);
    let engine = HandEngine::new("sdma0", 2, &memory);
    let queue = MoveQueue::builder().engine(engine.clone()).build();
    let fence = submit(&queue, upload(1, 0, 0, 1));
    drop(engine.take(0));
    let text = fence.status().unwrap().unwrap_err().to_string();
    assert!(text.contains("dropped the chunk without an answer"), "{text}");
}

/// Takes nothing.
struct Refuser;

impl CopyEngine for Refuser {
    fn name(&self) -> &str {
        "ring"
    }

    fn submit(&self, _chunk: Chunk, _done: Completion) -> Result<(), EngineError> {
        Err(EngineError::failed("the ring is full"))
    }

    fn reset(&self) -> Reset {
        Reset::Recovered
    }
}

#[test]
fn an_engine_that_takes_nothing_is_passed_by_with_its_own_words() {
    let memory = memory(8, 8);
    let queue = MoveQueue::builder()
        .engine(Arc::new(Refuser))
        .fallback(CpuEngine::new("cpu", memory.clone()))
        .chunk_bytes(PAGE)
        .build();
    let fence = submit(&queue, upload(1, 0, 0, 8));
    assert_eq!(fence.status(), Some(Ok(())));
    assert!(uploaded(&memory, 0, 0, 8));
    let stats = queue.stats();
    assert_eq!(stats.reasons["copy engine ring failed: the ring is full; chunk redone by cpu"], 3);
    assert_eq!((stats.engine_failures, stats.fallback_bytes), (3, 8 * PAGE));
}

#[test]
fn an_address_without_memory_is_nobodys_failure() {
    let rig = Rig::new();
    let queue = rig.queue_with_fallback();
    for _ in 0..8 {
        let fence = submit(&queue, MoveRequest::copy(1, system(PAGES, 1), vram(0, 1)));
        let text = fence.wait().unwrap_err().to_string();
        assert!(text.contains("cannot reach 4096 bytes at system:0x20000"), "{text}");
    }
    assert_eq!(queue.stats().engine_failures, 0);
    rig.upload_all(&queue);
    assert_eq!(queue.stats().fallback_bytes, 0);
}

#[test]
fn a_chunk_is_redone_whole_after_it_was_left_half_written() {
    let rig = Rig::new();
    let queue = rig.queue().chunk_bytes(8 * PAGE).build();
    rig.engines[0].inject(Fault::HangAfter { chunks: 0 });
    rig.engines[1].inject(Fault::FailNext { chunks: 1 });
    let clear = submit(&queue, MoveRequest::clear(1, vram(0, PAGES)));
    let fence = submit(&queue, upload(1, 0, 0, PAGES).after(clear));
    let result = watched(&queue, &fence);
    assert_eq!(result, Ok(()));
    assert!(uploaded(&rig.memory, 0, 0, PAGES));
}

#[test]
fn after_a_reset_the_abandoned_chunk_never_touches_memory() {
    let memory = memory(8, 8);
    let engine = SoftwareEngine::new("sdma0", memory.clone());
    engine.inject(Fault::HangAfter { chunks: 0 });
    let queue = MoveQueue::builder().engine(engine.clone()).chunk_timeout(TIMEOUT).build();
    let fence = submit(&queue, upload(1, 0, 0, 8));
    assert!(watched(&queue, &fence).is_err());
    let marker = vec![0x77; (8 * PAGE) as usize];
    memory.write(Addr::new(Space::Vram, 0), &marker);
    let other = submit(&queue, MoveRequest::copy(2, vram(0, 1), system(0, 1)));
    assert_eq!(other.wait(), Ok(()), "the engine lives");
    drop(queue);
    drop(engine);
    assert_eq!(memory.read(Addr::new(Space::Vram, 0), marker.len()), marker);
}

#[test]
fn ever_new_excuses_do_not_fill_the_memory() {
    let memory = memory(1, 1);
    let engine = HandEngine::new("sdma0", 1, &memory);
    let queue =
        MoveQueue::builder().engine(engine.clone()).fallback(CpuEngine::new("cpu", memory.clone())).build();
    for at in 0..200 {
        let fence = submit(&queue, upload(at, 0, 0, 1));
        engine.take(0).1.complete(Err(EngineError::failed(format!("excuse {at}"))));
        assert_eq!(fence.status(), Some(Ok(())));
        submit(&queue, upload(at, 0, 0, 1));
        engine.finish();
    }
    let reasons = queue.stats().reasons;
    assert!(reasons.len() <= 65, "{} reasons", reasons.len());
    assert_eq!(reasons.values().sum::<u64>(), 200);
}

fn faults() -> impl Strategy<Value = Option<Fault>> {
    let chunks = || 0u64..6;
    prop_oneof![
        Just(None),
        chunks().prop_map(|chunks| Some(Fault::FailNext { chunks })),
        chunks().prop_map(|chunks| Some(Fault::FailAfter { chunks })),
        chunks().prop_map(|chunks| Some(Fault::HangAfter { chunks })),
        chunks().prop_map(|chunks| Some(Fault::DieAfter { chunks })),
        Just(Some(Fault::Slow { delay: Duration::from_micros(300) })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_goes_wrong_with_the_engines_the_fallback_leaves_no_wrong_byte(
        first in faults(),
        second in faults(),
        sizes in prop::collection::vec(1u64..9, 1..8),
        chunk_pages in 1u64..4,
    ) {
        let rig = Rig::new();
        for (engine, fault) in rig.engines.iter().zip([first, second]) {
            fault.into_iter().for_each(|fault| engine.inject(fault));
        }
        let cpu = CpuEngine::new("cpu", rig.memory.clone());
        let timeout = Duration::from_millis(40);
        let queue = rig.queue().chunk_bytes(chunk_pages * PAGE).chunk_timeout(timeout).fallback(cpu).build();
        let watchdog = Watchdog::start();
        watchdog.watch(queue.watched());
        // Down, cleared, up again: three moves a buffer, each needing the one before.
        let moves = sizes.iter().scan(0, |next, size| {
            let from = *next;
            *next = (from + size) % (PAGES - 8);
            Some((from, *size))
        });
        let mut last = Fence::signaled();
        for (at, size) in moves {
            let clear = submit(&queue, MoveRequest::clear(at, vram(at, size)).needs(last));
            last = submit(&queue, upload(at, at, at, size).needs(clear));
        }
        prop_assert_eq!(last.wait(), Ok(()));
        let mut at = 0;
        for size in sizes {
            prop_assert!(uploaded(&rig.memory, at, at, size), "pages {}+{} are wrong", at, size);
            at = (at + size) % (PAGES - 8);
        }
    }
}
