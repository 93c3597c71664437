//! Addresses of this process: memfds, or a device's memory, mapped over a reserved range, watched by userfaultfd while the bytes are
//! away.

use std::ffi::c_void;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use devpagemap_migrate::{Extent, MemoryMap};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap, mmap_anonymous, mremap_fixed, munlock, munmap,
};

use super::{AfterLoss, Watcher};
use crate::backend::DeviceMemory;
use crate::cpu::own_ranges;
use crate::cpu::windowed::Piece;
use crate::error::{Error, Result};
use crate::uapi::userfaultfd::Watched;

/// Mappings begin at the same place within a huge page as the bytes they show, so that those can be shown with one entry.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A range of addresses that one CPU mapping owns until it is dropped.
#[derive(Debug)]
pub(crate) struct AddressSpace {
    /// Page aligned. Constant.
    start: NonNull<u8>,
    /// Whole pages. Constant.
    len: usize,
    /// Constant.
    protection: ProtFlags,
    /// Who is told of touches; without it the range is pointed once and stays so. Constant.
    watcher: Option<Arc<Watcher>>,
}

// SAFETY: an AddressSpace is a range of addresses. What they lead to is changed by system calls only, and its bytes are not
// touched by its methods.
unsafe impl Send for AddressSpace {}
// SAFETY: as above; who changes what the range leads to is serialised by the mapping's lock.
unsafe impl Sync for AddressSpace {}

impl AddressSpace {
    /// Reserves addresses for `len_bytes` of a buffer from its byte `from_bytes` on, both in whole pages. With a watcher touches
    /// sleep from the start; without one they fault until the range is pointed.
    pub(crate) fn reserve(
        watcher: Option<Arc<Watcher>>,
        from_bytes: u64,
        len_bytes: u64,
        writable: bool,
    ) -> Result<AddressSpace> {
        let io = |action, errno: Errno| Error::io(action, len_bytes, errno);
        let Some((len, start)) = usize::try_from(len_bytes).ok().zip(reserve_aligned(from_bytes, len_bytes))
        else {
            return Err(io("reserve addresses for a CPU mapping", Errno::NOMEM));
        };
        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        let space = AddressSpace { start, len, protection, watcher };
        own_ranges::add(start.addr().get(), len);
        if space.watcher.is_some() {
            space.make_sleeping().map_err(|errno| io("watch addresses for touches", errno))?;
        }
        Ok(space)
    }

    /// Turns the fresh reservation into memory of which every touch is told.
    fn make_sleeping(&self) -> Result<(), Errno> {
        let (flags, address) =
            (MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED, self.start.as_ptr());
        // SAFETY: it replaces our own reservation, which nobody has been told of.
        unsafe { mmap_anonymous(address.cast(), self.len, self.protection, flags) }?;
        self.watch(0, self.len, Watched::Anonymous)?;
        // A process that locks all its memory has pages here by now, which would serve touches.
        self.take_entries_away(address.cast(), self.len)?;
        self.keep_from_children(address.cast(), self.len);
        Ok(())
    }

    pub(crate) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Whether it can be zapped, as touches can sleep.
    pub(crate) fn is_watched(&self) -> bool {
        self.watcher.is_some()
    }

    /// Whether touches by system calls sleep too.
    pub(crate) fn sees_kernel_mode(&self) -> bool {
        self.watcher.as_ref().is_some_and(|watcher| watcher.sees_kernel_mode())
    }

    /// Shows `extents` from byte `at` of the range on.
    pub(crate) fn point(&self, at: u64, extents: &[Extent], memory: &DeviceMemory) -> Result<()> {
        let mut at = at as usize;
        for extent in extents {
            let len = extent.len_bytes as usize;
            let Some((file, offset)) = memory.file(extent.addr, extent.len_bytes) else {
                unreachable!("{extent:?} has a file: a place without one is never pointed at");
            };
            self.point_at_file(at, len, file.as_fd(), offset)?;
            at += len;
        }
        Ok(())
    }

