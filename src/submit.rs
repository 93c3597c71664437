//! Submission: lock the buffers, bring them in, let the driver queue its work, attach its fence.
//!
//! Nothing here waits for a copy. The driver gets what the work must wait for as fences and queues it behind them.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use devpagemap_fence::lockdep::{self, Signalling};
use devpagemap_fence::{Fence, FenceError, FenceSet, Slot, Usage};
use devpagemap_migrate::ExtentList;

use crate::bo::{Buffer, BufferObject, Transaction};
use crate::device::driver_of;
use crate::driver::Driver;
use crate::error::{Error, Result};
use crate::manager::Manager;
use crate::region::RegionKind;

/// What a job does with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// It only reads; other readers may run beside it.
    Read,
    /// It reads and writes; nobody else may use the buffer meanwhile.
    Write,
}

impl Access {
    /// As what the fence of such a use goes into a reservation.
    pub(crate) fn usage(self) -> Usage {
        match self {
            Access::Read => Usage::Read,
            Access::Write => Usage::Write,
        }
    }
}

/// Work about to be submitted. Buffers are brought in, and become recently used, in the order in which they are named.
#[must_use = "nothing is submitted until `run`"]
pub struct Submission<D> {
    manager: Arc<Manager>,
    driver: PhantomData<fn() -> D>,
    /// In the order in which they were named.
    uses: Vec<(Arc<BufferObject>, Access)>,
    /// Where each buffer is in `uses`, by its address.
    known: HashMap<*const BufferObject, usize>,
    after: FenceSet,
}

impl<D> fmt::Debug for Submission<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submission").field("uses", &self.uses.len()).field("after", &self.after).finish()
    }
}

impl<D: Driver> Submission<D> {
    pub(crate) fn new(manager: Arc<Manager>) -> Submission<D> {
        Submission {
            manager,
            driver: PhantomData,
            uses: Vec::new(),
            known: HashMap::new(),
            after: FenceSet::new(),
        }
    }

    /// The job reads `buffer`.
    pub fn reads(self, buffer: &Buffer) -> Submission<D> {
        self.uses(buffer, Access::Read)
    }

    /// The job reads and writes `buffer`.
    pub fn writes(self, buffer: &Buffer) -> Submission<D> {
        self.uses(buffer, Access::Write)
    }

    /// The job uses `buffer`; the strongest access counts when it is named twice.
    pub fn uses(mut self, buffer: &Buffer, access: Access) -> Submission<D> {
        let index = *self.known.entry(Arc::as_ptr(&buffer.0)).or_insert(self.uses.len());
        match self.uses.get_mut(index) {
            Some((_, known)) => *known = access.max(*known),
            None => self.uses.push((buffer.0.clone(), access)),
        }
        self
    }

    /// The job must run after `fence`.
    pub fn after(mut self, fence: &Fence) -> Submission<D> {
        self.after.add(fence.clone());
        self
    }

    /// Brings all buffers in, evicting others where it must, and calls `queue` to queue the work. The returned fence is
    /// attached to every buffer. Waits for no copy and no fence.
    ///
    /// `queue` gets the driver and the [`Job`], must queue the work behind [`Job::after`], and may run again from the start
    /// only if nothing of it was kept: it is called once, after everything else that can fail.
    ///
    /// # Errors
    /// Why a buffer could not be brought in ([`Error::Exhausted`], [`Error::Fragmented`], [`Error::TooLarge`],
    /// [`Error::Pinned`], [`Error::FenceFailed`] for one that is lost), [`Error::ForeignBuffer`], [`Error::ReadOnly`] for a write to a buffer
    /// that was imported for reading, [`Error::Revoked`] while VRAM is [taken away](crate::Device::unplug), or what `queue` said.
    pub fn run(self, queue: impl FnOnce(&D, &Job<'_>) -> Result<Fence>) -> Result<Fence> {
        let Submission { manager, uses, known, after, .. } = self;
        if let Some((stranger, _)) = uses.iter().find(|(buffer, _)| !Arc::ptr_eq(&buffer.manager, &manager)) {
            return Err(Error::ForeignBuffer { buffer: stranger.id() });
        }
        let mut writes = uses.iter().filter(|(_, access)| *access == Access::Write);
        writes.try_for_each(|(buffer, _)| buffer.check_writable())?;
        check_fits_together(&manager, &uses)?;
        let buffers: Vec<_> = uses.iter().map(|(buffer, _)| buffer.clone()).collect();
        let mut queue = Some(queue);
        manager.transact(&buffers, |transaction| {
            transaction.check_may_use_vram()?;
            let theirs = transaction.hear_members(&uses)?;
            for index in 0..uses.len() {
                transaction.validate_for_gpu(transaction.member(index))?;
            }
            let announced = transaction.announce_members(&uses)?;
            let job = Job::new(transaction, &uses, &known, &after, theirs);
            let queue = queue.take().expect("nothing after this asks for a restart");
            // The driver publishes the job's fence; until every buffer has it, nothing may wait for the GPU.
            let _signalling = Signalling::begin();
            let fence = queue(driver_of(&manager), &job)?;
            attach(transaction, &uses, &fence);
            if let Some(announced) = announced {
                announced.arm(&FenceSet::from(fence.clone()));
            }
            Ok(fence)
        })
    }
}

/// Refuses, before anything changes, buffers that can be in VRAM only and exceed it together.
fn check_fits_together(manager: &Manager, uses: &[(Arc<BufferObject>, Access)]) -> Result<()> {
    let in_vram = uses.iter().filter(|(buffer, _)| buffer.placement().needs_vram());
    let wanted_bytes: u64 = in_vram.map(|(buffer, _)| buffer.footprint_bytes).sum();
    let size_bytes = manager.vram.size_bytes;
    if wanted_bytes > size_bytes {
        return Err(Error::Exhausted {
            region: RegionKind::Vram,
            wanted_bytes,
            free_bytes: size_bytes,
            pinned_bytes: 0,
            held_bytes: 0,
        });
    }
    Ok(())
}

fn attach(transaction: &mut Transaction<'_, '_, '_>, uses: &[(Arc<BufferObject>, Access)], fence: &Fence) {
    for (index, (_, access)) in uses.iter().enumerate() {
        let slot = transaction.member(index);
        transaction.exec.set_mut().add_fence(slot, fence.clone(), access.usage());
        transaction.note_submission(slot);
        transaction.note_job(slot, *access);
    }
    transaction.touch_members();
    let manager = transaction.manager;
    let (_, mut held) = transaction.exec.split();
    manager.remember(fence, &mut held);
}

/// A submission whose buffers are in place, as the driver sees it.
#[derive(Debug)]
pub struct Job<'a> {
    uses: Vec<Use<'a>>,
    known: &'a HashMap<*const BufferObject, usize>,
    after: FenceSet,
    needs: Arrivals,
}

