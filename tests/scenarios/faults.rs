//! Engines and drivers that fail. Every byte is right, or its loss is told to everybody who asks for it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use devpagemap::migrate::{Chunk, Completion, EngineError, Fault, Reset, Space};
use devpagemap::{
    Buffer, CopyEngine, Device, Driver, Error, Fence, FenceError, MemoryLayout, MemoryMap, Moved, RegionKind,
    Result, Size, SoftwareGpu, Stats,
};

use crate::setup::*;

fn inject(device: &Lab, engine: usize, fault: Fault) {
    device.driver().copy_engine(engine).expect("two engines").inject(fault);
}

/// Has every buffer evicted and brought back, checks every byte, and says what was counted.
fn shuffle(device: &Lab) -> Stats {
    let buffers: Vec<_> = (0..6).map(|seed| filled(device, 8, seed)).collect();
    for (seed, buffer) in (0..).zip(&buffers) {
        finished(verify(device, buffer, seed));
    }
    for (seed, buffer) in (0..).zip(&buffers) {
        expect_bytes(buffer, seed);
    }
    let stats = device.stats();
    assert_eq!((stats.evictions, stats.restores, stats.cpu_waits_in_validate), (10, 6, 0));
    stats
}

fn count_of_reasons(stats: &Stats, words: &[&str]) -> u64 {
    let told = |reason: &String| words.iter().all(|word| reason.contains(word));
    stats.reasons.iter().filter(|(reason, _)| told(reason)).map(|(_, count)| count).sum()
}

#[test]
fn chunks_that_an_engine_fails_are_redone_by_the_other_and_the_reason_is_counted() {
    let device = device(16);
    inject(&device, 0, Fault::FailNext { chunks: 2 });
    let stats = shuffle(&device);
    assert_eq!(
        count_of_reasons(&stats, &["sdma0", "injected fault", "redone by sdma1"]),
        2,
        "{:?}",
        stats.reasons
    );
    assert_eq!(stats.fallback_bytes, 0);
}

#[test]
fn an_engine_that_fails_for_ever_is_quarantined_and_the_other_goes_on() {
    let device = device(16);
    inject(&device, 1, Fault::FailAfter { chunks: 5 });
    let stats = shuffle(&device);
    assert_eq!(count_of_reasons(&stats, &["sdma1", "quarantined"]), 1, "{:?}", stats.reasons);
    assert_eq!(stats.fallback_bytes, 0);
}

#[test]
fn a_chunk_that_both_engines_fail_is_copied_by_the_cpu() {
    let device = device(16);
    inject(&device, 0, Fault::FailNext { chunks: 1 });
    inject(&device, 1, Fault::FailNext { chunks: 1 });
    let stats = shuffle(&device);
    assert_eq!(count_of_reasons(&stats, &["injected fault", "redone"]), 2, "{:?}", stats.reasons);
}

#[test]
fn when_both_engines_are_dead_the_cpu_copies_everything() {
    let device = device(16);
    for engine in 0..2 {
        inject(&device, engine, Fault::FailAfter { chunks: 3 });
    }
    let stats = shuffle(&device);
    assert_eq!(count_of_reasons(&stats, &["quarantined: failed"]), 2, "{:?}", stats.reasons);
    assert!(count_of_reasons(&stats, &["every copy engine", "done by cpu"]) > 0, "{:?}", stats.reasons);
    let queued_bytes = stats.moved_bytes + stats.cleared_bytes;
    assert!(stats.fallback_bytes > queued_bytes / 2, "{} of {queued_bytes}", stats.fallback_bytes);
}

#[test]
fn an_engine_that_hangs_is_reset_and_its_chunks_are_redone() {
    let device = device(16);
    inject(&device, 0, Fault::HangAfter { chunks: 4 });
    let stats = shuffle(&device);
    assert!(count_of_reasons(&stats, &["sdma0", "hung", "redone"]) > 0, "{:?}", stats.reasons);
    assert_eq!(count_of_reasons(&stats, &["quarantined"]), 0, "a reset cures it");
}

#[test]
fn engines_that_hang_and_die_leave_the_work_to_the_cpu() {
    let device = device(16);
    for engine in 0..2 {
        inject(&device, engine, Fault::DieAfter { chunks: 4 });
    }
    let stats = shuffle(&device);
    assert_eq!(count_of_reasons(&stats, &["quarantined: hung"]), 2, "{:?}", stats.reasons);
    assert!(stats.fallback_bytes > 0);
}

