//! Waiting for fences in an event loop: an eventfd that becomes readable once they have signalled.
//!
//! ```text
//!   event loop:  FenceEvent ──▶ eventfd ◀── shared ──┐
//!                    │                               │
//!                    └─ drop empties ─▶ [ writer ] ──┘ ◀── callback on the fence: takes it out, writes 1
//! ```
//!
//! The signaller writes in its callback, so the write must never block: the descriptor is non-blocking, and one write
//! cannot fill the counter. (If the reader filled it, it is readable anyway.) Callback and consumer meet in the
//! writer's slot. A consumer that closes first empties it, and whichever of the two is last closes the descriptor: the
//! callback never writes to a number that by then belongs to somebody else.
//!
//! Readable says that the fences are complete, not how they ended: ask the fence. It stays readable until it is read,
//! which no consumer needs to do.
//!
//! ```
//! use devpagemap_fence::Timeline;
//! use rustix::event::{PollFd, PollFlags, Timespec, poll};
//!
//! let timeline = Timeline::new("ring");
//! let fence = timeline.next_point();
//! let event = fence.event()?;
//! let readable = || -> std::io::Result<bool> {
//!     Ok(poll(&mut [PollFd::new(&event, PollFlags::IN)], Some(&Timespec::default()))? == 1)
//! };
//! assert!(!readable()?);
//! timeline.signal(1);
//! assert!(readable()?);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::any_of::AnyOf;
use crate::error::DescriptorError;
use crate::fence::Fence;
use crate::fence_set::FenceSet;
use crate::hung::Hung;
use crate::sync::{Arc, Mutex};

const WHAT: &str = "an event for a fence";

impl DescriptorError {
    pub(crate) fn from_errno(what: &'static str, errno: Errno) -> DescriptorError {
        let cause = io::Error::from(errno);
        match errno {
            Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOSPC => {
                DescriptorError::Exhausted { what, cause }
            }
            _ => DescriptorError::Refused { what, cause },
        }
    }
}

/// The callbacks' end of the descriptor: empty once it was written, or once nobody reads it any more.
struct Writer(Mutex<Option<Arc<OwnedFd>>>);

impl Writer {
    fn write(&self) {
        let mut slot = self.0.lock();
        let Some(fd) = slot.take() else { return };
        let written = rustix::io::write(&*fd, &1u64.to_ne_bytes());
        drop(slot);
        // Full means that it is readable.
        if let Err(error) = written
            && error != Errno::AGAIN
        {
            tracing::error!(%error, fd = fd.as_raw_fd(), "an event could not be written");
        }
    }
}

/// A descriptor (`eventfd`) that becomes readable once a fence has signalled, with an error or without.
///
/// Made by [`Fence::event`], [`FenceSet::event`] and [`AnyOf::event`]. Dropping it closes the descriptor.
pub struct FenceEvent {
    fd: Arc<OwnedFd>,    // constant
    writer: Arc<Writer>, // emptied by drop, unless the descriptor was detached
    hung: Option<Hung>,  // constant; none if one had signalled already
    detached: bool,      // the owner's
}

impl FenceEvent {
    fn new() -> Result<FenceEvent, DescriptorError> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let fd = eventfd(0, flags).map_err(|errno| DescriptorError::from_errno(WHAT, errno))?;
        let fd = Arc::new(fd);
        let writer = Arc::new(Writer(Mutex::new(Some(fd.clone()))));
        Ok(FenceEvent { fd, writer, hung: None, detached: false })
    }

    /// Readable once the first of `fences` is.
    fn first_of(fences: &[Fence]) -> Result<FenceEvent, DescriptorError> {
        let mut event = FenceEvent::new()?;
        event.hung = Hung::on_each(fences, || {
            let writer = event.writer.clone();
            move || writer.write()
        });
        if event.hung.is_none() {
            event.writer.write();
        }
        Ok(event)
    }

    /// Readable once all of `set` are.
    fn last_of(set: &FenceSet) -> Result<FenceEvent, DescriptorError> {
        let mut event = FenceEvent::new()?;
        let writer = event.writer.clone();
        event.hung = Some(Hung::on_last(set, move || writer.write()));
        Ok(event)
    }

    /// A descriptor of one's own, to be handed to code that will close it. It becomes readable like this event, which
    /// is used up; closing it early is harmless.
    ///
    /// # Errors
    /// [`DescriptorError::Exhausted`] when there are no descriptors left; then the event is given back unchanged.
    pub fn detach(mut self) -> Result<OwnedFd, (FenceEvent, DescriptorError)> {
        match rustix::io::fcntl_dupfd_cloexec(&*self.fd, 0) {
            Ok(fd) => {
                self.detached = true;
                if let Some(hung) = self.hung.take() {
                    hung.leave();
                }
                Ok(fd)
            }
            Err(errno) => Err((self, DescriptorError::from_errno(WHAT, errno))),
        }
    }
}

impl Drop for FenceEvent {
    fn drop(&mut self) {
        if !self.detached {
            drop(self.writer.0.lock().take());
        }
    }
}

impl Fence {
    /// A descriptor that becomes readable once the point is complete; at once if it is.
    ///
    /// # Errors
    /// [`DescriptorError::Exhausted`] when there are no descriptors left; then nothing hangs on the fence.
    pub fn event(&self) -> Result<FenceEvent, DescriptorError> {
        FenceEvent::first_of(std::slice::from_ref(self))
    }
}

impl AnyOf {
    /// A descriptor that becomes readable once the first of the fences has signalled; at once if one has.
    ///
    /// # Errors
    /// As [`Fence::event`].
    pub fn event(&self) -> Result<FenceEvent, DescriptorError> {
        FenceEvent::first_of(self.fences())
    }
}

impl FenceSet {
    /// A descriptor that becomes readable once all of the set have signalled; at once if they have.
    ///
    /// # Errors
    /// As [`Fence::event`].
    pub fn event(&self) -> Result<FenceEvent, DescriptorError> {
        FenceEvent::last_of(self)
    }
}

impl AsFd for FenceEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for FenceEvent {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl fmt::Debug for FenceEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FenceEvent(fd {})", self.as_raw_fd())
    }
}
