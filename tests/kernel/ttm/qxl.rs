//! qxl: a buffer is made in video memory, and comes back when it is validated.
//!
//! The call that validates is the one that has the screen's host update an area. These buffers are no surfaces, so the host is never asked: the
//! call ends with `EINVAL` after the buffer has been brought to video memory. The kernel complains about it at its console, which is
//! silenced for as long.

use std::mem::size_of;
use std::ptr::null_mut;

use drm::control::Device as _;
use rustix::io::Errno;
use rustix::ioctl::{self, Opcode, Setter, Updater, opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::Ttm;
use crate::card::Card;
use crate::setup::guest;

/// Video memory of QEMU's card, unless it is told otherwise.
const VIDEO_MEMORY_BYTES: usize = 64 << 20;
const SIZE_BYTES: usize = 4 << 20;
/// `DRM_COMMAND_BASE`, where a driver's own calls begin, in DRM's group.
const BASE: u8 = 0x40;
const GROUP: u8 = b'd';
const LEVELS: &str = "/proc/sys/kernel/printk";

/// `struct drm_qxl_alloc`.
#[repr(C)]
struct Alloc {
    size: u32,
    handle: u32,
}

/// `struct drm_qxl_map`.
#[repr(C)]
struct Map {
    offset: u64,
    handle: u32,
    pad: u32,
}

/// `struct drm_qxl_update_area`.
#[repr(C)]
struct UpdateArea {
    handle: u32,
    top: u32,
    left: u32,
    bottom: u32,
    right: u32,
    pad: u32,
}

const ALLOC: Opcode = opcode::read_write::<Alloc>(GROUP, BASE);
const MAP: Opcode = opcode::read_write::<Map>(GROUP, BASE + 0x01);
const UPDATE_AREA: Opcode = opcode::write::<UpdateArea>(GROUP, BASE + 0x03);
const _: () = assert!(size_of::<Alloc>() == 8 && size_of::<Map>() == 16 && size_of::<UpdateArea>() == 24);

pub struct Qxl {
    card: Card,
    handles: Vec<u32>,
    /// What the console showed before.
    levels: Option<String>,
}

impl Qxl {
    pub fn open() -> Qxl {
        let card = Card::open("qxl");
        let levels = guest().is_some().then(|| std::fs::read_to_string(LEVELS).expect("it is readable"));
        if levels.is_some() {
            std::fs::write(LEVELS, "1").expect("root may set it");
        }
        Qxl { card, handles: Vec::new(), levels }
    }
}

impl Ttm for Qxl {
    const MOVES: &'static str = "qxl:qxl_bo_move";

    fn size_bytes(&self) -> usize {
        SIZE_BYTES
    }

    fn too_many(&self) -> usize {
        VIDEO_MEMORY_BYTES / SIZE_BYTES + 5
    }

    fn create(&mut self) {
        let mut argument = Alloc { size: SIZE_BYTES as u32, handle: 0 };
        // SAFETY: ALLOC is DRM_IOCTL_QXL_ALLOC, which reads and writes its struct, whose size is pinned above; `open` found the node by the
        // name of its driver.
        let made = unsafe { ioctl::ioctl(&self.card, Updater::<ALLOC, _>::new(&mut argument)) };
        made.expect("it is made in video memory");
        self.handles.push(argument.handle);
    }

    fn bring(&mut self, buffer: usize) {
        let handle = self.handles[buffer];
        let area = UpdateArea { handle, top: 0, left: 0, bottom: 1, right: 1, pad: 0 };
        // SAFETY: UPDATE_AREA is DRM_IOCTL_QXL_UPDATE_AREA, which reads its struct, whose size is pinned above; `open` found the node by the
        // name of its driver.
        let done = unsafe { ioctl::ioctl(&self.card, Setter::<UPDATE_AREA, _>::new(area)) };
        assert_eq!(done, Err(Errno::INVAL), "it is no surface, so there is nothing to update");
    }

    fn bytes(&mut self, buffer: usize, look: &mut dyn FnMut(&mut [u8])) {
        let mut argument = Map { offset: 0, handle: self.handles[buffer], pad: 0 };
        // SAFETY: MAP is DRM_IOCTL_QXL_MAP, which reads and writes its struct, whose size is pinned above; `open` found the node by the name of
        // its driver.
        let found = unsafe { ioctl::ioctl(&self.card, Updater::<MAP, _>::new(&mut argument)) };
        found.expect("it can be mapped");
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place that the kernel chooses, of a buffer of this size.
        let address =
            unsafe { mmap(null_mut(), SIZE_BYTES, access, MapFlags::SHARED, &self.card, argument.offset) };
        let address = address.expect("it is mapped");
        // SAFETY: the mapping has so many bytes, all readable and writable; nobody else has it, and it outlives the slice.
        look(unsafe { std::slice::from_raw_parts_mut(address.cast(), SIZE_BYTES) });
        // SAFETY: the mapping made above, which nothing refers to any more.
        unsafe { munmap(address, SIZE_BYTES) }.expect("it was mapped");
    }
}

impl Drop for Qxl {
    fn drop(&mut self) {
        for handle in self.handles.drain(..).filter_map(std::num::NonZeroU32::new) {
            // What stays open is closed with the card.
            let _closed = self.card.close_buffer(handle.into());
        }
        if let Some(levels) = &self.levels {
            std::fs::write(LEVELS, levels).expect("root may set it");
        }
    }
}
