//! The queue when nothing goes wrong: what starts when, on which engine, and in which order fences signal.

use crate::rig::{HandEngine, PAGE, memory, page_bytes, pages, submit, system, upload, uploaded, vram};
use devpagemap_fence::{FenceError, FenceSet, Held, Timeline};
use devpagemap_migrate::{
    Addr, CpuEngine, ExtentList, MoveQueue, MoveRequest, Operation, Route, SoftwareEngine, Space,
};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A queue over one engine worked by hand, a page a chunk.
fn by_hand(depth: usize, lanes: usize) -> (MoveQueue, Arc<HandEngine>) {
    let engine = HandEngine::new("sdma0", depth, &memory(64, 64));
    let queue = MoveQueue::builder().engine(engine.clone()).chunk_bytes(PAGE).lanes(lanes).build();
    (queue, engine)
}

#[test]
fn moves_on_one_lane_signal_in_the_order_they_were_queued() {
    let (queue, engine) = by_hand(3, 1);
    let fences: Vec<_> = (0..3).map(|at| submit(&queue, upload(at, at, at, 1))).collect();
    let signaled = || fences.iter().map(|fence| fence.is_signaled()).collect::<Vec<_>>();
    assert_eq!(engine.finish_at(2), 2);
    assert_eq!(signaled(), [false, false, false]);
    engine.finish();
    assert_eq!(signaled(), [true, false, false]);
    engine.finish();
    assert_eq!(signaled(), [true, true, true]);
}

#[test]
fn an_urgent_move_overtakes_a_long_background_one_at_a_chunk_boundary() {
    let (queue, engine) = by_hand(1, 2);
    let slow = submit(&queue, upload(1, 0, 0, 8).background());
    engine.finish();
    let urgent = submit(&queue, upload(2, 20, 20, 2));
    assert_eq!(engine.held(), [1], "a chunk that was begun is not taken back");
    assert_eq!([engine.finish(), engine.finish(), engine.finish()], [1, 20, 21]);
    assert!(urgent.is_signaled() && !slow.is_signaled());
    (2..8).for_each(|page| assert_eq!(engine.finish(), page));
    assert_eq!(slow.status(), Some(Ok(())));
}

#[test]
fn of_two_equally_urgent_moves_the_older_goes_first() {
    let (queue, engine) = by_hand(1, 2);
    submit(&queue, upload(1, 0, 0, 2));
    submit(&queue, upload(2, 8, 8, 2));
    assert_eq!([(); 4].map(|()| engine.finish()), [0, 1, 8, 9]);
}

#[test]
fn a_steady_stream_of_urgent_moves_does_not_starve_the_background() {
    let (queue, engine) = by_hand(1, 4);
    let mut fences =
        vec![submit(&queue, upload(0, 0, 40, 1)), submit(&queue, upload(1, 0, 50, 3).background())];
    let mut order = Vec::new();
    for turn in 0..32 {
        fences.push(submit(&queue, upload(2, 1, turn % 8, 1)));
        order.push(engine.finish());
    }
    let background = order.iter().filter(|page| **page >= 50).count();
    assert_eq!(background, 3, "one chunk in eight is due to the background: {order:?}");
    assert!(fences[1].is_signaled());
    while !queue.is_idle() {
        engine.finish();
    }
}

#[test]
fn what_an_urgent_move_waits_for_becomes_urgent() {
    let (queue, engine) = by_hand(1, 4);
    let occupied = submit(&queue, upload(0, 0, 30, 1));
    submit(&queue, upload(1, 0, 0, 3).background());
    let eviction = submit(&queue, upload(2, 0, 10, 1).background());
    let behind = submit(&queue, upload(3, 0, 11, 1).background().after(eviction));
    let fault = submit(&queue, upload(4, 0, 12, 1).after(behind));
    assert_eq!([(); 7].map(|()| engine.finish()), [30, 10, 11, 12, 0, 1, 2]);
    assert!(occupied.is_signaled() && fault.is_signaled());
}

#[test]
fn a_move_starts_when_everything_it_waits_for_has_signalled() {
    let (queue, engine) = by_hand(2, 2);
    let (job, page_table) = (Timeline::new("job"), Timeline::new("page tables"));
    let request = upload(1, 0, 0, 1).after(job.next_point()).needs(page_table.next_point());
    let fence = submit(&queue, request);
    job.signal(1);
    assert!(engine.held().is_empty());
    page_table.signal(1);
    assert_eq!(engine.held(), [0]);
    engine.finish();
    assert_eq!(fence.status(), Some(Ok(())));
}

