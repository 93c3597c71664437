//! From a descriptor to a buffer, with every check before anything changes.

use std::sync::Arc;

use crate::backend::{OutsideFile, OutsideMemory, OutsideRole};
use crate::bo::{Buffer, BufferBuilder};
use crate::client::{Client, ClientAccount};
use crate::error::{Error, Result};
use crate::import::{Here, Imported};
use crate::manager::Manager;
use crate::size::Size;
use crate::stats::Counters;

#[cfg(not(any(loom, shuttle)))]
use crate::{backend::DmaBuf, sync_file::Across};
#[cfg(not(any(loom, shuttle)))]
use devpagemap_fence::Held;

/// A file of somebody else's bytes, which has been looked at.
pub(crate) struct Foreign {
    pub(crate) file: OutsideFile,
    /// Which of all it is.
    pub(crate) inode: u64,
    pub(crate) len_bytes: u64,
    /// Whether it may be mapped for writing.
    pub(crate) writable: bool,
}

#[cfg(not(any(loom, shuttle)))]
impl From<DmaBuf> for Foreign {
    fn from(dma_buf: DmaBuf) -> Foreign {
        let (inode, len_bytes, writable) = (dma_buf.inode(), dma_buf.len_bytes(), dma_buf.is_writable());
        Foreign { file: OutsideFile::DmaBuf(Arc::new(dma_buf)), inode, len_bytes, writable }
    }
}

/// What an importer wants to do with the bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// What the descriptor permits.
    WhatIsPermitted,
    Writes,
    Reads,
}

/// Describes a buffer whose bytes are somebody else's dma-buf; made by [`Device::import`](crate::Device::import).
#[must_use = "a builder imports nothing until `create`"]
pub struct Import {
    manager: Arc<Manager>,
    client: Arc<ClientAccount>,
    source: Result<Foreign>,
    at_least: Size,
    wanted: Wanted,
    name: Option<String>,
}

impl std::fmt::Debug for Import {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Import")
            .field("name", &self.name)
            .field("at_least", &self.at_least)
            .finish_non_exhaustive()
    }
}

impl Import {
    pub(crate) fn new(manager: &Arc<Manager>, source: Result<Foreign>) -> Import {
        Import {
            manager: manager.clone(),
            client: manager.nobody.clone(),
            source,
            at_least: Size::default(),
            wanted: Wanted::WhatIsPermitted,
            name: None,
        }
    }

    /// How many bytes there have to be. The buffer has all that there are.
    pub fn at_least(self, size: Size) -> Import {
        Import { at_least: size, ..self }
    }

    /// The bytes have to be writable. Unless told otherwise they are if the descriptor permits it.
    pub fn writable(self) -> Import {
        Import { wanted: Wanted::Writes, ..self }
    }

    /// The bytes are only read, even where the descriptor permits more: whoever would write gets [`Error::ReadOnly`].
    pub fn read_only(self) -> Import {
        Import { wanted: Wanted::Reads, ..self }
    }

    /// A name for people.
    pub fn name(self, name: impl Into<String>) -> Import {
        Import { name: Some(name.into()), ..self }
    }

    /// On whose account it is; on nobody's unless told otherwise. The client must be one of this device.
    pub fn on(mut self, client: &Client) -> Import {
        match client.account_on(&self.manager) {
            Some(account) => self.client = account,
            None => self.source = Err(Error::ForeignClient { client: client.name().into() }),
        }
        self
    }

    /// Maps the dma-buf and makes a buffer of it. When this device has a buffer with these very bytes, because it has imported the same
    /// dma-buf before or because it is an export of its own, that one is returned, with its name, its account and its rights.
    ///
    /// # Errors
    /// [`Error::NotADmaBuf`], [`Error::ClosedFd`] and [`Error::NoDescriptorsLeft`] for what is no dma-buf of this process,
    /// [`Error::DmaBufTooSmall`], [`Error::DmaBufReadOnly`] for one that may only be read where it has to be
    /// [writable](Import::writable), [`Error::AlreadyImported`] when this device has it for reading only, [`Error::ForeignClient`],
    /// [`Error::ImportLimit`], [`Error::DeviceLost`], [`Error::Io`] when the system does not map it.
    pub fn create(self) -> Result<Buffer> {
        let Import { manager, client, source, at_least, wanted, name } = self;
        let foreign = source?;
        manager.check_present()?;
        let wanted_bytes = at_least.as_bytes();
        if foreign.len_bytes < wanted_bytes.max(1) {
            return Err(Error::DmaBufTooSmall {
                len_bytes: foreign.len_bytes,
                wanted_bytes: wanted_bytes.max(1),
            });
        }
        if wanted == Wanted::Writes && !foreign.writable {
            return Err(Error::DmaBufReadOnly);
        }
        let inode = foreign.inode;
        if let Some(here) = manager.known_dma_bufs.find(inode) {
            return check_known(here, wanted, wanted_bytes);
        }
        let writable = foreign.writable && wanted != Wanted::Reads;
        let keep = Box::new(client.imports().charge(foreign.len_bytes)?);
        let pages = manager.cpu.map_outside(OutsideMemory {
            file: foreign.file,
            len_bytes: foreign.len_bytes,
            writable,
            role: OutsideRole::Imported,
            keep,
        })?;
        let size = Size::bytes(foreign.len_bytes);
        let mut new = BufferBuilder::new(manager.clone(), client, size);
        if let Some(name) = name {
            new = new.name(name);
        }
        let new = new.create_in(&pages, Imported { inode, writable })?;
        #[cfg(not(any(loom, shuttle)))]
        if let Some(dma_buf) = pages.dma_buf() {
            let across = Across::new(dma_buf.clone(), &manager);
            new.0.reservation.lock(&mut Held::enter()).across = Some(across);
        }
        match manager.known_dma_bufs.enter(inode, &new)? {
            Here::Already(here) => check_known(here, wanted, wanted_bytes),
            Here::New => {
                Counters::count(&manager.counters.imports);
                tracing::debug!(buffer = new.id(), bytes = size.as_bytes(), inode, writable, "imported");
                Ok(new)
            }
        }
    }
}

/// The buffer that has these bytes already, if it will do.
fn check_known(here: Buffer, wanted: Wanted, wanted_bytes: u64) -> Result<Buffer> {
    if wanted == Wanted::Writes && here.is_read_only() {
        return Err(Error::AlreadyImported { buffer: here.id(), why: "for reading only" });
    }
    let len_bytes = here.size().as_bytes();
    if len_bytes < wanted_bytes {
        return Err(Error::DmaBufTooSmall { len_bytes, wanted_bytes });
    }
    Ok(here)
}