/// The moves that bring a submission's buffers where the job expects them, and what other drivers do to buffers that they share with it.
///
/// A list and not a [`FenceSet`]: a set keeps the last point of each timeline, and the success of one buffer's move must not
/// hide the failure of another's before it.
#[derive(Clone, Debug, Default)]
pub struct Arrivals(Vec<Fence>);

impl Arrivals {
    fn add(&mut self, arrival: &FenceSet) {
        self.0.extend(arrival.iter().filter(|fence| fence.status() != Some(Ok(()))).cloned());
    }

    /// Sleeps until all have ended.
    ///
    /// # Errors
    /// The failure of the first that failed: the bytes are not there, and the work must not run.
    #[track_caller]
    pub fn wait(&self) -> std::result::Result<(), FenceError> {
        lockdep::assert_may_wait();
        let mut outcome = Ok(());
        for fence in &self.0 {
            outcome = outcome.and(fence.wait());
        }
        outcome
    }
}

#[derive(Debug)]
struct Use<'a> {
    access: Access,
    extents: &'a ExtentList,
}

impl<'a> Job<'a> {
    fn new(
        transaction: &'a Transaction<'_, '_, '_>,
        uses: &[(Arc<BufferObject>, Access)],
        known: &'a HashMap<*const BufferObject, usize>,
        after: &FenceSet,
        theirs: Vec<Fence>,
    ) -> Job<'a> {
        let mut job = Job {
            uses: Vec::with_capacity(uses.len()),
            known,
            after: after.clone(),
            needs: Arrivals(theirs),
        };
        for (index, (_, access)) in uses.iter().enumerate() {
            let slot: Slot = transaction.member(index);
            let resource = transaction.resource(slot).expect("validate gave every buffer a resource");
            job.uses.push(Use { access: *access, extents: &resource.extents });
            let set = transaction.exec.set();
            job.after.merge(&set.fences(slot, Usage::waits_for(*access == Access::Write)));
            job.needs.add(&set.state(slot).arrival);
        }
        job
    }

    /// What the work must wait for: moves, and the work of others on the same buffers.
    pub fn after(&self) -> &FenceSet {
        &self.after
    }

    /// The moves among them, and the work of other drivers on shared buffers: if one fails, the bytes are not there and the work must not run.
    pub fn needs(&self) -> &Arrivals {
        &self.needs
    }

    /// Where a buffer of this submission is.
    ///
    /// # Panics
    /// For a buffer that the submission does not name.
    pub fn extents(&self, buffer: &Buffer) -> ExtentList {
        match self.known.get(&Arc::as_ptr(&buffer.0)) {
            Some(index) => self.uses[*index].extents.clone(),
            None => panic!("buffer {} is not part of this submission", buffer.id()),
        }
    }

    /// Everything that the work may touch, and how.
    pub fn uses(&self) -> impl Iterator<Item = (&ExtentList, Access)> {
        self.uses.iter().map(|used| (used.extents, used.access))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devpagemap_fence::Timeline;

    #[test]
    fn a_move_that_failed_is_not_hidden_by_a_later_one_of_the_same_timeline() {
        let lane = Timeline::new("lane");
        let (first, second) = (lane.next_point(), lane.next_point());
        let mut arrivals = Arrivals::default();
        arrivals.add(&FenceSet::from(first.clone()));
        arrivals.add(&FenceSet::from(second.clone()));
        lane.fail(first.seqno(), FenceError::Cancelled);
        lane.signal(second.seqno());
        assert_eq!(arrivals.wait(), Err(FenceError::Cancelled));
    }
}
