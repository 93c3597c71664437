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
//!   look ─┬─ it is there ─► wait for work of ours in it, as long as it takes ─► wait for the rest of it, as long as for a stranger ─► over
//!         └─ it is not ─┬─ promised late here ─► wait for that work, as long as it takes ─► look again
//!                       └─ wait for its coming, as long as for a stranger ─► look again
//!                            or for work of ours, if that very point is promised here meanwhile
//! ```
//!
//! Ours come first because our own work may take longer than we would wait for a stranger, and a sync_file does not say whose a fence is.
//! The kernel is asked for the point, and ours are looked at, under one lock, so that a point of ours is never taken for a stranger's; and what
//! it said is kept, so that what comes afterwards does not count. That a *higher* point is promised does not end the wait for a lower one, which
//! is others' to add: the work behind ours may well wait for theirs. If it is attached nevertheless, theirs can come no more, and who waits
//! finds ours in its place, for no longer than for a stranger's, since our own work may be waiting for him.
//!
//! Who looks for what is not there stands in a list, and whoever takes him out of it goes on for him: the arrival in the kernel, its
//! deadline, or the promise of the point by this very syncobj.

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;

use std::fmt;
use std::sync::Arc;

use devpagemap_fence::sync::mutant;
use devpagemap_fence::{Fence, FenceError, FenceSet, Outside, Timeline};

use super::crossing::Crossing;
use super::kernel::{SyncFile, SyncObject};
use crate::error::{Error, Result};

/// A point that work of ours is behind.
struct Promise {
    point: u64,
    /// That work, and all that was promised before.
    fence: Fence,
    /// When it comes to the kernel.
    comes: Comes,
}

/// When a promised point is in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comes {
    /// It is, behind this point, with none between: it stands for all that are.
    AtOnce { behind: u64 },
    /// When its work is done.
    Late,
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
        end(&self.line, self.failed.map_or(outcome, Err));
    }
}

/// What there is to wait for next.
enum Step {
    /// Work of ours; then for the rest of what the kernel has told, or to look again if it had nothing.
    Ours(Fence, Option<Box<dyn SyncFile>>),
    /// The fences of the point.
    There(Fence),
    /// The point; the keeper knows this wait by the number.
    Arrival(u64, Fence),
}

/// What a look at a point has found.
struct Found {
    /// What the kernel has of it.
    there: Option<Box<dyn SyncFile>>,
    /// Work of ours in it, or behind it.
    ours: Option<Fence>,
}

#[derive(Default)]
struct Ours {
    /// By their points; those that have signalled may be gone.
    promised: Vec<Promise>,
    /// Who waits for a point to come, by the keeper's numbers.
    sought: Vec<(u64, Sought)>,
}

impl Ours {
    fn late(&self) -> Option<u64> {
        let is_late = |promise: &&Promise| promise.comes == Comes::Late && !promise.fence.is_signaled();
        self.promised.iter().rev().find(is_late).map(|promise| promise.point)
    }

    /// Nothing that is late stands in the way of the point; for 0, of all of them.
    fn none_is_late(&self, point: u64) -> Result<()> {
        let why = "its work is not done, and nothing can come before";
        self.late().map_or(Ok(()), |last| Err(Error::PointOutOfOrder { point, why, last }))
    }

    /// The work of ours in a point that is there, unless it is over. Who has waited for it to `come` finds in a higher one nobody's work but a
    /// stranger's.
    fn in_point(&self, point: u64, came: bool) -> Option<Fence> {
        let is_in = |promise: &&Promise| match promise.comes {
            Comes::AtOnce { .. } if point == 0 || promise.point <= point => true,
            Comes::AtOnce { behind } => behind < point && !came,
            Comes::Late => false,
        };
        self.promised.iter().rev().find(is_in).and_then(Promise::outstanding)
    }

    /// The work of ours behind a point that is not there.
    fn late_at(&self, point: u64) -> Option<Fence> {
        let is_it = |promise: &&Promise| promise.comes == Comes::Late && promise.point == point;
        self.promised.iter().find(is_it).and_then(Promise::outstanding)
    }

