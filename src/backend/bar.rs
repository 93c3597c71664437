//! The software GPU's BAR, as a peer on the bus sees it: a prefix of VRAM, or a table of windows.
//!
//! ```text
//!   BarAddr ──► page of the BAR ──► table: page of VRAM + 1, or 0 ──► byte in the VRAM memfd
//!                                   (a prefix has no table: the page is the page)
//! ```
//!
//! A change whose fences have signalled is made at once. Any other is made by the callback of its last fence, in whatever
//! thread signals it, as a GPU makes it when its command processor gets there.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use devpagemap_allocator::PAGE_BYTES;
use devpagemap_fence::{Fence, Outside, Timeline};
use devpagemap_migrate::{MemoryFile, MemoryMap, VramAddr};

use super::vram::SoftwareVram;
use super::{gather, scatter};
use crate::aperture::{Bar, BarAddr, BarMemory, WindowChange, WindowEntry};
use crate::error::{Error, Result};
use crate::region::push_run;

/// The pages of a BAR of windows: the page of VRAM that each shows plus one, or 0. A large table costs no memory until used.
type Table = Arc<Outside<Vec<u64>>>;

/// One BAR over one VRAM.
#[derive(Debug)]
pub(crate) struct SoftwareBar {
    /// Constant.
    size_bytes: u64,
    /// `None` for a prefix. Its own lock.
    table: Option<Table>,
    /// Constant.
    vram: Arc<SoftwareVram>,
}

impl SoftwareBar {
    pub(crate) fn new(bar: Bar, vram: Arc<SoftwareVram>) -> SoftwareBar {
        let size_bytes = bar.size().as_bytes();
        let table = match bar {
            Bar::Prefix(_) => None,
            Bar::Windows(_) => {
                let pages = (size_bytes / PAGE_BYTES) as usize;
                Some(Arc::new(Outside::new("software BAR", vec![0; pages])))
            }
        };
        SoftwareBar { size_bytes, table, vram }
    }

    /// Makes a change, now or when its fences have signalled.
    pub(crate) fn program(&self, change: &WindowChange<'_>) -> Result<Option<Fence>> {
        let Some(table) = &self.table else {
            return Err(Error::Unsupported {
                what: "a prefix of VRAM shows what it shows; it has no windows",
            });
        };
        for entry in change.entries() {
            self.check(entry)?;
        }
        if change.after().is_signaled() {
            write_entries(&mut table.lock(), change.entries());
            return Ok(None);
        }
        // A timeline a change: their fences signal in any order.
        let timeline = Timeline::new("software BAR");
        let fence = timeline.next_point();
        let (table, entries) = (table.clone(), change.entries().to_vec());
        let (seqno, published) = (fence.seqno(), fence.clone());
        change.after().when_signaled(move || {
            write_entries(&mut table.lock(), &entries);
            timeline.signal(seqno);
        });
        Ok(Some(published))
    }

    /// Refuses, before anything is written, an entry that no BAR of this size over this VRAM can have.
    fn check(&self, entry: &WindowEntry) -> Result<()> {
        let fits = |start: u64, size_bytes| {
            let aligned = start.is_multiple_of(PAGE_BYTES) && entry.len_bytes.is_multiple_of(PAGE_BYTES);
            aligned && start.checked_add(entry.len_bytes).is_some_and(|end| end <= size_bytes)
        };
        let shown = entry.shows.is_none_or(|VramAddr(start)| fits(start, self.vram.len_bytes()));
        if fits(entry.bar.0, self.size_bytes) && shown {
            return Ok(());
        }
        Err(Error::Driver {
            action: "program a window",
            reason: format!("{entry:?} has no such pages").into(),
        })
    }

    /// Reads as a peer on the bus would.
    pub(crate) fn read(&self, addr: BarAddr, into: &mut [u8]) -> Result<()> {
        let pieces = self.pieces(addr, into.len())?;
        // SAFETY: `pieces` found them within the VRAM mapping, which self keeps. They are reached through raw pointers only; what
        // orders this access against copies and jobs are the fences that a peer has to wait for.
        unsafe { gather(pieces, into) };
        Ok(())
    }

    /// Writes as a peer on the bus would.
    pub(crate) fn write(&self, addr: BarAddr, from: &[u8]) -> Result<()> {
        let pieces = self.pieces(addr, from.len())?;
        // SAFETY: as in read.
        unsafe { scatter(from, pieces) };
        Ok(())
    }

