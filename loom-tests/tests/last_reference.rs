//! The last reference to a buffer against a walk over the LRU that revives it.
#![cfg(loom)]

use devpagemap_loom_tests::explore;
use devpagemap_loom_tests::gpu::{buffer, check_at_rest, device, first_byte, start_job, write_page};
use loom::thread;

/// Two threads, exhaustive: whichever comes first, the page goes from one to the other and nothing is left of the dead.
#[test]
fn a_buffer_that_dies_while_it_is_evicted_leaves_nothing_behind() {
    explore(None, || {
        let device = device(1);
        let dying = buffer(&device);
        dying.place_now().expect("the page is free");
        let release = thread::spawn(move || drop(dying));
        let heir = buffer(&device);
        assert_eq!(heir.place_now(), Ok(()));
        release.join().expect("no panic");
        check_at_rest(&device, 1, 0);
    });
}

/// Two threads, exhaustive: the other is at work on a buffer and then drops it, while the walk stands on it.
#[test]
fn a_walk_that_is_left_with_the_last_reference_drops_it_outside_of_the_region_lock() {
    explore(None, || {
        let device = device(2);
        let (busy, bystander) = (buffer(&device), buffer(&device));
        busy.place_now().expect("a page is free");
        bystander.place_now().expect("a page is free");
        let other = thread::spawn(move || {
            assert!(busy.visible());
            drop(busy);
        });
        assert_eq!(buffer(&device).place_now(), Ok(()));
        other.join().expect("no panic");
    });
}

/// Three threads, at most two preemptions: the buffer dies with a job on it, and its bytes wait for the job.
#[test]
fn the_bytes_of_a_dead_buffer_belong_to_its_last_job_until_that_is_done() {
    explore(Some(2), || {
        let device = device(1);
        let dying = buffer(&device);
        let job = start_job(&device, &dying);
        let release = thread::spawn(move || drop(dying));
        let gpu = {
            let device = device.clone();
            thread::spawn(move || {
                write_page(&device, 0, 7);
                device.driver().jobs.signal(job.seqno());
            })
        };
        let heir = buffer(&device);
        assert_eq!(heir.place_now(), Ok(()));
        gpu.join().expect("no panic");
        release.join().expect("no panic");
        assert_eq!(first_byte(&heir), 0, "the clear came after the job's writes");
    });
}
