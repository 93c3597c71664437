//! vgem as a source: a fence on a buffer of one page that nobody else has.
//!
//! vgem makes a fence by attaching it to a buffer, and refuses a buffer that has one already. So it is attached to a *scratch* buffer, whose
//! dma-buf hands it out as a sync_file, and that goes into the dma-buf that it is meant for, whoever exported it. A scratch buffer has one
//! fence at a time; those that are idle are kept.
//!
//! A node remembers the number of every fence that it ever made, so it is replaced by a freshly opened one from time to time.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use devpagemap_allocator::PAGE_BYTES;
use devpagemap_fence::Outside;
use rustix::io::Errno;

use super::dma_buf::KernelSyncFile;
use super::kernel::{Ended, KernelFence, MadeFence, Outcome};
use super::machine::Source;
use crate::backend::DmaBuf;
use crate::backend::drm::{GemHandle, NodeKind, VgemNode};
use crate::error::{Error, Result};
use crate::uapi::dma_buf::{Use, export_sync_file};
use crate::uapi::vgem::{EXPIRY, attach_fence, signal_fence};

/// How many idle scratch buffers are kept, a descriptor and a page each.
const KEPT: usize = 32;
/// After how many fences a node is replaced.
const USED_UP: u32 = 1 << 16;

/// A buffer of its own for one fence at a time.
#[derive(Debug)]
struct Scratch {
    node: VgemNode,
    handle: GemHandle,
    dma_buf: DmaBuf,
}

impl Scratch {
    fn new(node: &VgemNode) -> Result<Scratch> {
        let handle = GemHandle::dumb(node, PAGE_BYTES)?;
        let dma_buf = handle.export(true)?;
        Ok(Scratch { node: node.clone(), handle, dma_buf })
    }
}

/// The node that makes fences now.
#[derive(Debug)]
struct Workshop {
    node: VgemNode,
    /// How many fences it has made.
    made: u32,
    /// Scratch buffers of this node without a fence.
    idle: Vec<Scratch>,
}

#[derive(Debug)]
pub(super) struct Vgem {
    /// Its own lock.
    workshop: Arc<Outside<Workshop>>,
}

impl Vgem {
    /// # Errors
    /// [`Error::NoNode`], [`Error::NoRights`], what the kernel says.
    pub(super) fn find() -> Result<Vgem> {
        let node = VgemNode::open(NodeKind::Primary)?;
        let workshop = Workshop { node, made: 0, idle: Vec::new() };
        Ok(Vgem { workshop: Arc::new(Outside::new("vgem's scratch buffers", workshop)) })
    }

    fn take_scratch(&self) -> Result<Scratch> {
        let node = {
            let mut workshop = self.workshop.lock();
            workshop.made += 1;
            if let Some(scratch) = workshop.idle.pop() {
                return Ok(scratch);
            }
            workshop.node.clone()
        };
        Scratch::new(&node)
    }

    /// A new node instead of one that has made many fences. If there is none now, the old one goes on.
    fn replace_what_is_used_up(&self) {
        if self.workshop.lock().made < USED_UP {
            return;
        }
        match VgemNode::open(NodeKind::Primary) {
            Ok(node) => {
                let fresh = Workshop { node, made: 0, idle: Vec::new() };
                let used_up = std::mem::replace(&mut *self.workshop.lock(), fresh);
                drop(used_up);
            }
            Err(error) => tracing::warn!(%error, "a node that has made many fences goes on making them"),
        }
    }
}

impl Source for Vgem {
    fn name(&self) -> &'static str {
        "vgem"
    }

    fn expires_after(&self) -> Option<Duration> {
        Some(EXPIRY)
    }

    fn make(&self) -> Result<MadeFence> {
        let refused = |errno| Error::of_descriptor("make a kernel fence", errno);
        self.replace_what_is_used_up();
        let scratch = self.take_scratch()?;
        let number = attach_fence(&scratch.node, scratch.handle.number(), true).map_err(refused)?;
        let fence = VgemFence { scratch: Some(scratch), number, workshop: self.workshop.clone() };
        let of = fence.scratch.as_ref().expect("it has just been given");
        let file = export_sync_file(of.dma_buf.as_fd(), Use::Read).map_err(refused)?;
        Ok(MadeFence { fence: Box::new(fence), file: Box::new(KernelSyncFile::of(file)) })
    }
}

/// A fence on a scratch buffer.
#[derive(Debug)]
struct VgemFence {
    /// `None` once the fence has been signalled.
    scratch: Option<Scratch>,
    number: u32,
    workshop: Arc<Outside<Workshop>>,
}

impl VgemFence {
    fn signal(&mut self) -> std::result::Result<(), Errno> {
        let Some(scratch) = self.scratch.take() else { return Ok(()) };
        let signalled = signal_fence(&scratch.node, self.number);
        let mut workshop = self.workshop.lock();
        let is_of_this_node = Arc::ptr_eq(&workshop.node, &scratch.node);
        if is_of_this_node && workshop.idle.len() < KEPT {
            workshop.idle.push(scratch);
        }
        signalled
    }
}

impl KernelFence for VgemFence {
    fn end(mut self: Box<Self>, outcome: Outcome) -> Ended {
        match (self.signal(), outcome) {
            (Ok(()), Outcome::Done) => Ended::AsTold,
            (Ok(()), Outcome::Failed) => Ended::WithoutTheError,
            (Err(Errno::TIMEDOUT), _) => Ended::Expired,
            (Err(errno), _) => Ended::Refused(Error::of_descriptor("signal a kernel fence", errno)),
        }
    }
}

impl Drop for VgemFence {
    fn drop(&mut self) {
        let signalled = self.signal();
        debug_assert!(signalled.is_ok(), "a fence that was made just now cannot be signalled: {signalled:?}");
    }
}