#[test]
fn a_move_fails_uncopied_when_what_it_needs_has_failed() {
    let (queue, engine) = by_hand(2, 2);
    let upstream = Timeline::new("upstream");
    let needs = upstream.next_point();
    let waiting = submit(&queue, upload(1, 0, 0, 1).needs(needs.clone()));
    upstream.fail(1, FenceError::DeviceLost);
    let late = submit(&queue, upload(2, 0, 1, 1).needs(needs));
    let lost = FenceError::Dependency(Box::new(FenceError::DeviceLost));
    assert_eq!((waiting.status(), late.status()), (Some(Err(lost.clone())), Some(Err(lost))));
    assert!(engine.held().is_empty());
    assert_eq!((queue.stats().failed_moves, queue.stats().moved_bytes), (2, 0));
}

#[test]
fn an_error_in_what_a_move_only_comes_after_does_not_matter() {
    let (queue, engine) = by_hand(2, 2);
    let job = Timeline::new("job");
    let fence = submit(&queue, upload(1, 0, 0, 1).after(job.next_point()));
    job.fail(1, FenceError::Cancelled);
    engine.finish();
    assert_eq!(fence.status(), Some(Ok(())));
}

#[test]
fn a_blocked_move_holds_up_only_its_own_lane() {
    let (queue, engine) = by_hand(8, 2);
    let job = Timeline::new("job");
    let blocked = submit(&queue, upload(1, 0, 0, 1).after(job.next_point()));
    let others: Vec<_> = (1..5).map(|page| submit(&queue, upload(page, page, page, 1))).collect();
    (1..5).for_each(|_| {
        engine.finish();
    });
    assert!(others.iter().all(|fence| fence.is_signaled()));
    assert!(others.iter().all(|fence| fence.timeline_id() != blocked.timeline_id()));
    job.signal(1);
    engine.finish();
    assert!(blocked.is_signaled());
}

#[test]
fn a_move_joins_the_lane_of_the_move_it_waits_for() {
    let (queue, engine) = by_hand(1, 4);
    let first = submit(&queue, upload(1, 0, 0, 1));
    let other = submit(&queue, upload(2, 1, 1, 1));
    let second = submit(&queue, upload(3, 2, 2, 1).after(first.clone()));
    assert_eq!(second.timeline_id(), first.timeline_id());
    assert_ne!(other.timeline_id(), first.timeline_id());
    (0..3).for_each(|_| {
        engine.finish();
    });
    assert!(second.is_signaled());
}

#[test]
fn several_engines_work_on_one_large_move_at_once() {
    let memory = memory(16, 16);
    let engines = ["sdma0", "sdma1"].map(|name| HandEngine::new(name, 2, &memory));
    let [a, b] = &engines;
    let queue = MoveQueue::builder().engine(a.clone()).engine(b.clone()).chunk_bytes(PAGE).build();
    let fence = submit(&queue, upload(1, 0, 0, 8));
    assert_eq!((a.held(), b.held()), (vec![0, 2], vec![1, 3]));
    for engine in [b, b, b, b, b, b, a, a] {
        engine.finish();
    }
    assert!(fence.is_signaled() && uploaded(&memory, 0, 0, 8));
    let stats = queue.stats();
    assert_eq!(stats.engines.iter().map(|engine| engine.chunks).collect::<Vec<_>>(), [2, 6]);
    assert_eq!((stats.chunks, stats.moved_bytes), (8, 8 * PAGE));
}

#[test]
fn an_engine_that_cannot_reach_an_end_is_not_asked() {
    let memory = memory(16, 16);
    let up = Route { from: Some(Space::System), to: Space::Vram };
    let only_up = SoftwareEngine::reaching("up", memory.clone(), [up]);
    let others = Route::ALL.into_iter().filter(|route| *route != up);
    let rest = SoftwareEngine::reaching("rest", memory.clone(), others);
    let queue = MoveQueue::builder().engine(only_up).engine(rest).chunk_bytes(PAGE).build();
    let there = submit(&queue, upload(1, 0, 0, 4));
    let back = submit(&queue, MoveRequest::copy(1, vram(0, 4), system(8, 4)).needs(there));
    let clear = submit(&queue, MoveRequest::clear(1, vram(0, 4)).needs(back));
    assert_eq!(clear.wait(), Ok(()));
    queue.drain();
    let stats = queue.stats();
    let done: Vec<_> = stats.engines.iter().map(|engine| (engine.name.as_str(), engine.chunks)).collect();
    assert_eq!(done, [("up", 4), ("rest", 8)]);
    assert_eq!((stats.moved_bytes, stats.cleared_bytes, stats.engine_failures), (8 * PAGE, 4 * PAGE, 0));
    assert_eq!(memory.read(Addr::new(Space::Vram, 0), 16), [0; 16]);
    assert_eq!(memory.read(Addr::new(Space::System, 8 * PAGE), 4096), page_bytes(Space::System, 0));
}

