//! VRAM is taken away from who hangs, panics or burns: the revoke ends, and says at whose cost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use devpagemap::pagemap::{Phase, Policy, Profile};
use devpagemap::{
    Access, Attachment, Bar, Buffer, Device, Driver, Error, Event, Events, Fence, Importer, Invalidated,
    P2pLimits, Peer, PeerAddr, PeerMap, RegionKind, Revoke, Route, Size, Unplug, VramContents,
};

use crate::setup::importer::*;
use crate::setup::rig::Rig;
use crate::setup::*;

const SYSTEM: Option<RegionKind> = Some(RegionKind::System);
/// Longer than any test; time passes when a test says so.
const BOUND: Duration = Duration::from_secs(3600);

fn limits(vram_mib: u64) -> P2pLimits {
    let all = Size::mib(vram_mib);
    P2pLimits { soft: all, reopen: all, hard: all, cpu_reserve: Size::bytes(0) }
}

fn lab(vram_mib: u64) -> Lab {
    builder(vram_mib).p2p_limits(limits(vram_mib)).revoke_bound(BOUND).build().expect("a small device")
}

/// The watchdog's clock: each tick is a bound after the one before.
struct Clock(Instant);

impl Clock {
    fn start() -> Clock {
        Clock(Instant::now())
    }

    /// Lets a bound pass.
    fn tick(&mut self, revoke: &Revoke) {
        self.0 += BOUND + Duration::from_secs(1);
        revoke.check(self.0);
    }
}

fn hung<D: Driver>(device: &Device<D>, buffer: &Buffer) -> (Arc<Nic>, Peer, PeerMap, Gate) {
    let nic = Nic::new("stuck nic");
    let peer = device.join(nic.clone()).expect("room in the registry");
    let map = map_all(&buffer.attach(&peer).expect("one device"));
    map.after().wait_timeout(FOREVER).expect("the bytes arrive");
    buffer.wait().expect("its writers end");
    let gate = Gate::closed();
    nic.is_busy_until(gate.fence());
    (nic, peer, map, gate)
}

fn all(events: &Events) -> Vec<Event> {
    std::iter::from_fn(|| events.try_next()).collect()
}

#[test]
fn an_importer_that_hangs_is_named_when_its_time_is_over_and_its_pages_are_never_used_again() {
    let device = lab(8);
    let events = device.events();
    let (stuck, other) = (filled(&device, 2, 1), filled(&device, 2, 2));
    let (_nic, _peer, _map, gate) = hung(&device, &stuck);
    let revoke = device.unplug(Unplug::Orderly).expect("there is system memory");
    expect_bytes(&other, 2);
    assert_eq!(
        (device.phase(), stuck.fences().is_signaled()),
        (Phase::Draining, false),
        "it may still write"
    );
    let mut clock = Clock::start();
    soon("its name", || {
        // As long as copies get on it has time.
        clock.tick(&revoke);
        device.stats().revoke_overdue > 0
    });
    let report = revoke.wait();
    let overdue: Vec<_> =
        report.overdue.iter().map(|late| (&*late.who, late.buffer, late.quarantined_bytes)).collect();
    assert_eq!(overdue, [("stuck nic", Some(stuck.id()), 2 * MIB)]);
    assert!(report.lost.is_empty(), "{report:?}");
    expect_bytes(&stuck, 1);
    let told = all(&events);
    let named = Event::RevokeOverdue {
        who: "stuck nic".into(),
        buffer: Some(stuck.id()),
        quarantined_bytes: 2 * MIB,
    };
    assert!(told.contains(&named), "{told:?}");
    device.rearm().expect("who is late has pages of its own");
    assert_eq!(device.stats().vram_quarantined_bytes, 2 * MIB);
    let rest = filled(&device, 6, 3);
    let more = vram_buffer(&device, 8).place_now();
    assert!(matches!(more, Err(Error::Exhausted { free_bytes, .. }) if free_bytes == 6 * MIB), "{more:?}");
    gate.open();
    device.wait_idle();
    assert_eq!(device.stats().vram_quarantined_bytes, 2 * MIB, "nobody asks it twice");
    expect_bytes(&rest, 3);
    finished(verify(&device, &stuck, 1));
}