    /// Whether there is work of ours behind what somebody looks for that was not there.
    fn is_promised(&self, point: u64) -> bool {
        self.promised.iter().any(|promise| promise.is_sought_by(point) && promise.outstanding().is_some())
    }

    /// Adds a promise. Returns the one before, and who has looked for this one.
    fn promise(&mut self, promise: Promise) -> (Option<Fence>, Vec<(u64, Sought)>) {
        self.promised.retain(|earlier| !earlier.fence.is_signaled());
        let before = self.promised.last().map(|last| last.fence.clone());
        let found = self.sought.extract_if(.., |(_, sought)| promise.is_sought_by(sought.point)).collect();
        self.promised.push(promise);
        (before, found)
    }
}

impl Promise {
    fn outstanding(&self) -> Option<Fence> {
        (!self.fence.is_signaled()).then(|| self.fence.clone())
    }

    /// Whether who looks for `point`, which is not there, looks for this one: for 0, whatever is there next.
    fn is_sought_by(&self, point: u64) -> bool {
        self.point == point || point == 0 && self.comes != Comes::Late
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
        let (reserved, file) = self.crossing.reserve_to_hand_out()?;
        let line = Timeline::new(name_of(point));
        let promised = line.next_point();
        let mut ours = self.ours.lock();
        ours.none_is_late(point)?;
        let behind = if point > 0 { self.may_come(&ours, point)? } else { 0 };
        self.theirs.add(point, &*file)?;
        if point == 0 {
            ours.promised.clear();
        }
        let comes = Comes::AtOnce { behind };
        let (before, found) = ours.promise(Promise { point, fence: promised, comes });
        let found = self.look_for_all(&ours, found);
        drop(ours);
        reserved.arm(fences);
        let outcome = with(fences, before);
        let all = outcome.clone();
        all.when_signaled(move || end(&line, outcome_of(&outcome)));
        self.all_go_on(found);
        Ok(())
    }

    /// Adds a point once all of `fences` have signalled. Others find it no sooner.
    ///
    /// # Errors
    /// [`Error::PointOutOfOrder`], what the kernel says. Nothing was promised.
    pub(crate) fn signal_after(self: &Arc<Self>, point: u64, fences: &FenceSet) -> Result<()> {
        let line = Timeline::new(name_of(point));
        let promised = line.next_point();
        let mut ours = self.ours.lock();
        self.may_come(&ours, point)?;
        let (before, found) = ours.promise(Promise { point, fence: promised, comes: Comes::Late });
        let found = self.look_for_all(&ours, found);
        drop(ours);
        let before = before.filter(|_| !mutant!("a_late_point_does_not_wait_for_the_one_before"));
        let outcome = with(fences, before);
        let (all, its_own, points) = (outcome.clone(), fences.clone(), self.clone());
        all.when_signaled(move || {
            points.comes_late(point, &its_own);
            end(&line, outcome_of(&outcome));
        });
        self.all_go_on(found);
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
        ours.promised.clear();
        Ok(())
    }

