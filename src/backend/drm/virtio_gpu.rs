//! virtio-gpu as an exporter: blobs in the guest's memory where the host has them, else dumb buffers.
//!
//! Both are the guest's own pages; what the host makes of them does not matter here. A blob needs no primary node, and may be
//! larger than a dumb buffer.

use drm::control::from_u32;

use super::node::{NodeKind, VirtioGpuNode};
use super::prime::GemHandle;
use super::{dumb, make_of};
use crate::backend::exporter::{Abilities, Exporter, Made, Source, Wanted};
use crate::error::{Error, Result};
use crate::share::WhyNot;
use crate::uapi::virtgpu::{self, Param};

/// A virtio-gpu, open.
#[derive(Debug)]
pub(crate) struct VirtioGpu {
    node: VirtioGpuNode,
    /// Whether it has blobs.
    has_blobs: bool,
}

impl VirtioGpu {
    /// # Errors
    /// Why it cannot be used.
    pub(crate) fn open() -> Result<VirtioGpu, WhyNot> {
        let node = match VirtioGpuNode::open(NodeKind::Primary) {
            Ok(node) => node,
            Err(primary) => match VirtioGpuNode::open(NodeKind::Render) {
                Ok(render) if has_blobs(&render) => render,
                Ok(_) | Err(_) => return Err(WhyNot::of(primary)),
            },
        };
        Ok(VirtioGpu { has_blobs: has_blobs(&node), node })
    }
}

impl Exporter for VirtioGpu {
    fn abilities(&self) -> Abilities {
        let max_bytes = if self.has_blobs { i64::MAX as u64 } else { dumb::MAX_BYTES };
        Abilities { in_place: false, max_bytes, max_runs: usize::MAX, read_only: true }
    }

    fn make(&self, wanted: Wanted, _source: Source<'_>) -> Result<Made> {
        let handle = match self.has_blobs {
            true => GemHandle::from_kernel(&self.node, |_| {
                let blob = virtgpu::create_guest_blob(&self.node, wanted.len_bytes)
                    .map_err(|errno| Error::io("make a blob of a virtio-gpu", wanted.len_bytes, errno))?;
                Ok(from_u32(blob).expect("the kernel gives out no handle 0"))
            })?,
            false => GemHandle::dumb(&self.node, wanted.len_bytes)?,
        };
        make_of(handle, wanted, |handle| {
            virtgpu::map_offset(&self.node, handle.number())
                .map_err(|errno| Error::io("map a buffer of a virtio-gpu", wanted.len_bytes, errno))
        })
    }
}

fn has_blobs(node: &VirtioGpuNode) -> bool {
    virtgpu::get_param(node, Param::Blobs).is_ok_and(|has| has == 1)
}