#[test]
fn an_importer_that_lets_go_in_time_is_waited_for_and_its_last_words_are_kept() {
    let device = lab(4);
    let buffer = filled(&device, 2, 1);
    let (_nic, _peer, map, gate) = hung(&device, &buffer);
    let PeerAddr::Bar(addr) = map.extents()[0].addr else { panic!("{map:?}") };
    let revoke = device.unplug(Unplug::Orderly).expect("there is system memory");
    revoke.check(Instant::now());
    device.driver().write_bar(addr, b"the last words").expect("it is still there");
    assert_eq!((device.phase(), buffer.region()), (Phase::Draining, SYSTEM));
    gate.open();
    assert!(revoke.wait().overdue.is_empty());
    let mut bytes = [0; 14];
    buffer.read_at(0, &mut bytes).expect("it is in system memory");
    assert_eq!(&bytes, b"the last words");
    assert_eq!(device.stats().vram_quarantined_bytes, 0);
}

#[test]
fn the_watchdog_itself_ends_the_wait_for_who_hangs() {
    let device = builder(4).p2p_limits(limits(4)).revoke_bound(Duration::from_millis(20)).build();
    let device = device.expect("a small device");
    let buffer = filled(&device, 2, 1);
    let (_nic, _peer, _map, _gate) = hung(&device, &buffer);
    let report = device.unplug(Unplug::Orderly).expect("there is system memory").wait();
    assert_eq!(report.overdue.len(), 1);
    expect_bytes(&buffer, 1);
}

#[test]
fn an_importer_that_panics_when_it_is_told_has_let_go() {
    struct Fainting;
    impl Importer for Fainting {
        fn name(&self) -> &str {
            "fainting"
        }
        fn invalidate(&self, _what: &Invalidated) -> Option<Fence> {
            panic!("it cannot bear this");
        }
    }
    let device = lab(4);
    let peer = device.join(Arc::new(Fainting)).expect("room in the registry");
    let buffer = filled(&device, 2, 1);
    let map = map_all(&buffer.attach(&peer).expect("one device"));
    let report = device.unplug(Unplug::Orderly).expect("there is system memory").wait();
    assert!(report.overdue.is_empty() && !map.is_current(), "{report:?}");
    expect_bytes(&buffer, 1);
}

#[test]
fn a_copy_that_fails_on_the_way_out_is_a_loss_that_is_told() {
    let device = Rig::device(8);
    let events = device.events();
    let buffer = filled(&device, 2, 1);
    device.wait_idle();
    device.driver().burnt.store(true, Ordering::Release);
    let report = device.unplug(Unplug::Orderly).expect("a failure to come").wait();
    assert_eq!(
        report.lost.iter().map(|lost| (lost.buffer, lost.bytes)).collect::<Vec<_>>(),
        [(buffer.id(), 2 * MIB)]
    );
    assert!(report.lost[0].why.contains("burnt"), "{report:?}");
    let told = all(&events);
    assert!(
        matches!(&told[..], [Event::Lost { .. }, Event::Revoked { lost: 1, overdue: 0, .. }]),
        "{told:?}"
    );
    assert!(matches!(buffer.read_at(0, &mut [0]), Err(Error::FenceFailed(_))));
}

#[test]
fn without_system_memory_an_orderly_unplug_is_called_off_and_nothing_is_lost() {
    let builder = Rig::builder(8, Bar::Prefix(Size::mib(8))).system(Size::mib(6)).gtt(Size::mib(6));
    let device = builder.build().expect("a small device");
    let nic = Nic::new("nic");
    let peer = device.join(nic.clone()).expect("room in the registry");
    let buffers: Vec<_> = (0..4).map(|seed| filled(&device, 2, seed)).collect();
    let attachment = buffers[0].attach(&peer).expect("one device");
    let refused = device.unplug(Unplug::Orderly).map(|revoke| revoke.report());
    assert!(matches!(refused, Err(Error::Exhausted { region: RegionKind::System, .. })), "{refused:?}");
    assert_eq!(device.phase(), Phase::Active);
    for (seed, buffer) in (0..).zip(&buffers) {
        expect_bytes(buffer, seed);
    }
    let map = map_all(&attachment);
    map.after().wait_timeout(FOREVER).expect("the bytes arrive");
    drop((map, attachment));
    let [_, second, third, fourth] = <[Buffer; 4]>::try_from(buffers).expect("four");
    device.unplug(Unplug::Orderly).expect("6 MiB have room").wait();
    for (seed, buffer) in [(1, second), (2, third), (3, fourth)] {
        expect_bytes(&buffer, seed);
    }
}

