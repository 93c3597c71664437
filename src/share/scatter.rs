//! Scatter lists: where the bytes of a range are, made once for as long as the buffer stays where it is.
//!
//! Importers map the same ranges again and again. The list of one is made from the buffer's extents and kept under the generation of its place; a move
//! makes the next generation, and nothing has to be told to whoever still has a list of the last.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::peer_map::PeerExtent;

/// How many lists of one buffer are kept.
const KEPT: usize = 16;

/// The lists of one buffer. Under its reservation.
#[derive(Debug, Default)]
pub(super) struct ScatterLists {
    /// Of the place that they are of.
    generation: u64,
    /// The oldest first.
    lists: VecDeque<(Kind, Range<u64>, Arc<[PeerExtent]>)>,
}

/// Who is to read a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Somebody on the bus.
    Bus,
    /// Somebody who has a private link.
    Link,
}

impl ScatterLists {
    /// The list of a range, made by `make` if there is none.
    pub(super) fn get(
        &mut self,
        generation: u64,
        kind: Kind,
        range: &Range<u64>,
        make: impl FnOnce() -> Arc<[PeerExtent]>,
    ) -> Arc<[PeerExtent]> {
        if self.generation != generation {
            self.generation = generation;
            self.lists.clear();
        }
        let known = self.lists.iter().find(|(of, bytes, _)| *of == kind && bytes == range);
        if let Some((_, _, list)) = known {
            return list.clone();
        }
        if self.lists.len() == KEPT {
            self.lists.pop_front();
        }
        let list = make();
        self.lists.push_back((kind, range.clone(), list.clone()));
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_made_once_for_each_range_and_place_and_not_kept_for_ever() {
        let mut lists = ScatterLists::default();
        let mut made = 0;
        let mut get = |generation, kind, start| {
            lists.get(generation, kind, &(start..start + 1), || {
                made += 1;
                Arc::default()
            });
            made
        };
        assert_eq!([get(1, Kind::Bus, 0), get(1, Kind::Bus, 0), get(1, Kind::Link, 0)], [1, 1, 2]);
        assert_eq!(get(2, Kind::Bus, 0), 3, "it has moved");
        for start in 1..=KEPT as u64 {
            get(2, Kind::Bus, start);
        }
        assert_eq!(get(2, Kind::Bus, 0), 3 + KEPT as u64 + 1, "it was the oldest");
        assert_eq!(lists.lists.len(), KEPT);
    }
}
