//! Points of a syncobj: ours for others, and theirs for us.
//!
//! A syncobj is a timeline that processes and devices share. It begins without points; whoever has work adds a point with a kernel fence in it,
//! each greater than the one before, and whoever needs that work looks for the point, maybe before it is there.
//!
//! **Ours for them.** There are two ways to promise a point:
//!
//! ```text
//!   attach        a kernel fence is made ─► the point is there at once ─────────────────► our fences signal: so does the kernel's
//!   signal_after                            the point is not there yet ─► our fences signal ─► it comes, signalled already
//! ```
//!
//! The first can be handed to other drivers at once, and lasts as long as kernel fences do on this machine. The second lasts for ever and needs
//! no source of kernel fences, but who looks for the point has to wait until it is there. A point means all work up to it. Points that are
//! there are in order by the kernel; late ones are each signalled behind the one before, and as long as one is outstanding none is attached:
//! the kernel would take it for the earlier one as well.
//!
//! **Theirs for us.** A point that is looked for goes through these steps, until nothing is left to wait for:
//!
//! ```text
//!   look ─┬─ work of ours up to it is outstanding ──► wait for that, as long as it takes ──────────► look again
//!         ├─ it is there ───────────────────────────► wait for its fences, as long as for a stranger ──► over
//!         └─ it is not ─────────────────────────────► wait for its coming, as long as for a stranger ──► look again
//!                                                       or for work of ours, if it is promised meanwhile
//! ```
//!
//! The kernel is asked for the point first and ours are looked at afterwards, so that a point of ours is never taken for a stranger's.
//! Ours come first because our own work may take longer than we would wait for a stranger, and a sync_file does not say whose a fence
//! is. Who looks for what is not there stands in a list, and whoever takes him out of it goes on for him: the arrival in the kernel, its
//! deadline, or the promise of the point by this very syncobj.

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;

use std::fmt;
use std::sync::Arc;

use devpagemap_fence::sync::mutant;
use devpagemap_fence::{Fence, FenceError, FenceSet, Outside, Timeline};

use super::crossing::Crossing;
use super::kernel::SyncObject;
use crate::error::{Error, Result};

/// A point that work of ours is behind.
struct Promise {
    point: u64,
    /// That work, and all that was promised before. Signals after the kernel has heard of it.
    fence: Fence,
    /// Not in the kernel before it has signalled.
    late: bool,
}

/// A point that somebody here looks for.
struct Sought {
    point: u64,
    /// Whose one point is what he waits for.
    line: Timeline,
    /// What went wrong with work of ours before.
    failed: Option<FenceError>,
    /// Whether it was there already.
    came: bool,
}

impl Sought {
    fn end(self, outcome: Result<(), FenceError>) {
        match self.failed.map_or(outcome, Err) {
            Ok(()) => self.line.signal(1),
            Err(error) => self.line.fail(1, error),
        }
    }
}

/// What there is to wait for next.
enum Step {
    /// Work of ours; then to look again.
    Ours(Fence),
    /// The fences of the point.
    There(Fence),
    /// The point; the keeper knows this wait by the number.
    Arrival(u64, Fence),
}

#[derive(Default)]
struct Ours {
    /// By their points; those that have signalled may be gone.
    promised: Vec<Promise>,
    /// The last point of those that are gone.
    gone: u64,
    /// Who waits for a point to come, by the keeper's numbers.
    sought: Vec<(u64, Sought)>,
}

impl Ours {
    fn late(&self) -> Option<u64> {
        let late = self.promised.iter().rev().find(|promise| promise.late && !promise.fence.is_signaled());
        late.map(|promise| promise.point)
    }

    /// Nothing that is late stands in the way of the point; for 0, of all of them.
    fn none_is_late(&self, point: u64) -> Result<()> {
        let why = "its work is not done, and nothing can come before";
        self.late().map_or(Ok(()), |last| Err(Error::PointOutOfOrder { point, why, last }))
    }

    /// What was promised last of what such a point stands for, unless that is over.
    fn before(&self, point: u64) -> Option<Fence> {
        let counts = |promise: &&Promise| point == 0 || promise.point <= point;
        let last = self.promised.iter().rev().find(counts)?;
        (!last.fence.is_signaled()).then(|| last.fence.clone())
    }

    /// The first that will do for such a point, unless it is over.
    fn at_or_behind(&self, point: u64) -> Option<Fence> {
        if self.gone > 0 && self.gone >= point {
            return None;
        }
        let first = self.promised.iter().find(|promise| promise.point >= point)?;
        (!first.fence.is_signaled()).then(|| first.fence.clone())
    }

    /// No point is there any more.
    fn forget(&mut self) {
        self.promised.clear();
        self.gone = 0;
    }