    /// The memory behind a part of the BAR, if it is one piece of VRAM.
    pub(crate) fn memory(&self, addr: BarAddr, len_bytes: u64) -> Option<BarMemory<'_>> {
        let shown = self.shown(addr, len_bytes).ok()?;
        let [run] = &shown[..] else { return None };
        let (addr, len_bytes) = (VramAddr(run.start).into(), run.end - run.start);
        let start = self.vram.resolve(addr, len_bytes)?;
        Some(match self.vram.file(addr, len_bytes) {
            Some((MemoryFile::Borrowed(file), offset_bytes)) => {
                BarMemory { file: Some(file), offset_bytes, start }
            }
            // A file that may be closed before the BAR is gone is none that its owner could lend.
            Some((MemoryFile::Shared(_), _)) | None => {
                BarMemory { file: None, offset_bytes: run.start, start }
            }
        })
    }

    fn pieces(&self, addr: BarAddr, len: usize) -> Result<Vec<(NonNull<u8>, usize)>> {
        let address = |run: Range<u64>| {
            let len_bytes = run.end - run.start;
            let start = self.vram.address(run.start, len_bytes).expect("what a BAR shows lies in VRAM");
            (start, len_bytes as usize)
        };
        Ok(self.shown(addr, len as u64)?.into_iter().map(address).collect())
    }

    /// Which bytes of VRAM a part of the BAR shows. All or nothing.
    fn shown(&self, addr: BarAddr, len_bytes: u64) -> Result<Vec<Range<u64>>> {
        let error = |why| Err(Error::BarAccess { addr, len_bytes, why });
        let Some(end) = addr.0.checked_add(len_bytes).filter(|end| *end <= self.size_bytes) else {
            return error("passes the end of the BAR");
        };
        let mut runs = Vec::new();
        let Some(table) = &self.table else {
            push_run(&mut runs, addr.0..end);
            return Ok(runs);
        };
        let table = table.lock();
        let mut at = addr.0;
        while at < end {
            let in_page = at % PAGE_BYTES;
            let Some(page) = table[(at / PAGE_BYTES) as usize].checked_sub(1) else {
                return error("meets a page that no window shows");
            };
            let (start, len) = (page * PAGE_BYTES + in_page, (end - at).min(PAGE_BYTES - in_page));
            push_run(&mut runs, start..start + len);
            at += len;
        }
        Ok(runs)
    }
}

