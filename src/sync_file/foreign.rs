//! Their fences for us: a sync_file of somebody else's fences is a point on a timeline of ours.
//!
//! ```text
//!   listen ─▶ table: id ─▶ { file, timeline, deadline, which of its fences are ours }      poller: file, marked with the id
//!                │                                                                            │
//!   all over ◀───┤  whoever takes the entry out of the table, under its lock, ends the point ◀┘
//!   deadline ◀───┘
//! ```
//!
//! How the point ends is what the kernel says of the fences then: the first error among those that are not ours, or success. A deadline that
//! passes is a last look: if nothing but ours is outstanding by then, others are done. Otherwise the point fails with
//! [`FenceError::TimedOut`], which names them. A stranger's fence need not signal in finite time, and ours must.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use devpagemap_fence::sync::mutant;
use devpagemap_fence::{Fence, FenceError, Timeline};

use super::across::{Told, are_only_ours};
use super::crossing::Crossing;
use super::kernel::{FenceInfo, SyncFile};
use crate::error::Result;
use crate::stats::Counters;

/// A sync_file that is waited for. Its timeline has one point.
pub(super) struct Wait {
    /// Signals the point. Constant.
    timeline: Timeline,
    /// Constant.
    pub(super) file: Box<dyn SyncFile>,
    /// Which of its fences are ours. Constant.
    ours: Vec<Arc<Told>>,
    /// Constant.
    since: Instant,
    /// When it is given up. Constant.
    pub(super) deadline: Instant,
}

impl Wait {
    /// All of its fences have signalled.
    pub(super) fn ends(self, crossing: &Crossing) {
        let outcome = self.file.fences().map_err(cannot_be_asked).and_then(|fences| self.outcome(&fences));
        self.end(crossing, outcome);
    }

    /// Its time is up.
    pub(super) fn gives_up(self, crossing: &Crossing) {
        let now = crossing.now();
        let looked = match mutant!("a_deadline_does_not_look_again") {
            true => Ok(Vec::new()),
            false => self.file.fences().map_err(cannot_be_asked),
        };
        let outcome = looked.and_then(|fences| {
            let others_are_done = !fences.is_empty() && are_only_ours(&fences, &self.ours, now);
            match others_are_done {
                true => self.outcome(&fences),
                false => Err(self.timed_out(now)),
            }
        });
        self.end(crossing, outcome);
    }

    /// How those fences ended that are not ours and have ended.
    fn outcome(&self, fences: &[FenceInfo]) -> Result<(), FenceError> {
        // Which of them are ours nobody says, only how many.
        let ours = self.ours.iter().filter(|told| told.has_failed()).count();
        fences.iter().filter_map(FenceInfo::error).nth(ours).map_or(Ok(()), Err)
    }

    fn timed_out(&self, now: Instant) -> FenceError {
        let waited = now.saturating_duration_since(self.since).as_nanos();
        let waited_ns = u64::try_from(waited).unwrap_or(u64::MAX);
        FenceError::TimedOut { timeline: self.timeline.name().into(), seqno: 1, waited_ns }
    }

    fn end(self, crossing: &Crossing, outcome: Result<(), FenceError>) {
        match outcome {
            Ok(()) => self.timeline.signal(1),
            Err(error) => {
                tracing::warn!(%error, "a fence from outside failed");
                Counters::count(&crossing.counts.foreign_failed);
                self.timeline.fail(1, error);
            }
        }
    }
}

impl fmt::Debug for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait")
            .field("timeline", &self.timeline.name())
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

fn cannot_be_asked(error: crate::error::Error) -> FenceError {
    FenceError::failed(format!("how a fence from outside ended is not known: {error}"))
}

/// Whose fences are waited for, for people.
fn name_of(fences: &[FenceInfo]) -> String {
    let mut active = fences.iter().filter(|fence| fence.ended.is_none());
    let first = active.next().or(fences.first());
    let name = first.map_or_else(String::new, |fence| format!("{} {}", fence.driver, fence.timeline));
    match active.count() {
        0 => name,
        more => format!("{name} and {more} more"),
    }
}

impl Crossing {
    /// A fence that signals once all of those of `file` have, with the first error among theirs.
    ///
    /// # Errors
    /// [`Error::NoDescriptorsLeft`](crate::Error::NoDescriptorsLeft), what the kernel says of the file.
    pub(super) fn fence_of(self: &Arc<Self>, file: Box<dyn SyncFile>) -> Result<Fence> {
        let fences = file.fences()?;
        if fences.iter().any(|fence| fence.ended.is_none()) {
            return self.listen(file, &fences, Vec::new());
        }
        let Some(error) = fences.iter().find_map(FenceInfo::error) else { return Ok(Fence::signaled()) };
        let timeline = Timeline::new("a fence that had failed");
        let fence = timeline.next_point();
        timeline.fail(fence.seqno(), error);
        Ok(fence)
    }

    /// The same for fences of which some are ours, whose errors do not count.
    ///
    /// # Errors
    /// [`Error::NoDescriptorsLeft`](crate::Error::NoDescriptorsLeft), what the system says.
    pub(super) fn listen(
        self: &Arc<Self>,
        file: Box<dyn SyncFile>,
        fences: &[FenceInfo],
        ours: Vec<Arc<Told>>,
    ) -> Result<Fence> {
        self.begin_to_listen(file, fences, ours).map(|(_, fence)| fence)
    }

    /// A fence that signals once that of `file` has, and by which number the wait for it can be [ended](Crossing::stop_listening) early.
    ///
    /// # Errors
    /// [`Error::NoDescriptorsLeft`](crate::Error::NoDescriptorsLeft), what the system says.
    pub(super) fn listen_for(self: &Arc<Self>, file: Box<dyn SyncFile>) -> Result<(u64, Fence)> {
        let fences = file.fences()?;
        self.begin_to_listen(file, &fences, Vec::new())
    }

    fn begin_to_listen(
        self: &Arc<Self>,
        file: Box<dyn SyncFile>,
        fences: &[FenceInfo],
        ours: Vec<Arc<Told>>,
    ) -> Result<(u64, Fence)> {
        let since = self.now();
        let timeline = Timeline::new(name_of(fences));
        let fence = timeline.next_point();
        let deadline = since + self.timeout;
        let id = self.wait_for(Wait { timeline, file, ours, since, deadline })?;
        Counters::count(&self.counts.listened);
        Ok((id, fence))
    }
}