#[test]
fn after_a_surprise_there_may_be_no_memory_for_what_could_be_saved() {
    let builder = Rig::builder(8, Bar::Prefix(Size::mib(8))).system(Size::mib(2)).gtt(Size::mib(2));
    let device = builder.build().expect("a small device");
    let buffers: Vec<_> = (0..3).map(|seed| filled(&device, 2, seed)).collect();
    device.wait_idle();
    *device.driver().readable.lock().expect("no panic") = 0..8 * MIB;
    let report = device.unplug(Unplug::Surprise).expect("it is gone anyhow").wait();
    assert_eq!((report.evacuated, report.lost.len()), (1, 2));
    assert!(report.lost.iter().all(|lost| lost.why.contains("exhausted")), "{report:?}");
    let readable = buffers.iter().filter(|buffer| buffer.read_at(0, &mut [0]).is_ok());
    assert_eq!(readable.count(), 1);
}

#[test]
fn what_was_on_its_way_out_when_the_device_vanished_is_lost_and_told() {
    let device = Rig::device(4);
    let buffer = filled(&device, 2, 1);
    let (_nic, _peer, _map, gate) = hung(&device, &buffer);
    let hog = vram_buffer(&device, 4);
    hog.place_now().expect("the other can be evicted");
    assert_eq!((buffer.region(), buffer.fences().is_signaled()), (SYSTEM, false));
    let revoke = device.unplug(Unplug::Surprise).expect("it is gone anyhow");
    let lost: Vec<_> = revoke.report().lost.iter().map(|lost| lost.buffer).collect();
    assert!(lost.contains(&buffer.id()) && lost.contains(&hog.id()), "{lost:?}");
    assert!(matches!(buffer.read_at(0, &mut [0]), Err(Error::FenceFailed(_))));
    gate.open();
    revoke.wait();
}

#[test]
fn a_device_that_vanishes_before_it_was_to_loses_what_had_not_arrived() {
    let device = Rig::device(8);
    let (stuck, moved) = (filled(&device, 2, 1), filled(&device, 2, 2));
    let (_nic, _peer, _map, gate) = hung(&device, &stuck);
    let orderly = device.unplug(Unplug::Orderly).expect("there is system memory");
    expect_bytes(&moved, 2);
    let surprise = device.unplug(Unplug::Surprise).expect("it is under way");
    let lost: Vec<_> = surprise.report().lost.iter().map(|lost| lost.buffer).collect();
    assert_eq!(lost, [stuck.id()]);
    gate.open();
    assert_eq!(orderly.wait(), surprise.wait());
    expect_bytes(&moved, 2);
}

#[test]
fn a_job_that_hangs_is_named_and_the_revoke_goes_on() {
    let device = lab(4);
    let buffer = vram_buffer(&device, 1);
    let gate = Gate::closed();
    let job = device.submit().writes(&buffer).run(|_, _| Ok(gate.fence().clone()));
    job.expect("room");
    let revoke = device.unplug(Unplug::Orderly).expect("there is system memory");
    let mut clock = Clock::start();
    soon("its end", || {
        clock.tick(&revoke);
        revoke.done().is_signaled()
    });
    let report = revoke.report();
    assert!(report.overdue.iter().any(|late| &*late.who == "gate" && late.buffer.is_none()), "{report:?}");
    assert_eq!(device.stats().vram_quarantined_bytes, MIB, "it may still write there");
    device.rearm().expect("it has pages of its own");
    gate.open();
    expect_zeros(&buffer);
}

#[test]
fn who_uses_a_destroyed_buffer_is_waited_for_too() {
    let device = lab(4);
    let buffer = filled(&device, 2, 1);
    let (_nic, peer) = Nic::join("nic", &device);
    let map = map_all(&buffer.attach(&peer).expect("one device"));
    device.wait_idle();
    let gate = Gate::closed();
    map.unmap_after(gate.fence().clone());
    drop(buffer);
    let revoke = device.unplug(Unplug::Orderly).expect("there is nothing to move");
    assert_eq!(device.phase(), Phase::Draining);
    Clock::start().tick(&revoke);
    assert_eq!(revoke.wait().overdue.len(), 1);
    assert_eq!(device.stats().vram_quarantined_bytes, 2 * MIB);
}

