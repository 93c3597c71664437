//! `userfaultfd(2)`: being told of touches of pages that no page-table entry leads to, while the toucher sleeps.
//!
//! ```text
//!   register   touches of these addresses that find no entry become events     (before the entries are taken away)
//!   read       one event a touch: its address
//!   wake       whoever sleeps for these addresses touches again
//! ```
//!
//! Layouts and numbers are those of `linux/userfaultfd.h`, pinned below. The kernel permits it to privileged processes, or for touches
//! from user mode only (`UFFD_USER_MODE_ONLY`): system calls that are handed such memory then fail with `EFAULT`.

use std::mem::size_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, read};
use rustix::ioctl::{self, Opcode, opcode};
use rustix::mm::{UserfaultfdFlags, userfaultfd};

/// `UFFD_API`.
const API: u64 = 0xaa;
/// `UFFDIO`, the group of its calls.
const GROUP: u8 = 0xaa;
/// `UFFD_USER_MODE_ONLY`.
const USER_MODE_ONLY: u32 = 1;
/// `UFFD_FEATURE_EVENT_REMAP`: a watch stays when its memory is moved elsewhere, and that is told.
const FEATURE_EVENT_REMAP: u64 = 1 << 2;
/// `UFFD_FEATURE_MISSING_SHMEM`: touches of pages that a memfd does not have.
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
/// `UFFD_FEATURE_MINOR_SHMEM`: touches of pages that it has.
const FEATURE_MINOR_SHMEM: u64 = 1 << 10;
/// `UFFDIO_REGISTER_MODE_MISSING`.
const MODE_MISSING: u64 = 1 << 0;
/// `UFFDIO_REGISTER_MODE_MINOR`.
const MODE_MINOR: u64 = 1 << 2;
/// `UFFD_EVENT_PAGEFAULT`.
const EVENT_PAGEFAULT: u8 = 0x12;

/// `struct uffdio_api`.
#[repr(C)]
struct Handshake {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
struct Addresses {
    start: u64,
    len: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Registration {
    range: Addresses,
    mode: u64,
    ioctls: u64,
}

/// `struct uffd_msg`: how long it is, and where in that of a page fault the address stands. The kind of event comes first.
const EVENT_BYTES: usize = 32;
const EVENT_ADDRESS: std::ops::Range<usize> = 16..24;

const HANDSHAKE: Opcode = opcode::read_write::<Handshake>(GROUP, 0x3f);
const REGISTER: Opcode = opcode::read_write::<Registration>(GROUP, 0x00);
const WAKE: Opcode = opcode::read::<Addresses>(GROUP, 0x02);

const _: () = assert!(size_of::<Handshake>() == 24 && size_of::<Addresses>() == 16);
const _: () = assert!(size_of::<Registration>() == 32);
// The layout of a call's number is that of asm-generic/ioctl.h, which these architectures share.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
const _: () = assert!(HANDSHAKE == 0xc018_aa3f && REGISTER == 0xc020_aa00 && WAKE == 0x8010_aa02);

/// How many events are read at once.
const EVENTS_AT_ONCE: usize = 16;

/// An open userfaultfd.
#[derive(Debug)]
pub(crate) struct Userfaultfd {
    /// Constant.
    fd: OwnedFd,
    /// Whether touches by system calls are told too; otherwise they fail. Constant.
    sees_kernel_mode: bool,
}

/// What the touches of a range become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    /// Private memory: no page is there yet.
    Anonymous,
    /// A memfd: its page is there, or is not there yet.
    Memfd,
}

impl Userfaultfd {
    /// One that is told of all touches where the kernel permits that, else of those from user mode.
    ///
    /// # Errors
    /// What the kernel says: `ENOSYS` without userfaultfd, `EINVAL` without minor faults (before 5.14), `EPERM`.
    pub(crate) fn open() -> Result<Userfaultfd, Errno> {
        Userfaultfd::with(FEATURE_MISSING_SHMEM | FEATURE_MINOR_SHMEM)
    }

