//! Addresses of this process that lead to a device's memory.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

/// A mapping of a file that stands for memory on the bus; unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapped {
    /// Constant.
    start: NonNull<u8>,
    /// Constant.
    len: usize,
}

// SAFETY: a Mapped is an address and a length. Its bytes are reached through raw pointers only, and who may touch which when is
// decided by the fences of the buffers that own them, on every thread alike.
unsafe impl Send for Mapped {}
// SAFETY: as above; no method hands out a reference to the mapped bytes.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps the first `len_bytes` of a file. A forked child does not have them.
    pub(super) fn new(file: BorrowedFd<'_>, len_bytes: u64) -> Result<Mapped, Errno> {
        let len = usize::try_from(len_bytes).map_err(|_| Errno::NOMEM)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing of this process's memory.
        let start = unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, file, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(Errno::NOMEM)?;
        let mapped = Mapped { start, len };
        // SAFETY: the range is the mapping just made; the advice changes nothing in this process.
        let kept = unsafe { madvise(start.as_ptr().cast(), len, Advice::LinuxDontFork) };
        debug_assert!(kept.is_ok(), "a whole mapping can be kept from children: {kept:?}");
        Ok(mapped)
    }

    pub(super) fn len_bytes(&self) -> u64 {
        self.len as u64
    }

    /// The address of `len_bytes` at `offset_bytes`; `None` when they are not all inside.
    pub(super) fn address(&self, offset_bytes: u64, len_bytes: u64) -> Option<NonNull<u8>> {
        let end = offset_bytes.checked_add(len_bytes)?;
        if end > self.len_bytes() {
            return None;
        }
        // SAFETY: offset <= end <= len, so the result stays within the mapping, which lives as long as self.
        Some(unsafe { self.start.add(offset_bytes as usize) })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: start and len are what mmap returned and got; whoever resolved an address keeps the map's owner.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "unmapping a device's memory failed: {unmapped:?}");
    }
}