#[test]
fn windows_that_somebody_may_still_use_keep_the_bar_from_coming_back() {
    let builder = Rig::builder(4, Bar::Windows(Size::mib(4))).p2p_limits(limits(4));
    let device = builder.revoke_bound(BOUND).build().expect("a small device");
    let buffer = filled(&device, 2, 1);
    let (_nic, _peer, _map, gate) = hung(&device, &buffer);
    let revoke = device.unplug(Unplug::Orderly).expect("there is system memory");
    let mut clock = Clock::start();
    soon("its name", || {
        clock.tick(&revoke);
        revoke.done().is_signaled()
    });
    let refused = device.rearm();
    assert!(matches!(&refused, Err(Error::Revoked { why, .. }) if why.contains("windows")), "{refused:?}");
    expect_bytes(&buffer, 1);
    gate.open();
    device.rearm().expect("it has let go");
    finished(verify(&device, &buffer, 1));
}

#[test]
fn a_device_that_stays_away_is_not_armed() {
    let device = Rig::device(4);
    let buffer = filled(&device, 2, 1);
    device.unplug(Unplug::Orderly).expect("there is system memory").wait();
    device.driver().stays_away.store(true, Ordering::Release);
    let refused = device.rearm();
    assert!(matches!(&refused, Err(Error::Driver { reason, .. }) if reason.contains("empty")), "{refused:?}");
    assert_eq!(device.phase(), Phase::Revoked);
    device.driver().stays_away.store(false, Ordering::Release);
    device.rearm().expect("it is back");
    finished(verify(&device, &buffer, 1));
}

#[test]
fn a_device_that_cannot_be_reset_is_lost() {
    let device = Rig::device(4);
    let buffer = filled(&device, 2, 1);
    let refusal = Error::Driver { action: "reset", reason: "it does not answer".into() };
    *device.driver().after_reset.lock().expect("no panic") = Err(refusal.clone());
    assert_eq!(device.reset(), Err(refusal));
    assert_eq!(buffer.read_at(0, &mut [0]), Err(Error::DeviceLost));
    assert_eq!(device.rearm(), Err(Error::DeviceLost));
}

#[test]
fn a_reset_goes_on_without_an_importer_that_hangs_and_what_it_uses_stays_its_own() {
    let device = Rig::builder(8, Bar::Prefix(Size::mib(8))).p2p_limits(limits(8));
    let device = device.revoke_bound(Duration::from_millis(20)).build().expect("a small device");
    let buffer = filled(&device, 2, 1);
    let (_nic, _peer, map, gate) = hung(&device, &buffer);
    let report = device.reset().expect("it can be reset");
    assert_eq!(report.overdue.len(), 1);
    finished(verify(&device, &buffer, 1));
    // It may still write there, so nobody else is given these bytes before it is done.
    let whole = vram_buffer(&device, 8);
    whole.place_now().expect("behind the importer");
    assert!(!whole.fences().is_signaled());
    gate.open();
    whole.fences().wait_timeout(FOREVER).expect("they are free");
    expect_bytes(&buffer, 1);
    drop(map);
}

#[test]
fn a_reset_that_wipes_vram_loses_what_hung_on_its_way_out() {
    let device = Rig::builder(4, Bar::Prefix(Size::mib(4))).p2p_limits(limits(4));
    let device = device.revoke_bound(Duration::from_millis(20)).build().expect("a small device");
    let buffer = filled(&device, 2, 1);
    let (_nic, _peer, _map, gate) = hung(&device, &buffer);
    vram_buffer(&device, 4).place_now().expect("the other can be evicted");
    *device.driver().after_reset.lock().expect("no panic") = Ok(VramContents::Lost);
    let report = device.reset().expect("it can be reset");
    assert!(report.lost.iter().any(|lost| lost.buffer == buffer.id()), "{report:?}");
    assert!(matches!(buffer.read_at(0, &mut [0]), Err(Error::FenceFailed(_))));
    gate.open();
}

#[test]
fn a_device_is_taken_down_in_finite_time_though_an_importer_hangs_in_its_revoke() {
    without_deadlock(|| {
        let gate = Gate::closed();
        let device = builder(4).p2p_limits(limits(4)).revoke_bound(Duration::from_millis(20)).build();
        let device = device.expect("a small device");
        let buffer = filled(&device, 2, 1);
        let (nic, peer, map, inner) = hung(&device, &buffer);
        nic.is_busy_until(gate.fence());
        let revoke = device.unplug(Unplug::Orderly).expect("there is system memory");
        drop((map, peer, buffer, device));
        assert_eq!(revoke.wait().overdue.len(), 1);
        drop(inner);
    });
}