    /// One whose memory goes on being watched when it is moved. Whoever moves it waits until an event has been read.
    ///
    /// # Errors
    /// As [`open`](Userfaultfd::open).
    pub(crate) fn open_for_moves() -> Result<Userfaultfd, Errno> {
        Userfaultfd::with(FEATURE_EVENT_REMAP)
    }

    fn with(features: u64) -> Result<Userfaultfd, Errno> {
        match Userfaultfd::open_with(UserfaultfdFlags::empty(), features) {
            Ok(fd) => Ok(Userfaultfd { fd, sees_kernel_mode: true }),
            Err(Errno::PERM) => {
                let flags = UserfaultfdFlags::from_bits_retain(USER_MODE_ONLY);
                let fd = Userfaultfd::open_with(flags, features)?;
                Ok(Userfaultfd { fd, sees_kernel_mode: false })
            }
            Err(refused) => Err(refused),
        }
    }

    fn open_with(flags: UserfaultfdFlags, features: u64) -> Result<OwnedFd, Errno> {
        // SAFETY: the descriptor changes nothing until ranges are registered, which is unsafe in its own right.
        let fd = unsafe { userfaultfd(flags | UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK) }?;
        let mut handshake = Handshake { api: API, features, ioctls: 0 };
        // SAFETY: HANDSHAKE is UFFDIO_API, which reads and writes a `struct uffdio_api`: pinned above.
        unsafe { ioctl::ioctl(&fd, ioctl::Updater::<HANDSHAKE, _>::new(&mut handshake)) }?;
        Ok(fd)
    }

    /// Whether system calls that are handed watched memory wait as other touches do, instead of failing.
    pub(crate) fn sees_kernel_mode(&self) -> bool {
        self.sees_kernel_mode
    }

    /// Makes touches of these addresses events, as far as no page-table entry serves them; those that are there go on serving.
    ///
    /// # Safety
    /// Whoever touches these addresses must be able to wait for whoever reads the events, and every page of them must be mapped
    /// as `what` says.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) unsafe fn register(&self, start: usize, len: usize, what: Watched) -> Result<(), Errno> {
        let mode = match what {
            Watched::Anonymous => MODE_MISSING,
            Watched::Memfd => MODE_MISSING | MODE_MINOR,
        };
        let range = Addresses { start: start as u64, len: len as u64 };
        let mut registration = Registration { range, mode, ioctls: 0 };
        // SAFETY: REGISTER is UFFDIO_REGISTER, which reads and writes a `struct uffdio_register`: pinned above.
        unsafe { ioctl::ioctl(&self.fd, ioctl::Updater::<REGISTER, _>::new(&mut registration)) }
    }

    /// Lets whoever sleeps for these addresses touch them again. Nobody sleeping is no error.
    pub(crate) fn wake(&self, start: usize, len: usize) {
        let range = Addresses { start: start as u64, len: len as u64 };
        // SAFETY: WAKE is UFFDIO_WAKE, which reads a `struct uffdio_range` (pinned above) and wakes sleepers, who look again.
        let woken = unsafe { ioctl::ioctl(&self.fd, ioctl::Setter::<WAKE, _>::new(range)) };
        debug_assert!(woken.is_ok(), "page-aligned addresses can be woken: {woken:?}");
    }

    /// Reads the events that are there, and tells each address.
    pub(crate) fn read_events(&self, mut each: impl FnMut(usize)) {
        let mut bytes = [0; EVENTS_AT_ONCE * EVENT_BYTES];
        loop {
            let len = match read(&self.fd, &mut bytes) {
                Ok(len) => len,
                Err(Errno::INTR) => continue,
                // None left; another error would be as final, and the next poll tells.
                Err(_) => return,
            };
            for event in bytes[..len].chunks_exact(EVENT_BYTES) {
                if event[0] == EVENT_PAGEFAULT {
                    let address = event[EVENT_ADDRESS].try_into().expect("eight bytes");
                    each(u64::from_ne_bytes(address) as usize);
                }
            }
            if len < bytes.len() {
                return;
            }
        }
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
