//! Which parts of the two memories which engines reach.
//!
//! An engine may see only a window of a memory: a DMA mask, a GART. The borders of all windows cut each memory into
//! *zones*, ranges whose every address is seen by the same engines. A *way* leads from a zone (or from nothing: a
//! clear) to a zone. The pieces of a chunk all go one way, so "can this engine do it" has one answer a chunk.
//!
//! ```text
//!   system memory   0 ........ 256M ............. 4G ............... end
//!   sdma0 sees      |---------|
//!   sdma1 sees      |----------------------------|
//!   the host sees   |------------------------------------------------|
//!   zones           [ 1       ][ 2               ][ 3                ]     (0 is VRAM)
//! ```
//!
//! Where nobody has a window there are two zones, and ways are the same as routes.

use crate::address::{Addr, Space};
use crate::engine::CopyEngine;
use crate::piece::{Operation, Piece, Route};
use std::ops::Range;

/// The index of a zone.
pub(crate) type Zone = u8;

/// The zones of both memories. Constant once a queue is built.
#[derive(Clone, Debug)]
pub(crate) struct Zones {
    /// Where each zone begins, sorted; the first of VRAM and the first of system memory begin at 0.
    starts: Vec<Addr>,
}

/// From where (`None`: it is a clear) to where.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) from: Option<Zone>,
    pub(crate) to: Zone,
}

impl Zones {
    /// How many there can be, so that a set of ways is one word.
    pub(crate) const CAPACITY: usize = 10;

    /// Two zones: each memory is seen by all or by none.
    pub(crate) fn whole() -> Zones {
        Zones { starts: vec![Addr::new(Space::Vram, 0), Addr::new(Space::System, 0)] }
    }

    /// The zones that the windows of these engines make.
    ///
    /// # Panics
    /// When they are more than [`CAPACITY`](Self::CAPACITY).
    pub(crate) fn of<'a>(engines: impl Iterator<Item = &'a dyn CopyEngine>) -> Zones {
        let mut starts = Zones::whole().starts;
        for engine in engines {
            for space in [Space::Vram, Space::System] {
                let Range { start, end } = engine.window(space);
                let borders = [start, end].into_iter().filter(|border| *border != u64::MAX);
                starts.extend(borders.map(|border| Addr::new(space, border)));
            }
        }
        starts.sort_unstable();
        starts.dedup();
        assert!(
            starts.len() <= Zones::CAPACITY,
            "the windows of the engines cut memory into {} parts, more than {}",
            starts.len(),
            Zones::CAPACITY
        );
        Zones { starts }
    }

    fn zone_of(&self, addr: Addr) -> Zone {
        (self.starts.partition_point(|start| *start <= addr) - 1) as Zone
    }

    /// How many bytes from `addr` on are in the same zone.
    fn run_bytes(&self, addr: Addr) -> u64 {
        self.range(self.zone_of(addr)).end - addr.offset()
    }

    fn space(&self, zone: Zone) -> Space {
        self.starts[usize::from(zone)].space()
    }

    /// The offsets of a zone in its memory; the last one has no end.
    pub(crate) fn range(&self, zone: Zone) -> Range<u64> {
        let start = self.starts[usize::from(zone)];
        let next = self.starts.get(usize::from(zone) + 1).filter(|next| next.space() == start.space());
        start.offset()..next.map_or(u64::MAX, |next| next.offset())
    }

    /// The zones of system memory.
    pub(crate) fn of_system(&self) -> impl Iterator<Item = Zone> {
        (0..self.starts.len() as Zone).filter(|zone| self.space(*zone) == Space::System)
    }

    /// The way of a piece of `operation`. A pull has no source here.
    pub(crate) fn way(&self, operation: &Operation, piece: &Piece) -> Way {
        let src = piece.src.filter(|_| !operation.is_pull());
        Way { from: src.map(|src| self.zone_of(src)), to: self.zone_of(piece.dst) }
    }

    /// Shortens a piece of `operation` so that it goes one way.
    pub(crate) fn clip(&self, operation: &Operation, piece: &mut Piece) {
        piece.len_bytes = piece.len_bytes.min(self.run_bytes(piece.dst));
        if let Some(src) = piece.src.filter(|_| !operation.is_pull()) {
            piece.len_bytes = piece.len_bytes.min(self.run_bytes(src));
        }
    }

    /// Every way there is.
    pub(crate) fn ways(&self) -> impl Iterator<Item = Way> + use<> {
        let count = self.starts.len() as Zone;
        let from = move || std::iter::once(None).chain((0..count).map(Some));
        (0..count).flat_map(move |to| from().map(move |from| Way { from, to }))
    }

    /// The position of a way in [`ways`](Self::ways).
    pub(crate) fn index(&self, way: Way) -> usize {
        usize::from(way.to) * (self.starts.len() + 1) + way.from.map_or(0, |from| usize::from(from) + 1)
    }

    /// The ways that an engine can do, as it says itself.
    pub(crate) fn reached_by(&self, engine: &dyn CopyEngine) -> WaySet {
        let sees = |zone: Zone| engine.window(self.space(zone)).contains(&self.range(zone).start);
        self.set_of(|way| {
            let route = self.route(way);
            engine.reaches(route.from, route.to) && sees(way.to) && way.from.is_none_or(sees)
        })
    }

    pub(crate) fn set_of(&self, contains: impl Fn(Way) -> bool) -> WaySet {
        self.ways().filter(|way| contains(*way)).fold(WaySet::default(), |set, way| set.with(self.index(way)))
    }

    fn route(&self, way: Way) -> Route {
        Route { from: way.from.map(|from| self.space(from)), to: self.space(way.to) }
    }

    /// A way as people read it: "copy vram to system", and from which address to which where that matters.
    pub(crate) fn describe(&self, way: Way) -> String {
        match way.from {
            Some(from) => format!("copy {} to {}", self.describe_zone(from), self.describe_zone(way.to)),
            None => format!("clear {}", self.describe_zone(way.to)),
        }
    }

    fn describe_zone(&self, zone: Zone) -> String {
        let space = self.space(zone);
        match self.range(zone) {
            Range { start: 0, end: u64::MAX } => space.to_string(),
            Range { start, end: u64::MAX } => format!("{space} from {start:#x} on"),
            Range { start: 0, end } => format!("{space} below {end:#x}"),
            Range { start, end } => format!("{space} {start:#x}..{end:#x}"),
        }
    }
}

