//! Mapping a range for an importer: which way it takes, and what happens when there is no room for it in the BAR.
//!
//! ```text
//!   a live map of this range? ─ yes ─► share it
//!     │ no                                                       ┌─► VRAM addresses, over a private link
//!   which way (`accord.rs`)? ─ BAR, or another ──────────────────┼─► addresses of a copy
//!     │ BAR                                                      └─► system addresses, as below
//!   admitted by the ledger? ─ over a limit ─► demote others, ask again ─ no ─┐  │
//!     │ yes                                                                 │  │
//!   brought to where the BAR shows it? ─ no room ─► pages given back ───────┤  │
//!     │ yes                                        refuse, if that was asked ◄┘  │
//!   BAR addresses                                     else fall back ─►  system addresses
//! ```
//!
//! A buffer is in one place for everybody. So an importer that falls back takes the others along, and who comes to a buffer that
//! others have mapped in system memory joins them there: the buffer does not go to and fro between them. It comes back for
//! all of them together (`promote.rs`).

use std::ops::Range;
use std::sync::Arc;

use devpagemap_fence::sync::mutant;
use devpagemap_fence::{FenceSet, Slot};

use super::accord::Way;
use super::attachment::{Attached, Attachment};
use super::peer_map::{Mapped, PeerMap};
use crate::aperture::{OnPressure, Over, PlaceKey, Wish};
use crate::bo::{Buffer, BufferObject, Transaction, WeakBuffer};
use crate::error::{Error, Result};
use crate::events::{Event, PeerReason};
use crate::pagemap::Decision;
use crate::region::{RegionKind, bytes_of, pages_of};
use crate::stats::Counters;

/// A map to be, made by [`Attachment::request`].
#[must_use = "a request maps nothing until `map`"]
#[derive(Debug)]
pub struct PeerMapRequest<'a> {
    attachment: &'a Attachment,
    range: Range<u64>,
    on_pressure: OnPressure,
}

impl Attachment {
    /// Maps a range of the buffer, in bytes, of which whole pages are mapped. As [`request`](Attachment::request) with
    /// [`OnPressure::Demote`].
    ///
    /// # Errors
    /// As [`PeerMapRequest::map`].
    pub fn map(&self, range: Range<u64>) -> Result<PeerMap> {
        self.request(range).map()
    }

    /// Describes a map of a range of the buffer, in bytes, of which whole pages are mapped.
    pub fn request(&self, range: Range<u64>) -> PeerMapRequest<'_> {
        PeerMapRequest { attachment: self, range, on_pressure: OnPressure::default() }
    }
}

impl PeerMapRequest<'_> {
    /// What happens when the BAR has no room for it. A buffer that is [`P2p::Require`](crate::P2p::Require) never falls back, whatever is said here.
    pub fn on_pressure(self, on_pressure: OnPressure) -> Self {
        PeerMapRequest { on_pressure, ..self }
    }

    /// Maps. A range that this attachment has mapped already is shared, whatever became of it when it was mapped. Waits for no copy
    /// and no fence.
    ///
    /// # Errors
    /// [`Error::InvalidSize`] for an empty range, [`Error::OutOfBounds`], [`Error::FenceFailed`] when the buffer's bytes are lost;
    /// [`Error::ApertureFull`], or why VRAM has no room where the BAR shows it, when it may not fall back;
    /// [`Error::NotPeerCapable`] for a buffer that is [`P2p::Require`](crate::P2p::Require) and may not be in VRAM; [`Error::Exhausted`] when there is
    /// no system memory to fall back to, [`Error::Pinned`] when the buffer may not move.
    pub fn map(self) -> Result<PeerMap> {
        let buffer = &self.attachment.buffer;
        buffer.check_range("a peer map", &self.range)?;
        let range = bytes_of(&pages_of(&self.range));
        let attached = &self.attachment.attached;
        let manager = &buffer.0.manager;
        let early = mutant!("a_route_is_asked_for_too_early").then(|| manager.decision(&attached.joined));
        let map = buffer.transact(|transaction, slot| {
            let decision = early.unwrap_or_else(|| manager.decision(&attached.joined));
            let map = transaction.map_range(slot, attached, &range, self.on_pressure, decision)?;
            transaction.touch_members();
            Ok(map)
        })?;
        Counters::count(&manager.counters.peer_maps);
        Ok(map)
    }
}

