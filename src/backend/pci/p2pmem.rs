//! Peer memory: pages of a BAR that the kernel gives out (`PCI_P2PDMA`), such as the controller memory buffer of an NVMe drive.
//!
//! Unlike a BAR that is mapped as it is, such memory has pages, so system calls take it, O_DIRECT too: the drive then reads and writes the
//! other device's memory over the bus. The kernel checks the way between the two itself and refuses (`EREMOTEIO`) what it does not know
//! to work.
//!
//! Each mapping of `p2pmem/allocate` is an allocation of its own. So the bytes have one address and no second one: CPU maps of buffers
//! in it are served from system memory.

use std::fmt;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;
use std::ptr::NonNull;

use devpagemap_allocator::PAGE_BYTES;
use devpagemap_migrate::{Addr, MemoryMap, VramAddr, copy};
use rustix::io::Errno;

use super::function::{Function, map_memory};
use crate::backend::mapped_file::MappedFile;
use crate::error::{Error, Result};
use crate::pagemap::{Owner, Pagemap, PagemapSpec, Registry};
use crate::size::Size;
use crate::topology::PciAddress;

/// The peer memory of one PCI function.
#[derive(Debug)]
pub struct P2pMemory {
    /// Constant.
    function: Function,
    /// Constant.
    size_bytes: u64,
}

impl P2pMemory {
    /// The peer memory of the function at `address`.
    ///
    /// # Errors
    /// [`Error::NotUsable`] when there is no such device, or it gives out no memory.
    pub fn open(address: PciAddress) -> Result<P2pMemory> {
        P2pMemory::open_in(Path::new("/"), address)
    }

    /// As [`open`](P2pMemory::open), in a saved tree that has `sys` in it.
    ///
    /// # Errors
    /// As [`open`](P2pMemory::open).
    pub fn open_in(root: &Path, address: PciAddress) -> Result<P2pMemory> {
        let function = Function::find(root, address)?;
        let size = function.attribute("p2pmem/size").and_then(|size| size.parse().ok());
        match size.filter(|size_bytes| *size_bytes >= PAGE_BYTES) {
            Some(size_bytes) => Ok(P2pMemory { function, size_bytes }),
            None => Err(Error::not_usable(
                format_args!("peer memory of {address}"),
                "there is none: its driver gives out none, or the kernel has no PCI_P2PDMA",
            )),
        }
    }

    /// Whose it is.
    pub fn address(&self) -> PciAddress {
        self.function.address
    }

    /// All of it, in use or not.
    pub fn size(&self) -> Size {
        Size::bytes(self.size_bytes)
    }

    /// How much nobody uses now. The driver itself may use some.
    pub fn available(&self) -> Size {
        let available = self.function.attribute("p2pmem/available").and_then(|bytes| bytes.parse().ok());
        Size::bytes(available.unwrap_or(0))
    }

    /// Whether drivers of other devices are told of it.
    pub fn is_published(&self) -> bool {
        self.function.attribute("p2pmem/published").is_some_and(|published| published == "1")
    }

    /// Takes `size` of it, in whole pages and in one piece, until the result is dropped.
    ///
    /// # Errors
    /// [`Error::InvalidSize`], [`Error::NoRights`], [`Error::NotUsable`] when there is not so much left.
    pub fn allocate(&self, size: Size) -> Result<P2pAllocation> {
        let bytes = size.as_bytes();
        if bytes == 0 || !bytes.is_multiple_of(PAGE_BYTES) {
            let (what, why) = ("peer memory", "is not a positive number of whole 4096-byte pages");
            return Err(Error::InvalidSize { what, bytes, why });
        }
        let file = self.function.open("p2pmem/allocate", "allocate peer memory")?;
        let mapped = map_memory(file.as_fd(), bytes).map_err(|errno| match errno {
            Errno::NOMEM => {
                let why = format!("{bytes} bytes are wanted in one piece, and {} are left", self.available());
                Error::not_usable(format_args!("peer memory of {}", self.address()), why)
            }
            errno => Error::io("map peer memory", bytes, errno),
        })?;
        Ok(P2pAllocation { address: self.address(), mapped })
    }

    /// Has this memory join a registry as a pagemap of its function's, to be asked who reaches it.
    ///
    /// # Errors
    /// [`Error::RegistryFull`].
    pub fn join(&self, registry: &Registry) -> Result<Pagemap> {
        let owner = Owner::at(self.address());
        registry.join_pagemap(PagemapSpec::visible(&owner).len(self.size()))
    }
}

/// Some of a function's peer memory; given back when dropped. A software GPU can have it as
/// [its VRAM](crate::SoftwareGpuBuilder::vram_in).
pub struct P2pAllocation {
    /// Constant.
    address: PciAddress,
    /// Constant.
    mapped: MappedFile,
}

impl P2pAllocation {
    /// Whose memory it is.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// How much it is.
    pub fn size(&self) -> Size {
        Size::bytes(self.mapped.len_bytes())
    }

    /// Copies bytes out of it, with the CPU.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`].
    pub fn read(&self, offset_bytes: u64, into: &mut [u8]) -> Result<()> {
        let (start, len) = self.piece(&(offset_bytes..offset_bytes.saturating_add(into.len() as u64)))?;
        // SAFETY: `piece` found so many bytes within the mapping, to which no reference exists; `into` is memory of the caller's.
        unsafe { copy::copy(into.as_mut_ptr(), start.as_ptr(), len) };
        Ok(())
    }

    /// Copies bytes into it, with the CPU.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`].
    pub fn write(&self, offset_bytes: u64, from: &[u8]) -> Result<()> {
        let (start, len) = self.piece(&(offset_bytes..offset_bytes.saturating_add(from.len() as u64)))?;
        // SAFETY: as in read.
        unsafe { copy::copy(start.as_ptr(), from.as_ptr(), len) };
        copy::publish();
        Ok(())
    }

    /// Where bytes of it are mapped.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`].
    pub(super) fn piece(&self, range: &Range<u64>) -> Result<(NonNull<u8>, usize)> {
        let len_bytes = range.end.saturating_sub(range.start);
        let start = self.mapped.address(range.start, len_bytes);
        let start = start.ok_or(Error::OutOfBounds {
            offset_bytes: range.start,
            len_bytes,
            size_bytes: self.mapped.len_bytes(),
        })?;
        Ok((start, len_bytes as usize))
    }
}

// SAFETY: MappedFile checks bounds, and lives as long as self. The kernel gives these pages to nobody else meanwhile.
unsafe impl MemoryMap for P2pAllocation {
    fn resolve(&self, addr: Addr, len_bytes: u64) -> Option<NonNull<u8>> {
        match addr {
            Addr::Vram(VramAddr(offset)) => self.mapped.address(offset, len_bytes),
            Addr::System(_) => None,
        }
    }
}

impl fmt::Debug for P2pAllocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("P2pAllocation")
            .field("address", &self.address)
            .field("size", &self.size())
            .finish_non_exhaustive()
    }
}
