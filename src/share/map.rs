//! Mapping a range for an importer: which way it takes, and what happens when there is no room for it in the BAR.
//!
//! ```text
//!   a live map of this range? ─ yes ─► share it
//!     │ no
//!   may it be in the BAR? ─ no ────────────────────────────────────────────────┐
//!     │ yes                                                                    │
//!   admitted by the ledger? ─ over a limit ─► demote others, ask again ─ no ─┐  │
//!     │ yes                                                                 │  │
//!   brought to where the BAR shows it? ─ no room ─► pages given back ───────┤  │
//!     │ yes                                        refuse, if that was asked ◄┘  │
//!   BAR addresses                                     else fall back ─►  system addresses
//! ```
//!
//! Who uses a part of a window keeps all of it. So what the ledger is asked for is what the map will keep, which may be more than its range.
//!
//! A buffer is in one place for everybody. So an importer that falls back takes the others along, and who comes to a buffer that
//! others have mapped in system memory joins them there: the buffer does not go to and fro between them. It comes back for
//! all of them together (`promote.rs`).

use std::ops::Range;
use std::sync::Arc;

use devpagemap_allocator::PAGE_BYTES;
use devpagemap_fence::{FenceSet, Slot};

use super::accord::{Way, reaches_bar};
use super::arbiter::Accord;
use super::attachment::{Attached, Attachment};
use super::importer::InvalidateReason;
use super::peer_map::{Mapped, NewMap, PeerExtent, PeerMap, page_count, pages_of};
use crate::aperture::{Admitted, Bar, Kept, OnPressure, Over, P2p, PlaceKey, Window, Wish};
use crate::bo::{Buffer, BufferObject, Transaction, WeakBuffer};
use crate::error::{Error, Result};
use crate::events::{Event, PeerReason};
use crate::pagemap::Decision;
use crate::region::{RegionKind, Resource};
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
    /// What happens when the BAR has no room for it. A buffer that is [`P2p::Require`] never falls back, whatever is said here.
    pub fn on_pressure(self, on_pressure: OnPressure) -> Self {
        PeerMapRequest { on_pressure, ..self }
    }

    /// Maps. A range that this attachment has mapped already is shared, whatever became of it when it was mapped. Waits for no copy
    /// and no fence.
    ///
    /// # Errors
    /// [`Error::InvalidSize`] for an empty range, [`Error::OutOfBounds`], [`Error::FenceFailed`] when the buffer's bytes are lost;
    /// [`Error::ApertureFull`], or why VRAM has no room where the BAR shows it, when it may not fall back;
    /// [`Error::NotPeerCapable`] for a buffer that is [`P2p::Require`] and may not be in VRAM; [`Error::Exhausted`] when there is
    /// no system memory to fall back to, [`Error::Pinned`] when the buffer may not move.
    pub fn map(self) -> Result<PeerMap> {
        let buffer = &self.attachment.buffer;
        let range = whole_pages(&self.range, buffer.size().as_bytes())?;
        let attached = &self.attachment.attached;
        buffer.transact(|transaction, slot| {
            let map = transaction.map_range(slot, attached, &range, self.on_pressure)?;
            transaction.touch_members();
            Ok(map)
        })
    }
}

