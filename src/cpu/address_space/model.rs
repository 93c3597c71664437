//! A page table for models: one entry for the whole mapping, behind a lock. A touch and a zap exclude each other, as hardware sees to
//! when entries are taken away.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use devpagemap_fence::sync::Mutex;
use devpagemap_migrate::{Extent, MemoryMap};

use super::AfterLoss;
use crate::backend::DeviceMemory;
use crate::cpu::windowed::Piece;
use crate::error::Result;

/// Nobody needs to be told: a model's toucher serves itself.
#[derive(Debug)]
pub(crate) struct Watcher;

/// What the one entry leads to.
#[derive(Clone, Copy, Debug)]
enum Entry {
    Away,
    Bytes(NonNull<u8>),
    Window(NonNull<u8>),
    Loss(AfterLoss),
}

/// A range of addresses that exists in the model's mind.
#[derive(Debug)]
pub(crate) struct AddressSpace {
    /// Constant.
    watched: bool,
    /// The page table's lock.
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    entry: Entry,
    /// How often sleepers were woken.
    wakes: u64,
}

// SAFETY: the pointer leads to memory that the mapping keeps, and is followed under the page table's lock only.
unsafe impl Send for AddressSpace {}
// SAFETY: as above.
unsafe impl Sync for AddressSpace {}

impl AddressSpace {
    pub(crate) fn reserve(
        watcher: Option<Arc<Watcher>>,
        _from_bytes: u64,
        _len_bytes: u64,
        _writable: bool,
    ) -> Result<AddressSpace> {
        Ok(AddressSpace {
            watched: watcher.is_some(),
            table: Mutex::new(Table { entry: Entry::Away, wakes: 0 }),
        })
    }

    pub(crate) fn start(&self) -> *mut u8 {
        std::ptr::null_mut()
    }

    pub(crate) fn is_watched(&self) -> bool {
        self.watched
    }

    pub(crate) fn sees_kernel_mode(&self) -> bool {
        true
    }

    pub(crate) fn point(&self, _at: u64, extents: &[Extent], memory: &DeviceMemory) -> Result<()> {
        let [extent] = extents else { unreachable!("buffers of models are one extent") };
        let bytes =
            memory.resolve(extent.addr, extent.len_bytes).expect("a place out of sight is never pointed at");
        self.table.lock().entry = Entry::Bytes(bytes);
        Ok(())
    }

    pub(crate) fn point_at_bar(&self, _at: u64, pieces: &[Piece<'_>]) -> Result<()> {
        let [piece] = pieces else { unreachable!("windows of models are one page") };
        self.table.lock().entry = Entry::Window(piece.memory.start);
        Ok(())
    }

    /// Whether a touch goes through a window without asking anybody.
    pub(crate) fn is_at_window(&self) -> bool {
        matches!(self.table.lock().entry, Entry::Window(_))
    }

    pub(crate) fn zap(&self, _range: Range<u64>) -> Result<()> {
        self.table.lock().entry = Entry::Away;
        Ok(())
    }

    pub(crate) fn show_loss(&self, _range: Range<u64>, what: AfterLoss) {
        self.table.lock().entry = Entry::Loss(what);
    }

    pub(crate) fn wake(&self, _range: Range<u64>) {
        self.table.lock().wakes += 1;
    }

    /// How often sleepers were woken so far.
    pub(crate) fn wakes(&self) -> u64 {
        self.table.lock().wakes
    }

    /// Exchanges the first byte for `value`; when the bytes are away, how often sleepers were woken before this one.
    pub(crate) fn touch(&self, value: u8) -> std::result::Result<u8, u64> {
        let table = self.table.lock();
        match table.entry {
            Entry::Away => Err(table.wakes),
            // SAFETY: the bytes are this mapping's for as long as the entry leads to them, and a model runs one thread at a time.
            Entry::Bytes(bytes) | Entry::Window(bytes) => Ok(unsafe { bytes.replace(value) }),
            Entry::Loss(what) => {
                assert_eq!(what, AfterLoss::Zeros, "the model was killed by SIGBUS");
                Ok(0)
            }
        }
    }
}
