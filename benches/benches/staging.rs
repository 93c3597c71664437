//! Moves through a staging ring, beside the same bytes in two full-size copies and in one `memcpy`.

use std::sync::Arc;

use devpagemap::migrate::{
    Addr, Extent, ExtentList, FragmentTuner, HeapMemory, MemoryMap, MoveQueue, MoveQueueBuilder, MoveRequest,
    Route, SoftwareEngine, Space, copy,
};
use devpagemap_benches::contest::{Contest, Goal};
use devpagemap_benches::session::Session;
use devpagemap_fence::{Fence, Held};

/// What is moved.
const LEN: u64 = 64 << 20;
/// What the GPU's engine sees of system memory: a ring, and room for a copy of everything.
const RING: u64 = 16 << 20;
const WINDOW: u64 = RING + LEN;
const ROUNDS: usize = 41;

fn main() {
    let mut session = Session::from_arguments();
    staged(&mut session);
    session.finish();
}

/// An engine that sees VRAM and the start of system memory, and one of the host.
struct Machine {
    memory: Arc<HeapMemory>,
}

impl Machine {
    fn new() -> Machine {
        let memory = HeapMemory::new(LEN as usize, (WINDOW + LEN) as usize);
        // Touched once, so that no round pays for the first touch of a page.
        let pages = |space, len: u64| (0..len).step_by(4096).map(move |at| Addr::new(space, at));
        for addr in pages(Space::Vram, LEN).chain(pages(Space::System, WINDOW + LEN)) {
            memory.write(addr, &[1]);
        }
        Machine { memory }
    }

    fn queue(&self) -> MoveQueueBuilder {
        let gpu = SoftwareEngine::seeing("gpu", self.memory.clone(), Route::ALL, 0..WINDOW);
        let between = Route { from: Some(Space::System), to: Space::System };
        let host = SoftwareEngine::reaching("host", self.memory.clone(), [between]);
        MoveQueue::builder().engine(gpu).engine(host)
    }

    /// A queue with a ring that has found its fragment size.
    fn ring(&self, slots: usize) -> MoveQueue {
        let ring = Extent::new(Addr::new(Space::System, 0), RING);
        let queue = self.queue().staging(ring).staging_slots(slots).build();
        for _ in 0..16 {
            wait(submit(&queue, MoveRequest::copy(1, vram(), far())));
        }
        queue
    }

    fn copy_once(&self) {
        let at = |addr| self.memory.resolve(addr, LEN).expect("it is there").as_ptr();
        let (src, dst) = (at(Addr::new(Space::Vram, 0)), at(Addr::new(Space::System, WINDOW)));
        // SAFETY: both are LEN bytes of a heap that self keeps, do not overlap, and no move is under way.
        unsafe { copy::copy(dst, src, LEN as usize) };
    }
}

fn vram() -> ExtentList {
    Extent::new(Addr::new(Space::Vram, 0), LEN).into()
}

fn near() -> ExtentList {
    Extent::new(Addr::new(Space::System, RING), LEN).into()
}

fn far() -> ExtentList {
    Extent::new(Addr::new(Space::System, WINDOW), LEN).into()
}

fn submit(queue: &MoveQueue, request: MoveRequest) -> Fence {
    queue.submit(request, &mut Held::enter())
}

fn wait(fence: Fence) {
    fence.wait().expect("both engines work");
}

fn staged(session: &mut Session) {
    const NAME: &str = "64 MiB from VRAM to where the GPU does not reach, through the ring";
    if !session.wants(NAME) {
        return;
    }
    let machine = Machine::new();
    let (ring, turns, steps) = (machine.ring(4), machine.ring(1), machine.queue().build());
    let fragment_bytes = ring.stats().fragment_bytes;
    assert!(fragment_bytes <= FragmentTuner::MAX_BYTES);
    println!("fragments of {} KiB were measured to be best", fragment_bytes >> 10);
    let mut contest = Contest::new(NAME, Goal::AHEAD).of_few_rounds(ROUNDS);
    contest.ours(|| wait(submit(&ring, MoveRequest::copy(1, vram(), far()))));
    contest.variant("a ring of one slot", || wait(submit(&turns, MoveRequest::copy(1, vram(), far()))));
    contest.peer("two full-size copies", || {
        let first = submit(&steps, MoveRequest::copy(1, vram(), near()));
        wait(submit(&steps, MoveRequest::copy(2, near(), far()).needs(first)));
    });
    contest.floor("one copy by one thread", || machine.copy_once());
    contest.hold(session);
}
