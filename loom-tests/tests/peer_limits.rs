//! The ledger of BAR pages: importers against each other and against fences that signal; and who is told.
#![cfg(loom)]

use devpagemap::{BarLimit, Error, Event, FenceSet, LedgerUser, PressureLevel, Timeline};
use devpagemap_loom_tests::explore;
use devpagemap_loom_tests::gpu::{PAGE, buffer, peer_device};
use loom::thread;

/// Two threads, exhaustive: there are three pages for peers, and each wants two.
#[test]
fn two_importers_that_cross_a_threshold_at_once_do_not_pass_it() {
    explore(None, || {
        let device = peer_device(3, 2);
        let (first, second) = (buffer(&device), buffer(&device));
        let (left, right) = (LedgerUser::join(&first), LedgerUser::join(&second));
        let other = thread::spawn(move || left.map(&first, 2));
        let mine = right.map(&second, 2);
        let maps = [mine, other.join().expect("no panic")];
        assert_eq!(maps.iter().filter(|map| map.is_ok()).count(), 1, "{maps:?}");
        let refused = maps.iter().find_map(|map| map.as_ref().err());
        let hard = |error: &Error| matches!(error, Error::ApertureFull { limit: BarLimit::Hard, .. });
        assert!(refused.is_some_and(hard), "{refused:?}");
        let stats = device.stats();
        assert_eq!((stats.p2p_used_bytes, stats.p2p_peak_bytes), (2 * PAGE, 2 * PAGE));
    });
}

/// Two threads, exhaustive: one map begins the pressure and its end ends it, in both threads; whoever listens hears of a
/// beginning and an end in turns, and last of the end.
#[test]
fn pressure_that_begins_and_ends_in_two_threads_is_told_in_that_order() {
    explore(None, || {
        let device = peer_device(4, 2);
        let (first, second) = (buffer(&device), buffer(&device));
        let (left, right) = (LedgerUser::join(&first), LedgerUser::join(&second));
        let events = device.events();
        let early = left.map(&first, 1).expect("there is room");
        let other = thread::spawn(move || drop(early));
        drop(right.map(&second, 1).expect("there is room"));
        other.join().expect("no panic");
        let mut lasts = false;
        while let Some(event) = events.try_next() {
            let begins = matches!(event, Event::BarPressure { level: PressureLevel::Soft, .. });
            assert_ne!(begins, lasts, "{event}");
            lasts = begins;
        }
        assert_eq!((lasts, device.bar_pressure()), (false, None));
    });
}

/// Two threads, exhaustive.
#[test]
fn pages_whose_fence_signals_while_they_are_given_back_count_no_more() {
    explore(None, || {
        let device = peer_device(2, 2);
        let shared = buffer(&device);
        let importer = LedgerUser::join(&shared);
        let map = importer.map(&shared, 1).expect("there is room");
        let work = Timeline::new("importer");
        let done = FenceSet::from(work.next_point());
        let peer = thread::spawn(move || work.signal(1));
        map.unmap(done);
        peer.join().expect("no panic");
        let stats = device.stats();
        assert_eq!((stats.p2p_used_bytes, stats.p2p_pending_bytes), (0, 0));
    });
}

/// Two threads, exhaustive: the fence of the only page signals while somebody else is admitted.
#[test]
fn pages_are_inherited_or_reaped_and_never_both() {
    explore(None, || {
        let device = peer_device(1, 1);
        let (former, next) = (buffer(&device), buffer(&device));
        let (left, right) = (LedgerUser::join(&former), LedgerUser::join(&next));
        let work = Timeline::new("importer");
        let done = work.next_point();
        left.map(&former, 1).expect("there is room").unmap(FenceSet::from(done.clone()));
        let peer = thread::spawn(move || work.signal(1));
        let map = right.map(&next, 1).expect("what is pending refuses nobody");
        assert!(!map.after().is_empty() || done.is_signaled(), "the page may still be in use");
        peer.join().expect("no panic");
        drop(map);
        let stats = device.stats();
        assert_eq!((stats.p2p_used_bytes, stats.p2p_pending_bytes, stats.p2p_peak_bytes), (0, 0, PAGE));
    });
}

/// Two threads, exhaustive.
#[test]
fn who_waits_for_an_event_is_woken_by_it() {
    explore(None, || {
        let device = peer_device(1, 1);
        let shared = buffer(&device);
        let importer = LedgerUser::join(&shared);
        let mut events = device.events();
        let listener = thread::spawn(move || events.next());
        let map = importer.map(&shared, 1).expect("there is room");
        let heard = listener.join().expect("no panic");
        assert!(matches!(heard, Some(Event::BarPressure { .. })), "{heard:?}");
        drop(map);
    });
}

/// Two threads, exhaustive.
#[test]
fn who_waits_for_an_event_is_woken_by_the_end_of_the_device() {
    explore(None, || {
        let device = peer_device(1, 1);
        let mut events = device.events();
        let listener = thread::spawn(move || events.next());
        drop(device);
        assert_eq!(listener.join().expect("no panic"), None);
    });
}
