//! Somebody else: a program that uses dma-bufs beside the library, by the kernel's own calls.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use drm::buffer::{Buffer as _, DrmFourcc, Handle};
use drm::control::Device as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};

use crate::card::Card;

/// `DRM_IOCTL_VGEM_FENCE_ATTACH` and `DRM_IOCTL_VGEM_FENCE_SIGNAL`.
const ATTACH: Opcode = opcode::read_write::<[u32; 4]>(b'd', 0x41);
const SIGNAL: Opcode = opcode::write::<[u32; 2]>(b'd', 0x42);
/// `UDMABUF_CREATE`.
const UDMABUF_CREATE: Opcode = opcode::write::<[u64; 3]>(b'u', 0x42);
/// `SW_SYNC_IOC_CREATE_FENCE` and `SW_SYNC_IOC_INC`.
const CREATE_FENCE: Opcode = opcode::read_write::<SwSyncFence>(b'W', 0);
const INCREMENT: Opcode = opcode::write::<u32>(b'W', 1);
/// `DMA_BUF_IOCTL_IMPORT_SYNC_FILE`.
const IMPORT_SYNC_FILE: Opcode = opcode::write::<[u32; 2]>(b'b', 3);

/// `struct sw_sync_create_fence_data`.
#[repr(C)]
struct SwSyncFence {
    value: u32,
    name: [u8; 32],
    fence: i32,
}

/// What somebody else does to the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    Reads,
    Writes,
}

/// The primary node of vgem, in the hands of somebody else.
pub struct Vgem(Card);

impl AsFd for Vgem {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl drm::Device for Vgem {}
impl drm::control::Device for Vgem {}

impl Vgem {
    pub fn open() -> Vgem {
        Vgem(Card::open("vgem"))
    }

    /// A buffer of so many bytes, as a dma-buf.
    pub fn dma_buf(&self, len_bytes: u64) -> OwnedFd {
        let lines = (len_bytes / 4096) as u32;
        let made = self.create_dumb_buffer((1024, lines), DrmFourcc::Xrgb8888, 32).expect("there is memory");
        self.buffer_to_prime_fd(made.handle(), drm::CLOEXEC | drm::RDWR).expect("it exports")
    }

    /// The handle of a dma-buf, whoever made it.
    pub fn import(&self, dma_buf: impl AsFd) -> Handle {
        self.prime_fd_to_buffer(dma_buf.as_fd()).expect("vgem imports what can be mapped")
    }

    /// Attaches a fence, which the kernel signals after ten seconds if nobody does.
    pub fn attach(&self, handle: Handle, does: Does) -> Result<u32, Errno> {
        let mut argument = [handle.into(), u32::from(does == Does::Writes), 0, 0];
        // SAFETY: the call of vgem's, on a node of vgem, with the four words that it reads and writes.
        unsafe { ioctl(&self.0, Updater::<ATTACH, [u32; 4]>::new(&mut argument)) }?;
        Ok(argument[2])
    }

    pub fn signal(&self, fence: u32) {
        // SAFETY: the call of vgem's, on a node of vgem, with the two words that it reads.
        unsafe { ioctl(&self.0, Setter::<SIGNAL, [u32; 2]>::new([fence, 0])) }.expect("it is outstanding");
    }
}

/// A timeline that somebody else counts up.
pub struct SwSync(File);

impl SwSync {
    pub fn open() -> SwSync {
        let path = "/sys/kernel/debug/sync/sw_sync";
        SwSync(File::options().read(true).write(true).open(path).expect("it is there"))
    }

    /// A sync_file of the point `value`.
    pub fn point(&self, value: u32) -> OwnedFd {
        let mut argument = SwSyncFence { value, name: [0; 32], fence: -1 };
        // SAFETY: the call of sw_sync's, with the struct that it reads and writes.
        unsafe { ioctl(&self.0, Updater::<CREATE_FENCE, _>::new(&mut argument)) }.expect("it makes points");
        // SAFETY: a new descriptor, which nobody else has.
        unsafe { OwnedFd::from_raw_fd(argument.fence) }
    }

    pub fn count(&self) {
        // SAFETY: the call of sw_sync's, with the word that it reads.
        unsafe { ioctl(&self.0, Setter::<INCREMENT, u32>::new(1)) }.expect("it counts");
    }
}

/// Lets a sync_file into a dma-buf.
pub fn let_in(dma_buf: impl AsFd, sync_file: impl AsFd, does: Does) {
    let flags = if does == Does::Writes { 3 } else { 1 };
    let argument = [flags, sync_file.as_fd().as_raw_fd() as u32];
    // SAFETY: a dma-buf's call, with the two words that it reads.
    unsafe { ioctl(dma_buf.as_fd(), Setter::<IMPORT_SYNC_FILE, [u32; 2]>::new(argument)) }
        .expect("any dma-buf takes fences");
}

/// Pages of a memfd, as a dma-buf.
pub fn udmabuf(len_bytes: u64) -> OwnedFd {
    let pages = memfd_create("stranger", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("a memfd");
    ftruncate(&pages, len_bytes).expect("it grows");
    fcntl_add_seals(&pages, SealFlags::SHRINK).expect("it may be sealed");
    let device = File::options().read(true).write(true).open("/dev/udmabuf").expect("it is there");
    // A descriptor and the flag that closes it in programs that are run.
    let head = pages.as_raw_fd() as u64 | 1 << 32;
    // SAFETY: udmabuf's call, with the struct of a descriptor, flags, an offset and a size, which it reads.
    let call = unsafe { ioctl(&device, Made::<[u64; 3]>([head, 0, len_bytes])) };
    call.expect("whole pages of a sealed memfd")
}

/// A call that reads its argument and returns a descriptor.
struct Made<T>(T);

// SAFETY: UDMABUF_CREATE reads its struct, writes nothing, and returns a new descriptor.
unsafe impl rustix::ioctl::Ioctl for Made<[u64; 3]> {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        UDMABUF_CREATE
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(
        output: rustix::ioctl::IoctlOutput,
        _argument: *mut std::ffi::c_void,
    ) -> Result<OwnedFd, Errno> {
        // SAFETY: the call succeeded, and what it returned is a new descriptor.
        Ok(unsafe { OwnedFd::from_raw_fd(output) })
    }
}

/// Whether somebody who is about to do that would have to wait.
pub fn is_busy(dma_buf: impl AsFd, does: Does) -> bool {
    !is_ready_within(dma_buf, does, Duration::ZERO)
}

/// Waits as who is about to do that; false when the time is over first.
pub fn is_ready_within(fd: impl AsFd, does: Does, time: Duration) -> bool {
    let events = if does == Does::Reads { PollFlags::IN } else { PollFlags::OUT };
    let mut asked = [PollFd::from_borrowed_fd(fd.as_fd(), events)];
    let until = Instant::now() + time;
    loop {
        let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).expect("it is short");
        match poll(&mut asked, Some(&left)) {
            Err(Errno::INTR) => {}
            ready => return ready.expect("it can be polled") > 0 && asked[0].revents().contains(events),
        }
    }
}
