//! Moves whose ends no engine reaches alone: two engines and a ring between them.

use crate::rig::{PAGE, memory, page_bytes, pages, submit, system, vram};
use devpagemap_migrate::{
    Addr, Chunk, Completion, CopyEngine, CpuEngine, EngineError, Extent, ExtentList, HeapMemory, MemoryMap,
    MoveQueue, MoveQueueBuilder, MoveRequest, Reset, Route, SoftwareEngine, Space, StagingMemory,
};
use proptest::collection::vec;
use proptest::prelude::*;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const PAGES: u64 = 256;
/// The device's own engine sees this much of system memory, from its start.
pub const WINDOW_PAGES: u64 = 32;
pub const TIMEOUT: Duration = Duration::from_millis(150);

/// A device whose own engine reaches VRAM and the first pages of system memory, and a DMA engine of the host.
pub struct Rig {
    pub memory: Arc<HeapMemory>,
    pub gpu: Arc<SoftwareEngine>,
    pub host: Arc<SoftwareEngine>,
}

impl Rig {
    pub fn new() -> Rig {
        let memory = memory(PAGES, PAGES);
        let gpu = SoftwareEngine::seeing("gpu", memory.clone(), Route::ALL, 0..WINDOW_PAGES * PAGE);
        let host = SoftwareEngine::reaching("host", memory.clone(), system_only());
        Rig { memory, gpu, host }
    }

    /// Four slots of two pages, in the pages that both engines see.
    pub fn queue(&self) -> MoveQueueBuilder {
        let ring = Extent::new(Addr::new(Space::System, 8 * PAGE), 8 * PAGE);
        let builder = MoveQueue::builder().engine(self.gpu.clone()).engine(self.host.clone());
        builder.staging(ring).staging_slots(4).chunk_bytes(PAGE).chunk_timeout(TIMEOUT)
    }

    /// Whether `count` pages are what others were at first.
    pub fn holds(&self, at: Space, to: u64, from: Space, first: u64, count: u64) -> bool {
        (0..count).all(|page| {
            self.memory.read(Addr::new(at, (to + page) * PAGE), PAGE as usize)
                == page_bytes(from, first + page)
        })
    }
}

pub fn system_only() -> Vec<Route> {
    Route::ALL
        .into_iter()
        .filter(|route| route.from != Some(Space::Vram) && route.to == Space::System)
        .collect()
}

/// An eviction of pages 0.. of VRAM to system memory that the device does not see.
pub fn evict(count: u64) -> MoveRequest {
    MoveRequest::copy(1, vram(0, count), system(64, count))
}

#[test]
fn an_eviction_beyond_the_window_of_the_device_goes_through_the_ring() {
    let rig = Rig::new();
    let queue = rig.queue().build();
    submit(&queue, evict(100)).wait().expect("two engines can");
    assert!(rig.holds(Space::System, 64, Space::Vram, 0, 100));
    let stats = queue.stats();
    assert_eq!((stats.staged_bytes, stats.moved_bytes, stats.fallback_bytes), (100 * PAGE, 100 * PAGE, 0));
    let (reason, count) = stats.reasons.iter().next().expect("staging has its reason");
    assert!(
        reason.contains("no copy engine can copy vram to system") && reason.contains("staged"),
        "{reason}"
    );
    assert_eq!(*count, 50, "once a fragment of two pages");
}

#[test]
fn a_restore_from_beyond_the_window_goes_through_the_ring() {
    let rig = Rig::new();
    let queue = rig.queue().build();
    submit(&queue, MoveRequest::copy(1, system(70, 51), vram(3, 51))).wait().expect("two engines can");
    assert!(rig.holds(Space::Vram, 3, Space::System, 70, 51));
    assert_eq!(queue.stats().staged_bytes, 51 * PAGE);
}

#[test]
fn what_one_engine_reaches_does_not_go_through_the_ring() {
    let rig = Rig::new();
    let queue = rig.queue().build();
    // Pages 24..40 of system memory: half of them within the window.
    submit(&queue, MoveRequest::copy(1, vram(0, 16), system(24, 16))).wait().expect("together they can");
    assert!(rig.holds(Space::System, 24, Space::Vram, 0, 16));
    assert_eq!(queue.stats().staged_bytes, 8 * PAGE);
}

#[test]
fn scattered_memory_goes_through_the_ring_byte_for_byte() {
    let rig = Rig::new();
    let queue = rig.queue().build();
    // Every other page, and a page and a half at a time.
    let src = (0..20).map(|at| pages(Space::Vram, at * 2, 1)).collect();
    let runs =
        [(100 * PAGE, 6144), (140 * PAGE + 512, 14 * PAGE), (200 * PAGE, 4 * PAGE), (220 * PAGE, PAGE / 2)];
    let dst: ExtentList =
        runs.iter().map(|(at, len)| Extent::new(Addr::new(Space::System, *at), *len)).collect();
    submit(&queue, MoveRequest::copy(1, src, dst.clone())).wait().expect("two engines can");
    let arrived: Vec<u8> =
        dst.iter().flat_map(|extent| rig.memory.read(extent.addr, extent.len_bytes as usize)).collect();
    let wanted: Vec<u8> = (0..20).flat_map(|at| page_bytes(Space::Vram, at * 2)).collect();
    assert!(arrived == wanted);
}

