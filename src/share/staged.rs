//! Staged copies: bytes in system memory for importers that do not reach the buffer's own, kept in step with them.
//!
//! ```text
//!   buffer, in VRAM   ████████  written by jobs, the CPU, importers that reach it: the copy is fresh no more
//!                      │    ▲
//!        begin: what   │    │ end of a write: what the map shows is
//!        is not fresh  ▼    │ copied back
//!   copy              ████████  one for all who do not reach the buffer; goes with the last map of it
//! ```
//!
//! Nothing waits: copies are queued like moves. The one to the copy reads the buffer and the one back writes it, and their fences say so in
//! the buffer's reservation; what uses the copy is kept beside it. So whoever comes next, on either side, queues behind both.
//!
//! The copy stays where it is when the buffer moves, and so do the maps of it.
//!
//! **What protects what.** Fences and freshness are changed under the buffer's reservation; a lock of their own lets destructors in.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering as Statistic;

use devpagemap_fence::sync::atomic::Ordering;
use devpagemap_fence::sync::mutant;
use devpagemap_fence::{Fence, FenceSet, Held, Lock, Slot, Usage, levels};
use devpagemap_migrate::{ExtentList, MoveRequest};

use super::fresh::Fresh;
use super::peer_map::{Mapped, PeerMap};
use crate::bo::Transaction;
use crate::error::{Error, Result};
use crate::manager::Manager;
use crate::region::{RegionKind, Resource};
use crate::stats::Counters;
use crate::submit::Access;

/// A copy of one buffer. Gives its memory back when it is dropped, behind its users.
pub(super) struct StagedCopy {
    /// Constant.
    manager: Arc<Manager>,
    /// As long as the buffer. Taken by drop.
    resource: Option<Resource>,
    /// Its own lock.
    steps: Lock<levels::Aperture, Steps>,
}

#[derive(Default)]
struct Steps {
    fresh: Fresh,
    /// The last copies into it. They stay when they have signalled, because a failure among them means that it is not fresh.
    arrived: FenceSet,
    /// Who uses it.
    users: FenceSet,
}

impl StagedCopy {
    /// # Errors
    /// [`Error::Exhausted`] when there is no system memory for it.
    fn new(
        manager: &Arc<Manager>,
        len_bytes: u64,
        held: &mut Held<'_, levels::Tickets>,
    ) -> Result<Arc<StagedCopy>> {
        let (resource, users) = manager.system.take(len_bytes, held, |state, taken| {
            state.system_used_bytes += len_bytes;
            let users = taken.after();
            (Resource::new(RegionKind::System, taken.spans, None), users)
        })?;
        Counters::add(&manager.counters.staged_bytes, len_bytes);
        let steps = Steps { users, ..Steps::default() };
        let steps = Lock::new("staged copy", steps);
        Ok(Arc::new(StagedCopy { manager: manager.clone(), resource: Some(resource), steps }))
    }

    /// Where bytes of the buffer are in it.
    pub(super) fn extents(&self, range: &Range<u64>) -> ExtentList {
        let resource = self.resource.as_ref().expect("only drop takes it");
        resource.extents.slice(range.start, range.end - range.start)
    }

    /// Somebody uses it until `fences` have signalled.
    pub(super) fn is_used_until(&self, fences: &FenceSet) {
        if !fences.is_signaled() {
            let mut held = Held::in_destructor();
            let mut steps = self.steps.lock(&mut held);
            steps.users.prune();
            steps.users.merge(fences);
        }
    }

    /// The buffer is written.
    pub(super) fn is_stale(&self) {
        self.steps.lock(&mut Held::in_destructor()).fresh.clear();
    }

    /// Those of `range` that have to be copied again.
    fn missing(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut held = Held::in_destructor();
        let mut steps = self.steps.lock(&mut held);
        if steps.arrived.first_error().is_some() {
            steps.fresh.clear();
            steps.arrived = FenceSet::new();
        }
        steps.fresh.missing(range)
    }

    /// What brought the bytes that it has.
    fn arrived(&self) -> FenceSet {
        self.steps.lock(&mut Held::in_destructor()).arrived.clone()
    }

    /// Who must have finished before somebody writes into it.
    fn before_write(&self) -> FenceSet {
        let mut held = Held::in_destructor();
        let steps = self.steps.lock(&mut held);
        let mut before = steps.users.clone();
        before.merge(&steps.arrived);
        before
    }

