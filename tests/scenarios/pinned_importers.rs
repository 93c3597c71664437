//! Importers that cannot be told to let go keep what they hold, for as long as they said and no longer.

use std::time::Duration;

use devpagemap::pagemap::{Policy, Profile};
use devpagemap::{
    Access, Attachment, Buffer, Error, Event, Fence, InvalidateReason, Peer, PeerMap, PeerReason, Place,
    RegionKind, Route, Size,
};

use crate::setup::importer::*;
use crate::setup::*;

const VRAM: Option<RegionKind> = Some(RegionKind::Vram);
const GTT: Option<RegionKind> = Some(RegionKind::Gtt);
const SYSTEM: Option<RegionKind> = Some(RegionKind::System);
const HOUR: Duration = Duration::from_secs(3600);

fn attach(buffer: &Buffer, peer: &Peer) -> Attachment {
    buffer.attach(peer).expect("one device")
}

#[test]
fn who_holds_as_long_as_it_is_attached_gets_the_buffer_in_system_memory_at_once_and_keeps_it_there() {
    let device = device(4);
    let (card_told, card) = Nic::join_as("card", Profile::pinned(), &device);
    let buffer = device.buffer(Size::mib(1)).prefer(Place::VRAM).or(Place::GTT).create().expect("a buffer");
    fill(&device, &buffer, 1).expect("room");
    let attachment = attach(&buffer, &card);
    assert_eq!(buffer.region(), GTT, "where jobs can use it too");
    let map = map_all(&attachment);
    assert_eq!(map.route(), Route::System);
    for seed in 2..5 {
        finished(fill(&device, &buffer, seed));
        peer_uses(&device, &map, seed);
    }
    assert_eq!((buffer.region(), map.is_current()), (GTT, true));
    drop((map, attachment));
    finished(verify(&device, &buffer, 4));
    assert_eq!((buffer.region(), card_told.was_told()), (VRAM, vec![]));
}

#[test]
fn a_job_that_needs_vram_is_refused_while_it_is_held_elsewhere() {
    let device = device(4);
    let (_told, card) = Nic::join_as("card", Profile::pinned(), &device);
    let buffer = filled(&device, 1, 1);
    let attachment = attach(&buffer, &card);
    assert_eq!(buffer.region(), SYSTEM);
    let refused = fill(&device, &buffer, 2).expect_err("it may not move");
    assert_eq!(refused, Error::Pinned { buffer: buffer.id(), region: RegionKind::System });
    drop(attachment);
    finished(fill(&device, &buffer, 2));
}

#[test]
fn a_map_that_outlives_its_attachment_goes_on_holding() {
    let device = device(4);
    let (_told, card) = Nic::join_as("card", Profile::pinned(), &device);
    let buffer = filled(&device, 1, 1);
    let map = map_all(&attach(&buffer, &card));
    assert!(matches!(fill(&device, &buffer, 2), Err(Error::Pinned { .. })));
    drop(map);
    finished(fill(&device, &buffer, 2));
}

#[test]
fn others_share_system_memory_with_one_who_holds_it() {
    let device = device(4);
    let (_, card) = Nic::join_as("card", Profile::pinned(), &device);
    let (gpu_told, gpu) = Nic::join("gpu1", &device);
    let buffer = filled(&device, 1, 1);
    let direct = map_all(&attach(&buffer, &gpu));
    assert_eq!(direct.route(), Route::Declared);
    let attachment = attach(&buffer, &card);
    assert_eq!((direct.is_current(), gpu_told.was_told().len()), (false, 1), "it was told in time");
    let maps = [map_all(&attach(&buffer, &gpu)), map_all(&attachment)];
    assert_eq!(maps.each_ref().map(PeerMap::route), [Route::System; 2]);
    assert_eq!(maps[0].why_system(), Some(PeerReason::SharedInSystemMemory));
    peer_writes(&device, &maps[1], 5);
    peer_uses(&device, &maps[0], 5);
}

#[test]
fn one_who_holds_and_requires_the_bar_keeps_vram_until_it_is_detached() {
    let device = device(2);
    let (_, card) = Nic::join_as("card", Profile::pinned().policy(Policy::Required), &device);
    let buffer = filled(&device, 1, 1);
    let attachment = attach(&buffer, &card);
    assert_eq!((buffer.region(), device.stats().p2p_used_bytes), (VRAM, MIB), "its pages count from now on");
    let map = map_all(&attachment);
    assert_eq!(way(&map, &buffer), (Route::Declared, VRAM));
    let newcomer = vram_buffer(&device, 2);
    let refused = newcomer.place_now().expect_err("half of VRAM is held");
    assert!(
        matches!(refused, Error::Exhausted { region: RegionKind::Vram, pinned_bytes: MIB, .. }),
        "{refused}"
    );
    peer_uses(&device, &map, 1);
    drop((map, attachment));
    newcomer.place_now().expect("nobody holds anything");
    assert_eq!((buffer.region(), device.stats().p2p_used_bytes), (SYSTEM, 0));
}

#[test]
fn who_needs_the_bar_and_who_holds_system_memory_do_not_meet() {
    let device = device(4);
    let (_, card) = Nic::join_as("card", Profile::pinned(), &device);
    let (_, must) = Nic::join_as("gpu1", Profile::dynamic().policy(Policy::Required), &device);
    let buffer = filled(&device, 1, 1);
    let direct = map_all(&attach(&buffer, &must));
    let refused = buffer.attach(&card).expect_err("the other needs VRAM");
    assert!(matches!(refused, Error::NotPeerCapable { .. }), "{refused}");
    assert!(direct.is_current());
    let other = filled(&device, 1, 2);
    let _held = attach(&other, &card);
    let refused = attach(&other, &must).map(0..MIB).expect_err("it is held in system memory");
    assert!(matches!(refused, Error::NotPeerCapable { .. }), "{refused}");
}

