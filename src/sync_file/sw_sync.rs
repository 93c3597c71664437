//! `sw_sync` as a source: each kernel fence is the next point of a timeline that has no other outstanding.
//!
//! Points of one timeline signal in order, and our work does not end in order; so timelines that are idle are kept, and each is used for one
//! fence at a time. Closing one signals its fence with an error, which is how work that failed is told.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use devpagemap_fence::Outside;
use rustix::fs::{Mode, OFlags, open};

use super::dma_buf::KernelSyncFile;
use super::kernel::{Ended, KernelFence, MadeFence, Outcome};
use super::machine::Source;
use crate::error::{Error, Result};
use crate::uapi::sw_sync::{PATH, advance, create_fence};

/// How many idle timelines are kept, a descriptor each.
const KEPT: usize = 32;
/// How often one is used: the kernel compares points in 31 bits.
const USED_UP: u32 = 1 << 30;

/// Idle timelines.
type Idle = Outside<Vec<Counter>>;

/// One timeline, and the point up to which it has signalled.
#[derive(Debug)]
struct Counter {
    fd: OwnedFd,
    value: u32,
}

#[derive(Debug)]
pub(super) struct SwSync {
    /// Its own lock.
    idle: Arc<Idle>,
}

impl SwSync {
    /// # Errors
    /// [`Error::NoRights`], or that there is none.
    pub(super) fn find() -> Result<SwSync> {
        let first = Counter::open()?;
        Ok(SwSync { idle: Arc::new(Outside::new("idle sw_sync timelines", vec![first])) })
    }
}

impl Counter {
    fn open() -> Result<Counter> {
        Ok(Counter { fd: open_timeline()?, value: 0 })
    }
}

/// A new timeline, which ends when it is closed.
///
/// # Errors
/// [`Error::Io`] with `ENOENT` when the kernel has none, [`Error::NoRights`], [`Error::NoDescriptorsLeft`].
pub(crate) fn open_timeline() -> Result<OwnedFd> {
    open(PATH, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::of_path("open a timeline of kernel fences", PATH, errno))
}

impl Source for SwSync {
    fn name(&self) -> &'static str {
        "sw_sync"
    }

    fn expires_after(&self) -> Option<Duration> {
        None
    }

    fn make(&self) -> Result<MadeFence> {
        let idle = self.idle.lock().pop();
        let counter = idle.map_or_else(Counter::open, Ok)?;
        let file = create_fence(counter.fd.as_fd(), counter.value + 1)
            .map_err(|errno| Error::of_descriptor("make a kernel fence", errno))?;
        let fence = Box::new(SwSyncFence { counter, idle: self.idle.clone() });
        Ok(MadeFence { fence, file: Box::new(KernelSyncFile::of(file)) })
    }
}

/// The next point of a timeline.
#[derive(Debug)]
struct SwSyncFence {
    counter: Counter,
    idle: Arc<Idle>,
}

impl KernelFence for SwSyncFence {
    fn end(self: Box<Self>, outcome: Outcome) -> Ended {
        let SwSyncFence { mut counter, idle } = *self;
        if outcome == Outcome::Failed {
            drop(counter);
            return Ended::AsTold;
        }
        if let Err(errno) = advance(counter.fd.as_fd(), 1) {
            return Ended::Refused(Error::of_descriptor("signal a kernel fence", errno));
        }
        counter.value += 1;
        if counter.value < USED_UP {
            let mut idle = idle.lock();
            if idle.len() < KEPT {
                idle.push(counter);
            }
        }
        Ended::AsTold
    }
}
