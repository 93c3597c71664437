//! The replay: one thread submits the trace's steps in order, the device does the rest.
//!
//! Buffers are created when the trace creates them. Uploaded ones get their bytes at once, through the CPU; the others
//! stay zero until a batch writes them. A batch names its buffers, the manager finds them places, and a job on the
//! software GPU checks what the batch reads, checks and rewrites what it writes. The job is queued behind the batch
//! before it on the same context and engine and behind what the trace says; the manager adds what its moves need.
//! Nothing here waits for a batch unless the trace does, so copies, batches and submission overlap as they would on
//! a card.
//!
//! A batch that cannot be placed fails alone: it is recorded with the manager's reason, it wrote nothing, and the
//! next goes on.

use super::contents::{Checker, Coming, Contents};
use super::cpu_check::{CHUNK_BYTES, CpuCheck};
use super::gpu::Gpu;
use super::job::{Plan, Times, Work};
use super::outcome::{Config, Data, FailedBatch, Outcome, Placement, Problem, Slice, Verify};
use super::samples::{Sample, Samples};
use crate::error::{Error, Result};
use crate::options::Policy;
use crate::trace::{Access, After, Batch, Bo, BoId, FirstBytes, Heap, Step, Trace};
use devpagemap::{Buffer, CpuMap, Device, Fence, Place, RegionKind, Size, SoftwareGpu, Stats, Timeline};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Batches that may be queued before the submitting thread waits for the oldest.
const MAX_QUEUED: usize = 1024;
/// Failures outside of batches that are kept in full; all are counted.
const MAX_PROBLEMS: usize = 64;

/// Where a replay stands, for those who watch it.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Steps done.
    pub step: u64,
    /// Batches submitted.
    pub batch: u32,
}

/// A device, ready to replay one trace.
#[derive(Debug)]
pub struct Replay {
    config: Config,
    device: Device<SoftwareGpu>,
    stop: Arc<AtomicBool>,
}

impl Replay {
    /// Builds the device, with video memory of its own.
    ///
    /// # Errors
    /// [`Error::Device`] when its sizes cannot be had.
    pub fn new(config: Config) -> Result<Replay> {
        Replay::on(Gpu::SOFTWARE, config)
    }

    /// Builds the device around `gpu`.
    ///
    /// # Errors
    /// As [`new`](Replay::new).
    pub fn on(gpu: Gpu, config: Config) -> Result<Replay> {
        let gpu = gpu.build().map_err(|source| Error::Device { source })?;
        let device = Device::builder(gpu)
            .vram(Size::bytes(config.vram_bytes))
            .visible(Size::bytes(config.bar_bytes.min(config.vram_bytes)))
            .gtt(Size::bytes(config.gtt_bytes))
            .policy(config.policy.eviction_policy())
            .cpu_access(config.policy.cpu_access())
            .build()
            .map_err(|source| Error::Device { source })?;
        Ok(Replay { config, device, stop: Arc::new(AtomicBool::new(false)) })
    }

    /// The device: to look at, or to break.
    pub fn device(&self) -> &Device<SoftwareGpu> {
        &self.device
    }

    /// Setting it to true makes the replay submit nothing more; it still ends in order.
    pub fn stop_flag(&self) -> Arc<AtomicBool> {
        self.stop.clone()
    }

    /// Replays. `watch` is called before every step.
    pub fn run(self, trace: &Trace, mut watch: impl FnMut(&Replay, Moment)) -> Outcome {
        let mut run = Run::new(&self);
        for (index, step) in trace.steps.iter().enumerate() {
            watch(&self, Moment { step: index as u64, batch: run.batches.len() as u32 });
            run.step(step);
        }
        run.end(trace)
    }
}

/// A buffer of the trace, from its creation to its end.
struct Live {
    name: Arc<str>,
    size_bytes: u64,
    placed_at_creation: bool,
    prefers_system: bool,
    write_combined: bool,
    contents: Contents,
    /// Or why the device would not have it.
    buffer: std::result::Result<Buffer, String>,
    maps: Vec<CpuMap>,
}

/// A batch that was submitted, or why not.
struct Submitted {
    line: u64,
    context: u32,
    engine: String,
    buffers: usize,
    bytes: u64,
    submitted_ns: u64,
    times: Arc<Times>,
    fence: std::result::Result<Fence, String>,
}

