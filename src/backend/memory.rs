//! A device's memory as the engines and the CPU address it.

use std::ptr::NonNull;
use std::sync::Arc;

use devpagemap_fence::FenceSet;
use devpagemap_migrate::{Addr, MemoryFile, MemoryMap, SysAddr, VramAddr};

use super::Arena;
use super::outside::{OutsideMemory, OutsidePages, OutsideRole, OutsideTable};
use crate::error::Result;

/// All memory of one device: its VRAM as far as the holder may see it, and its system memory.
///
/// The CPU's view ends where the visible prefix of VRAM ends; an engine's view has all of it.
#[derive(Clone)]
pub struct DeviceMemory {
    /// Who maps VRAM; `None` when the holder sees none of it. Constant.
    vram: Option<Arc<dyn MemoryMap>>,
    /// How much of VRAM this view may touch. Constant.
    vram_limit_bytes: u64,
    /// System memory. Constant.
    system: Arc<Arena>,
    /// System memory that is not the arena's, behind its end. Its own lock.
    outside: Arc<OutsideTable>,
}

impl DeviceMemory {
    pub(crate) fn new(
        vram: Option<Arc<dyn MemoryMap>>,
        vram_limit_bytes: u64,
        system: Arc<Arena>,
    ) -> DeviceMemory {
        let outside = OutsideTable::behind(system.len_bytes());
        DeviceMemory { vram, vram_limit_bytes, system, outside }
    }

    /// The same system memory with another view of VRAM.
    pub fn with_vram(&self, vram: Arc<dyn MemoryMap>, vram_limit_bytes: u64) -> DeviceMemory {
        let DeviceMemory { system, outside, .. } = self.clone();
        DeviceMemory { vram: Some(vram), vram_limit_bytes, system, outside }
    }

    /// Maps pages that are not the arena's, for this and every other view of the device's memory.
    ///
    /// # Errors
    /// [`Error::InvalidSize`](crate::Error::InvalidSize), [`Error::Io`](crate::Error::Io).
    pub(crate) fn map_outside(&self, memory: OutsideMemory) -> Result<Arc<OutsidePages>> {
        self.outside.map(memory)
    }

    /// A buffer has left such pages, and uses them until `fences` have signalled. Then nobody resolves their addresses any more.
    pub(crate) fn retire_outside(&self, pages: Arc<OutsidePages>, fences: FenceSet) {
        self.outside.retire(pages, fences);
    }

    /// Unmaps what has no more users but is still mapped, as a callback is late.
    pub(crate) fn reap_signalled(&self) {
        self.outside.reap_signalled();
    }

    /// How many bytes of such pages are mapped now.
    pub(crate) fn outside_bytes(&self, role: OutsideRole) -> u64 {
        self.outside.mapped_bytes(role)
    }
}

impl std::fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceMemory")
            .field("vram_limit_bytes", &self.vram_limit_bytes)
            .field("system_bytes", &self.system.len_bytes())
            .finish()
    }
}

// SAFETY: VRAM pointers come from the driver's own MemoryMap, system pointers from the Arena, both kept alive by self, or from outside
// pages, which are unmapped when nobody owns their bytes any more: who owns them gives them back behind the fences of all who use
// them. Those that are mapped for reading only belong to buffers that refuse whoever would write. All check bounds.
unsafe impl MemoryMap for DeviceMemory {
    fn resolve(&self, addr: Addr, len_bytes: u64) -> Option<NonNull<u8>> {
        match addr {
            Addr::System(SysAddr(offset)) => {
                self.system.address(offset, len_bytes).or_else(|| self.outside.address(offset, len_bytes))
            }
            Addr::Vram(VramAddr(offset)) => {
                let inside = offset.checked_add(len_bytes)? <= self.vram_limit_bytes;
                self.vram.as_ref().filter(|_| inside)?.resolve(addr, len_bytes)
            }
        }
    }

    fn file(&self, addr: Addr, len_bytes: u64) -> Option<(MemoryFile<'_>, u64)> {
        match addr {
            Addr::System(SysAddr(offset)) => match self.system.address(offset, len_bytes) {
                Some(_) => Some((MemoryFile::Borrowed(self.system.memfd()), offset)),
                None => self.outside.file(offset, len_bytes),
            },
            Addr::Vram(_) => {
                self.resolve(addr, len_bytes)?;
                self.vram.as_ref()?.file(addr, len_bytes)
            }
        }
    }
}
