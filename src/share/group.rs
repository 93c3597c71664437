//! Several buffers that an importer maps as if they were one.
//!
//! ```text
//!   buffers   │ first, in whole pages │ second │ third      │
//!   group     0 ─────────── a map of a range ───────────────► size
//!                      └─ one list of addresses, and one set of fences
//! ```
//!
//! They are locked together, all or none, and mapped, or refused, in one step. Each goes its own way, to the BAR or elsewhere, moves by itself, and its
//! importer is told of each; a map of the group is current while it is for all of them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use devpagemap_fence::{Fence, FenceSet};

use super::attachment::Attachment;
use super::importer::Peer;
use super::peer_map::{PeerExtent, PeerMap};
use super::staged::Writers;
use crate::aperture::OnPressure;
use crate::bo::{Buffer, BufferObject, Transaction, check_range};
use crate::error::{Error, Result};
use crate::manager::Manager;
use crate::region::{bytes_of, pages_of};
use crate::size::Size;
use crate::stats::Counters;
use crate::submit::Access;

/// One importer's interest in several buffers as one. It maps nothing by itself; maps outlive it.
pub struct GroupAttachment {
    /// In their order. Not empty.
    attachments: Vec<Attachment>,
}

impl Peer {
    /// Attaches to several buffers as one, each in whole pages behind the last.
    ///
    /// # Errors
    /// [`Error::InvalidSize`] for none; as [`Buffer::attach`], and then it is attached to none.
    pub fn attach_all(&self, buffers: &[Buffer]) -> Result<GroupAttachment> {
        if buffers.is_empty() {
            return Err(Error::InvalidSize { what: "a group of buffers", bytes: 0, why: "is nothing" });
        }
        let attachments = buffers.iter().map(|buffer| buffer.attach(self)).collect::<Result<_>>()?;
        Ok(GroupAttachment { attachments })
    }
}

impl GroupAttachment {
    /// The attachment to each buffer, in their order.
    pub fn attachments(&self) -> &[Attachment] {
        &self.attachments
    }

    /// How much a map of all of it shows.
    pub fn size(&self) -> Size {
        Size::bytes(self.attachments.iter().map(|attachment| attachment.buffer.0.footprint_bytes).sum())
    }

    /// Maps a range of the group, in bytes, of which whole pages are mapped; all buffers that have a part in it, or none.
    ///
    /// # Errors
    /// [`Error::InvalidSize`] for an empty range, [`Error::OutOfBounds`]; as [`PeerMapRequest::map`](crate::PeerMapRequest::map)
    /// for each buffer.
    pub fn map(&self, range: Range<u64>) -> Result<GroupMap> {
        let parts = self.parts(&range)?;
        let objects: Vec<Arc<BufferObject>> = parts.iter().map(|(part, _)| part.buffer.0.clone()).collect();
        let manager = &objects[0].manager;
        let maps = manager.transact(&objects, |transaction| map_parts(transaction, &parts))?;
        Counters::add(&manager.counters.peer_maps, maps.len() as u64);
        Ok(GroupMap { maps })
    }

    /// Which bytes of which buffers a range is, in whole pages.
    fn parts(&self, range: &Range<u64>) -> Result<Vec<(&Attachment, Range<u64>)>> {
        check_range("a peer map", range, self.size().as_bytes())?;
        let range = bytes_of(&pages_of(range));
        let mut parts = Vec::new();
        let mut start = 0;
        for attachment in &self.attachments {
            let end = start + attachment.buffer.0.footprint_bytes;
            let (from, to) = (range.start.max(start), range.end.min(end));
            if from < to {
                parts.push((attachment, from - start..to - start));
            }
            start = end;
        }
        Ok(parts)
    }
}

fn map_parts(
    transaction: &mut Transaction<'_, '_, '_>,
    parts: &[(&Attachment, Range<u64>)],
) -> Result<Vec<PeerMap>> {
    let (mut maps, mut holds) = (Vec::with_capacity(parts.len()), Vec::with_capacity(parts.len()));
    for (index, (attachment, range)) in parts.iter().enumerate() {
        let slot = transaction.member(index);
        let attached = &attachment.attached;
        let decision = transaction.manager.decision(&attached.joined);
        maps.push(transaction.map_range(slot, attached, range, OnPressure::default(), decision)?);
        // Those that come next find room elsewhere, or none.
        holds.push(transaction.hold(slot));
    }
    transaction.touch_members();
    Ok(maps)
}

impl fmt::Debug for GroupAttachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GroupAttachment").field(&self.attachments).finish()
    }
}

/// A range of several buffers, mapped as one. Dropping it unmaps.
#[derive(Debug)]
pub struct GroupMap {
    /// In their order. Not empty.
    maps: Vec<PeerMap>,
}

impl GroupMap {
    /// The map of each buffer that has a part in it, in their order.
    pub fn maps(&self) -> &[PeerMap] {
        &self.maps
    }

    /// Where the bytes are, in their order.
    pub fn extents(&self) -> impl Iterator<Item = PeerExtent> {
        self.maps.iter().flat_map(|map| map.extents().iter().copied())
    }

    /// What the importer must queue its accesses behind, as [`PeerMap::after`].
    pub fn after(&self) -> FenceSet {
        let mut after = FenceSet::new();
        self.maps.iter().for_each(|map| after.merge(map.after()));
        after
    }

    /// Whether it still shows where all of them are.
    pub fn is_current(&self) -> bool {
        self.maps.iter().all(PeerMap::is_current)
    }

    /// The importer is about to use the bytes, as [`PeerMap::begin`].
    ///
    /// # Errors
    /// As [`PeerMap::begin`], for the first that cannot be used.
    pub fn begin(&self, access: Access) -> Result<FenceSet> {
        self.maps.iter().try_for_each(|map| map.buffer.0.check_permits(access))?;
        self.transact(|transaction, maps| {
            let (mut after, writers) = (FenceSet::new(), Writers::of(maps));
            for (index, map) in maps.iter().enumerate() {
                after.merge(&transaction.begin_use(transaction.member(index), map, access)?);
            }
            writers.stay();
            Ok(after)
        })
    }

    /// The importer's use is queued, as [`PeerMap::end`].
    ///
    /// # Errors
    /// As [`PeerMap::end`]; said again, it is of no harm to those for which it had been heard.
    pub fn end(&self, access: Access, fence: &Fence) -> Result<()> {
        self.transact(|transaction, maps| {
            for (index, map) in maps.iter().enumerate() {
                transaction.end_use(transaction.member(index), map, access, fence)?;
            }
            Ok(())
        })
    }

    /// Unmaps, while work that is queued still uses the addresses until `fences` have signalled.
    pub fn unmap_after(self, fences: impl Into<FenceSet>) {
        let fences = fences.into();
        self.maps.into_iter().for_each(|map| map.unmap_after(fences.clone()));
    }

    fn transact<O>(
        &self,
        mut body: impl FnMut(&mut Transaction<'_, '_, '_>, &[PeerMap]) -> Result<O>,
    ) -> Result<O> {
        let objects: Vec<Arc<BufferObject>> = self.maps.iter().map(|map| map.buffer.0.clone()).collect();
        let manager: &Arc<Manager> = &objects[0].manager;
        manager.transact(&objects, |transaction| body(transaction, &self.maps))
    }
}
