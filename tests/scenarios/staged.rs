//! Importers that do not reach the BAR get a copy, and the copy and the buffer never differ for anybody who asks first.

use devpagemap::pagemap::Profile;
use devpagemap::{
    Access, Attachment, Buffer, Error, Fence, FenceError, InvalidateReason, P2p, Peer, PeerMap, PeerReason,
    Place, RegionKind, Route, Size,
};

use crate::setup::importer::*;
use crate::setup::*;

const VRAM: Option<RegionKind> = Some(RegionKind::Vram);
const SYSTEM: Option<RegionKind> = Some(RegionKind::System);
const PAGE: u64 = 4096;

/// A buffer of one MiB in VRAM, a GPU that reaches it, and a network card that does not.
struct Pair {
    device: Lab,
    gpu: Peer,
    gpu_told: std::sync::Arc<Nic>,
    card: Peer,
    card_told: std::sync::Arc<Nic>,
    buffer: Buffer,
}

impl Pair {
    fn new(vram_mib: u64) -> Pair {
        let device = device(vram_mib);
        let (gpu_told, gpu) = Nic::join("gpu1", &device);
        let (card_told, card) = Nic::join_as("card", Profile::dynamic().system_only(), &device);
        let buffer = filled(&device, 1, 1);
        Pair { device, gpu, gpu_told, card, card_told, buffer }
    }

    fn attach(&self, peer: &Peer) -> Attachment {
        self.buffer.attach(peer).expect("one device")
    }

    /// Both map all of it: through the BAR, and as a copy.
    fn map(&self) -> (PeerMap, PeerMap) {
        let attachments = [&self.gpu, &self.card].map(|peer| self.attach(peer));
        let direct = map_all(&attachments[0]);
        let staged = map_all(&attachments[1]);
        assert_eq!((direct.route(), staged.route()), (Route::Declared, Route::Staging));
        (direct, staged)
    }
}

#[test]
fn one_who_does_not_reach_the_bar_gets_a_copy_and_nobody_moves() {
    let pair = Pair::new(4);
    let (direct, staged) = pair.map();
    assert_eq!((pair.buffer.region(), staged.why_system()), (VRAM, Some(PeerReason::NoPeerAccess)));
    assert!(direct.is_current() && pair.gpu_told.was_told().is_empty());
    peer_uses(&pair.device, &direct, 1);
    peer_uses(&pair.device, &staged, 1);
    let stats = pair.device.stats();
    assert_eq!((stats.moves, stats.staged_maps, stats.staged_copies), (0, 1, 1));
    assert_eq!((stats.staged_bytes, stats.staged_copied_bytes, stats.cpu_waits_in_validate), (MIB, MIB, 0));
    let why = stats.reasons.keys().any(|reason| reason.contains("the importer does not reach the BAR"));
    assert!(why, "{:?}", stats.reasons);
}

#[test]
fn a_simple_importer_finds_the_bytes_as_soon_as_it_has_mapped_them() {
    let pair = Pair::new(4);
    let (_direct, staged) = pair.map();
    expect_peer_reads(&pair.device, &staged, 1);
    finished(fill(&pair.device, &pair.buffer, 2));
    let again = map_all(&pair.attach(&pair.card));
    expect_peer_reads(&pair.device, &again, 2);
}

#[test]
fn what_a_job_writes_is_in_the_copy_at_the_next_use_and_nobody_waits() {
    let pair = Pair::new(4);
    let (_direct, staged) = pair.map();
    for seed in 2..6 {
        let _job = fill(&pair.device, &pair.buffer, seed).expect("it is there");
        peer_uses(&pair.device, &staged, seed);
    }
    assert_eq!(pair.device.stats().staged_copies, 5);
    peer_uses(&pair.device, &staged, 5);
    assert_eq!(pair.device.stats().staged_copies, 5, "nobody has written since");
    assert_eq!(pair.device.stats().cpu_waits_in_validate, 0);
}

