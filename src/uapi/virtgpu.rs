//! `drm/virtgpu_drm.h`: what a virtio-gpu can do, and its blobs. Only for nodes whose driver is `virtio_gpu`.

use std::mem::size_of;

use rustix::io::Errno;
use rustix::ioctl::{self, Opcode, opcode};

use crate::backend::drm::VirtioGpuNode;

/// `DRM_COMMAND_BASE`, where a driver's own calls begin, in DRM's group.
const BASE: u8 = 0x40;
const GROUP: u8 = b'd';
/// `VIRTGPU_BLOB_MEM_GUEST`.
const BLOB_MEM_GUEST: u32 = 1;
/// `VIRTGPU_BLOB_FLAG_USE_MAPPABLE` and `VIRTGPU_BLOB_FLAG_USE_SHAREABLE`.
const BLOB_MAPPABLE: u32 = 1;
const BLOB_SHAREABLE: u32 = 2;

/// `struct drm_virtgpu_map`.
#[repr(C)]
struct Map {
    offset: u64,
    handle: u32,
    pad: u32,
}

/// `struct drm_virtgpu_getparam`.
#[repr(C)]
struct GetParam {
    param: u64,
    value: u64,
}

/// `struct drm_virtgpu_resource_create_blob`.
#[repr(C)]
struct CreateBlob {
    blob_mem: u32,
    blob_flags: u32,
    bo_handle: u32,
    res_handle: u32,
    size: u64,
    pad: u32,
    cmd_size: u32,
    cmd: u64,
    blob_id: u64,
}

const MAP: Opcode = opcode::read_write::<Map>(GROUP, BASE + 0x01);
const GETPARAM: Opcode = opcode::read_write::<GetParam>(GROUP, BASE + 0x03);
const CREATE_BLOB: Opcode = opcode::read_write::<CreateBlob>(GROUP, BASE + 0x0a);

const _: () = assert!(size_of::<Map>() == 16 && size_of::<GetParam>() == 16);
const _: () = assert!(size_of::<CreateBlob>() == 48);
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
const _: () = assert!(MAP == 0xc010_6441 && GETPARAM == 0xc010_6443 && CREATE_BLOB == 0xc030_644a);

/// What can be asked for, by the header's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Param {
    /// `VIRTGPU_PARAM_3D_FEATURES`: the host renders.
    ThreeD = 1,
    /// `VIRTGPU_PARAM_RESOURCE_BLOB`.
    Blobs = 3,
    /// `VIRTGPU_PARAM_HOST_VISIBLE`: blobs of the host can be mapped.
    HostVisible = 4,
}

/// What the device says of `param`.
///
/// # Errors
/// `EINVAL` when the kernel does not know it.
pub(crate) fn get_param(virtio_gpu: &VirtioGpuNode, param: Param) -> Result<u64, Errno> {
    let mut value: u32 = 0;
    let mut argument = GetParam { param: param as u64, value: (&raw mut value) as u64 };
    // SAFETY: GETPARAM is DRM_IOCTL_VIRTGPU_GETPARAM, which reads its struct (pinned above) and writes an `int` to the address in `value`;
    // a VirtioGpuNode's driver is virtio_gpu.
    unsafe { ioctl::ioctl(virtio_gpu, ioctl::Updater::<GETPARAM, _>::new(&mut argument)) }?;
    Ok(u64::from(value))
}

/// A new blob in the guest's memory, mappable and shareable. Returns its handle.
///
/// # Errors
/// `EINVAL` when the device has no blobs.
pub(crate) fn create_guest_blob(virtio_gpu: &VirtioGpuNode, len_bytes: u64) -> Result<u32, Errno> {
    let mut argument = CreateBlob {
        blob_mem: BLOB_MEM_GUEST,
        blob_flags: BLOB_MAPPABLE | BLOB_SHAREABLE,
        bo_handle: 0,
        res_handle: 0,
        size: len_bytes,
        pad: 0,
        cmd_size: 0,
        cmd: 0,
        blob_id: 0,
    };
    // SAFETY: CREATE_BLOB is DRM_IOCTL_VIRTGPU_RESOURCE_CREATE_BLOB, which reads and writes its struct (pinned above); no command is given.
    // A VirtioGpuNode's driver is virtio_gpu.
    unsafe { ioctl::ioctl(virtio_gpu, ioctl::Updater::<CREATE_BLOB, _>::new(&mut argument)) }?;
    Ok(argument.bo_handle)
}

/// Where on the node the buffer behind `handle` can be mapped.
///
/// # Errors
/// `ENOENT` when there is none.
pub(crate) fn map_offset(virtio_gpu: &VirtioGpuNode, handle: u32) -> Result<u64, Errno> {
    let mut argument = Map { offset: 0, handle, pad: 0 };
    // SAFETY: MAP is DRM_IOCTL_VIRTGPU_MAP, which reads and writes its struct (pinned above); a VirtioGpuNode's driver is virtio_gpu.
    unsafe { ioctl::ioctl(virtio_gpu, ioctl::Updater::<MAP, _>::new(&mut argument)) }?;
    Ok(argument.offset)
}
