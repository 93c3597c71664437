//! What a driver is told when windows come and go.

use devpagemap_fence::FenceSet;
use devpagemap_migrate::VramAddr;

use super::BarAddr;

/// A run of BAR pages, and what it shows from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowEntry {
    /// The first byte of the run; page aligned.
    pub bar: BarAddr,
    /// How long the run is; whole pages.
    pub len_bytes: u64,
    /// The start of the run of VRAM that it shows, page aligned; `None`: nothing any more.
    pub shows: Option<VramAddr>,
}

/// Windows that are to be programmed, all in one.
#[derive(Debug)]
pub struct WindowChange<'a> {
    pub(crate) entries: &'a [WindowEntry],
    pub(crate) after: &'a FenceSet,
}

impl WindowChange<'_> {
    /// Which BAR pages show what. No page is in two entries; pages that are in none keep what they show.
    pub fn entries(&self) -> &[WindowEntry] {
        self.entries
    }

    /// What must have signalled before the first page changes: former users of these pages, and earlier changes to them.
    pub fn after(&self) -> &FenceSet {
        self.after
    }
}
