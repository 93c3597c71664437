//! A byte that loom watches: what a model does its work on, to see whether the work is ordered.

use loom::cell::UnsafeCell;

/// Written by one thread, read by others who have been told that it was.
#[derive(Debug, Default)]
pub struct Watched(UnsafeCell<u8>);

// SAFETY: loom reports every access that is not ordered after the one before it; finding those is what the byte is for.
unsafe impl Sync for Watched {}

impl Watched {
    /// Does the work.
    pub fn write(&self) {
        // SAFETY: loom checks that nobody else is at it.
        self.0.with_mut(|byte| unsafe { *byte = 7 });
    }

    /// Whether the work was done.
    pub fn is_written(&self) -> bool {
        // SAFETY: loom checks that the write came before, or not at all.
        self.0.with(|byte| unsafe { *byte == 7 })
    }
}
