//! A software GPU that can be pulled out, burnt and wiped.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use devpagemap::migrate::{Chunk, Completion, EngineError, Reset, Space};
use devpagemap::{
    Bar, BarAddr, BarMemory, CopyEngine, Device, DeviceBuilder, DeviceMemory, Driver, Error, Extent, Fence,
    MemoryLayout, MemoryMap, Result, Size, SoftwareGpu, VramContents, WindowChange,
};

use super::RunsJobs;

pub struct Rig {
    gpu: SoftwareGpu,
    /// Whether copies to system memory fail.
    pub burnt: Arc<AtomicBool>,
    /// Whether windows that show something cannot be programmed.
    pub stiff: AtomicBool,
    /// Which bytes of VRAM can be read though it was pulled out.
    pub readable: Mutex<Range<u64>>,
    /// What the next reset says.
    pub after_reset: Mutex<Result<VramContents>>,
    /// Whether it stays away.
    pub stays_away: AtomicBool,
}

/// An engine that refuses to copy to system memory.
struct Burning {
    engine: Arc<dyn CopyEngine>,
    burnt: Arc<AtomicBool>,
}

impl CopyEngine for Burning {
    fn name(&self) -> &str {
        self.engine.name()
    }

    fn submit(&self, chunk: Chunk, done: Completion) -> Result<(), EngineError> {
        let to_system = chunk.route().from.is_some() && chunk.route().to == Space::System;
        match to_system && self.burnt.load(Ordering::Acquire) {
            true => Err(EngineError::failed("it is burnt")),
            false => self.engine.submit(chunk, done),
        }
    }

    fn reset(&self) -> Reset {
        self.engine.reset()
    }
}

impl Driver for Rig {
    fn copy_engines(&self, memory: &DeviceMemory) -> Result<Vec<Arc<dyn CopyEngine>>> {
        let wrap = |engine| Arc::new(Burning { engine, burnt: self.burnt.clone() }) as Arc<dyn CopyEngine>;
        Ok(self.gpu.copy_engines(memory)?.into_iter().map(wrap).collect())
    }

    fn map_vram(&self, layout: &MemoryLayout) -> Result<Option<Arc<dyn MemoryMap>>> {
        self.gpu.map_vram(layout)
    }

    fn fallback_engine(&self, memory: &DeviceMemory) -> Option<Arc<dyn CopyEngine>> {
        let engine = self.gpu.fallback_engine(memory)?;
        Some(Arc::new(Burning { engine, burnt: self.burnt.clone() }))
    }

    fn program_windows(&self, change: &WindowChange<'_>) -> Result<Option<Fence>> {
        let shows = change.entries().iter().any(|entry| entry.shows.is_some());
        match shows && self.stiff.load(Ordering::Acquire) {
            true => Err(Error::Driver { action: "program a window", reason: "the table is stiff".into() }),
            false => self.gpu.program_windows(change),
        }
    }

    fn bar_memory(&self, addr: BarAddr, len_bytes: u64) -> Option<BarMemory<'_>> {
        self.gpu.bar_memory(addr, len_bytes)
    }

    fn is_engine_thread(&self) -> bool {
        self.gpu.is_engine_thread()
    }

    fn is_readable(&self, extent: &Extent) -> bool {
        let readable = self.readable.lock().unwrap_or_else(PoisonError::into_inner);
        let start = extent.addr.offset();
        readable.start <= start && start + extent.len_bytes <= readable.end
    }

    fn reset(&self) -> Result<VramContents> {
        self.after_reset.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn rearm(&self) -> Result<()> {
        match self.stays_away.load(Ordering::Acquire) {
            true => {
                Err(Error::Driver { action: "find the device again", reason: "the slot is empty".into() })
            }
            false => Ok(()),
        }
    }
}

impl RunsJobs for Rig {
    fn gpu(&self) -> &SoftwareGpu {
        &self.gpu
    }
}

impl Rig {
    pub fn builder(vram_mib: u64, bar: Bar) -> DeviceBuilder<Rig> {
        let gpu = SoftwareGpu::builder().rings(4).build().expect("threads for the rings");
        let rig = Rig {
            gpu,
            burnt: Arc::default(),
            stiff: AtomicBool::new(false),
            readable: Mutex::new(0..0),
            after_reset: Mutex::new(Ok(VramContents::Kept)),
            stays_away: AtomicBool::new(false),
        };
        Device::builder(rig).vram(Size::mib(vram_mib)).bar(bar).system(Size::mib(64)).gtt(Size::mib(32))
    }

    pub fn device(vram_mib: u64) -> Device<Rig> {
        Rig::builder(vram_mib, Bar::Prefix(Size::mib(vram_mib))).build().expect("a small device")
    }
}