#[test]
fn a_transfer_holds_the_buffer_where_it_is_and_only_while_it_is_mapped() {
    let device = device(2);
    let (disk_told, disk) = Nic::join_as("disk", Profile::pinned_for(HOUR), &device);
    let buffer = filled(&device, 1, 1);
    let attachment = attach(&buffer, &disk);
    let newcomer = vram_buffer(&device, 2);
    let map = map_all(&attachment);
    assert_eq!(way(&map, &buffer), (Route::Declared, VRAM));
    assert!(matches!(newcomer.place_now(), Err(Error::Exhausted { .. })));
    peer_writes(&device, &map, 7);
    drop(map);
    newcomer.place_now().expect("the transfer is over");
    assert_eq!(buffer.region(), SYSTEM);
    expect_bytes(&buffer, 7);
    let map = map_all(&attachment);
    assert_eq!(way(&map, &buffer).0, Route::Declared, "it comes back for the next");
    assert_eq!(disk_told.was_told(), []);
}

#[test]
fn a_transfer_that_takes_too_long_is_taken_away_and_told_and_there_is_no_other() {
    let device = device(2);
    let events = device.events();
    let (disk_told, disk) = Nic::join_as("disk", Profile::pinned_for(Duration::from_millis(5)), &device);
    let buffer = filled(&device, 1, 1);
    let attachment = attach(&buffer, &disk);
    let map = map_all(&attachment);
    soon("the end of its time", || !map.is_current());
    soon("that it is told", || disk_told.was_told() == [(buffer.id(), InvalidateReason::Revoked)]);
    let why = "its transfer took longer than it had said";
    let refused = attachment.map(0..MIB).expect_err("it has had its time");
    assert_eq!(refused, Error::Revoked { what: "disk".into(), why });
    assert_eq!(map.begin(Access::Read).map(drop), Err(Error::Revoked { what: "disk".into(), why }));
    let (buffer_id, importer) = (buffer.id(), "disk".into());
    soon("the event", || device.stats().revoked_attachments == 1);
    let revoked = Event::AttachmentRevoked { buffer: buffer_id, importer, why };
    assert!(std::iter::from_fn(|| events.try_next()).any(|event| event == revoked));
    vram_buffer(&device, 2).place_now().expect("nobody holds anything");
    expect_bytes(&buffer, 1);
    drop(map_all(&attach(&buffer, &disk)));
}

#[test]
fn a_revocable_importer_goes_last_and_loses_nothing_of_the_buffer() {
    let device = device(4);
    let profile = Profile::pinned().policy(Policy::Required).revocable();
    let (card_told, card) = Nic::join_as("card", profile, &device);
    let held = filled(&device, 1, 1);
    let attachment = attach(&held, &card);
    let map = map_all(&attachment);
    peer_uses(&device, &map, 1);
    let bystander = filled(&device, 2, 2);
    filled(&device, 3, 3);
    assert_eq!((bystander.region(), held.region(), card_told.was_told()), (SYSTEM, VRAM, vec![]));
    let gate = Gate::closed();
    card_told.is_busy_until(gate.fence());
    let large = vram_buffer(&device, 4);
    large.place_now().expect("the last resort");
    assert_eq!((held.region(), map.is_current()), (SYSTEM, false));
    assert_eq!(card_told.was_told(), [(held.id(), InvalidateReason::Revoked)]);
    write_mapped_bytes(&device, &map, 9);
    gate.open();
    expect_bytes(&held, 9);
    let refused = attachment.map(0..MIB).expect_err("it was taken away");
    assert!(matches!(refused, Error::Revoked { .. }), "{refused}");
    assert_eq!((device.stats().revoked_attachments, device.stats().cpu_waits_in_validate), (1, 0));
}

#[test]
fn who_cannot_be_revoked_is_not_and_neither_is_who_shares_a_buffer_with_one() {
    let device = device(2);
    let must = Profile::pinned().policy(Policy::Required);
    let (_, firm) = Nic::join_as("firm", must.clone(), &device);
    let (soft_told, soft) = Nic::join_as("soft", must.revocable(), &device);
    let buffer = filled(&device, 1, 1);
    let _held = [attach(&buffer, &firm), attach(&buffer, &soft)];
    let refused = vram_buffer(&device, 2).place_now().expect_err("it is held");
    assert!(matches!(refused, Error::Exhausted { .. }), "{refused}");
    assert_eq!((soft_told.was_told(), device.stats().revoked_attachments), (vec![], 0));
}

#[test]
fn a_pin_that_cannot_be_had_leaves_nothing_behind() {
    let gpu = devpagemap::SoftwareGpu::builder().build().expect("threads");
    let device = devpagemap::Device::builder(gpu).vram(Size::mib(4)).system(Size::mib(1)).gtt(Size::mib(1));
    let device = device.build().expect("a small device");
    let (_, card) = Nic::join_as("card", Profile::pinned(), &device);
    let buffer = filled(&device, 2, 1);
    let refused = buffer.attach(&card).expect_err("2 MiB of 1");
    assert!(matches!(refused, Error::TooLarge { region: RegionKind::System, .. }), "{refused}");
    finished(fill(&device, &buffer, 2));
    assert_eq!((buffer.region(), device.stats().vram_pinned_bytes), (VRAM, 0));
    let (_, gpu) = Nic::join("gpu1", &device);
    let map = map_all(&attach(&buffer, &gpu));
    assert_eq!(map.route(), Route::Declared, "who was refused is no party");
    map.end(Access::Read, &Fence::signaled()).expect("a slot");
}