#[test]
fn what_no_engine_clears_is_cleared_through_the_ring() {
    let memory = memory(PAGES, PAGES);
    let gpu = SoftwareEngine::seeing("gpu", memory.clone(), Route::ALL, 0..WINDOW_PAGES * PAGE);
    let copies = Route::ALL.into_iter().filter(|route| route.from == Some(Space::System));
    let host = SoftwareEngine::reaching("host", memory.clone(), copies);
    let ring = Extent::new(Addr::new(Space::System, 0), 8 * PAGE);
    let queue = MoveQueue::builder().engine(gpu).engine(host).staging(ring).build();
    submit(&queue, MoveRequest::clear(1, system(90, 11))).wait().expect("the ring can be cleared and copied");
    assert!(
        memory.read(Addr::new(Space::System, 90 * PAGE), 11 * PAGE as usize).iter().all(|byte| *byte == 0)
    );
    assert_eq!((queue.stats().cleared_bytes, queue.stats().staged_bytes), (11 * PAGE, 11 * PAGE));
}

#[test]
fn without_a_ring_what_no_engine_reaches_is_copied_by_the_fallback() {
    let rig = Rig::new();
    let queue = MoveQueue::builder().engine(rig.gpu.clone()).engine(rig.host.clone());
    let queue = queue.fallback(CpuEngine::new("cpu", rig.memory.clone())).build();
    submit(&queue, evict(16)).wait().expect("the processor can");
    assert!(rig.holds(Space::System, 64, Space::Vram, 0, 16));
    assert_eq!((queue.stats().staged_bytes, queue.stats().fallback_bytes), (0, 16 * PAGE));
}

#[test]
fn engines_and_a_ring_go_before_the_fallback() {
    let rig = Rig::new();
    let queue = rig.queue().fallback(CpuEngine::new("cpu", rig.memory.clone())).build();
    submit(&queue, evict(16)).wait().expect("two engines can");
    assert_eq!((queue.stats().staged_bytes, queue.stats().fallback_bytes), (16 * PAGE, 0));
}

/// What the processor sees of a device whose VRAM is behind no BAR.
struct SystemOnly(Arc<HeapMemory>);

// SAFETY: what the heap resolves stays where it is as long as it lives, and self keeps it.
unsafe impl MemoryMap for SystemOnly {
    fn resolve(&self, addr: Addr, len_bytes: u64) -> Option<NonNull<u8>> {
        (addr.space() == Space::System).then(|| self.0.resolve(addr, len_bytes)).flatten()
    }
}

#[test]
fn the_processor_does_the_leg_that_no_engine_does() {
    let rig = Rig::new();
    let cpu = CpuEngine::new("cpu", Arc::new(SystemOnly(rig.memory.clone())));
    let ring = Extent::new(Addr::new(Space::System, 0), 8 * PAGE);
    let queue = MoveQueue::builder().engine(rig.gpu.clone()).fallback(cpu).staging(ring).build();
    submit(&queue, evict(16)).wait().expect("the engine can read, the processor can write");
    assert!(rig.holds(Space::System, 64, Space::Vram, 0, 16));
    let stats = queue.stats();
    assert_eq!((stats.staged_bytes, stats.fallback_bytes), (16 * PAGE, 16 * PAGE));
    assert!(stats.reasons.keys().any(|reason| reason.ends_with("chunk done by cpu")), "{:?}", stats.reasons);
}

/// An engine that learns what it cannot address only when it is told to go there.
struct Unaware(Arc<SoftwareEngine>);

impl CopyEngine for Unaware {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn submit(&self, chunk: Chunk, done: Completion) -> Result<(), EngineError> {
        self.0.submit(chunk, done)
    }

    fn reset(&self) -> Reset {
        self.0.reset()
    }
}

#[test]
fn what_an_engine_finds_out_of_reach_goes_through_the_ring() {
    let rig = Rig::new();
    let ring = Extent::new(Addr::new(Space::System, 8 * PAGE), 8 * PAGE);
    let queue = MoveQueue::builder().engine(Arc::new(Unaware(rig.gpu.clone()))).engine(rig.host.clone());
    let queue = queue.staging(ring).chunk_bytes(4 * PAGE).build();
    submit(&queue, evict(30)).wait().expect("two engines can");
    assert!(rig.holds(Space::System, 64, Space::Vram, 0, 30));
    let stats = queue.stats();
    assert_eq!(stats.staged_bytes, 30 * PAGE);
    assert!(stats.engines.iter().all(|engine| engine.quarantined.is_none()), "to see little is no illness");
    let reason = "copy engine gpu cannot reach an address in system; chunk staged through the ring";
    assert!(stats.reasons.contains_key(reason), "{:?}", stats.reasons);
}