    fn arrives(&self, ranges: &[Range<u64>], fence: &Fence) {
        let mut held = Held::in_destructor();
        let mut steps = self.steps.lock(&mut held);
        steps.arrived.add(fence.clone());
        ranges.iter().for_each(|range| steps.fresh.add(range));
    }
}

impl Drop for StagedCopy {
    fn drop(&mut self) {
        let steps = std::mem::take(&mut *self.steps.lock(&mut Held::in_destructor()));
        let Some(resource) = self.resource.take() else { return };
        self.manager.counters.staged_bytes.fetch_sub(resource.len_bytes(), Statistic::Relaxed);
        let mut fences = steps.users;
        fences.merge(&steps.arrived);
        self.manager.retire(resource, fences);
    }
}

impl fmt::Debug for StagedCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StagedCopy").field("resource", &self.resource).finish_non_exhaustive()
    }
}

/// These ranges of a list, one after the other.
fn pick(extents: &ExtentList, ranges: &[Range<u64>]) -> ExtentList {
    let mut picked = ExtentList::new();
    for range in ranges {
        extents.slice(range.start, range.end - range.start).iter().for_each(|extent| picked.push(*extent));
    }
    picked
}

impl Transaction<'_, '_, '_> {
    /// The copy of the buffer in `slot`, made if there is none.
    ///
    /// # Errors
    /// [`Error::Exhausted`] when there is no system memory for one.
    pub(super) fn staged_copy(&mut self, slot: Slot) -> Result<Arc<StagedCopy>> {
        if let Some(copy) = self.exec.set().state(slot).peers.copy.upgrade() {
            return Ok(copy);
        }
        let manager = self.manager;
        let (set, mut held) = self.exec.split();
        let copy = StagedCopy::new(manager, set.object(slot).footprint_bytes, &mut held)?;
        set.state_mut(slot).peers.copy = Arc::downgrade(&copy);
        Ok(copy)
    }

    /// The buffer's bytes are, or will be, others than they were: what is staged of them is not fresh.
    pub(crate) fn note_write(&mut self, slot: Slot) {
        if !mutant!("a_copy_does_not_hear_of_writes") {
            self.exec.set().state(slot).peers.is_written();
        }
    }

    /// Brings `range` of the copy up to date. Returns what must have signalled before it is read.
    ///
    /// # Errors
    /// [`Error::FenceSlots`]; nothing has changed.
    pub(super) fn refresh(
        &mut self,
        slot: Slot,
        copy: &Arc<StagedCopy>,
        range: &Range<u64>,
    ) -> Result<FenceSet> {
        let state = self.exec.set_mut().state_mut(slot);
        state.check_not_lost()?;
        if state.followers.may_have_written() {
            copy.is_stale();
        }
        let missing = copy.missing(range);
        if missing.is_empty() {
            return Ok(copy.arrived());
        }
        self.exec.set_mut().reserve_fences(slot, 1)?;
        self.hear(slot, Access::Read)?;
        let state = self.exec.set().state(slot);
        let resource = state.resource.as_ref().expect("what is staged has been placed");
        let whole = copy.extents(&(0..resource.len_bytes()));
        let mut after = self.exec.set().fences(slot, Usage::Write);
        after.merge(&copy.before_write());
        let label = self.exec.set().object(slot).id();
        let request = MoveRequest::copy(label, pick(&resource.extents, &missing), pick(&whole, &missing));
        let fence = self.queue_staging(slot, request.after(after), Usage::Read);
        copy.arrives(&missing, &fence);
        Ok(copy.arrived())
    }

    /// Copies what an importer has written to `range` of the copy back, once `written` has signalled. Cannot fail: the caller has
    /// reserved a slot for the copy's fence.
    fn bring_back(&mut self, slot: Slot, copy: &StagedCopy, range: &Range<u64>, written: FenceSet) {
        let resource = self.resource(slot).expect("what is staged has been placed");
        let back = resource.extents.slice(range.start, range.end - range.start);
        let label = self.exec.set().object(slot).id();
        let mut after = written;
        after.merge(&copy.before_write());
        if !mutant!("what_comes_back_overtakes_its_readers") {
            after.merge(&self.exec.set().fences(slot, Usage::Bookkeep));
        }
        // What has not been brought up to date would bring other bytes back than were written.
        let request = MoveRequest::copy(label, copy.extents(range), back).after(after).needs(copy.arrived());
        let fence = self.queue_staging(slot, request, Usage::Kernel);
        copy.is_used_until(&FenceSet::from(fence.clone()));
        // A failure of it means that bytes are lost, as with a move.
        self.exec.set_mut().state_mut(slot).arrival = FenceSet::from(fence);
    }

    /// VRAM cannot be read any more. Has the buffer read from its copy instead, if that has all of its bytes as they are; says whether
    /// it has.
    pub(crate) fn read_from_copy(&mut self, slot: Slot) -> bool {
        let state = self.exec.set_mut().state_mut(slot);
        let Some((copy, resource)) = state.peers.copy.upgrade().zip(state.resource.as_mut()) else {
            return false;
        };
        if state.followers.may_have_written() {
            copy.is_stale();
        }
        let (whole, arrived) = (0..resource.len_bytes(), copy.arrived());
        let is_there = arrived.is_signaled() && arrived.first_error().is_none();
        let is_in_step = is_there && copy.missing(&whole).is_empty();
        if is_in_step {
            resource.extents = copy.extents(&whole);
        }
        is_in_step
    }

    /// Keeps the copy's memory until the buffer has been read from it.
    pub(crate) fn keep_copy_until(&mut self, slot: Slot, read: &FenceSet) {
        if let Some(copy) = self.exec.set().state(slot).peers.copy.upgrade() {
            copy.is_used_until(read);
        }
    }

    fn queue_staging(&mut self, slot: Slot, request: MoveRequest, usage: Usage) -> Fence {
        let manager = self.manager;
        let announced = self.try_to_announce(slot, usage);
        let needs = self.exec.set().state(slot).arrival.clone();
        Counters::count(&manager.counters.staged_copies);
        Counters::add(&manager.counters.staged_copied_bytes, request.operation.len_bytes());
        let (set, mut held) = self.exec.split();
        let fence = manager.queue().submit(request.needs(needs), &mut held);
        manager.remember(&fence, &mut held);
        set.add_fence(slot, fence.clone(), usage);
        if let Some(announced) = announced {
            announced.arm(&FenceSet::from(fence.clone()));
        }
        fence
    }

    /// A map of a copy ends while its importer writes: what it has written is brought back, once `told` has signalled. The caller has
    /// [reserved](Transaction::reserve_fences) the slot.
    pub(super) fn rescue_write(&mut self, slot: Slot, mapped: &Mapped, told: Option<&Fence>) {
        if !mapped.writes_copy.swap(false, Ordering::Relaxed) {
            return;
        }
        if let Some(copy) = mapped.copy() {
            self.bring_back(slot, &copy, &mapped.range, told.cloned().into_iter().collect());
        }
    }

    pub(super) fn begin_use(&mut self, slot: Slot, map: &PeerMap, access: Access) -> Result<FenceSet> {
        let mapped = &map.mapped;
        let state = self.exec.set().state(slot);
        state.check_not_lost()?;
        mapped.attached.check_not_revoked()?;
        if !mapped.is_live() {
            return Err(Error::StaleMap { buffer: map.buffer.id() });
        }
        self.note_peer_use(slot, mapped);
        let Some(copy) = mapped.copy() else {
            self.hear(slot, access)?;
            let mut after = self.exec.set().fences(slot, Usage::waits_for(access == Access::Write));
            after.merge(map.after());
            return Ok(after);
        };
        let mut after = self.refresh(slot, &copy, &mapped.range)?;
        if access == Access::Write {
            after.merge(&copy.before_write());
            mapped.writes_copy.store(true, Ordering::Relaxed);
        }
        Ok(after)
    }

    pub(super) fn end_use(&mut self, slot: Slot, map: &PeerMap, access: Access, fence: &Fence) -> Result<()> {
        let mapped = &map.mapped;
        self.exec.set().state(slot).check_not_lost()?;
        let Some(copy) = mapped.copy().filter(|_| mapped.is_live()) else {
            return self.add_use(slot, mapped, access, fence);
        };
        if access == Access::Read {
            copy.is_used_until(&FenceSet::from(fence.clone()));
            return Ok(());
        }
        if let Some(error) = copy.arrived().first_error() {
            mapped.writes_copy.store(false, Ordering::Relaxed);
            return Err(error.into());
        }
        self.exec.set_mut().reserve_fences(slot, 1)?;
        mapped.writes_copy.store(false, Ordering::Relaxed);
        copy.is_used_until(&FenceSet::from(fence.clone()));
        self.bring_back(slot, &copy, &mapped.range, FenceSet::from(fence.clone()));
        self.note_peer_write(slot, mapped);
        Ok(())
    }

    /// An importer uses the buffer's own bytes until `fence` has signalled.
    fn add_use(&mut self, slot: Slot, mapped: &Mapped, access: Access, fence: &Fence) -> Result<()> {
        self.exec.set_mut().reserve_fences(slot, 1)?;
        let announced = self.exec.set().state(slot).announce(access)?;
        self.exec.set_mut().add_fence(slot, fence.clone(), access.usage());
        if let Some(announced) = announced {
            announced.arm(&FenceSet::from(fence.clone()));
        }
        if access == Access::Write {
            self.note_write(slot);
            self.note_peer_write(slot, mapped);
        }
        Ok(())
    }
}

