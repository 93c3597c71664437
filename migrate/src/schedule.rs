//! Which chunk an engine takes next.
//!
//! Ready moves are kept in sets by urgency and by the way (`zones.rs`) of their next chunk, ordered by age, so "the oldest
//! chunk of the urgent ones that this engine reaches" is a handful of first elements:
//!
//! ```text
//!                  vram>vram   vram>system   system>vram ...
//!   Foreground     {}          {17, 40}      {12}              engine that reaches vram<>system:
//!   Background     {3}         {4, 9, 11}    {}                takes 12, then 17, 40, then 4 ...
//! ```
//!
//! A foreground chunk goes before every background one. So that a steady foreground stream does not starve the
//! background for ever, a background chunk that was passed over [`FOREGROUND_RUN`] times in a row is taken next:
//! background moves get at least one chunk in eight, and an urgent one is delayed by one chunk at the most.

use crate::request::Urgency;
use crate::zones::WaySet;
use std::collections::BTreeSet;

/// Names a move inside its queue; smaller is older.
pub(crate) type MoveId = u64;

/// How many foreground chunks in a row may pass over a waiting background chunk.
pub(crate) const FOREGROUND_RUN: u32 = 7;

/// The moves that have a chunk to be taken.
#[derive(Debug)]
pub(crate) struct ReadyMoves {
    /// By urgency, then by the way of the next chunk.
    sets: [Vec<BTreeSet<MoveId>>; Urgency::ALL.len()],
    /// How many foreground chunks were taken since a background one could have been.
    passed_over: u32,
}

impl ReadyMoves {
    /// No move, for so many ways.
    pub(crate) fn new(ways: usize) -> ReadyMoves {
        ReadyMoves { sets: Urgency::ALL.map(|_| vec![BTreeSet::new(); ways]), passed_over: 0 }
    }

    pub(crate) fn insert(&mut self, id: MoveId, urgency: Urgency, way: usize) {
        self.sets[urgency as usize][way].insert(id);
    }

    pub(crate) fn remove(&mut self, id: MoveId, urgency: Urgency, way: usize) {
        self.sets[urgency as usize][way].remove(&id);
    }

    /// The oldest move whose next chunk goes one of these ways.
    pub(crate) fn oldest(&self, urgency: Urgency, ways: WaySet) -> Option<MoveId> {
        ways.iter().filter_map(|way| self.sets[urgency as usize][way].first()).min().copied()
    }

    /// Those of these ways that some move wants to go next.
    pub(crate) fn wanted(&self, ways: WaySet) -> WaySet {
        let is_wanted = |way: &usize| self.sets.iter().any(|sets| !sets[*way].is_empty());
        ways.iter().filter(is_wanted).fold(WaySet::default(), WaySet::with)
    }

    /// Whether the background's turn has come, given that both have a chunk to be taken. Counts the turn.
    pub(crate) fn background_turn(&mut self) -> bool {
        let due = self.passed_over >= FOREGROUND_RUN;
        self.passed_over = if due { 0 } else { self.passed_over + 1 };
        due
    }
}