/// A set of ways, by index.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WaySet(u128);

impl WaySet {
    pub(crate) fn with(self, index: usize) -> WaySet {
        WaySet(self.0 | 1 << index)
    }

    pub(crate) fn contains(self, index: usize) -> bool {
        self.0 & 1 << index != 0
    }

    pub(crate) fn intersect(self, other: WaySet) -> WaySet {
        WaySet(self.0 & other.0)
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The indices, smallest first.
    pub(crate) fn iter(self) -> impl Iterator<Item = usize> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let index = left.trailing_zeros() as usize;
            left &= left.wrapping_sub(1);
            (index < 128).then_some(index)
        })
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn every_way_has_an_index_of_its_own_and_a_full_set_fits_a_word() {
        let starts = [0, 1, 2, 3, 4].map(|at| Addr::new(Space::Vram, at)).into_iter();
        let zones =
            Zones { starts: starts.chain([0, 1, 2, 3, 4].map(|at| Addr::new(Space::System, at))).collect() };
        for (at, way) in zones.ways().enumerate() {
            assert_eq!(zones.index(way), at);
        }
        let all = zones.set_of(|_| true);
        assert_eq!((all.count(), all.iter().last()), (110, Some(109)));
    }

    #[test]
    fn an_address_belongs_to_the_zone_that_begins_at_or_before_it() {
        let zones = Zones {
            starts: vec![
                Addr::new(Space::Vram, 0),
                Addr::new(Space::System, 0),
                Addr::new(Space::System, 64),
            ],
        };
        let at = |offset| zones.zone_of(Addr::new(Space::System, offset));
        assert_eq!((at(0), at(63), at(64), at(u64::MAX - 1)), (1, 1, 2, 2));
        assert_eq!(zones.zone_of(Addr::new(Space::Vram, u64::MAX - 1)), 0);
        assert_eq!(zones.run_bytes(Addr::new(Space::System, 60)), 4);
    }
}
