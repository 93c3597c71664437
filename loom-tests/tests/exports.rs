//! Keep-alive of exported buffers: the watch that lets go against exports that hand out more, and who needs the memory.
#![cfg(loom)]

use devpagemap::{ExportTable, Kept};
use devpagemap_loom_tests::explore;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

/// A dma-buf as the kernel counts it, and whether its pages are anybody's to take.
#[derive(Clone)]
struct Pages {
    references: Arc<AtomicUsize>,
    are_free: Arc<AtomicBool>,
}

impl Pages {
    /// One reference is our own.
    fn with_others(others: usize) -> Pages {
        Pages {
            references: Arc::new(AtomicUsize::new(1 + others)),
            are_free: Arc::new(AtomicBool::new(false)),
        }
    }

    fn are_free(&self) -> bool {
        self.are_free.load(Ordering::Acquire)
    }

    fn close_one(&self) {
        self.references.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Keeps the pages; they are free when it is dropped.
struct Keeper(Pages);

impl Kept for Keeper {
    fn is_used_outside(&self) -> bool {
        self.0.references.load(Ordering::Acquire) > 1
    }

    fn len_bytes(&self) -> u64 {
        4096
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.are_free.store(true, Ordering::Release);
    }
}

/// Three threads, at most three preemptions: the last user outside goes, the watch looks, and the buffer is exported once more.
#[test]
fn who_gets_a_descriptor_gets_one_of_pages_that_are_still_the_buffers() {
    explore(Some(3), || {
        let pages = Pages::with_others(1);
        let table = Arc::new(ExportTable::new());
        table.keep(1, Keeper(pages.clone()));
        let watch = {
            let table = table.clone();
            thread::spawn(move || table.let_go(drop))
        };
        let other = {
            let pages = pages.clone();
            thread::spawn(move || pages.close_one())
        };
        let again = table.hand_out(1, |kept| kept.0.references.fetch_add(1, Ordering::AcqRel));
        if again.is_some() {
            assert!(!pages.are_free(), "somebody has a descriptor of pages that are given to others");
            pages.close_one();
        } else {
            assert!(!table.keeps(1), "what is not there is not kept");
        }
        other.join().expect("no panic");
        watch.join().expect("no panic");
        table.let_go(drop);
        assert!(pages.are_free() && table.is_empty(), "nobody has it any more");
    });
}

/// Two threads, exhaustive: the watch is about to give the only page back while somebody needs it.
#[test]
fn a_page_that_nobody_outside_has_any_more_can_be_had_while_the_watch_gives_it_back() {
    explore(None, || {
        let pages = Pages::with_others(0);
        let table = Arc::new(ExportTable::new());
        table.keep(1, Keeper(pages.clone()));
        let watch = {
            let table = table.clone();
            thread::spawn(move || table.let_go(drop))
        };
        let departures = table.departures();
        if !pages.are_free() {
            assert!(table.let_go_since(departures, drop), "somebody was about to give it back");
            assert!(pages.are_free());
        }
        watch.join().expect("no panic");
    });
}
