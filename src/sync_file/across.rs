//! One dma-buf whose reservation object hears of a buffer's fences, and whose fences the buffer hears of.
//!
//! What the kernel lists there are our fences and theirs, and a sync_file does not say whose a fence is. Ours must not be waited for: the
//! buffer's own reservation orders our work already, and our job may well take longer than we would wait for a stranger. So they are
//! counted out:
//!
//! ```text
//!   ours      which of our kernel fences were let in here and are outstanding     noted before
//!   snapshot  a sync_file of all fences that the access has to wait for            the kernel's one step
//!   active    how many of those have not signalled
//!   still     how many of `ours` are outstanding even now                          looked at afterwards
//!
//!   each of `still` was let in before the snapshot and had not signalled by then, so it is among `active`:
//!   active > still  ─►  somebody else's may be among them: listen
//!   active = still  ─►  nobody else's is
//! ```
//!
//! The count errs on the safe side alone, if two things hold. A fence of ours says that it is over *before* the kernel is told. And what
//! was let in after `ours` was noted does not count. A fence that the kernel may have signalled on its own, because its time is up, is
//! nobody's: [`Told::is_outstanding`] says no before that time comes.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use devpagemap_fence::sync::atomic::{AtomicUsize, Ordering};
use devpagemap_fence::sync::mutant;
use devpagemap_fence::{Fence, Outside};

use super::crossing::Crossing;
use super::kernel::{FenceInfo, Outcome, ReservationObject, SyncFile};
#[cfg(not(any(loom, shuttle)))]
use crate::backend::DmaBuf;
use crate::error::Result;
#[cfg(not(any(loom, shuttle)))]
use crate::manager::Manager;
use crate::submit::Access;

/// What has been said of one kernel fence of ours.
#[derive(Debug)]
pub(super) struct Told {
    /// One of the numbers below. Raised once.
    word: AtomicUsize,
    /// From when on the kernel may signal it on its own. Constant.
    expires: Option<Instant>,
}

impl Told {
    const NOTHING: usize = 0;
    const DONE: usize = 1;
    const FAILED: usize = 2;

    pub(super) fn new(expires: Option<Instant>) -> Arc<Told> {
        Arc::new(Told { word: AtomicUsize::new(Told::NOTHING), expires })
    }

    /// To be said before the kernel is told.
    pub(super) fn ends(&self, outcome: Outcome) {
        let word = match outcome {
            Outcome::Done => Told::DONE,
            Outcome::Failed => Told::FAILED,
        };
        self.word.store(word, Ordering::Release);
    }

    /// Whether the kernel has it as outstanding for certain, now or up to now.
    pub(super) fn is_outstanding(&self, now: Instant) -> bool {
        self.word.load(Ordering::Acquire) == Told::NOTHING && self.expires.is_none_or(|at| now < at)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.word.load(Ordering::Acquire) == Told::FAILED
    }
}

/// A kernel fence of ours in a reservation object.
struct LetIn {
    told: Arc<Told>,
    access: Access,
}

/// A buffer's way to the reservation object of its dma-buf. It is part of the buffer's state as long as others may have the dma-buf.
/// All buffers of a device that share a dma-buf share it.
pub(crate) struct Across {
    /// Constant.
    pub(super) crossing: Arc<Crossing>,
    /// Constant.
    theirs: Arc<dyn ReservationObject>,
    /// Our fences there, some of those that are over included. Its own lock.
    ours: Outside<Vec<LetIn>>,
}

impl Across {
    /// Between buffers of this device and a dma-buf.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn new(dma_buf: Arc<DmaBuf>, manager: &Manager) -> Arc<Across> {
        manager.crossing.across(Arc::new(super::dma_buf::DmaBufFences::new(dma_buf)))
    }

    pub(super) fn over(crossing: Arc<Crossing>, theirs: Arc<dyn ReservationObject>) -> Across {
        Across { crossing, theirs, ours: Outside::new("fences in a dma-buf", Vec::new()) }
    }

    /// Adds a fence of ours.
    pub(super) fn let_in(&self, told: &Arc<Told>, file: &dyn SyncFile, access: Access) -> Result<()> {
        self.theirs.import(file, access)?;
        let now = self.crossing.now();
        let mut ours = self.ours.lock();
        ours.retain(|let_in| let_in.told.is_outstanding(now));
        ours.push(LetIn { told: told.clone(), access });
        Ok(())
    }

    /// What others do to the bytes that such an access has to wait for; `None` when that is nothing. Whoever asks does not wait for ours.
    ///
    /// # Errors
    /// What the kernel says; [`Error::NoDescriptorsLeft`](crate::Error::NoDescriptorsLeft).
    pub(crate) fn hear(&self, access: Access) -> Result<Option<Fence>> {
        let early = (!mutant!("ours_are_noted_behind_the_snapshot")).then(|| self.ours_for(access));
        let Some(file) = self.theirs.export(access)? else { return Ok(None) };
        let fences = file.fences()?;
        let ours = early.unwrap_or_else(|| self.ours_for(access));
        if are_only_ours(&fences, &ours, self.crossing.now()) {
            return Ok(None);
        }
        self.crossing.listen(file, &fences, ours).map(Some)
    }

    /// Whether others do something to the bytes now; when in doubt, yes.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn is_used(&self) -> bool {
        let ours = self.ours_for(Access::Write);
        match self.theirs.export(Access::Write) {
            Ok(None) => false,
            Ok(Some(file)) => {
                file.fences().map_or(true, |fences| !are_only_ours(&fences, &ours, self.crossing.now()))
            }
            Err(_) => true,
        }
    }

    /// Our fences that an access has to wait for.
    fn ours_for(&self, access: Access) -> Vec<Arc<Told>> {
        let now = self.crossing.now();
        let ours = self.ours.lock();
        let concerned = |let_in: &&LetIn| {
            let_in.told.is_outstanding(now) && (access == Access::Write || let_in.access == Access::Write)
        };
        ours.iter().filter(concerned).map(|let_in| let_in.told.clone()).collect()
    }
}

impl fmt::Debug for Across {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Across").field("theirs", &self.theirs).finish_non_exhaustive()
    }
}

impl Drop for Across {
    fn drop(&mut self) {
        self.crossing.forget_across(self.theirs.key());
    }
}

/// Whether no fence of anybody else is outstanding in a snapshot in which `ours` were.
pub(super) fn are_only_ours(fences: &[FenceInfo], ours: &[Arc<Told>], now: Instant) -> bool {
    let active = fences.iter().filter(|fence| fence.ended.is_none()).count();
    let still = ours.iter().filter(|told| told.is_outstanding(now)).count();
    active <= still
}
