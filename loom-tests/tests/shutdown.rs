//! The end of a device: its last handle goes while work ends elsewhere, or inside that work's own callback.
#![cfg(loom)]

use devpagemap_loom_tests::explore;
use devpagemap_loom_tests::gpu::{buffer, check_at_rest, cranked_device, start_job};
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use std::sync::Arc;

/// Two threads, exhaustive: the engine does the last chunk while the device is dropped.
#[test]
fn a_device_that_is_dropped_finishes_what_is_queued() {
    explore(None, || {
        let (device, crank) = cranked_device(1);
        let last = buffer(&device);
        last.place_now().expect("the page is free");
        let clear = last.fences();
        let engine = thread::spawn(move || assert!(crank.turn(), "the clear"));
        drop((last, device));
        assert!(clear.is_signaled() && clear.first_error().is_none(), "whoever dropped it has waited");
        engine.join().expect("no panic");
    });
}

/// Two threads, exhaustive: the move ends, and frees what it moved, while somebody waits for an idle device.
#[test]
fn an_idle_device_has_every_move_behind_it() {
    explore(None, || {
        let (device, crank) = cranked_device(1);
        let placed = buffer(&device);
        placed.place_now().expect("the page is free");
        let engine = thread::spawn(move || assert!(crank.turn(), "the clear"));
        drop(placed);
        device.wait_idle();
        check_at_rest(&device, 0, 0);
        engine.join().expect("no panic");
    });
}

/// Three threads with the one made to take the device down, at most two preemptions: a job's callback owns the last
/// handle, and the job ends while its owner lets go.
#[test]
fn the_last_handle_may_go_inside_a_callback() {
    explore(Some(2), || {
        let (device, crank) = cranked_device(1);
        let used = buffer(&device);
        let job = start_job(&device, &used);
        assert!(crank.turn(), "the clear");
        let gone = Arc::new(AtomicBool::new(false));
        let (theirs, jobs, seqno) = (gone.clone(), device.driver().jobs.clone(), job.seqno());
        let hung = job.on_signal(move |_| {
            drop((used, device));
            theirs.store(true, Ordering::Release);
        });
        assert!(hung.is_ok(), "the job is at work");
        let gpu = {
            let jobs = jobs.clone();
            thread::spawn(move || jobs.signal(seqno))
        };
        job.wait().expect("the job went well");
        gpu.join().expect("no panic");
        assert!(gone.load(Ordering::Acquire));
        assert!(!crank.turn(), "the device goes, and its engine with it");
        drop(jobs);
    });
}
