//! Which points of a timeline failed, and why.
//!
//! Points that succeeded leave nothing here. Adjacent points with one error share a range, so a device that is lost costs
//! one entry. Beyond [`KEPT`] ranges the two oldest are joined together with the points between them: an old point may
//! then look worse than it was, never better.

use crate::error::FenceError;

/// How many ranges of failed points are remembered exactly.
const KEPT: usize = 1024;

struct Range {
    first: u64,
    last: u64,
    error: FenceError,
}

/// The failed points of one timeline, filed in the order of their seqnos.
#[derive(Default)]
pub(crate) struct Failures {
    ranges: Vec<Range>, // sorted, disjoint
}

impl Failures {
    /// How point `seqno`, which is complete, ended.
    pub(crate) fn outcome(&self, seqno: u64) -> Result<(), FenceError> {
        let index = self.ranges.partition_point(|range| range.last < seqno);
        match self.ranges.get(index) {
            Some(range) if range.first <= seqno => Err(range.error.clone()),
            _ => Ok(()),
        }
    }

    /// Files the points from `first` to `last`, which are later than all that are filed.
    pub(crate) fn file(&mut self, first: u64, last: u64, error: FenceError) {
        if let Some(previous) = self.ranges.last_mut()
            && previous.last + 1 == first
            && previous.error == error
        {
            previous.last = last;
            return;
        }
        self.ranges.push(Range { first, last, error });
        if self.ranges.len() > KEPT {
            let oldest = self.ranges.remove(0);
            self.ranges[0].first = oldest.first;
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.ranges.clear();
    }
}