/// # Errors
/// For a range that is nothing, or beyond the end.
pub(super) fn whole_pages(range: &Range<u64>, size_bytes: u64) -> Result<Range<u64>> {
    let len_bytes = range.end.saturating_sub(range.start);
    if len_bytes == 0 {
        return Err(Error::InvalidSize { what: "a peer map", bytes: 0, why: "is nothing" });
    }
    if range.end > size_bytes {
        return Err(Error::OutOfBounds { offset_bytes: range.start, len_bytes, size_bytes });
    }
    let start = range.start - range.start % PAGE_BYTES;
    Ok(start..range.end.next_multiple_of(PAGE_BYTES))
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
    fn fell_back(&self, reason: PeerReason, missing_pages: u64) -> Event {
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

/// What a map in the BAR has.
struct InBar {
    admitted: Admitted,
    /// Where the BAR has windows.
    window: Option<Window>,
}

/// Why a map that may be in the BAR is not.
pub(super) enum Denied {
    /// The ledger has no room; and the error that says so.
    Over(Over, Error),
    /// It cannot be brought to where the BAR shows it, or nothing at all can be done.
    Place(Error),
}

impl Transaction<'_, '_, '_> {
    /// Maps whole pages of a member.
    pub(super) fn map_range(
        &mut self,
        slot: Slot,
        attached: &Arc<Attached>,
        range: &Range<u64>,
        on_pressure: OnPressure,
    ) -> Result<PeerMap> {
        let buffer = self.exec.set().arc(slot);
        let decision = self.manager.decision(&attached.joined);
        let asked = Asked { attached, buffer: &buffer, range: range.clone(), on_pressure, decision };
        let (mapped, after) = self.map_for_peer(slot, &asked)?;
        Counters::count(&self.manager.counters.peer_maps);
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
        let was_in = self.resource(slot).map(|resource| resource.region);
        let mapped = match way {
            Way::System(reason) => self.map_in_system(slot, asked, reason, 0)?,
            Way::Staged(reason) => self.map_staged(slot, asked, reason, 0)?,
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

    /// Pages in the ledger, the buffer where the BAR can show it, and a window where it takes one.
    fn take_bar(&mut self, slot: Slot, asked: &Asked<'_>) -> Result<InBar, Denied> {
        let moves = !self.is_shown(slot, &asked.range);
        let Kept { pages, former } = match moves {
            true => Kept { pages: pages_of(&asked.range), former: FenceSet::new() },
            false => self.choose_bar_pages(slot, &asked.range),
        };
        // A move gives it the next generation, and these pages are of that one.
        let generation = self.exec.set().state(slot).generation + u64::from(moves);
        let wish = wish(asked.buffer, asked.attached, pages, generation);
        let admitted = self.admit(asked, &wish)?;
        match self.bring_into_bar(slot, asked, moves, &former) {
            Ok(window) => {
                debug_assert!(window.as_ref().is_none_or(|window| window.keeps_only(&wish.pages)));
                debug_assert_eq!(self.exec.set().state(slot).generation, generation, "one move, or none");
                Ok(InBar { admitted, window })
            }
            Err(error) => {
                let (_, mut held) = self.exec.split();
                self.manager.release_peer(admitted.charge, admitted.after, &mut held);
                Err(Denied::Place(error))
            }
        }
    }

    /// What a map keeps of the BAR, and so what it is charged for: what is asked for, and where the BAR has windows, what else those
    /// show that others have already.
    ///
    /// Other BAR pages than before may show these pages then, while former users of those are not done. They count on their own
    /// if nobody maps the buffer now, whose pages get a new name then. Else they count as one, and so the map queues behind
    /// those users.
    fn choose_bar_pages(&mut self, slot: Slot, range: &Range<u64>) -> Kept {
        let kept = self.trim_windows(slot, &pages_of(range));
        let has_windows = matches!(self.manager.windows.bar(), Bar::Windows(_));
        let state = self.exec.set_mut().state_mut(slot);
        if !has_windows || state.peers.hold_bar() {
            return kept;
        }
        state.generation += 1;
        Kept { former: FenceSet::new(), ..kept }
    }

    fn bring_into_bar(
        &mut self,
        slot: Slot,
        asked: &Asked<'_>,
        moves: bool,
        former: &FenceSet,
    ) -> Result<Option<Window>> {
        let bar = self.manager.windows.bar();
        if moves {
            let shown = asked.buffer.placement().for_peers(bar);
            self.validate(slot, &shown.expect("who may not be in VRAM does not get here"))?;
        }
        match bar {
            Bar::Prefix(_) => Ok(None),
            Bar::Windows(_) => self.show_after(slot, &asked.range, former).map(Some),
        }
    }

    fn admit(&mut self, asked: &Asked<'_>, wish: &Wish) -> Result<Admitted, Denied> {
        let manager = self.manager;
        let mut room = manager.room();
        let mut too_few_for = None;
        loop {
            let (_, mut held) = self.exec.split();
            let over = match manager.admit_peer(wish, &mut room, &mut held) {
                Ok(admitted) => return Ok(admitted),
                Err(over) => over,
            };
            // Who could make way may have gone after the ledger was asked, and left room: then it answers otherwise now.
            if asked.on_pressure != OnPressure::Demote || too_few_for == Some(over) {
                return Err(Denied::Over(over, over.refusal(wish)));
            }
            too_few_for = (!self.demote_for(wish, &over, &mut room)?).then_some(over);
            if cfg!(loom_mutant = "the_ledger_is_asked_once") && too_few_for.is_some() {
                return Err(Denied::Over(over, over.refusal(wish)));
            }
        }
    }

    /// Whether the BAR can show these bytes where they are.
    fn is_shown(&self, slot: Slot, range: &Range<u64>) -> bool {
        let in_vram = |resource: &&Resource| resource.region == RegionKind::Vram;
        let Some(resource) = self.resource(slot).filter(in_vram) else { return false };
        let visible_bytes = match self.manager.windows.bar() {
            Bar::Prefix(size) => size.as_bytes(),
            Bar::Windows(_) => return true,
        };
        let extents = resource.extents.slice(range.start, range.end - range.start);
        extents.iter().all(|extent| extent.addr.offset() + extent.len_bytes <= visible_bytes)
    }

    /// Cannot fail.
    fn map_in_bar(&mut self, slot: Slot, asked: &Asked<'_>, in_bar: InBar) -> Arc<Mapped> {
        let InBar { admitted: Admitted { charge, mut after }, window } = in_bar;
        // Pages that were kept for it are its own now, and so is what they wait for.
        let kept = asked.attached.take_kept();
        kept.iter().for_each(|kept| after.merge(&kept.after));
        let extents = match &window {
            Some(window) => {
                after.merge(&window.after());
                window.extents().into_iter().map(PeerExtent::from).collect()
            }
            None => self.addresses(slot, &asked.range),
        };
        let new = NewMap {
            extents,
            why_system: None,
            after,
            charge: Some(charge),
            window,
            hold: self.hold_for(slot, asked.attached),
            ..NewMap::of(asked)
        };
        let mapped = self.note_map(slot, new);
        let (set, mut held) = self.exec.split();
        for kept in kept {
            self.manager.release_peer(kept.charge, kept.after, &mut held);
        }
        if std::mem::take(&mut set.state_mut(slot).peers.away) {
            self.manager.promoter.forget(asked.buffer.id(), &mut held);
            let (buffer, importer) = (asked.buffer.id(), asked.attached.joined.name.clone());
            let pages = page_count(&asked.range);
            self.manager.tell(Event::Promoted { buffer, importer, pages }, &mut held);
        }
        mapped
    }

    /// Falls back to system memory, or says why not.
    fn do_without(&mut self, slot: Slot, asked: &Asked<'_>, denied: Denied) -> Result<Arc<Mapped>> {
        let (error, reason, missing_pages) = match denied {
            Denied::Over(over, error) => (error, PeerReason::Over(over.limit), over.missing_pages),
            Denied::Place(error @ Error::ApertureFull { limit, .. }) => {
                (error, PeerReason::Over(limit), page_count(&asked.range))
            }
            Denied::Place(error) if is_lack_of_vram(&error) => {
                (error, PeerReason::NoVisibleRoom, page_count(&asked.range))
            }
            Denied::Place(error) => return Err(error),
        };
        let may_not = asked.buffer.tags.p2p() == P2p::Require
            || asked.attached.joined.requires_p2p()
            || asked.on_pressure == OnPressure::Refuse;
        if may_not {
            let (buffer, importer) = (asked.buffer.id(), asked.attached.joined.name.clone());
            let (_, mut held) = self.exec.split();
            self.manager.tell(Event::Refused { buffer, importer, reason, missing_pages }, &mut held);
            return Err(error);
        }
        if self.is_required_by_another(slot, asked.attached) {
            return self.map_staged(slot, asked, reason, missing_pages);
        }
        let mapped = self.map_in_system(slot, asked, reason, missing_pages)?;
        self.wait_for_promotion(slot);
        Ok(mapped)
    }

    /// Whether another importer takes nothing but the BAR, and so the buffer cannot leave VRAM for this one.
    pub(super) fn is_required_by_another(&self, slot: Slot, attached: &Attached) -> bool {
        let mut parties = self.exec.set().state(slot).peers.parties();
        parties.any(|other| {
            let reaches = || reaches_bar(&self.manager.decision(&other.joined));
            other.id != attached.id && other.joined.requires_p2p() && reaches()
        })
    }

    /// A copy in system memory, brought up to date. The buffer stays where it is.
    fn map_staged(
        &mut self,
        slot: Slot,
        asked: &Asked<'_>,
        reason: PeerReason,
        missing_pages: u64,
    ) -> Result<Arc<Mapped>> {
        if self.resource(slot).is_none() {
            self.validate(slot, asked.buffer.placement())?;
        }
        let copy = self.staged_copy(slot)?;
        let after = self.refresh(slot, &copy, &asked.range)?;
        let extents = copy.extents(&asked.range).iter().map(PeerExtent::from).collect();
        let new = NewMap { extents, why_system: Some(reason), after, copy: Some(copy), ..NewMap::of(asked) };
        let mapped = Mapped::new(new);
        self.exec.set_mut().state_mut(slot).peers.keep(mapped.clone());
        Counters::count(&self.manager.counters.staged_maps);
        let (_, mut held) = self.exec.split();
        self.manager.tell(asked.fell_back(reason, missing_pages), &mut held);
        Ok(mapped)
    }

    /// System memory, to which the buffer moves if it has to, and the addresses there.
    fn map_in_system(
        &mut self,
        slot: Slot,
        asked: &Asked<'_>,
        reason: PeerReason,
        missing_pages: u64,
    ) -> Result<Arc<Mapped>> {
        let is_there = self.resource(slot).is_some_and(|resource| resource.region != RegionKind::Vram);
        if !is_there {
            self.validate(slot, &asked.buffer.placement().beside_vram())?;
        }
        if self.exec.set().state(slot).peers.copy.strong_count() > 0 {
            // All meet in system memory now: nobody needs a copy of it.
            self.reserve_fences(slot, 0)?;
            self.invalidate_those(slot, InvalidateReason::Rerouted, |mapped| mapped.is_staged);
        }
        let new = NewMap {
            extents: self.addresses(slot, &asked.range),
            why_system: Some(reason),
            hold: self.hold_for(slot, asked.attached),
            ..NewMap::of(asked)
        };
        let mapped = self.note_map(slot, new);
        if reason != PeerReason::LivesInSystemMemory {
            let (_, mut held) = self.exec.split();
            self.manager.tell(asked.fell_back(reason, missing_pages), &mut held);
        }
        Ok(mapped)
    }

    /// Where the bytes are, as the bus addresses them.
    fn addresses(&self, slot: Slot, range: &Range<u64>) -> Vec<PeerExtent> {
        let resource = self.resource(slot).expect("it was brought where it is mapped");
        resource.extents.slice(range.start, range.end - range.start).iter().map(PeerExtent::from).collect()
    }

    /// Makes the map, behind the moves that bring the bytes there. Cannot fail.
    fn note_map(&mut self, slot: Slot, mut new: NewMap) -> Arc<Mapped> {
        let state = self.exec.set_mut().state_mut(slot);
        new.after.merge(&state.arrival);
        new.after.prune();
        let mapped = Mapped::new(new);
        state.peers.keep(mapped.clone());
        mapped
    }

    /// Whether importers have the buffer mapped in GTT, where `placement` lets it be: then it stays there, instead of taking
    /// their maps away for a better place.
    pub(crate) fn is_kept_by_peers(&self, slot: Slot, placement: &crate::bo::Placement) -> bool {
        let state = self.exec.set().state(slot);
        if state.peers.arbiter.present() == Accord::Staged {
            return false;
        }
        let is_in_gtt = state.resource.as_ref().is_some_and(|resource| resource.region == RegionKind::Gtt);
        is_in_gtt && placement.allows(RegionKind::Gtt) && state.peers.hold_system(None)
    }
}

/// Whether system memory helps against it.
fn is_lack_of_vram(error: &Error) -> bool {
    matches!(
        error,
        Error::TooLarge { region: RegionKind::Vram, .. }
            | Error::Exhausted { region: RegionKind::Vram, .. }
            | Error::Fragmented { region: RegionKind::Vram, .. }
    )
}
