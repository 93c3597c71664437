//! A dma-buf as another user of it sees it: a mapping of its descriptor.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::stranger::{Does, is_ready_within};

/// Long enough for any work here.
const FOREVER: Duration = Duration::from_secs(20);

/// All of a dma-buf, mapped until this is dropped.
pub struct Mapping {
    start: *mut u8,
    len: usize,
}

impl Mapping {
    /// Maps for reading, and for writing if asked, once the work of others on the bytes is done.
    pub fn of(fd: impl AsFd, len_bytes: u64, writable: bool) -> Result<Mapping, Errno> {
        let fd = fd.as_fd();
        let does = if writable { Does::Writes } else { Does::Reads };
        assert!(is_ready_within(fd, does, FOREVER), "a fence of the dma-buf never signals");
        Mapping::of_what_is_there(fd, len_bytes, writable)
    }

    /// Maps without a look at anybody's fences, as who does not keep the rules.
    pub fn of_what_is_there(fd: impl AsFd, len_bytes: u64, writable: bool) -> Result<Mapping, Errno> {
        let prot = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        let len = len_bytes as usize;
        // SAFETY: a new mapping at an address of the kernel's choice; nobody makes references to what is in it.
        let start = unsafe { mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, fd, 0) }?;
        Ok(Mapping { start: start.cast(), len })
    }

    /// What is there now.
    pub fn read(&self) -> Vec<u8> {
        // SAFETY: the mapping is this long. Volatile, a byte at a time, as others may write it.
        (0..self.len).map(|at| unsafe { self.start.add(at).read_volatile() }).collect()
    }

    /// Overwrites all of it.
    pub fn fill(&self, with: impl Fn(usize) -> u8) {
        for at in 0..self.len {
            // SAFETY: as in `read`; only mappings that were made for writing are filled.
            unsafe { self.start.add(at).write_volatile(with(at)) };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: what mmap returned and got.
        unsafe { munmap(self.start.cast(), self.len) }.expect("it was mapped");
    }
}
