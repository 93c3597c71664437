//! A large mapping whose pages appear when they are first touched.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use crate::error::{Error, Result};

/// A mapping of `len_bytes`, not backed by memory until touched, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Arena {
    /// Start of the mapping. Constant.
    start: NonNull<u8>,
    /// Constant.
    len_bytes: u64,
    /// The memfd behind it, so that its pages can be mapped twice. Constant.
    memfd: OwnedFd,
}

// SAFETY: an Arena is an address and a length. Its bytes are reached only through raw pointers, and who may touch which bytes
// when is decided by the fences of the buffers that own them, on every thread alike.
unsafe impl Send for Arena {}
// SAFETY: as above; no method hands out a reference to the mapped bytes.
unsafe impl Sync for Arena {}

impl Arena {
    /// Memory behind a memfd, on huge pages where the system has them. The name is for those who look at the process.
    pub(crate) fn shared(name: &str, len_bytes: u64) -> Result<Arena> {
        let len = usize_of(len_bytes)?;
        let io = |action| move |errno: rustix::io::Errno| io_error(action, len_bytes, errno);
        let memfd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(io("create a memfd"))?;
        ftruncate(&memfd, len_bytes).map_err(io("size a memfd"))?;
        // udmabuf takes no file that could lose pages under it.
        fcntl_add_seals(&memfd, SealFlags::SHRINK).map_err(io("seal a memfd"))?;
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::NORESERVE);
        // SAFETY: a new mapping of a new memfd, at an address of the kernel's choice, aliases nothing.
        let start = unsafe { mmap(std::ptr::null_mut(), len, prot, flags, &memfd, 0) };
        let start = mapped(start, "map a memfd", len_bytes)?;
        // SAFETY: the range is the mapping just made. A refusal costs speed only.
        let _huge = unsafe { madvise(start.as_ptr().cast(), len, Advice::LinuxHugepage) };
        Ok(Arena { start, len_bytes, memfd })
    }

    /// The file with the same bytes, for mapping them a second time.
    pub(crate) fn memfd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The address of `len_bytes` at `offset_bytes`; `None` when they are not all inside.
    pub(crate) fn address(&self, offset_bytes: u64, len_bytes: u64) -> Option<NonNull<u8>> {
        let end = offset_bytes.checked_add(len_bytes)?;
        if end > self.len_bytes {
            return None;
        }
        // SAFETY: offset <= end <= len_bytes, so the result stays within the mapping that `start` begins, which lives as long
        // as self.
        Some(unsafe { self.start.add(offset_bytes as usize) })
    }

    /// Gives the memory behind these bytes back to the operating system; they read as zeros from then on, unless that
    /// refuses. The bytes must be nobody's, or new to whoever has them: the region's allocator says so.
    pub(crate) fn discard(&self, offset_bytes: u64, len_bytes: u64) -> bool {
        let Some(start) = self.address(offset_bytes, len_bytes) else { return false };
        // SAFETY: the range lies within our mapping and, by the contract above, no buffer owns a byte of it. A refusal leaves the
        // memory in use, which is correct.
        unsafe { madvise(start.as_ptr().cast(), len_bytes as usize, Advice::LinuxRemove) }.is_ok()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: start and len_bytes are what mmap returned and got; nobody keeps a pointer beyond the Arena, because every
        // user reaches it through a shared owner.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len_bytes as usize) };
        debug_assert!(unmapped.is_ok(), "unmapping an arena failed: {unmapped:?}");
    }
}

fn usize_of(len_bytes: u64) -> Result<usize> {
    // The kernel's user address space ends at 2^47 on every machine this runs on; mmap would only say EINVAL or ENOMEM.
    match usize::try_from(len_bytes) {
        Ok(len) if len > 0 => Ok(len),
        _ => Err(Error::InvalidSize {
            what: "a memory arena",
            bytes: len_bytes,
            why: "is zero or not addressable",
        }),
    }
}

fn mapped(
    result: std::result::Result<*mut std::ffi::c_void, rustix::io::Errno>,
    action: &'static str,
    len_bytes: u64,
) -> Result<NonNull<u8>> {
    let start = result.map_err(|errno| io_error(action, len_bytes, errno))?;
    NonNull::new(start.cast()).ok_or_else(|| io_error(action, len_bytes, rustix::io::Errno::NOMEM))
}

fn io_error(action: &'static str, bytes: u64, errno: rustix::io::Errno) -> Error {
    Error::Io { action, bytes, errno: errno.raw_os_error() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_outside_the_arena_does_not_exist() {
        let arena = Arena::shared("test", 8192).expect("two pages");
        assert!(arena.address(0, 8192).is_some());
        assert!(arena.address(4096, 4097).is_none());
        assert!(arena.address(u64::MAX, 2).is_none());
    }

    #[test]
    fn an_arena_that_the_system_cannot_map_is_an_error_with_its_size() {
        let error = Arena::shared("none", 1 << 62).expect_err("no machine maps 4 EiB");
        assert!(error.to_string().contains(&(1u64 << 62).to_string()), "{error}");
        assert!(Arena::shared("none", 0).is_err());
    }

    #[test]
    fn discarded_pages_read_as_zeros() {
        let arena = Arena::shared("test", 8192).expect("two pages");
        let byte = arena.address(4096, 1).expect("inside");
        // SAFETY: one byte inside the arena, which only this test uses.
        unsafe { byte.write(7) };
        assert!(arena.discard(4096, 4096));
        // SAFETY: as above.
        assert_eq!(unsafe { byte.read() }, 0);
    }
}
