//! Vetter, 2020: lock, map, which may move the buffer, take the fences or queue behind them, unlock. GPUs queue, network cards wait; who is told to let
//! go may add fences, behind which the move queues; several maps of one buffer are in flight at once.

use devpagemap::{Access, InvalidateReason, RegionKind, Route, Timeline};

use crate::setup::importer::*;
use crate::setup::*;

const SYSTEM: Option<RegionKind> = Some(RegionKind::System);

#[test]
fn a_gpu_queues_behind_the_move_that_its_map_has_made_and_nobody_waits() {
    let device = device_for_peers(2);
    let (_, gpu) = Nic::join("gpu1", &device);
    let buffer = filled(&device, 1, 1);
    let evictor = filled(&device, 2, 2);
    assert_eq!(buffer.region(), SYSTEM);
    let gate = Gate::closed();
    let held_up =
        device.submit().writes(&evictor).after(gate.fence()).run(|gpu, job| gpu.run(job, |_| Ok(())));
    let held_up = held_up.expect("it is there");
    let map = map_all(&buffer.attach(&gpu).expect("one device"));
    let before = map.begin(Access::Write).expect("it is current");
    assert!(!before.is_signaled(), "the place is another's until its job is done");
    let ring = Timeline::new("gpu1 ring");
    let work = ring.next_point();
    map.end(Access::Write, &work).expect("a slot");
    let reader = verify(&device, &buffer, 3).expect("it is there");
    gate.open();
    finished(Ok(held_up));
    before.wait_timeout(FOREVER).expect("the bytes arrive");
    assert!(!reader.is_signaled(), "the peer writes");
    write_mapped_bytes(&device, &map, 3);
    ring.signal(work.seqno());
    finished(Ok(reader));
    assert_eq!(device.stats().cpu_waits_in_validate, 0);
}

#[test]
fn a_network_card_waits_itself_and_needs_no_queue() {
    let device = device_for_peers(2);
    let (_, card) = Nic::join("card", &device);
    let buffer = filled(&device, 1, 1);
    let _evictor = filled(&device, 2, 2);
    let map = map_all(&buffer.attach(&card).expect("one device"));
    map.wait(Access::Read).expect("the bytes arrive");
    expect_mapped_bytes(&device, &map, 1);
}

#[test]
fn who_is_told_adds_fences_and_the_move_queues_behind_them() {
    let device = device_for_peers(1);
    let (gpu_told, gpu) = Nic::join("gpu1", &device);
    let buffer = filled(&device, 1, 1);
    let map = map_all(&buffer.attach(&gpu).expect("one device"));
    peer_uses(&device, &map, 1);
    let unmapping = Gate::closed();
    gpu_told.is_busy_until(unmapping.fence());
    let newcomer = filled(&device, 1, 2);
    assert_eq!(gpu_told.was_told(), [(buffer.id(), InvalidateReason::Moved)]);
    assert!(!buffer.fences().is_signaled() && !newcomer.fences().is_signaled(), "both queue behind the peer");
    write_mapped_bytes(&device, &map, 5);
    unmapping.open();
    expect_bytes(&buffer, 5);
    expect_bytes(&newcomer, 2);
}

#[test]
fn several_maps_of_one_buffer_are_in_flight_each_of_another_place() {
    let device = device_for_peers(1);
    let (told, gpu) = Nic::join("gpu1", &device);
    let buffer = filled(&device, 1, 1);
    let attachment = buffer.attach(&gpu).expect("one device");
    let ring = Timeline::new("gpu1 ring");
    let mut flights = Vec::new();
    let mut others = Vec::new();
    for seed in 2..6 {
        let map = map_all(&attachment);
        assert_eq!(map.route(), Route::Declared);
        let done = ring.next_point();
        told.is_busy_until(&done);
        flights.push((map, done));
        others.push(filled(&device, 1, seed));
    }
    assert!(flights.iter().all(|(map, _)| !map.is_current()), "each was of the place of its time");
    let last = map_all(&attachment);
    assert!(last.is_current() && !last.after().is_signaled());
    for (_, done) in &flights {
        ring.signal(done.seqno());
    }
    expect_peer_reads(&device, &last, 1);
    for (seed, other) in (2..).zip(&others) {
        expect_bytes(other, seed);
    }
    assert_eq!(device.stats().cpu_waits_in_validate, 0);
}
