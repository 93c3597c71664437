//! What of the kernel the protocol needs, so that models and tests run the protocol that ships with a kernel that they make up.

use std::any::Any;
use std::fmt;
use std::os::fd::BorrowedFd;

use crate::error::Result;
use crate::submit::Access;

/// Kernel fences in one descriptor, as many as there are; it never changes but by their signals.
pub(crate) trait SyncFile: Any + fmt::Debug + Send + Sync {
    /// The descriptor; a made-up one has none.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
}

/// The list of fences that a dma-buf has in the kernel (`dma_resv`).
pub(crate) trait ReservationObject: fmt::Debug + Send + Sync {
    /// Names it; two dma-bufs that are one have the same.
    fn key(&self) -> u64;

    /// What somebody who begins such an access now has to wait for; `None` for nothing.
    ///
    /// # Errors
    /// What the kernel says.
    fn export(&self, access: Access) -> Result<Option<Box<dyn SyncFile>>>;

    /// Whoever begins an access that does not go together with this one waits for `fences` from now on.
    ///
    /// # Errors
    /// What the kernel says; nothing has changed.
    fn import(&self, fences: &dyn SyncFile, access: Access) -> Result<()>;
}
