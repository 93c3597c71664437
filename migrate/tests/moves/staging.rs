//! Moves whose ends no engine reaches alone: two engines and a ring between them.

use crate::rig::{PAGE, memory, page_bytes, submit, system, vram};
use devpagemap_migrate::{
    Addr, Extent, HeapMemory, MoveQueue, MoveQueueBuilder, MoveRequest, Route, SoftwareEngine, Space,
};
use std::sync::Arc;
use std::time::Duration;

const PAGES: u64 = 256;
/// The device's own engine sees this much of system memory, from its start.
const WINDOW_PAGES: u64 = 32;
const TIMEOUT: Duration = Duration::from_millis(150);

/// A device whose own engine reaches VRAM and the first pages of system memory, and a DMA engine of the host.
struct Rig {
    memory: Arc<HeapMemory>,
    gpu: Arc<SoftwareEngine>,
    host: Arc<SoftwareEngine>,
}

impl Rig {
    fn new() -> Rig {
        let memory = memory(PAGES, PAGES);
        let gpu = SoftwareEngine::seeing("gpu", memory.clone(), Route::ALL, 0..WINDOW_PAGES * PAGE);
        let host = SoftwareEngine::reaching("host", memory.clone(), system_only());
        Rig { memory, gpu, host }
    }

    /// Four slots of two pages, in the pages that both engines see.
    fn queue(&self) -> MoveQueueBuilder {
        let ring = Extent::new(Addr::new(Space::System, 8 * PAGE), 8 * PAGE);
        let builder = MoveQueue::builder().engine(self.gpu.clone()).engine(self.host.clone());
        builder.staging(ring).staging_slots(4).chunk_bytes(PAGE).chunk_timeout(TIMEOUT)
    }

    fn holds(&self, at: Space, to: u64, from: Space, first: u64, count: u64) -> bool {
        (0..count).all(|page| {
            self.memory.read(Addr::new(at, (to + page) * PAGE), PAGE as usize)
                == page_bytes(from, first + page)
        })
    }
}

fn system_only() -> Vec<Route> {
    Route::ALL
        .into_iter()
        .filter(|route| route.from != Some(Space::Vram) && route.to == Space::System)
        .collect()
}

/// An eviction of pages 0.. of VRAM to system memory that the device does not see.
fn evict(count: u64) -> MoveRequest {
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
