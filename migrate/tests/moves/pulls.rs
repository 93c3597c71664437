//! Two devices with engines of their own: one pulls what is in the memory of the other.

use crate::rig::{PAGE, memory, page_bytes, submit, system, vram};
use devpagemap_fence::{FenceError, Held, Timeline, Watchdog};
use devpagemap_migrate::{
    Addr, CpuEngine, Extent, Fault, HeapMemory, MemoryMap, MoveQueue, MoveQueueBuilder, MoveRequest, Route,
    SoftwareEngine, Space, SysAddr,
};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

const PAGES: u64 = 128;
/// Where the peer sees the first page of our system memory.
const SHIFT: u64 = 1 << 30;
const TIMEOUT: Duration = Duration::from_millis(150);

/// What a peer sees: its own memory, and our system memory further up.
struct PeerView {
    own: Arc<HeapMemory>,
    ours: Arc<HeapMemory>,
}

// SAFETY: both heaps stay where they are as long as they live, and self keeps them.
unsafe impl MemoryMap for PeerView {
    fn resolve(&self, addr: Addr, len_bytes: u64) -> Option<NonNull<u8>> {
        match addr {
            Addr::System(SysAddr(offset)) if offset >= SHIFT => {
                self.ours.resolve(Addr::new(Space::System, offset - SHIFT), len_bytes)
            }
            _ => self.own.resolve(addr, len_bytes),
        }
    }
}

/// A device that wants bytes, and its peer that has them.
struct Pair {
    ours: Arc<HeapMemory>,
    theirs: Arc<HeapMemory>,
    engine: Arc<SoftwareEngine>,
    peer_engine: Arc<SoftwareEngine>,
}

impl Pair {
    fn new() -> Pair {
        let ours = HeapMemory::new((PAGES * PAGE) as usize, (PAGES * PAGE) as usize);
        let theirs = memory(PAGES, PAGES);
        let view = Arc::new(PeerView { own: theirs.clone(), ours: ours.clone() });
        let engine = SoftwareEngine::new("ours", ours.clone());
        let peer_engine = SoftwareEngine::new("theirs", view);
        Pair { ours, theirs, engine, peer_engine }
    }

    /// With a ring of two slots of two pages.
    fn queue(&self) -> MoveQueueBuilder {
        let ring = Extent::new(Addr::new(Space::System, 16 * PAGE), 4 * PAGE);
        let queue = MoveQueue::builder().engine(self.engine.clone()).chunk_timeout(TIMEOUT);
        queue.staging(ring).staging_slots(2)
    }

    fn peer_queue(&self) -> MoveQueueBuilder {
        MoveQueue::builder().engine(self.peer_engine.clone()).chunk_timeout(TIMEOUT)
    }

    /// A pull of `count` pages of the peer's VRAM, from its page 10 on, to our VRAM.
    fn pull(&self, queue: &MoveQueue, peer: &MoveQueue, count: u64) -> MoveRequest {
        let ring = queue.staging_ring(&mut Held::enter()).expect("it was given memory");
        MoveRequest::pull(1, peer.peer(), vram(10, count), ring.addr.add(SHIFT), vram(3, count))
    }

    fn has_arrived(&self, count: u64) -> bool {
        (0..count).all(|page| {
            self.ours.read(Addr::new(Space::Vram, (3 + page) * PAGE), PAGE as usize)
                == page_bytes(Space::Vram, 10 + page)
        })
    }
}

#[test]
fn a_device_pulls_what_is_in_the_vram_of_its_peer() {
    let pair = Pair::new();
    let (queue, peer) = (pair.queue().build(), pair.peer_queue().build());
    submit(&queue, pair.pull(&queue, &peer, 51)).wait().expect("both engines work");
    assert!(pair.has_arrived(51));
    let (stats, theirs) = (queue.stats(), peer.stats());
    assert_eq!((stats.moved_bytes, stats.staged_bytes, stats.moves), (51 * PAGE, 51 * PAGE, 1));
    assert_eq!((theirs.engines[0].bytes, theirs.moves), (51 * PAGE, 0), "an errand is no move of the peer's");
}