#[test]
fn a_refresh_queues_behind_the_job_that_writes_and_the_next_job_behind_the_refresh() {
    let pair = Pair::new(4);
    let (_direct, staged) = pair.map();
    pair.device.wait_idle();
    let gate = Gate::closed();
    let writer = pair.device.submit().writes(&pair.buffer).after(gate.fence()).run(|gpu, job| {
        let extents = job.extents(&pair.buffer);
        gpu.run(job, move |memory| {
            write_pattern(memory, &extents, 2);
            Ok(())
        })
    });
    let arrived = staged.begin(Access::Read).expect("it is current");
    let next = fill(&pair.device, &pair.buffer, 3).expect("it is there");
    assert!(!arrived.is_signaled() && !next.is_signaled());
    gate.open();
    arrived.wait_timeout(FOREVER).expect("the copy arrives");
    finished(writer);
    finished(Ok(next));
    expect_peer_reads_copy(&pair, &staged, 2);
    peer_uses(&pair.device, &staged, 3);
}

/// What the copy holds, without asking for newer bytes.
#[track_caller]
fn expect_peer_reads_copy(pair: &Pair, map: &PeerMap, seed: u64) {
    expect_peer_reads(&pair.device, map, seed);
}

#[test]
fn what_a_staged_importer_writes_is_everybodys() {
    let pair = Pair::new(4);
    let (direct, staged) = pair.map();
    peer_writes(&pair.device, &staged, 7);
    peer_uses(&pair.device, &direct, 7);
    finished(verify(&pair.device, &pair.buffer, 7));
    expect_bytes(&pair.buffer, 7);
    peer_writes(&pair.device, &direct, 8);
    peer_uses(&pair.device, &staged, 8);
    assert_eq!(pair.buffer.region(), VRAM);
}

#[test]
fn what_the_cpu_writes_in_any_way_is_in_the_copy() {
    let pair = Pair::new(4);
    let (_direct, staged) = pair.map();
    let write = |how: &str, seed: u64, write: &dyn Fn(&[u8])| {
        let mut bytes = vec![0; MIB as usize];
        pattern::write(seed, 0, &mut bytes);
        write(&bytes);
        let before = staged.begin(Access::Read).expect("it is current");
        before.wait_timeout(FOREVER).expect("it arrives");
        expect_peer_reads_copy(&pair, &staged, seed);
        assert_eq!(pair.buffer.region(), VRAM, "{how}");
    };
    write("write_at", 2, &|bytes| pair.buffer.write_at(0, bytes).expect("it is visible"));
    write("with_page", 3, &|bytes| {
        for (page, from) in bytes.chunks(PAGE as usize).enumerate() {
            pair.buffer.with_page(page as u64, |into| into.copy_from_slice(from)).expect("it is visible");
        }
    });
    let map = pair.buffer.map().expect("it opted in");
    write("a map", 4, &|bytes| map.write(0, bytes).expect("it is writable"));
    write("a map again", 5, &|bytes| map.write(0, bytes).expect("it is writable"));
    let last = std::cell::Cell::new(Some(map));
    write("a map that is gone", 6, &|bytes| {
        let map = last.take().expect("once");
        map.write(0, bytes).expect("it is writable");
    });
    let copies = pair.device.stats().staged_copies;
    peer_uses(&pair.device, &staged, 6);
    assert_eq!(pair.device.stats().staged_copies, copies, "nobody can write any more");
}

