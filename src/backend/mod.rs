//! What a device's memory really is: mappings of this process, and the software GPU that works on them.

mod arena;
mod jobs;
mod memory;
mod software;

pub use jobs::JobMemory;
pub use memory::DeviceMemory;
pub use software::{SoftwareGpu, SoftwareGpuBuilder};

pub(crate) use arena::Arena;
