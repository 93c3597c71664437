//! Who has the slots of the staging ring, and who goes first; engines worked by hand.

use crate::rig::{HandEngine, PAGE, memory, page_bytes, submit, system, vram};
use devpagemap_migrate::{Addr, Extent, HeapMemory, MoveQueue, MoveQueueBuilder, MoveRequest, Reset, Space};
use std::sync::Arc;

const PAGES: u64 = 128;
/// Where system memory begins that only the host's engine sees.
const FAR: u64 = 32;

struct Hands {
    memory: Arc<HeapMemory>,
    gpu: Arc<HandEngine>,
    host: Arc<HandEngine>,
}

impl Hands {
    fn new(depth: usize) -> Hands {
        let memory = memory(PAGES, PAGES);
        let gpu = HandEngine::seeing("gpu", depth, &memory, Reset::Recovered, true, 0..FAR);
        let host = HandEngine::seeing("host", depth, &memory, Reset::Recovered, false, 0..PAGES);
        Hands { memory, gpu, host }
    }

    /// A ring of so many slots of one page, from page 0 of system memory on.
    fn queue(&self, slots: u64) -> MoveQueueBuilder {
        let ring = Extent::new(Addr::new(Space::System, 0), slots * PAGE);
        let builder = MoveQueue::builder().engine(self.gpu.clone()).engine(self.host.clone());
        builder.staging(ring).staging_slots(slots as usize).chunk_bytes(PAGE)
    }

    /// Does whatever is to be done, the host first.
    fn finish_all(&self) {
        loop {
            if !self.host.held().is_empty() {
                self.host.finish();
            } else if !self.gpu.held().is_empty() {
                self.gpu.finish();
            } else {
                return;
            }
        }
    }
}

fn evict(label: u64, from: u64, to: u64, count: u64) -> MoveRequest {
    MoveRequest::copy(label, vram(from, count), system(to, count))
}

fn restore(label: u64, from: u64, to: u64, count: u64) -> MoveRequest {
    MoveRequest::copy(label, system(from, count), vram(to, count))
}

#[test]
fn one_engine_fills_a_slot_while_the_other_empties_the_one_before() {
    let hands = Hands::new(1);
    let queue = hands.queue(2).build();
    let fence = submit(&queue, evict(1, 0, 64, 4));
    assert_eq!((hands.gpu.ways(), hands.host.ways()), (vec![(0, 0)], vec![]));
    hands.gpu.finish();
    assert_eq!((hands.gpu.ways(), hands.host.ways()), (vec![(1, 1)], vec![(0, 64)]));
    hands.gpu.finish();
    assert_eq!((hands.gpu.ways(), hands.host.ways()), (vec![], vec![(0, 64)]), "no slot is free");
    hands.host.finish();
    assert_eq!(
        (hands.gpu.ways(), hands.host.ways()),
        (vec![(2, 0)], vec![(1, 65)]),
        "the first is free again"
    );
    hands.finish_all();
    assert_eq!(fence.status(), Some(Ok(())));
    let arrived = |page| hands.memory.read(Addr::new(Space::System, (64 + page) * PAGE), PAGE as usize);
    assert!((0..4).all(|page| arrived(page) == page_bytes(Space::Vram, page)));
}

#[test]
fn with_one_slot_the_engines_take_turns() {
    let hands = Hands::new(2);
    let queue = hands.queue(1).build();
    let fence = submit(&queue, evict(1, 0, 64, 3));
    for page in 0..3 {
        assert_eq!((hands.gpu.ways(), hands.host.ways()), (vec![(page, 0)], vec![]));
        hands.gpu.finish();
        assert_eq!((hands.gpu.ways(), hands.host.ways()), (vec![], vec![(0, 64 + page)]));
        hands.host.finish();
    }
    assert_eq!(fence.status(), Some(Ok(())));
}

#[test]
fn an_urgent_fragment_overtakes_a_move_that_is_under_way() {
    let hands = Hands::new(1);
    let queue = hands.queue(2).build();
    submit(&queue, evict(1, 0, 64, 8).background());
    let urgent = submit(&queue, evict(2, 20, 90, 1));
    hands.gpu.finish();
    assert_eq!(hands.gpu.ways(), [(20, 1)], "the next slot is for the urgent one");
    hands.gpu.finish();
    hands.host.finish();
    assert_eq!(hands.host.ways(), [(1, 90)]);
    hands.host.finish();
    assert_eq!(urgent.status(), Some(Ok(())));
    hands.finish_all();
    queue.drain();
}

#[test]
fn what_keeps_an_urgent_fragment_from_a_slot_becomes_as_urgent() {
    let hands = Hands::new(1);
    let queue = hands.queue(1).build();
    // The host is busy with something urgent that needs no ring, and has more of it.
    submit(&queue, MoveRequest::copy(1, system(40, 4), system(50, 4)));
    submit(&queue, evict(2, 0, 64, 1).background());
    hands.gpu.finish();
    let urgent = submit(&queue, evict(3, 20, 90, 1));
    assert_eq!((hands.gpu.ways(), hands.host.ways()), (vec![], vec![(40, 50)]), "the only slot is full");
    hands.host.finish();
    assert_eq!(hands.host.ways(), [(0, 64)], "it is emptied before older urgent chunks are gone on with");
    hands.host.finish();
    hands.gpu.finish();
    hands.finish_all();
    assert_eq!(urgent.status(), Some(Ok(())));
    queue.drain();
}

#[test]
fn moves_of_two_ways_share_the_slots() {
    let hands = Hands::new(4);
    let queue = hands.queue(4).build();
    submit(&queue, evict(1, 0, 64, 8));
    let restored = submit(&queue, restore(2, 100, 40, 2));
    // The eviction came first and has all slots; of those that it leaves, half are for the other way.
    for _ in 0..4 {
        hands.gpu.finish();
    }
    assert_eq!(hands.host.held().len(), 4);
    hands.host.finish();
    hands.host.finish();
    let fills = hands.host.ways().into_iter().filter(|(_, to)| *to < 4).count();
    assert_eq!((fills, hands.gpu.ways()), (2, vec![]), "two slots for the restore");
    hands.finish_all();
    assert_eq!(restored.status(), Some(Ok(())));
    queue.drain();
}

#[test]
fn many_moves_that_want_one_slot_all_end() {
    let hands = Hands::new(2);
    let queue = hands.queue(1).build();
    let fences: Vec<_> = (0..8)
        .flat_map(|at| [evict(at, at, 64 + at, 1), restore(at, 80 + at, 40 + at, 1).background()])
        .map(|request| submit(&queue, request))
        .collect();
    hands.finish_all();
    assert!(fences.iter().all(|fence| fence.status() == Some(Ok(()))));
}
