//! Joining and leaving against each other, and against those who look decisions up.
#![cfg(loom)]

use devpagemap::pagemap::{Observation, Observed, Owner, PagemapSpec, Profile, Registry, Route};
use devpagemap_fence::sync::Arc;
use devpagemap_loom_tests::explore;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

/// What everybody may map.
fn shown() -> PagemapSpec {
    PagemapSpec::visible(&Owner::new("gpu"))
}

/// What nobody may.
fn hidden() -> PagemapSpec {
    PagemapSpec::hidden(&Owner::new("gpu"))
}

/// Two threads, exhaustive.
#[test]
fn two_who_join_at_once_know_each_other() {
    explore(None, || {
        let registry = Registry::unknown();
        let other = {
            let registry = registry.clone();
            thread::spawn(move || registry.join_pagemap(shown()).expect("joins"))
        };
        let importer = registry.join(Profile::dynamic()).expect("joins");
        let pagemap = other.join().expect("no panic");
        assert_eq!(registry.decision(pagemap.id(), importer.id()).route, Route::Declared);
    });
}

/// Two threads, exhaustive: a pagemap leaves and another gets its slot, while pages with its tag are looked up.
#[test]
fn a_tag_never_means_who_has_the_slot_next() {
    explore(None, || {
        let registry = Registry::unknown();
        let importer = registry.join(Profile::dynamic()).expect("joins");
        let first = registry.join_pagemap(hidden()).expect("joins");
        let tags = [first.tag()];
        let other = {
            let registry = registry.clone();
            thread::spawn(move || {
                drop(first);
                registry.join_pagemap(shown()).expect("joins")
            })
        };
        let snapshot = registry.snapshot();
        let run = snapshot.resolve(importer.id(), &tags).next().expect("a page");
        assert!(matches!(run.decision.route, Route::Staging | Route::Refused), "{run:?}");
        let second = other.join().expect("no panic");
        assert_ne!(second.tag(), tags[0]);
        let now = registry.snapshot();
        let run = now.resolve(importer.id(), &tags).next().expect("a page");
        assert_eq!(run.decision.route, Route::Refused);
    });
}

/// Two threads, exhaustive.
#[test]
fn a_reader_sees_what_was_decided_before_it_looks() {
    explore(None, || {
        let registry = Registry::unknown();
        let gpu = Owner::new("gpu");
        let pagemap = registry.join_pagemap(PagemapSpec::visible(&gpu)).expect("joins");
        let importer = registry.join(Profile::dynamic()).expect("joins");
        let (vram, nic) = (pagemap.id(), importer.id());
        let mut reader = registry.reader();
        let is_refused = Arc::new(AtomicBool::new(false));
        let other = {
            let (registry, is_refused) = (registry.clone(), is_refused.clone());
            thread::spawn(move || {
                registry.observe(Observation::new(&gpu, nic, Observed::PeerAccess(false)));
                is_refused.store(true, Ordering::Release);
            })
        };
        let is_over = is_refused.load(Ordering::Acquire);
        let route = reader.decision(vram, nic).route;
        assert!(route == Route::Staging || (!is_over && route == Route::Declared), "{route}");
        other.join().expect("no panic");
        assert_eq!(reader.decision(vram, nic).route, Route::Staging);
    });
}

/// Two threads, exhaustive.
#[test]
fn who_subscribes_and_looks_misses_nothing() {
    explore(None, || {
        let registry = Registry::unknown();
        let gpu = Owner::new("gpu");
        let pagemap = registry.join_pagemap(PagemapSpec::visible(&gpu)).expect("joins");
        let importer = registry.join(Profile::dynamic()).expect("joins");
        let (vram, nic) = (pagemap.id(), importer.id());
        let other = {
            let registry = registry.clone();
            thread::spawn(move || registry.observe(Observation::new(&gpu, nic, Observed::PeerAccess(false))))
        };
        let [heard, heard_too_early] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let subscription = {
            let (inner, heard, too_early) = (registry.clone(), heard.clone(), heard_too_early.clone());
            // A panic in here would keep nobody from anything.
            registry.subscribe(move |_| match inner.decision(vram, nic).route {
                Route::Staging => heard.store(true, Ordering::Release),
                _ => too_early.store(true, Ordering::Release),
            })
        };
        let was_there = registry.decision(vram, nic).route == Route::Staging;
        other.join().expect("no panic");
        assert!(was_there || heard.load(Ordering::Acquire));
        assert!(!heard_too_early.load(Ordering::Acquire), "it is told of what is so");
        drop(subscription);
    });
}

/// Two threads, exhaustive: somebody leaves while somebody else sweeps.
#[test]
fn the_slot_of_who_has_left_is_found() {
    explore(None, || {
        let registry = Registry::unknown();
        let first = registry.join_pagemap(shown()).expect("joins");
        let slot = first.tag().to_bits();
        let other = thread::spawn(move || drop(first));
        let importer = registry.join(Profile::dynamic()).expect("joins");
        other.join().expect("no panic");
        let [second, third] = [(); 2].map(|()| registry.join_pagemap(shown()).expect("joins"));
        let slots = [second.tag(), third.tag()].map(|tag| tag.to_bits() & 0xf_ffff);
        assert_eq!(slots, [slot, slot + 1], "the slot has one next tenant");
        assert_eq!(registry.decision(second.id(), importer.id()).route, Route::Declared);
    });
}