/// Which of some maps' staged copies their importers write. Whoever is refused writes nothing, so then it is as it was.
pub(super) struct Writers<'a>(Vec<(&'a PeerMap, bool)>);

impl<'a> Writers<'a> {
    /// As it is before anything is begun. Under the reservations of all of them.
    pub(super) fn of(maps: impl IntoIterator<Item = &'a PeerMap>) -> Writers<'a> {
        let now = |map: &'a PeerMap| (map, map.mapped.writes_copy.load(Ordering::Relaxed));
        Writers(maps.into_iter().map(now).collect())
    }

    /// Nobody was refused.
    pub(super) fn stay(mut self) {
        self.0.clear();
    }
}

impl Drop for Writers<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|(map, wrote)| map.mapped.writes_copy.store(*wrote, Ordering::Relaxed));
    }
}

impl PeerMap {
    /// The importer is about to use the bytes. Returns what it must queue behind: the moves that bring them, the work of others, and for a map of
    /// a staged copy the copy that brings it up to date. Waits for nothing.
    ///
    /// An importer that writes to a staged copy writes to all that the map shows, as far as others can tell: nobody else should write there
    /// until it has [ended](PeerMap::end).
    ///
    /// # Errors
    /// [`Error::StaleMap`] when the buffer has left where this shows it: map again. [`Error::Revoked`], [`Error::FenceFailed`] when the
    /// buffer's bytes are lost, [`Error::FenceSlots`], [`Error::ReadOnly`] for a write to a buffer that was imported for reading.
    pub fn begin(&self, access: Access) -> Result<FenceSet> {
        self.buffer.0.check_permits(access)?;
        self.buffer.transact(|transaction, slot| transaction.begin_use(slot, self, access))
    }