/// The state of a replay while it runs. All of it belongs to the submitting thread.
struct Run<'a> {
    replay: &'a Replay,
    begin: Instant,
    live: HashMap<BoId, Live>,
    batches: Vec<Submitted>,
    queued: VecDeque<Fence>,
    last_of_engine: HashMap<(u32, String), Fence>,
    /// Fences that the trace's client signals itself, with their timelines.
    holds: Vec<(Timeline, Fence)>,
    /// How many of them are not signalled yet.
    holds_outstanding: usize,
    checker: Arc<Checker>,
    samples: Samples,
    problems: Vec<Problem>,
    problem_count: u64,
    reasons: BTreeMap<String, u64>,
    scratch: Vec<u8>,
    every_buffer_was_created: bool,
}

impl<'a> Run<'a> {
    fn new(replay: &'a Replay) -> Run<'a> {
        Run {
            replay,
            begin: Instant::now(),
            live: HashMap::new(),
            batches: Vec::new(),
            queued: VecDeque::new(),
            last_of_engine: HashMap::new(),
            holds: Vec::new(),
            holds_outstanding: 0,
            checker: Arc::new(Checker::default()),
            samples: Samples::default(),
            problems: Vec::new(),
            problem_count: 0,
            reasons: BTreeMap::new(),
            scratch: vec![0; CHUNK_BYTES as usize],
            every_buffer_was_created: true,
        }
    }

    fn now_ns(&self) -> u64 {
        self.begin.elapsed().as_nanos() as u64
    }

    fn is_stopped(&self) -> bool {
        self.replay.stop.load(Ordering::Relaxed)
    }

    fn is_full(&self) -> bool {
        self.replay.config.data == Data::Full
    }

    fn step(&mut self, step: &Step) {
        let goes_on_after_stop = matches!(step, Step::Destroy { .. } | Step::Release { .. } | Step::Batch(_));
        if self.is_stopped() && !goes_on_after_stop {
            return;
        }
        match step {
            Step::Create(bo) => self.create(bo),
            Step::Destroy { bo, line } => self.destroy(*bo, *line),
            Step::Batch(batch) => self.batch(batch),
            Step::CpuMap { bo, line } => self.cpu_map(*bo, *line),
            Step::CpuUnmap { bo, .. } => {
                if let Some(live) = self.live.get_mut(bo) {
                    drop(live.maps.pop());
                }
            }
            Step::Wait { batch } => self.wait(*batch),
            Step::Hold { .. } => {
                let timeline = Timeline::new("the trace's client");
                let fence = timeline.next_point();
                self.holds.push((timeline, fence));
                self.holds_outstanding += 1;
            }
            Step::Release { hold } => self.release(*hold),
            Step::Delay { .. }
            | Step::Period { .. }
            | Step::At { .. }
            | Step::Terminate { .. }
            | Step::Other => {}
        }
    }

    fn problem(&mut self, line: u64, kind: &str, what: String) {
        self.problem_count += 1;
        *self.reasons.entry(kind.to_string()).or_default() += 1;
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem { line, what });
        }
    }

    fn sample(&mut self) {
        let (device, at_ns) = (&self.replay.device, self.now_ns());
        let batches = self.batches.len() as u64;
        self.samples.moment(|| Sample::of(&device.stats(), at_ns, batches));
    }

    fn create(&mut self, bo: &Bo) {
        let places = places(bo, self.replay.config.placement);
        let builder = self.replay.device.buffer(Size::bytes(bo.size_bytes)).name(bo.name.clone());
        let builder = places.into_iter().fold(builder, |builder, place| builder.or(place));
        // Where everything is moved to where the CPU sees it, nothing may ask for cached memory.
        let write_combined = bo.heaps.first() == Some(&Heap::VramVisible)
            || self.replay.config.policy == Policy::MigrateOnAccess;
        let buffer = if write_combined { builder.write_combined() } else { builder }.create();
        let mut live = Live {
            name: bo.name.as_str().into(),
            size_bytes: bo.size_bytes,
            placed_at_creation: bo.placed_at_creation,
            prefers_system: bo.heaps.first() == Some(&Heap::System),
            write_combined,
            contents: Contents::zeros(self.replay.config.seed, bo.id.0, bo.size_bytes),
            buffer: buffer.map_err(|error| error.to_string()),
            maps: Vec::new(),
        };
        if let Err(error) = self.give_first_bytes(bo, &mut live) {
            self.problem(bo.line, "a buffer was refused", format!("{}: {error}", bo.name));
        }
        self.every_buffer_was_created &= live.buffer.is_ok();
        self.live.insert(bo.id, live);
        if bo.placed_at_creation {
            self.sample();
        }
    }

    fn give_first_bytes(&mut self, bo: &Bo, live: &mut Live) -> std::result::Result<(), String> {
        let buffer = match &live.buffer {
            Ok(buffer) => buffer,
            Err(error) => return Err(error.clone()),
        };
        if bo.placed_at_creation {
            buffer
                .place_now()
                .map_err(|error| format!("it could not be placed when it was created: {error}"))?;
        }
        match bo.first_bytes {
            FirstBytes::Submitted => Ok(()),
            FirstBytes::Uploaded if self.is_full() => self.upload(live),
            // One byte takes the same memory as all of them.
            FirstBytes::Uploaded => {
                buffer.write_at(0, &[0]).map_err(|error| format!("its upload failed: {error}"))
            }
        }
    }

    fn upload(&mut self, live: &mut Live) -> std::result::Result<(), String> {
        let Ok(buffer) = &live.buffer else { return Ok(()) };
        let coming = live.contents.coming();
        let mut at = 0;
        while at < live.size_bytes {
            let len = CHUNK_BYTES.min(live.size_bytes - at);
            let chunk = &mut self.scratch[..len as usize];
            coming.pattern().fill(at, chunk);
            buffer.write_at(at, chunk).map_err(|error| format!("its upload failed at byte {at}: {error}"))?;
            at += len;
        }
        live.contents.written(coming);
        Ok(())
    }

    fn batch(&mut self, batch: &Batch) {
        let submitted_ns = self.now_ns();
        let times = Arc::new(Times::default());
        let fence = if self.is_stopped() { Err("interrupted".into()) } else { self.submit(batch, &times) };
        if let Ok(fence) = &fence {
            self.last_of_engine.insert((batch.context, batch.engine.clone()), fence.clone());
            self.queued.push_back(fence.clone());
        }
        let bytes =
            batch.uses.iter().filter_map(|one| self.live.get(&one.bo)).map(|live| live.size_bytes).sum();
        self.batches.push(Submitted {
            line: batch.line,
            context: batch.context,
            engine: batch.engine.clone(),
            buffers: batch.uses.len(),
            bytes,
            submitted_ns,
            times,
            fence,
        });
        self.sample();
        self.throttle();
    }

    /// Keeps the queues finite. While the client holds a fence back, waiting could last for ever.
    fn throttle(&mut self) {
        if self.queued.len() > MAX_QUEUED && self.holds_outstanding == 0 {
            let oldest = self.queued.pop_front();
            // Whether it failed is looked at when all is done.
            let _looked_at_later = oldest.map(|fence| fence.wait());
        }
    }

    fn submit(&mut self, batch: &Batch, times: &Arc<Times>) -> std::result::Result<Fence, String> {
        let mut submission = self.replay.device.submit();
        let mut buffers = Vec::with_capacity(batch.uses.len());
        for one in &batch.uses {
            let live = self.live.get(&one.bo).ok_or_else(|| format!("buffer {} does not exist", one.bo.0))?;
            let buffer = live
                .buffer
                .as_ref()
                .map_err(|error| format!("its buffer {} was refused: {error}", live.name))?;
            submission = match one.access {
                Access::Read => submission.reads(buffer),
                Access::Write => submission.writes(buffer),
            };
            buffers.push((buffer.clone(), live.name.clone()));
        }
        for fence in self.dependencies(batch) {
            submission = submission.after(&fence);
        }
        let (plans, coming) = self.plans(batch, buffers);
        let (checker, times, begin, index) = (self.checker.clone(), times.clone(), self.begin, batch.index);
        let fence = submission.run(move |gpu, job| {
            let parts = plans.into_iter().map(|plan| plan.part(job)).collect();
            let work = Work { parts, batch: Some(index), checker, times, begin };
            gpu.run(job, move |memory| {
                work.run(memory);
                Ok(())
            })
        });
        let fence = fence.map_err(|error| error.to_string())?;
        for (bo, coming) in coming {
            if let Some(live) = self.live.get_mut(&bo) {
                live.contents.written_by(coming, &fence);
            }
        }
        Ok(fence)
    }

    fn dependencies(&self, batch: &Batch) -> Vec<Fence> {
        let of_after = |after: &After| match *after {
            After::Batch(index) => self.batches[index as usize].fence.as_ref().ok().cloned(),
            After::Hold(hold) => self.holds.get(hold as usize).map(|(_, fence)| fence.clone()),
        };
        let before = self.last_of_engine.get(&(batch.context, batch.engine.clone())).cloned();
        before.into_iter().chain(batch.after.iter().filter_map(of_after)).collect()
    }

    /// What the batch will do with each buffer, and the versions that it will write.
    fn plans(&mut self, batch: &Batch, buffers: Vec<(Buffer, Arc<str>)>) -> (Vec<Plan>, Vec<(BoId, Coming)>) {
        let (mut plans, mut coming) = (Vec::new(), Vec::new());
        if !self.is_full() {
            return (plans, coming);
        }
        for (one, (buffer, name)) in batch.uses.iter().zip(buffers) {
            let Some(live) = self.live.get_mut(&one.bo) else { continue };
            let expected = live.contents.expected();
            let new = (one.access == Access::Write).then(|| live.contents.coming());
            plans.push(Plan { buffer, name, expected, new: new.as_ref().map(Coming::pattern) });
            coming.extend(new.map(|new| (one.bo, new)));
        }
        (plans, coming)
    }

    fn wait(&mut self, batch: u32) {
        if self.holds_outstanding > 0 {
            return;
        }
        if let Some(Submitted { fence: Ok(fence), .. }) = self.batches.get(batch as usize) {
            // Whether it failed is looked at when all is done.
            let _looked_at_later = fence.wait();
        }
    }

    fn release(&mut self, hold: u32) {
        let Some((timeline, fence)) = self.holds.get(hold as usize) else { return };
        if !fence.is_signaled() {
            timeline.signal(fence.seqno());
            self.holds_outstanding -= 1;
        }
    }

    fn cpu_map(&mut self, bo: BoId, line: u64) {
        let Some(live) = self.live.get_mut(&bo) else { return };
        let Ok(buffer) = &live.buffer else { return };
        let result = match buffer.map() {
            Ok(map) => {
                let checked = match self.replay.config.data {
                    Data::Full => {
                        let expected = live.contents.settled(buffer);
                        let mut check =
                            CpuCheck { scratch: &mut self.scratch, checker: &self.checker, name: &live.name };
                        check.run(live.size_bytes, &expected, |at, bytes| map.read(at, bytes))
                    }
                    Data::None => Ok(()),
                };
                if let Some(reason) = kept_in_system_memory(&map, live.prefers_system, live.write_combined) {
                    *self.reasons.entry(reason.to_string()).or_default() += 1;
                }
                live.maps.push(map);
                checked
            }
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            let what = format!("{}: the CPU could not map it: {error}", live.name);
            self.problem(line, "a CPU map was refused", what);
        }
        self.sample();
    }

    fn destroy(&mut self, bo: BoId, line: u64) {
        let Some(live) = self.live.remove(&bo) else { return };
        let Live { name, size_bytes, placed_at_creation, contents, buffer, maps, .. } = live;
        drop(maps);
        let Ok(buffer) = buffer else { return };
        if self.is_full()
            && !self.is_stopped()
            && let Err(error) = self.check_at_free(&buffer, &name, size_bytes, &contents)
        {
            self.problem(line, "a freed buffer could not be checked", format!("{name}: {error}"));
        }
        drop(buffer);
        if placed_at_creation {
            self.sample();
        }
    }

    /// In VRAM a job checks the bytes where they are; elsewhere the CPU does.
    fn check_at_free(
        &mut self,
        buffer: &Buffer,
        name: &Arc<str>,
        size_bytes: u64,
        contents: &Contents,
    ) -> devpagemap::Result<()> {
        if buffer.region() != Some(RegionKind::Vram) {
            let expected = contents.settled(buffer);
            let mut check = CpuCheck { scratch: &mut self.scratch, checker: &self.checker, name };
            return check.run(size_bytes, &expected, |at, bytes| buffer.read_at(at, bytes));
        }
        let expected = contents.expected();
        let (checker, begin) = (self.checker.clone(), self.begin);
        let plan = Plan { buffer: buffer.clone(), name: name.clone(), expected, new: None };
        let fence = self.replay.device.submit().reads(buffer).run(move |gpu, job| {
            let times = Arc::new(Times::default());
            let work = Work { parts: vec![plan.part(job)], batch: None, checker, times, begin };
            gpu.run(job, move |memory| {
                work.run(memory);
                Ok(())
            })
        })?;
        self.queued.push_back(fence);
        self.throttle();
        Ok(())
    }

    fn end(mut self, trace: &Trace) -> Outcome {
        for hold in 0..self.holds.len() {
            self.release(hold as u32);
        }
        self.replay.device.wait_idle();
        let stats = self.replay.device.stats();
        let at_ns = self.now_ns();
        self.samples.last(Sample::of(&stats, at_ns, self.batches.len() as u64));
        self.compare_totals(trace, &stats);
        let (slices, batches_failed) = self.judge();
        let mut reasons = stats.reasons.clone();
        reasons.extend(std::mem::take(&mut self.reasons));
        reasons.extend(trace.strays.clone());
        Outcome {
            config: self.replay.config.clone(),
            batches_done: trace.batches - batches_failed.len() as u32,
            batches_failed,
            problems: self.problems,
            problem_count: self.problem_count,
            vram_in_use_at_end_bytes: stats.vram_used_bytes + stats.vram_pending_bytes,
            stats,
            reasons,
            wall_ns: at_ns,
            verify: Verify {
                bytes_checked: self.checker.bytes_checked(),
                mismatches: self.checker.mismatches(),
                first: self.checker.kept(),
            },
            samples: self.samples,
            slices,
            interrupted: self.replay.stop.load(Ordering::Relaxed),
        }
    }

    /// Sorts the batches into those that ran and those that did not.
    fn judge(&mut self) -> (Vec<Slice>, Vec<FailedBatch>) {
        let (mut slices, mut failed) = (Vec::new(), Vec::new());
        for (index, batch) in std::mem::take(&mut self.batches).into_iter().enumerate() {
            let index = index as u32;
            let status = match &batch.fence {
                Ok(fence) => fence.status().unwrap_or(Ok(())).map_err(|error| error.to_string()),
                Err(error) => Err(error.clone()),
            };
            if let Err(error) = status {
                failed.push(FailedBatch { index, line: batch.line, error });
                continue;
            }
            slices.push(Slice {
                index,
                line: batch.line,
                context: batch.context,
                engine: batch.engine,
                buffers: batch.buffers,
                bytes: batch.bytes,
                submitted_ns: batch.submitted_ns,
                start_ns: batch.times.start_ns.load(Ordering::Relaxed),
                end_ns: batch.times.end_ns.load(Ordering::Relaxed),
            });
        }
        (slices, failed)
    }

    /// The manager's running peak must be the trace's, and the trace's must be the one that the recording counted.
    fn compare_totals(&mut self, trace: &Trace, stats: &Stats) {
        let counted = trace.peak_live_bytes;
        if let Some(recorded) = trace.recorded_totals.filter(|recorded| recorded.peak_live_bytes != counted) {
            let recorded = recorded.peak_live_bytes;
            let what =
                format!("the recording counted a peak of {recorded} live bytes, its events make {counted}");
            self.problem(0, "running totals disagree with the recording", what);
        }
        let managed = stats.live_bo_peak_bytes;
        if self.every_buffer_was_created && !self.is_stopped() && managed != counted {
            let what = format!("the manager counted a peak of {managed} live bytes, the trace has {counted}");
            self.problem(0, "running totals disagree with the manager", what);
        }
    }
}