    /// A fence that signals when the point has, with all before it; for 0, when all that is there now has.
    ///
    /// # Errors
    /// [`Error::NoDescriptorsLeft`], [`Error::Unsupported`], what the kernel says.
    pub(crate) fn fence_at(self: &Arc<Self>, point: u64) -> Result<Fence> {
        let step = match self.step(point, false)? {
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

    /// Points go up: by what is there, and by what is promised. Returns the last one of these.
    fn may_come(&self, ours: &Ours, point: u64) -> Result<u64> {
        let last = self.theirs.submitted()?.max(ours.late().unwrap_or(0));
        match point > last {
            true => Ok(last),
            false => Err(Error::PointOutOfOrder { point, why: "the last one is", last }),
        }
    }

    /// All work of a late point is done, and the one before has come.
    fn comes_late(&self, point: u64, its_own: &FenceSet) {
        if its_own.first_error().is_some() {
            self.crossing.count("fences: work failed, and its point of a syncobj cannot say so");
        }
        if let Err(error) = self.theirs.signal(point) {
            tracing::error!(%error, point, "the kernel did not take a point of a syncobj");
            self.crossing.count(&format!("fences: the kernel did not take a point: {error}"));
        }
    }

    /// What there is to wait for next, for who looks for a point and maybe has waited for it to come.
    fn step(&self, point: u64, came: bool) -> Result<Step> {
        let early =
            mutant!("ours_are_looked_at_before_the_snapshot").then(|| self.ours.lock().in_point(point, came));
        let found = self.look(&self.ours.lock(), point, came)?;
        self.next(Found { ours: early.unwrap_or(found.ours), ..found }, point)
    }

    /// In one step, under the lock, so that what the kernel says and what is ours belong together.
    fn look(&self, ours: &Ours, point: u64, came: bool) -> Result<Found> {
        let there = self.theirs.snapshot(point)?;
        let ours = if there.is_some() { ours.in_point(point, came) } else { ours.late_at(point) };
        Ok(Found { there, ours })
    }

    fn next(&self, found: Found, point: u64) -> Result<Step> {
        match found {
            Found { there, ours: Some(ours) } => Ok(Step::Ours(ours, there)),
            Found { there: Some(file), ours: None } => self.crossing.fence_of(file).map(Step::There),
            Found { there: None, ours: None } => {
                let (id, arrival) = self.crossing.listen_for(self.theirs.arrival(point)?)?;
                Ok(Step::Arrival(id, arrival))
            }
        }
    }

    fn take(self: &Arc<Self>, step: Step, mut sought: Sought) {
        match step {
            Step::There(fence) => when_over(&fence, move |outcome| sought.end(outcome)),
            Step::Ours(fence, there) => {
                let points = self.clone();
                when_over(&fence, move |outcome| {
                    sought.failed = sought.failed.take().or(outcome.err());
                    match there {
                        Some(file) => points.goes_on(points.crossing.fence_of(file).map(Step::There), sought),
                        None => points.looks_again(sought),
                    }
                });
            }
            Step::Arrival(id, _) if sought.came => {
                self.crossing.stop_listening(id);
                sought.end(Err(FenceError::failed("the point of a syncobj was taken away again")));
            }
            Step::Arrival(id, arrival) => self.awaits(id, arrival, sought),
        }
    }

    fn looks_again(self: &Arc<Self>, sought: Sought) {
        self.goes_on(self.step(sought.point, sought.came), sought);
    }

    fn goes_on(self: &Arc<Self>, step: Result<Step>, sought: Sought) {
        match step {
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
        if ours.is_promised(sought.point) && !mutant!("a_promise_is_not_looked_for_again") {
            let found = self.look_for_all(&ours, vec![(id, sought)]);
            drop(ours);
            return self.all_go_on(found);
        }
        ours.sought.push((id, sought));
        drop(ours);
        let points = self.clone();
        when_over(&arrival, move |outcome| points.arrives(id, outcome));
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

    /// What these have looked for in vain is promised now: they look again before anything else can happen.
    fn look_for_all(&self, ours: &Ours, sought: Vec<(u64, Sought)>) -> Vec<(u64, Sought, Result<Found>)> {
        let look = |(id, sought): (u64, Sought)| {
            let found = self.look(ours, sought.point, false);
            (id, sought, found)
        };
        sought.into_iter().map(look).collect()
    }

    fn all_go_on(self: &Arc<Self>, found: Vec<(u64, Sought, Result<Found>)>) {
        for (id, sought, found) in found {
            self.crossing.stop_listening(id);
            let next = found.and_then(|found| self.next(found, sought.point));
            self.goes_on(next, sought);
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

fn outcome_of(signalled: &FenceSet) -> Result<(), FenceError> {
    signalled.first_error().map_or(Ok(()), Err)
}

fn end(line: &Timeline, outcome: Result<(), FenceError>) {
    match outcome {
        Ok(()) => line.signal(1),
        Err(error) => line.fail(1, error),
    }
}

fn when_over(fence: &Fence, then: impl FnOnce(Result<(), FenceError>) + Send + 'static) {
    if let Err(then) = fence.on_signal(then) {
        then(fence.status().unwrap_or(Ok(())));
    }
}
