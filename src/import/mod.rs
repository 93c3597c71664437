//! Importing: a buffer whose bytes are somebody else's dma-buf.
//!
//! Nothing is copied: the dma-buf is mapped, and the buffer is in its pages from the beginning and for good, because somebody else
//! uses them where they are. So it is like a buffer in GTT that is pinned: jobs use it there, evictions pass by, importers of this
//! device's buffers see system memory. What it does not share with one is whose the bytes are. They are never cleared, never given to
//! another buffer, and counted apart, for the device and for each client ([`Client::set_import_limit`](crate::Client::set_import_limit)).
//!
//! **One dma-buf, one buffer.** The kernel gives each dma-buf a number of its own, as inode. Who imports one that this device knows gets
//! the buffer that is there: two buffers for the same bytes would each order their users by fences of which the other knows nothing.
//! `known.rs` keeps these numbers.

mod budget;
mod builder;
mod known;
#[cfg(any(loom, shuttle))]
mod model;
#[cfg(test)]
mod tests;

pub use builder::Import;

pub(crate) use budget::ImportBudget;
pub(crate) use builder::Foreign;
pub(crate) use known::{Here, KnownDmaBufs};

use crate::bo::{Buffer, BufferObject};
use crate::error::{Error, Result};
use crate::submit::Access;

/// What a buffer whose bytes are somebody else's keeps of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Imported {
    /// Which dma-buf it is. Constant.
    pub(crate) inode: u64,
    /// Whether it may be written. Constant.
    pub(crate) writable: bool,
}

impl BufferObject {
    /// # Errors
    /// [`Error::ReadOnly`] for a buffer whose bytes may not be written.
    pub(crate) fn check_writable(&self) -> Result<()> {
        match self.imported {
            Some(Imported { writable: false, .. }) => Err(Error::ReadOnly { buffer: self.id() }),
            _ => Ok(()),
        }
    }

    /// # Errors
    /// [`Error::ReadOnly`] for a write to a buffer whose bytes may not be written.
    pub(crate) fn check_permits(&self, access: Access) -> Result<()> {
        match access {
            Access::Read => Ok(()),
            Access::Write => self.check_writable(),
        }
    }
}

impl Buffer {
    /// Whether its bytes are somebody else's dma-buf.
    pub fn is_imported(&self) -> bool {
        self.0.imported.is_some()
    }

    /// Whether its bytes may only be read: it was imported so.
    pub fn is_read_only(&self) -> bool {
        self.0.check_writable().is_err()
    }
}
