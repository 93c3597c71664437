//! Which points of a place failed, and why.
//!
//! Points that succeeded leave nothing here. Adjacent points with one error share a range, so a device that is lost costs
//! one entry. The errors of former owners of the place stay, since nobody knows who still holds a fence of theirs.
//!
//! **The bound.** The last [`KEPT`] ranges are exact. Beyond that the two oldest are joined, together with the points
//! between them, and unless both had the same error the joined one is [`FenceError::Outdated`]. So an old point may look
//! worse than it was (it succeeded, and is told that this is no longer known) and never better, and only after more than
//! `KEPT` failures of their own, each apart from the next, came after it in the same place.

use std::collections::VecDeque;

use crate::error::FenceError;

/// How many ranges of failed points are remembered exactly.
const KEPT: usize = 1024;

struct Range {
    first: u64,
    last: u64,
    error: FenceError,
}

/// The failed points of one place, filed in the order of their numbers.
#[derive(Default)]
pub(crate) struct Failures {
    ranges: VecDeque<Range>, // sorted, disjoint
}

impl Failures {
    /// How `point`, which is complete, ended.
    pub(crate) fn outcome(&self, point: u64) -> Result<(), FenceError> {
        let index = self.ranges.partition_point(|range| range.last < point);
        match self.ranges.get(index) {
            Some(range) if range.first <= point => Err(range.error.clone()),
            _ => Ok(()),
        }
    }

    /// Files the points from `first` to `last`, which are later than all that are filed.
    pub(crate) fn file(&mut self, first: u64, last: u64, error: FenceError) {
        if let Some(previous) = self.ranges.back_mut()
            && previous.last + 1 == first
            && previous.error == error
        {
            previous.last = last;
            return;
        }
        self.ranges.push_back(Range { first, last, error });
        if self.ranges.len() > KEPT {
            self.join_the_oldest();
        }
    }

    fn join_the_oldest(&mut self) {
        let Some(oldest) = self.ranges.pop_front() else { return };
        let Some(next) = self.ranges.front_mut() else { return };
        next.first = oldest.first;
        if next.error != oldest.error {
            next.error = FenceError::Outdated;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_much_fails_the_files_stay_small_and_nothing_looks_better_than_it_was() {
        let mut failures = Failures::default();
        for point in (2..200_000).step_by(2) {
            failures.file(point, point, FenceError::failed(format!("point {point}")));
            assert!(failures.ranges.len() <= KEPT);
        }
        assert_eq!(failures.outcome(1), Ok(()), "before the first failure nothing is in doubt");
        assert_eq!(
            (failures.outcome(2), failures.outcome(3)),
            (Err(FenceError::Outdated), Err(FenceError::Outdated))
        );
        assert_eq!(failures.outcome(199_997), Ok(()));
        assert_eq!(failures.outcome(199_998), Err(FenceError::failed("point 199998")));
    }

    #[test]
    fn failures_with_one_error_keep_it_when_they_are_joined() {
        let mut failures = Failures::default();
        (2..20_000).step_by(2).for_each(|point| failures.file(point, point, FenceError::DeviceLost));
        assert_eq!(failures.outcome(2), Err(FenceError::DeviceLost));
        (20_000..30_000).for_each(|point| failures.file(point, point, FenceError::Cancelled));
        assert_eq!(failures.ranges.len(), KEPT, "adjacent points with one error are one range");
    }
}
