//! What a device's memory really is: mappings of this process, and the software GPU that works on them.

mod arena;
#[cfg(not(any(loom, shuttle)))]
mod bar;
#[cfg(not(any(loom, shuttle)))]
mod dma_buf;
#[cfg(not(any(loom, shuttle)))]
mod jobs;
mod memory;
#[cfg(not(any(loom, shuttle)))]
mod pci;
mod pieces;
#[cfg(not(any(loom, shuttle)))]
mod software;
#[cfg(not(any(loom, shuttle)))]
mod vram;

#[cfg(not(any(loom, shuttle)))]
pub use dma_buf::{DmaBuf, DmaBufInfo};
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
pub(crate) use pieces::{gather, scatter};