#[test]
fn a_device_with_a_hanging_engine_is_taken_down_in_finite_time() {
    without_deadlock(|| {
        let device = device(16);
        for engine in 0..2 {
            inject(&device, engine, Fault::DieAfter { chunks: 1 });
        }
        let buffer = filled(&device, 8, 1);
        drop(device);
        drop(buffer);
    });
}

/// A software GPU whose engines, fallback and page tables fail when told to.
struct Burning {
    gpu: SoftwareGpu,
    /// What its engines refuse, by where it goes.
    burnt: Arc<Burnt>,
    /// Whose rebinding is refused; 0 is nobody's.
    unbindable: AtomicU64,
    /// What every rebinding ends with.
    rebound: Mutex<Option<Fence>>,
}

#[derive(Default)]
struct Burnt {
    copies_to_system: AtomicBool,
    copies_to_vram: AtomicBool,
}

impl Burnt {
    fn refuses(&self, chunk: &Chunk) -> bool {
        match (chunk.route().from, chunk.route().to) {
            (None, _) => false,
            (_, Space::System) => self.copies_to_system.load(Ordering::Acquire),
            (_, Space::Vram) => self.copies_to_vram.load(Ordering::Acquire),
        }
    }
}

struct BurningEngine {
    engine: Arc<dyn CopyEngine>,
    burnt: Arc<Burnt>,
}

impl CopyEngine for BurningEngine {
    fn name(&self) -> &str {
        self.engine.name()
    }

    fn submit(&self, chunk: Chunk, done: Completion) -> Result<(), EngineError> {
        match self.burnt.refuses(&chunk) {
            true => Err(EngineError::failed("it is burnt")),
            false => self.engine.submit(chunk, done),
        }
    }

    fn reset(&self) -> Reset {
        self.engine.reset()
    }
}

impl Driver for Burning {
    fn copy_engines(&self, memory: &devpagemap::DeviceMemory) -> Result<Vec<Arc<dyn CopyEngine>>> {
        let wrap =
            |engine| Arc::new(BurningEngine { engine, burnt: self.burnt.clone() }) as Arc<dyn CopyEngine>;
        Ok(self.gpu.copy_engines(memory)?.into_iter().map(wrap).collect())
    }

    fn map_vram(&self, layout: &MemoryLayout) -> Result<Option<Arc<dyn MemoryMap>>> {
        self.gpu.map_vram(layout)
    }

    fn fallback_engine(&self, memory: &devpagemap::DeviceMemory) -> Option<Arc<dyn CopyEngine>> {
        let engine = self.gpu.fallback_engine(memory)?;
        Some(Arc::new(BurningEngine { engine, burnt: self.burnt.clone() }))
    }

    fn rebind(&self, moved: &Moved<'_>) -> Result<Option<Fence>> {
        if moved.buffer() == self.unbindable.load(Ordering::Acquire) {
            return Err(Error::Driver {
                action: "write the page tables",
                reason: "they are read-only".into(),
            });
        }
        Ok(self.rebound.lock().expect("no test panics with it").clone())
    }
}

impl RunsJobs for Burning {
    fn gpu(&self) -> &SoftwareGpu {
        &self.gpu
    }
}

fn burning_device(vram_mib: u64) -> Device<Burning> {
    let gpu = SoftwareGpu::builder().rings(4).build().expect("threads for the rings");
    let (burnt, unbindable, rebound) = (Arc::default(), AtomicU64::new(0), Mutex::new(None));
    let driver = Burning { gpu, burnt, unbindable, rebound };
    Device::builder(driver).vram(Size::mib(vram_mib)).system(Size::mib(64)).build().expect("a small device")
}

