//! Pages that are not the arena's: a dma-buf, or another file in memory, mapped into this process.
//!
//! They are addressed like all system memory, behind the end of the arena:
//!
//! ```text
//!   SysAddr  0             arena's end          base
//!            ├─── arena ───┤    (nothing)        ├─ pages ─┤guard├─ pages ─┤guard├ (never used again) ┤guard├─ pages ─┤ ...
//! ```
//!
//! An address is given out once, so one that outlives its pages leads nowhere, and never to somebody else's. Between two ranges
//! there is a page that nobody has, so no run of bytes goes from one into the next.
//!
//! [`OutsideTable`] knows where the ranges are mapped. A lock without a level protects it, held for one look into a map and never around
//! a system call; who resolves an address of the arena does not take it. A range leaves the table before it is unmapped. Whoever has
//! resolved an address before that relies on [`MemoryMap`](devpagemap_migrate::MemoryMap)'s promise: the bytes belong to somebody, and who
//! owns them gives them back behind the fences of all who use them.
//!
//! Whoever drops the last reference unmaps, wherever that is. A buffer's goes behind its fences, mostly in the callback of the last
//! ([`OutsideTable::retire`]); whoever has found the device idle does it if that callback is late, so an idle device has unmapped what it
//! has no more use for. Nothing of that waits for a fence, or takes a lock of this library but those of the table.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
#[cfg(any(test, loom, shuttle))]
use std::os::fd::OwnedFd;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use devpagemap_allocator::PAGE_BYTES;
use devpagemap_fence::sync::mutant;
use devpagemap_fence::{FenceSet, Outside};
use devpagemap_migrate::{MemoryFile, SysAddr};
use rustix::mm::ProtFlags;

#[cfg(not(any(loom, shuttle)))]
use super::DmaBuf;
#[cfg(not(any(loom, shuttle)))]
use super::exporter::Window;
use super::mapped_file::MappedFile;
use crate::error::{Error, Result};

/// What outside pages begin at a multiple of.
const BASE_ALIGN_BYTES: u64 = 1 << 30;

/// Why a device has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutsideRole {
    /// Somebody else made them, and this device's buffers use them.
    Imported,
    /// They hold a buffer of this device that others use.
    Exported,
}

/// The file behind outside pages.
#[derive(Clone)]
pub(crate) enum OutsideFile {
    /// A dma-buf: the CPU says when it begins and ends to use the bytes.
    #[cfg(not(any(loom, shuttle)))]
    DmaBuf(Arc<DmaBuf>),
    /// A dma-buf that may be read only, and where its driver's node shows the same bytes to be written.
    #[cfg(not(any(loom, shuttle)))]
    Window(Window, Arc<DmaBuf>),
    /// A memfd, in tests and models.
    #[cfg(any(test, loom, shuttle))]
    Plain(Arc<OwnedFd>),
}

impl OutsideFile {
    /// Where in the file the first byte is.
    fn offset_bytes(&self) -> u64 {
        match self {
            #[cfg(not(any(loom, shuttle)))]
            OutsideFile::Window(window, _) => window.offset_bytes,
            _ => 0,
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            #[cfg(not(any(loom, shuttle)))]
            OutsideFile::DmaBuf(dma_buf) => dma_buf.as_fd(),
            #[cfg(not(any(loom, shuttle)))]
            OutsideFile::Window(window, _) => window.device.as_fd(),
            #[cfg(any(test, loom, shuttle))]
            OutsideFile::Plain(file) => file.as_fd(),
        }
    }

    fn shared(&self) -> MemoryFile<'static> {
        match self {
            #[cfg(not(any(loom, shuttle)))]
            OutsideFile::DmaBuf(dma_buf) => MemoryFile::Shared(dma_buf.clone()),
            #[cfg(not(any(loom, shuttle)))]
            OutsideFile::Window(window, _) => MemoryFile::Shared(window.device.clone()),
            #[cfg(any(test, loom, shuttle))]
            OutsideFile::Plain(file) => MemoryFile::Shared(file.clone()),
        }
    }
}

