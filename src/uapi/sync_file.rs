//! `linux/sync_file.h`: kernel fences as descriptors. One is readable for poll when all its fences have signalled.

use std::mem::size_of;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::ioctl::{self, Opcode, opcode};

/// `SYNC_IOC_MAGIC`, the group of its calls.
const GROUP: u8 = b'>';

/// For how many fences one call is enough.
const AT_ONCE: usize = 8;

/// `struct sync_fence_info`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawFence {
    timeline: [u8; 32],
    driver: [u8; 32],
    status: i32,
    flags: u32,
    timestamp_ns: u64,
}

/// `struct sync_file_info`.
#[repr(C)]
struct RawInfo {
    name: [u8; 32],
    status: i32,
    flags: u32,
    num_fences: u32,
    pad: u32,
    sync_fence_info: u64,
}

const FILE_INFO: Opcode = opcode::read_write::<RawInfo>(GROUP, 4);

const _: () = assert!(size_of::<RawInfo>() == 56 && size_of::<RawFence>() == 80);
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
const _: () = assert!(FILE_INFO == 0xc038_3e04);

/// How far a kernel fence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Not signalled.
    Active,
    /// Signalled, and all was well.
    Signalled,
    /// Signalled with an error.
    Failed(Errno),
}

impl Status {
    fn of(raw: i32) -> Status {
        match raw {
            0 => Status::Active,
            1.. => Status::Signalled,
            ..0 => Status::Failed(Errno::from_raw_os_error(-raw)),
        }
    }
}

/// One fence of a sync_file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FenceInfo {
    /// The driver whose fence it is.
    pub(crate) driver: String,
    /// The timeline that it is on, as that driver calls it.
    pub(crate) timeline: String,
    /// How far it is.
    pub(crate) status: Status,
}

/// What a sync_file is made of.
///
/// # Errors
/// `ENOTTY` when it is no sync_file.
pub(crate) fn fences(sync_file: BorrowedFd<'_>) -> Result<Vec<FenceInfo>, Errno> {
    let none = RawFence { timeline: [0; 32], driver: [0; 32], status: 0, flags: 0, timestamp_ns: 0 };
    let mut raw = vec![none; AT_ONCE];
    let filled = match raw_info(sync_file, &mut raw) {
        Ok(info) => info.num_fences,
        // More than that. A sync_file never gets more fences than it has, so the second look has room.
        Err(Errno::INVAL) => {
            raw.resize(raw_info(sync_file, &mut [])?.num_fences as usize, none);
            raw_info(sync_file, &mut raw)?.num_fences
        }
        Err(errno) => return Err(errno),
    };
    raw.truncate(filled as usize);
    let info = |fence: RawFence| FenceInfo {
        driver: text(&fence.driver),
        timeline: text(&fence.timeline),
        status: Status::of(fence.status),
    };
    Ok(raw.into_iter().map(info).collect())
}

fn raw_info(sync_file: BorrowedFd<'_>, fences: &mut [RawFence]) -> Result<RawInfo, Errno> {
    let mut info = RawInfo {
        name: [0; 32],
        status: 0,
        flags: 0,
        num_fences: fences.len() as u32,
        pad: 0,
        sync_fence_info: fences.as_mut_ptr() as u64,
    };
    // SAFETY: FILE_INFO is SYNC_IOC_FILE_INFO, which reads and writes its struct (pinned above) and writes at most `num_fences` entries
    // to `sync_fence_info`, none if that is 0; `fences` is borrowed for as long and has so many.
    unsafe { ioctl::ioctl(sync_file, ioctl::Updater::<FILE_INFO, _>::new(&mut info)) }?;
    Ok(info)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
