//! The staging ring: its slots against engines that answer, and fail, in two threads; its memory against a move that
//! wants it; errands against the queue that sent them.
#![cfg(loom)]

use devpagemap_fence::{Fence, FenceError, Held};
use devpagemap_loom_tests::explore;
use devpagemap_migrate::{
    Addr, Chunk, Completion, CopyEngine, CpuEngine, EngineError, Extent, HeapMemory, MoveQueue,
    MoveQueueBuilder, MoveRequest, Reset, Space,
};
use loom::sync::Mutex;
use loom::thread;
use std::ops::Range;
use std::sync::Arc;

const PAGE: u64 = 4096;
/// Where system memory begins that the GPU does not see.
const FAR: u64 = 4;
/// Pages of either memory.
const PAGES: u64 = 12;

/// Copies at once, or keeps what it is given until the model has it done.
struct Engine {
    name: &'static str,
    /// The pages of VRAM and of system memory that it sees.
    sees: [Range<u64>; 2],
    memory: Arc<HeapMemory>,
    kept: Option<Mutex<Vec<(Chunk, Completion)>>>,
}

impl Engine {
    fn gpu(memory: &Arc<HeapMemory>) -> Engine {
        Engine { name: "gpu", sees: [0..PAGES, 0..FAR], memory: memory.clone(), kept: None }
    }

    fn host(memory: &Arc<HeapMemory>) -> Engine {
        let kept = Some(Mutex::new(Vec::new()));
        Engine { name: "host", sees: [0..0, 0..PAGES], memory: memory.clone(), kept }
    }

    fn keeping(self) -> Engine {
        Engine { kept: Some(Mutex::new(Vec::new())), ..self }
    }

    fn count(&self) -> usize {
        self.kept.as_ref().expect("it keeps").lock().unwrap().len()
    }

    fn take(&self) -> (Chunk, Completion) {
        self.kept.as_ref().expect("it keeps").lock().unwrap().remove(0)
    }

    fn perform(&self, chunk: &Chunk) {
        for piece in chunk.pieces() {
            let bytes = self.memory.read(piece.src.expect("only copies"), piece.len_bytes as usize);
            self.memory.write(piece.dst, &bytes);
        }
    }

    /// Does what it keeps, until there is nothing.
    fn finish_all(&self) {
        while self.count() > 0 {
            let (chunk, done) = self.take();
            self.perform(&chunk);
            done.complete(Ok(()));
        }
    }
}

impl CopyEngine for Engine {
    fn name(&self) -> &str {
        self.name
    }

    fn window(&self, space: Space) -> Range<u64> {
        let pages = &self.sees[matches!(space, Space::System) as usize];
        pages.start * PAGE..pages.end * PAGE
    }

    fn submit(&self, chunk: Chunk, done: Completion) -> Result<(), EngineError> {
        match &self.kept {
            Some(kept) => kept.lock().unwrap().push((chunk, done)),
            None => {
                self.perform(&chunk);
                done.complete(Ok(()));
            }
        }
        Ok(())
    }

    fn reset(&self) -> Reset {
        Reset::Dead
    }
}

/// Memory whose page `n` of VRAM is full of `n`.
fn memory() -> Arc<HeapMemory> {
    let memory = HeapMemory::new((PAGES * PAGE) as usize, (PAGES * PAGE) as usize);
    (0..PAGES).for_each(|page| memory.write(at(Space::Vram, page), &[page as u8 + 1; PAGE as usize]));
    memory
}

fn at(space: Space, page: u64) -> Addr {
    Addr::new(space, page * PAGE)
}

fn pages(space: Space, first: u64, count: u64) -> Extent {
    Extent::new(at(space, first), count * PAGE)
}

/// A ring of two slots of a page.
fn queue(gpu: &Arc<Engine>, host: &Arc<Engine>) -> MoveQueueBuilder {
    let builder = MoveQueue::builder().engine(gpu.clone()).engine(host.clone()).lanes(1);
    builder.staging(pages(Space::System, 0, 2)).staging_slots(2)
}

fn evict(queue: &MoveQueue, from: u64, to: u64, count: u64) -> Fence {
    let (src, dst) = (pages(Space::Vram, from, count), pages(Space::System, to, count));
    queue.submit(MoveRequest::copy(1, src.into(), dst.into()), &mut Held::enter())
}

fn is_copied(memory: &HeapMemory, space: Space, from: u64, to: u64, count: u64) -> bool {
    let is_page = |page| {
        memory.read(at(space, to + page), PAGE as usize).iter().all(|byte| *byte == (from + page) as u8 + 1)
    };
    (0..count).all(is_page)
}

/// Two threads, at most three preemptions: two moves of two fragments each, and two slots.
#[test]
fn two_moves_through_two_slots_both_end_with_their_own_bytes() {
    explore(Some(3), || {
        let memory = memory();
        let (gpu, host) = (Arc::new(Engine::gpu(&memory)), Arc::new(Engine::host(&memory)));
        let queue = queue(&gpu, &host).build();
        let fences = [evict(&queue, 0, FAR, 2), evict(&queue, 2, FAR + 2, 2)];
        let (first, done) = host.take();
        let theirs = host.clone();
        let other = thread::spawn(move || {
            theirs.perform(&first);
            done.complete(Ok(()));
        });
        let (second, done) = host.take();
        host.perform(&second);
        done.complete(Ok(()));
        other.join().unwrap();
        host.finish_all();
        assert_eq!(fences.map(|fence| fence.status()), [Some(Ok(())), Some(Ok(()))]);
        assert!(is_copied(&memory, Space::System, 0, FAR, 4));
    });
}

