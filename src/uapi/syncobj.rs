//! `drm/drm.h`: the one call on syncobjs that drm-rs cannot make, because it has no room for the syncobj that is to be changed.

use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io::Errno;
use rustix::ioctl::{self, Opcode, opcode};

/// DRM's group.
const GROUP: u8 = b'd';
/// `DRM_SYNCOBJ_FD_TO_HANDLE_FLAGS_IMPORT_SYNC_FILE`.
const IMPORT_SYNC_FILE: u32 = 1;

/// `struct drm_syncobj_handle`, as long as it has been since it came.
#[repr(C)]
struct Handle {
    handle: u32,
    flags: u32,
    fd: i32,
    pad: u32,
}

const FD_TO_HANDLE: Opcode = opcode::read_write::<Handle>(GROUP, 0xc2);

const _: () = assert!(size_of::<Handle>() == 16);
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
const _: () = assert!(FD_TO_HANDLE == 0xc010_64c2);

/// Puts the fences of a `sync_file` into the syncobj `handle` of a DRM node, instead of what it holds.
///
/// # Errors
/// `ENOENT` when there is no such syncobj, `EINVAL` when that is no sync_file, `EOPNOTSUPP` when the driver has no syncobjs.
pub(crate) fn import_sync_file(node: impl AsFd, handle: u32, sync_file: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut argument = Handle { handle, flags: IMPORT_SYNC_FILE, fd: sync_file.as_raw_fd(), pad: 0 };
    // SAFETY: FD_TO_HANDLE is DRM_IOCTL_SYNCOBJ_FD_TO_HANDLE, which belongs to DRM's core, whatever the driver, and reads and writes its
    // struct (pinned above).
    unsafe { ioctl::ioctl(node, ioctl::Updater::<FD_TO_HANDLE, _>::new(&mut argument)) }
}