/// Outside pages that are to be mapped.
pub(crate) struct OutsideMemory {
    pub(crate) file: OutsideFile,
    /// Whole pages.
    pub(crate) len_bytes: u64,
    pub(crate) writable: bool,
    pub(crate) role: OutsideRole,
    /// What the pages need to exist, as the handle of a buffer of another driver.
    pub(crate) keep: Box<dyn Any + Send + Sync>,
}

/// Outside pages, mapped until this is dropped.
pub(crate) struct OutsidePages {
    /// Unmapped once the table has it no longer. Constant.
    mapped: Arc<MappedFile>,
    /// Constant.
    at: SysAddr,
    /// Constant.
    writable: bool,
    /// Constant.
    role: OutsideRole,
    /// Who resolves `at`. Constant.
    table: Arc<OutsideTable>,
    /// Goes after the mapping. Constant.
    #[cfg(not(any(loom, shuttle)))]
    file: OutsideFile,
    /// Goes last. Constant.
    _keep: Box<dyn Any + Send + Sync>,
}

impl OutsidePages {
    /// Their first address.
    pub(crate) fn at(&self) -> SysAddr {
        self.at
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        self.mapped.len_bytes()
    }

    /// Whether anybody may write them.
    pub(crate) fn is_writable(&self) -> bool {
        self.writable
    }

    /// The dma-buf that they are, if they are one.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn dma_buf(&self) -> Option<&Arc<DmaBuf>> {
        match &self.file {
            OutsideFile::DmaBuf(dma_buf) | OutsideFile::Window(_, dma_buf) => Some(dma_buf),
            #[cfg(any(test, loom, shuttle))]
            OutsideFile::Plain(_) => None,
        }
    }
}

impl fmt::Debug for OutsidePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutsidePages")
            .field("at", &self.at)
            .field("len_bytes", &self.len_bytes())
            .field("writable", &self.writable)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

impl Drop for OutsidePages {
    fn drop(&mut self) {
        self.table.forget(self);
    }
}

/// Where the outside pages of one device are mapped.
pub(crate) struct OutsideTable {
    /// The first address that it ever gives out. Constant.
    base: u64,
    ranges: Outside<Ranges>,
    /// What goes when its fences have signalled, by number.
    leaving: Outside<BTreeMap<u64, Leaving>>,
    /// The next of these numbers. An atomic.
    next_leaving: AtomicU64,
    /// Bytes that are mapped now. Statistics.
    imported_bytes: AtomicU64,
    /// Likewise.
    exported_bytes: AtomicU64,
}

/// Pages that a buffer has left. Whoever takes them out unmaps them, with this lock held: so who finds nothing here knows that it is done.
type LeftPages = Arc<Outside<Option<Arc<OutsidePages>>>>;

#[derive(Clone)]
struct Leaving {
    fences: FenceSet,
    pages: LeftPages,
}

struct Ranges {
    /// By their first address.
    mapped: BTreeMap<u64, Range>,
    /// The next address to be given out.
    next: u64,
}

struct Range {
    mapped: Arc<MappedFile>,
    file: OutsideFile,
}

impl OutsideTable {
    /// A table for what is behind an arena of so many bytes.
    pub(crate) fn behind(arena_bytes: u64) -> Arc<OutsideTable> {
        let base = (arena_bytes + 1).next_multiple_of(BASE_ALIGN_BYTES);
        let ranges = Ranges { mapped: BTreeMap::new(), next: base };
        Arc::new(OutsideTable {
            base,
            ranges: Outside::new("outside pages", ranges),
            leaving: Outside::new("outside pages that leave", BTreeMap::new()),
            next_leaving: AtomicU64::new(0),
            imported_bytes: AtomicU64::new(0),
            exported_bytes: AtomicU64::new(0),
        })
    }

