//! What a driver prototype implements.

use std::any::Any;
use std::sync::Arc;

use devpagemap_fence::{Fence, FenceSet};
use devpagemap_migrate::{CopyEngine, CpuEngine, Extent, ExtentList, MemoryMap};

use crate::aperture::{Bar, BarAddr, BarMemory, WindowChange};
use crate::backend::DeviceMemory;
use crate::cpu::Caching;
use crate::error::{Error, Result};
use crate::region::RegionKind;
use crate::size::Size;
use crate::unplug::VramContents;

/// How a device's memory is laid out, as its builder was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLayout {
    /// Size of VRAM.
    pub vram_bytes: u64,
    /// What the BAR shows of it.
    pub bar: Bar,
    /// How much of it is always visible, from its start: the size of the BAR, or nothing where the BAR has windows.
    pub visible_bytes: u64,
    /// How much system memory the GPU may reach at once.
    pub gtt_bytes: u64,
}

/// A buffer that has just been given a new place; the copy is queued, not done.
#[derive(Debug)]
pub struct Moved<'a> {
    pub(crate) buffer: u64,
    pub(crate) from: Option<RegionKind>,
    pub(crate) to: RegionKind,
    pub(crate) extents: &'a ExtentList,
    pub(crate) after: &'a FenceSet,
}

impl Moved<'_> {
    /// The buffer's id.
    pub fn buffer(&self) -> u64 {
        self.buffer
    }

    /// Where it was; `None` when this is its first place.
    pub fn from(&self) -> Option<RegionKind> {
        self.from
    }

    /// Where it is now.
    pub fn to(&self) -> RegionKind {
        self.to
    }

    /// The addresses it has now.
    pub fn extents(&self) -> &ExtentList {
        self.extents
    }

    /// What signals when its bytes have arrived.
    pub fn after(&self) -> &FenceSet {
        self.after
    }
}

/// A GPU as the memory manager needs it. Every method but one has a default.
///
/// The manager calls these with reservations held, never with an inner lock; an implementation may use fences and its own
/// locks, and must not call back into the device. [`Driver::rebind`] and the closure of a
/// [`Submission`](crate::Submission) run on the way to a fence's signal: who waits for a fence there is reported in debug
/// builds, though it may end well.
pub trait Driver: Any + Send + Sync {
    /// Who copies. Called once, when the device is built; `memory` is all that the CPU sees of the device's memory.
    ///
    /// # Errors
    /// Whatever keeps the engines from starting; the device is then not built.
    fn copy_engines(&self, memory: &DeviceMemory) -> Result<Vec<Arc<dyn CopyEngine>>>;

    /// How much VRAM there is, if the driver knows: the size of a device that is built without another
    /// [one](crate::DeviceBuilder::vram). Asked for once, before all else.
    fn vram_size(&self) -> Option<Size> {
        None
    }

    /// Makes VRAM reachable for the CPU. Called once, before [`Driver::copy_engines`]. `None`: the CPU sees none of it.
    ///
    /// # Errors
    /// Whatever keeps VRAM from being mapped; the device is then not built.
    fn map_vram(&self, layout: &MemoryLayout) -> Result<Option<Arc<dyn MemoryMap>>> {
        let _ = layout;
        Ok(None)
    }

    /// How the CPU's mappings of VRAM are cached. Asked for once, when the device is built. Unless VRAM is cached, the CPU reaches
    /// bytes in VRAM only of buffers that [opted in](crate::BufferBuilder::write_combined).
    fn vram_caching(&self) -> Caching {
        Caching::WriteCombined
    }

    /// Who copies when no engine can: by default the CPU, which reaches what it sees.
    fn fallback_engine(&self, memory: &DeviceMemory) -> Option<Arc<dyn CopyEngine>> {
        Some(CpuEngine::new("cpu", Arc::new(memory.clone())))
    }

    /// Whether the calling thread is one of those that run this driver's jobs. Such a thread may drop the last reference to a
    /// device, and must then not be asked to wait for itself.
    fn is_engine_thread(&self) -> bool {
        false
    }

    /// Points the GPU's page tables at a buffer's new place. Queue it behind `moved.after()`, do not wait; whoever uses the
    /// buffer next waits for the returned fence. Evictions call it too.
    ///
    /// # Errors
    /// An error poisons the buffer: its next user gets it as the failure of a fence.
    fn rebind(&self, moved: &Moved<'_>) -> Result<Option<Fence>> {
        let _ = moved;
        Ok(None)
    }

    /// Whether bytes of VRAM can still be read, after the device was unplugged [without notice](crate::Unplug::Surprise). They cannot,
    /// unless the driver knows better: what a bus answers for a device that is gone looks like bytes.
    fn is_readable(&self, extent: &Extent) -> bool {
        let _ = extent;
        false
    }

    /// Resets the device. Importers, jobs and moves have been told and have had their time; what still runs ends here, and its
    /// fences signal or fail. Called by [`Device::reset`](crate::Device::reset), with no lock held.
    ///
    /// # Errors
    /// The device is beyond reset, and lost.
    fn reset(&self) -> Result<VramContents> {
        Err(Error::Unsupported { what: "this driver resets nothing" })
    }

    /// The device that was unplugged is back; its VRAM may hold anything. Called by [`Device::rearm`](crate::Device::rearm), with no
    /// lock held.
    ///
    /// # Errors
    /// The device stays away.
    fn rearm(&self) -> Result<()> {
        Ok(())
    }

    /// Points pages of a BAR of windows at pages of VRAM, or at nothing; the whole change, or none of it. Queue it behind
    /// `change.after()`, do not wait; whoever uses these pages next waits for the returned fence. `None`: it is done.
    ///
    /// Called when a window is made, when a buffer with windows moves, and when one is destroyed, then possibly on the way
    /// to a fence's signal.
    ///
    /// # Errors
    /// An error when a window is made is that of whoever wanted it, and the pages of VRAM stay hidden. The default is
    /// [`Error::Unsupported`]: such a device has a BAR that is a prefix.
    fn program_windows(&self, change: &WindowChange<'_>) -> Result<Option<Fence>> {
        let _ = change;
        Err(Error::Unsupported { what: "this driver programs no windows" })
    }

    /// The memory behind `len_bytes` of the BAR, for the CPU to map; `None` when it cannot be mapped in one piece. What a window
    /// shows when this is called is what counts: ask while the window is used, once its fences have signalled.
    fn bar_memory(&self, addr: BarAddr, len_bytes: u64) -> Option<BarMemory<'_>> {
        let _ = (addr, len_bytes);
        None
    }
}
