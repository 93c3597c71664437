//! VRAM is taken away while it is used, and given back: no byte is lost that could be kept, and nobody is left behind.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use devpagemap::pagemap::{Pagemap, Phase, Reason, RevokeCause};
use devpagemap::{
    AfterLoss, Error, Event, InvalidateReason, OnPressure, P2p, P2pLimits, PeerAddr, PeerMap, Place,
    RegionKind, Route, Size, Unplug, VramContents,
};

use crate::setup::importer::*;
use crate::setup::rig::Rig;
use crate::setup::*;

const VRAM: Option<RegionKind> = Some(RegionKind::Vram);
const SYSTEM: Option<RegionKind> = Some(RegionKind::System);
const UNPLUGGED: &str = "the device is being unplugged";

/// A device whose BAR peers may have all of.
fn lab(vram_mib: u64) -> Lab {
    let all = Size::mib(vram_mib);
    let limits = P2pLimits { soft: all, reopen: all, hard: all, cpu_reserve: Size::bytes(0) };
    builder(vram_mib).p2p_limits(limits).build().expect("a small device")
}

/// Whoever maps or submits in a loop ends with the scenario, also when that fails.
struct StopsAll<'a>(&'a AtomicBool);

impl Drop for StopsAll<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[track_caller]
fn expect_revoked<T: std::fmt::Debug>(result: devpagemap::Result<T>, why: &str) {
    assert!(matches!(&result, Err(Error::Revoked { why: found, .. }) if *found == why), "{result:?}");
}

#[test]
fn an_orderly_unplug_moves_everything_out_tells_everybody_and_loses_nothing() {
    let device = lab(8);
    let events = device.events();
    let (nic, peer) = Nic::join("nic", &device);
    let buffers: Vec<_> = (0..4).map(|seed| filled(&device, 2, seed)).collect();
    let attachment = buffers[0].attach(&peer).expect("one device");
    let map = map_all(&attachment);
    expect_peer_reads(&device, &map, 0);
    let revoke = device.unplug(Unplug::Orderly).expect("there is system memory");
    assert_eq!(nic.was_told(), [(buffers[0].id(), InvalidateReason::Revoked)]);
    assert!(!map.is_current());
    let report = revoke.wait();
    assert_eq!((report.evacuated, report.evacuated_bytes), (4, 8 * MIB));
    assert!(report.lost.is_empty() && report.overdue.is_empty(), "{report:?}");
    assert_eq!(device.phase(), Phase::Revoked);
    for (seed, buffer) in (0..).zip(&buffers) {
        assert_eq!(buffer.region(), SYSTEM);
        expect_bytes(buffer, seed);
    }
    let stats = device.stats();
    assert_eq!((stats.vram_used_bytes, stats.vram_pending_bytes, stats.p2p_used_bytes), (0, 0, 0));
    assert_eq!((stats.revokes, stats.cpu_waits_in_validate), (1, 0));
    let told: Vec<_> = std::iter::from_fn(|| events.try_next()).collect();
    assert_eq!(told, [Event::Revoked { cause: RevokeCause::Unplug, lost: 0, overdue: 0 }]);
}

#[test]
fn what_needs_vram_is_refused_while_it_is_away_and_works_again_when_it_is_back() {
    let device = lab(8);
    let (_nic, peer) = Nic::join("nic", &device);
    let buffer = filled(&device, 2, 1);
    let fresh = vram_buffer(&device, 2);
    let attachment = buffer.attach(&peer).expect("one device");
    device.unplug(Unplug::Orderly).expect("there is system memory").wait();
    expect_revoked(fill(&device, &buffer, 2), UNPLUGGED);
    expect_revoked(fresh.place_now(), UNPLUGGED);
    let beside =
        attachment.request(0..MIB).on_pressure(OnPressure::Refuse).map().expect("its bytes are there");
    assert_eq!(way(&beside, &buffer), (Route::System, SYSTEM));
    drop(beside);
    expect_revoked(buffer.window(0..4096), UNPLUGGED);
    let only = device.buffer(Size::mib(1)).p2p(P2p::Require).create().expect("a buffer");
    assert!(only.attach(&peer).and_then(|attachment| attachment.map(0..MIB)).is_err(), "there is no BAR");
    fresh.write_at(0, b"in system memory").expect("it needs no VRAM");
    expect_bytes(&buffer, 1);
    device.rearm().expect("everybody has let go");
    assert_eq!(device.phase(), Phase::Active);
    finished(verify(&device, &buffer, 1));
    assert_eq!(buffer.region(), VRAM);
    let map = map_all(&attachment);
    expect_peer_reads(&device, &map, 1);
    fresh.place_now().expect("there is room");
    let mut bytes = [0; 16];
    fresh.read_at(0, &mut bytes).expect("it is visible");
    assert_eq!((&bytes, fresh.region()), (b"in system memory", VRAM));
}

