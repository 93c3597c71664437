//! What a device's memory really is: mappings of this process, and the software GPU that works on them.

mod arena;
#[cfg(not(loom))]
mod jobs;
mod memory;
#[cfg(not(loom))]
mod software;

#[cfg(not(loom))]
pub use jobs::JobMemory;
pub use memory::DeviceMemory;
#[cfg(not(loom))]
pub use software::{SoftwareGpu, SoftwareGpuBuilder};

pub(crate) use arena::Arena;
