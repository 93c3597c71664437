//! `linux/udmabuf.h`: pages of a memfd as a dma-buf.

use std::ffi::{c_int, c_void};
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::ioctl::{self, Opcode, opcode};

/// The device.
pub(crate) const PATH: &str = "/dev/udmabuf";
/// The group of its calls.
const GROUP: u8 = b'u';
/// `UDMABUF_FLAGS_CLOEXEC`.
const CLOEXEC: u32 = 1;

/// `struct udmabuf_create_item`: whole pages of a memfd.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Item {
    memfd: u32,
    pad: u32,
    offset: u64,
    size: u64,
}

/// The fixed part of `struct udmabuf_create_list`; the items follow.
#[repr(C)]
struct ListHead {
    flags: u32,
    count: u32,
}

const CREATE_LIST: Opcode = opcode::write::<ListHead>(GROUP, 0x43);

const _: () = assert!(size_of::<Item>() == 24 && size_of::<ListHead>() == 8);
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
const _: () = assert!(CREATE_LIST == 0x4008_7543);

/// A list as the kernel wants it: the head, then the items, in one block of memory that is aligned for both.
struct List(Vec<u64>);

impl List {
    fn new(memfd: RawFd, runs: &[(u64, u64)]) -> List {
        let count = runs.len() as u64;
        let mut words = Vec::with_capacity(1 + 3 * runs.len());
        // Two 32-bit fields a word; which comes first in memory is the machine's byte order.
        let pair = |first: u32, second: u32| {
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&first.to_ne_bytes());
            bytes[4..].copy_from_slice(&second.to_ne_bytes());
            u64::from_ne_bytes(bytes)
        };
        words.push(pair(CLOEXEC, count as u32));
        for (offset, size) in runs {
            words.extend([pair(memfd as u32, 0), *offset, *size]);
        }
        List(words)
    }
}

// SAFETY: the number is UDMABUF_CREATE_LIST, whose argument is the address of a head and as many items as that says: `List::new`. It
// returns a descriptor or an error, and keeps nothing of the list.
unsafe impl ioctl::Ioctl for List {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        CREATE_LIST
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.0.as_mut_ptr().cast()
    }

    unsafe fn output_from_ptr(out: ioctl::IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
        let fd: c_int = out;
        // SAFETY: the call succeeded, so what it returned is a new descriptor of this process that nobody else has.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// A dma-buf of these runs (offset and length in bytes, whole pages) of a memfd, one after the other. It keeps the pages, whatever becomes of
/// the memfd.
///
/// # Errors
/// `EINVAL` unless the memfd is sealed against shrinking (and not against writing), for too many runs or too many bytes
/// (`/sys/module/udmabuf/parameters`), and for runs that are not whole pages of it; `EMFILE` with a full table of descriptors.
pub(crate) fn create(
    device: BorrowedFd<'_>,
    memfd: BorrowedFd<'_>,
    runs: &[(u64, u64)],
) -> Result<OwnedFd, Errno> {
    // SAFETY: see the implementation of Ioctl; `memfd` and `runs` are checked by the kernel.
    unsafe { ioctl::ioctl(device, List::new(memfd.as_raw_fd(), runs)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_laid_out_as_the_header_says() {
        let list = List::new(7, &[(4096, 8192), (65536, 4096)]);
        let bytes: Vec<u8> = list.0.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(bytes.len(), 8 + 2 * size_of::<Item>());
        let u32_at = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        assert_eq!((u32_at(0), u32_at(4)), (CLOEXEC, 2));
        assert_eq!((u32_at(8), u32_at(12), u64_at(16), u64_at(24)), (7, 0, 4096, 8192));
        assert_eq!((u32_at(32), u32_at(36), u64_at(40), u64_at(48)), (7, 0, 65536, 4096));
    }
}