/// That every way to a lost buffer's bytes says that they are lost, and why.
fn expect_lost(device: &Device<Burning>, buffer: &Buffer, why: &str) {
    let refusals = [
        buffer.read_at(0, &mut [0]),
        buffer.write_at(0, &[1]),
        buffer.map().map(|_| ()),
        buffer.place_now(),
        buffer.wait(),
        verify(device, buffer, 0).map(|_| ()),
        fill(device, buffer, 0).map(|_| ()),
    ];
    for refused in refusals {
        let Err(Error::FenceFailed(error)) = &refused else { panic!("the bytes are lost: {refused:?}") };
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn a_buffer_that_nobody_can_copy_is_lost_and_says_so_and_the_others_live_on() {
    let device = burning_device(4);
    let (doomed, other) = (filled(&device, 2, 1), filled(&device, 2, 2));
    device.wait_idle();
    device.driver().burnt.copies_to_system.store(true, Ordering::Release);
    let newcomer = filled(&device, 2, 3);
    device.wait_idle();
    expect_lost(&device, &doomed, "it is burnt");
    expect_bytes(&other, 2);
    expect_bytes(&newcomer, 3);

    device.driver().burnt.copies_to_system.store(false, Ordering::Release);
    let later = filled(&device, 4, 4);
    expect_bytes(&later, 4);
    expect_bytes(&other, 2);
    drop((doomed, other, newcomer, later));
    device.wait_idle();
    let stats = device.stats();
    assert_eq!((stats.vram_used_bytes, stats.system_used_bytes, stats.vram_pending_bytes), (0, 0, 0));
}

#[test]
fn a_reader_that_waits_while_the_bytes_are_lost_is_told() {
    for round in 0..50 {
        let device = burning_device(1);
        let doomed = filled(&device, 1, 1);
        device.wait_idle();
        let gate = Gate::closed();
        device.submit().writes(&doomed).run(|_, _| Ok(gate.fence().clone())).expect("it is there");
        device.driver().burnt.copies_to_system.store(true, Ordering::Release);
        let newcomer = vram_buffer(&device, 1);
        newcomer.place_now().expect("the copy is only queued");
        let theirs = doomed.clone();
        let reader = std::thread::spawn(move || theirs.read_at(0, &mut [0]));
        gate.open();
        let read = reader.join().expect("no panic");
        assert!(matches!(read, Err(Error::FenceFailed(_))), "round {round}: {read:?}");
    }
}

#[test]
fn jobs_behind_a_move_that_fails_do_not_run_and_name_its_reason() {
    let device = burning_device(4);
    let (doomed, newcomer) = (filled(&device, 4, 1), vram_buffer(&device, 4));
    device.wait_idle();
    let gate = Gate::closed();
    device.submit().writes(&doomed).run(|_, _| Ok(gate.fence().clone())).expect("it is there");
    device.driver().burnt.copies_to_system.store(true, Ordering::Release);
    newcomer.place_now().expect("the copy is only queued");
    let ran = Arc::new(AtomicBool::new(false));
    let theirs = ran.clone();
    let job = device.submit().reads(&doomed).run(|driver, job| {
        driver.gpu().run(job, move |_| {
            theirs.store(true, Ordering::Release);
            Ok(())
        })
    });
    let job = job.expect("nothing has failed yet");
    gate.open();
    let error = job.wait().expect_err("its bytes are not there");
    assert!(matches!(error.root_cause(), FenceError::EngineFailed { .. }), "{error:?}");
    assert!(error.to_string().contains("it is burnt"), "{error}");
    assert!(!ran.load(Ordering::Acquire));
    device.wait_idle();
    expect_lost(&device, &doomed, "it is burnt");
}

#[test]
fn a_restore_that_fails_loses_the_buffer_and_its_old_pages_are_given_back() {
    let device = burning_device(4);
    let (doomed, _other) = (filled(&device, 4, 1), filled(&device, 4, 2));
    device.wait_idle();
    device.driver().burnt.copies_to_vram.store(true, Ordering::Release);
    doomed.place_now().expect("the copy is only queued");
    device.wait_idle();
    expect_lost(&device, &doomed, "it is burnt");
    assert_eq!(device.stats().system_used_bytes, 4 * MIB, "the other's home");
    assert_eq!(device.stats().system_pending_bytes, 0);
}

#[test]
fn a_buffer_whose_page_tables_cannot_be_written_is_refused_from_then_on() {
    let device = burning_device(4);
    let (unlucky, other) = (vram_buffer(&device, 2), filled(&device, 2, 2));
    device.driver().unbindable.store(unlucky.id(), Ordering::Release);
    // The submission that moved it may be refused at once, or be told by its fence; it must not run as if all were well.
    if let Ok(fence) = fill(&device, &unlucky, 1) {
        let error = fence.wait().expect_err("the GPU does not see the buffer where it is");
        assert!(error.to_string().contains("read-only"), "{error}");
    }
    device.wait_idle();
    expect_lost(&device, &unlucky, "read-only");
    expect_bytes(&other, 2);
}

#[test]
fn the_next_user_waits_for_the_page_tables() {
    let device = burning_device(4);
    let gate = Gate::closed();
    *device.driver().rebound.lock().expect("no panic yet") = Some(gate.fence().clone());
    let (buffer, written) = (vram_buffer(&device, 4), gate.fence().clone());
    let job = device.submit().writes(&buffer).run(|driver, job| {
        driver.gpu().run(job, move |_| match written.is_signaled() {
            true => Ok(()),
            false => Err("the GPU does not see the buffer yet".into()),
        })
    });
    gate.open();
    finished(job);
}

#[test]
fn engines_that_are_slow_only_take_longer() {
    let device = device(16);
    for engine in 0..2 {
        inject(&device, engine, Fault::Slow { delay: Duration::from_millis(1) });
    }
    let stats = shuffle(&device);
    assert!(stats.reasons.is_empty(), "{:?}", stats.reasons);
}

#[test]
fn a_driver_without_engines_and_fallback_loses_what_it_should_copy_and_says_so() {
    struct Bare;
    impl Driver for Bare {
        fn copy_engines(&self, _memory: &devpagemap::DeviceMemory) -> Result<Vec<Arc<dyn CopyEngine>>> {
            Ok(Vec::new())
        }
        fn fallback_engine(&self, _memory: &devpagemap::DeviceMemory) -> Option<Arc<dyn CopyEngine>> {
            None
        }
    }
    let device =
        Device::builder(Bare).vram(Size::mib(4)).system(Size::mib(4)).build().expect("a bare device");
    let buffer = vram_buffer(&device, 1);
    buffer.place_now().expect("clearing it is only queued");
    device.wait_idle();
    let refused = buffer.read_at(0, &mut [0]);
    assert!(matches!(refused, Err(Error::FenceFailed(FenceError::EngineFailed { .. }))), "{refused:?}");
    assert_eq!(buffer.region(), Some(RegionKind::Vram));
}

#[test]
fn a_driver_that_the_cpu_can_serve_needs_no_engines() {
    struct CpuOnly;
    impl Driver for CpuOnly {
        fn copy_engines(&self, _memory: &devpagemap::DeviceMemory) -> Result<Vec<Arc<dyn CopyEngine>>> {
            Ok(Vec::new())
        }
        fn map_vram(&self, layout: &MemoryLayout) -> Result<Option<Arc<dyn MemoryMap>>> {
            Ok(Some(devpagemap::migrate::HeapMemory::new(layout.vram_bytes as usize, 4096)))
        }
    }
    let device = Device::builder(CpuOnly).vram(Size::mib(2)).system(Size::mib(16)).build().expect("a device");
    let buffers: Vec<_> = (0..4).map(|_| vram_buffer(&device, 1)).collect();
    let mut bytes = vec![0; MIB as usize];
    for (seed, buffer) in (0..).zip(&buffers) {
        pattern::write(seed, 0, &mut bytes);
        buffer.write_at(0, &bytes).expect("inside");
        buffer.place_now().expect("the others can go");
    }
    for (seed, buffer) in (0..).zip(&buffers) {
        expect_bytes(buffer, seed);
    }
    let stats = device.stats();
    assert_eq!(
        (stats.evictions, count_of_reasons(&stats, &["no copy engine can", "done by cpu"]) > 0),
        (2, true)
    );
}

#[test]
fn a_driver_that_refuses_to_start_builds_no_device() {
    struct Refusing;
    impl Driver for Refusing {
        fn copy_engines(&self, _memory: &devpagemap::DeviceMemory) -> Result<Vec<Arc<dyn CopyEngine>>> {
            Err(Error::Driver { action: "start its engines", reason: "there is no firmware".into() })
        }
    }
    let error = Device::builder(Refusing).vram(Size::mib(1)).build().expect_err("no engines, no device");
    assert!(error.to_string().contains("no firmware"), "{error}");
    assert!(matches!(error, Error::Driver { .. }));
}

#[test]
fn one_software_gpu_is_not_two_devices() {
    struct Shared(Arc<SoftwareGpu>);
    impl Driver for Shared {
        fn copy_engines(&self, memory: &devpagemap::DeviceMemory) -> Result<Vec<Arc<dyn CopyEngine>>> {
            self.0.copy_engines(memory)
        }
        fn map_vram(&self, layout: &MemoryLayout) -> Result<Option<Arc<dyn MemoryMap>>> {
            self.0.map_vram(layout)
        }
    }
    let gpu = Arc::new(SoftwareGpu::builder().build().expect("threads"));
    let _first = Device::builder(Shared(gpu.clone())).vram(Size::mib(1)).build().expect("a device");
    let refused = Device::builder(Shared(gpu)).vram(Size::mib(1)).build();
    assert!(matches!(refused, Err(Error::Driver { action: "map VRAM", .. })), "{refused:?}");
}
