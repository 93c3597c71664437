//! Around what the CPU does with a dma-buf's bytes: the kernel wants to know when it begins and ends, so that caches agree.
//!
//! Beginning may wait in the kernel, for the work of others. So nobody begins with a lock held: see `Buffer::when_idle`.

#[cfg(not(any(loom, shuttle)))]
use std::{os::fd::AsFd, sync::Arc};

use devpagemap_fence::Usage;

#[cfg(not(any(loom, shuttle)))]
use crate::backend::DmaBuf;
use crate::bo::BoState;
#[cfg(not(any(loom, shuttle)))]
use crate::error::Error;
use crate::error::Result;
#[cfg(not(any(loom, shuttle)))]
use crate::uapi::dma_buf::{self, Use};

/// The CPU uses the bytes of a dma-buf until this is dropped. A model has no dma-bufs.
#[derive(Debug)]
pub(super) struct Bracket {
    /// Constant.
    #[cfg(not(any(loom, shuttle)))]
    around: Arc<DmaBuf>,
    /// Constant.
    #[cfg(not(any(loom, shuttle)))]
    how: Use,
}

/// A bracket that is missing.
#[derive(Debug)]
pub(super) struct Missing {
    #[cfg(not(any(loom, shuttle)))]
    around: Arc<DmaBuf>,
}

impl Missing {
    /// Begins to use the bytes: after all work up to `usage` that this device knows of. May wait.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io).
    pub(super) fn begin(self, usage: Usage) -> Result<Bracket> {
        #[cfg(any(loom, shuttle))]
        {
            let _no_dma_bufs_in_models = usage;
            Ok(Bracket {})
        }
        #[cfg(not(any(loom, shuttle)))]
        {
            let Missing { around } = self;
            let how = if usage == Usage::Write { Use::Read } else { Use::Write };
            dma_buf::begin_cpu_access(around.as_fd(), how).map_err(|errno| {
                Error::io("begin to use the bytes of a dma-buf", around.len_bytes(), errno)
            })?;
            Ok(Bracket { around, how })
        }
    }
}

impl Bracket {
    /// The CPU has used the bytes.
    pub(super) fn end(self) {}
}

/// What has to be begun before the CPU uses the buffer's bytes where they are; `None` if nothing, or `have` does.
pub(super) fn missing(state: &BoState, have: Option<&Bracket>) -> Option<Missing> {
    #[cfg(any(loom, shuttle))]
    {
        let _no_dma_bufs_in_models = (state, have);
        None
    }
    #[cfg(not(any(loom, shuttle)))]
    {
        let around = state.resource.as_ref()?.outside.as_ref()?.dma_buf()?;
        let begun = have.is_some_and(|have| Arc::ptr_eq(&have.around, around));
        (!begun).then(|| Missing { around: around.clone() })
    }
}

#[cfg(not(any(loom, shuttle)))]
impl Drop for Bracket {
    fn drop(&mut self) {
        if let Err(errno) = dma_buf::end_cpu_access(self.around.as_fd(), self.how) {
            tracing::error!(%errno, "the kernel was not told that the CPU has used a dma-buf");
        }
    }
}
