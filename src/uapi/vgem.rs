//! `drm/vgem_drm.h`: fences on vgem's buffers that a program signals itself. Only for nodes whose driver is `vgem`.

use std::mem::size_of;

use rustix::io::Errno;
use rustix::ioctl::{self, Opcode, opcode};

use crate::backend::drm::VgemNode;

/// `DRM_COMMAND_BASE`, where a driver's own calls begin, in DRM's group.
const BASE: u8 = 0x40;
const GROUP: u8 = b'd';
/// `VGEM_FENCE_WRITE`.
const FENCE_WRITE: u32 = 1;
/// How long after it was attached the kernel signals a fence that nobody has signalled.
pub(crate) const EXPIRY: std::time::Duration = std::time::Duration::from_secs(10);

/// `struct drm_vgem_fence_attach`.
#[repr(C)]
struct Attach {
    handle: u32,
    flags: u32,
    out_fence: u32,
    pad: u32,
}

/// `struct drm_vgem_fence_signal`.
#[repr(C)]
struct Signal {
    fence: u32,
    flags: u32,
}

const ATTACH: Opcode = opcode::read_write::<Attach>(GROUP, BASE + 1);
const SIGNAL: Opcode = opcode::write::<Signal>(GROUP, BASE + 2);

const _: () = assert!(size_of::<Attach>() == 16 && size_of::<Signal>() == 8);
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
const _: () = assert!(ATTACH == 0xc010_6441 && SIGNAL == 0x4008_6442);

/// Attaches a fence to the buffer behind `handle`: as one who writes it, or one who reads. Returns the fence's number on this node.
///
/// # Errors
/// `ENOENT` when there is no such buffer, `EBUSY` when it has fences that this one would have to wait for.
pub(crate) fn attach_fence(vgem: &VgemNode, handle: u32, write: bool) -> Result<u32, Errno> {
    let flags = if write { FENCE_WRITE } else { 0 };
    let mut argument = Attach { handle, flags, out_fence: 0, pad: 0 };
    // SAFETY: ATTACH is DRM_IOCTL_VGEM_FENCE_ATTACH, which reads and writes its struct (pinned above); a VgemNode's driver is
    // vgem.
    unsafe { ioctl::ioctl(vgem, ioctl::Updater::<ATTACH, _>::new(&mut argument)) }?;
    Ok(argument.out_fence)
}

/// Signals a fence, and forgets it.
///
/// # Errors
/// `ENOENT` when there is no such fence any more, `ETIMEDOUT` when the kernel had signalled it first, at its [expiry](EXPIRY).
pub(crate) fn signal_fence(vgem: &VgemNode, fence: u32) -> Result<(), Errno> {
    // SAFETY: SIGNAL is DRM_IOCTL_VGEM_FENCE_SIGNAL, which reads its struct (pinned above); a VgemNode's driver is vgem.
    unsafe { ioctl::ioctl(vgem, ioctl::Setter::<SIGNAL, _>::new(Signal { fence, flags: 0 })) }
}
