//! Our fences in the kernel: a kernel fence is reserved, let in everywhere it is to be seen, and armed with ours.
//!
//! ```text
//!   reserve   make a kernel fence ─► import it into each dma-buf │ arm: when ours signals, the kernel's is signalled
//!                        may fail                                │             cannot fail
//! ```
//!
//! One kernel fence is enough for a submission, however many dma-bufs its buffers have. What is reserved and not armed is signalled when
//! it is dropped, so a submission that is given up leaves nothing outstanding. Until it is armed it stands there for work that does not
//! exist yet: who polls the dma-buf meanwhile waits a moment too long, never too short.
//!
//! **Renewal.** vgem's fences do not last: the kernel signals them after ten seconds, whatever is at work. So before that comes another is
//! made, let in everywhere the old one was, and only then is the old one signalled; nobody sees a moment without.
//!
//! ```text
//!   old  ├──────────────────┐ signalled
//!   new             ├───────────────────┐
//!                   └ imported
//! ```
//!
//! The kernel fence is in one place behind a lock, and whoever takes it out signals it: the end of the work takes it for good, renewal puts
//! a new one in its stead. Renewal that comes too late finds the place empty and signals what it has made.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devpagemap_fence::sync::mutant;
use devpagemap_fence::{FenceSet, Outside};

use super::Across;
use super::across::Told;
use super::crossing::Crossing;
use super::kernel::{Ended, KernelFence, MadeFence, Outcome, SyncFile};
use crate::error::{Error, Result};
use crate::stats::Counters;
use crate::submit::Access;

/// What a fence that expires has left when its time is taken to be over.
const MARGIN: Duration = Duration::from_millis(500);
/// What it has left when another is made.
const RENEWED_BEFORE: Duration = Duration::from_secs(4);
/// After which time that is tried again, if it fails.
const TRIED_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// A kernel fence, and what is said of it. Whoever has it signals it.
struct Live {
    fence: Box<dyn KernelFence>,
    told: Arc<Told>,
    /// Before when another has to be in its stead.
    expires: Option<Instant>,
}

impl Live {
    fn make(crossing: &Crossing) -> Result<(Live, Box<dyn SyncFile>)> {
        // Before the kernel looks at its clock.
        let now = crossing.now();
        let MadeFence { fence, file } = crossing.make_fence()?;
        let expires = crossing.expires_after().map(|after| now + after.saturating_sub(MARGIN));
        Ok((Live { fence, told: Told::new(expires), expires }, file))
    }

    fn end(self, crossing: &Crossing, outcome: Outcome) {
        if !mutant!("the_kernel_is_told_first") {
            self.told.ends(outcome);
            crossing.has_ended(self.fence.end(outcome));
        } else {
            crossing.has_ended(self.fence.end(outcome));
            self.told.ends(outcome);
        }
    }
}

/// A signal that is owed to the kernel, wherever it was let in.
pub(super) struct Owed {
    crossing: Arc<Crossing>,
    /// Where it is seen. Constant.
    seen_in: Vec<(Arc<Across>, Access)>,
    /// What the keeper knows it by, if it expires. Constant.
    pub(super) id: u64,
    /// `None` once it has been signalled. Its own lock, with none taken inside.
    live: Outside<Option<Live>>,
}

impl Owed {
    /// Signals it. Nothing if that has been done.
    fn end(&self, outcome: Outcome) {
        let live = self.live.lock().take();
        if let Some(live) = live {
            self.crossing.forget_expiring(self.id);
            live.end(&self.crossing, outcome);
        }
    }

    /// When another has to be made; `None` when it does not expire, or is over.
    pub(super) fn renewal(&self) -> Option<Instant> {
        let live = self.live.lock();
        live.as_ref().and_then(|live| live.expires).map(|at| at - (RENEWED_BEFORE - MARGIN))
    }

    pub(super) fn is_over(&self) -> bool {
        self.live.lock().is_none()
    }

    /// Puts another kernel fence in the place of this one. Returns when to look again, unless it is over.
    pub(super) fn renew(&self) -> Option<Instant> {
        if self.is_over() {
            return None;
        }
        match self.make_another() {
            Ok(new) => self.replace(new),
            Err(error) => {
                tracing::error!(%error, "a kernel fence of work that goes on could not be renewed");
                self.crossing.count("fences: a kernel fence could not be renewed in time; tried again");
                Some(self.crossing.now() + TRIED_AGAIN_AFTER)
            }
        }
    }

