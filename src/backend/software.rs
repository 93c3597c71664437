//! The software GPU: the embedded default. VRAM is a memfd, or memory that it is given (`vram.rs`); engines are threads, jobs touch
//! real bytes.
//!
//! ```text
//!   ring gfx0 ─┐                       ┌─ sdma0
//!   ring gfx1 ─┴─► VRAM         ◄──────┴─ sdma1 ─► system memory
//!                  └ the BAR: a prefix of it, or windows (`bar.rs`)
//! ```

use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use devpagemap_fence::Fence;
use devpagemap_migrate::{Addr, CopyEngine, CpuEngine, MemoryMap, SoftwareEngine, SysAddr, VramAddr};

use super::DeviceMemory;
use super::bar::SoftwareBar;
use super::jobs::{JobMemory, Ring};
use super::vram::{SoftwareVram, VramMemory};
use crate::aperture::{BarAddr, BarMemory, WindowChange};
use crate::cpu::Caching;
use crate::driver::{Driver, MemoryLayout};
use crate::error::{Error, Result};
use crate::size::Size;
use crate::submit::Job;
use crate::unplug::VramContents;

/// A GPU that exists in this process only. Give it to [`Device::builder`](crate::Device::builder), once.
pub struct SoftwareGpu {
    /// Constant.
    copy_engine_count: usize,
    /// What it says of its VRAM. Constant.
    vram_caching: Caching,
    /// Where its VRAM is; `None` for a memfd of its own. Constant.
    given: Option<VramMemory>,
    /// What engines and jobs see. Set when the device is built, then constant.
    memory: OnceLock<Arc<DeviceMemory>>,
    /// Set when the device is built, then constant.
    vram: OnceLock<Arc<SoftwareVram>>,
    /// Set when the device is built, then constant; its table has a lock of its own.
    bar: OnceLock<SoftwareBar>,
    /// Set when the device is built, then constant.
    engines: OnceLock<Vec<Arc<SoftwareEngine>>>,
    /// Constant.
    rings: Vec<Ring>,
}

/// How many engines and rings a [`SoftwareGpu`] has, and where its VRAM is.
#[derive(Debug)]
pub struct SoftwareGpuBuilder {
    copy_engines: usize,
    rings: usize,
    vram_caching: Caching,
    given: Option<VramMemory>,
}

impl SoftwareGpuBuilder {
    /// How many threads copy; at least one. Two by default.
    pub fn copy_engines(self, count: usize) -> SoftwareGpuBuilder {
        SoftwareGpuBuilder { copy_engines: count.max(1), ..self }
    }

    /// How many threads run jobs; at least one. Two by default.
    pub fn rings(self, count: usize) -> SoftwareGpuBuilder {
        SoftwareGpuBuilder { rings: count.max(1), ..self }
    }

    /// How it says the CPU's mappings of its VRAM are cached: write-combined, as over PCIe, unless told otherwise. Only decisions
    /// follow from it; this process sees the same memory at the same speed.
    pub fn vram_caching(self, caching: Caching) -> SoftwareGpuBuilder {
        SoftwareGpuBuilder { vram_caching: caching, ..self }
    }

    /// Has its VRAM in memory that there is already: a [`PciBar`](crate::PciBar), [peer memory](crate::P2pMemory::allocate). The
    /// device has all of it, unless it is told to have less; engines and jobs work on it as it is, and it says of its caching what is so.
    pub fn vram_in(self, memory: impl Into<VramMemory>) -> SoftwareGpuBuilder {
        let memory = memory.into();
        SoftwareGpuBuilder { vram_caching: memory.caching(), given: Some(memory), ..self }
    }

    /// Starts the rings.
    ///
    /// # Errors
    /// [`Error::Io`] when the system gives no thread, [`Error::Unsupported`] for VRAM that this processor's ordinary accesses may not
    /// touch.
    pub fn build(self) -> Result<SoftwareGpu> {
        self.given.as_ref().map_or(Ok(()), VramMemory::check)?;
        let start = |index| {
            Ring::start(format!("gfx{index}")).map_err(|error| Error::Io {
                action: "start a ring's thread",
                bytes: 0,
                errno: error.raw_os_error().unwrap_or_default(),
            })
        };
        Ok(SoftwareGpu {
            copy_engine_count: self.copy_engines,
            vram_caching: self.vram_caching,
            given: self.given,
            memory: OnceLock::new(),
            vram: OnceLock::new(),
            bar: OnceLock::new(),
            engines: OnceLock::new(),
            rings: (0..self.rings).map(start).collect::<Result<_>>()?,
        })
    }
}

