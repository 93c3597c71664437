//! A fence that signals when the test says so.

use devpagemap::{Fence, Timeline};

/// Holds work back until it is opened. Dropped unopened, its fence fails, which only ends the waiting of those it held back;
/// declare it after the device, so that a failing test does not wait for itself.
pub struct Gate {
    timeline: Timeline,
    fence: Fence,
}

impl Gate {
    pub fn closed() -> Gate {
        let timeline = Timeline::new("gate");
        let fence = timeline.next_point();
        Gate { timeline, fence }
    }

    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    pub fn open(&self) {
        self.timeline.signal(self.fence.seqno());
    }
}
