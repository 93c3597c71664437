//! A set of fences against those who signal them.
#![cfg(loom)]

use devpagemap_fence::{FenceSet, Timeline};
use devpagemap_loom_tests::{Watched, explore};
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use std::sync::Arc;

/// Three threads, at most three preemptions: two signal, each after work of its own, and whoever is last runs the callback.
#[test]
fn whoever_calls_back_for_a_set_has_seen_the_work_of_all_of_it() {
    explore(Some(3), || {
        let timelines = ["left", "right"].map(|name| Arc::new(Timeline::new(name)));
        let set = FenceSet::from_iter(timelines.iter().map(|timeline| timeline.next_point()));
        let work = [(); 2].map(|()| Arc::new(Watched::default()));
        let (theirs, called) = (work.clone(), Arc::new(AtomicBool::new(false)));
        let calls = called.clone();
        let hung = set.on_signaled(move || {
            assert!(theirs.iter().all(|work| work.is_written()), "the callback comes after all of it");
            calls.store(true, Ordering::Release);
        });
        assert!(hung.is_ok(), "nothing has signalled yet");
        let [left, right] = timelines;
        let [of_left, of_right] = work;
        let other = thread::spawn(move || {
            of_left.write();
            left.signal(1);
        });
        let another = thread::spawn(move || {
            of_right.write();
            right.signal(1);
        });
        other.join().unwrap();
        another.join().unwrap();
        assert!(called.load(Ordering::Acquire));
    });
}
