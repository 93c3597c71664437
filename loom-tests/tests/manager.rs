//! Buffers that want the same memory: validate against evict, against release, against the fences of former users.
#![cfg(loom)]

use devpagemap::{Place, Size};
use devpagemap_loom_tests::explore;
use devpagemap_loom_tests::gpu::{
    PAGE, buffer, check_at_rest, device, first_byte, gtt_device, start_job, tight_device, write_page,
};
use loom::thread;

/// Two threads, at most six preemptions.
#[test]
fn two_submitters_of_one_page_both_get_it() {
    explore(Some(6), || {
        let device = device(1);
        let (first, second) = (buffer(&device), buffer(&device));
        let other = {
            let first = first.clone();
            thread::spawn(move || first.place_now())
        };
        let mine = second.place_now();
        assert_eq!((mine, other.join().expect("no panic")), (Ok(()), Ok(())));
    });
}

/// Two threads, exhaustive.
#[test]
fn memory_that_a_destructor_is_about_to_give_back_is_waited_for() {
    explore(None, || {
        let device = device(1);
        let dying = buffer(&device);
        dying.place_now().expect("the page is free");
        let destructor = thread::spawn(move || drop(dying));
        assert_eq!(buffer(&device).place_now(), Ok(()));
        destructor.join().expect("no panic");
        device.wait_idle();
        assert_eq!(device.stats().vram_used_bytes, 0);
    });
}

/// Two threads, exhaustive.
#[test]
fn reused_bytes_are_not_touched_before_their_former_user_is_done() {
    explore(None, || {
        let device = device(1);
        let first = buffer(&device);
        let fence = start_job(&device, &first);
        drop(first);
        let gpu = {
            let device = device.clone();
            thread::spawn(move || {
                write_page(&device, 0, 7);
                device.driver().jobs.signal(fence.seqno());
            })
        };
        let second = buffer(&device);
        second.place_now().expect("the page is free behind the job's fence");
        gpu.join().expect("no panic");
        assert_eq!(first_byte(&second), 0, "the clear came after the job's writes");
    });
}

/// Two threads, at most two preemptions.
#[test]
fn an_eviction_takes_along_what_the_last_job_wrote() {
    explore(Some(2), || {
        let device = device(1);
        let written = buffer(&device);
        let fence = start_job(&device, &written);
        let gpu = {
            let device = device.clone();
            thread::spawn(move || {
                write_page(&device, 0, 7);
                device.driver().jobs.signal(fence.seqno());
            })
        };
        buffer(&device).place_now().expect("the page is free once its buffer is evicted");
        assert_eq!(first_byte(&written), 7);
        gpu.join().expect("no panic");
    });
}

/// Three threads, at most three preemptions: one validates, one evicts, one releases, for the only page there is.
#[test]
fn validate_evict_and_release_of_one_page_all_get_on() {
    explore(Some(3), || {
        let device = device(1);
        let (dying, kept) = (buffer(&device), buffer(&device));
        dying.place_now().expect("the page is free");
        let release = thread::spawn(move || drop(dying));
        let validate = {
            let kept = kept.clone();
            thread::spawn(move || kept.place_now())
        };
        let mine = buffer(&device);
        assert_eq!(mine.place_now(), Ok(()));
        assert_eq!(validate.join().expect("no panic"), Ok(()));
        release.join().expect("no panic");
        check_at_rest(&device, 1, 1);
    });
}

/// Two threads, at most three preemptions: one needs all of VRAM and sets aside what is free, which is just what the other
/// needs; no buffer on the LRU is in its way.
#[test]
fn what_another_evictor_has_set_aside_is_waited_for() {
    explore(Some(3), || {
        let device = device(2);
        let only_in = |pages: std::ops::Range<u64>| {
            let place = Place::VRAM.within(pages.start * PAGE..pages.end * PAGE);
            let size = Size::bytes((pages.end - pages.start) * PAGE);
            device.buffer(size).prefer(place).create().expect("it fits")
        };
        let victim = only_in(1..2);
        victim.place_now().expect("a page is free");
        let (first, second) = (only_in(0..2), only_in(0..1));
        let other = {
            let first = first.clone();
            thread::spawn(move || first.place_now())
        };
        assert_eq!((second.place_now(), other.join().expect("no panic")), (Ok(()), Ok(())));
    });
}

/// Two threads, at most six preemptions: a budget, not a place, and one has claimed it and has not entered.
#[test]
fn the_gtt_budget_is_not_exhausted_while_somebody_is_on_his_way_into_it() {
    explore(Some(6), || {
        let device = gtt_device(1);
        let gtt = || device.buffer(Size::bytes(PAGE)).prefer(Place::GTT).create().expect("one page fits");
        let (first, second) = (gtt(), gtt());
        let other = {
            let first = first.clone();
            thread::spawn(move || first.place_now())
        };
        assert_eq!((second.place_now(), other.join().expect("no panic")), (Ok(()), Ok(())));
    });
}

/// Two threads, at most three preemptions: the copy ends that frees the last page of system memory, while somebody takes
/// that page. Before, it is free behind a fence; then it cools, and whoever wants it waits; after that it is idle. At no
/// moment is it nobody's.
#[test]
fn a_page_of_system_memory_can_be_had_while_its_ghost_is_reaped() {
    explore(Some(3), || {
        let (device, crank) = tight_device(1, 2);
        let (returning, evicted) = (buffer(&device), buffer(&device));
        returning.place_now().expect("the page is free");
        evicted.place_now().expect("there is a page to evict the other to");
        assert!(crank.turn() && crank.turn() && crank.turn(), "two clears and a copy out");
        returning.place_now().expect("there is another page to evict the other to");
        let engine = {
            let crank = crank.clone();
            thread::spawn(move || assert!(crank.turn() && crank.turn(), "a copy out and a copy in"))
        };
        let last = device.buffer(Size::bytes(PAGE)).prefer(Place::SYSTEM).create().expect("one page fits");
        assert_eq!(last.place_now(), Ok(()));
        engine.join().expect("no panic");
        assert!(crank.turn(), "the last clear");
    });
}
