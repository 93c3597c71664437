//! Lanes: the timelines on which moves signal.
//!
//! Moves may be copied in any order and by any engine, but a timeline signals in order. So the queue has a few
//! timelines, each with the FIFO of the moves that were given a point on it. A move whose bytes are in place is
//! published once everything before it in its lane is; a move that waits for a slow job holds up the fences of
//! its own lane alone.
//!
//! ```text
//!   lane 0   [7 waits for a job] [9 copied] [12 copying]      nothing to publish: 9 stands behind 7
//!   lane 1   [8 copied] [11 copied] [13 failed] [14 ...]      signal(11), then fail(13)
//!               `---------------'       `-- one publisher at a time, so that no later signal hides 13's error
//! ```

use crate::request::Urgency;
use crate::schedule::MoveId;
use devpagemap_fence::{FenceSet, Timeline, TimelineId};
use std::collections::VecDeque;

/// A move's place in a lane.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Place {
    pub(crate) id: MoveId,
    pub(crate) seqno: u64,
}

/// One timeline and its unpublished moves. The timeline is constant, the rest protected by the queue's lock.
pub(crate) struct Lane {
    pub(crate) timeline: TimelineId,
    pub(crate) urgency: Urgency,
    /// Oldest first.
    pub(crate) line: VecDeque<Place>,
    /// How many of them wait for fences.
    pub(crate) blocked: usize,
    /// Bytes of those not yet copied.
    pub(crate) load_bytes: u64,
    /// Some thread is signalling this lane's next points.
    pub(crate) publishing: bool,
    /// Moves up to this point were made urgent.
    hurried: u64,
    /// The lane waits for a thread to publish its front.
    pub(crate) listed: bool,
}

impl Lane {
    pub(crate) fn new(timeline: &Timeline, urgency: Urgency) -> Lane {
        Lane {
            timeline: timeline.id(),
            urgency,
            line: VecDeque::new(),
            blocked: 0,
            load_bytes: 0,
            publishing: false,
            hurried: 0,
            listed: false,
        }
    }

    /// The moves up to `seqno` that were not asked for before.
    pub(crate) fn hurry(&mut self, seqno: u64) -> Vec<MoveId> {
        let begin = self.line.partition_point(|place| place.seqno <= self.hurried);
        self.hurried = self.hurried.max(seqno);
        self.line.range(begin..).take_while(|place| place.seqno <= seqno).map(|place| place.id).collect()
    }
}

/// The lane for a new move: the one whose last move it waits for (it loses nothing there), else an idle one,
/// else the least loaded, where a move that waits for somebody else's fence weighs more than any copy.
pub(crate) fn choose(lanes: &[Lane], urgency: Urgency, waits: &FenceSet) -> usize {
    let ours = || lanes.iter().enumerate().filter(|(_, lane)| lane.urgency == urgency);
    let behind = ours().find(|(_, lane)| {
        lane.line
            .back()
            .is_some_and(|tail| waits.get(lane.timeline).is_some_and(|fence| fence.seqno() == tail.seqno))
    });
    behind
        .or_else(|| ours().min_by_key(|(_, lane)| (lane.blocked, lane.line.len().min(1), lane.load_bytes)))
        .map(|(index, _)| index)
        .expect("every urgency has a lane")
}