/// Why a mapped buffer is not in visible VRAM, when it is no fallback; those the manager counts.
fn kept_in_system_memory(map: &CpuMap, prefers_system: bool, write_combined: bool) -> Option<&'static str> {
    let region = map.buffer().region();
    if region == Some(RegionKind::Vram) || map.fell_back().is_some() {
        return None;
    }
    Some(match region {
        _ if prefers_system => "cpu map: kept in system memory, its first preferred heap",
        _ if !write_combined => {
            "cpu map: in system memory, which is cached, as its first heap is not visible VRAM"
        }
        Some(RegionKind::Gtt) => {
            "cpu map: in system memory, a later preferred heap; the visible part of VRAM could not hold it"
        }
        _ => "cpu map: left in system memory, where it had been evicted to",
    })
}

/// Where the buffer may live: as its recording says, else as the command line does.
fn places(bo: &Bo, placement: Placement) -> Vec<Place> {
    let of_heap = |heap: &Heap| match heap {
        Heap::Vram => Place::VRAM,
        Heap::VramVisible => Place::VRAM.visible(),
        Heap::System => Place::GTT,
    };
    let mut places: Vec<Place> =
        if bo.heaps.is_empty() { vec![Place::VRAM] } else { bo.heaps.iter().map(of_heap).collect() };
    if placement == Placement::VramOrGtt && !places.contains(&Place::GTT) {
        places.push(Place::GTT);
    }
    places
}
