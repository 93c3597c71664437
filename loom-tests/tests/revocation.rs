//! Who begins to use a pagemap against who takes it away, and gives it back.
#![cfg(loom)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use devpagemap::pagemap::{Phase, Revocation, RevokeCause};
use devpagemap::{Error, Fence, PeerAddr, Timeline, Unplug};
use devpagemap_loom_tests::gpu::{PAGE, buffer, first_byte, peer_device, windows_device, write_page};
use devpagemap_loom_tests::{Peer, Watched, explore};
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
        mappers.into_iter().for_each(|mapper| mapper.join().expect("no panic"));
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

/// Two threads, at most two preemptions: the seed of 2025, on a device.
#[test]
fn a_peer_map_beside_an_unplug_is_told_of_or_is_not_in_vram() {
    explore(Some(2), || {
        let device = peer_device(2, 2);
        let importer = device.join(Arc::new(Peer { done: Fence::signaled() })).expect("room");
        let shared = buffer(&device);
        shared.place_now().expect("there is room");
        let attachment = shared.attach(&importer).expect("one device");
        let mapper = thread::spawn(move || attachment.map(0..PAGE));
        let revoke = device.unplug(Unplug::Orderly).expect("there is system memory");
        match mapper.join().expect("no panic") {
            Ok(map) => {
                let is_in_bar = map.extents().iter().any(|extent| matches!(extent.addr, PeerAddr::Bar(_)));
                assert!(!is_in_bar || !map.is_current(), "nobody was told");
            }
            Err(error) => assert!(matches!(error, Error::Revoked { .. }), "{error}"),
        }
        assert!(revoke.done().is_signaled(), "nobody is left");
        assert_eq!((device.stats().vram_used_bytes, device.phase()), (0, Phase::Revoked));
    });
}

/// Two threads, at most two preemptions: a window that is there is borrowed, which takes no pass, while VRAM is taken away.
#[test]
fn who_borrows_a_window_beside_an_unplug_is_found_or_refused() {
    explore(Some(2), || {
        let device = windows_device(1, 1);
        let shown = buffer(&device);
        drop(shown.window(0..PAGE).expect("the page is free"));
        let borrower = {
            let shown = shown.clone();
            thread::spawn(move || shown.window(0..PAGE).map(drop))
        };
        let revoke = device.unplug(Unplug::Orderly).expect("there is system memory");
        let borrowed = borrower.join().expect("no panic");
        assert!(matches!(borrowed, Ok(()) | Err(Error::Revoked { .. })), "{borrowed:?}");
        assert!(revoke.done().is_signaled(), "nobody is left");
        assert_eq!((device.stats().vram_used_bytes, device.stats().window_bytes), (0, 0));
    });
}

/// Two threads, at most two preemptions: a buffer comes to VRAM while that is taken away.
#[test]
fn what_comes_to_vram_beside_an_unplug_is_moved_out_or_stays_away() {
    explore(Some(2), || {
        let device = peer_device(1, 1);
        let coming = buffer(&device);
        let placer = {
            let coming = coming.clone();
            thread::spawn(move || coming.place_now())
        };
        let revoke = device.unplug(Unplug::Orderly).expect("there is system memory");
        let placed = placer.join().expect("no panic");
        assert!(matches!(placed, Ok(()) | Err(Error::Revoked { .. })), "{placed:?}");
        assert!(revoke.done().is_signaled(), "nobody is left");
        assert_eq!((device.stats().vram_used_bytes, device.phase()), (0, Phase::Revoked));
    });
}

/// Two threads, at most two preemptions: an importer lets go while the watchdog finds it overdue.
#[test]
fn who_lets_go_beside_the_watchdog_is_in_time_or_keeps_its_pages() {
    explore(Some(2), || {
        let device = peer_device(1, 1);
        let work = Timeline::new("peer");
        let done = work.next_point();
        let importer = device.join(Arc::new(Peer { done: done.clone() })).expect("room");
        let shared = buffer(&device);
        let map = shared.attach(&importer).expect("one device").map(0..PAGE).expect("there is room");
        write_page(&device, 0, 7);
        let revoke = device.unplug(Unplug::Orderly).expect("there is system memory");
        let peer = thread::spawn(move || {
            work.signal(done.seqno());
            drop(map);
        });
        revoke.check(Instant::now() + Duration::from_secs(3600));
        peer.join().expect("no panic");
        assert!(revoke.done().is_signaled(), "it is over either way");
        let overdue = revoke.report().overdue.len() as u64;
        assert_eq!(device.stats().vram_quarantined_bytes, overdue * PAGE);
        assert_eq!((first_byte(&shared), device.phase()), (7, Phase::Revoked));
    });
}
