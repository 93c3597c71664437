//! When points signalled, for timelines that want to know.
//!
//! One signal completes a range of points, so a history has one entry a signal: the last point of the range and the moment.
//! It keeps the last few. Of points before that it is known that they signalled no later than the oldest entry.

use std::collections::VecDeque;
use std::time::Instant;

/// When a point signalled, as far as that is known.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum SignalTime {
    /// It has not.
    Outstanding,
    /// At this moment.
    At(Instant),
    /// No later than this; the exact moment is no longer in the timeline's history.
    NoLaterThan(Instant),
    /// Its timeline keeps no history, or is gone and its history with it.
    Unrecorded,
}

/// The history of one timeline. The timeline's lock.
pub(crate) struct Timestamps {
    kept: usize,                       // constant
    entries: VecDeque<(u64, Instant)>, // ascending
    forgotten: u64,                    // the last point whose entry had to go
}

impl Timestamps {
    /// A history of the last `kept` signals, at least one.
    pub(crate) fn new(kept: usize) -> Timestamps {
        Timestamps { kept: kept.max(1), entries: VecDeque::new(), forgotten: 0 }
    }

    /// Notes that the points up to `point` are complete.
    pub(crate) fn note(&mut self, point: u64, now: Instant) {
        if self.entries.len() == self.kept
            && let Some((forgotten, _)) = self.entries.pop_front()
        {
            self.forgotten = forgotten;
        }
        self.entries.push_back((point, now));
    }

    /// When `point`, which is complete, signalled.
    pub(crate) fn of(&self, point: u64) -> SignalTime {
        let index = self.entries.partition_point(|entry| entry.0 < point);
        match self.entries.get(index) {
            None => SignalTime::Unrecorded,
            Some(&(_, at)) if point <= self.forgotten => SignalTime::NoLaterThan(at),
            Some(&(_, at)) => SignalTime::At(at),
        }
    }
}