#[test]
fn a_move_of_nothing_signals_when_its_fences_have() {
    let (queue, _engine) = by_hand(1, 1);
    let job = Timeline::new("job");
    let nothing = MoveRequest::copy(1, ExtentList::new(), ExtentList::new()).after(job.next_point());
    let fence = submit(&queue, nothing);
    assert!(!fence.is_signaled());
    job.signal(1);
    assert_eq!(fence.status(), Some(Ok(())));
}

#[test]
fn a_senseless_move_fails_and_says_why() {
    let (queue, engine) = by_hand(1, 1);
    let uneven = submit(&queue, MoveRequest::copy(1, system(0, 2), vram(0, 1)));
    let overlapping = submit(&queue, MoveRequest::copy(1, vram(0, 2), vram(1, 2)));
    let texts: Vec<String> =
        [uneven, overlapping].iter().map(|f| f.wait().unwrap_err().to_string()).collect();
    assert_eq!(texts[0], "a copy of 8192 bytes to 4096 bytes: the ends differ in length");
    assert_eq!(texts[1], "a copy whose source and destination overlap");
    assert!(engine.held().is_empty());
}

#[test]
fn a_chunk_carries_many_small_pieces() {
    let memory = memory(64, 64);
    let engine = HandEngine::new("sdma0", 1, &memory);
    let queue = MoveQueue::builder().engine(engine.clone()).chunk_bytes(16 * PAGE).build();
    let scattered: ExtentList = (0..16).map(|at| pages(Space::System, 63 - at * 2, 1)).collect();
    let fence = submit(&queue, MoveRequest::copy(1, scattered, vram(0, 16)));
    let (chunk, done) = engine.take(0);
    assert_eq!((chunk.pieces().len(), chunk.len_bytes()), (16, 16 * PAGE));
    engine.perform(&chunk);
    done.complete(Ok(()));
    assert!(fence.is_signaled());
    assert!((0..16).all(|at| uploaded(&memory, 63 - at * 2, at, 1)));
}

#[test]
fn submitting_while_reservations_are_held_copies_inline_if_there_is_no_other_way() {
    let memory = memory(8, 8);
    let queue = MoveQueue::builder().fallback(CpuEngine::new("cpu", memory.clone())).build();
    let reservation = devpagemap_fence::Reservation::new(());
    let mut held = Held::enter();
    let mut locked = reservation.lock(&mut held);
    let fence = queue.submit(upload(1, 0, 0, 8), &mut locked.held());
    assert_eq!(fence.status(), Some(Ok(())));
    assert!(uploaded(&memory, 0, 0, 8));
    let stats = queue.stats();
    assert_eq!(stats.fallback_bytes, 8 * PAGE);
    assert_eq!(stats.reasons["no copy engine can copy system to vram; chunk done by cpu"], 1);
}

#[test]
fn a_long_chain_of_dependent_moves_on_an_inline_engine_keeps_the_stack_flat() {
    let memory = memory(1, 1);
    let queue = MoveQueue::builder().engine(CpuEngine::new("cpu", memory)).lanes(3).build();
    let start = Timeline::new("start");
    let mut last = start.next_point();
    for at in 0..20_000u64 {
        let request = upload(at, 0, 0, 1).needs(last);
        last = submit(&queue, if at % 3 == 0 { request.background() } else { request });
    }
    start.signal(1);
    assert_eq!(last.status(), Some(Ok(())));
    assert!(queue.is_idle());
}

#[test]
fn a_callback_that_panics_stops_neither_its_lane_nor_the_queue() {
    let (queue, engine) = by_hand(2, 1);
    let first = submit(&queue, upload(1, 0, 0, 1));
    let second = submit(&queue, upload(2, 1, 1, 1));
    let third = submit(&queue, upload(3, 2, 2, 1));
    assert!(first.on_signal(|_| panic!("a careless callback")).is_ok());
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| engine.finish())).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"a careless callback"));
    assert_eq!([engine.finish(), engine.finish()], [1, 2]);
    assert!(first.is_signaled() && second.is_signaled() && third.is_signaled());
    queue.drain();
}