/// Gives what it has, when it has something, and counts who asks.
#[derive(Clone, Default)]
struct Store {
    extent: Arc<Mutex<Option<Extent>>>,
    asked: Arc<AtomicU32>,
}

impl StagingMemory for Store {
    fn take(&self, len_bytes: u64, within: Range<u64>) -> Option<Extent> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.extent.lock().unwrap().as_ref()?.take(len_bytes, within)
    }
}

#[test]
fn memory_for_the_ring_is_asked_for_once_when_it_is_needed() {
    let (rig, store) = (Rig::new(), Store::default());
    *store.extent.lock().unwrap() = Some(Extent::new(Addr::new(Space::System, 0), 64 * PAGE));
    let queue = MoveQueue::builder().engine(rig.gpu.clone()).engine(rig.host.clone());
    let queue = queue.staging(store.clone()).build();
    submit(&queue, MoveRequest::copy(1, vram(0, 8), system(0, 8))).wait().expect("one engine can");
    assert_eq!((store.asked.load(Ordering::Relaxed), queue.stats().staging_ring_bytes), (0, 0));
    for _ in 0..2 {
        submit(&queue, evict(16)).wait().expect("two engines can");
        assert_eq!(store.asked.load(Ordering::Relaxed), 1);
    }
    assert_eq!(queue.stats().staging_ring_bytes, WINDOW_PAGES * PAGE, "what is within the window of both");
}

#[test]
fn a_move_without_memory_for_a_ring_falls_back_and_the_next_one_asks_again() {
    let (rig, store) = (Rig::new(), Store::default());
    let queue = MoveQueue::builder().engine(rig.gpu.clone()).engine(rig.host.clone());
    let queue = queue.fallback(CpuEngine::new("cpu", rig.memory.clone())).staging(store.clone()).build();
    submit(&queue, evict(16)).wait().expect("the processor can");
    assert_eq!((queue.stats().staged_bytes, queue.stats().fallback_bytes), (0, 16 * PAGE));
    assert_eq!(queue.stats().reasons.get("no memory for a staging ring"), Some(&1));
    *store.extent.lock().unwrap() = Some(Extent::new(Addr::new(Space::System, 0), 8 * PAGE));
    submit(&queue, evict(16)).wait().expect("two engines can");
    assert_eq!((queue.stats().staged_bytes, queue.stats().fallback_bytes), (16 * PAGE, 16 * PAGE));
}

#[test]
fn without_memory_and_without_a_fallback_a_staged_move_fails_with_what_nobody_can() {
    let rig = Rig::new();
    let queue = MoveQueue::builder().engine(rig.gpu.clone()).engine(rig.host.clone());
    let queue = queue.staging(Store::default()).build();
    let error = submit(&queue, evict(16)).wait().expect_err("nobody can");
    let wanted = "no engine and no fallback can copy vram to system from 0x20000 on";
    assert!(error.to_string().contains(wanted), "{error}");
}

#[test]
fn a_queue_that_is_dropped_finishes_what_is_in_its_ring() {
    let rig = Rig::new();
    let queue = rig.queue().build();
    let fence = submit(&queue, evict(100));
    drop(queue);
    assert_eq!(fence.status(), Some(Ok(())));
    assert!(rig.holds(Space::System, 64, Space::Vram, 0, 100));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Moves of any kind and size, from and to where one engine reaches, or two, or both at once.
    #[test]
    fn every_byte_of_any_moves_through_a_ring_is_right(
        moves in vec((any::<bool>(), 1..40u64, 0..3u8), 1..12),
        slots in 1..5usize,
    ) {
        let rig = Rig::new();
        let queue = rig.queue().staging_slots(slots).build();
        let (mut vram_at, mut system_at) = (0, WINDOW_PAGES - 8);
        let mut wanted = Vec::new();
        for (is_eviction, count, urgency) in moves {
            if vram_at + count > PAGES || system_at + count > PAGES {
                continue;
            }
            let (here, there) = (vram(vram_at, count), system(system_at, count));
            let request = if is_eviction {
                wanted.push((Space::System, system_at, Space::Vram, vram_at, count));
                MoveRequest::copy(1, here, there)
            } else {
                wanted.push((Space::Vram, vram_at, Space::System, system_at, count));
                MoveRequest::copy(1, there, here)
            };
            submit(&queue, if urgency == 0 { request } else { request.background() });
            (vram_at, system_at) = (vram_at + count, system_at + count);
        }
        queue.drain();
        prop_assert_eq!(queue.stats().failed_moves, 0);
        for (at, to, from, first, count) in wanted {
            prop_assert!(rig.holds(at, to, from, first, count), "{} {} {} pages", at, to, count);
        }
    }
}
