//! Everything at once on one device, for `DEVPAGEMAP_STRESS_SECONDS` (3 by default).

#[path = "setup/census.rs"]
mod census;
#[path = "setup/jobs.rs"]
mod jobs;
#[path = "setup/numbers.rs"]
mod numbers;
#[path = "setup/pattern.rs"]
mod pattern;
#[path = "setup/stress_time.rs"]
mod stress_time;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use devpagemap::{Buffer, CpuMap, Device, Error, Fence, Place, Size, SoftwareGpu};
use jobs::{check_pattern, fill, verify, write_pattern};
use numbers::Numbers;
use stress_time::stress_time;

type Lab = Device<SoftwareGpu>;

const THREADS: u64 = 8;
const KIB: u64 = 1 << 10;
const SHARED_BYTES: u64 = 512 * KIB;

/// A thread that gets nothing done for so long is stuck.
const STUCK: Duration = Duration::from_secs(30);

/// A buffer that all threads use.
struct Shared {
    buffer: Buffer,
    /// What it holds. Changed by jobs only, which the buffer's fences keep apart.
    seed: Arc<AtomicU64>,
}

/// A buffer of one thread.
struct Own {
    buffer: Buffer,
    /// What it holds; none: zeros.
    seed: Option<u64>,
    map: Option<CpuMap>,
}

struct Worker<'a> {
    device: &'a Lab,
    shared: &'a [Shared],
    own: Vec<Own>,
    jobs: Vec<Fence>,
    /// Its choices.
    numbers: Numbers,
    /// Differs for every fill of every thread.
    next_seed: u64,
}

impl Worker<'_> {
    fn below(&mut self, limit: u64) -> u64 {
        self.numbers.below(limit as usize) as u64
    }

    fn fresh_seed(&mut self) -> u64 {
        self.next_seed += THREADS;
        self.next_seed
    }

    fn step(&mut self) {
        let choice = self.below(12);
        match choice {
            0 | 1 => self.create(),
            2 => {
                if let Some(at) = self.pick() {
                    drop(self.own.swap_remove(at));
                }
            }
            3 | 4 => self.use_own(),
            5 => self.write_by_cpu(),
            6 => self.read_by_cpu(),
            7 => self.map(),
            8 => self.peek_at_shared(),
            _ => self.rewrite_shared(),
        }
        if self.jobs.len() > 4 {
            let oldest = self.jobs.remove(0);
            oldest.wait_timeout(STUCK).expect("every job finds the right bytes, in finite time");
        }
    }

    fn pick(&mut self) -> Option<usize> {
        let count = self.own.len() as u64;
        (count > 0).then(|| self.below(count) as usize)
    }

    fn create(&mut self) {
        if self.own.len() >= 6 {
            return;
        }
        let bytes = 1 + self.below(512 * KIB);
        let builder = self.device.buffer(Size::bytes(bytes)).priority(self.below(4) as usize);
        let builder = match self.below(6) {
            0 => builder.prefer(Place::VRAM).or(Place::GTT),
            1 => builder.prefer(Place::GTT),
            2 => builder.prefer(Place::VRAM.visible()),
            3 => builder.prefer(Place::VRAM.contiguous()),
            4 => builder.prefer(Place::VRAM.desired()).or(Place::SYSTEM.fallback()),
            _ => builder.prefer(Place::VRAM),
        };
        let builder = if self.below(2) == 0 { builder.write_combined() } else { builder };
        let buffer = builder.create().expect("a small buffer");
        self.own.push(Own { buffer, seed: None, map: None });
    }

    /// A job on an own buffer: checks what is known of it, or fills it.
    fn use_own(&mut self) {
        let Some(at) = self.pick() else { return };
        let fresh = self.fresh_seed();
        let own = &mut self.own[at];
        let job = match own.seed {
            Some(seed) => verify(self.device, &own.buffer, seed),
            None => fill(self.device, &own.buffer, fresh),
        };
        match job {
            Ok(job) => {
                own.seed.get_or_insert(fresh);
                self.jobs.push(job);
            }
            // The maps of all threads together can leave no piece that is large enough.
            Err(Error::Fragmented { .. } | Error::Pinned { .. }) => {}
            Err(error) => panic!("there is room: {error}"),
        }
    }

    fn write_by_cpu(&mut self) {
        let Some(at) = self.pick() else { return };
        let seed = self.fresh_seed();
        let own = &mut self.own[at];
        let mut bytes = vec![0; own.buffer.size().as_bytes() as usize];
        pattern::write(seed, 0, &mut bytes);
        own.buffer.write_at(0, &bytes).expect("system memory is plenty");
        own.seed = Some(seed);
    }

    fn read_by_cpu(&mut self) {
        let Some(at) = self.pick() else { return };
        let own = &self.own[at];
        let mut bytes = vec![0xee; own.buffer.size().as_bytes() as usize];
        match &own.map {
            Some(map) => map.read(0, &mut bytes),
            None => own.buffer.read_at(0, &mut bytes),
        }
        .expect("system memory is plenty");
        match own.seed {
            Some(seed) => pattern::check(seed, 0, &bytes).expect("the CPU reads what was written"),
            None => assert!(bytes.iter().all(|byte| *byte == 0), "it was never written"),
        }
    }

    /// Maps an own buffer, or unmaps the one that is mapped.
    fn map(&mut self) {
        if let Some(mapped) = self.own.iter_mut().find(|own| own.map.is_some()) {
            mapped.map = None;
            return;
        }
        let Some(at) = self.pick() else { return };
        let own = &mut self.own[at];
        own.map = Some(own.buffer.map().expect("system memory is plenty"));
    }

    /// Reads a shared buffer; if nobody wrote it meanwhile, the bytes must be those of the last writer.
    fn peek_at_shared(&mut self) {
        let shared = &self.shared[self.below(self.shared.len() as u64) as usize];
        let before = shared.seed.load(Ordering::Acquire);
        let mut bytes = vec![0; SHARED_BYTES as usize];
        shared.buffer.read_at(0, &mut bytes).expect("system memory is plenty");
        if shared.seed.load(Ordering::Acquire) == before {
            pattern::check(before, 0, &bytes).expect("the last writer's bytes");
        }
    }

    /// A job that checks several shared buffers and writes them anew: up to half of VRAM.
    fn rewrite_shared(&mut self) {
        let count = 1 + self.below(16);
        let chosen: Vec<usize> = (0..count).map(|_| self.below(self.shared.len() as u64) as usize).collect();
        let fresh = self.fresh_seed();
        let shared = self.shared;
        let submission =
            chosen.iter().fold(self.device.submit(), |submission, at| submission.writes(&shared[*at].buffer));
        let job = submission.run(|gpu, job| {
            let parts: Vec<_> = chosen
                .iter()
                .map(|at| (job.extents(&shared[*at].buffer), shared[*at].seed.clone()))
                .collect();
            gpu.run(job, move |memory| {
                for (extents, seed) in &parts {
                    check_pattern(memory, extents, seed.load(Ordering::Acquire))?;
                    write_pattern(memory, extents, fresh);
                    seed.store(fresh, Ordering::Release);
                }
                Ok(())
            })
        });
        self.jobs.push(job.expect("there is room for half of VRAM"));
    }
}