    /// Shows what is behind parts of the BAR, from byte `at` of the range on.
    pub(crate) fn point_at_bar(&self, at: u64, pieces: &[Piece<'_>]) -> Result<()> {
        let mut at = at as usize;
        for Piece { memory, len_bytes } in pieces {
            let file = memory.file.expect("a piece without a file is never pointed at");
            self.point_at_file(at, *len_bytes as usize, file, memory.offset_bytes)?;
            at += *len_bytes as usize;
        }
        Ok(())
    }

    fn point_at_file(&self, at: usize, len: usize, file: BorrowedFd<'_>, offset: u64) -> Result<()> {
        assert!(at + len <= self.len, "a mapping shows no more than its own range");
        let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: `at` and `len` lie within our own range (asserted above). What was there shows bytes that this mapping
        // shows no more, and the new bytes belong to the mapping's buffer: the mapping's lock, under which this is called,
        // keeps its target the buffer's current place, and a window of it is on loan meanwhile.
        let pointed = unsafe { mmap(self.address(at), len, self.protection, flags, file, offset) };
        pointed.map_err(|errno| Error::io("point a CPU mapping at its bytes", len as u64, errno))?;
        self.keep_from_children(self.address(at), len);
        Ok(())
    }

    /// Makes every touch of `range`, which was pointed, sleep. When it returns nobody reaches the old bytes any more.
    pub(crate) fn zap(&self, range: Range<u64>) -> Result<()> {
        let (at, len) = within(&range);
        let zapped = match self.watch(at, len, Watched::Memfd) {
            // Memory of a device's, or a dma-buf: nobody can watch that.
            Err(Errno::INVAL) => self.park(at, len),
            watched => watched.and_then(|()| self.take_entries_away(self.address(at), len)),
        };
        zapped.map_err(|errno| Error::io("take a CPU mapping's pages away", len as u64, errno))
    }

    /// Shows zeros, or nothing, in `range`.
    ///
    /// # Panics
    /// When the kernel does not even map nothing there: whoever writes would write over bytes that are somebody else's by now.
    pub(crate) fn show_loss(&self, range: Range<u64>, what: AfterLoss) {
        let (at, len) = within(&range);
        let shown = match what {
            AfterLoss::Zeros => self.show_private(at, len, self.protection),
            AfterLoss::Signal => {
                self.show_end_of_file(at, len).or_else(|_| self.show_private(at, len, ProtFlags::empty()))
            }
        };
        if let Err(errno) = shown {
            panic!("{len} bytes of a CPU mapping can neither be shown nor taken away: {errno}");
        }
    }

    fn show_private(&self, at: usize, len: usize, protection: ProtFlags) -> Result<(), Errno> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: the range is our own; what it showed is lost, and nobody expects to find it again.
        unsafe { mmap_anonymous(self.address(at), len, protection, flags) }.map(drop)
    }

    /// A mapped file of no length: touches raise SIGBUS.
    fn show_end_of_file(&self, at: usize, len: usize) -> Result<(), Errno> {
        let empty = memfd_create("devpagemap-lost", MemfdFlags::CLOEXEC)?;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: as in show_private.
        unsafe { mmap(self.address(at), len, self.protection, flags, &empty, 0) }.map(drop)
    }

    /// Lets whoever sleeps in `range` touch it again.
    pub(crate) fn wake(&self, range: Range<u64>) {
        let (at, len) = within(&range);
        if let Some(watcher) = &self.watcher {
            watcher.wake(self.start.addr().get() + at, len);
        }
    }

    fn address(&self, at: usize) -> *mut c_void {
        debug_assert!(at < self.len);
        self.start.as_ptr().wrapping_add(at).cast()
    }

    fn watch(&self, at: usize, len: usize, what: Watched) -> Result<(), Errno> {
        let watcher = self.watcher.as_ref().expect("only a mapping that follows its buffer is ever away");
        // SAFETY: the range is our own and mapped as `what` says. Its owner was told that touches may sleep; the device's fault
        // thread reads the events and touches no mapping itself.
        unsafe { watcher.register(self.start.addr().get() + at, len, what) }
    }

