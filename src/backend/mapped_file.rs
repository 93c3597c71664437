//! Addresses of this process that lead to the bytes of a file.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

/// A part of a file, mapped and shared with all others who have the file; unmapped when dropped. It needs the file no longer.
#[derive(Debug)]
pub(super) struct MappedFile {
    /// Constant.
    start: NonNull<u8>,
    /// Constant.
    len: usize,
}

// SAFETY: a MappedFile is an address and a length. Its bytes are reached through raw pointers only, and who may touch which when is
// for its owner to say (of buffers' bytes their fences do), on every thread alike.
unsafe impl Send for MappedFile {}
// SAFETY: as above; no method hands out a reference to the mapped bytes.
unsafe impl Sync for MappedFile {}

impl MappedFile {
    /// Maps `len_bytes` of a file from `offset_bytes` on, which is a multiple of a page.
    pub(super) fn new(
        file: BorrowedFd<'_>,
        offset_bytes: u64,
        len_bytes: u64,
        protection: ProtFlags,
    ) -> Result<MappedFile, Errno> {
        let len = usize::try_from(len_bytes).map_err(|_| Errno::NOMEM)?;
        // SAFETY: a new mapping at an address of the kernel's choice takes the place of no other. The same bytes may be mapped elsewhere
        // too, here and in other processes, which is why nobody makes a reference to them.
        let start =
            unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, file, offset_bytes) }?;
        let start = NonNull::new(start.cast()).ok_or(Errno::NOMEM)?;
        Ok(MappedFile { start, len })
    }

    pub(super) fn len_bytes(&self) -> u64 {
        self.len as u64
    }

    /// The address of `len_bytes` at `offset_bytes` of what is mapped; `None` when they are not all inside.
    pub(super) fn address(&self, offset_bytes: u64, len_bytes: u64) -> Option<NonNull<u8>> {
        let end = offset_bytes.checked_add(len_bytes)?;
        if end > self.len_bytes() {
            return None;
        }
        // SAFETY: offset <= end <= len, so the result stays within the mapping that `start` begins, which lives as long as self.
        Some(unsafe { self.start.add(offset_bytes as usize) })
    }

    /// Says how these bytes are used. `EINVAL` when they are not all inside.
    ///
    /// # Safety
    /// Whoever has the bytes agrees to what the advice does to them.
    pub(super) unsafe fn advise(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        advice: Advice,
    ) -> Result<(), Errno> {
        let start = self.address(offset_bytes, len_bytes).ok_or(Errno::INVAL)?;
        // SAFETY: the range lies within our mapping, and the caller vouches for the rest.
        unsafe { madvise(start.as_ptr().cast(), len_bytes as usize, advice) }
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        // SAFETY: start and len are what mmap returned and got. Whoever has resolved an address keeps an owner of this, or is done before
        // the last one lets go.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "unmapping a file failed: {unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::io::pwrite;

    use super::*;

    const PAGE: u64 = 4096;

    #[test]
    fn a_mapping_begins_at_its_offset_and_does_not_need_its_file() {
        let file = memfd_create("mapped-file", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&file, 3 * PAGE).expect("it grows");
        pwrite(&file, b"ab", 2 * PAGE - 1).expect("it is as long");
        let mapped = MappedFile::new(file.as_fd(), PAGE, 2 * PAGE, ProtFlags::READ).expect("two pages");
        drop(file);
        let at = mapped.address(PAGE - 1, 2).expect("inside").cast::<[u8; 2]>();
        // SAFETY: two bytes inside the mapping, which nobody writes any more.
        assert_eq!(unsafe { at.read_unaligned() }, *b"ab");
    }

    #[test]
    fn what_is_not_all_inside_has_no_address_and_takes_no_advice() {
        let file = memfd_create("mapped-file", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&file, 2 * PAGE).expect("it grows");
        let mapped = MappedFile::new(file.as_fd(), 0, 2 * PAGE, ProtFlags::READ).expect("two pages");
        assert!(mapped.address(0, 2 * PAGE).is_some() && mapped.address(2 * PAGE, 0).is_some());
        for (offset, len) in [(0, 2 * PAGE + 1), (PAGE, PAGE + 1), (3 * PAGE, 0), (u64::MAX, 2)] {
            assert!(mapped.address(offset, len).is_none(), "{len} bytes at {offset}");
            // SAFETY: it changes no bytes.
            let advised = unsafe { mapped.advise(offset, len, Advice::Normal) };
            assert_eq!(advised, Err(Errno::INVAL), "{len} bytes at {offset}");
        }
    }
}
