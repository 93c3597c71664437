//! Who begins to use a pagemap against who takes it away, and gives it back.
#![cfg(loom)]

use std::sync::Arc;

use devpagemap::pagemap::{Phase, Revocation, RevokeCause};
use devpagemap_loom_tests::{Watched, explore};
use loom::thread;

/// A pagemap, and what is made under a pass: written by its user, then by whoever takes it away.
#[derive(Default)]
struct Pagemap {
    revocation: Revocation,
    map: Watched,
}

/// Two threads, exhaustive.
#[test]
fn a_map_beside_a_revoke_is_complete_before_anybody_is_told_or_refused() {
    explore(None, || {
        let pagemap = Arc::new(Pagemap::default());
        let mapper = {
            let pagemap = pagemap.clone();
            thread::spawn(move || match pagemap.revocation.enter() {
                Ok(_pass) => {
                    pagemap.map.write();
                    true
                }
                Err(refused) => {
                    assert_eq!(refused.cause, RevokeCause::Unplug);
                    false
                }
            })
        };
        pagemap.revocation.begin(RevokeCause::Unplug).expect("nothing is revoked");
        pagemap.revocation.wait_for_passes();
        let is_told = pagemap.map.is_written();
        pagemap.map.write();
        assert_eq!(mapper.join().expect("no panic"), is_told, "mapped and told, or neither");
        assert!(pagemap.revocation.enter().is_err());
    });
}

/// Three threads, at most three preemptions.
#[test]
fn the_last_of_two_passes_wakes_the_revoker() {
    explore(Some(3), || {
        let pagemap = Arc::new(Pagemap::default());
        let mappers = [(); 2].map(|()| {
            let pagemap = pagemap.clone();
            thread::spawn(move || drop(pagemap.revocation.enter()))
        });
        pagemap.revocation.begin(RevokeCause::Reset).expect("nothing is revoked");
        pagemap.revocation.wait_for_passes();
        pagemap.map.write();
        mappers.map(|mapper| mapper.join().expect("no panic"));
    });
}

/// Two threads, exhaustive: a surprise unplug beside a reset.
#[test]
fn of_two_revokes_at_once_one_begins() {
    explore(None, || {
        let revocation = Arc::new(Revocation::new());
        let other = {
            let revocation = revocation.clone();
            thread::spawn(move || revocation.begin(RevokeCause::Reset).is_ok())
        };
        let mine = revocation.begin(RevokeCause::SurpriseUnplug);
        let theirs = other.join().expect("no panic");
        assert_ne!(mine.is_ok(), theirs);
        if let Err(found) = mine {
            assert_eq!((found.phase, found.cause), (Phase::Invalidating, RevokeCause::Reset));
        }
    });
}

/// Two threads, exhaustive: the callback of the last fence beside the watchdog.
#[test]
fn of_two_who_finish_a_revoke_one_is_told_that_it_did() {
    explore(None, || {
        let pagemap = Arc::new(Pagemap::default());
        pagemap.revocation.begin(RevokeCause::Unplug).expect("nothing is revoked");
        pagemap.revocation.drain().expect("it was begun");
        let watchdog = {
            let pagemap = pagemap.clone();
            thread::spawn(move || pagemap.revocation.finish())
        };
        let mine = pagemap.revocation.finish();
        assert_ne!(mine, watchdog.join().expect("no panic"));
        assert_eq!(pagemap.revocation.phase(), Phase::Revoked);
    });
}

/// Two threads, exhaustive.
#[test]
fn who_maps_after_a_rearm_sees_what_was_repaired_before_it() {
    explore(None, || {
        let pagemap = Arc::new(Pagemap::default());
        pagemap.revocation.begin(RevokeCause::Reset).expect("nothing is revoked");
        pagemap.revocation.drain().expect("it was begun");
        assert!(pagemap.revocation.finish());
        let mapper = {
            let pagemap = pagemap.clone();
            thread::spawn(move || {
                let pass = pagemap.revocation.enter();
                if pass.is_ok() {
                    assert!(pagemap.map.is_written(), "a pass is newer than the repair");
                }
            })
        };
        pagemap.map.write();
        pagemap.revocation.rearm().expect("it is finished");
        mapper.join().expect("no panic");
        assert_eq!((pagemap.revocation.phase(), pagemap.revocation.epoch()), (Phase::Active, 1));
        assert!(pagemap.revocation.enter().is_ok(), "no pass is left behind");
    });
}
