//! Handles of buffers, and dma-bufs in and out.
//!
//! The kernel gives one handle for one buffer of a node, however often the buffer comes in, and counts none of it: whoever imports a
//! dma-buf that the same node has exported gets the handle that the exporter has, and whoever of the two closes it first closes it for both.
//! So a node counts here how often each of its handles is held, and closes it with the last.
//!
//! ```text
//!   import:  lock { ask the kernel for the handle ─► one more }        drop:  lock { one less ─► the last: close it }
//! ```
//!
//! The lock is held while the kernel is asked: a handle that was just closed may come out again at once, as another buffer's.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::AsFd;
use std::sync::Arc;

use drm::buffer::Handle;
use drm::control::Device as _;

use super::node::DrmNode;
use crate::backend::DmaBuf;
use crate::error::{Error, Result};

/// How often each handle of a node is held.
#[derive(Debug, Default)]
pub(super) struct Handles(HashMap<u32, usize>);

impl Handles {
    fn enter(&mut self, handle: u32) {
        *self.0.entry(handle).or_default() += 1;
    }

    /// One holder less; says whether that was the last.
    fn leave(&mut self, handle: u32) -> bool {
        let count = self.0.get_mut(&handle).expect("who leaves has entered");
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.0.remove(&handle);
        true
    }
}

/// A handle of a buffer of a node, one of maybe several; the last closes it.
pub(crate) struct GemHandle {
    /// Whose it is. Constant.
    node: Arc<DrmNode>,
    /// Constant.
    handle: Handle,
}

impl GemHandle {
    /// A handle that `make` gets from the kernel.
    pub(super) fn from_kernel(
        node: &Arc<DrmNode>,
        make: impl FnOnce(&DrmNode) -> Result<Handle>,
    ) -> Result<GemHandle> {
        let mut handles = node.handles.lock();
        let handle = make(node)?;
        handles.enter(handle.into());
        Ok(GemHandle { node: node.clone(), handle })
    }

    /// The handle of the buffer behind a dma-buf: another's, or one that this very node has exported.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io): `ENODEV`, `ENOSYS` or `EINVAL` when the driver takes no buffers of that exporter.
    pub(crate) fn import(node: &Arc<DrmNode>, dma_buf: &DmaBuf) -> Result<GemHandle> {
        GemHandle::from_kernel(node, |node| {
            node.prime_fd_to_buffer(dma_buf.as_fd())
                .map_err(|error| Error::of_std("import a dma-buf", dma_buf.len_bytes(), &error))
        })
    }

    /// The buffer as a dma-buf, to read or to write as well.
    ///
    /// A buffer has one dma-buf as long as somebody holds that, and what the first export said of writing holds for all. So one that was to be
    /// read only may come out writable, and the other way round: look at [`DmaBuf::is_writable`].
    ///
    /// # Errors
    /// [`Error::NoDescriptorsLeft`](crate::Error::NoDescriptorsLeft), [`Error::Io`](crate::Error::Io) when the driver exports nothing.
    pub(crate) fn export(&self, writable: bool) -> Result<DmaBuf> {
        let flags = if writable { drm::CLOEXEC | drm::RDWR } else { drm::CLOEXEC };
        let fd = self
            .node
            .buffer_to_prime_fd(self.handle, flags)
            .map_err(|error| Error::of_std("export a buffer as a dma-buf", 0, &error))?;
        DmaBuf::new(fd)
    }

    pub(crate) fn node(&self) -> &Arc<DrmNode> {
        &self.node
    }

    /// The number, for calls of this node.
    pub(crate) fn number(&self) -> u32 {
        self.handle.into()
    }
}

impl Drop for GemHandle {
    fn drop(&mut self) {
        let mut handles = self.node.handles.lock();
        if handles.leave(self.number()) {
            let closed = self.node.close_buffer(self.handle);
            debug_assert!(closed.is_ok(), "closing {self:?}: {closed:?}");
        }
    }
}

impl fmt::Debug for GemHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GemHandle({} of {:?})", self.number(), self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_that_came_twice_is_closed_with_its_second_holder() {
        let mut handles = Handles::default();
        handles.enter(1);
        handles.enter(1);
        handles.enter(2);
        assert!(!handles.leave(1));
        assert!(handles.leave(1));
        assert!(handles.leave(2));
        assert!(handles.0.is_empty());
    }
}