/// Two threads, at most three preemptions: the second engine fails with one slot while it empties the other.
#[test]
fn a_slot_whose_second_engine_fails_keeps_its_bytes_until_another_has_them() {
    explore(Some(3), || {
        let memory = memory();
        let (gpu, host) = (Arc::new(Engine::gpu(&memory)), Arc::new(Engine::host(&memory)));
        let cpu = CpuEngine::new("cpu", memory.clone());
        let queue = queue(&gpu, &host).fallback(cpu).build();
        let fence = evict(&queue, 0, FAR, 4);
        let ((_, failing), (second, done)) = (host.take(), host.take());
        let other = thread::spawn(move || failing.complete(Err(EngineError::failed("parity error"))));
        host.perform(&second);
        done.complete(Ok(()));
        other.join().unwrap();
        host.finish_all();
        assert_eq!(fence.status(), Some(Ok(())));
        assert!(is_copied(&memory, Space::System, 0, FAR, 4));
        assert_eq!(queue.stats().fallback_bytes, PAGE);
    });
}

/// Two threads, at most three preemptions: both fragments of a move fail, and nobody else can; the next move needs both slots.
#[test]
fn a_move_that_fails_in_two_slots_leaves_both_to_the_next() {
    explore(Some(3), || {
        let memory = memory();
        let (gpu, host) = (Arc::new(Engine::gpu(&memory)), Arc::new(Engine::host(&memory)));
        let queue = queue(&gpu, &host).build();
        let fences = [evict(&queue, 0, FAR, 2), evict(&queue, 2, FAR + 2, 2)];
        let ((_, first), (_, second)) = (host.take(), host.take());
        let other = thread::spawn(move || first.complete(Err(EngineError::failed("parity error"))));
        second.complete(Err(EngineError::failed("parity error")));
        other.join().unwrap();
        assert_eq!(host.count(), 2, "both slots are full of the second move");
        host.finish_all();
        let [failed, done] = fences.map(|fence| fence.status());
        assert!(matches!(failed, Some(Err(FenceError::EngineFailed { .. }))), "{failed:?}");
        assert_eq!(done, Some(Ok(())));
        assert!(is_copied(&memory, Space::System, 2, FAR + 2, 2));
    });
}

/// Two threads, exhaustive: one asks where the ring is while the other queues the first move that needs it.
#[test]
fn a_move_that_finds_somebody_asking_for_the_ring_is_not_forgotten() {
    explore(None, || {
        let memory = memory();
        let (gpu, host) = (Arc::new(Engine::gpu(&memory)), Arc::new(Engine::host(&memory)));
        let queue = Arc::new(queue(&gpu, &host).build());
        let theirs = queue.clone();
        let asking = thread::spawn(move || theirs.staging_ring(&mut Held::enter()));
        let fence = evict(&queue, 0, FAR, 1);
        let ring = asking.join().unwrap();
        assert_eq!(ring, Some(pages(Space::System, 0, 2)));
        host.finish_all();
        assert_eq!(fence.status(), Some(Ok(())));
        assert!(is_copied(&memory, Space::System, 0, FAR, 1));
    });
}

/// Two threads, exhaustive: a pull sends its second errand while the peer ends a move of its own.
#[test]
fn errands_that_reach_a_busy_peer_are_done() {
    explore(None, || {
        let memory = memory();
        // One memory for both: what matters here is who is told what.
        let peer_engine = Arc::new(Engine::gpu(&memory).keeping());
        let peer = MoveQueue::builder().engine(peer_engine.clone()).lanes(1).build();
        let engine = Arc::new(Engine::gpu(&memory));
        let queue = MoveQueue::builder().engine(engine).lanes(1);
        let queue = queue.staging(pages(Space::System, 0, 2)).staging_slots(2).build();
        let own = evict(&peer, 0, 3, 1);
        let (chunk, done) = peer_engine.take();
        let theirs = peer_engine.clone();
        let busy = thread::spawn(move || {
            theirs.perform(&chunk);
            done.complete(Ok(()));
        });
        let src = pages(Space::Vram, 1, 2).into();
        let dst = pages(Space::Vram, 8, 2).into();
        let request = MoveRequest::pull(1, peer.peer(), src, at(Space::System, 0), dst);
        let pull = queue.submit(request, &mut Held::enter());
        busy.join().unwrap();
        peer_engine.finish_all();
        assert_eq!((own.status(), pull.status()), (Some(Ok(())), Some(Ok(()))));
        assert!(is_copied(&memory, Space::Vram, 1, 8, 2));
    });
}

/// Two threads, at most three preemptions: two errands of one pull are reported at the same time.
#[test]
fn two_reports_of_one_pull_are_both_heard() {
    explore(Some(3), || {
        let memory = memory();
        let peer_engine = Arc::new(Engine::gpu(&memory).keeping());
        let peer = MoveQueue::builder().engine(peer_engine.clone()).lanes(1).build();
        let queue = MoveQueue::builder().engine(Arc::new(Engine::gpu(&memory))).lanes(1);
        let queue = queue.staging(pages(Space::System, 0, 2)).staging_slots(2).build();
        let (src, dst) = (pages(Space::Vram, 1, 3).into(), pages(Space::Vram, 8, 3).into());
        let request = MoveRequest::pull(1, peer.peer(), src, at(Space::System, 0), dst);
        let pull = queue.submit(request, &mut Held::enter());
        let ((first, done_first), (second, done_second)) = (peer_engine.take(), peer_engine.take());
        let theirs = peer_engine.clone();
        let other = thread::spawn(move || {
            theirs.perform(&first);
            done_first.complete(Ok(()));
        });
        peer_engine.perform(&second);
        done_second.complete(Ok(()));
        other.join().unwrap();
        peer_engine.finish_all();
        assert_eq!(pull.status(), Some(Ok(())));
        assert!(is_copied(&memory, Space::Vram, 1, 8, 3));
    });
}