#[test]
fn who_cannot_be_told_to_map_again_is_at_its_end_and_the_bytes_go_on() {
    let device = lab(4);
    let events = device.events();
    let profile = Profile::pinned().policy(Policy::Required);
    let (rdma, peer) = Nic::join_as("rdma", profile, &device);
    let buffer = filled(&device, 2, 1);
    let attachment = buffer.attach(&peer).expect("one device");
    let map = map_all(&attachment);
    assert!(matches!(map.extents()[0].addr, PeerAddr::Bar(_)), "{map:?}");
    let report = device.unplug(Unplug::Orderly).expect("there is system memory").wait();
    assert!(report.lost.is_empty() && report.overdue.is_empty(), "{report:?}");
    assert_eq!((rdma.was_told().len(), map.is_current(), device.stats().vram_pinned_bytes), (1, false, 0));
    assert!(
        all(&events)
            .iter()
            .any(|event| matches!(event, Event::AttachmentRevoked { importer, .. } if &**importer == "rdma"))
    );
    expect_bytes(&buffer, 1);
    device.rearm().expect("everybody has let go");
    let again = attachment.map(0..MIB);
    assert!(matches!(&again, Err(Error::Revoked { what, .. }) if &**what == "rdma"), "{again:?}");
    drop((map, attachment));
    finished(verify(&device, &buffer, 1));
    assert_eq!(buffer.region(), Some(RegionKind::Vram));
}

type Mapper = ((Arc<Nic>, Peer, Attachment), PeerMap);

/// A GPU that reaches the BAR maps the buffer there, and a card that does not maps a copy.
fn map_both_ways(device: &Lab, buffer: &Buffer) -> (Mapper, Mapper) {
    let map = |name, profile| {
        let (nic, peer) = Nic::join_as(name, profile, device);
        let attachment = buffer.attach(&peer).expect("one device");
        let map = map_all(&attachment);
        ((nic, peer, attachment), map)
    };
    let both = (map("gpu1", Profile::dynamic()), map("card", Profile::dynamic().system_only()));
    assert_eq!(both.1.1.route(), Route::Staging);
    both
}

#[test]
fn a_buffer_whose_importers_have_a_copy_in_step_survives_the_loss_of_its_vram() {
    let device = lab(8);
    let (staged, gone) = (filled(&device, 2, 1), filled(&device, 2, 2));
    let (direct, map) = map_both_ways(&device, &staged);
    peer_uses(&device, &map.1, 1);
    let lost = device.unplug(Unplug::Surprise).expect("it is gone anyhow").wait().lost;
    assert_eq!(lost.iter().map(|lost| lost.buffer).collect::<Vec<_>>(), [gone.id()]);
    assert!(!direct.1.is_current());
    drop((direct, map));
    expect_bytes(&staged, 1);
    device.rearm().expect("everybody has let go");
    finished(verify(&device, &staged, 1));
}

#[test]
fn a_copy_that_is_behind_saves_nothing_and_its_importer_is_told_so() {
    let device = lab(8);
    let buffer = filled(&device, 2, 1);
    let (_direct, (_nic, map)) = map_both_ways(&device, &buffer);
    peer_uses(&device, &map, 1);
    finished(fill(&device, &buffer, 2));
    let lost = device.unplug(Unplug::Surprise).expect("it is gone anyhow").wait().lost;
    assert_eq!(lost.iter().map(|lost| lost.buffer).collect::<Vec<_>>(), [buffer.id()]);
    assert!(matches!(map.begin(Access::Read), Err(Error::FenceFailed(_))));
    assert!(matches!(map.end(Access::Write, &Fence::signaled()), Err(Error::FenceFailed(_))));
}

#[test]
fn work_of_an_importer_that_says_so_is_waited_for() {
    let device = lab(4);
    let buffer = filled(&device, 2, 1);
    let (_nic, peer) = Nic::join("nic", &device);
    let attachment = buffer.attach(&peer).expect("one device");
    buffer.wait().expect("its writer ends");
    let gate = Gate::closed();
    attachment.add_fence(gate.fence(), Access::Write).expect("a slot");
    let revoke = device.unplug(Unplug::Orderly).expect("there is system memory");
    assert_eq!(device.phase(), Phase::Draining);
    gate.open();
    assert!(revoke.wait().overdue.is_empty());
    expect_bytes(&buffer, 1);
}
