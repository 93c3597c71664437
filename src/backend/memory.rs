//! A device's memory as the engines and the CPU address it.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use devpagemap_migrate::{Addr, MemoryMap, SysAddr, VramAddr};

use super::Arena;

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
}

impl DeviceMemory {
    pub(crate) fn new(
        vram: Option<Arc<dyn MemoryMap>>,
        vram_limit_bytes: u64,
        system: Arc<Arena>,
    ) -> DeviceMemory {
        DeviceMemory { vram, vram_limit_bytes, system }
    }

    /// The same system memory with another view of VRAM.
    pub fn with_vram(&self, vram: Arc<dyn MemoryMap>, vram_limit_bytes: u64) -> DeviceMemory {
        DeviceMemory { vram: Some(vram), vram_limit_bytes, system: self.system.clone() }
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

// SAFETY: VRAM pointers come from the driver's own MemoryMap, system pointers from the Arena; both are kept alive by self and
// both check bounds.
unsafe impl MemoryMap for DeviceMemory {
    fn resolve(&self, addr: Addr, len_bytes: u64) -> Option<NonNull<u8>> {
        match addr {
            Addr::System(SysAddr(offset)) => self.system.address(offset, len_bytes),
            Addr::Vram(VramAddr(offset)) => {
                let inside = offset.checked_add(len_bytes)? <= self.vram_limit_bytes;
                self.vram.as_ref().filter(|_| inside)?.resolve(addr, len_bytes)
            }
        }
    }

    fn file(&self, addr: Addr, len_bytes: u64) -> Option<(BorrowedFd<'_>, u64)> {
        self.resolve(addr, len_bytes)?;
        match addr {
            Addr::System(SysAddr(offset)) => Some((self.system.memfd(), offset)),
            Addr::Vram(_) => self.vram.as_ref()?.file(addr, len_bytes),
        }
    }
}
