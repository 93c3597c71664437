//! Engines that fail, hang and die while they fill or empty a slot: every byte right, no slot lost.

use crate::rig::{HandEngine, PAGE, memory, submit, system, vram};
use crate::staging::{Rig, TIMEOUT, evict};
use devpagemap_fence::{Fence, FenceError, Watchdog};
use devpagemap_migrate::{
    Addr, CpuEngine, EngineError, Extent, Fault, MoveQueue, MoveRequest, Reset, Route, SoftwareEngine, Space,
};
use proptest::prelude::*;
use std::time::Duration;

const COUNT: u64 = 40;

fn watched(queue: &MoveQueue, fence: &Fence) -> Result<(), FenceError> {
    let watchdog = Watchdog::start();
    watchdog.watch(queue.watched());
    fence.wait()
}

fn has_arrived(rig: &Rig) -> bool {
    rig.holds(Space::System, 64, Space::Vram, 0, COUNT)
}

#[test]
fn a_leg_that_fails_is_redone_by_another_engine() {
    for culprit in 0..2 {
        let rig = Rig::new();
        let window = 0..crate::staging::WINDOW_PAGES * PAGE;
        let gpu = SoftwareEngine::seeing("gpu1", rig.memory.clone(), Route::ALL, window);
        let host = SoftwareEngine::reaching("host1", rig.memory.clone(), crate::staging::system_only());
        let queue = rig.queue().engine(gpu).engine(host).build();
        [&rig.gpu, &rig.host][culprit].inject(Fault::FailNext { chunks: 2 });
        submit(&queue, evict(COUNT)).wait().expect("another engine does it");
        assert!(has_arrived(&rig));
        let stats = queue.stats();
        assert_eq!((stats.engine_failures, stats.staged_bytes), (2, COUNT * PAGE));
        let name = ["gpu", "host"][culprit];
        let reason = format!("copy engine {name} failed: injected fault; chunk redone by {name}1");
        assert_eq!(stats.reasons.get(&reason), Some(&2), "{:?}", stats.reasons);
    }
}

#[test]
fn a_leg_that_no_other_engine_does_is_done_by_the_fallback() {
    for culprit in 0..2 {
        let rig = Rig::new();
        let queue = rig.queue().fallback(CpuEngine::new("cpu", rig.memory.clone())).build();
        [&rig.gpu, &rig.host][culprit].inject(Fault::FailNext { chunks: 1 });
        submit(&queue, evict(COUNT)).wait().expect("the processor does it");
        assert!(has_arrived(&rig));
        let stats = queue.stats();
        assert_eq!(
            (stats.fallback_bytes, stats.staged_bytes),
            (2 * PAGE, COUNT * PAGE),
            "one leg of two pages"
        );
    }
}

#[test]
fn an_engine_that_hangs_in_a_leg_is_reset_and_goes_on() {
    for culprit in 0..2 {
        let rig = Rig::new();
        let queue = rig.queue().fallback(CpuEngine::new("cpu", rig.memory.clone())).build();
        [&rig.gpu, &rig.host][culprit].inject(Fault::HangAfter { chunks: 3 });
        let fence = submit(&queue, evict(COUNT));
        assert_eq!(watched(&queue, &fence), Ok(()));
        assert!(has_arrived(&rig));
        assert_eq!(queue.stats().engine_hangs, 1);
        assert!(queue.stats().engines.iter().all(|engine| engine.quarantined.is_none()));
    }
}

#[test]
fn when_an_engine_dies_the_processor_does_what_is_left() {
    for culprit in 0..2 {
        let rig = Rig::new();
        let queue = rig.queue().fallback(CpuEngine::new("cpu", rig.memory.clone())).build();
        [&rig.gpu, &rig.host][culprit].inject(Fault::DieAfter { chunks: 3 });
        let fence = submit(&queue, evict(COUNT));
        assert_eq!(watched(&queue, &fence), Ok(()));
        assert!(has_arrived(&rig));
        assert!(queue.stats().engines[culprit].quarantined.is_some());
        assert!(queue.stats().staged_bytes < COUNT * PAGE, "without it the ring is of no use");
        // And the next one goes all the way on the processor.
        let staged_bytes = queue.stats().staged_bytes;
        submit(&queue, MoveRequest::copy(2, vram(50, 8), system(120, 8))).wait().expect("the processor can");
        assert_eq!(queue.stats().staged_bytes, staged_bytes);
    }
}

#[test]
fn a_staged_move_that_nobody_can_finish_fails_with_the_engine_and_its_reason() {
    for culprit in 0..2 {
        let rig = Rig::new();
        let queue = rig.queue().build();
        [&rig.gpu, &rig.host][culprit].inject(Fault::FailNext { chunks: 1 });
        let error = submit(&queue, evict(COUNT)).wait().expect_err("nobody is left");
        let FenceError::EngineFailed { engine, reason } = error else { panic!("{error:?}") };
        assert_eq!(&*engine, ["gpu", "host"][culprit]);
        assert!(reason.contains("injected fault"), "{reason}");
        queue.drain();
        // All slots are free again: the next move needs each of them.
        submit(&queue, evict(COUNT)).wait().expect("it was one failure");
        assert!(has_arrived(&rig));
    }
}

