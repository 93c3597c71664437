//! A hunt for BAR space, and what it catches. Whoever hunts owns what is in here; nobody else sees it.

use std::ops::Range;
use std::sync::Weak;

use devpagemap_allocator::Span;
use devpagemap_fence::FenceSet;

use super::Zap;
use super::table::Entry;
use crate::region::{Taken, total_bytes};

/// How many windows that were used lately a hunt spares; beyond that, order of use is all that counts. It bounds what a hunt
/// costs.
const SPARED: usize = 16;

/// A hunt that is going on.
#[derive(Default)]
pub(super) struct Hunt {
    /// How much is wanted. Constant.
    pub(super) wanted_bytes: u64,
    /// Space of windows that were taken back, and what their former users wait for. It shows what they showed.
    pub(super) caught: Vec<(Vec<Span>, FenceSet)>,
    pub(super) caught_bytes: u64,
    /// Whom to tell before that space is used, and about which bytes.
    pub(super) followers: Vec<(Weak<dyn Zap>, Range<u64>)>,
    /// How many windows got a second chance.
    pub(super) spared: usize,
    /// How many did not.
    pub(super) taken_windows: u64,
}

/// What to do next.
pub(super) enum Step {
    /// There is space, in transit.
    Caught(Space),
    /// Tell the followers, then go on.
    Zap,
    /// Go on.
    Again,
    /// Others are about to give space back. Give back what was caught, as they may need it, then go on.
    Wait,
    /// Everything is kept by somebody. Give back what was caught.
    Full {
        /// What windows have.
        used_bytes: u64,
    },
}

/// BAR space in transit.
pub(super) struct Space {
    /// As much as was wanted.
    pub(super) taken: Taken,
    /// What was caught beyond that, and shows something still.
    pub(super) surplus: Taken,
}

impl Hunt {
    pub(super) fn new(wanted_bytes: u64) -> Hunt {
        Hunt { wanted_bytes, ..Hunt::default() }
    }

    pub(super) fn spares_used(&self) -> bool {
        self.spared < SPARED
    }

    pub(super) fn catch(&mut self, entry: Entry) {
        let spans = entry.lender.spans.clone();
        let bytes = entry.lender.bytes();
        self.taken_windows += 1;
        self.caught_bytes += total_bytes(&spans);
        self.caught.push((spans, entry.ends));
        self.followers.extend(entry.followers.into_iter().map(|follower| (follower, bytes.clone())));
    }

    /// Tells everybody who followed what was caught.
    pub(super) fn zap(&mut self) {
        zap_all(std::mem::take(&mut self.followers));
    }

    /// What was caught, for giving it back.
    pub(super) fn let_go(&mut self) -> Vec<(Vec<Span>, FenceSet)> {
        self.zap();
        self.caught_bytes = 0;
        std::mem::take(&mut self.caught)
    }
}

/// Tells followers that bytes of their buffers are shown no more.
pub(super) fn zap_all(followers: Vec<(Weak<dyn Zap>, Range<u64>)>) {
    for (follower, bytes) in followers {
        if let Some(follower) = follower.upgrade() {
            follower.zap(&bytes);
        }
    }
}