#[test]
fn two_devices_pull_from_each_other_at_once() {
    let (a, b) = (memory(PAGES, PAGES), memory(PAGES, PAGES));
    let view = |own: &Arc<HeapMemory>, other: &Arc<HeapMemory>| {
        Arc::new(PeerView { own: own.clone(), ours: other.clone() })
    };
    let ring = Extent::new(Addr::new(Space::System, 0), 4 * PAGE);
    let device = |name: &str, view| {
        let builder = MoveQueue::builder().engine(SoftwareEngine::new(name, view)).staging(ring);
        builder.staging_slots(2).build()
    };
    let (qa, qb) = (device("a", view(&a, &b)), device("b", view(&b, &a)));
    let ring_at = ring.addr.add(SHIFT);
    for round in 0..20 {
        let fences = [
            submit(&qa, MoveRequest::pull(1, qb.peer(), vram(0, 40), ring_at, vram(64, 40))),
            submit(&qb, MoveRequest::pull(2, qa.peer(), vram(0, 40), ring_at, vram(64, 40))),
        ];
        assert!(fences.iter().all(|fence| fence.wait().is_ok()), "round {round}");
    }
    for memory in [&a, &b] {
        let at = |page| memory.read(Addr::new(Space::Vram, page * PAGE), PAGE as usize);
        assert!((0..40).all(|page| at(64 + page) == page_bytes(Space::Vram, page)));
    }
}

/// The lanes of the peer are all taken by moves that wait, through a job, for the pull.
#[test]
fn a_pull_does_not_stand_behind_what_waits_for_it() {
    let pair = Pair::new();
    let (queue, peer) = (pair.queue().build(), pair.peer_queue().lanes(1).build());
    let gate = Timeline::new("gate");
    let pull = submit(&queue, pair.pull(&queue, &peer, 20).after(gate.next_point()));
    let job = Timeline::new("job");
    let job_fence = job.next_point();
    let signalled = pull.on_signal(move |_| job.signal(1));
    assert!(signalled.is_ok());
    let behind = submit(&peer, MoveRequest::copy(7, vram(100, 1), system(100, 1)).after(job_fence));
    gate.signal(1);
    pull.wait().expect("nothing of the peer's stands before it");
    behind.wait().expect("the job is done");
    assert!(pair.has_arrived(20));
}

#[test]
fn a_pull_starts_when_what_it_needs_has_signalled_and_not_at_all_when_that_failed() {
    let pair = Pair::new();
    let (queue, peer) = (pair.queue().build(), pair.peer_queue().build());
    let job = Timeline::new("job");
    let fence = submit(&queue, pair.pull(&queue, &peer, 20).needs(job.next_point()));
    assert!(!fence.is_signaled());
    job.fail(1, FenceError::failed("the shader hung"));
    assert!(matches!(fence.wait(), Err(FenceError::Dependency(_))));
    assert_eq!(peer.stats().chunks, 0);
}

#[test]
fn what_the_engine_of_the_peer_fails_is_redone_by_its_fallback() {
    let pair = Pair::new();
    let view = Arc::new(PeerView { own: pair.theirs.clone(), ours: pair.ours.clone() });
    let peer = pair.peer_queue().fallback(CpuEngine::new("cpu", view)).build();
    let queue = pair.queue().build();
    pair.peer_engine.inject(Fault::FailNext { chunks: 1 });
    submit(&queue, pair.pull(&queue, &peer, 20)).wait().expect("the processor does it");
    assert!(pair.has_arrived(20));
    assert_eq!((peer.stats().fallback_bytes, queue.stats().fallback_bytes), (2 * PAGE, 0));
}

#[test]
fn a_pull_that_the_peer_cannot_do_fails_with_what_the_peer_says_and_leaves_the_ring_free() {
    let pair = Pair::new();
    let (queue, peer) = (pair.queue().build(), pair.peer_queue().build());
    pair.peer_engine.inject(Fault::FailNext { chunks: 1 });
    let error = submit(&queue, pair.pull(&queue, &peer, 20)).wait().expect_err("nobody else reads that VRAM");
    let FenceError::EngineFailed { engine, reason } = error else { panic!("{error:?}") };
    assert_eq!((&*engine, reason.contains("injected fault")), ("theirs", true), "{reason}");
    queue.drain();
    submit(&queue, pair.pull(&queue, &peer, 20)).wait().expect("it was one failure");
    assert!(pair.has_arrived(20));
}

