//! Who uses which pages of one buffer at one place.
//!
//! Maps overlap as they like, and several importers may have the same page. So the pages are kept as runs, each with the list
//! of its users; a change splits runs where it begins and ends, and equal neighbours become one again:
//!
//! ```text
//!   A maps 0..8, B maps 4..12     │ A │ A, B │ B │
//!                                 0   4      8   12
//!   B gives 4..12 back behind F   │ A │ A, B behind F │ B behind F │
//! ```
//!
//! All under the aperture lock.

use std::collections::BTreeMap;
use std::ops::Range;

use super::ledger::{AccountId, PendingId};

/// The three sums that a page is in. A pending page is inherited in one of them at a time, and goes on counting in the others:
/// whoever inherits it may be of another client, or another importer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sum {
    Total = 1,
    Client = 2,
    Importer = 4,
}

/// Some of the three sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums(u8);

impl Sums {
    pub(crate) const ALL: Sums = Sums(Sum::Total as u8 | Sum::Client as u8 | Sum::Importer as u8);

    pub(crate) fn contains(self, sum: Sum) -> bool {
        self.0 & sum as u8 != 0
    }

    pub(crate) fn is_empty(self) -> bool {
        self == Sums::default()
    }

    pub(crate) fn add(&mut self, sum: Sum) {
        self.0 |= sum as u8;
    }

    pub(crate) fn remove(&mut self, sum: Sum) {
        self.0 &= !(sum as u8);
    }
}

/// A map that was given back, or fences that one has inherited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PendingUse {
    pub(crate) id: PendingId,
    /// Where it counts, never nowhere.
    pub(crate) sums: Sums,
}

/// One importer's use of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) importer: AccountId,
    /// How many maps of this importer have these pages.
    pub(crate) maps: u32,
    /// What counts until fences signal.
    pub(crate) pending: Vec<PendingUse>,
}

/// How pages are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Idle,
    /// By no map, until fences signal.
    Pending,
    /// By a map.
    Live,
}

impl User {
    /// What counts in a sum until fences signal.
    pub(crate) fn pending_in(&self, sum: Sum) -> impl Iterator<Item = PendingId> {
        self.pending.iter().filter(move |pending| pending.sums.contains(sum)).map(|pending| pending.id)
    }

    pub(crate) fn kind(&self, sum: Sum) -> Use {
        if self.maps > 0 {
            Use::Live
        } else if self.pending_in(sum).next().is_some() {
            Use::Pending
        } else {
            Use::Idle
        }
    }
}

/// How a run is used by all of its users together: in total, or for the client of the buffer.
pub(crate) fn kind_of(users: &[User], sum: Sum) -> Use {
    let is = |kind| users.iter().any(|user| user.kind(sum) == kind);
    if is(Use::Live) {
        Use::Live
    } else if is(Use::Pending) {
        Use::Pending
    } else {
        Use::Idle
    }
}

/// How a run is used by one of them.
pub(crate) fn kind_for(users: &[User], importer: AccountId) -> Use {
    users.iter().find(|user| user.importer == importer).map_or(Use::Idle, |user| user.kind(Sum::Importer))
}

/// The entry of `importer`, made if there is none.
pub(crate) fn user_mut(users: &mut Vec<User>, importer: AccountId) -> &mut User {
    let index = match users.binary_search_by_key(&importer, |user| user.importer) {
        Ok(index) => index,
        Err(index) => {
            users.insert(index, User { importer, maps: 0, pending: Vec::new() });
            index
        }
    };
    &mut users[index]
}

#[derive(Debug)]
struct Run {
    end: u64,
    /// By importer; none of them idle, and never empty.
    users: Vec<User>,
}

/// The runs of one place, by their first page. What is in no run is idle.
#[derive(Debug, Default)]
pub(crate) struct PageUsers {
    runs: BTreeMap<u64, Run>,
}

impl PageUsers {
    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many pages `importer` has mapped.
    pub(crate) fn live_pages_of(&self, importer: AccountId) -> u64 {
        let live = self.runs.iter().filter(|(_, run)| kind_for(&run.users, importer) == Use::Live);
        live.map(|(start, run)| run.end - start).sum()
    }