#[test]
fn only_what_a_map_shows_is_copied_and_only_what_is_not_fresh() {
    let pair = Pair::new(4);
    let _direct = map_all(&pair.attach(&pair.gpu));
    let attachment = pair.attach(&pair.card);
    let copied = || pair.device.stats().staged_copied_bytes / PAGE;
    let first = attachment.map(4 * PAGE..8 * PAGE).expect("a copy");
    assert_eq!(copied(), 4);
    let second = attachment.map(2 * PAGE..6 * PAGE).expect("a copy");
    assert_eq!(copied(), 6);
    for (map, pages) in [(&first, 6), (&second, 6)] {
        peer_uses(&pair.device, map, 1);
        assert_eq!(copied(), pages);
    }
    peer_writes(&pair.device, &first, 9);
    assert_eq!(copied(), 10, "what it shows comes back");
    assert_eq!(pair.device.stats().staged_bytes, MIB, "one copy for all");
    let mut bytes = vec![0; PAGE as usize];
    for (page, seed) in [(3, 1), (4, 9), (7, 9), (8, 1)] {
        pair.buffer.read_at(page * PAGE, &mut bytes).expect("it is there");
        pattern::check(seed, page * PAGE, &bytes).expect("nothing else was written");
    }
}

#[test]
fn a_copy_goes_with_the_last_map_of_it_and_behind_its_users() {
    let pair = Pair::new(4);
    let (direct, staged) = pair.map();
    let other = map_all(&pair.attach(&pair.card));
    pair.device.wait_idle();
    let before = pair.device.stats().system_used_bytes;
    drop(staged);
    assert_eq!((pair.device.stats().staged_bytes, pair.device.stats().system_used_bytes), (MIB, before));
    let gate = Gate::closed();
    other.unmap_after(gate.fence().clone());
    let stats = pair.device.stats();
    assert_eq!((stats.staged_bytes, stats.system_used_bytes, stats.system_pending_bytes), (0, 0, MIB));
    gate.open();
    assert_eq!(pair.device.stats().system_pending_bytes, 0);
    assert!(direct.is_current());
}

#[test]
fn a_buffer_that_moves_takes_no_copy_away_and_the_copy_follows_it() {
    let pair = Pair::new(2);
    let (direct, staged) = pair.map();
    peer_writes(&pair.device, &staged, 5);
    let evictor = filled(&pair.device, 2, 2);
    assert_eq!((pair.buffer.region(), direct.is_current(), staged.is_current()), (SYSTEM, false, true));
    assert!(pair.card_told.was_told().is_empty(), "nothing has happened to its copy");
    peer_uses(&pair.device, &staged, 5);
    peer_writes(&pair.device, &staged, 6);
    expect_bytes(&pair.buffer, 6);
    drop(evictor);
    finished(fill(&pair.device, &pair.buffer, 7));
    assert_eq!(pair.buffer.region(), VRAM);
    peer_uses(&pair.device, &staged, 7);
    peer_uses(&pair.device, &map_all(&pair.attach(&pair.gpu)), 7);
}

#[test]
fn what_is_written_to_a_copy_while_it_is_taken_away_is_not_lost() {
    let pair = Pair::new(4);
    let (direct, staged) = pair.map();
    let (gate, writing) = (Gate::closed(), staged.begin(Access::Write).expect("it is current"));
    writing.wait_timeout(FOREVER).expect("it arrives");
    pair.card_told.is_busy_until(gate.fence());
    // Whoever must be in VRAM is told that there is nothing else any more, and others with it.
    pair.buffer.set_p2p(P2p::Require).expect("a slot");
    assert_eq!(pair.card_told.was_told(), [(pair.buffer.id(), InvalidateReason::Retagged)]);
    assert!(!staged.is_current() && direct.is_current());
    write_mapped_bytes(&pair.device, &staged, 9);
    gate.open();
    finished(verify(&pair.device, &pair.buffer, 9));
    let refused = staged.begin(Access::Read).expect_err("it is not current");
    assert_eq!(refused, Error::StaleMap { buffer: pair.buffer.id() });
    let again = pair.attach(&pair.card).map(0..MIB).expect_err("it does not reach the BAR");
    assert!(matches!(again, Error::NoPeerAccess { .. }), "{again}");
}