#[test]
fn the_registry_decides_for_system_memory_until_vram_is_back() {
    let device = lab(8);
    let (_nic, peer) = Nic::join("nic", &device);
    let buffer = filled(&device, 2, 1);
    let decision = |reason: &Reason| {
        let explained = buffer.explain(&peer).expect("one device");
        (explained.decision.route, explained.reasons.contains(reason))
    };
    let before = decision(&Reason::Revoked);
    assert!(before.0.is_p2p() && !before.1, "{before:?}");
    let revoke = device.unplug(Unplug::Orderly).expect("there is system memory");
    assert_eq!(decision(&Reason::Revoked), (Route::System, true));
    assert!(device.pagemaps().iter().all(Pagemap::is_revoked));
    revoke.wait();
    let map = map_all(&buffer.attach(&peer).expect("one device"));
    assert_eq!((map.route(), buffer.region()), (Route::System, SYSTEM));
    expect_peer_reads(&device, &map, 1);
    drop(map);
    device.rearm().expect("everybody has let go");
    assert_eq!(decision(&Reason::Revoked), before);
    let map = map_all(&buffer.attach(&peer).expect("one device"));
    assert_eq!(way(&map, &buffer), (before.0, VRAM));
}

#[test]
fn a_cpu_map_follows_its_buffer_out_of_vram_and_back() {
    let device = lab(8);
    let buffer = filled(&device, 2, 1);
    let map = buffer.map().expect("it is visible");
    let mut bytes = vec![0; 2 * MIB as usize];
    if map.is_pinned() {
        println!("no userfaultfd here: maps pin, and a pinned map shows its loss");
        return;
    }
    // SAFETY: the map is alive, the byte lies inside, and no job uses the buffer.
    unsafe { map.as_ptr().add(5000).write(77) };
    device.unplug(Unplug::Orderly).expect("there is system memory");
    // SAFETY: as above.
    assert_eq!(unsafe { map.as_ptr().add(5000).read() }, 77, "it waits for the copy");
    // SAFETY: as above.
    unsafe { map.as_ptr().add(5001).write(78) };
    map.read(0, &mut bytes).expect("it is in system memory");
    assert_eq!((bytes[5000], bytes[5001]), (77, 78));
    soon("the end of the revoke", || device.phase() == Phase::Revoked);
    device.rearm().expect("everybody has let go");
    buffer.place_now().expect("there is room");
    assert_eq!(buffer.region(), VRAM);
    // SAFETY: as above.
    assert_eq!(unsafe { map.as_ptr().add(5001).read() }, 78);
}

