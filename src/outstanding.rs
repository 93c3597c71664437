//! What an idle device has behind it: the last fence of every timeline that work was queued to. And which buffers are on their way
//! out of VRAM: who takes the device away has to know whose bytes are in a copy that may go wrong.
//!
//! Drivers may use a timeline for ever or make a new one for each job, so what has signalled is dropped whenever the set has
//! doubled. That costs a constant per fence, and the set stays as small as what is really outstanding.

use devpagemap_fence::{Fence, FenceSet};
use devpagemap_migrate::ExtentList;

use crate::bo::WeakBuffer;

/// Below this many fences nothing is dropped.
const SMALL: usize = 64;

/// The fences of queued work. The outstanding lock.
#[derive(Debug)]
pub(crate) struct Outstanding {
    fences: FenceSet,
    prune_at: usize,
    leaving: Vec<Leaving>,
    prune_leaving_at: usize,
}

/// A buffer whose bytes are being copied out of VRAM.
#[derive(Clone, Debug)]
pub(crate) struct Leaving {
    pub(crate) buffer: WeakBuffer,
    /// Where they are copied from.
    pub(crate) from: ExtentList,
    /// The copy's.
    pub(crate) fence: Fence,
}

impl Outstanding {
    pub(crate) fn new() -> Outstanding {
        let (fences, leaving) = (FenceSet::new(), Vec::new());
        Outstanding { fences, prune_at: SMALL, leaving, prune_leaving_at: SMALL }
    }

    pub(crate) fn add_leaving(&mut self, leaving: Leaving) {
        self.leaving.push(leaving);
        if self.leaving.len() >= self.prune_leaving_at {
            self.leaving.retain(|leaving| !leaving.fence.is_signaled());
            self.prune_leaving_at = SMALL.max(2 * self.leaving.len());
        }
    }

    /// The buffers that are on their way out of VRAM now.
    pub(crate) fn leaving(&self) -> Vec<Leaving> {
        self.leaving.iter().filter(|leaving| !leaving.fence.is_signaled()).cloned().collect()
    }

    pub(crate) fn add(&mut self, fence: Fence) {
        self.fences.add(fence);
        if self.fences.len() >= self.prune_at {
            self.fences.prune();
            self.prune_at = SMALL.max(2 * self.fences.len());
        }
    }

    /// What had been queued until now.
    pub(crate) fn so_far(&self) -> FenceSet {
        self.fences.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devpagemap_fence::Timeline;

    #[test]
    fn timelines_that_have_signalled_leave_nothing_behind() {
        let mut outstanding = Outstanding::new();
        for _ in 0..100_000 {
            let timeline = Timeline::new("one job");
            let fence = timeline.next_point();
            outstanding.add(fence.clone());
            timeline.signal(fence.seqno());
        }
        assert!(outstanding.so_far().len() <= SMALL);
    }

    #[test]
    fn what_has_not_signalled_is_never_dropped() {
        let timelines: Vec<Timeline> = (0..1000).map(|_| Timeline::new("one job")).collect();
        let mut outstanding = Outstanding::new();
        timelines.iter().for_each(|timeline| outstanding.add(timeline.next_point()));
        assert_eq!(outstanding.so_far().len(), 1000);
    }
}