    /// Puts memory in the place of what is shown of which every touch is told.
    fn park(&self, at: usize, len: usize) -> Result<(), Errno> {
        let watcher = self.watcher.as_ref().expect("only a mapping that follows its buffer is ever away");
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing.
        let aside = unsafe { mmap_anonymous(std::ptr::null_mut(), len, self.protection, flags) }?;
        let parked = (|| {
            // SAFETY: the memory is fresh and nobody knows of it. Once it is part of our range, its owner was told that touches may sleep.
            unsafe { watcher.register_for_parking(aside.addr(), len) }?;
            self.take_entries_away(aside, len)?;
            self.keep_from_children(aside, len);
            // SAFETY: `aside` is ours alone; the target lies within our own range, and what was there shows bytes that this mapping shows
            // no more.
            unsafe { mremap_fixed(aside, len, len, MremapFlags::MAYMOVE, self.address(at)) }
        })();
        if let Err(errno) = parked {
            // SAFETY: it was not moved, and nobody knows of it.
            let unmapped = unsafe { munmap(aside, len) };
            debug_assert!(unmapped.is_ok(), "fresh memory can be unmapped: {unmapped:?}");
            return Err(errno);
        }
        Ok(())
    }

    fn take_entries_away(&self, start: *mut c_void, len: usize) -> Result<(), Errno> {
        // SAFETY: the range is our own and watched, so what touches it from here on sleeps. Behind it are a memfd's pages, which
        // stay, or none that were written.
        let advise = || unsafe { madvise(start, len, Advice::LinuxDontNeed) };
        advise().or_else(|errno| match errno {
            // Locked memory keeps its entries, and a process may have asked for all of its memory to be locked.
            Errno::INVAL => {
                // SAFETY: unlocking changes no byte.
                unsafe { munlock(start, len) }?;
                advise()
            }
            errno => Err(errno),
        })
    }

    /// A forked child would keep what is shown now for ever, whoever owns it then. It gets nothing.
    fn keep_from_children(&self, start: *mut c_void, len: usize) {
        // SAFETY: it changes nothing in this process.
        let kept = unsafe { madvise(start, len, Advice::LinuxDontFork) };
        debug_assert!(kept.is_ok(), "a whole mapping can be kept from children: {kept:?}");
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        own_ranges::remove(self.start.addr().get());
        // SAFETY: the range is our own, and whoever has its address was told that it is good for as long as the mapping lives.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "unmapping a CPU mapping failed: {unmapped:?}");
        // Whoever touched it too late and sleeps has to find out.
        self.wake(0..self.len as u64);
    }
}

fn within(range: &Range<u64>) -> (usize, usize) {
    (range.start as usize, (range.end - range.start) as usize)
}

/// Addresses without access for `len_bytes`, which begin at the same place within a huge page as `from_bytes`.
fn reserve_aligned(from_bytes: u64, len_bytes: u64) -> Option<NonNull<u8>> {
    let len = usize::try_from(len_bytes).ok()?;
    let slack = if len >= HUGE_PAGE_BYTES { HUGE_PAGE_BYTES } else { 0 };
    let total = len.checked_add(slack)?;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice aliases nothing.
    let reserved = unsafe { mmap_anonymous(std::ptr::null_mut(), total, ProtFlags::empty(), flags) }.ok()?;
    let phase = from_bytes as usize % HUGE_PAGE_BYTES;
    let skip = match slack {
        0 => 0,
        _ => (phase + HUGE_PAGE_BYTES - reserved.addr() % HUGE_PAGE_BYTES) % HUGE_PAGE_BYTES,
    };
    let start = reserved.wrapping_byte_add(skip);
    for (address, len) in [(reserved, skip), (start.wrapping_byte_add(len), slack - skip)] {
        if len > 0 {
            // SAFETY: the ends of the mapping just made, which nobody knows of.
            let cut = unsafe { munmap(address, len) };
            debug_assert!(cut.is_ok(), "the end of a reservation can be cut off: {cut:?}");
        }
    }
    NonNull::new(start.cast())
}
