//! Which chunk an engine takes next.
//!
//! Ready moves are kept in sets by urgency and by the route of their next chunk, ordered by age, so "the oldest
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

use crate::piece::Route;
use crate::request::Urgency;
use std::collections::BTreeSet;

/// Names a move inside its queue; smaller is older.
pub(crate) type MoveId = u64;

/// How many foreground chunks in a row may pass over a waiting background chunk.
pub(crate) const FOREGROUND_RUN: u32 = 7;

/// A set of routes.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RouteSet(u8);

impl RouteSet {
    pub(crate) fn of(contains: impl Fn(Route) -> bool) -> RouteSet {
        Route::ALL
            .into_iter()
            .filter(|route| contains(*route))
            .fold(RouteSet(0), |set, route| set.with(route))
    }

    pub(crate) fn with(self, route: Route) -> RouteSet {
        RouteSet(self.0 | 1 << route.index())
    }

    pub(crate) fn contains(self, route: Route) -> bool {
        self.0 & 1 << route.index() != 0
    }

    pub(crate) fn union(self, other: RouteSet) -> RouteSet {
        RouteSet(self.0 | other.0)
    }

    pub(crate) fn without(self, other: RouteSet) -> RouteSet {
        RouteSet(self.0 & !other.0)
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = Route> {
        Route::ALL.into_iter().filter(move |route| self.contains(*route))
    }
}

/// The moves that have a chunk to be taken.
#[derive(Debug, Default)]
pub(crate) struct ReadyMoves {
    /// By urgency, then by the route of the next chunk.
    sets: [[BTreeSet<MoveId>; Route::ALL.len()]; Urgency::ALL.len()],
    /// How many foreground chunks were taken since a background one could have been.
    passed_over: u32,
}

impl ReadyMoves {
    pub(crate) fn insert(&mut self, id: MoveId, urgency: Urgency, route: Route) {
        self.sets[urgency as usize][route.index()].insert(id);
    }

    pub(crate) fn remove(&mut self, id: MoveId, urgency: Urgency, route: Route) {
        self.sets[urgency as usize][route.index()].remove(&id);
    }

    /// The oldest move whose next chunk is on one of these routes.
    pub(crate) fn oldest(&self, urgency: Urgency, routes: RouteSet) -> Option<MoveId> {
        routes.iter().filter_map(|route| self.sets[urgency as usize][route.index()].first()).min().copied()
    }

    /// Whether the background's turn has come, given that both have a chunk to be taken. Counts the turn.
    pub(crate) fn background_turn(&mut self) -> bool {
        let due = self.passed_over >= FOREGROUND_RUN;
        self.passed_over = if due { 0 } else { self.passed_over + 1 };
        due
    }
}
