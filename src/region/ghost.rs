//! Memory that has been given back behind a fence, byte by byte.
//!
//! A moved buffer's old place, and the place of a destroyed buffer, may still be read or written by work that is
//! queued. TTM keeps one set of fences per memory manager, so every later allocation waits for every earlier eviction.
//! Here a fence belongs to exactly the bytes it protects:
//!
//! ```text
//!   given back ──► ghost (kept out of the allocator, oldest first)
//!                    │ fence signals              │ somebody needs space before that
//!                    ▼                            ▼
//!                  idle                         carved: who gets these bytes gets their fences with them,
//!                                               and what is left of the ghost keeps them
//! ```
//!
//! All of it is under the region lock.

use std::collections::BTreeMap;
use std::ops::Range;

use devpagemap_allocator::Span;
use devpagemap_fence::FenceSet;

use super::spans::{bytes_within, cut, subtract, total_bytes};

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

/// A ghost that nothing sets free yet, and what should: to be handed to `Manager::reap_when_signaled` once the region lock
/// is dropped.
#[derive(Debug)]
#[must_use = "without a callback this memory is never idle again"]
pub(crate) struct Unreaped {
    pub(crate) id: GhostId,
    pub(crate) fences: FenceSet,
}

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
        self.bytes += total_bytes(&spans);
        self.by_age.insert(id, Ghost { spans, fences });
        id
    }

    /// Takes out one ghost; `None` when its space has been reused or reaped already.
    pub(crate) fn remove(&mut self, id: GhostId) -> Option<Ghost> {
        let ghost = self.by_age.remove(&id)?;
        self.bytes -= total_bytes(&ghost.spans);
        Some(ghost)
    }

    /// Puts a ghost back that was taken out a moment ago, or what is left of it.
    pub(crate) fn put_back(&mut self, id: GhostId, ghost: Ghost) {
        if ghost.spans.is_empty() {
            return;
        }
        self.bytes += total_bytes(&ghost.spans);
        self.by_age.insert(id, ghost);
    }

    /// The oldest ghost with a byte in `range`: the one whose fence is likely to signal next.
    pub(crate) fn oldest_in(&self, range: &Range<u64>) -> Option<GhostId> {
        self.by_age.iter().find(|(_, ghost)| bytes_within(&ghost.spans, range) > 0).map(|(id, _)| *id)
    }

    /// How many bytes in `range` are ghosts'.
    pub(crate) fn bytes_in(&self, range: &Range<u64>) -> u64 {
        self.by_age.values().map(|ghost| bytes_within(&ghost.spans, range)).sum()
    }

    /// Takes up to `len_bytes` within `range` from a ghost; the rest stays what it is.
    pub(crate) fn carve(&mut self, id: GhostId, range: &Range<u64>, len_bytes: u64) -> Ghost {
        let ghost = self.remove(id).expect("only a ghost that was found is carved");
        let (mut taken, mut rest) = (Vec::new(), Vec::new());
        let mut missing = len_bytes;
        for span in ghost.spans {
            let Some(mut part) = cut(&span, range).filter(|_| missing > 0) else {
                rest.push(span);
                continue;
            };
            part.len_bytes = part.len_bytes.min(missing);
            missing -= part.len_bytes;
            taken.push(part);
            rest.extend(subtract(span, part));
        }
        self.put_back(id, Ghost { spans: rest, fences: ghost.fences.clone() });
        Ghost { spans: taken, fences: ghost.fences }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (GhostId, &Ghost)> {
        self.by_age.iter().map(|(id, ghost)| (*id, ghost))
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

#[cfg(test)]
mod tests {
    use super::*;
    use devpagemap_fence::Timeline;

    fn span(start_bytes: u64, len_bytes: u64) -> Span {
        Span { start_bytes, len_bytes }
    }

    #[test]
    fn a_part_is_carved_out_of_the_wanted_range_and_the_rest_keeps_its_fences_and_its_id() {
        let timeline = Timeline::new("copies");
        let mut ghosts = Ghosts::default();
        let id = ghosts.add(vec![span(0, 8192), span(16384, 8192)], timeline.next_point().into());
        let part = ghosts.carve(id, &(4096..20480), 8192);
        assert_eq!(part.spans, [span(4096, 4096), span(16384, 4096)]);
        assert_eq!((ghosts.bytes(), ghosts.bytes_in(&(4096..20480))), (8192, 0));
        let rest = ghosts.remove(id).expect("half of it is left");
        assert_eq!((rest.spans, rest.fences.len()), (vec![span(0, 4096), span(20480, 4096)], 1));
    }

    #[test]
    fn a_ghost_that_is_carved_up_is_gone() {
        let timeline = Timeline::new("copies");
        let mut ghosts = Ghosts::default();
        let id = ghosts.add(vec![span(0, 8192)], timeline.next_point().into());
        ghosts.carve(id, &(0..8192), 8192);
        assert_eq!((ghosts.len(), ghosts.bytes(), ghosts.oldest_in(&(0..8192))), (0, 0, None));
    }
}