#[test]
fn a_pull_whose_own_engine_fails_is_finished_by_the_fallback() {
    let pair = Pair::new();
    let queue = pair.queue().fallback(CpuEngine::new("cpu", pair.ours.clone())).build();
    let peer = pair.peer_queue().build();
    pair.engine.inject(Fault::FailAfter { chunks: 2 });
    submit(&queue, pair.pull(&queue, &peer, 20)).wait().expect("the processor empties the ring");
    assert!(pair.has_arrived(20));
    assert_eq!(queue.stats().fallback_bytes, 16 * PAGE);
}

#[test]
fn a_peer_that_hangs_is_reset_by_its_own_watchdog() {
    let pair = Pair::new();
    let view = Arc::new(PeerView { own: pair.theirs.clone(), ours: pair.ours.clone() });
    let (queue, peer) =
        (pair.queue().build(), pair.peer_queue().fallback(CpuEngine::new("cpu", view)).build());
    let watchdog = Watchdog::start();
    watchdog.watch(peer.watched());
    pair.peer_engine.inject(Fault::HangAfter { chunks: 1 });
    submit(&queue, pair.pull(&queue, &peer, 20)).wait().expect("it is reset");
    assert!(pair.has_arrived(20));
    assert_eq!(peer.stats().engine_hangs, 1);
}

#[test]
fn a_pull_from_a_queue_that_is_gone_fails() {
    let pair = Pair::new();
    let (queue, peer) = (pair.queue().build(), pair.peer_queue().build());
    let request = pair.pull(&queue, &peer, 20);
    drop(peer);
    assert!(matches!(submit(&queue, request).wait(), Err(FenceError::Abandoned { .. })));
}

#[test]
fn a_queue_that_is_dropped_finishes_its_pulls() {
    let pair = Pair::new();
    let (queue, peer) = (pair.queue().build(), pair.peer_queue().build());
    let fence = submit(&queue, pair.pull(&queue, &peer, 60));
    drop(queue);
    assert_eq!(fence.status(), Some(Ok(())));
    assert!(pair.has_arrived(60));
}

#[test]
fn a_pull_into_a_queue_without_a_ring_fails_and_says_so() {
    let pair = Pair::new();
    let peer = pair.peer_queue().build();
    let queue = MoveQueue::builder().engine(pair.engine.clone()).build();
    assert_eq!(queue.staging_ring(&mut Held::enter()), None);
    let ring_at = Addr::new(Space::System, SHIFT);
    let request = MoveRequest::pull(1, peer.peer(), vram(10, 2), ring_at, vram(3, 2));
    let error = submit(&queue, request).wait().expect_err("there is no ring");
    assert!(error.to_string().contains("the queue has no staging ring"), "{error}");
}

#[test]
fn a_pull_of_unequal_ends_is_refused() {
    let pair = Pair::new();
    let (queue, peer) = (pair.queue().build(), pair.peer_queue().build());
    let ring_at = Addr::new(Space::System, SHIFT);
    let request = MoveRequest::pull(1, peer.peer(), vram(10, 3), ring_at, vram(3, 2));
    let error = submit(&queue, request).wait().expect_err("three pages do not fit into two");
    assert!(error.to_string().contains("differ in length"), "{error}");
}

/// The peer's engine does not reach the ring; a second engine of the peer does.
#[test]
fn a_peer_may_need_a_ring_of_its_own_to_reach_the_ring() {
    let pair = Pair::new();
    let view = Arc::new(PeerView { own: pair.theirs.clone(), ours: pair.ours.clone() });
    let near = SoftwareEngine::seeing("near", view.clone(), Route::ALL, 0..PAGES * PAGE);
    let between = Route { from: Some(Space::System), to: Space::System };
    let far = SoftwareEngine::reaching("far", view, [between]);
    let theirs = Extent::new(Addr::new(Space::System, 0), 4 * PAGE);
    let peer = MoveQueue::builder().engine(near).engine(far).staging(theirs).build();
    let queue = pair.queue().build();
    submit(&queue, pair.pull(&queue, &peer, 20)).wait().expect("three engines and two rings");
    assert!(pair.has_arrived(20));
    assert_eq!((queue.stats().staged_bytes, peer.stats().staged_bytes), (20 * PAGE, 20 * PAGE));
}
