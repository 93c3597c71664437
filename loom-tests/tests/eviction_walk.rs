//! A walk over the LRU that has to wait, and so lets go of the region lock, against those who change the list meanwhile.
#![cfg(loom)]

use devpagemap::{Error, Place, Size};
use devpagemap_loom_tests::explore;
use devpagemap_loom_tests::gpu::{PAGE, buffer, check_at_rest, device};
use loom::thread;

/// Two threads, at most three preemptions: what the walk stood on is evicted by somebody else, who then stands in the way himself.
#[test]
fn the_buffer_that_a_walk_waited_for_may_be_gone() {
    explore(Some(3), || {
        let device = device(1);
        let victim = buffer(&device);
        victim.place_now().expect("the page is free");
        let rival = {
            let device = device.clone();
            thread::spawn(move || {
                let rival = buffer(&device);
                rival.place_now().map(|()| rival)
            })
        };
        let mine = buffer(&device);
        assert_eq!(mine.place_now(), Ok(()));
        let rival = rival.join().expect("no panic").expect("it can wait, too");
        check_at_rest(&device, 1, 2);
        drop((victim, rival, mine));
    });
}

/// Two threads, at most three preemptions: what the walk stands on is pinned, and unpinned, and touched.
#[test]
fn the_buffer_that_a_walk_waited_for_may_be_pinned_meanwhile() {
    explore(Some(3), || {
        let device = device(1);
        let mapped = buffer(&device);
        mapped.place_now().expect("the page is free");
        let cpu = {
            let mapped = mapped.clone();
            thread::spawn(move || drop(mapped.vmap().expect("it is where the CPU sees it, or comes back")))
        };
        match buffer(&device).place_now() {
            Ok(()) => {}
            Err(Error::Exhausted { pinned_bytes: PAGE, .. }) => {}
            Err(error) => panic!("the page is pinned, or it is not: {error}"),
        }
        cpu.join().expect("no panic");
        assert_eq!(buffer(&device).place_now(), Ok(()), "nothing is pinned any more");
        assert_eq!(device.stats().vram_pinned_bytes, 0);
    });
}

/// Two threads, at most three preemptions: a victim is about to be relocated to the very page that somebody else needs. Set aside
/// for it, that page is on no list until the relocation is done.
#[test]
fn a_page_that_is_set_aside_for_a_relocated_buffer_is_waited_for() {
    explore(Some(3), || {
        let device = device(2);
        let page = |page: u64| Place::VRAM.within(page * PAGE..(page + 1) * PAGE);
        let builder = || device.buffer(Size::bytes(PAGE));
        let victim = builder().prefer(page(0).desired()).or(Place::VRAM).create().expect("one page fits");
        victim.place_now().expect("the page is free");
        let [first, second] = [0, 1].map(|at| builder().prefer(page(at)).create().expect("one page fits"));
        let other = {
            let first = first.clone();
            thread::spawn(move || first.place_now())
        };
        assert_eq!((second.place_now(), other.join().expect("no panic")), (Ok(()), Ok(())));
        check_at_rest(&device, 2, 1);
        drop((victim, first, second));
    });
}

/// Two threads, exhaustive: contiguous bytes, whose owner dies under the walk.
#[test]
fn the_owner_of_a_window_may_be_dying() {
    explore(None, || {
        let device = device(2);
        let (dying, kept) = (buffer(&device), buffer(&device));
        dying.place_now().expect("a page is free");
        kept.place_now().expect("a page is free");
        let release = thread::spawn(move || drop(dying));
        let wide = device.buffer(Size::bytes(2 * PAGE)).prefer(Place::VRAM.contiguous());
        let wide = wide.create().expect("two pages fit");
        assert_eq!(wide.place_now(), Ok(()));
        release.join().expect("no panic");
        check_at_rest(&device, 2, 1);
    });
}
