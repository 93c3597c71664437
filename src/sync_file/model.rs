//! For models: the protocol with the kernel that is made up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use devpagemap_fence::{Fence, FenceSet};

use super::fake::syncobj::FakeSyncobj;
use super::fake::{FakeDmaBuf, FakeFence, FakeKernel};
use super::kernel::{Kernel, MadeFence, Poller};
use super::points::Points;
use super::{Across, Crossing, Reserved};
use crate::error::{Error, Result};
use crate::submit::Access;

/// For how long a model's fences last, and for how long it waits for others'.
const EXPIRY: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(5);

/// A device of a model has no kernel.
#[derive(Debug)]
pub(crate) struct NoKernel;

impl Kernel for NoKernel {
    fn source(&self) -> Result<&'static str> {
        Err(Error::NoKernelFences { why: "a model has no kernel".into() })
    }

    fn make_fence(&self) -> Result<MadeFence> {
        self.source().map(|_| unreachable!("there is no source"))
    }

    fn expires_after(&self) -> Option<Duration> {
        None
    }

    fn poller(&self) -> Result<Arc<dyn Poller>> {
        Err(Error::Unsupported { what: "fences from outside, in a model" })
    }

    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// What a device has for fences that cross, and a kernel that is made up.
#[derive(Debug)]
pub struct CrossingModel {
    kernel: Arc<FakeKernel>,
    crossing: Arc<Crossing>,
}

/// A dma-buf, seen by us and by others.
#[derive(Debug)]
pub struct ModelDmaBuf {
    theirs: Arc<FakeDmaBuf>,
    across: Arc<Across>,
}

/// A fence of somebody else's.
#[derive(Debug)]
pub struct ModelFence(FakeFence);

/// A kernel fence that is reserved; signalled when it is dropped.
#[derive(Debug)]
pub struct ModelReserved(Reserved);

/// A syncobj, seen by us and by others.
#[derive(Clone, Debug)]
pub struct ModelSyncobj {
    theirs: FakeSyncobj,
    points: Arc<Points>,
}

impl CrossingModel {
    /// With fences that last for ever, and a keeper.
    #[expect(clippy::new_without_default, reason = "a model says what it is about")]
    pub fn new() -> CrossingModel {
        CrossingModel::on(FakeKernel::new())
    }

    /// With fences that expire. Nobody keeps them but the model itself ([`CrossingModel::keep`]).
    pub fn unkept() -> CrossingModel {
        CrossingModel::on(FakeKernel::unkept(EXPIRY))
    }

    fn on(kernel: Arc<FakeKernel>) -> CrossingModel {
        CrossingModel { crossing: Crossing::new(kernel.clone(), TIMEOUT), kernel }
    }

    /// A dma-buf without fences.
    pub fn dma_buf(&self) -> ModelDmaBuf {
        let theirs = self.kernel.dma_buf();
        ModelDmaBuf { across: self.crossing.across(theirs.clone()), theirs }
    }

    /// A syncobj without points.
    pub fn syncobj(&self) -> ModelSyncobj {
        let theirs = self.kernel.syncobj();
        ModelSyncobj { points: Points::new(self.crossing.clone(), Box::new(theirs.clone())), theirs }
    }

    /// A fence of somebody else's.
    pub fn stranger(&self) -> ModelFence {
        ModelFence(self.kernel.stranger())
    }

    /// Puts the clock forward until our fences are to be renewed, which is before they expire.
    pub fn until_renewal(&self) {
        self.kernel.pass(EXPIRY - Duration::from_secs(3));
    }

    /// Puts the clock forward until fences of others are given up.
    pub fn until_timeout(&self) {
        self.kernel.pass(TIMEOUT);
    }

    /// Does what the keeper would do now.
    pub fn keep(&self) {
        self.crossing.do_what_is_due();
    }

    /// How many kernel fences are outstanding.
    pub fn outstanding(&self) -> usize {
        self.kernel.outstanding()
    }
}

impl ModelDmaBuf {
    /// Reserves a kernel fence for a write.
    pub fn reserve(&self) -> ModelReserved {
        let reserved = self.across.announce(Access::Write).expect("nothing was told to fail");
        ModelReserved(reserved.expect("there is a source"))
    }

    /// Somebody else begins to write.
    pub fn attach(&self, fence: &ModelFence) {
        self.theirs.attach(&fence.0, Access::Write);
    }

    /// What of others' work a writer waits for.
    pub fn hear(&self) -> Option<Fence> {
        self.across.hear(Access::Write).expect("nothing was told to fail")
    }

    /// Whether who polls for writing has to wait.
    pub fn is_busy(&self) -> bool {
        self.theirs.is_busy(Access::Write)
    }
}

impl ModelSyncobj {
    /// Adds a point with a kernel fence, which signals with `fence`.
    pub fn attach(&self, point: u64, fence: &Fence) {
        self.points.attach(point, &FenceSet::from(fence.clone())).expect("nothing was told to fail");
    }

    /// Adds a point when `fence` has signalled.
    pub fn signal_after(&self, point: u64, fence: &Fence) {
        self.points.signal_after(point, &FenceSet::from(fence.clone())).expect("nothing was told to fail");
    }

    /// Looks for a point.
    pub fn fence_at(&self, point: u64) -> Fence {
        self.points.fence_at(point).expect("nothing was told to fail")
    }

    /// The points that are there, in the order in which they came.
    pub fn came(&self) -> Vec<u64> {
        self.theirs.came()
    }
}

impl ModelReserved {
    /// The work is queued.
    pub fn arm(self, fence: &Fence) {
        self.0.arm(&FenceSet::from(fence.clone()));
    }
}

impl ModelFence {
    /// Whether its work is done.
    pub fn is_signaled(&self) -> bool {
        self.0.is_signaled()
    }

    /// Its work is done.
    pub fn signal(&self) {
        self.0.signal();
    }
}
