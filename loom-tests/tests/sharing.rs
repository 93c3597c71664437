//! Importers that let go, against moves of the buffer and against those that want their part of the BAR.
#![cfg(loom)]

use std::sync::Arc;

use devpagemap::{Access, P2p, Place, Route, Size, Timeline};
use devpagemap_loom_tests::gpu::{PAGE, buffer, first_byte, peer_device, write_page};
use devpagemap_loom_tests::{Peer, explore};
use loom::thread;

/// Two threads, at most two preemptions: a peer unmaps what it still writes, while the buffer moves. It was told, or has said
/// itself until when it writes.
#[test]
fn what_a_peer_writes_last_goes_along_with_the_buffer() {
    explore(Some(2), || {
        let device = peer_device(1, 1);
        let work = Timeline::new("peer");
        let done = work.next_point();
        let importer = device.join(Arc::new(Peer { done: done.clone() })).expect("room");
        let shared = buffer(&device);
        let map = shared.attach(&importer).expect("one device").map(0..PAGE).expect("there is room");
        assert_eq!(map.route(), Route::Declared);
        let peer = {
            let (device, done) = (device.clone(), done.clone());
            thread::spawn(move || {
                map.unmap_after(done.clone());
                write_page(&device, 0, 7);
                work.signal(done.seqno());
            })
        };
        let evictor = buffer(&device);
        evictor.place_now().expect("the first can go");
        let has_moved = shared.fences().is_signaled();
        assert!(!has_moved || done.is_signaled(), "the bytes were copied while the peer writes them");
        peer.join().expect("no panic");
        assert_eq!((first_byte(&shared), first_byte(&evictor)), (7, 0));
        assert_eq!((device.stats().p2p_used_bytes, device.stats().p2p_pending_bytes), (0, 0));
    });
}

/// Two threads, at most two preemptions: the map that would have to make way is just going. Whoever wants its page gets it.
#[test]
fn pages_of_a_map_that_is_going_are_waited_for() {
    explore(Some(2), || {
        let device = peer_device(2, 2);
        let work = Timeline::new("peer");
        let done = work.next_point();
        work.signal(done.seqno());
        let importer = device.join(Arc::new(Peer { done })).expect("room").p2p_limit(Size::bytes(PAGE));
        let lower = buffer(&device);
        let preferred = device.buffer(Size::bytes(PAGE)).prefer(Place::VRAM).p2p(P2p::Prefer);
        let preferred = preferred.create().expect("one page fits");
        preferred.place_now().expect("there is room");
        let map = lower.attach(&importer).expect("one device").map(0..PAGE).expect("there is room");
        let going = thread::spawn(move || drop(map));
        let newcomer = preferred.attach(&importer).expect("one device").map(0..PAGE).expect("it can be had");
        assert_eq!(newcomer.why_system(), None);
        going.join().expect("no panic");
        assert_eq!((device.stats().p2p_used_bytes, device.stats().p2p_peak_bytes), (PAGE, PAGE));
    });
}

/// Two threads, at most two preemptions: two importers queue a write of the same bytes at the same time. One of them is told to wait for the
/// other.
#[test]
fn of_two_who_queue_a_write_at_once_one_waits_for_the_other() {
    explore(Some(2), || {
        let device = peer_device(1, 1);
        let shared = buffer(&device);
        let [first, second] = ["first", "second"].map(|name| {
            let work = Timeline::new(name);
            let done = work.next_point();
            let importer = device.join(Arc::new(Peer { done: done.clone() })).expect("room");
            let map = shared.attach(&importer).expect("one device").map(0..PAGE).expect("there is room");
            (work, done, map)
        });
        let (work, done, map) = first;
        let other = {
            let done = done.clone();
            thread::spawn(move || {
                let before = map.enqueue(Access::Write, &done).expect("nothing is in the way");
                (map, before)
            })
        };
        let after_first = second.2.enqueue(Access::Write, &second.1).expect("nothing is in the way");
        let (map, after_second) = other.join().expect("no panic");
        let waits = [after_first.get(work.id()), after_second.get(second.0.id())];
        assert_eq!(waits.iter().flatten().count(), 1, "who comes second waits, and who comes first does not");
        work.signal(1);
        second.0.signal(1);
        drop(map);
    });
}
