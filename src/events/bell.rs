//! The descriptor of a subscription. There is none until somebody asks for it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// A descriptor (`eventfd`) that is readable while there are events to take, and once the device is gone. It need not be
/// read; taking the last event makes it unreadable. Made by [`Events::readable`](super::Events::readable).
#[derive(Clone, Debug)]
pub struct Readable(Arc<OwnedFd>);

impl AsFd for Readable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Readable {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// The descriptor's other end. The queue's lock.
#[derive(Debug, Default)]
pub(super) struct Bell(Option<Arc<OwnedFd>>);

impl Bell {
    pub(super) fn ring(&self) {
        let Some(fd) = &self.0 else { return };
        // Full means that it is readable.
        if let Err(error) = rustix::io::write(fd, &1u64.to_ne_bytes())
            && error != Errno::AGAIN
        {
            tracing::error!(%error, fd = fd.as_raw_fd(), "events could not be announced");
        }
    }

    pub(super) fn silence(&self) {
        let Some(fd) = &self.0 else { return };
        // Empty means that somebody else has read it, which is as good.
        if let Err(error) = rustix::io::read(fd, &mut [0; 8])
            && error != Errno::AGAIN
        {
            tracing::error!(%error, fd = fd.as_raw_fd(), "a descriptor of events could not be reset");
        }
    }
    /// The descriptor, made at the first call and readable from there on if `is_readable`.
    ///
    /// # Errors
    /// [`Error::NoDescriptorsLeft`].
    pub(super) fn descriptor(&mut self, is_readable: bool) -> Result<Readable> {
        if let Some(fd) = &self.0 {
            return Ok(Readable(fd.clone()));
        }
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let fd = eventfd(u32::from(is_readable), flags)
            .map_err(|errno| Error::of_descriptor("make a descriptor for events", errno))?;
        Ok(Readable(self.0.insert(Arc::new(fd)).clone()))
    }
}