    /// Maps pages and gives them addresses.
    ///
    /// # Errors
    /// [`Error::InvalidSize`], [`Error::Io`] when the system does not map them.
    pub(crate) fn map(self: &Arc<Self>, memory: OutsideMemory) -> Result<Arc<OutsidePages>> {
        let OutsideMemory { file, len_bytes, writable, role, keep } = memory;
        let mapped = Arc::new(map_file(&file, len_bytes, writable)?);
        let at = {
            let mut ranges = self.ranges.lock();
            let at = ranges.next;
            // 2^63 bytes are a million imports a second of 100 MiB each, for a day.
            ranges.next = at.checked_add(len_bytes + PAGE_BYTES).expect("no machine maps so much");
            ranges.mapped.insert(at, Range { mapped: mapped.clone(), file: file.clone() });
            SysAddr(at)
        };
        self.bytes_of(role).fetch_add(len_bytes, Ordering::Relaxed);
        let table = self.clone();
        Ok(Arc::new(OutsidePages {
            mapped,
            at,
            writable,
            role,
            table,
            #[cfg(not(any(loom, shuttle)))]
            file,
            _keep: keep,
        }))
    }

    /// A buffer has left `pages`, and uses them until `fences` have signalled.
    pub(crate) fn retire(self: &Arc<Self>, pages: Arc<OutsidePages>, fences: FenceSet) {
        if mutant!("pages_go_before_their_fences") {
            return drop(pages);
        }
        let id = self.next_leaving.fetch_add(1, Ordering::Relaxed);
        let pages: LeftPages = Arc::new(Outside::new("outside pages that left", Some(pages)));
        self.leaving.lock().insert(id, Leaving { fences: fences.clone(), pages: pages.clone() });
        let table = self.clone();
        fences.when_signaled(move || {
            let_go(&pages);
            table.leaving.lock().remove(&id);
        });
    }

    /// Lets go of what may go but is still here, as the callback of its fences is late.
    pub(crate) fn reap_signalled(&self) {
        let leaving: Vec<Leaving> = self.leaving.lock().values().cloned().collect();
        leaving.iter().filter(|left| left.fences.is_signaled()).for_each(|left| let_go(&left.pages));
    }

    fn forget(&self, pages: &OutsidePages) {
        let gone = self.ranges.lock().mapped.remove(&pages.at.0);
        debug_assert!(gone.is_some(), "{pages:?} are in the table until they are dropped");
        self.bytes_of(pages.role).fetch_sub(pages.len_bytes(), Ordering::Relaxed);
    }

    /// Bytes that are mapped now, for that reason.
    pub(crate) fn mapped_bytes(&self, role: OutsideRole) -> u64 {
        self.bytes_of(role).load(Ordering::Relaxed)
    }

    fn bytes_of(&self, role: OutsideRole) -> &AtomicU64 {
        match role {
            OutsideRole::Imported => &self.imported_bytes,
            OutsideRole::Exported => &self.exported_bytes,
        }
    }

    /// The address of `len_bytes` at `at`; `None` when they are not all within one range.
    pub(super) fn address(&self, at: u64, len_bytes: u64) -> Option<NonNull<u8>> {
        self.find(at, len_bytes, |range, offset| range.mapped.address(offset, len_bytes))?
    }

    /// The file that holds these bytes, and where in it.
    pub(super) fn file(&self, at: u64, len_bytes: u64) -> Option<(MemoryFile<'static>, u64)> {
        self.find(at, len_bytes, |range, offset| (range.file.shared(), range.file.offset_bytes() + offset))
    }

    fn find<O>(&self, at: u64, len_bytes: u64, found: impl FnOnce(&Range, u64) -> O) -> Option<O> {
        if at < self.base {
            return None;
        }
        let ranges = self.ranges.lock();
        let (first, range) = ranges.mapped.range(..=at).next_back()?;
        let offset = at - first;
        (offset.checked_add(len_bytes)? <= range.mapped.len_bytes()).then(|| found(range, offset))
    }
}

fn let_go(pages: &LeftPages) {
    let mut pages = pages.lock();
    drop(pages.take());
}

impl fmt::Debug for OutsideTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutsideTable").field("base", &self.base).finish_non_exhaustive()
    }
}

