//! Everybody writes and reads parts of a few buffers, in every way there is, while these move and routes come and go. A list of what was written where
//! last says what has to be read.

use std::ops::Range;

use devpagemap::pagemap::{Observation, Observed, Profile};
use devpagemap::{Access, Attachment, Buffer, Error, Fence, FenceSet, P2p, Peer, PeerMap, Place, Size};

use crate::setup::importer::*;
use crate::setup::numbers::Numbers;
use crate::setup::*;

const PAGE: u64 = 4096;
const PAGES: u64 = 8;
const BUFFERS: usize = 3;

/// One buffer, and what each of its pages holds.
struct Shared {
    buffer: Buffer,
    /// The seed of each page.
    seeds: Vec<u64>,
    /// Of the peers, in their order.
    attachments: Vec<Attachment>,
    /// Maps that are kept, by peer.
    kept: Vec<Option<PeerMap>>,
}

struct World {
    device: Lab,
    peers: Vec<Peer>,
    shared: Vec<Shared>,
    numbers: Numbers,
    next_seed: u64,
}

impl World {
    fn new(seed: u64) -> World {
        // Two of three buffers fit into VRAM.
        let gpu = devpagemap::SoftwareGpu::builder().rings(2).build().expect("threads");
        let all = Size::bytes(2 * PAGES * PAGE);
        let limits = devpagemap::P2pLimits { soft: all, reopen: all, hard: all, cpu_reserve: Size::bytes(0) };
        let device = devpagemap::Device::builder(gpu)
            .vram(all)
            .p2p_limits(limits)
            .system(Size::mib(16))
            .gtt(Size::mib(8));
        let device = device.build().expect("a small device");
        let profiles = [
            ("gpu1", Profile::dynamic()),
            ("gpu2", Profile::dynamic()),
            ("card", Profile::dynamic().system_only()),
        ];
        let peers: Vec<Peer> =
            profiles.into_iter().map(|(name, profile)| Nic::join_as(name, profile, &device).1).collect();
        let shared = (0..BUFFERS).map(|at| Shared::new(&device, &peers, at)).collect();
        World { device, peers, shared, numbers: Numbers(seed), next_seed: 100 }
    }

    fn below(&mut self, limit: usize) -> usize {
        self.numbers.below(limit)
    }

    fn step(&mut self) {
        let (at, peer) = (self.below(BUFFERS), self.below(self.peers.len()));
        match self.below(16) {
            0 | 1 => self.write(at, |world, at, pages, seed| world.write_by_job(at, pages, seed)),
            2 => self.write(at, |world, at, pages, seed| {
                let bytes = pattern_of(&pages, seed);
                world.shared[at].buffer.write_at(pages.start * PAGE, &bytes).expect("it can be reached");
            }),
            3..=6 => self.write(at, |world, at, pages, seed| world.write_by_peer(at, peer, pages, seed)),
            7..=11 => self.read_by_peer(at, peer),
            12 => self.read_by_cpu(at),
            13 => drop(self.shared[at].kept[peer].take()),
            14 => {
                let p2p = [P2p::Never, P2p::Allowed, P2p::Prefer][self.below(3)];
                self.shared[at].buffer.set_p2p(p2p).expect("a slot");
            }
            _ => {
                let allows = self.below(2) == 0;
                let (owner, peer) = (self.device.owner().clone(), self.peers[peer].importer_id());
                self.device.registry().observe(Observation::new(
                    &owner,
                    peer,
                    Observed::DriverAllows(allows),
                ));
                self.device.reroute();
            }
        }
    }

    fn write(&mut self, at: usize, how: impl FnOnce(&mut World, usize, Range<u64>, u64)) {
        let start = self.below(PAGES as usize) as u64;
        let pages = start..start + 1 + self.below((PAGES - start) as usize) as u64;
        let seed = self.next_seed;
        self.next_seed += 1;
        how(self, at, pages.clone(), seed);
        for page in pages {
            self.shared[at].seeds[page as usize] = seed;
        }
    }

    fn write_by_job(&self, at: usize, pages: Range<u64>, seed: u64) {
        let buffer = &self.shared[at].buffer;
        let job = self.device.submit().writes(buffer).run(|gpu, job| {
            let start = pages.start * PAGE;
            let part = job.extents(buffer).slice(start, (pages.end - pages.start) * PAGE);
            gpu.run(job, move |memory| {
                memory.write(&part, |offset, bytes| pattern::write(seed, start + offset, bytes));
                Ok(())
            })
        });
        let _queued = job.expect("room for one buffer");
    }

