//! `linux/dma-heap.h`: dma-bufs from the kernel's heaps.

use std::mem::size_of;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::ioctl::{self, Opcode, opcode};

/// Where heaps are, one device each.
pub(crate) const DIR: &str = "/dev/dma_heap";
/// The heap of ordinary memory.
pub(crate) const SYSTEM: &str = "system";
/// `DMA_HEAP_IOC_MAGIC`, the group of its calls.
const GROUP: u8 = b'H';

/// `struct dma_heap_allocation_data`.
#[repr(C)]
struct Allocation {
    len: u64,
    fd: u32,
    fd_flags: u32,
    heap_flags: u64,
}

const ALLOC: Opcode = opcode::read_write::<Allocation>(GROUP, 0);

const _: () = assert!(size_of::<Allocation>() == 24);
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
const _: () = assert!(ALLOC == 0xc018_4800);

/// A new dma-buf of `len_bytes`, zeroed, that may be mapped for reading or for both.
///
/// # Errors
/// `ENOMEM`, `EINVAL` for a length of 0, `EMFILE` with a full table of descriptors.
pub(crate) fn alloc(heap: BorrowedFd<'_>, len_bytes: u64, writable: bool) -> Result<OwnedFd, Errno> {
    let access = if writable { OFlags::RDWR } else { OFlags::RDONLY };
    let fd_flags = (access | OFlags::CLOEXEC).bits();
    let mut argument = Allocation { len: len_bytes, fd: 0, fd_flags, heap_flags: 0 };
    // SAFETY: ALLOC is DMA_HEAP_IOCTL_ALLOC, which reads and writes its struct: pinned above.
    unsafe { ioctl::ioctl(heap, ioctl::Updater::<ALLOC, _>::new(&mut argument)) }?;
    // SAFETY: the call succeeded, so `fd` is a new descriptor of this process that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(argument.fd as i32) })
}
