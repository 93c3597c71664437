//! Pages that are not the arena's: who imports them beside their end, and when they go.
#![cfg(loom)]

use devpagemap_loom_tests::explore;
use devpagemap_loom_tests::gpu::{buffer, cranked_device, device, first_byte, start_job};
use loom::thread;

/// Two threads, exhaustive: the last handle goes while somebody imports the same dma-buf again. He gets the same buffer, or another
/// that waits for the job of the first.
#[test]
fn who_imports_beside_the_last_drop_does_not_overtake_its_jobs() {
    explore(None, || {
        let device = device(1);
        let first = device.import_page(7).create().expect("it can be mapped");
        let job = start_job(&device, &first);
        let release = thread::spawn(move || drop(first));
        let second = device.import_page(7).create().expect("it can be mapped");
        assert!(!second.fences().is_signaled(), "the job of the first has not ended");
        device.driver().jobs.signal(job.seqno());
        release.join().expect("no panic");
        second.wait().expect("the job went well");
    });
}

/// Two threads, at most three preemptions: both import one dma-buf, and have one buffer.
#[test]
fn two_who_import_at_once_have_one_buffer() {
    explore(Some(3), || {
        let device = device(1);
        let other = {
            let device = device.clone();
            thread::spawn(move || device.import_page(7).create().expect("it can be mapped"))
        };
        let one = device.import_page(7).create().expect("it can be mapped");
        let other = other.join().expect("no panic");
        assert_eq!(one.id(), other.id());
        assert_eq!(device.stats().imports, 1);
        drop((one, other));
        assert_eq!(device.stats().imported_bytes, 0);
    });
}

/// Two threads, exhaustive: the last job ends, and with it the pages' last use, while somebody waits for an idle device.
#[test]
fn who_finds_the_device_idle_finds_the_pages_unmapped() {
    explore(None, || {
        let device = device(1);
        let imported = device.import_page(7).create().expect("it can be mapped");
        let job = start_job(&device, &imported);
        let gpu = {
            let jobs = device.driver().jobs.clone();
            thread::spawn(move || jobs.signal(job.seqno()))
        };
        drop(imported);
        device.wait_idle();
        assert_eq!(device.stats().imported_bytes, 0);
        gpu.join().expect("no panic");
    });
}

/// Two threads, at most three preemptions: a buffer leaves its pages, and an engine still copies out of them.
#[test]
fn pages_are_there_for_the_copy_that_empties_them() {
    explore(Some(3), || {
        let (device, crank) = cranked_device(1);
        let moved = buffer(&device);
        moved.leave_the_arena().expect("nobody keeps it");
        assert!(crank.turn(), "the clear");
        moved.write_at(0, &[5]).expect("it is there");
        let engine = thread::spawn(move || {
            assert!(crank.turn(), "the copy");
            assert!(!crank.turn(), "there is no more");
        });
        moved.place_now().expect("the page is free");
        assert_eq!(first_byte(&moved), 5);
        device.wait_idle();
        assert_eq!(device.stats().export_pages_bytes, 0);
        drop((moved, device));
        engine.join().expect("no panic");
    });
}