    fn make_another(&self) -> Result<Live> {
        if mutant!("the_old_one_goes_before_the_new_one_comes")
            && let Some(old) = self.live.lock().take()
        {
            old.end(&self.crossing, Outcome::Done);
        }
        let (new, file) = Live::make(&self.crossing)?;
        match let_in_all(&self.seen_in, &new, &*file) {
            Ok(()) => Ok(new),
            Err(error) => {
                new.end(&self.crossing, Outcome::Done);
                Err(error)
            }
        }
    }

    fn replace(&self, new: Live) -> Option<Instant> {
        let mut live = self.live.lock();
        if live.is_none() && !mutant!("renewal_overlooks_the_end") {
            drop(live);
            // How the work ended is said by the one that was there.
            new.end(&self.crossing, Outcome::Done);
            return None;
        }
        let old = live.replace(new);
        drop(live);
        if let Some(old) = old {
            // It stands for nothing any more; what it stood for goes on.
            old.end(&self.crossing, Outcome::Done);
        }
        Counters::count(&self.crossing.counts.renewed);
        self.renewal()
    }
}

impl fmt::Debug for Owed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owed")
            .field("id", &self.id)
            .field("seen_in", &self.seen_in.len())
            .finish_non_exhaustive()
    }
}

fn let_in_all(into: &[(Arc<Across>, Access)], live: &Live, file: &dyn SyncFile) -> Result<()> {
    into.iter().try_for_each(|(across, access)| across.let_in(&live.told, file, *access))
}

/// A kernel fence that is seen already, and whose work is about to be queued.
#[must_use = "it is signalled when it is dropped"]
#[derive(Debug)]
pub(crate) struct Reserved(Option<Arc<Owed>>);

impl Reserved {
    /// The work is queued: the kernel hears of its end. In whatever thread signals the last of `fences`, or in this one.
    pub(crate) fn arm(mut self, fences: &FenceSet) {
        let Some(owed) = self.0.take() else { return };
        let outcomes = fences.clone();
        fences.when_signaled(move || {
            let failed = outcomes.first_error().is_some();
            owed.end(if failed { Outcome::Failed } else { Outcome::Done });
        });
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(owed) = self.0.take().filter(|_| !mutant!("what_is_given_up_is_not_signalled")) {
            owed.end(Outcome::Done);
        }
    }
}

impl Crossing {
    /// A kernel fence that is seen in each of these dma-bufs from now on.
    ///
    /// # Errors
    /// [`Error::NoKernelFences`], [`Error::NoDescriptorsLeft`], what the kernel says. Whatever had been made is signalled.
    pub(crate) fn reserve(self: &Arc<Self>, into: Vec<(Arc<Across>, Access)>) -> Result<Reserved> {
        Ok(self.reserve_with_file(into)?.0)
    }

    /// The same, with what shows it to others.
    fn reserve_with_file(
        self: &Arc<Self>,
        into: Vec<(Arc<Across>, Access)>,
    ) -> Result<(Reserved, Box<dyn SyncFile>)> {
        let (live, file) = Live::make(self)?;
        let let_in = let_in_all(&into, &live, &*file);
        let owed = Owed {
            crossing: self.clone(),
            seen_in: into,
            id: self.next_id(),
            live: Outside::new("kernel fence", Some(live)),
        };
        let reserved = Reserved(Some(Arc::new(owed)));
        let_in?;
        Counters::count(&self.counts.reserved);
        if let Some(owed) = &reserved.0
            && !owed.seen_in.is_empty()
        {
            self.keep_from_expiring(owed)?;
        }
        Ok((reserved, file))
    }

    /// A kernel fence that is seen by whoever is given the file. Looks again for a source where none was found.
    ///
    /// # Errors
    /// As [`reserve`](Crossing::reserve).
    pub(super) fn reserve_to_hand_out(self: &Arc<Self>) -> Result<(Reserved, Box<dyn SyncFile>)> {
        self.kernel.source()?;
        self.reserve_with_file(Vec::new())
    }

    /// What became of a kernel fence of ours.
    pub(super) fn has_ended(&self, ended: Ended) {
        match ended {
            Ended::AsTold => {}
            Ended::WithoutTheError => {
                self.count("fences: work failed, and its kernel fence cannot say so");
            }
            Ended::Expired => {
                Counters::count(&self.counts.expired);
                tracing::error!("a kernel fence expired before its work had ended");
                self.count("fences: a kernel fence expired before its work had ended");
            }
            #[cfg(not(any(loom, shuttle)))]
            Ended::Refused(error) => {
                tracing::error!(%error, "the kernel did not take the signal of a fence");
                self.count(&format!("fences: the kernel did not take a signal: {error}"));
            }
        }
    }
}

/// Whether work whose fence cannot be made known is nobody's fault.
pub(super) fn is_for_want_of_a_source(error: &Error) -> bool {
    matches!(error, Error::NoKernelFences { .. })
}