#[test]
fn a_refresh_that_fails_says_so_and_the_next_use_copies_again() {
    let pair = Pair::new(4);
    let (direct, staged) = pair.map();
    peer_uses(&pair.device, &staged, 1);
    let gate = Gate::closed();
    let ring = devpagemap::Timeline::new("gpu1 ring");
    let write = ring.next_point();
    direct.end(Access::Write, &write).expect("a slot");
    let arrived = staged.begin(Access::Read).expect("it is current");
    assert!(!arrived.is_signaled());
    ring.fail(write.seqno(), FenceError::Cancelled);
    arrived.wait_timeout(FOREVER).expect("a writer that fails leaves bytes too");
    drop(gate);
    peer_uses(&pair.device, &staged, 1);
}

#[test]
fn without_memory_for_a_copy_the_map_is_refused_and_nothing_changes() {
    let gpu = devpagemap::SoftwareGpu::builder().build().expect("threads");
    let device = devpagemap::Device::builder(gpu).vram(Size::mib(4)).system(Size::mib(1)).gtt(Size::mib(1));
    let device = device.build().expect("a small device");
    let (_gpu, gpu) = Nic::join("gpu1", &device);
    let (_card, card) = Nic::join_as("card", Profile::dynamic().system_only(), &device);
    let buffer = filled(&device, 2, 1);
    let direct = map_all(&buffer.attach(&gpu).expect("one device"));
    let refused = buffer.attach(&card).expect("one device").map(0..PAGE).expect_err("2 MiB of 1");
    assert!(matches!(refused, Error::TooLarge { region: RegionKind::System, .. }), "{refused}");
    assert_eq!((direct.is_current(), buffer.region(), device.stats().staged_maps), (true, VRAM, 0));
}

#[test]
fn an_importer_without_a_queue_waits_for_the_bytes_itself() {
    let pair = Pair::new(4);
    let (_direct, staged) = pair.map();
    let _job = fill(&pair.device, &pair.buffer, 2).expect("it is there");
    staged.wait(Access::Read).expect("it arrives");
    expect_peer_reads_copy(&pair, &staged, 2);
    staged.end(Access::Read, &Fence::signaled()).expect("a slot");
    assert_eq!(pair.device.stats().cpu_waits_in_validate, 0, "it is its own wait");
}

#[test]
fn a_buffer_that_was_never_used_is_zeros_in_the_copy_too() {
    let pair = Pair::new(4);
    let fresh = buffer_at(&pair.device, Place::VRAM, 1);
    let _direct = fresh.attach(&pair.gpu).expect("one device");
    let staged = map_all(&fresh.attach(&pair.card).expect("one device"));
    assert_eq!((staged.route(), fresh.region()), (Route::Staging, VRAM));
    staged.wait(Access::Read).expect("it is cleared");
    for extent in staged.extents() {
        let devpagemap::PeerAddr::System(addr) = extent.addr else { panic!("{staged:?}") };
        let mut bytes = vec![1; extent.len_bytes as usize];
        pair.device.driver().read_system(addr, &mut bytes).expect("it is mapped");
        assert!(bytes.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_group_whose_second_part_is_refused_writes_nothing_to_the_copy_of_the_first() {
    let pair = Pair::new(4);
    let other = filled(&pair.device, 1, 3);
    let both = [pair.buffer.clone(), other.clone()];
    let _direct = pair.gpu.attach_all(&both).expect("one device").map(0..2 * MIB).expect("room");
    let group = pair.card.attach_all(&both).expect("one device").map(0..2 * MIB).expect("copies");
    assert!(group.maps().iter().all(|map| map.route() == Route::Staging));
    other.set_p2p(P2p::Require).expect("it fits into the BAR");
    assert!(matches!(group.begin(Access::Write), Err(Error::StaleMap { .. })));
    finished(fill(&pair.device, &pair.buffer, 5));
    // The copy ends, and would be brought back if somebody had written it.
    pair.buffer.set_p2p(P2p::Require).expect("it fits into the BAR");
    finished(verify(&pair.device, &pair.buffer, 5));
}
