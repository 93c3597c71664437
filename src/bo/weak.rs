//! The way from a region to the buffers in it, which must not keep them alive.

use std::sync::{Arc, Weak};

use super::{Buffer, BufferObject};

/// A buffer that may be on its way out: who cannot upgrade this has met one whose destructor is about to give its bytes back.
#[derive(Clone, Debug, Default)]
pub(crate) struct WeakBuffer {
    /// Constant.
    buffer: Weak<BufferObject>,
    /// A model watches atomics of its own, not the reference counts of `Arc`: through this one it sees that looking for a buffer
    /// races with dropping it.
    #[cfg(any(loom, shuttle))]
    watched: Option<Arc<devpagemap_fence::sync::atomic::AtomicUsize>>,
}

impl WeakBuffer {
    pub(crate) fn of(buffer: &Arc<BufferObject>) -> WeakBuffer {
        WeakBuffer {
            buffer: Arc::downgrade(buffer),
            #[cfg(any(loom, shuttle))]
            watched: Some(buffer.watched.clone()),
        }
    }

    /// The buffer, kept alive from here on by a reference like any other: it may turn out to be the last.
    pub(crate) fn upgrade(&self) -> Option<Buffer> {
        #[cfg(any(loom, shuttle))]
        if let Some(watched) = &self.watched {
            watched.fetch_add(1, devpagemap_fence::sync::atomic::Ordering::AcqRel);
        }
        self.buffer.upgrade().map(Buffer)
    }
}