#[test]
fn thousands_of_tiny_moves_from_several_threads_all_signal() {
    const THREADS: u64 = 3;
    const MOVES: u64 = 3000;
    let memory = memory(THREADS * 8, THREADS * 8);
    let engines = ["sdma0", "sdma1"].map(|name| SoftwareEngine::new(name, memory.clone()));
    let [a, b] = engines;
    let queue = MoveQueue::builder().engine(a).engine(b).build();
    let called = Arc::new(AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (queue, called) = (&queue, called.clone());
            scope.spawn(move || {
                let mut before = FenceSet::new();
                for at in 0..MOVES {
                    let page = thread * 8 + at % 8;
                    let request = upload(at, page, page, 1).after(before.clone());
                    let fence = submit(queue, request);
                    let theirs = called.clone();
                    let note = move |result| {
                        assert_eq!(result, Ok(()));
                        theirs.fetch_add(1, Ordering::Relaxed);
                    };
                    if let Err(note) = fence.on_signal(note) {
                        note(fence.status().unwrap());
                    }
                    before = fence.into();
                }
            });
        }
    });
    queue.drain();
    assert_eq!(called.load(Ordering::Relaxed), THREADS * MOVES);
    let stats = queue.stats();
    assert_eq!((stats.moves, stats.moved_bytes), (THREADS * MOVES, THREADS * MOVES * PAGE));
    assert!(uploaded(&memory, 0, 0, THREADS * 8));
}

/// A page of VRAM (true) or system memory.
type End = (bool, u64);

/// A random scattered move over 24 pages of each memory.
fn operations() -> impl Strategy<Value = (bool, Vec<End>, Vec<End>)> {
    let ends = || Just((0..48u64).map(|page| (page < 24, page % 24)).collect::<Vec<_>>()).prop_shuffle();
    (any::<bool>(), ends(), 1usize..12)
        .prop_map(|(clear, ends, len)| (clear, ends[..len].to_vec(), ends[len..2 * len].to_vec()))
}

fn list(ends: &[End]) -> ExtentList {
    let space = |is_vram| if is_vram { Space::Vram } else { Space::System };
    ends.iter().map(|(is_vram, page)| pages(space(*is_vram), *page, 1)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_scattered_moves_on_two_engines_leave_the_bytes_of_a_plain_copy(
        moves in prop::collection::vec((operations(), any::<bool>()), 1..20),
        chunk_pages in 1u64..6,
    ) {
        let memory = memory(24, 24);
        let mut model: Vec<Vec<u8>> = [Space::Vram, Space::System]
            .into_iter()
            .flat_map(|space| (0..24).map(move |page| page_bytes(space, page)))
            .collect();
        let index = |(is_vram, page): (bool, u64)| if is_vram { page as usize } else { 24 + page as usize };
        let engines = ["sdma0", "sdma1"].map(|name| SoftwareEngine::new(name, memory.clone()));
        let [a, b] = engines;
        let queue = MoveQueue::builder().engine(a).engine(b).chunk_bytes(chunk_pages * PAGE).lanes(3).build();
        // The last move that touched each page; whoever touches it next comes after that.
        let mut touched: Vec<FenceSet> = vec![FenceSet::new(); 48];
        for (label, ((clear, src, dst), background)) in moves.into_iter().enumerate() {
            let operation = if clear {
                Operation::Clear { dst: list(&dst) }
            } else {
                Operation::Copy { src: list(&src), dst: list(&dst) }
            };
            let mut request = MoveRequest::new(label as u64, operation);
            for end in src.iter().chain(&dst) {
                request.needs.merge(&touched[index(*end)]);
            }
            let fence = submit(&queue, if background { request.background() } else { request });
            for (from, to) in src.iter().zip(&dst) {
                model[index(*to)] = if clear { vec![0; 4096] } else { model[index(*from)].clone() };
                touched[index(*from)].add(fence.clone());
                touched[index(*to)].add(fence.clone());
            }
        }
        queue.drain();
        for page in 0..24u64 {
            for is_vram in [true, false] {
                let space = if is_vram { Space::Vram } else { Space::System };
                let bytes = memory.read(Addr::new(space, page * PAGE), 4096);
                prop_assert!(bytes == model[index((is_vram, page))], "{space} page {page} differs");
            }
        }
        prop_assert!(queue.is_idle());
    }
}
