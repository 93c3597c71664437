//! Memory that has been given back behind a fence, byte by byte.
//!
//! A moved buffer's old place, and the place of a destroyed buffer, may still be read or written by work that is
//! queued. TTM keeps one set of fences per memory manager, so every later allocation waits for every earlier eviction.
//! Here a fence belongs to exactly the bytes it protects, in two stages:
//!
//! ```text
//!   given back ──► ghost (kept out of the allocator, oldest first)
//!                    │ fence signals              │ somebody needs the space before that
//!                    ▼                            ▼
//!                  idle                         fenced: allocatable again, and whoever gets these bytes
//!                                               gets their fences with them, nobody else does
//! ```
//!
//! All of it is under the region lock.

use std::collections::BTreeMap;

use devpagemap_allocator::Span;
use devpagemap_fence::FenceSet;

/// Bytes whose last users have not finished, with the fences that say when they have.
#[derive(Clone, Debug)]
pub(crate) struct Ghost {
    /// The region lock.
    pub(crate) spans: Vec<Span>,
    /// The region lock.
    pub(crate) fences: FenceSet,
}

/// Identifies a ghost to the fence callback that turns it into idle memory. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GhostId(u64);

/// The ghosts of one region, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Ghosts {
    /// The region lock.
    by_age: BTreeMap<GhostId, Ghost>,
    /// The region lock.
    next_id: u64,
    /// The sum of all spans. The region lock.
    bytes: u64,
}

impl Ghosts {
    pub(crate) fn add(&mut self, spans: Vec<Span>, fences: FenceSet) -> GhostId {
        let id = GhostId(self.next_id);
        self.next_id += 1;
        self.bytes += spans.iter().map(|span| span.len_bytes).sum::<u64>();
        self.by_age.insert(id, Ghost { spans, fences });
        id
    }

    /// Takes out one ghost; `None` when its space has been reused or reaped already.
    pub(crate) fn remove(&mut self, id: GhostId) -> Option<Ghost> {
        let ghost = self.by_age.remove(&id)?;
        self.bytes -= ghost.spans.iter().map(|span| span.len_bytes).sum::<u64>();
        Some(ghost)
    }

    /// The oldest ghost that has a byte for which `wanted` holds: the one whose fence is likely to signal next.
    pub(crate) fn oldest_where(&self, mut wanted: impl FnMut(&Span) -> bool) -> Option<GhostId> {
        self.by_age.iter().find(|(_, ghost)| ghost.spans.iter().any(&mut wanted)).map(|(id, _)| *id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Ghost> {
        self.by_age.values()
    }

    /// The ghosts whose fences have signalled.
    pub(crate) fn signalled(&self) -> Vec<GhostId> {
        self.by_age.iter().filter(|(_, ghost)| ghost.fences.is_signaled()).map(|(id, _)| *id).collect()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.by_age.len()
    }
}

/// Allocatable bytes that still have unsignalled fences: an interval map without overlaps.
#[derive(Debug, Default)]
pub(crate) struct FencedSpans {
    /// Start to (end, fences). The region lock.
    by_start: BTreeMap<u64, (u64, FenceSet)>,
}

impl FencedSpans {
    /// Notes that whoever gets these bytes must wait for `fences`. The bytes must not be noted yet.
    pub(crate) fn add(&mut self, span: Span, fences: &FenceSet) {
        debug_assert!(self.overlapping(span).is_empty(), "{span:?} is fenced already");
        self.by_start.insert(span.start_bytes, (span.end_bytes(), fences.clone()));
    }

    /// Removes the notes about exactly these bytes and returns all their fences, merged.
    pub(crate) fn take(&mut self, span: Span) -> FenceSet {
        let mut fences = FenceSet::new();
        for start in self.overlapping(span) {
            let Some((end, noted)) = self.by_start.remove(&start) else { continue };
            fences.merge(&noted);
            if start < span.start_bytes {
                self.by_start.insert(start, (span.start_bytes, noted.clone()));
            }
            if end > span.end_bytes() {
                self.by_start.insert(span.end_bytes(), (end, noted));
            }
        }
        fences
    }

    /// Forgets what has signalled since.
    pub(crate) fn prune(&mut self) {
        self.by_start.retain(|_, (_, fences)| !fences.is_signaled());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_start.is_empty()
    }

    fn overlapping(&self, span: Span) -> Vec<u64> {
        let before = self.by_start.range(..span.start_bytes).next_back();
        let before = before.filter(|(_, (end, _))| *end > span.start_bytes).map(|(start, _)| *start);
        let inside = self.by_start.range(span.start_bytes..span.end_bytes()).map(|(start, _)| *start);
        before.into_iter().chain(inside).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devpagemap_fence::Timeline;

    fn span(start_bytes: u64, len_bytes: u64) -> Span {
        Span { start_bytes, len_bytes }
    }

    #[test]
    fn a_fence_is_inherited_only_by_who_takes_its_bytes() {
        let (left, right) = (Timeline::new("left"), Timeline::new("right"));
        let mut fenced = FencedSpans::default();
        fenced.add(span(0, 8192), &FenceSet::from(left.next_point()));
        fenced.add(span(8192, 8192), &FenceSet::from(right.next_point()));

        let taken = fenced.take(span(4096, 4096));
        assert_eq!(taken.iter().map(|fence| fence.timeline_id()).collect::<Vec<_>>(), [left.id()]);
        let taken = fenced.take(span(0, 16384));
        assert_eq!(taken.len(), 2, "what was not taken before still carries its fences");
        assert!(fenced.is_empty());
    }

    #[test]
    fn a_hole_cut_out_of_the_middle_leaves_both_ends_fenced() {
        let timeline = Timeline::new("copies");
        let mut fenced = FencedSpans::default();
        fenced.add(span(0, 12288), &FenceSet::from(timeline.next_point()));
        assert_eq!(fenced.take(span(4096, 4096)).len(), 1);
        assert!(fenced.take(span(4096, 4096)).is_empty());
        assert_eq!(fenced.take(span(0, 4096)).len(), 1);
        assert_eq!(fenced.take(span(8192, 4096)).len(), 1);
    }

    #[test]
    fn signalled_fences_are_forgotten() {
        let timeline = Timeline::new("copies");
        let mut fenced = FencedSpans::default();
        let fence = timeline.next_point();
        fenced.add(span(0, 4096), &FenceSet::from(fence.clone()));
        timeline.signal(fence.seqno());
        fenced.prune();
        assert!(fenced.is_empty());
    }
}