    /// A map of these pages: the one that is kept, if it is of them.
    fn map(&mut self, at: usize, peer: usize, pages: &Range<u64>) -> PeerMap {
        let range = pages.start * PAGE..pages.end * PAGE;
        let shared = &mut self.shared[at];
        match shared.kept[peer].take() {
            Some(map) if map.range() == range && map.is_current() => map,
            _ => shared.attachments[peer].map(range).expect("the BAR, system memory, or a copy"),
        }
    }

    /// A map of these pages in use, and what to wait for. The device's own thread brings buffers back into the BAR whenever there is room, so
    /// a map that is current may be stale the moment after, and is made anew.
    fn begin(&mut self, at: usize, peer: usize, pages: &Range<u64>, access: Access) -> (PeerMap, FenceSet) {
        loop {
            let map = self.map(at, peer, pages);
            match map.begin(access) {
                Ok(before) => return (map, before),
                Err(Error::StaleMap { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn write_by_peer(&mut self, at: usize, peer: usize, pages: Range<u64>, seed: u64) {
        let (map, before) = self.begin(at, peer, &pages, Access::Write);
        peer_writes_after(&self.device, &map, seed, &before);
        self.shared[at].kept[peer] = Some(map);
    }

    fn read_by_peer(&mut self, at: usize, peer: usize) {
        let kept = self.shared[at].kept[peer].as_ref().filter(|map| map.is_current());
        let pages = kept.map_or(0..PAGES, |map| map.range().start / PAGE..map.range().end / PAGE);
        let (map, before) = self.begin(at, peer, &pages, Access::Read);
        before.wait_timeout(FOREVER).expect("the bytes arrive");
        let bytes = mapped_bytes(&self.device, &map);
        map.end(Access::Read, &Fence::signaled()).expect("a slot");
        self.check(at, map.range().start / PAGE, &bytes, &map);
        self.shared[at].kept[peer] = Some(map);
    }

    fn read_by_cpu(&self, at: usize) {
        let mut bytes = vec![0; (PAGES * PAGE) as usize];
        self.shared[at].buffer.read_at(0, &mut bytes).expect("it can be reached");
        self.check(at, 0, &bytes, &"the CPU");
    }

    fn check(&self, at: usize, first: u64, bytes: &[u8], reader: &dyn std::fmt::Debug) {
        for (page, bytes) in (first..).zip(bytes.chunks(PAGE as usize)) {
            let seed = self.shared[at].seeds[page as usize];
            if let Err(wrong) = pattern::check(seed, page * PAGE, bytes) {
                panic!("page {page} of buffer {at} for {reader:?}: {wrong}");
            }
        }
    }
}

impl Shared {
    fn new(device: &Lab, peers: &[Peer], at: usize) -> Shared {
        let mut builder = device.buffer(Size::bytes(PAGES * PAGE)).prefer(Place::VRAM).write_combined();
        if at == 0 {
            builder = builder.or(Place::GTT);
        }
        let buffer = builder.create().expect("a small buffer");
        fill(device, &buffer, at as u64).expect("room");
        let attachments: Vec<Attachment> =
            peers.iter().map(|peer| buffer.attach(peer).expect("one device")).collect();
        let kept = peers.iter().map(|_| None).collect();
        Shared { buffer, seeds: vec![at as u64; PAGES as usize], attachments, kept }
    }
}

fn pattern_of(pages: &Range<u64>, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; ((pages.end - pages.start) * PAGE) as usize];
    pattern::write(seed, pages.start * PAGE, &mut bytes);
    bytes
}

#[test]
fn whoever_reads_finds_what_was_written_last_whichever_way_it_went() {
    for seed in 0..20 {
        let mut world = World::new(seed);
        for _ in 0..400 {
            world.step();
        }
        (0..BUFFERS).for_each(|at| world.read_by_cpu(at));
        let stats = world.device.stats();
        assert_eq!(stats.cpu_waits_in_validate, 0);
        assert!(stats.staged_copies > 0, "the ways were taken");
        let World { device, shared, .. } = world;
        drop(shared);
        // The device's own thread may be looking at one of them.
        soon("that nothing is left", || {
            device.wait_idle();
            let stats = device.stats();
            (stats.staged_bytes, stats.system_used_bytes, stats.p2p_used_bytes) == (0, 0, 0)
        });
    }
}

#[test]
fn a_map_of_more_than_there_is_of_a_buffer_is_refused_for_a_copy_too() {
    let world = World::new(0);
    let refused = world.shared[0].attachments[2].map(0..PAGES * PAGE + 1).expect_err("beyond the end");
    assert!(matches!(refused, Error::OutOfBounds { .. }), "{refused}");
}