    /// Adds a promise. Returns the one before, and who has looked for this one.
    fn promise(&mut self, promise: Promise) -> (Option<Fence>, Vec<(u64, Sought)>) {
        let over = self.promised.extract_if(.., |earlier| earlier.fence.is_signaled());
        self.gone = over.map(|earlier| earlier.point).max().unwrap_or(0).max(self.gone);
        let before = self.promised.last().map(|last| last.fence.clone());
        let found = self.sought.extract_if(.., |(_, sought)| sought.point <= promise.point).collect();
        self.promised.push(promise);
        (before, found)
    }
}

/// A syncobj of the kernel's, and what of it is ours.
pub(crate) struct Points {
    /// Constant.
    crossing: Arc<Crossing>,
    /// Constant.
    pub(super) theirs: Box<dyn SyncObject>,
    /// Its own lock, held while the kernel is asked or told of a point, so that points come in order.
    ours: Outside<Ours>,
}

impl Points {
    pub(crate) fn new(crossing: Arc<Crossing>, theirs: Box<dyn SyncObject>) -> Arc<Points> {
        Arc::new(Points { crossing, theirs, ours: Outside::new("points of a syncobj", Ours::default()) })
    }

    /// Adds a point that signals when all of `fences` have; instead of all points, if it is 0.
    ///
    /// # Errors
    /// [`Error::NoKernelFences`], [`Error::PointOutOfOrder`], [`Error::NoDescriptorsLeft`], what the kernel says. Nothing was added.
    pub(crate) fn attach(self: &Arc<Self>, point: u64, fences: &FenceSet) -> Result<()> {
        // Looks again where nothing was found.
        self.crossing.source()?;
        let (reserved, file) = self.crossing.reserve_with_file(Vec::new())?;
        let line = Timeline::new(name_of(point));
        let promise = Promise { point, fence: line.next_point(), late: false };
        let mut ours = self.ours.lock();
        ours.none_is_late(point)?;
        if point > 0 {
            self.may_come(&ours, point)?;
        }
        self.theirs.add(point, &*file)?;
        if point == 0 {
            ours.forget();
        }
        let promised = promise.fence.clone();
        let (before, found) = ours.promise(promise);
        drop(ours);
        reserved.arm(fences);
        let outcome = with(fences, before);
        let all = outcome.clone();
        all.when_signaled(move || end(&line, &outcome));
        self.goes_on_behind(&promised, found);
        Ok(())
    }

    /// Adds a point once all of `fences` have signalled. Others find it no sooner.
    ///
    /// # Errors
    /// [`Error::PointOutOfOrder`], what the kernel says. Nothing was promised.
    pub(crate) fn signal_after(self: &Arc<Self>, point: u64, fences: &FenceSet) -> Result<()> {
        let line = Timeline::new(name_of(point));
        let promise = Promise { point, fence: line.next_point(), late: true };
        let mut ours = self.ours.lock();
        self.may_come(&ours, point)?;
        let promised = promise.fence.clone();
        let (before, found) = ours.promise(promise);
        drop(ours);
        let before = before.filter(|_| !mutant!("a_late_point_does_not_wait_for_the_one_before"));
        let outcome = with(fences, before);
        let (all, points) = (outcome.clone(), self.clone());
        all.when_signaled(move || {
            points.comes_late(point, &outcome);
            end(&line, &outcome);
        });
        self.goes_on_behind(&promised, found);
        Ok(())
    }

