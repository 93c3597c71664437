//! `sw_sync`: kernel fences that a program signals itself, by counting a timeline up. In debugfs, where the kernel has it; its
//! structures stand in `drivers/dma-buf/sw_sync.c` and in no header.

use std::ffi::c_int;
use std::mem::size_of;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::ioctl::{self, Opcode, opcode};

/// Each open file of it is a timeline of its own, which ends, and fails what is outstanding, when it is closed.
pub(crate) const PATH: &str = "/sys/kernel/debug/sync/sw_sync";
/// `SW_SYNC_IOC_MAGIC`, the group of its calls.
const GROUP: u8 = b'W';

/// `struct sw_sync_create_fence_data`.
#[repr(C)]
struct Create {
    value: u32,
    name: [u8; 32],
    fence: c_int,
}

const CREATE: Opcode = opcode::read_write::<Create>(GROUP, 0);
const ADVANCE: Opcode = opcode::write::<u32>(GROUP, 1);

const _: () = assert!(size_of::<Create>() == 40);
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
const _: () = assert!(CREATE == 0xc028_5700 && ADVANCE == 0x4004_5701);

/// A sync_file that signals when the timeline has been counted up to `value`.
///
/// # Errors
/// `EMFILE` with a full table of descriptors, `ENOTTY` when `timeline` is none.
pub(crate) fn create_fence(timeline: BorrowedFd<'_>, value: u32) -> Result<OwnedFd, Errno> {
    let mut name = [0; 32];
    name[..10].copy_from_slice(b"devpagemap");
    let mut argument = Create { value, name, fence: -1 };
    // SAFETY: CREATE is SW_SYNC_IOC_CREATE_FENCE, which reads and writes its struct: pinned above.
    unsafe { ioctl::ioctl(timeline, ioctl::Updater::<CREATE, _>::new(&mut argument)) }?;
    // SAFETY: the call succeeded, so `fence` is a new descriptor of this process that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(argument.fence) })
}

/// Counts the timeline up by `count`, and signals what it passes.
///
/// # Errors
/// `ENOTTY` when `timeline` is none.
pub(crate) fn advance(timeline: BorrowedFd<'_>, count: u32) -> Result<(), Errno> {
    // SAFETY: ADVANCE is SW_SYNC_IOC_INC, which reads a `u32`: pinned above.
    unsafe { ioctl::ioctl(timeline, ioctl::Setter::<ADVANCE, _>::new(count)) }
}
