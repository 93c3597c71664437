//! Staged copies, against writers of the buffer, against their own end, and against routes that change.
#![cfg(loom)]

use std::sync::Arc;

use devpagemap::pagemap::{Observation, Observed, Policy, Profile};
use devpagemap::{Access, Buffer, Device, Fence, Importer, Invalidated, Peer, PeerMap, Route, Timeline};
use devpagemap_loom_tests::explore;
use devpagemap_loom_tests::gpu::{ModelGpu, PAGE, buffer, device, first_byte, write_page};
use loom::thread;

/// An importer that is done with everything at once.
struct Card(Profile);

impl Importer for Card {
    fn name(&self) -> &str {
        "card"
    }

    fn profile(&self) -> Profile {
        self.0.clone()
    }

    fn invalidate(&self, _what: &Invalidated) -> Option<Fence> {
        None
    }
}

fn join(device: &Device<ModelGpu>, profile: Profile) -> Peer {
    device.join(Arc::new(Card(profile))).expect("there is room")
}

fn map(buffer: &Buffer, peer: &Peer) -> PeerMap {
    buffer.attach(peer).expect("one device").map(0..PAGE).expect("there is room")
}

/// One who reaches the buffer, and one who gets a copy.
fn pair(device: &Device<ModelGpu>, buffer: &Buffer) -> (PeerMap, PeerMap) {
    let (direct, card) = (join(device, Profile::dynamic()), join(device, Profile::dynamic().system_only()));
    let (direct, staged) = (map(buffer, &direct), map(buffer, &card));
    assert_eq!((direct.route(), staged.route()), (Route::Declared, Route::Staging));
    (direct, staged)
}

/// The first byte of the copy that a map shows, found out by writing it back.
fn copied(shared: &Buffer, map: &PeerMap) -> u8 {
    map.begin(Access::Write).expect("it is current").wait().expect("nothing fails");
    map.end(Access::Write, &Fence::signaled()).expect("a slot");
    first_byte(shared)
}

/// Two threads, at most two preemptions: whoever asks after a write was said finds it in the copy, however the two met before.
#[test]
fn a_copy_that_is_asked_for_after_a_write_has_it() {
    explore(Some(2), || {
        let device = device(1);
        let shared = buffer(&device);
        let (direct, staged) = pair(&device, &shared);
        let writer = {
            let device = device.clone();
            thread::spawn(move || {
                let before = direct.begin(Access::Write).expect("it is current");
                before.wait().expect("nothing fails");
                write_page(&device, 0, 7);
                direct.end(Access::Write, &Fence::signaled()).expect("a slot");
                direct
            })
        };
        staged.begin(Access::Read).expect("it is current").wait().expect("nothing fails");
        staged.end(Access::Read, &Fence::signaled()).expect("a slot");
        let _direct = writer.join().expect("no panic");
        assert_eq!(copied(&shared, &staged), 7);
    });
}

/// Two threads, at most two preemptions: what comes back from a copy is not written under those who still read the buffer.
#[test]
fn what_comes_back_from_a_copy_waits_for_who_reads_the_buffer() {
    explore(Some(2), || {
        let device = device(1);
        let shared = buffer(&device);
        let (direct, staged) = pair(&device, &shared);
        let ring = Timeline::new("gpu");
        let read = ring.next_point();
        direct.begin(Access::Read).expect("it is current").wait().expect("nothing fails");
        direct.end(Access::Read, &read).expect("a slot");
        let writer = {
            let read = read.clone();
            thread::spawn(move || {
                staged.begin(Access::Write).expect("it is current").wait().expect("nothing fails");
                staged.end(Access::Write, &Fence::signaled()).expect("a slot");
                let came_back = direct.begin(Access::Read).expect("it is current");
                assert!(!came_back.is_signaled() || read.is_signaled(), "bytes came back under a reader");
            })
        };
        ring.signal(read.seqno());
        writer.join().expect("no panic");
        shared.wait().expect("nothing fails");
        assert_eq!(device.stats().staged_bytes, 0);
    });
}

/// Two threads, at most two preemptions: a route goes while one asks for it who takes nothing else. Who has mapped by it by then is told.
#[test]
fn nobody_keeps_a_map_by_a_route_that_has_gone() {
    explore(Some(2), || {
        let device = device(1);
        let shared = buffer(&device);
        let peer = join(&device, Profile::dynamic().policy(Policy::Required));
        let attachment = shared.attach(&peer).expect("one device");
        let mapper = thread::spawn(move || (attachment.map(0..PAGE), attachment));
        let refused = Observed::DriverAllows(false);
        device.registry().observe(Observation::new(device.owner(), peer.importer_id(), refused));
        device.reroute();
        let (map, _attachment) = mapper.join().expect("no panic");
        assert!(map.is_err() || map.is_ok_and(|map| !map.is_current()), "it goes by a route that is gone");
    });
}