    /// Adds a point that has signalled.
    ///
    /// # Errors
    /// [`Error::PointOutOfOrder`], what the kernel says.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn signal(&self, point: u64) -> Result<()> {
        let ours = self.ours.lock();
        ours.none_is_late(point)?;
        self.may_come(&ours, point)?;
        self.theirs.signal(point)
    }

    /// Takes all points away.
    ///
    /// # Errors
    /// [`Error::PointOutOfOrder`] while one is late, what the kernel says.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn clear(&self) -> Result<()> {
        let mut ours = self.ours.lock();
        ours.none_is_late(0)?;
        self.theirs.clear()?;
        ours.forget();
        Ok(())
    }

    /// A fence that signals when the point has, with all before it; for 0, when all that is there now has.
    ///
    /// # Errors
    /// [`Error::NoDescriptorsLeft`], [`Error::Unsupported`], what the kernel says.
    pub(crate) fn fence_at(self: &Arc<Self>, point: u64) -> Result<Fence> {
        let step = match self.step(point)? {
            Step::There(fence) => return Ok(fence),
            step => step,
        };
        let line = Timeline::new(name_of(point));
        let fence = line.next_point();
        self.take(step, Sought { point, line, failed: None, came: false });
        Ok(fence)
    }

    /// Point 0 is no point of a timeline.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn refuse_zero<T>(&self) -> Result<T> {
        let last = self.theirs.submitted()?;
        Err(Error::PointOutOfOrder { point: 0, why: "points begin at 1, and the last one is", last })
    }

    /// Points go up: by what is there, and by what is promised.
    fn may_come(&self, ours: &Ours, point: u64) -> Result<()> {
        let last = self.theirs.submitted()?.max(ours.late().unwrap_or(0));
        match point > last {
            true => Ok(()),
            false => Err(Error::PointOutOfOrder { point, why: "the last one is", last }),
        }
    }

    /// All work of a late point is done, and the one before has come.
    fn comes_late(&self, point: u64, outcome: &FenceSet) {
        if outcome.first_error().is_some() {
            self.crossing.count("fences: work failed, and its point of a syncobj cannot say so");
        }
        if let Err(error) = self.theirs.signal(point) {
            tracing::error!(%error, point, "the kernel did not take a point of a syncobj");
            self.crossing.count(&format!("fences: the kernel did not take a point: {error}"));
        }
    }

    fn step(&self, point: u64) -> Result<Step> {
        let early = mutant!("ours_are_looked_at_before_the_snapshot").then(|| self.before(point));
        let there = self.theirs.snapshot(point)?;
        // Behind the snapshot: a point of ours that is in it is found here.
        if let Some(ours) = early.unwrap_or_else(|| self.before(point)) {
            return Ok(Step::Ours(ours));
        }
        if let Some(file) = there {
            let fences = file.fences()?;
            return self.crossing.fence_of(file, &fences).map(Step::There);
        }
        let (id, arrival) = self.crossing.listen_for(self.theirs.arrival(point)?)?;
        Ok(Step::Arrival(id, arrival))
    }

    fn before(&self, point: u64) -> Option<Fence> {
        self.ours.lock().before(point)
    }

    fn take(self: &Arc<Self>, step: Step, mut sought: Sought) {
        match step {
            Step::There(fence) => when_over(fence, move |outcome| sought.end(outcome)),
            Step::Ours(fence) => {
                let points = self.clone();
                when_over(fence, move |outcome| {
                    sought.failed = sought.failed.take().or(outcome.err());
                    points.looks_again(sought);
                });
            }
            Step::Arrival(..) if sought.came => {
                sought.end(Err(FenceError::failed("the point of a syncobj was taken away again")));
            }
            Step::Arrival(id, arrival) => self.awaits(id, arrival, sought),
        }
    }

    fn looks_again(self: &Arc<Self>, sought: Sought) {
        match self.step(sought.point) {
            Ok(step) => self.take(step, sought),
            Err(error) => {
                let cannot = format!("how far a point of a syncobj is cannot be asked: {error}");
                sought.end(Err(FenceError::failed(cannot)));
            }
        }
    }

    fn awaits(self: &Arc<Self>, id: u64, arrival: Fence, sought: Sought) {
        let mut ours = self.ours.lock();
        // Promised since it was looked for: whoever did that has not seen this one.
        let promised = ours.at_or_behind(sought.point);
        if let Some(promised) = promised.filter(|_| !mutant!("a_promise_is_not_looked_for_again")) {
            drop(ours);
            return self.goes_on_behind(&promised, vec![(id, sought)]);
        }
        ours.sought.push((id, sought));
        drop(ours);
        let points = self.clone();
        when_over(arrival, move |outcome| points.arrives(id, outcome));
    }

    fn arrives(self: &Arc<Self>, id: u64, outcome: Result<(), FenceError>) {
        let mut ours = self.ours.lock();
        let Some(at) = ours.sought.iter().position(|(known, _)| *known == id) else { return };
        let (_, mut sought) = ours.sought.swap_remove(at);
        drop(ours);
        match outcome {
            Ok(()) => {
                sought.came = true;
                self.looks_again(sought);
            }
            Err(error) => sought.end(Err(error)),
        }
    }

    /// What was looked for in vain is promised now.
    fn goes_on_behind(self: &Arc<Self>, promised: &Fence, found: Vec<(u64, Sought)>) {
        for (id, sought) in found {
            self.crossing.stop_listening(id);
            self.take(Step::Ours(promised.clone()), sought);
        }
    }
}

impl fmt::Debug for Points {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Points").field("theirs", &self.theirs).finish_non_exhaustive()
    }
}

fn name_of(point: u64) -> String {
    match point {
        0 => "a syncobj".to_owned(),
        point => format!("point {point} of a syncobj"),
    }
}

fn with(fences: &FenceSet, before: Option<Fence>) -> FenceSet {
    let mut all = fences.clone();
    before.into_iter().for_each(|before| all.add(before));
    all
}

fn end(line: &Timeline, of: &FenceSet) {
    match of.first_error() {
        None => line.signal(1),
        Some(error) => line.fail(1, error),
    }
}

fn when_over(fence: Fence, then: impl FnOnce(Result<(), FenceError>) + Send + 'static) {
    let outcome = fence.clone();
    FenceSet::from(fence).when_signaled(move || then(outcome.status().unwrap_or(Ok(()))));
}
