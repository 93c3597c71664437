//! What makes dma-bufs: the one interface of udmabuf, of heaps and of DRM drivers.
//!
//! Some make a dma-buf of pages that are there (*in place*), the others bring their own. Which of them a buffer goes through is decided in
//! `share/export/`; here is what each can do, and how.

use std::any::Any;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::DmaBuf;
use crate::error::Result;
use crate::share::{Layout, WhyNot};

/// Memory that is to be a dma-buf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Whole pages.
    pub(crate) len_bytes: u64,
    /// Whether those who get the descriptor may write.
    pub(crate) writable: bool,
}

/// What an exporter can do at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Whether it makes a dma-buf of pages that are there.
    pub in_place: bool,
    /// The largest dma-buf that it makes.
    pub max_bytes: u64,
    /// The most pieces of memory that it makes one dma-buf of.
    pub max_runs: usize,
    /// Whether what it makes can be read-only.
    pub read_only: bool,
}

impl Abilities {
    /// # Errors
    /// Why it makes no such dma-buf.
    pub(crate) fn check(&self, wanted: Wanted) -> Result<(), WhyNot> {
        if !wanted.writable && !self.read_only {
            return Err(WhyNot::NeverReadOnly);
        }
        match wanted.len_bytes <= self.max_bytes {
            true => Ok(()),
            false => Err(WhyNot::TooLarge { len_bytes: wanted.len_bytes, limit_bytes: self.max_bytes }),
        }
    }
}

/// What a dma-buf is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<'a> {
    /// Runs of a sealed memfd: offset and length in bytes, one after the other.
    InPlace { memfd: BorrowedFd<'a>, runs: &'a [(u64, u64)] },
    /// The exporter's own pages.
    Own,
}

/// A new dma-buf.
pub(crate) struct Made {
    pub(crate) dma_buf: DmaBuf,
    /// Where else its pages can be mapped for writing, if it can be mapped for reading only.
    pub(crate) window: Option<Window>,
    /// How an image lies in it, if it is one.
    pub(crate) layout: Option<Layout>,
    /// What the pages need to exist.
    pub(crate) keep: Box<dyn Any + Send + Sync>,
}

impl Made {
    /// One that needs nothing else.
    pub(crate) fn of(dma_buf: DmaBuf) -> Made {
        Made { dma_buf, window: None, layout: None, keep: Box::new(()) }
    }
}

/// Where a device shows a buffer.
#[derive(Clone)]
pub(crate) struct Window {
    pub(crate) device: Arc<dyn AsFd + Send + Sync>,
    pub(crate) offset_bytes: u64,
}

/// Something of the kernel's that makes dma-bufs.
pub(crate) trait Exporter: fmt::Debug + Send + Sync {
    fn abilities(&self) -> Abilities;

    /// Makes a dma-buf, of exactly the size that is wanted unless it is an image.
    ///
    /// # Errors
    /// What the kernel says. Nothing is left behind then.
    fn make(&self, wanted: Wanted, source: Source<'_>) -> Result<Made>;
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABILITIES: Abilities =
        Abilities { in_place: false, max_bytes: 8192, max_runs: usize::MAX, read_only: false };

    #[test]
    fn what_is_larger_than_an_exporter_takes_is_refused_with_both_sizes() {
        assert_eq!(ABILITIES.check(Wanted { len_bytes: 8192, writable: true }), Ok(()));
        assert_eq!(
            ABILITIES.check(Wanted { len_bytes: 12288, writable: true }),
            Err(WhyNot::TooLarge { len_bytes: 12288, limit_bytes: 8192 })
        );
    }

    #[test]
    fn what_can_always_be_written_is_not_offered_as_read_only() {
        let refused = ABILITIES.check(Wanted { len_bytes: 4096, writable: false });
        assert_eq!(refused, Err(WhyNot::NeverReadOnly));
        let able = Abilities { read_only: true, ..ABILITIES };
        assert_eq!(able.check(Wanted { len_bytes: 4096, writable: false }), Ok(()));
    }
}
