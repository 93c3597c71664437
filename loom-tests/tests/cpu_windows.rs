//! CPU maps that are shown by windows, against those who want the space: the protocol of `src/cpu/windowed.rs`.
#![cfg(loom)]

use std::sync::Arc;

use devpagemap::Error;
use devpagemap_loom_tests::explore;
use devpagemap_loom_tests::gpu::{PAGE, buffer, first_byte, windows_device};
use loom::thread;

/// Two threads, at most three preemptions: a touch is served by the only window there is, just while somebody wants that for another
/// buffer. While he has it no map may lead there; and the write arrives, through the window or in system memory.
#[test]
fn a_map_is_not_at_a_window_that_somebody_else_has() {
    explore(Some(3), || {
        let device = windows_device(2, 1);
        let (mapped, other) = (buffer(&device), buffer(&device));
        mapped.place_now().expect("a page is free");
        other.place_now().expect("a page is free");
        let map = Arc::new(mapped.mapping().when_touched().map().expect("it asks for nothing"));
        let toucher = {
            let map = map.clone();
            thread::spawn(move || assert_eq!(map.touch(7), 0, "the page was cleared"))
        };
        match other.window(0..PAGE) {
            Ok(_window) => assert!(!map.is_at_window(), "what it shows is somebody else's"),
            Err(error) => assert!(matches!(error, Error::ApertureFull { .. }), "{error}"),
        }
        toucher.join().expect("no panic");
        assert_eq!((map.touch(8), first_byte(&mapped)), (7, 8));
    });
}
