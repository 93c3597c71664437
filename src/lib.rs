//! A GPU memory manager for driver prototypes in user space.
//!
//! You bring a [`Driver`]: who copies, how the GPU's tables are pointed at a buffer. devpagemap brings what TTM,
//! `drm_buddy`, `drm_exec`, `dma_resv` and `dma_fence` are to a kernel driver: VRAM with a CPU-visible part, buffers that are
//! evicted and brought back without losing a byte, copies that are queued and never waited for.
//!
//! # A tour
//!
//! ```
//! use devpagemap::{Device, Place, Size, SoftwareGpu};
//!
//! # fn main() -> devpagemap::Result<()> {
//! // The software GPU is the embedded driver: VRAM is a memfd, engines are threads.
//! let device = Device::builder(SoftwareGpu::builder().build()?).vram(Size::mib(8)).visible(Size::mib(2)).build()?;
//!
//! // Three buffers of 4 MiB do not fit into 8 MiB of VRAM together.
//! let buffers = (0..3).map(|_| device.buffer(Size::mib(4)).prefer(Place::VRAM).create()).collect::<Result<Vec<_>, _>>()?;
//! for (value, buffer) in (1u8..).zip(&buffers) {
//!     device.submit().writes(buffer).run(|gpu, job| {
//!         let extents = job.extents(buffer);
//!         gpu.run(job, move |memory| {
//!             memory.write(&extents, |_, bytes| bytes.fill(value));
//!             Ok(())
//!         })
//!     })?;
//! }
//!
//! // The first was evicted for the third. Its bytes are all there.
//! assert_eq!(device.stats().evictions, 1);
//! let mut bytes = vec![0; 4 << 20];
//! buffers[0].read_at(0, &mut bytes)?;
//! assert!(bytes.iter().all(|byte| *byte == 1));
//! // Submitting and evicting waited for nothing; reading did.
//! assert_eq!(device.stats().cpu_waits_in_validate, 0);
//! # Ok(())
//! # }
//! ```
//!
//! # Where things are
//!
//! | you want | look at |
//! |---|---|
//! | to describe a GPU | [`Driver`], [`SoftwareGpu`] |
//! | a device of some size | [`Device::builder`] |
//! | a buffer, and where it may live | [`Device::buffer`], [`Place`] |
//! | to run work on buffers | [`Device::submit`], [`Job`] |
//! | to reach bytes from the CPU | [`Buffer::read_at`], [`Buffer::write_at`], [`Buffer::map`], [`CpuAccess`] |
//! | to limit what peers use of the BAR | [`DeviceBuilder::p2p_limits`], [`Device::client`] |
//! | to share a buffer with another device | [`Device::join`], [`Importer`], [`Buffer::attach`], [`Attachment::map`] |
//! | to know who can reach whose memory | [`Buffer::explain`], [`Device::registry`], [`pagemap`], [`topology`] |
//! | VRAM in a PCI BAR, or a drive that reads into another device's memory | [`PciBar`], [`P2pMemory`], [`Drive`] |
//! | to take a device away, or reset it | [`Device::unplug`], [`Device::reset`], [`Device::rearm`] |
//! | others to wait for its work, and it for theirs | [`DeviceBuilder::fence_source`], [`Device::import_sync_file`], [`Device::export_sync_file`], [`Syncobj`] |
//! | to know what happened, and why | [`Device::stats`], [`Device::events`], [`Error`] |
//!
//! # Locks
//!
//! Who uses this API never sees a lock. Inside, one declared order holds (see [`fence::levels`]): reservations of buffers,
//! then a region, then the move queue, then timelines; what breaks it does not compile, or panics in debug builds.

mod aperture;
mod backend;
mod bo;
mod client;
mod cpu;
mod device;
mod driver;
mod error;
mod events;
mod import;
mod manager;
mod outstanding;
pub mod pagemap;
mod region;
mod share;
mod size;
mod stats;
mod submit;
mod sync_file;
pub mod topology;
#[cfg(not(any(loom, shuttle)))]
mod uapi;
mod unplug;

pub use aperture::{
    Bar, BarAddr, BarExtent, BarMemory, PinnedWindow, Window, WindowChange, WindowEntry, Zap,
};
pub use aperture::{BarLimit, OnPressure, P2p, P2pLimits, PressureLevel};
#[cfg(any(loom, shuttle))]
pub use aperture::{LedgerMap, LedgerUser};
pub use backend::DeviceMemory;
#[cfg(not(any(loom, shuttle)))]
pub use backend::{
    Abilities, DmaBuf, DmaBufInfo, Drive, ExportedBy, HeapFound, ImportDecision, ImportInto, ImportRefusal,
    JobMemory, KernelImport, NodeAbilities, NodeFound, NodeKind, P2pAllocation, P2pMemory, PciBar,
    SoftwareGpu, SoftwareGpuBuilder, Transfer, VirtioAbilities, VramMemory,
};
pub use bo::{Buffer, BufferBuilder, CpuAccess, EvictionPolicy, Place, Placement};
pub use client::Client;
pub use cpu::{AfterLoss, Caching, CpuFaults, CpuMap, CpuMapBuilder};
pub use device::{Device, DeviceBuilder};
pub use driver::{Driver, MemoryLayout, Moved};
pub use error::{Error, Result};
#[cfg(not(any(loom, shuttle)))]
pub use events::Readable;
pub use events::{Event, Events, PeerReason};
pub use import::Import;
pub use pagemap::Route;
pub use region::{PRIORITIES, RegionKind};
#[cfg(feature = "gbm")]
pub use share::Image;
pub use share::{
    Attachment, GroupAttachment, GroupMap, Importer, InvalidateReason, Invalidated, LostBytes, Overdue, Peer,
    PeerAddr, PeerExtent, PeerMap, PeerMapRequest, RevokeReport,
};
#[cfg(not(any(loom, shuttle)))]
pub use share::{Export, Offers};
pub use share::{ExportRequest, Layout, PassedOver, Plane, Via, WhyNot};
#[cfg(any(loom, shuttle))]
pub use share::{ExportTable, Kept};
pub use size::Size;
pub use stats::Stats;
pub use submit::{Access, Arrivals, Job, Submission};
#[cfg(any(loom, shuttle))]
pub use sync_file::{CrossingModel, ModelDmaBuf, ModelFence, ModelReserved, ModelSyncobj};
#[cfg(not(any(loom, shuttle)))]
pub use sync_file::{FenceSource, Syncobj};
pub use unplug::{Revoke, Unplug, VramContents};

pub use devpagemap_fence as fence;
pub use devpagemap_fence::{Fence, FenceError, FenceSet, Timeline};
pub use devpagemap_migrate as migrate;
pub use devpagemap_migrate::{Addr, CopyEngine, Extent, ExtentList, MemoryFile, MemoryMap};