fn map_file(file: &OutsideFile, len_bytes: u64, writable: bool) -> Result<MappedFile> {
    if len_bytes == 0 || !len_bytes.is_multiple_of(PAGE_BYTES) {
        let why = "are not a positive number of whole pages";
        return Err(Error::InvalidSize { what: "outside pages", bytes: len_bytes, why });
    }
    let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
    MappedFile::new(file.as_fd(), file.offset_bytes(), len_bytes, protection)
        .map_err(|errno| Error::io("map outside pages", len_bytes, errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::MemfdPages;

    const PAGE: u64 = PAGE_BYTES;

    #[test]
    fn outside_pages_are_found_within_their_range_and_nowhere_else() {
        let table = OutsideTable::behind(5 * PAGE);
        let pages = table.map(MemfdPages::new(2 * PAGE).exported(())).expect("two pages");
        let at = pages.at().0;
        assert!(at > 5 * PAGE, "{at} is behind the arena");
        assert!(table.address(at, 2 * PAGE).is_some() && table.address(at + PAGE, PAGE).is_some());
        for (at, len) in
            [(at, 2 * PAGE + 1), (at - 1, 1), (at + 2 * PAGE, 1), (at, u64::MAX), (0, PAGE), (u64::MAX, 1)]
        {
            assert!(table.address(at, len).is_none() && table.file(at, len).is_none(), "{len} bytes at {at}");
        }
    }

    #[test]
    fn an_address_of_pages_that_are_gone_leads_nowhere_for_ever() {
        let table = OutsideTable::behind(PAGE);
        let first = table.map(MemfdPages::new(PAGE).exported(())).expect("a page");
        let gone = first.at();
        drop(first);
        let second = table.map(MemfdPages::new(PAGE).exported(())).expect("a page");
        assert_ne!(second.at(), gone);
        assert!(table.address(gone.0, PAGE).is_none());
    }

    #[test]
    fn no_run_of_bytes_goes_from_one_range_into_the_next() {
        let table = OutsideTable::behind(PAGE);
        let pages =
            [1, 2, 3].map(|count| table.map(MemfdPages::new(count * PAGE).exported(())).expect("pages"));
        for two in pages.windows(2) {
            assert!(two[0].at().0 + two[0].len_bytes() < two[1].at().0);
            assert!(table.address(two[0].at().0, two[1].at().0 - two[0].at().0 + 1).is_none());
        }
    }

    #[test]
    fn what_the_system_does_not_map_is_an_error_with_its_size_and_has_no_address() {
        let table = OutsideTable::behind(PAGE);
        let huge = OutsideMemory { len_bytes: 1 << 60, ..MemfdPages::new(PAGE).exported(()) };
        let error = table.map(huge).expect_err("no machine maps 1 EiB");
        assert!(error.to_string().contains(&(1u64 << 60).to_string()), "{error}");
        for len_bytes in [0, 100] {
            let odd = OutsideMemory { len_bytes, ..MemfdPages::new(PAGE).exported(()) };
            assert!(matches!(table.map(odd), Err(Error::InvalidSize { bytes, .. }) if bytes == len_bytes));
        }
        assert_eq!(table.mapped_bytes(OutsideRole::Exported), 0);
        assert!(table.ranges.lock().mapped.is_empty());
    }

    #[test]
    fn what_pages_need_goes_after_their_mapping() {
        struct Looks(Arc<MemfdPages>, Arc<AtomicU64>);
        impl Drop for Looks {
            fn drop(&mut self) {
                self.1.store(self.0.mappings() as u64 + 1, Ordering::Relaxed);
            }
        }
        let table = OutsideTable::behind(PAGE);
        let (memfd, seen) = (Arc::new(MemfdPages::new(PAGE)), Arc::default());
        let pages = table.map(memfd.exported(Looks(memfd.clone(), Arc::clone(&seen)))).expect("a page");
        assert_eq!((memfd.mappings(), seen.load(Ordering::Relaxed)), (1, 0));
        drop(pages);
        assert_eq!(seen.load(Ordering::Relaxed), 1, "it was dropped, and saw no mapping");
    }
}
