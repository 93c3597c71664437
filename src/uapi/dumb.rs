//! `drm/drm_mode.h`: where a dumb buffer can be mapped, for those who map it for longer than drm-rs lets them.

use std::mem::size_of;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::ioctl::{self, Opcode, opcode};

/// The group of DRM's calls.
const GROUP: u8 = b'd';

/// `struct drm_mode_map_dumb`.
#[repr(C)]
struct MapDumb {
    handle: u32,
    pad: u32,
    offset: u64,
}

const MAP_DUMB: Opcode = opcode::read_write::<MapDumb>(GROUP, 0xb3);

const _: () = assert!(size_of::<MapDumb>() == 16);
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
const _: () = assert!(MAP_DUMB == 0xc010_64b3);

/// Where on the node the dumb buffer behind `handle` can be mapped.
///
/// # Errors
/// `ENOENT` when there is no such buffer, `EINVAL` for one that was imported.
pub(crate) fn map_offset(node: BorrowedFd<'_>, handle: u32) -> Result<u64, Errno> {
    let mut argument = MapDumb { handle, pad: 0, offset: 0 };
    // SAFETY: MAP_DUMB is DRM_IOCTL_MODE_MAP_DUMB, which reads and writes its struct: pinned above. Every DRM driver has it by this number.
    unsafe { ioctl::ioctl(node, ioctl::Updater::<MAP_DUMB, _>::new(&mut argument)) }?;
    Ok(argument.offset)
}
