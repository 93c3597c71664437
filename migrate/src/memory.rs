//! Where a software engine finds the bytes behind an address.

use crate::address::{Addr, Space};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

/// Translates addresses to memory of this process.
///
/// # Safety
/// What [`resolve`](Self::resolve) returned must be valid for reads and writes of `len_bytes` from any thread through raw
/// pointers for as long as the map lives and the bytes belong to somebody, and no Rust reference to those bytes may exist
/// while a move covers them. Bytes may be mapped for reading only where their owner lets nobody write them.
///
/// Whoever queues moves over the map owns the bytes that they touch, or acts for their owner, until the fences of those moves have
/// signalled; and orders, by fences, moves (and other accesses) that touch the same bytes. So an engine may use what it has
/// resolved for a chunk until it has answered for it.
pub unsafe trait MemoryMap: Send + Sync {
    /// The memory of the `len_bytes` bytes from `addr` on; `None` when they are not all there, or not contiguous.
    fn resolve(&self, addr: Addr, len_bytes: u64) -> Option<NonNull<u8>>;

    /// The file that holds the same bytes and the offset in it, for memory that can be mapped a second time. Without it the
    /// bytes have no other address than the one they resolve to.
    fn file(&self, addr: Addr, len_bytes: u64) -> Option<(MemoryFile<'_>, u64)> {
        let _ = (addr, len_bytes);
        None
    }
}

/// A file that bytes can be mapped from.
pub enum MemoryFile<'a> {
    /// One that stays open as long as the map.
    Borrowed(BorrowedFd<'a>),
    /// One that may be closed when the bytes belong to nobody any more.
    Shared(Arc<dyn AsFd + Send + Sync>),
}

impl AsFd for MemoryFile<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            MemoryFile::Borrowed(file) => *file,
            MemoryFile::Shared(file) => file.as_fd(),
        }
    }
}

impl fmt::Debug for MemoryFile<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_fd().fmt(f)
    }
}

/// Memory of this process that stands in for a device's, one block a space, zeroed at first.
///
/// As with a device's memory, whoever reads or writes it waits for the fences of the moves that touch those bytes.
pub struct HeapMemory {
    vram: Block,
    system: Block,
}

impl HeapMemory {
    /// Blocks of these sizes, aligned to 4 KiB.
    pub fn new(vram_bytes: usize, system_bytes: usize) -> Arc<HeapMemory> {
        Arc::new(HeapMemory { vram: Block::new(vram_bytes), system: Block::new(system_bytes) })
    }

    /// Copies `bytes` to `addr`.
    ///
    /// # Panics
    /// When they do not fit there.
    pub fn write(&self, addr: Addr, bytes: &[u8]) {
        let at = self.resolve(addr, bytes.len() as u64).expect("the bytes fit behind the address");
        // SAFETY: resolve vouches for the destination, which the heap keeps apart from the caller's slice.
        unsafe { at.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Copies `len_bytes` bytes from `addr`.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn read(&self, addr: Addr, len_bytes: usize) -> Vec<u8> {
        let at = self.resolve(addr, len_bytes as u64).expect("the bytes lie behind the address");
        let mut bytes = vec![0; len_bytes];
        // SAFETY: resolve vouches for the source; the vector is new.
        unsafe { at.as_ptr().copy_to_nonoverlapping(bytes.as_mut_ptr(), len_bytes) };
        bytes
    }
}

// SAFETY: a resolved range lies within a block, which lives as long as this does and to which only raw pointers are
// made.
unsafe impl MemoryMap for HeapMemory {
    fn resolve(&self, addr: Addr, len_bytes: u64) -> Option<NonNull<u8>> {
        let block = match addr.space() {
            Space::Vram => &self.vram,
            Space::System => &self.system,
        };
        let end = addr.offset().checked_add(len_bytes)?;
        if end > block.layout.size() as u64 {
            return None;
        }
        // SAFETY: the offset lies within the block, or one past its end.
        Some(unsafe { block.start.add(usize::try_from(addr.offset()).ok()?) })
    }
}

impl fmt::Debug for HeapMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HeapMemory(vram {}, system {})", self.vram.layout.size(), self.system.layout.size())
    }
}

struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a block is plain memory; who uses it from several threads keeps the map's promises.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    fn new(len_bytes: usize) -> Block {
        let layout = Layout::from_size_align(len_bytes.max(1), 4096).expect("a block fits the address space");
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(layout) };
        Block { start: NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout)), layout }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`, freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}