impl SoftwareGpu {
    /// Two copy engines and two rings, unless told otherwise.
    pub fn builder() -> SoftwareGpuBuilder {
        SoftwareGpuBuilder { copy_engines: 2, rings: 2, vram_caching: Caching::WriteCombined, given: None }
    }

    /// A copy engine, for injecting faults. `None` before the device is built, and beyond the last.
    pub fn copy_engine(&self, index: usize) -> Option<&Arc<SoftwareEngine>> {
        self.engines.get()?.get(index)
    }

    /// Queues `work` on the ring with the shortest backlog, behind everything the job must wait for. Never waits, and
    /// neither may `work` wait for a fence: debug builds report it.
    ///
    /// # Errors
    /// [`Error::Driver`] when this GPU has not been built into a device.
    pub fn run(
        &self,
        job: &Job<'_>,
        work: impl FnOnce(&JobMemory) -> std::result::Result<(), String> + Send + 'static,
    ) -> Result<Fence> {
        let Some(memory) = self.memory.get() else {
            return Err(Error::Driver {
                action: "run a job",
                reason: "this GPU belongs to no device".into(),
            });
        };
        let memory = JobMemory::new(memory.clone(), job);
        let ring = self.rings.iter().min_by_key(|ring| ring.backlog()).expect("a software GPU has a ring");
        Ok(ring.queue(job, Box::new(move || work(&memory))))
    }
}

impl SoftwareGpu {
    /// Reads through the BAR, as a peer on the bus would.
    ///
    /// # Errors
    /// [`Error::BarAccess`] beyond the end of the BAR, and where no window shows anything; [`Error::Driver`] when this GPU has
    /// not been built into a device.
    pub fn read_bar(&self, addr: BarAddr, into: &mut [u8]) -> Result<()> {
        self.bar("read through the BAR")?.read(addr, into)
    }

    /// Writes through the BAR, as a peer on the bus would.
    ///
    /// # Errors
    /// As [`SoftwareGpu::read_bar`].
    pub fn write_bar(&self, addr: BarAddr, from: &[u8]) -> Result<()> {
        self.bar("write through the BAR")?.write(addr, from)
    }

