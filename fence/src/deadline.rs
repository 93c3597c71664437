//! Deadlines: by when those who wait for a point would like to have it.
//!
//! A deadline is a hint. Whoever will miss something (a frame, a transfer window) says so, and the owner of the timeline
//! may raise a clock or look at that work first. A point implies all earlier ones, so whoever meets the deadline of a point
//! meets every later deadline of an earlier point with it. What is kept is a staircase, later steps for later points:
//!
//! ```text
//!   deadline
//!      ▲                       ┌────  point 9: 30 ms
//!      │          ┌────────────┘      point 5: 20 ms
//!      │    ──────┘                   point 2: 10 ms, the earliest of all
//!      └──────────────────────────▶
//!         2       5            9      now 7 is given 15 ms: 5 goes, being implied; 2, 7, 9 stay
//! ```
//!
//! Steps of points that are complete go when a deadline is set or asked for, so there are never more of them than points
//! that were outstanding at that time.

use std::collections::VecDeque;
use std::time::Instant;

use crate::sync::Arc;

/// What a deadline hook is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// Name of the timeline.
    pub timeline: Arc<str>,
    /// The point that somebody would like to have signalled.
    pub seqno: u64,
    /// By when.
    pub at: Instant,
}

/// The deadlines of one timeline that still say something. The timeline's lock.
#[derive(Default)]
pub(crate) struct Deadlines {
    steps: VecDeque<(u64, Instant)>, // points and deadlines both ascending
}

impl Deadlines {
    fn drop_done(&mut self, completed: u64) {
        while self.steps.pop_front_if(|step| step.0 <= completed).is_some() {}
    }

    /// Adds a deadline; false if one that is there already asks for as much.
    pub(crate) fn add(&mut self, point: u64, at: Instant, completed: u64) -> bool {
        self.drop_done(completed);
        let from = self.steps.partition_point(|step| step.0 < point);
        if self.steps.get(from).is_some_and(|step| step.1 <= at) {
            return false;
        }
        // What is earlier and later at once is implied; so is what this point was given before.
        let same = self.steps.get(from).is_some_and(|step| step.0 == point);
        let begin = self.steps.partition_point(|step| step.0 < point && step.1 < at);
        self.steps.drain(begin..from + usize::from(same));
        self.steps.insert(begin, (point, at));
        true
    }

    /// The earliest deadline of a point after `completed`.
    pub(crate) fn earliest(&mut self, completed: u64) -> Option<Instant> {
        self.drop_done(completed);
        self.steps.front().map(|step| step.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn there_are_never_more_steps_than_points_outstanding() {
        let begin = Instant::now();
        let mut deadlines = Deadlines::default();
        for point in 1..100_000 {
            // Each point is wanted a bit later than the one before, and is done ten points later.
            deadlines.add(point, begin + Duration::from_millis(point), point.saturating_sub(11));
            assert!(deadlines.steps.len() <= 11);
        }
        assert_eq!(deadlines.earliest(100_000), None);
        assert!(deadlines.steps.is_empty());
    }
}
