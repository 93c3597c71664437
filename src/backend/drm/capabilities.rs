//! What a node can do, as it says itself.

use drm::{Device as _, DriverCapability};

use super::node::{DrmNode, NodeFound, VirtioGpuNode};
use crate::error::Result;
use crate::uapi::virtgpu::{Param, get_param};

/// What a DRM node says that it can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeAbilities {
    /// It takes dma-bufs in.
    pub imports: bool,
    /// It gives buffers out as dma-bufs.
    pub exports: bool,
    /// It makes dumb buffers. vgem says that it does not, and does.
    pub dumb_buffers: bool,
    /// It has synchronization objects.
    pub syncobjs: bool,
    /// And ones with many points.
    pub timeline_syncobjs: bool,
    /// It shows buffers in other layouts than line after line.
    pub modifiers: bool,
    /// What a virtio-gpu has beyond that; `None` for other drivers.
    pub virtio: Option<VirtioAbilities>,
}

/// What the host of a virtual machine gives its GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VirtioAbilities {
    /// Blobs: buffers without a shape.
    pub blobs: bool,
    /// Blobs of the host can be mapped in the guest.
    pub host_visible: bool,
    /// The host renders.
    pub renders: bool,
}

/// `DRM_PRIME_CAP_IMPORT` and `DRM_PRIME_CAP_EXPORT`.
const PRIME_IMPORT: u64 = 1;
const PRIME_EXPORT: u64 = 2;

impl NodeFound {
    /// Opens the node, and asks.
    ///
    /// # Errors
    /// [`Error::NoRights`](crate::Error::NoRights), [`Error::NoDescriptorsLeft`](crate::Error::NoDescriptorsLeft),
    /// [`Error::Io`](crate::Error::Io) when it is there no more.
    pub fn abilities(&self) -> Result<NodeAbilities> {
        let node = DrmNode::at(&self.path)?;
        // What a driver was never taught to answer it does not have.
        let value = |capability| node.get_driver_capability(capability).unwrap_or(0);
        let prime = value(DriverCapability::Prime);
        Ok(NodeAbilities {
            imports: prime & PRIME_IMPORT != 0,
            exports: prime & PRIME_EXPORT != 0,
            dumb_buffers: value(DriverCapability::DumbBuffer) != 0,
            syncobjs: value(DriverCapability::SyncObj) != 0,
            timeline_syncobjs: value(DriverCapability::TimelineSyncObj) != 0,
            modifiers: value(DriverCapability::AddFB2Modifiers) != 0,
            virtio: self.virtio(),
        })
    }

    fn virtio(&self) -> Option<VirtioAbilities> {
        let node = VirtioGpuNode::open(self.kind).ok().filter(|node| node.path() == self.path)?;
        let has = |param| get_param(&node, param).unwrap_or(0) != 0;
        Some(VirtioAbilities {
            blobs: has(Param::Blobs),
            host_visible: has(Param::HostVisible),
            renders: has(Param::ThreeD),
        })
    }
}