/// What one importer wants of one buffer.
pub(super) struct Asked<'a> {
    pub(super) attached: &'a Arc<Attached>,
    pub(super) buffer: &'a Arc<BufferObject>,
    /// In whole pages.
    pub(super) range: Range<u64>,
    pub(super) on_pressure: OnPressure,
    /// How the importer reaches the buffer's memory.
    pub(super) decision: Decision,
}

impl Asked<'_> {
    pub(super) fn fell_back(&self, reason: PeerReason, missing_pages: u64) -> Event {
        let (buffer, importer) = (self.buffer.id(), self.attached.joined.name.clone());
        Event::FellBack { buffer, importer, reason, missing_pages }
    }
}

/// What the ledger is asked for, about pages of the buffer at its place of `generation`.
pub(super) fn wish(
    buffer: &Arc<BufferObject>,
    attached: &Attached,
    pages: Range<u64>,
    generation: u64,
) -> Wish {
    Wish {
        place: PlaceKey { buffer: buffer.id(), generation },
        pages,
        importer: attached.joined.account.id,
        client: buffer.client.id(),
        rank: buffer.tags.rank(),
        buffer: WeakBuffer::of(buffer),
    }
}

/// Why a map that may be in the BAR is not.
pub(super) enum Denied {
    /// The ledger has no room; and the error that says so.
    Over(Over, Error),
    /// It cannot be brought to where the BAR shows it, or nothing at all can be done.
    Place(Error),
}

impl Transaction<'_, '_, '_> {
    /// Maps whole pages of a member, whose reservation was held when the `decision` was asked for: who changes it afterwards finds the map.
    pub(super) fn map_range(
        &mut self,
        slot: Slot,
        attached: &Arc<Attached>,
        range: &Range<u64>,
        on_pressure: OnPressure,
        decision: Decision,
    ) -> Result<PeerMap> {
        let buffer = self.exec.set().arc(slot);
        let asked = Asked { attached, buffer: &buffer, range: range.clone(), on_pressure, decision };
        let (mapped, after) = self.map_for_peer(slot, &asked)?;
        Ok(PeerMap::new(mapped, Buffer(buffer), after))
    }

    /// The map, and what its holder must queue behind.
    fn map_for_peer(&mut self, slot: Slot, asked: &Asked<'_>) -> Result<(Arc<Mapped>, FenceSet)> {
        asked.attached.check_not_revoked()?;
        let state = self.exec.set().state(slot);
        state.check_not_lost()?;
        let way = match state.peers.share(asked.attached, &asked.range) {
            Some(shared) => return self.share_map(slot, shared),
            None => self.choose_way(slot, asked)?,
        };
        let was_in = self.region(slot);
        let mapped = match way {
            Way::System(reason) => self.map_in_system(slot, asked, reason, 0)?,
            Way::Staged(reason) => self.map_staged(slot, asked, reason, 0)?,
            Way::Link => match self.map_over_link(slot, asked) {
                Ok(mapped) => mapped,
                Err(error) => self.do_without(slot, asked, Denied::Place(error))?,
            },
            Way::Bar => match self.take_bar(slot, asked) {
                Ok(in_bar) => self.map_in_bar(slot, asked, in_bar),
                Err(denied) => self.do_without(slot, asked, denied)?,
            },
        };
        if mapped.is_in_accord()
            && was_in.is_some_and(|region| (region == RegionKind::Vram) == mapped.is_in_system())
        {
            self.note_peer_move(slot);
        }
        self.note_peer_use(slot, &mapped);
        self.note_short_pin(slot, &mapped);
        let after = mapped.after.clone();
        Ok((mapped, after))
    }

    /// One holder more of a map. What it shows may have to be brought up to date.
    fn share_map(&mut self, slot: Slot, shared: Arc<Mapped>) -> Result<(Arc<Mapped>, FenceSet)> {
        let refreshed = match shared.copy() {
            Some(copy) => self.refresh(slot, &copy, &shared.range).map(Some),
            None => Ok(None),
        };
        let after = match refreshed {
            Ok(refreshed) => refreshed.unwrap_or_else(|| shared.after.clone()),
            Err(error) => {
                drop(PeerMap::new(shared, Buffer(self.exec.set().arc(slot)), FenceSet::new()));
                return Err(error);
            }
        };
        self.note_peer_use(slot, &shared);
        self.note_short_pin(slot, &shared);
        Ok((shared, after))
    }
}
