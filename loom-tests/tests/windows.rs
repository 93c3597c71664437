//! Windows in a BAR: mappers against each other, against those who want the space, against a move.
#![cfg(loom)]

use devpagemap::{Buffer, Device, Error, Window};
use devpagemap_loom_tests::explore;
use devpagemap_loom_tests::gpu::{ModelGpu, PAGE, buffer, windows_device};
use loom::thread;

fn window(buffer: &Buffer) -> Result<Window, Error> {
    buffer.window(0..PAGE)
}

/// A window shows a page of VRAM as long as somebody has it.
fn check_shown(device: &Device<ModelGpu>, window: &Window) -> u64 {
    device.driver().shown(window.extents()[0].addr).expect("who has a window sees something in it")
}

/// Two threads, at most six preemptions.
#[test]
fn two_mappers_of_one_range_share_one_window() {
    explore(Some(6), || {
        let device = windows_device(1, 1);
        let shared = buffer(&device);
        shared.place_now().expect("the page is free");
        let other = {
            let shared = shared.clone();
            thread::spawn(move || window(&shared).expect("one page is enough for both"))
        };
        let mine = window(&shared).expect("one page is enough for both");
        assert_eq!(mine.extents(), other.join().expect("no panic").extents());
        assert_eq!(device.stats().windows_made, 1);
    });
}

/// Two threads, at most three preemptions: one uses a window that is there, the other wants its space.
#[test]
fn a_window_is_used_or_its_space_is_taken_and_who_has_it_sees_his_own_page() {
    explore(Some(3), || {
        let device = windows_device(2, 1);
        let (first, second) = (buffer(&device), buffer(&device));
        second.place_now().expect("a page is free");
        drop(window(&first).expect("the BAR is empty"));
        let of_first = check_place(&device, &first);
        let other = {
            let (device, first) = (device.clone(), first.clone());
            thread::spawn(move || match window(&first) {
                Ok(window) => assert_eq!(check_shown(&device, &window), of_first),
                Err(error) => assert!(matches!(error, Error::ApertureFull { .. }), "{error}"),
            })
        };
        match window(&second) {
            Ok(window) => assert_eq!(check_shown(&device, &window), PAGE - of_first),
            Err(error) => assert!(matches!(error, Error::ApertureFull { .. }), "{error}"),
        }
        other.join().expect("no panic");
        drop(window(&second).expect("nobody has a window"));
        drop((first, second));
        assert_eq!((device.stats().window_bytes, device.stats().window_pending_bytes), (0, 0));
    });
}

/// Where a buffer of one page lies.
fn check_place(device: &Device<ModelGpu>, buffer: &Buffer) -> u64 {
    check_shown(device, &window(buffer).expect("it is shown"))
}

/// Two threads, at most three preemptions: one wants more than can be had and gives back what it has caught, just while the
/// other looks for a page.
#[test]
fn space_that_a_vain_hunt_gives_back_is_waited_for() {
    explore(Some(3), || {
        let device = windows_device(5, 2);
        let (kept, idle, mine) = (buffer(&device), buffer(&device), buffer(&device));
        mine.place_now().expect("a page is free");
        let wide = device.buffer(devpagemap::Size::bytes(2 * PAGE)).create().expect("two pages fit");
        wide.place_now().expect("two pages are free");
        let kept_window = window(&kept).expect("the BAR is empty");
        drop(window(&idle).expect("there is a page"));
        let greedy = thread::spawn(move || {
            let refused = wide.window(0..2 * PAGE).expect_err("one page is kept, or two");
            assert!(matches!(refused, Error::ApertureFull { .. }), "{refused}");
        });
        let found = window(&mine).expect("one page can be had, whoever has it in hand");
        check_shown(&device, &found);
        greedy.join().expect("no panic");
        drop(kept_window);
    });
}

/// Two threads, exhaustive: a window is returned while its buffer moves away.
#[test]
fn a_window_that_is_returned_while_its_buffer_moves_leaves_its_space_free() {
    explore(None, || {
        let device = windows_device(1, 1);
        let moved = buffer(&device);
        let kept = window(&moved).expect("the BAR is empty");
        let user = thread::spawn(move || drop(kept));
        let other = buffer(&device);
        other.place_now().expect("the first is evicted");
        user.join().expect("no panic");
        assert_eq!(device.stats().window_bytes, 0, "nobody has a window, and nobody may");
        check_shown(&device, &window(&other).expect("the space is free"));
    });
}
