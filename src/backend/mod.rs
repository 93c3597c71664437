//! What a device's memory really is: mappings of this process, and the software GPU that works on them.

mod arena;
#[cfg(not(any(loom, shuttle)))]
mod bar;
#[cfg(not(any(loom, shuttle)))]
mod dma_buf;
#[cfg(not(any(loom, shuttle)))]
mod dma_heap;
#[cfg(not(any(loom, shuttle)))]
pub(crate) mod drm;
#[cfg(not(any(loom, shuttle)))]
pub(crate) mod exporter;
#[cfg(not(any(loom, shuttle)))]
mod jobs;
mod mapped_file;
#[cfg(any(test, loom, shuttle))]
mod memfd_pages;
mod memory;
mod outside;
#[cfg(not(any(loom, shuttle)))]
mod pci;
mod pieces;
#[cfg(not(any(loom, shuttle)))]
mod software;
#[cfg(not(any(loom, shuttle)))]
mod vram;

#[cfg(not(any(loom, shuttle)))]
mod udmabuf;

#[cfg(not(any(loom, shuttle)))]
pub use dma_buf::{DmaBuf, DmaBufInfo};
#[cfg(not(any(loom, shuttle)))]
pub use dma_heap::HeapFound;
#[cfg(not(any(loom, shuttle)))]
pub use drm::{
    ExportedBy, ImportDecision, ImportInto, ImportRefusal, KernelImport, NodeAbilities, NodeFound, NodeKind,
    VirtioAbilities,
};
#[cfg(not(any(loom, shuttle)))]
pub use exporter::Abilities;
#[cfg(not(any(loom, shuttle)))]
pub use jobs::JobMemory;
pub use memory::DeviceMemory;
#[cfg(not(any(loom, shuttle)))]
pub use pci::{Drive, P2pAllocation, P2pMemory, PciBar, Transfer};
#[cfg(not(any(loom, shuttle)))]
pub use software::{SoftwareGpu, SoftwareGpuBuilder};
#[cfg(not(any(loom, shuttle)))]
pub use vram::VramMemory;

pub(crate) use arena::Arena;
#[cfg(not(any(loom, shuttle)))]
pub(crate) use dma_heap::{SystemHeap, heaps};
#[cfg(any(test, loom, shuttle))]
pub(crate) use memfd_pages::MemfdPages;
pub(crate) use outside::{OutsideFile, OutsideMemory, OutsidePages, OutsideRole};
pub(crate) use pieces::{gather, scatter};
#[cfg(not(any(loom, shuttle)))]
pub(crate) use udmabuf::Udmabuf;
