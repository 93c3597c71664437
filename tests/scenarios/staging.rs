//! A GPU behind a DMA mask: its engines see VRAM and a part of system memory, and the rest goes through the ring.

use std::ops::Range;
use std::sync::Arc;

use devpagemap::migrate::{
    Chunk, Completion, EngineError, Fault, Piece, Reset, Route, SoftwareEngine, Space, SysAddr,
};
use devpagemap::{
    Addr, Buffer, CopyEngine, Device, DeviceMemory, Driver, MemoryLayout, MemoryMap, Result, Size,
    SoftwareGpu,
};

use crate::setup::*;

const MASK_BYTES: u64 = 16 * MIB;

/// A software GPU whose engines see the first bytes of system memory only, and a DMA engine of the host.
struct Masked {
    gpu: SoftwareGpu,
    /// Whether the engines say what they see, or find out when they are told to go elsewhere.
    declares: bool,
    has_host: bool,
    has_fallback: bool,
}

impl Masked {
    fn new() -> Masked {
        let gpu = SoftwareGpu::builder().rings(4).build().expect("threads for the rings");
        Masked { gpu, declares: true, has_host: true, has_fallback: false }
    }

    fn device(self, vram_mib: u64) -> Device<Masked> {
        let builder = Device::builder(self).vram(Size::mib(vram_mib)).system(Size::mib(256));
        builder.gtt(Size::mib(128)).build().expect("a small device")
    }
}

struct BehindMask {
    engine: Arc<dyn CopyEngine>,
    declares: bool,
}

impl CopyEngine for BehindMask {
    fn name(&self) -> &str {
        self.engine.name()
    }

    fn window(&self, space: Space) -> Range<u64> {
        if self.declares && space == Space::System { 0..MASK_BYTES } else { 0..u64::MAX }
    }

    fn submit(&self, chunk: Chunk, done: Completion) -> std::result::Result<(), EngineError> {
        let unseen = |piece: &Piece| {
            let far =
                |addr: &Addr| matches!(addr, Addr::System(SysAddr(at)) if at + piece.len_bytes > MASK_BYTES);
            let addr = piece.src.into_iter().chain([piece.dst]).find(far)?;
            Some(EngineError::Unreachable { addr, len_bytes: piece.len_bytes })
        };
        match chunk.pieces().iter().find_map(unseen) {
            Some(error) => Err(error),
            None => self.engine.submit(chunk, done),
        }
    }

    fn reset(&self) -> Reset {
        self.engine.reset()
    }
}

impl Driver for Masked {
    fn copy_engines(&self, memory: &DeviceMemory) -> Result<Vec<Arc<dyn CopyEngine>>> {
        let behind = |engine| Arc::new(BehindMask { engine, declares: self.declares }) as Arc<dyn CopyEngine>;
        let mut engines: Vec<_> = self.gpu.copy_engines(memory)?.into_iter().map(behind).collect();
        if self.has_host {
            let between = Route { from: Some(Space::System), to: Space::System };
            engines.push(SoftwareEngine::reaching("host", Arc::new(memory.clone()), [between]));
        }
        Ok(engines)
    }

    fn map_vram(&self, layout: &MemoryLayout) -> Result<Option<Arc<dyn MemoryMap>>> {
        self.gpu.map_vram(layout)
    }

    fn fallback_engine(&self, memory: &DeviceMemory) -> Option<Arc<dyn CopyEngine>> {
        if self.has_fallback { self.gpu.fallback_engine(memory) } else { None }
    }
}

impl RunsJobs for Masked {
    fn gpu(&self) -> &SoftwareGpu {
        &self.gpu
    }
}

/// Six buffers of 8 MiB take turns in 16 MiB of VRAM; the rest waits in system memory, most of it beyond the mask.
fn take_turns(device: &Device<Masked>) -> Vec<Buffer> {
    let buffers: Vec<_> = (0..6).map(|seed| filled(device, 8, seed)).collect();
    for (seed, buffer) in (0..).zip(&buffers) {
        finished(verify(device, buffer, seed));
    }
    for (seed, buffer) in (0..).zip(&buffers) {
        expect_bytes(buffer, seed);
    }
    buffers
}

#[test]
fn buffers_that_wait_beyond_the_mask_lose_no_byte() {
    let device = Masked::new().device(16);
    let buffers = take_turns(&device);
    let stats = device.stats();
    assert!(stats.ring_copied_bytes > 20 * MIB, "{} bytes went through the ring", stats.ring_copied_bytes);
    assert!(stats.staging_ring_bytes > 0 && stats.staging_ring_bytes <= MASK_BYTES);
    assert_eq!((stats.fallback_bytes, stats.cpu_waits_in_validate), (0, 0));
    let staged = |reason: &String| reason.ends_with("staged through the ring");
    assert!(stats.reasons.keys().any(staged), "{:?}", stats.reasons);
    drop(buffers);
    device.wait_idle();
    let stats = device.stats();
    assert_eq!((stats.vram_used_bytes, stats.system_used_bytes, stats.system_pending_bytes), (0, 0, 0));
}

/// The ring may then lie where they do not see it either.
#[test]
fn engines_that_do_not_say_what_they_see_are_found_out_and_lose_no_byte() {
    let device = Masked { declares: false, has_fallback: true, ..Masked::new() }.device(16);
    take_turns(&device);
    let stats = device.stats();
    assert!(stats.fallback_bytes > 0);
    let found = |reason: &String| reason.contains("cannot reach an address in system");
    assert!(stats.reasons.keys().any(found), "{:?}", stats.reasons);
    assert!(!stats.reasons.keys().any(|reason| reason.contains("quarantined")), "{:?}", stats.reasons);
}

#[test]
fn without_an_engine_of_the_host_the_processor_does_what_is_beyond_the_mask() {
    let device = Masked { has_host: false, has_fallback: true, ..Masked::new() }.device(16);
    take_turns(&device);
    let stats = device.stats();
    assert!(stats.fallback_bytes > 20 * MIB, "{} bytes", stats.fallback_bytes);
    assert_eq!(stats.ring_copied_bytes, 0, "it sees both ends itself");
}

#[test]
fn when_the_engines_of_the_gpu_die_the_processor_does_what_went_through_the_ring() {
    let device = Masked { has_fallback: true, ..Masked::new() }.device(16);
    for engine in 0..2 {
        let engine = device.driver().gpu.copy_engine(engine).expect("two engines");
        engine.inject(Fault::FailAfter { chunks: 30 });
    }
    take_turns(&device);
    let stats = device.stats();
    assert!(stats.fallback_bytes > 0 && stats.ring_copied_bytes > 0);
    let lost = |reason: &String| reason.contains("quarantined");
    assert!(stats.reasons.keys().any(lost), "{:?}", stats.reasons);
}

#[test]
fn a_device_whose_engines_reach_everything_has_no_ring() {
    let device = device(16);
    for seed in 0..6 {
        filled(&device, 8, seed);
    }
    device.wait_idle();
    assert_eq!((device.stats().staging_ring_bytes, device.stats().ring_copied_bytes), (0, 0));
}

#[test]
fn a_device_is_taken_down_while_its_ring_is_full() {
    without_deadlock(|| {
        let device = Masked::new().device(16);
        let buffers: Vec<_> = (0..6).map(|seed| filled(&device, 8, seed)).collect();
        drop(device);
        drop(buffers);
    });
}
