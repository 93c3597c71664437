//! What the kernel's headers say and no crate does: structures, numbers, and the calls made with them. One family a file.
//!
//! Numbers that belong to one DRM driver mean something else to another (attaching a vgem fence and mapping a virtio-gpu buffer are
//! one number), so those calls take a node whose driver's name has been looked at.

pub(crate) mod dma_buf;
pub(crate) mod dma_heap;
pub(crate) mod dumb;
pub(crate) mod sw_sync;
pub(crate) mod sync_file;
pub(crate) mod syncobj;
pub(crate) mod udmabuf;
pub(crate) mod userfaultfd;
pub(crate) mod vgem;
pub(crate) mod virtgpu;