    /// The importer's use is queued, and over when `fence` has signalled: others queue behind it. What it has written to a staged copy is then
    /// copied back.
    ///
    /// # Errors
    /// [`Error::FenceSlots`] when there is no memory for one more fence; nothing has changed, and it is to be said again.
    /// [`Error::FenceFailed`] when a staged copy could not be brought up to date before it was written to: that write is lost, the buffer has
    /// the bytes that it had.
    pub fn end(&self, access: Access, fence: &Fence) -> Result<()> {
        self.buffer.transact(|transaction, slot| transaction.end_use(slot, self, access, fence))
    }

    /// The importer's use is queued behind what this returns, and over when `fence` has signalled: [`begin`](PeerMap::begin) and
    /// [`end`](PeerMap::end) in one step, so nobody comes in between. For importers that say first, wait then, and transfer last.
    ///
    /// # Errors
    /// As those two.
    pub fn enqueue(&self, access: Access, fence: &Fence) -> Result<FenceSet> {
        if mutant!("begin_and_end_are_two_steps") {
            let before = self.begin(access)?;
            return self.end(access, fence).map(|()| before);
        }
        self.buffer.0.check_permits(access)?;
        self.buffer.transact(|transaction, slot| {
            let writers = Writers::of([self]);
            let before = transaction.begin_use(slot, self, access)?;
            transaction.end_use(slot, self, access, fence)?;
            writers.stay();
            Ok(before)
        })
    }

    /// As [`begin`](PeerMap::begin), and waits for that: for importers that cannot queue behind a fence.
    ///
    /// # Errors
    /// As [`begin`](PeerMap::begin), and [`Error::FenceFailed`] when what was waited for has failed.
    pub fn wait(&self, access: Access) -> Result<()> {
        let after = self.begin(access)?;
        self.buffer.0.manager.wait(&after)
    }
}