/// Ends the process with a message when nobody makes progress.
fn guard(progress: &AtomicU64, done: &AtomicBool) {
    let (mut last, mut since) = (0, Instant::now());
    while !done.load(Ordering::Acquire) {
        thread::sleep(Duration::from_millis(100));
        let now = progress.load(Ordering::Relaxed);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        if since.elapsed() > STUCK {
            eprintln!("deadlock: no progress for {STUCK:?} after {now} steps");
            std::process::abort();
        }
    }
}

fn run(device: &Lab) {
    let shared: Vec<_> = (0..40)
        .map(|seed| {
            let buffer = device.buffer(Size::bytes(SHARED_BYTES)).create().expect("a small buffer");
            fill(device, &buffer, seed).expect("room");
            Shared { buffer, seed: Arc::new(AtomicU64::new(seed)) }
        })
        .collect();
    let (progress, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let end = Instant::now() + stress_time();
    thread::scope(|scope| {
        scope.spawn(|| guard(&progress, &done));
        let workers: Vec<_> = (0..THREADS)
            .map(|client| {
                let (shared, progress) = (&shared, &progress);
                scope.spawn(move || {
                    let (own, jobs) = (Vec::new(), Vec::new());
                    let (numbers, next_seed) = (Numbers(client), 1000 + client);
                    let mut worker = Worker { device, shared, own, jobs, numbers, next_seed };
                    while Instant::now() < end {
                        worker.step();
                        progress.fetch_add(1, Ordering::Relaxed);
                    }
                    for job in worker.jobs {
                        job.wait_timeout(STUCK).expect("every job finds the right bytes, in finite time");
                    }
                })
            })
            .collect();
        let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Ordering::Release);
        for result in results {
            result.expect("no thread panics");
        }
    });
    for one in &shared {
        finish_shared(one);
    }
    println!("{} steps; {:?}", progress.load(Ordering::Relaxed), device.stats());
}

fn finish_shared(shared: &Shared) {
    let mut bytes = vec![0; SHARED_BYTES as usize];
    shared.buffer.read_at(0, &mut bytes).expect("system memory is plenty");
    pattern::check(shared.seed.load(Ordering::Acquire), 0, &bytes).expect("the last writer's bytes");
}

#[test]
fn eight_threads_that_do_everything_at_once_lose_and_leak_nothing() {
    assert_eq!(census::take(), census::Census::default());
    let gpu = SoftwareGpu::builder().rings(4).build().expect("threads for the rings");
    let builder = Device::builder(gpu).vram(Size::mib(16)).visible(Size::mib(8)).gtt(Size::mib(4));
    let device = builder.system(Size::mib(256)).build().expect("a device");
    run(&device);
    device.wait_idle();
    let stats = device.stats();
    assert_eq!((stats.live_bo_bytes, stats.allocs), (0, stats.frees));
    assert_eq!((stats.vram_used_bytes, stats.gtt_used_bytes, stats.system_used_bytes), (0, 0, 0));
    assert_eq!((stats.vram_pending_bytes, stats.system_pending_bytes, stats.vram_ghosts), (0, 0, 0));
    assert_eq!((stats.vram_pinned_bytes, stats.cpu_waits_in_validate), (0, 0));
    assert!(stats.evictions > 0 && stats.restores > 0 && stats.cpu_maps > 0, "{stats:?}");
    drop(device);
    // A callback may have held the device for a moment; then the last thread ends by itself.
    let deadline = Instant::now() + STUCK;
    while census::take() != census::Census::default() {
        assert!(Instant::now() < deadline, "left behind: {:?}", census::take());
        thread::sleep(Duration::from_millis(1));
    }
}
