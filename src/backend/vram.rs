//! What a software GPU has as its VRAM: a memfd of its own, or memory that it is given.

use std::ptr::NonNull;
use std::sync::Arc;

use devpagemap_migrate::{Addr, MemoryFile, MemoryMap, VramAddr};

use super::Arena;
use super::pci::{P2pAllocation, PciBar};
use crate::cpu::Caching;
use crate::error::{Error, Result};
use crate::size::Size;

/// Memory that a software GPU can have as its VRAM.
pub struct VramMemory {
    /// Its bytes, by offset in VRAM. Constant.
    map: Arc<dyn MemoryMap>,
    /// Constant.
    size: Size,
    /// How the CPU's accesses reach it. Constant.
    caching: Caching,
}

impl VramMemory {
    /// Memory of `size`, whose bytes are at offsets of VRAM from 0 on.
    pub fn new(map: Arc<dyn MemoryMap>, size: Size, caching: Caching) -> VramMemory {
        VramMemory { map, size, caching }
    }

    pub(super) fn caching(&self) -> Caching {
        self.caching
    }

    pub(super) fn size(&self) -> Size {
        self.size
    }

    /// Refuses what the loops of this processor may not touch: those of x86 take any memory, others want uncached memory to be met in
    /// aligned words.
    pub(super) fn check(&self) -> Result<()> {
        if self.caching == Caching::Uncached && !cfg!(target_arch = "x86_64") {
            return Err(Error::Unsupported {
                what: "uncached VRAM, on a processor that wants aligned accesses to it",
            });
        }
        Ok(())
    }
}

impl std::fmt::Debug for VramMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VramMemory")
            .field("size", &self.size)
            .field("caching", &self.caching)
            .finish_non_exhaustive()
    }
}

impl From<PciBar> for VramMemory {
    fn from(bar: PciBar) -> VramMemory {
        let (size, caching) = (bar.size(), bar.caching());
        VramMemory::new(Arc::new(bar), size, caching)
    }
}

impl From<P2pAllocation> for VramMemory {
    /// The kernel maps peer memory as it maps a BAR without combined writes.
    fn from(memory: P2pAllocation) -> VramMemory {
        let size = memory.size();
        VramMemory::new(Arc::new(memory), size, Caching::Uncached)
    }
}

/// A software GPU's VRAM, as large as its device was told.
pub(crate) struct SoftwareVram {
    /// Constant.
    map: Arc<dyn MemoryMap>,
    /// Constant.
    len_bytes: u64,
}

impl SoftwareVram {
    /// In a memfd.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no memory for it.
    pub(crate) fn in_memfd(len_bytes: u64) -> Result<SoftwareVram> {
        let arena = Arena::shared("devpagemap-vram", len_bytes)?;
        Ok(SoftwareVram { map: Arc::new(VramArena(arena)), len_bytes })
    }

    /// At the beginning of `memory`.
    ///
    /// # Errors
    /// [`Error::InvalidSize`] when it is smaller.
    pub(crate) fn in_memory(memory: &VramMemory, len_bytes: u64) -> Result<SoftwareVram> {
        if len_bytes > memory.size.as_bytes() {
            let why = "is more than the memory that this GPU was given";
            return Err(Error::InvalidSize { what: "VRAM", bytes: len_bytes, why });
        }
        Ok(SoftwareVram { map: memory.map.clone(), len_bytes })
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The address of `len_bytes` at `offset_bytes`; `None` when they are not all inside.
    pub(crate) fn address(&self, offset_bytes: u64, len_bytes: u64) -> Option<NonNull<u8>> {
        self.resolve(VramAddr(offset_bytes).into(), len_bytes)
    }
}

// SAFETY: what the map resolves is valid for as long as it lives, which is as long as self; less of it is so too.
unsafe impl MemoryMap for SoftwareVram {
    fn resolve(&self, addr: Addr, len_bytes: u64) -> Option<NonNull<u8>> {
        let Addr::Vram(VramAddr(offset)) = addr else { return None };
        let is_inside = offset.checked_add(len_bytes)? <= self.len_bytes;
        self.map.resolve(addr, len_bytes).filter(|_| is_inside)
    }

    fn file(&self, addr: Addr, len_bytes: u64) -> Option<(MemoryFile<'_>, u64)> {
        self.resolve(addr, len_bytes)?;
        self.map.file(addr, len_bytes)
    }
}

impl std::fmt::Debug for SoftwareVram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SoftwareVram").field("len_bytes", &self.len_bytes).finish_non_exhaustive()
    }
}

/// VRAM in a memfd.
#[derive(Debug)]
struct VramArena(Arena);

// SAFETY: Arena::address checks bounds, and the arena lives as long as self.
unsafe impl MemoryMap for VramArena {
    fn resolve(&self, addr: Addr, len_bytes: u64) -> Option<NonNull<u8>> {
        match addr {
            Addr::Vram(VramAddr(offset)) => self.0.address(offset, len_bytes),
            Addr::System(_) => None,
        }
    }

    fn file(&self, addr: Addr, len_bytes: u64) -> Option<(MemoryFile<'_>, u64)> {
        self.resolve(addr, len_bytes)?;
        Some((MemoryFile::Borrowed(self.0.memfd()), addr.offset()))
    }
}
