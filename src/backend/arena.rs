//! A large mapping whose pages appear when they are first touched.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{Advice, ProtFlags};

use super::mapped_file::MappedFile;
use crate::error::{Error, Result};

/// A mapping of `len_bytes`, not backed by memory until touched, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Arena {
    /// Constant.
    mapped: MappedFile,
    /// The memfd behind it, so that its pages can be mapped twice. Constant.
    memfd: OwnedFd,
}

impl Arena {
    /// Memory behind a memfd, on huge pages where the system has them. The name is for those who look at the process.
    pub(crate) fn shared(name: &str, len_bytes: u64) -> Result<Arena> {
        // mmap would only say EINVAL or ENOMEM.
        if len_bytes == 0 || usize::try_from(len_bytes).is_err() {
            let (what, why) = ("a memory arena", "is zero or not addressable");
            return Err(Error::InvalidSize { what, bytes: len_bytes, why });
        }
        let io = |action| move |errno: Errno| Error::io(action, len_bytes, errno);
        let memfd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(io("create a memfd"))?;
        ftruncate(&memfd, len_bytes).map_err(io("size a memfd"))?;
        // udmabuf takes no file that could lose pages under it.
        fcntl_add_seals(&memfd, SealFlags::SHRINK).map_err(io("seal a memfd"))?;
        let mapped = MappedFile::new(memfd.as_fd(), 0, len_bytes, ProtFlags::READ | ProtFlags::WRITE)
            .map_err(io("map a memfd"))?;
        // SAFETY: the advice changes no bytes. A refusal costs speed only.
        let _huge = unsafe { mapped.advise(0, len_bytes, Advice::LinuxHugepage) };
        Ok(Arena { mapped, memfd })
    }

    /// The file with the same bytes, for mapping them a second time.
    pub(crate) fn memfd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        self.mapped.len_bytes()
    }

    /// The address of `len_bytes` at `offset_bytes`; `None` when they are not all inside.
    pub(crate) fn address(&self, offset_bytes: u64, len_bytes: u64) -> Option<NonNull<u8>> {
        self.mapped.address(offset_bytes, len_bytes)
    }

    /// Gives the memory behind these bytes back to the operating system; they read as zeros from then on, unless that
    /// refuses. The bytes must be nobody's, or new to whoever has them: the region's allocator says so.
    pub(crate) fn discard(&self, offset_bytes: u64, len_bytes: u64) -> bool {
        // SAFETY: by the contract above no buffer has bytes there that it wants to keep. A refusal leaves the memory in use, which is
        // correct.
        unsafe { self.mapped.advise(offset_bytes, len_bytes, Advice::LinuxRemove) }.is_ok()
    }
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
