//! The kernel's dma-heaps: memory that is a dma-buf from the beginning.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use super::DmaBuf;
use super::exporter::{Abilities, Exporter, Made, Source, Wanted};
use super::udmabuf::open_device;
use crate::error::{Error, Result};
use crate::share::WhyNot;
use crate::uapi::dma_heap;

/// A heap that is there, whether or not this process may use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeapFound {
    /// What the kernel calls it; `system` is the heap of ordinary memory.
    pub name: String,
    /// Its device.
    pub path: PathBuf,
    /// Why it cannot be used, if it cannot.
    pub usable: Result<(), WhyNot>,
}

/// The heap of ordinary memory, open.
#[derive(Debug)]
pub(crate) struct SystemHeap(OwnedFd);

impl SystemHeap {
    /// # Errors
    /// Why it cannot be used.
    pub(crate) fn open() -> Result<SystemHeap, WhyNot> {
        let path = format!("{}/{}", dma_heap::DIR, dma_heap::SYSTEM);
        open_device("open a dma-heap", &path).map(SystemHeap)
    }
}

impl Exporter for SystemHeap {
    fn abilities(&self) -> Abilities {
        // A heap does make read-only descriptors, but its memory has no other, so nothing could ever be in it.
        Abilities { in_place: false, max_bytes: i64::MAX as u64, max_runs: usize::MAX, read_only: false }
    }

    fn make(&self, wanted: Wanted, _source: Source<'_>) -> Result<Made> {
        let fd = dma_heap::alloc(self.0.as_fd(), wanted.len_bytes, wanted.writable)
            .map_err(|errno| Error::io("allocate from a dma-heap", wanted.len_bytes, errno))?;
        Ok(Made::of(DmaBuf::new(fd)?))
    }
}

/// All heaps that there are, and can be seen, by name.
pub(crate) fn heaps() -> Vec<HeapFound> {
    let Ok(entries) = std::fs::read_dir(dma_heap::DIR) else { return Vec::new() };
    let mut found: Vec<HeapFound> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = path.file_name()?.to_str()?.to_owned();
            let usable = open_device("open a dma-heap", path.to_str()?).map(drop);
            Some(HeapFound { name, path, usable })
        })
        .collect();
    found.sort_by(|one, other| one.name.cmp(&other.name));
    found
}