fn write_entries(table: &mut [u64], entries: &[WindowEntry]) {
    for entry in entries {
        let first = (entry.bar.0 / PAGE_BYTES) as usize;
        let pages = (entry.len_bytes / PAGE_BYTES) as usize;
        for (index, slot) in table[first..first + pages].iter_mut().enumerate() {
            *slot = entry.shows.map_or(0, |VramAddr(start)| start / PAGE_BYTES + index as u64 + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::Size;
    use devpagemap_fence::FenceSet;
    use rustix::io::pread;

    const P: u64 = PAGE_BYTES;

    /// A BAR of four pages over eight of VRAM, each of which is full of its own number.
    fn windows() -> SoftwareBar {
        let vram = Arc::new(SoftwareVram::in_memfd(8 * P).expect("eight pages"));
        let whole = SoftwareBar::new(Bar::Prefix(Size::bytes(8 * P)), vram.clone());
        for page in 0..8 {
            whole.write(BarAddr(page * P), &[page as u8; P as usize]).expect("it is all visible");
        }
        SoftwareBar::new(Bar::Windows(Size::bytes(4 * P)), vram)
    }

    fn entry(bar_page: u64, pages: u64, vram_page: Option<u64>) -> WindowEntry {
        let shows = vram_page.map(|page| VramAddr(page * P));
        WindowEntry { bar: BarAddr(bar_page * P), len_bytes: pages * P, shows }
    }

    fn program(bar: &SoftwareBar, entries: &[WindowEntry], after: &FenceSet) -> Result<Option<Fence>> {
        bar.program(&WindowChange { entries, after })
    }

    fn byte(bar: &SoftwareBar, page: u64) -> Result<u8> {
        let mut byte = [0];
        bar.read(BarAddr(page * P), &mut byte).map(|()| byte[0])
    }

    #[test]
    fn an_access_follows_the_table_page_by_page_and_stops_at_a_page_without_a_window() {
        let bar = windows();
        let idle = FenceSet::new();
        program(&bar, &[entry(0, 2, Some(5)), entry(2, 1, Some(0))], &idle).expect("they fit");
        let mut bytes = vec![0xff; 2 * P as usize];
        bar.read(BarAddr(P), &mut bytes).expect("two pages are shown");
        assert!(
            bytes[..P as usize].iter().all(|byte| *byte == 6) && bytes[P as usize..].iter().all(|b| *b == 0)
        );
        let before = bytes.clone();
        let error = bar.read(BarAddr(2 * P), &mut bytes).expect_err("the last page shows nothing");
        assert!(
            error.to_string().contains("bar:0x2000") && error.to_string().contains("no window"),
            "{error}"
        );
        assert_eq!(bytes, before, "nothing was read");
        assert!(bar.write(BarAddr(3 * P), &[1]).is_err());
        assert!(bar.read(BarAddr(4 * P), &mut [0]).is_err_and(|error| error.to_string().contains("end")));
        assert!(bar.read(BarAddr(u64::MAX), &mut [0, 0]).is_err());
    }

    #[test]
    fn what_is_written_through_one_window_is_read_through_another() {
        let bar = windows();
        program(&bar, &[entry(0, 1, Some(3)), entry(1, 1, Some(3))], &FenceSet::new()).expect("they fit");
        bar.write(BarAddr(7), b"across").expect("it is shown");
        let mut bytes = [0; 6];
        bar.read(BarAddr(P + 7), &mut bytes).expect("it is shown twice");
        assert_eq!(&bytes, b"across");
    }

    #[test]
    fn a_page_that_shows_nothing_any_more_faults() {
        let bar = windows();
        let idle = FenceSet::new();
        program(&bar, &[entry(1, 1, Some(4))], &idle).expect("it fits");
        assert_eq!(byte(&bar, 1), Ok(4));
        program(&bar, &[entry(1, 1, None)], &idle).expect("it fits");
        assert!(byte(&bar, 1).is_err());
    }

    #[test]
    fn a_change_behind_a_fence_is_made_when_that_signals_and_has_a_fence_of_its_own() {
        let bar = windows();
        let former_user = Timeline::new("peer");
        let last = former_user.next_point();
        program(&bar, &[entry(0, 1, Some(1))], &FenceSet::new()).expect("it fits");
        let fence = program(&bar, &[entry(0, 1, Some(2))], &last.clone().into()).expect("it fits");
        let fence = fence.expect("it is not made yet");
        assert_eq!((byte(&bar, 0), fence.is_signaled()), (Ok(1), false));
        former_user.signal(last.seqno());
        assert_eq!((byte(&bar, 0), fence.is_signaled()), (Ok(2), true));
    }

    #[test]
    fn a_change_with_one_bad_entry_changes_nothing() {
        let bar = windows();
        for bad in [entry(3, 2, Some(0)), entry(0, 2, Some(7)), entry(4, 1, None)] {
            let refused = program(&bar, &[entry(0, 1, Some(1)), bad], &FenceSet::new());
            assert!(matches!(refused, Err(Error::Driver { .. })), "{bad:?}");
            assert!(byte(&bar, 0).is_err(), "the good entry was not made either");
        }
    }

    #[test]
    fn the_cpu_finds_the_file_the_offset_and_the_address_of_a_run_that_is_one_piece_of_vram() {
        let bar = windows();
        program(&bar, &[entry(0, 2, Some(5)), entry(2, 1, Some(1))], &FenceSet::new()).expect("they fit");
        let memory = bar.memory(BarAddr(P), P).expect("one page is one piece");
        assert_eq!(memory.offset_bytes, 6 * P);
        let mut byte = [0];
        pread(memory.file.expect("a memfd"), &mut byte, memory.offset_bytes).expect("the file can be read");
        // SAFETY: `memory` vouches for a page from `start`, which nobody writes meanwhile.
        assert_eq!((byte[0], unsafe { memory.start.read() }), (6, 6));
        assert!(bar.memory(BarAddr(0), 2 * P).is_some(), "two pages of VRAM in order");
        assert!(bar.memory(BarAddr(P), 2 * P).is_none(), "pages 6 and 1 are no run");
        assert!(bar.memory(BarAddr(3 * P), 1).is_none(), "shows nothing");
    }

    #[test]
    fn a_prefix_has_nothing_to_program_and_ends_where_it_ends() {
        let vram = Arc::new(SoftwareVram::in_memfd(8 * P).expect("eight pages"));
        let bar = SoftwareBar::new(Bar::Prefix(Size::bytes(2 * P)), vram);
        assert!(matches!(program(&bar, &[], &FenceSet::new()), Err(Error::Unsupported { .. })));
        assert_eq!(byte(&bar, 1), Ok(0));
        assert!(byte(&bar, 2).is_err());
    }
}