    /// Reads this device's system memory, as a peer on the bus would.
    ///
    /// # Errors
    /// [`Error::Driver`] beyond its end, and when this GPU has not been built into a device.
    pub fn read_system(&self, addr: SysAddr, into: &mut [u8]) -> Result<()> {
        let start = self.reach("read system memory", Addr::System(addr), into.len())?;
        // SAFETY: `reach` found so many bytes from `start` within the arena, which self keeps. They are reached through raw
        // pointers only; what orders this access against copies and jobs are the fences that a peer has to wait for.
        unsafe { std::ptr::copy_nonoverlapping(start.as_ptr(), into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Writes this device's system memory, as a peer on the bus would.
    ///
    /// # Errors
    /// As [`SoftwareGpu::read_system`].
    pub fn write_system(&self, addr: SysAddr, from: &[u8]) -> Result<()> {
        let start = self.reach("write system memory", Addr::System(addr), from.len())?;
        // SAFETY: as in read_system.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), start.as_ptr(), from.len()) };
        Ok(())
    }

    /// Reads VRAM, as a peer over a private link would.
    ///
    /// # Errors
    /// As [`SoftwareGpu::read_system`].
    pub fn read_vram(&self, addr: VramAddr, into: &mut [u8]) -> Result<()> {
        let start = self.reach("read VRAM", Addr::Vram(addr), into.len())?;
        // SAFETY: as in read_system, for the memory of the GPU.
        unsafe { std::ptr::copy_nonoverlapping(start.as_ptr(), into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Writes VRAM, as a peer over a private link would.
    ///
    /// # Errors
    /// As [`SoftwareGpu::read_system`].
    pub fn write_vram(&self, addr: VramAddr, from: &[u8]) -> Result<()> {
        let start = self.reach("write VRAM", Addr::Vram(addr), from.len())?;
        // SAFETY: as in read_vram.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), start.as_ptr(), from.len()) };
        Ok(())
    }

    fn reach(&self, action: &'static str, addr: Addr, len: usize) -> Result<NonNull<u8>> {
        let refused = |reason: &str| Error::Driver { action, reason: reason.into() };
        let memory = self.memory.get().ok_or_else(|| refused("this GPU belongs to no device"))?;
        memory.resolve(addr, len as u64).ok_or_else(|| refused("it ends before that"))
    }

    fn bar(&self, action: &'static str) -> Result<&SoftwareBar> {
        let no_device = || Error::Driver { action, reason: "this GPU belongs to no device".into() };
        self.bar.get().ok_or_else(no_device)
    }
}

impl std::fmt::Debug for SoftwareGpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SoftwareGpu")
            .field("copy_engines", &self.copy_engine_count)
            .field("rings", &self.rings.len())
            .field("memory", &self.memory.get())
            .finish()
    }
}

impl Driver for SoftwareGpu {
    fn map_vram(&self, layout: &MemoryLayout) -> Result<Option<Arc<dyn MemoryMap>>> {
        let vram = Arc::new(match &self.given {
            Some(memory) => SoftwareVram::in_memory(memory, layout.vram_bytes)?,
            None => SoftwareVram::in_memfd(layout.vram_bytes)?,
        });
        let bar = SoftwareBar::new(layout.bar, vram.clone());
        if self.vram.set(vram.clone()).is_err() || self.bar.set(bar).is_err() {
            return Err(Error::Driver {
                action: "map VRAM",
                reason: "this GPU already belongs to a device".into(),
            });
        }
        Ok(Some(vram))
    }

    fn vram_size(&self) -> Option<Size> {
        self.given.as_ref().map(VramMemory::size)
    }

    fn program_windows(&self, change: &WindowChange<'_>) -> Result<Option<Fence>> {
        self.bar("program a window")?.program(change)
    }

    fn bar_memory(&self, addr: BarAddr, len_bytes: u64) -> Option<BarMemory<'_>> {
        self.bar.get()?.memory(addr, len_bytes)
    }

    fn copy_engines(&self, memory: &DeviceMemory) -> Result<Vec<Arc<dyn CopyEngine>>> {
        let memory = Arc::new(self.whole_memory(memory)?);
        let engines: Vec<_> = (0..self.copy_engine_count)
            .map(|index| SoftwareEngine::new(format!("sdma{index}"), memory.clone()))
            .collect();
        let shared = engines.iter().map(|engine| engine.clone() as Arc<dyn CopyEngine>).collect();
        let fresh = self.memory.set(memory).is_ok() && self.engines.set(engines).is_ok();
        debug_assert!(fresh, "map_vram refuses a second device");
        Ok(shared)
    }

    fn vram_caching(&self) -> Caching {
        self.vram_caching
    }

    /// Its threads end what they do by themselves, and its memory is the process's.
    fn reset(&self) -> Result<VramContents> {
        Ok(VramContents::Kept)
    }

    fn is_engine_thread(&self) -> bool {
        self.rings.iter().any(Ring::is_this_thread)
    }

    fn fallback_engine(&self, memory: &DeviceMemory) -> Option<Arc<dyn CopyEngine>> {
        let memory = self.whole_memory(memory).ok()?;
        Some(CpuEngine::new("cpu", Arc::new(memory)))
    }
}

impl SoftwareGpu {
    fn whole_memory(&self, memory: &DeviceMemory) -> Result<DeviceMemory> {
        let vram = self.vram.get().cloned();
        let vram = vram.ok_or_else(|| Error::Driver {
            action: "start copy engines",
            reason: "VRAM is not mapped".into(),
        })?;
        let limit_bytes = vram.len_bytes();
        Ok(memory.with_vram(vram, limit_bytes))
    }
}
