//! The kernel's DRM devices, as far as memory goes: nodes by their driver's name, buffers, and dma-bufs in and out.
//!
//! | file | what it is about |
//! |---|---|
//! | `node.rs` | which nodes there are, and opening one by its driver's name |
//! | `prime.rs` | handles of buffers, counted; dma-bufs in and out |
//! | `dumb.rs` | buffers that any driver makes |
//! | `capabilities.rs` | what a node says that it can do |
//! | `import.rs` | which driver takes whose dma-bufs, said before it is tried |
//! | `vgem.rs`, `virtio_gpu.rs` | the drivers that buffers are exported through |
//! | `gbm.rs` | images, through libgbm |
//! | `syncobj.rs` | holders of fences that processes and devices share |
//!
//! Numbers of calls that belong to one driver mean something else to another, so such calls take a type that only a node of that driver
//! becomes ([`VgemNode`], [`VirtioGpuNode`]).

mod capabilities;
mod dumb;
#[cfg(feature = "gbm")]
mod gbm;
mod import;
mod node;
mod prime;
mod syncobj;
mod vgem;
mod virtio_gpu;

pub use capabilities::{NodeAbilities, VirtioAbilities};
pub use import::{ExportedBy, ImportDecision, ImportInto, ImportRefusal, KernelImport};
pub use node::{NodeFound, NodeKind};

#[cfg(feature = "gbm")]
pub(crate) use gbm::Gbm;
pub(crate) use node::{DrmNode, VgemNode, VirtioGpuNode};
pub(crate) use prime::GemHandle;
pub(crate) use syncobj::{SyncobjHandle, SyncobjNode, has_come};
pub(crate) use vgem::Vgem;
pub(crate) use virtio_gpu::VirtioGpu;

use super::exporter::{Made, Wanted, Window};
use crate::error::{Error, Result};

/// A new buffer of a driver as a dma-buf. One that may be read only is written through the node, where `offset` says.
fn make_of(
    handle: GemHandle,
    wanted: Wanted,
    offset: impl FnOnce(&GemHandle) -> Result<u64>,
) -> Result<Made> {
    let dma_buf = handle.export(wanted.writable)?;
    let is_as_wanted = dma_buf.len_bytes() == wanted.len_bytes && dma_buf.is_writable() == wanted.writable;
    if !is_as_wanted {
        return Err(Error::Unsupported {
            what: "the driver makes a dma-buf of another size or other rights",
        });
    }
    let window = match wanted.writable {
        true => None,
        false => Some(Window { device: handle.node().clone(), offset_bytes: offset(&handle)? }),
    };
    Ok(Made { window, keep: Box::new(handle), ..Made::of(dma_buf) })
}
