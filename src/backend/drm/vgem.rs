//! vgem as an exporter: dumb buffers of a driver that has nothing but memory.

use super::node::{NodeKind, VgemNode};
use super::prime::GemHandle;
use super::{dumb, make_of};
use crate::backend::exporter::{Abilities, Exporter, Made, Source, Wanted};
use crate::error::Result;
use crate::share::WhyNot;

/// vgem, open.
#[derive(Debug)]
pub(crate) struct Vgem(VgemNode);

impl Vgem {
    /// # Errors
    /// Why it cannot be used.
    pub(crate) fn open() -> Result<Vgem, WhyNot> {
        // A render node makes no dumb buffers.
        VgemNode::open(NodeKind::Primary).map(Vgem).map_err(WhyNot::of)
    }
}

impl Exporter for Vgem {
    fn abilities(&self) -> Abilities {
        Abilities { in_place: false, max_bytes: dumb::MAX_BYTES, max_runs: usize::MAX, read_only: true }
    }

    fn make(&self, wanted: Wanted, _source: Source<'_>) -> Result<Made> {
        let handle = GemHandle::dumb(&self.0, wanted.len_bytes)?;
        make_of(handle, wanted, |handle| handle.dumb_offset())
    }
}