/// "hot-unplug uses pagemap revoke, safely ordered between range-fault and notifier" (2025): whoever maps beside an unplug has a
/// map and is told, or is refused. Nobody has one and is not told.
#[test]
fn seed_2025_hot_unplug_is_ordered_between_a_map_and_its_invalidation() {
    const ROUNDS: usize = 40;
    let device = lab(8);
    let buffers: Vec<_> = (0..3).map(|seed| filled(&device, 2, seed)).collect();
    // What each mapper has mapped last.
    let maps: Vec<Mutex<Option<PeerMap>>> = buffers.iter().map(|_| Mutex::new(None)).collect();
    let (stop, mapped) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let _whatever_happens = StopsAll(&stop);
        for (buffer, mine) in buffers.iter().zip(&maps) {
            let (nic, peer) = Nic::join("nic", &device);
            let attachment = buffer.attach(&peer).expect("one device");
            let (stop, mapped) = (&stop, &mapped);
            scope.spawn(move || {
                let _stays = (nic, peer);
                while !stop.load(Ordering::Relaxed) {
                    match attachment.map(0..2 * MIB) {
                        Ok(map) => {
                            *mine.lock().expect("no panic") = Some(map);
                            mapped.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(Error::Revoked { .. }) => thread::yield_now(),
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        for _ in 0..ROUNDS {
            let revoke = device.unplug(Unplug::Orderly).expect("there is system memory");
            for map in maps.iter().filter_map(|map| map.lock().expect("no panic").take()) {
                let is_in_bar = map.extents().iter().any(|extent| matches!(extent.addr, PeerAddr::Bar(_)));
                assert!(!is_in_bar || !map.is_current(), "nobody was told of {map:?}");
            }
            let report = revoke.wait();
            assert!(report.lost.is_empty() && report.overdue.is_empty(), "{report:?}");
            assert_eq!(device.stats().vram_used_bytes, 0, "a buffer that nobody has moved");
            device.rearm().expect("everybody has let go");
            let before = mapped.load(Ordering::Relaxed);
            soon("another map", || mapped.load(Ordering::Relaxed) > before + 10);
        }
    });
    maps.iter().for_each(|map| drop(map.lock().expect("no panic").take()));
    for (seed, buffer) in (0..).zip(&buffers) {
        expect_bytes(buffer, seed);
    }
    device.wait_idle();
    assert_eq!((device.stats().lost_buffers, device.stats().p2p_used_bytes), (0, 0));
}

#[test]
fn jobs_that_are_submitted_beside_an_unplug_run_to_their_end_or_are_refused() {
    const ROUNDS: u64 = 20;
    let device = lab(8);
    let buffers: Vec<_> = (0..3).map(|_| vram_buffer(&device, 2)).collect();
    let stop = AtomicBool::new(false);
    let last: Vec<_> = buffers.iter().map(|_| AtomicU64::new(0)).collect();
    thread::scope(|scope| {
        for (buffer, last) in buffers.iter().zip(&last) {
            let (device, stop) = (&device, &stop);
            scope.spawn(move || {
                for seed in 1.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    match fill(device, buffer, seed) {
                        Ok(fence) => {
                            fence.wait_timeout(FOREVER).expect("a job that was taken runs");
                            last.store(seed, Ordering::Relaxed);
                        }
                        Err(Error::Revoked { .. }) => thread::yield_now(),
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        let _whatever_happens = StopsAll(&stop);
        for round in 0..ROUNDS {
            let before = last[0].load(Ordering::Relaxed);
            soon("another job", || last[0].load(Ordering::Relaxed) > before);
            let how = device.unplug(Unplug::Orderly).expect("there is system memory");
            assert!(how.wait().lost.is_empty(), "in round {round}");
            device.rearm().expect("everybody has let go");
        }
    });
    for (buffer, last) in buffers.iter().zip(&last) {
        match last.load(Ordering::Relaxed) {
            0 => {}
            seed => expect_bytes(buffer, seed),
        }
    }
}

#[test]
fn a_surprise_unplug_moves_out_what_can_still_be_read_and_reports_every_buffer_that_lost_bytes() {
    let device = Rig::device(8);
    let events = device.events();
    let at = |mib: u64| buffer_at(&device, Place::VRAM.within(mib * MIB..(mib + 2) * MIB), 2);
    let [saved, half, gone] = [0, 2, 4].map(at);
    for (seed, buffer) in [&saved, &half, &gone].into_iter().enumerate() {
        finished(fill(&device, buffer, seed as u64));
    }
    *device.driver().readable.lock().expect("no panic") = 0..4 * MIB;
    let map = gone.mapping().after_loss(AfterLoss::Zeros).map().expect("it is visible");
    let revoke = device.unplug(Unplug::Surprise).expect("it is gone anyhow");
    let report = revoke.wait();
    let lost: Vec<_> = report.lost.iter().map(|lost| (lost.buffer, lost.bytes)).collect();
    assert_eq!((report.evacuated, lost), (2, vec![(gone.id(), 2 * MIB)]));
    expect_bytes(&saved, 0);
    expect_bytes(&half, 1);
    let mut byte = [1];
    let read = gone.read_at(0, &mut byte);
    assert!(
        matches!(&read, Err(Error::FenceFailed(why)) if why.to_string().contains("cannot be read")),
        "{read:?}"
    );
    // SAFETY: the map is alive and the byte lies inside.
    assert_eq!(unsafe { map.as_ptr().read() }, 0, "it shows its loss");
    let told: Vec<_> = std::iter::from_fn(|| events.try_next()).collect();
    assert!(
        matches!(&told[..], [Event::Lost { buffer, bytes, .. }, Event::Revoked { lost: 1, .. }]
            if (*buffer, *bytes) == (gone.id(), 2 * MIB)),
        "{told:?}"
    );
    assert_eq!((device.stats().lost_buffers, device.stats().lost_bytes), (1, 2 * MIB));
    device.rearm().expect("everybody has let go");
    assert!(matches!(verify(&device, &gone, 2), Err(Error::FenceFailed(_))), "what is lost stays lost");
    finished(verify(&device, &saved, 0));
}

#[test]
fn a_buffer_of_which_a_part_can_be_read_says_how_much_is_lost() {
    let device = Rig::device(8);
    // Two holes of 1 MiB, and a buffer in both.
    let at = |start: u64, end: u64| {
        let place = Place::VRAM.within(start * MIB..end * MIB);
        let buffer = buffer_at(&device, place, end - start);
        buffer.place_now().expect("it is free");
        buffer
    };
    let (first, _wall, third, _rest) = (at(0, 1), at(1, 2), at(2, 3), at(3, 8));
    drop((first, third));
    device.wait_idle();
    let scattered = filled(&device, 2, 1);
    device.wait_idle();
    *device.driver().readable.lock().expect("no panic") = 0..MIB;
    let report = device.unplug(Unplug::Surprise).expect("it is gone anyhow").wait();
    let lost = report.lost.iter().find(|lost| lost.buffer == scattered.id()).expect("half of it");
    assert_eq!(lost.bytes, MIB);
}

#[test]
fn a_reset_that_keeps_vram_leaves_every_buffer_where_it_is() {
    let device = lab(8);
    let (nic, peer) = Nic::join("nic", &device);
    let buffer = filled(&device, 2, 1);
    let attachment = buffer.attach(&peer).expect("one device");
    let map = map_all(&attachment);
    let cpu_map = buffer.map().expect("it is visible");
    let moves = device.stats().moves;
    let report = device.reset().expect("a software GPU can be reset");
    assert_eq!((report.evacuated, report.lost.len(), report.overdue.len()), (0, 0, 0));
    assert_eq!((device.phase(), buffer.region(), device.stats().moves), (Phase::Active, VRAM, moves));
    assert_eq!(nic.was_told(), [(buffer.id(), InvalidateReason::Revoked)]);
    assert!(!map.is_current());
    let again = map_all(&attachment);
    expect_peer_reads(&device, &again, 1);
    let mut first = [0; 8];
    cpu_map.read(0, &mut first).expect("it is where it was");
    // SAFETY: the map is alive, the bytes lie inside, and no job uses the buffer.
    assert_eq!(unsafe { cpu_map.as_ptr().cast::<[u8; 8]>().read() }, first, "touches find it too");
    finished(verify(&device, &buffer, 1));
}

#[test]
fn a_reset_that_wipes_vram_loses_what_was_there_and_nothing_else() {
    let device = Rig::device(8);
    let events = device.events();
    let (wiped, kept) = (filled(&device, 2, 1), vram_buffer(&device, 2));
    kept.write_at(0, b"in system memory").expect("its first place");
    *device.driver().after_reset.lock().expect("no panic") = Ok(VramContents::Lost);
    let report = device.reset().expect("it can be reset");
    assert_eq!(report.lost.iter().map(|lost| lost.buffer).collect::<Vec<_>>(), [wiped.id()]);
    assert!(matches!(verify(&device, &wiped, 1), Err(Error::FenceFailed(_))));
    let mut bytes = [0; 16];
    kept.read_at(0, &mut bytes).expect("it was not in VRAM");
    assert_eq!(&bytes, b"in system memory");
    let told: Vec<_> = std::iter::from_fn(|| events.try_next()).collect();
    assert!(
        matches!(told[..], [Event::Revoked { .. }, Event::Lost { .. }, Event::Rearmed { epoch: 1 }]),
        "{told:?}"
    );
    let heir = filled(&device, 8, 3);
    expect_bytes(&heir, 3);
}

#[test]
fn an_unplug_beside_another_is_that_one_and_it_ends_once() {
    let device = lab(4);
    let events = device.events();
    let (nic, peer) = Nic::join("nic", &device);
    let buffer = filled(&device, 2, 1);
    let _map = map_all(&buffer.attach(&peer).expect("one device"));
    let gate = Gate::closed();
    nic.is_busy_until(gate.fence());
    let first = device.unplug(Unplug::Orderly).expect("there is system memory");
    let second = device.unplug(Unplug::Orderly).expect("it is under way");
    assert_eq!((device.phase(), nic.was_told().len()), (Phase::Draining, 1));
    expect_revoked(device.reset(), UNPLUGGED);
    expect_revoked(device.rearm(), UNPLUGGED);
    gate.open();
    assert_eq!(first.wait(), second.wait());
    let revoked = std::iter::from_fn(|| events.try_next());
    assert_eq!(revoked.filter(|event| matches!(event, Event::Revoked { .. })).count(), 1);
    device.rearm().expect("everybody has let go");
    device.rearm().expect("it is there");
    expect_bytes(&buffer, 1);
}

#[test]
fn what_was_pinned_ends_with_vram_and_its_bytes_do_not() {
    let device = lab(8);
    let buffer = filled(&device, 2, 1);
    let pinned = buffer.vmap().expect("it is visible");
    let window = filled(&device, 1, 2).pin_window(0..4096).expect("the BAR is a prefix");
    device.unplug(Unplug::Orderly).expect("there is system memory").wait();
    assert_eq!(device.stats().vram_pinned_bytes, 0);
    // SAFETY: the map is alive and the byte lies inside.
    assert_eq!(unsafe { pinned.as_ptr().add(1).read() }, 0, "nobody can tell it where the bytes are");
    expect_bytes(&buffer, 1);
    device.rearm().expect("everybody has let go");
    let other = filled(&device, 2, 3);
    let holder = other.vmap().expect("it is visible");
    assert_eq!(device.stats().vram_pinned_bytes, 2 * MIB);
    drop((pinned, window));
    assert_eq!(device.stats().vram_pinned_bytes, 2 * MIB, "a pin that has ended unpins nobody");
    drop(holder);
    assert_eq!(device.stats().vram_pinned_bytes, 0);
    finished(verify(&device, &buffer, 1));
    assert_eq!(buffer.region(), VRAM);
}

#[test]
fn vram_is_as_good_as_new_when_it_comes_back() {
    let device = lab(8);
    for round in 0..5 {
        let whole = filled(&device, 8, round);
        device.unplug(Unplug::Orderly).expect("there is system memory").wait();
        device.rearm().expect("everybody has let go");
        let other = filled(&device, 8, round + 100);
        expect_bytes(&whole, round);
        expect_bytes(&other, round + 100);
    }
    device.wait_idle();
    let stats = device.stats();
    assert_eq!((stats.vram_used_bytes, stats.vram_quarantined_bytes, stats.revokes), (0, 0, 5));
}
