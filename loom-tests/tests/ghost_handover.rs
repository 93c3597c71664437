//! Ghosts, the old places of buffers: the fence that sets them free signals while they are parked, or reused.
#![cfg(loom)]

use devpagemap_loom_tests::explore;
use devpagemap_loom_tests::gpu::{
    PAGE, buffer, check_at_rest, cranked_device, device, first_byte, start_job, write_page,
};
use loom::thread;

/// Two threads, exhaustive: the job ends while its dead buffer's page is parked. No one cleans up later.
#[test]
fn a_ghost_whose_fence_signals_while_it_is_parked_is_free() {
    explore(None, || {
        let device = device(1);
        let dying = buffer(&device);
        let job = start_job(&device, &dying);
        let gpu = {
            let device = device.clone();
            thread::spawn(move || device.driver().jobs.signal(job.seqno()))
        };
        drop(dying);
        gpu.join().expect("no panic");
        check_at_rest(&device, 0, 0);
    });
}

/// Two threads, at most three preemptions: the copy out of VRAM ends while its source is parked and given to the evictor.
#[test]
fn the_copy_that_evicts_may_end_before_the_place_it_leaves_is_parked() {
    explore(Some(3), || {
        let (device, crank) = cranked_device(1);
        let victim = buffer(&device);
        victim.place_now().expect("the page is free");
        assert!(crank.turn(), "the victim is cleared");
        write_page(&device, 0, 7);
        let engine = {
            let crank = crank.clone();
            thread::spawn(move || assert!(crank.turn() && crank.turn(), "a copy out, and a clear"))
        };
        let evictor = buffer(&device);
        assert_eq!(evictor.place_now(), Ok(()));
        engine.join().expect("no panic");
        assert_eq!(first_byte(&victim), 7, "the clear came after the copy");
        check_at_rest(&device, 1, 1);
    });
}

/// Three threads, at most two preemptions: a ghost is reaped by its fence while one buffer takes a part of it, and the
/// bytes come back when that one dies.
#[test]
fn a_ghost_that_is_reaped_while_it_is_carved_ends_up_with_one_owner() {
    explore(Some(2), || {
        let device = device(2);
        let dying = device.buffer(devpagemap::Size::bytes(2 * PAGE)).create().expect("two pages fit");
        let job = start_job(&device, &dying);
        drop(dying);
        let gpu = {
            let device = device.clone();
            thread::spawn(move || {
                write_page(&device, 0, 7);
                write_page(&device, 1, 7);
                device.driver().jobs.signal(job.seqno());
            })
        };
        let other = {
            let device = device.clone();
            thread::spawn(move || drop(buffer(&device).place_now()))
        };
        let heir = buffer(&device);
        assert_eq!(heir.place_now(), Ok(()));
        gpu.join().expect("no panic");
        other.join().expect("no panic");
        assert_eq!(first_byte(&heir), 0, "the clear came after the job's writes");
        check_at_rest(&device, 1, 0);
    });
}