    /// The pieces that `range` consists of, in order: parts of runs, and the gaps between them, without users.
    pub(crate) fn pieces(&self, range: &Range<u64>) -> Vec<(Range<u64>, &[User])> {
        let first = self.runs.range(..range.start).next_back().filter(|(_, run)| run.end > range.start);
        let mut pieces: Vec<(Range<u64>, &[User])> = Vec::new();
        let mut at = range.start;
        for (start, run) in first.into_iter().chain(self.runs.range(range.clone())) {
            let (start, end) = ((*start).max(range.start), run.end.min(range.end));
            if at < start {
                pieces.push((at..start, &[]));
            }
            pieces.push((start..end, &run.users));
            at = end;
        }
        if at < range.end {
            pieces.push((at..range.end, &[]));
        }
        pieces
    }

    /// Shows each piece of `range` with its users to `change`, which may change them.
    pub(crate) fn edit(&mut self, range: &Range<u64>, mut change: impl FnMut(u64, &mut Vec<User>)) {
        self.split_at(range.start);
        self.split_at(range.end);
        let pieces = self.pieces(range).into_iter();
        let pieces: Vec<(Range<u64>, Vec<User>)> =
            pieces.map(|(piece, users)| (piece, users.to_vec())).collect();
        for (piece, mut users) in pieces {
            change(piece.end - piece.start, &mut users);
            users.retain(|user| user.maps > 0 || !user.pending.is_empty());
            if users.is_empty() {
                self.runs.remove(&piece.start);
            } else {
                self.runs.insert(piece.start, Run { end: piece.end, users });
            }
        }
        self.join_neighbours(range);
    }

    fn split_at(&mut self, page: u64) {
        let Some((_, run)) = self.runs.range_mut(..page).next_back().filter(|(_, run)| run.end > page) else {
            return;
        };
        let rest = Run { end: run.end, users: run.users.clone() };
        run.end = page;
        self.runs.insert(page, rest);
    }

    /// Joins runs that touch and have the same users, from the one before `range` to the one after it.
    fn join_neighbours(&mut self, range: &Range<u64>) {
        let first = self.runs.range(..range.start).next_back().map_or(range.start, |(start, _)| *start);
        let starts: Vec<u64> = self.runs.range(first..=range.end).map(|(start, _)| *start).collect();
        let mut kept = first;
        for start in starts {
            if start == kept {
                continue;
            }
            let next = &self.runs[&start];
            let end = next.end;
            let joins = self.runs.get(&kept).is_some_and(|run| run.end == start && run.users == next.users);
            if joins {
                self.runs.remove(&start);
                self.runs.get_mut(&kept).expect("it was compared just now").end = end;
            } else {
                kept = start;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: AccountId = AccountId(1);
    const B: AccountId = AccountId(2);

    fn map(pages: &mut PageUsers, importer: AccountId, range: Range<u64>) {
        pages.edit(&range, |_, users| user_mut(users, importer).maps += 1);
    }

    fn unmap(pages: &mut PageUsers, importer: AccountId, range: Range<u64>) {
        pages.edit(&range, |_, users| user_mut(users, importer).maps -= 1);
    }

    fn shape(pages: &PageUsers) -> Vec<(Range<u64>, usize)> {
        pages.runs.iter().map(|(start, run)| (*start..run.end, run.users.len())).collect()
    }

    #[test]
    fn overlapping_maps_split_runs_and_what_is_equal_again_is_joined() {
        let mut pages = PageUsers::default();
        map(&mut pages, A, 0..8);
        map(&mut pages, B, 4..12);
        assert_eq!(shape(&pages), [(0..4, 1), (4..8, 2), (8..12, 1)]);
        unmap(&mut pages, B, 4..12);
        assert_eq!(shape(&pages), [(0..8, 1)]);
        map(&mut pages, A, 8..12);
        assert_eq!(shape(&pages), [(0..12, 1)]);
        unmap(&mut pages, A, 0..8);
        unmap(&mut pages, A, 8..12);
        assert!(pages.is_empty());
    }

    #[test]
    fn pieces_cover_the_range_with_its_gaps() {
        let mut pages = PageUsers::default();
        map(&mut pages, A, 2..4);
        map(&mut pages, A, 6..9);
        let pieces: Vec<_> =
            pages.pieces(&(3..12)).into_iter().map(|(piece, users)| (piece, users.len())).collect();
        assert_eq!(pieces, [(3..4, 1), (4..6, 0), (6..9, 1), (9..12, 0)]);
    }
}