#[test]
fn moves_after_an_engine_of_the_ring_has_died_say_which_one() {
    let rig = Rig::new();
    let queue = rig.queue().build();
    rig.host.inject(Fault::DieAfter { chunks: 0 });
    let fence = submit(&queue, evict(COUNT));
    assert!(matches!(watched(&queue, &fence), Err(FenceError::EngineFailed { .. })));
    let error = submit(&queue, evict(COUNT)).wait().expect_err("the host's engine is dead");
    let FenceError::EngineFailed { engine, reason } = error else { panic!("{error:?}") };
    assert_eq!((&*engine, reason.contains("quarantined")), ("host", true), "{reason}");
}

#[test]
fn a_slot_is_not_filled_again_while_a_hung_engine_may_read_it() {
    let memory = memory(128, 128);
    let gpu = HandEngine::seeing("gpu", 1, &memory, Reset::Recovered, true, 0..32);
    let host = HandEngine::seeing("host", 1, &memory, Reset::Recovered, false, 0..128);
    let ring = Extent::new(Addr::new(Space::System, 0), PAGE);
    let queue = MoveQueue::builder().engine(gpu.clone()).engine(host.clone()).staging(ring).staging_slots(1);
    let queue = queue.chunk_bytes(PAGE).chunk_timeout(Duration::ZERO).build();
    let first = submit(&queue, MoveRequest::copy(1, vram(0, 1), system(64, 1)));
    let second = submit(&queue, MoveRequest::copy(2, vram(1, 1), system(65, 1)));
    gpu.finish();
    assert_eq!((host.ways(), gpu.ways()), (vec![(0, 64)], vec![]));
    // The engine fails: nobody else can, the move is given up, and only now the slot is free.
    host.fail();
    assert!(matches!(first.status(), Some(Err(FenceError::EngineFailed { .. }))));
    assert_eq!(gpu.ways(), [(1, 0)]);
    gpu.finish();
    let (chunk, done) = host.take(0);
    let hung = queue.watched().upgrade().expect("the queue is alive");
    // While its chunk is with the host, the slot is nobody else's.
    let third = submit(&queue, MoveRequest::copy(3, vram(2, 1), system(66, 1)));
    assert_eq!(gpu.ways(), []);
    host.perform(&chunk);
    done.complete(Ok(()));
    assert_eq!((second.status(), gpu.ways()), (Some(Ok(())), vec![(2, 0)]));
    gpu.finish();
    host.finish();
    assert_eq!(third.status(), Some(Ok(())));
    drop(hung);
}

#[test]
fn an_engine_that_refuses_a_leg_is_not_waited_for() {
    struct Refusing;
    impl devpagemap_migrate::CopyEngine for Refusing {
        fn name(&self) -> &str {
            "refusing"
        }
        fn submit(
            &self,
            _: devpagemap_migrate::Chunk,
            _: devpagemap_migrate::Completion,
        ) -> Result<(), EngineError> {
            Err(EngineError::failed("no descriptor is free"))
        }
        fn reset(&self) -> Reset {
            Reset::Recovered
        }
    }
    let rig = Rig::new();
    let ring = Extent::new(Addr::new(Space::System, 8 * PAGE), 8 * PAGE);
    let queue = MoveQueue::builder().engine(rig.gpu.clone()).engine(std::sync::Arc::new(Refusing));
    let queue = queue.engine(rig.host.clone()).staging(ring).build();
    submit(&queue, evict(COUNT)).wait().expect("the ring is left when the refusing engine is quarantined");
    assert!(has_arrived(&rig));
}

fn any_fault() -> impl Strategy<Value = Option<Fault>> {
    prop_oneof![
        Just(None),
        (1..4u64).prop_map(|chunks| Some(Fault::FailNext { chunks })),
        (0..8u64).prop_map(|chunks| Some(Fault::FailAfter { chunks })),
        (0..8u64).prop_map(|chunks| Some(Fault::HangAfter { chunks })),
        (0..8u64).prop_map(|chunks| Some(Fault::DieAfter { chunks })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn with_a_fallback_no_fault_of_either_engine_loses_a_byte(
        faults in (any_fault(), any_fault()),
        slots in 1..4usize,
    ) {
        let rig = Rig::new();
        let cpu = CpuEngine::new("cpu", rig.memory.clone());
        let queue = rig.queue().staging_slots(slots).fallback(cpu).chunk_timeout(TIMEOUT).build();
        let (gpu, host) = faults;
        gpu.into_iter().for_each(|fault| rig.gpu.inject(fault));
        host.into_iter().for_each(|fault| rig.host.inject(fault));
        let fences = [
            submit(&queue, evict(COUNT).background()),
            submit(&queue, MoveRequest::copy(2, system(120, 30), vram(60, 30))),
        ];
        queue.drain();
        prop_assert!(fences.iter().all(|fence| fence.status() == Some(Ok(()))));
        prop_assert!(has_arrived(&rig));
        prop_assert!(rig.holds(Space::Vram, 60, Space::System, 120, 30));
    }

    #[test]
    fn without_a_fallback_a_move_fails_or_every_byte_is_there(faults in (any_fault(), any_fault())) {
        let rig = Rig::new();
        let queue = rig.queue().chunk_timeout(TIMEOUT).build();
        let (gpu, host) = faults;
        gpu.into_iter().for_each(|fault| rig.gpu.inject(fault));
        host.into_iter().for_each(|fault| rig.host.inject(fault));
        let fence = submit(&queue, evict(COUNT));
        queue.drain();
        match fence.status() {
            Some(Ok(())) => prop_assert!(has_arrived(&rig)),
            Some(Err(FenceError::EngineFailed { .. })) => {}
            other => prop_assert!(false, "{other:?}"),
        }
    }
}
