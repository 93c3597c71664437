//! Touches of CPU maps against moves of their buffers: the protocol of `src/cpu/mapping.rs` over a page table of one entry.
#![cfg(loom)]

use devpagemap::{Buffer, Device, Place, Size};
use devpagemap_loom_tests::explore;
use devpagemap_loom_tests::gpu::{ModelGpu, PAGE, blind_device, buffer, cranked_device, device, first_byte};
use loom::thread;

/// A buffer of one page, for VRAM, that the CPU reaches there too.
fn reachable(device: &Device<ModelGpu>) -> Buffer {
    let buffer = device.buffer(Size::bytes(PAGE)).prefer(Place::VRAM).write_combined();
    buffer.create().expect("one page fits")
}

/// Two threads, exhaustive: the map is not pointed at anything yet, so the touch is served beside the move.
#[test]
fn what_is_written_while_the_buffer_moves_goes_along() {
    explore(None, || {
        let device = device(1);
        let mapped = reachable(&device);
        mapped.place_now().expect("the page is free");
        let map = mapped.mapping().when_touched().map().expect("it asks for nothing");
        let toucher = thread::spawn(move || {
            assert_eq!(map.touch(7), 0, "the page was cleared");
            map
        });
        buffer(&device).place_now().expect("the page is free once its buffer is evicted");
        let map = toucher.join().expect("no panic");
        assert_eq!((first_byte(&mapped), map.touch(8), first_byte(&mapped)), (7, 7, 8));
    });
}

/// Two threads, exhaustive: the map is pointed at the bytes, and a second write comes while they are taken away.
#[test]
fn a_write_that_meets_the_zap_is_before_the_copy_or_behind_it() {
    explore(None, || {
        let device = device(1);
        let mapped = reachable(&device);
        let map = mapped.map().expect("the page is free");
        assert_eq!(map.touch(6), 0, "the page was cleared");
        let toucher = thread::spawn(move || {
            assert_eq!(map.touch(7), 6);
            drop(map);
        });
        buffer(&device).place_now().expect("the page is free once its buffer is evicted");
        toucher.join().expect("no panic");
        assert_eq!(first_byte(&mapped), 7);
    });
}

/// Two threads, at most three preemptions: the copy is under way when the new place is touched.
#[test]
fn bytes_are_not_seen_before_they_have_arrived() {
    explore(Some(3), || {
        let (device, crank) = cranked_device(1);
        let mapped = reachable(&device);
        mapped.place_now().expect("the page is free");
        assert!(crank.turn(), "a clear");
        let map = mapped.mapping().when_touched().map().expect("it asks for nothing");
        assert_eq!(map.touch(6), 0, "the page was cleared");
        let evictor = buffer(&device);
        evictor.place_now().expect("the page is free once its buffer is evicted");
        let engine = thread::spawn(move || assert!(crank.turn() && crank.turn(), "a copy out and a clear"));
        assert_eq!(map.touch(7), 6);
        engine.join().expect("no panic");
        assert_eq!(first_byte(&mapped), 7);
        drop((map, evictor, device));
    });
}

/// Two threads, at most three preemptions: the touch wants the bytes in system memory, the submitter in VRAM.
#[test]
fn a_toucher_and_a_submitter_that_pull_at_a_buffer_both_get_it() {
    explore(Some(3), || {
        let device = blind_device(1);
        let mapped = buffer(&device);
        mapped.place_now().expect("the page is free");
        let map = mapped.mapping().when_touched().map().expect("it asks for nothing");
        let toucher = thread::spawn(move || drop((map.touch(7), map)));
        mapped.place_now().expect("the page is free, or its own");
        toucher.join().expect("no panic");
        assert_eq!(first_byte(&mapped), 7);
    });
}

/// Two threads, exhaustive.
#[test]
fn a_map_may_be_dropped_while_its_buffer_moves() {
    explore(None, || {
        let device = device(1);
        let mapped = reachable(&device);
        let map = mapped.map().expect("the page is free");
        map.touch(7);
        let dropper = thread::spawn(move || drop(map));
        buffer(&device).place_now().expect("the page is free once its buffer is evicted");
        dropper.join().expect("no panic");
        assert_eq!(first_byte(&mapped), 7);
        let again = mapped.mapping().when_touched().map().expect("it asks for nothing");
        assert_eq!(again.touch(8), 7);
    });
}
