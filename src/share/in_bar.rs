//! A map in the BAR: pages in the ledger, the buffer where the BAR shows it, and a window where it takes one.
//!
//! Who uses a part of a window keeps all of it. So what the ledger is asked for is what the map will keep, which may be more than its range.

use std::ops::Range;
use std::sync::Arc;

use devpagemap_fence::sync::mutant;
use devpagemap_fence::{FenceSet, Slot};

use super::map::{Asked, Denied, wish};
use super::peer_map::{Mapped, NewMap, PeerExtent};
use super::scatter::Kind;
use crate::aperture::{Admitted, Bar, Kept, OnPressure, Window, Wish};
use crate::bo::Transaction;
use crate::error::Result;
use crate::events::Event;
use crate::region::{RegionKind, page_count, pages_of};

/// What a map in the BAR has.
pub(super) struct InBar {
    admitted: Admitted,
    /// Where the BAR has windows.
    window: Option<Window>,
}

impl Transaction<'_, '_, '_> {
    /// Pages in the ledger, the buffer where the BAR can show it, and a window where it takes one.
    pub(super) fn take_bar(&mut self, slot: Slot, asked: &Asked<'_>) -> Result<InBar, Denied> {
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
            if mutant!("the_ledger_is_asked_once") && too_few_for.is_some() {
                return Err(Denied::Over(over, over.refusal(wish)));
            }
        }
    }

    /// Whether the BAR can show these bytes where they are.
    fn is_shown(&self, slot: Slot, range: &Range<u64>) -> bool {
        let Some(resource) = self.resource(slot).filter(|resource| resource.region == RegionKind::Vram)
        else {
            return false;
        };
        match self.manager.windows.bar() {
            Bar::Prefix(size) => resource.shows_pages(&pages_of(range), size.as_bytes()),
            Bar::Windows(_) => true,
        }
    }

    /// Cannot fail.
    pub(super) fn map_in_bar(&mut self, slot: Slot, asked: &Asked<'_>, in_bar: InBar) -> Arc<Mapped> {
        let InBar { admitted: Admitted { charge, mut after }, window } = in_bar;
        // Pages that were kept for it are its own now, and so is what they wait for.
        let kept = asked.attached.take_kept();
        kept.iter().for_each(|kept| after.merge(&kept.after));
        let extents = match &window {
            Some(window) => {
                after.merge(&window.after());
                window.extents().into_iter().map(PeerExtent::from).collect()
            }
            None => self.addresses(slot, &asked.range, Kind::Bus),
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
}
