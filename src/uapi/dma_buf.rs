//! `linux/dma-buf.h`: what any dma-buf can be asked, whoever exported it.

use std::ffi::{CStr, c_int};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::ioctl::{self, Opcode, opcode};

/// `DMA_BUF_BASE`, the group of its calls.
const GROUP: u8 = b'b';
/// `DMA_BUF_SYNC_READ` and `DMA_BUF_SYNC_WRITE`.
const READ: u32 = 1;
const WRITE: u32 = 2;
/// `DMA_BUF_SYNC_END`.
const END: u64 = 4;
/// `DMA_BUF_NAME_LEN`, its closing zero included.
pub(crate) const NAME_BYTES: usize = 32;

/// `struct dma_buf_sync`.
#[repr(C)]
struct Sync {
    flags: u64,
}

/// `struct dma_buf_export_sync_file` and `struct dma_buf_import_sync_file`, which are laid out alike.
#[repr(C)]
struct SyncFile {
    flags: u32,
    fd: c_int,
}

const SYNC: Opcode = opcode::write::<Sync>(GROUP, 0);
/// `DMA_BUF_SET_NAME_B`.
const SET_NAME: Opcode = opcode::write::<u64>(GROUP, 1);
const EXPORT_SYNC_FILE: Opcode = opcode::read_write::<SyncFile>(GROUP, 2);
const IMPORT_SYNC_FILE: Opcode = opcode::write::<SyncFile>(GROUP, 3);

const _: () = assert!(size_of::<Sync>() == 8 && size_of::<SyncFile>() == 8);
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
const _: () = assert!(
    SYNC == 0x4008_6200
        && SET_NAME == 0x4008_6201
        && EXPORT_SYNC_FILE == 0xc008_6202
        && IMPORT_SYNC_FILE == 0x4008_6203
);

/// What is done with a dma-buf's bytes, and so, which fences it has to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Waits for writers.
    Read,
    /// Waits for writers and readers.
    Write,
}

impl Use {
    fn flags(self) -> u32 {
        match self {
            Use::Read => READ,
            Use::Write => READ | WRITE,
        }
    }
}

/// The CPU begins to use the bytes of a mapping. The kernel waits here for fences that are not signalled.
///
/// # Errors
/// What the kernel says; `EINTR` and `EAGAIN` ask for another try.
pub(crate) fn begin_cpu_access(dma_buf: BorrowedFd<'_>, how: Use) -> Result<(), Errno> {
    sync(dma_buf, u64::from(how.flags()))
}

/// The CPU has used them.
///
/// # Errors
/// What the kernel says.
pub(crate) fn end_cpu_access(dma_buf: BorrowedFd<'_>, how: Use) -> Result<(), Errno> {
    sync(dma_buf, u64::from(how.flags()) | END)
}

fn sync(dma_buf: BorrowedFd<'_>, flags: u64) -> Result<(), Errno> {
    rustix::io::retry_on_intr(|| {
        // SAFETY: SYNC is DMA_BUF_IOCTL_SYNC, which reads a `struct dma_buf_sync`: pinned above.
        unsafe { ioctl::ioctl(dma_buf, ioctl::Setter::<SYNC, _>::new(Sync { flags })) }
    })
}

/// Gives it a name for people: it stands in `fdinfo` and in the kernel's list of dma-bufs.
///
/// # Errors
/// `EINVAL` for a name longer than 31 bytes (and, before 5.13, for one with importers: `EBUSY`).
pub(crate) fn set_name(dma_buf: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    // SAFETY: SET_NAME is DMA_BUF_SET_NAME, whose argument is the address of a string that ends with a zero, which it reads up to
    // NAME_BYTES of and does not keep; IntegerSetter passes the address as it is.
    unsafe {
        ioctl::ioctl(dma_buf, ioctl::IntegerSetter::<SET_NAME>::new_pointer(name.as_ptr().cast_mut().cast()))
    }
}

/// A sync_file of all fences that are in the dma-buf at the time of the call and that a `how` of the bytes has to wait for. Its signal is what
/// poll waits for: `POLLIN` for a reader, `POLLOUT` for a writer.
///
/// # Errors
/// `ENOTTY` before Linux 6.0, `EMFILE` with a full table of descriptors.
pub(crate) fn export_sync_file(dma_buf: BorrowedFd<'_>, how: Use) -> Result<OwnedFd, Errno> {
    let mut argument = SyncFile { flags: how.flags(), fd: -1 };
    // SAFETY: EXPORT_SYNC_FILE is DMA_BUF_IOCTL_EXPORT_SYNC_FILE, which reads and writes its struct: pinned above.
    unsafe { ioctl::ioctl(dma_buf, ioctl::Updater::<EXPORT_SYNC_FILE, _>::new(&mut argument)) }?;
    // SAFETY: the call succeeded, so `fd` is a new descriptor of this process that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(argument.fd) })
}

/// Adds the fences of a sync_file to those of the bytes: whoever reads or writes them (after a `Write`) or writes them (after a `Read`)
/// waits for these too.
///
/// # Errors
/// `ENOTTY` before Linux 6.0, `EINVAL` when `sync_file` is none.
pub(crate) fn import_sync_file(
    dma_buf: BorrowedFd<'_>,
    sync_file: BorrowedFd<'_>,
    how: Use,
) -> Result<(), Errno> {
    let argument = SyncFile { flags: how.flags(), fd: sync_file.as_fd().as_raw_fd() };
    // SAFETY: IMPORT_SYNC_FILE is DMA_BUF_IOCTL_IMPORT_SYNC_FILE, which reads its struct: pinned above.
    unsafe { ioctl::ioctl(dma_buf, ioctl::Setter::<IMPORT_SYNC_FILE, _>::new(argument)) }
}
