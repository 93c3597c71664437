//! Random sequences of everything that the public API offers, against a model that is nothing but bytes.

use devpagemap::{Buffer, CpuMap, Error, Fence, Place, RegionKind, Size};
use proptest::prelude::*;

use crate::setup::*;

/// One step of a sequence. Buffers are named by their position, modulo how many there are.
#[derive(Clone, Debug)]
enum Step {
    Create {
        bytes: u64,
        placement: usize,
        priority: usize,
        combined: bool,
    },
    Drop {
        at: usize,
    },
    GpuRead {
        at: usize,
    },
    GpuWrite {
        at: usize,
        seed: u64,
    },
    /// One job that copies the first buffer's beginning over the second's.
    GpuCopy {
        from: usize,
        to: usize,
    },
    CpuRead {
        at: usize,
        part: (usize, usize),
    },
    CpuWrite {
        at: usize,
        part: (usize, usize),
        seed: u64,
    },
    Map {
        at: usize,
    },
    Unmap {
        at: usize,
    },
    PlaceNow {
        at: usize,
    },
    WaitIdle,
}

const LARGEST: u64 = 3 * MIB / 2;

fn placements() -> [Vec<Place>; 8] {
    [
        vec![Place::VRAM],
        vec![Place::VRAM, Place::GTT],
        vec![Place::VRAM.visible()],
        vec![Place::VRAM.contiguous()],
        vec![Place::GTT],
        vec![Place::SYSTEM],
        vec![Place::VRAM.desired(), Place::GTT.fallback()],
        vec![Place::VRAM.within(MIB..3 * MIB).top_down(), Place::SYSTEM],
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let part = || (any::<usize>(), any::<usize>());
    let at = || 0..12_usize;
    prop_oneof![
        4 => (1..LARGEST, 0..8_usize, 0..4_usize, any::<bool>()).prop_map(
            |(bytes, placement, priority, combined)| Step::Create { bytes, placement, priority, combined }
        ),
        2 => at().prop_map(|at| Step::Drop { at }),
        5 => at().prop_map(|at| Step::GpuRead { at }),
        5 => (at(), any::<u64>()).prop_map(|(at, seed)| Step::GpuWrite { at, seed }),
        4 => (at(), at()).prop_map(|(from, to)| Step::GpuCopy { from, to }),
        3 => (at(), part()).prop_map(|(at, part)| Step::CpuRead { at, part }),
        3 => (at(), part(), any::<u64>()).prop_map(|(at, part, seed)| Step::CpuWrite { at, part, seed }),
        1 => at().prop_map(|at| Step::Map { at }),
        2 => at().prop_map(|at| Step::Unmap { at }),
        2 => at().prop_map(|at| Step::PlaceNow { at }),
        1 => Just(Step::WaitIdle),
    ]
}

struct Known {
    buffer: Buffer,
    /// What it holds once all submitted work is done.
    bytes: Vec<u8>,
    /// Whether room for it can be lacking because of others in its own submission.
    is_demanding: bool,
    map: Option<CpuMap>,
}

impl Known {
    /// The part that two numbers stand for.
    fn part(&self, part: (usize, usize)) -> std::ops::Range<usize> {
        let start = part.0 % self.bytes.len();
        start..start + part.1 % (self.bytes.len() - start + 1)
    }
}

struct World {
    device: Lab,
    known: Vec<Known>,
    jobs: Vec<Fence>,
    created: u64,
}

impl World {
    fn new() -> World {
        let device = builder(4).visible(Size::mib(2)).gtt(Size::mib(3)).build().expect("a device");
        World { device, known: Vec::new(), jobs: Vec::new(), created: 0 }
    }

    fn index(&self, at: usize) -> Option<usize> {
        (!self.known.is_empty()).then(|| at % self.known.len())
    }

    /// Room may be lacking only where something is pinned; then the answer must be one of these.
    fn may_lack_room<T>(&self, result: Result<T, Error>, is_demanding: bool) -> Option<T> {
        let pinned = self.known.iter().any(|known| known.map.is_some());
        match result {
            Ok(value) => Some(value),
            Err(Error::Exhausted { .. } | Error::Fragmented { .. } | Error::Pinned { .. })
                if pinned || is_demanding =>
            {
                None
            }
            Err(error) => panic!("with nothing pinned there is room: {error}"),
        }
    }

    fn create(&mut self, bytes: u64, placement: usize, priority: usize, combined: bool) {
        if self.known.len() == 12 {
            return;
        }
        let places = placements()[placement].clone();
        let is_demanding =
            places.iter().all(|place| *place == Place::VRAM.visible() || *place == Place::VRAM.contiguous());
        let builder = self.device.buffer(Size::bytes(bytes)).priority(priority);
        let buffer = places.into_iter().fold(builder, |builder, place| builder.or(place));
        let buffer = if combined { buffer.write_combined() } else { buffer };
        let buffer = buffer.create().expect("every size up to 1.5 MiB fits somewhere");
        self.created += 1;
        self.known.push(Known { buffer, bytes: vec![0; bytes as usize], is_demanding, map: None });
    }

    fn gpu_read(&mut self, at: usize) {
        let known = &self.known[at];
        let expected = known.bytes.clone();
        let job = self.device.submit().reads(&known.buffer).run(|gpu, job| {
            let extents = job.extents(&known.buffer);
            gpu.run(job, move |memory| {
                let mut is_right = true;
                memory.read(&extents, |offset, found| {
                    let rest = &expected[expected.len().min(offset as usize)..];
                    let len = rest.len().min(found.len());
                    is_right &= found[..len] == rest[..len];
                });
                if is_right { Ok(()) } else { Err("the job saw wrong bytes".into()) }
            })
        });
        let job = self.may_lack_room(job, false);
        self.jobs.extend(job);
    }

    fn gpu_write(&mut self, at: usize, seed: u64) {
        let known = &self.known[at];
        let job = fill(&self.device, &known.buffer, seed);
        if let Some(job) = self.may_lack_room(job, false) {
            self.jobs.push(job);
            pattern::write(seed, 0, &mut self.known[at].bytes);
        }
    }

    fn gpu_copy(&mut self, from: usize, to: usize) {
        let (source, target) = (&self.known[from], &self.known[to]);
        let len = source.bytes.len().min(target.bytes.len());
        let job = self.device.submit().reads(&source.buffer).writes(&target.buffer).run(|gpu, job| {
            let (source, target) = (job.extents(&source.buffer), job.extents(&target.buffer));
            gpu.run(job, move |memory| {
                let mut bytes = Vec::with_capacity(len);
                memory.read(&source.slice(0, len as u64), |_, piece| bytes.extend_from_slice(piece));
                memory.write(&target.slice(0, len as u64), |offset, piece| {
                    piece.copy_from_slice(&bytes[offset as usize..offset as usize + piece.len()]);
                });
                Ok(())
            })
        });
        let is_demanding = from != to && (source.is_demanding || target.is_demanding);
        if let Some(job) = self.may_lack_room(job, is_demanding) {
            self.jobs.push(job);
            let copied = self.known[from].bytes[..len].to_vec();
            self.known[to].bytes[..len].copy_from_slice(&copied);
        }
    }

    fn cpu_read(&mut self, at: usize, part: (usize, usize)) {
        let known = &self.known[at];
        let part = known.part(part);
        let mut found = vec![0xee; part.len()];
        match &known.map {
            Some(map) => map.read(part.start as u64, &mut found),
            None => known.buffer.read_at(part.start as u64, &mut found),
        }
        .expect("system memory is plenty");
        assert!(found == known.bytes[part], "the CPU read wrong bytes of buffer {}", known.buffer.id());
    }

    fn cpu_write(&mut self, at: usize, part: (usize, usize), seed: u64) {
        let known = &mut self.known[at];
        let part = known.part(part);
        pattern::write(seed, part.start as u64, &mut known.bytes[part.clone()]);
        let bytes = &known.bytes[part.clone()];
        match &known.map {
            Some(map) => map.write(part.start as u64, bytes),
            None => known.buffer.write_at(part.start as u64, bytes),
        }
        .expect("system memory is plenty");
    }

    fn take(&mut self, step: &Step) {
        if let Step::Create { bytes, placement, priority, combined } = *step {
            return self.create(bytes, placement, priority, combined);
        }
        let index = |at| self.index(at);
        match *step {
            Step::Create { .. } => {}
            Step::WaitIdle => self.device.wait_idle(),
            Step::GpuCopy { from, to } => {
                if let (Some(from), Some(to)) = (index(from), index(to)) {
                    self.gpu_copy(from, to);
                }
            }
            Step::Drop { at }
            | Step::GpuRead { at }
            | Step::GpuWrite { at, .. }
            | Step::CpuRead { at, .. }
            | Step::CpuWrite { at, .. }
            | Step::Map { at }
            | Step::Unmap { at }
            | Step::PlaceNow { at } => {
                if let Some(at) = index(at) {
                    self.take_with(step, at);
                }
            }
        }
    }

    /// A step that concerns the buffer at `at`.
    fn take_with(&mut self, step: &Step, at: usize) {
        match *step {
            Step::Drop { .. } => drop(self.known.swap_remove(at)),
            Step::GpuRead { .. } => self.gpu_read(at),
            Step::GpuWrite { seed, .. } => self.gpu_write(at, seed),
            Step::CpuRead { part, .. } => self.cpu_read(at, part),
            Step::CpuWrite { part, seed, .. } => self.cpu_write(at, part, seed),
            Step::Map { .. } => {
                let map = self.known[at].buffer.map();
                if let Some(map) = self.may_lack_room(map, false) {
                    let _replaced = self.known[at].map.replace(map);
                }
            }
            Step::Unmap { .. } => self.known[at].map = None,
            Step::PlaceNow { .. } => {
                let placed = self.known[at].buffer.place_now();
                let _possible = self.may_lack_room(placed, false);
            }
            Step::Create { .. } | Step::GpuCopy { .. } | Step::WaitIdle => {
                unreachable!("they concern no one buffer")
            }
        }
    }

    /// What must hold after every step.
    fn check_sums(&self) {
        let stats = self.device.stats();
        let used_in = |region| {
            let there = self.known.iter().filter(|known| known.buffer.region() == Some(region));
            there.map(|known| known.buffer.size().as_bytes().next_multiple_of(4096)).sum::<u64>()
        };
        assert_eq!(stats.vram_used_bytes, used_in(RegionKind::Vram), "VRAM");
        assert_eq!(stats.gtt_used_bytes, used_in(RegionKind::Gtt), "GTT");
        assert_eq!(stats.system_used_bytes, used_in(RegionKind::System), "system memory");
        assert!(stats.vram_used_bytes + stats.vram_pending_bytes <= 4 * MIB);
        assert!(stats.gtt_used_bytes <= 3 * MIB);
        assert_eq!(stats.live_bo_bytes, self.known.iter().map(|known| known.bytes.len() as u64).sum::<u64>());
        assert_eq!((stats.allocs, stats.frees), (self.created, self.created - self.known.len() as u64));
        assert_eq!(stats.cpu_waits_in_validate, 0);
    }

    /// Every byte, and then nothing left.
    fn check_end(mut self) {
        for job in &self.jobs {
            job.wait_timeout(FOREVER).expect("every job saw the right bytes");
        }
        for known in &self.known {
            let mut all = vec![0xee; known.bytes.len()];
            known.buffer.read_at(0, &mut all).expect("system memory is plenty");
            assert!(all == known.bytes, "buffer {} holds wrong bytes", known.buffer.id());
        }
        self.known.clear();
        self.device.wait_idle();
        let stats = self.device.stats();
        assert_eq!((stats.vram_used_bytes, stats.gtt_used_bytes, stats.system_used_bytes), (0, 0, 0));
        assert_eq!(
            (stats.vram_pending_bytes, stats.system_pending_bytes, stats.vram_pinned_bytes),
            (0, 0, 0)
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn bytes_and_sums_are_always_those_of_the_model(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        for step in &steps {
            world.take(step);
            world.check_sums();
        }
        world.check_end();
    }
}
