//! Showing a buffer in the BAR, and hiding it when it moves.
//!
//! ```text
//!   Buffer::window ─ reservation ─► a window shows all of it? ─ yes ─► borrow it: one step, no other lock
//!                                          │ no
//!                        validate into VRAM (into its visible part, where the BAR is a prefix)
//!                                          ▼
//!                        hunt for space ─► program the driver ─►│ window, in the table and at the buffer
//!                               may fail; space goes back       │ cannot fail
//! ```
//!
//! The driver and followers are called with the reservation held and no lock further in. A window shows only what nothing
//! shows yet of what was asked for, so several may be needed for one range.

use std::ops::Range;

use devpagemap_allocator::Span;
use devpagemap_fence::sync::lending::Lender;
use devpagemap_fence::sync::thread::yield_now;
use devpagemap_fence::{Fence, FenceSet, Held, Slot, levels, lockdep};
use devpagemap_migrate::{Addr, Extent, ExtentList, VramAddr};

use super::hunt::{Hunt, Space, Step, zap_all};
use super::of_buffer::{BufferWindows, Cover, Trimmed};
use super::window::{Shown, Window};
use super::{Bar, BarAddr, BarLimit, WindowChange, WindowEntry};
use crate::bo::{BoState, Buffer, Transaction};
use crate::error::{Error, Result};
use crate::manager::Manager;
use crate::region::{RegionKind, bytes_of, pages_of, total_bytes};
use crate::stats::Counters;

impl Buffer {
    /// Shows these bytes in the BAR, in VRAM: brings the buffer there first if it must, evicting others, and takes BAR space
    /// from windows that nobody has. Queues what is needed and does not wait for it.
    ///
    /// Where the BAR is a prefix, the buffer is brought into it, and its place there is the window.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`], [`Error::InvalidSize`] for no byte at all, [`Error::ApertureFull`] when all space is kept by users of
    /// windows, [`Error::InvalidPlacement`] for a buffer that may not be in VRAM, those of
    /// [`Buffer::place_now`], and what the driver says.
    pub fn window(&self, bytes: Range<u64>) -> Result<Window> {
        self.check_range("a window", &bytes)?;
        let pages = pages_of(&bytes);
        let shown = {
            let manager = &self.0.manager;
            manager.check_present()?;
            let mut held = Held::enter();
            let mut state = self.0.reservation.lock(&mut held);
            // What is shown already is borrowed without a pass, which would cost as much again: whoever takes VRAM away takes this
            // reservation too, and finds the loan.
            if manager.revocation.check_active().is_ok()
                && let Some(loan) = state.windows.find(&pages)
            {
                return Ok(Window::of_one_piece(bytes, loan));
            }
            let (_pass, reach) = manager.enter()?;
            reach.check(&state)?;
            let (state, mut held) = state.split();
            manager.show_in_place(state, &bytes, &mut held)?
        };
        match shown {
            Some(window) => Ok(window),
            None => self.transact_window(|transaction, slot| {
                transaction.validate_for_window(slot)?;
                transaction.show(slot, &bytes)
            }),
        }
    }

    pub(super) fn transact_window<O>(
        &self,
        body: impl FnMut(&mut Transaction<'_, '_, '_>, Slot) -> Result<O>,
    ) -> Result<O> {
        lockdep::might_lock::<levels::Aperture>("windows");
        self.transact(body)
    }
}

impl Transaction<'_, '_, '_> {
    /// Brings a locked buffer where the BAR can show it.
    ///
    /// # Errors
    /// Those of [`Transaction::validate`]; [`Error::InvalidPlacement`] when it may not be in VRAM.
    pub(crate) fn validate_for_window(&mut self, slot: Slot) -> Result<()> {
        let shown = self.exec.set().object(slot).placement().for_peers(self.manager.windows.bar());
        let shown = shown.ok_or_else(|| Error::InvalidPlacement {
            why: "none of its places is in VRAM, and a BAR shows nothing else".into(),
        })?;
        self.validate(slot, &shown)
    }

    /// A window on these bytes of a locked buffer, which is where the BAR can show it. Takes the aperture lock, and calls the driver
    /// without it.
    ///
    /// # Errors
    /// [`Error::ApertureFull`], or what the driver says. Nothing that was shown of this buffer has changed then.
    pub(crate) fn show(&mut self, slot: Slot, bytes: &Range<u64>) -> Result<Window> {
        self.show_after(slot, bytes, &FenceSet::new())
    }

    /// As [`show`](Transaction::show); what has to be shown anew is not accessed before `former` has signalled either.
    pub(crate) fn show_after(&mut self, slot: Slot, bytes: &Range<u64>, former: &FenceSet) -> Result<Window> {
        let manager = self.manager;
        let (set, mut held) = self.exec.split();
        manager.show(set.state_mut(slot), bytes, former, &mut held)
    }

    /// Prepares a window on `pages` of a locked buffer so that it keeps no more than it must: hides windows that nobody has and
    /// that show more than these. In a prefix, windows keep nothing. Takes the aperture lock, and calls followers and the driver without it.
    pub(crate) fn trim_windows(&mut self, slot: Slot, pages: &Range<u64>) -> Kept {
        let manager = self.manager;
        if matches!(manager.windows.bar(), Bar::Prefix(_)) {
            return Kept { pages: pages.clone(), former: FenceSet::new() };
        }
        let (set, mut held) = self.exec.split();
        let Trimmed { kept, idle } = set.state_mut(slot).windows.trim(pages);
        let former = if idle.is_empty() { FenceSet::new() } else { manager.hide_all(idle, &mut held).ends };
        Kept { pages: kept, former }
    }
}

/// What a window will keep.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Pages of the buffer: no more than these, as long as its reservation is held.
    pub(crate) pages: Range<u64>,
    /// Who may still use other BAR pages that showed some of them until now.
    pub(crate) former: FenceSet,
}

/// When windows are gone that were taken away.
struct Hidden {
    /// What their former users still wait for.
    ends: FenceSet,
    /// When they show nothing any more, after that.
    hidden: FenceSet,
}

impl Manager {
    /// A window on a buffer that the BAR can show where it is; `None` when it has to be placed first.
    pub(crate) fn show_in_place(
        &self,
        state: &mut BoState,
        bytes: &Range<u64>,
        held: &mut Held<'_, levels::Tickets>,
    ) -> Result<Option<Window>> {
        let can_be_shown = state.resource.as_ref().is_some_and(|resource| {
            let visible_bytes = match self.windows.bar() {
                Bar::Prefix(size) => size.as_bytes(),
                Bar::Windows(_) => u64::MAX,
            };
            resource.region == RegionKind::Vram && resource.is_cpu_visible(visible_bytes)
        });
        if !can_be_shown {
            return Ok(None);
        }
        state.check_not_lost()?;
        self.show(state, bytes, &FenceSet::new(), held).map(Some)
    }

    /// A window on a buffer that is where the BAR can show it. What has to be shown anew waits for `former` too.
    fn show(
        &self,
        state: &mut BoState,
        bytes: &Range<u64>,
        former: &FenceSet,
        held: &mut Held<'_, levels::Tickets>,
    ) -> Result<Window> {
        let resource = state.resource.as_ref().expect("a buffer that can be shown has a place");
        let mut cover = state.windows.cover(&pages_of(bytes));
        if !cover.gaps.is_empty() {
            self.fill(&mut cover, &resource.extents, former, &mut state.windows, held)?;
        }
        Ok(Window::of_pieces(bytes.clone(), cover.loans))
    }

    /// Windows for all gaps of a buffer at `extents`, or none.
    fn fill(
        &self,
        cover: &mut Cover,
        extents: &ExtentList,
        former: &FenceSet,
        windows: &mut BufferWindows,
        held: &mut Held<'_, levels::Tickets>,
    ) -> Result<()> {
        let places = cover.gaps.iter().map(|gap| slice(extents, gap)).collect::<Vec<_>>();
        let (spans, mut after) = match self.windows.bar() {
            Bar::Prefix(_) => (places.iter().map(vram_spans).collect(), FenceSet::new()),
            Bar::Windows(_) => self.take_and_program(&places, held)?,
        };
        after.merge(former);
        for (gap, spans) in cover.gaps.drain(..).zip(spans) {
            let (lender, loan) = self.windows.add(gap, spans, after.clone(), held);
            windows.insert(lender);
            cover.loans.push(loan);
            Counters::count(&self.counters.windows_made);
        }
        cover.loans.sort_unstable_by_key(|loan| loan.pages.start);
        Ok(())
    }

    /// BAR space for each of `places`, programmed to show it, and what to wait for before using it. In transit.
    fn take_and_program(
        &self,
        places: &[ExtentList],
        held: &mut Held<'_, levels::Tickets>,
    ) -> Result<(Vec<Vec<Span>>, FenceSet)> {
        let space = self.take_bar_space(places.iter().map(ExtentList::len_bytes).sum(), held)?;
        let parts = split_spans(&space.taken.spans, places);
        let mut entries = Vec::with_capacity(places.len());
        parts.iter().zip(places).for_each(|(spans, place)| push_entries(spans, place, &mut entries));
        entries.extend(space.surplus.spans.iter().map(hidden));
        let (taken_after, surplus_after) = (space.taken.after(), space.surplus.after());
        let mut after = taken_after.clone();
        after.merge(&surplus_after);
        let programmed = match self.program(&entries, &after, held) {
            Ok(programmed) => programmed,
            Err(error) => {
                self.reasons.count("windows: the driver refused to program one", held);
                let parts = [(space.taken.spans, taken_after), (space.surplus.spans, surplus_after)];
                self.hide_and_give_back(
                    parts.into_iter().filter(|(spans, _)| !spans.is_empty()).collect(),
                    held,
                );
                return Err(error);
            }
        };
        let ready = programmed.map_or(taken_after, FenceSet::from);
        if !space.surplus.spans.is_empty() {
            self.windows.give_back(vec![(space.surplus.spans, surplus_after)], &ready, held);
        }
        Ok((parts, ready))
    }

    /// `bytes` of BAR space, free or from windows that nobody has. Waits only for those who have space in transit.
    fn take_bar_space(&self, bytes: u64, held: &mut Held<'_, levels::Tickets>) -> Result<Space> {
        let mut hunt = Hunt::new(bytes);
        let space = loop {
            match self.windows.hunt(&mut hunt, held) {
                Step::Caught(space) => break Ok(space),
                Step::Zap => hunt.zap(),
                Step::Again => {}
                Step::Wait => {
                    self.hide_and_give_back(hunt.let_go(), held);
                    yield_now();
                }
                Step::Full { used_bytes } => {
                    self.hide_and_give_back(hunt.let_go(), held);
                    let limit_bytes = self.windows.bar().size().as_bytes();
                    let limit = BarLimit::Bar;
                    break Err(Error::ApertureFull { limit, limit_bytes, used_bytes, wanted_bytes: bytes });
                }
            }
        };
        Counters::add(&self.counters.windows_reclaimed, hunt.taken_windows);
        space
    }

    /// Gives back space in transit that shows something.
    fn hide_and_give_back(&self, parts: Vec<(Vec<Span>, FenceSet)>, held: &mut Held<'_, levels::Tickets>) {
        if parts.is_empty() {
            return;
        }
        let entries: Vec<_> = parts.iter().flat_map(|(spans, _)| spans).map(hidden).collect();
        let mut after = FenceSet::new();
        parts.iter().for_each(|(_, ends)| after.merge(ends));
        let hidden = self.hide(&entries, &after, held);
        self.windows.give_back(parts, &hidden, held);
    }

    /// Takes away all windows of a buffer that moves or dies. What must have signalled before the bytes that they showed are
    /// somebody else's. Takes the aperture lock; calls followers and the driver without it.
    pub(crate) fn hide_windows(
        &self,
        windows: BufferWindows,
        held: &mut Held<'_, levels::Tickets>,
    ) -> FenceSet {
        if windows.is_empty() {
            return FenceSet::new();
        }
        self.hide_all(windows.into_lenders().collect(), held).hidden
    }

    /// Takes these windows away, whoever has them.
    fn hide_all(&self, lenders: Vec<Lender<Shown>>, held: &mut Held<'_, levels::Tickets>) -> Hidden {
        let (mut followers, mut ends) = (Vec::new(), FenceSet::new());
        let leaving = self.windows.start_leaving(lenders, &mut followers, &mut ends, held);
        zap_all(followers);
        if leaving.is_empty() {
            return Hidden { ends, hidden: FenceSet::new() };
        }
        let entries: Vec<_> = leaving.iter().flat_map(|lender| &lender.spans).map(hidden).collect();
        let hidden = self.hide(&entries, &ends, held);
        self.windows.finish_leaving(&leaving, &hidden, held);
        Hidden { ends, hidden }
    }

    /// Has the driver show nothing there. Should it refuse, these pages show what they showed until they are used again.
    fn hide(
        &self,
        entries: &[WindowEntry],
        after: &FenceSet,
        held: &mut Held<'_, levels::Tickets>,
    ) -> FenceSet {
        match self.program(entries, after, held) {
            Ok(hidden) => hidden.map_or_else(FenceSet::new, FenceSet::from),
            Err(error) => {
                tracing::error!(%error, "the driver did not hide windows");
                self.reasons.count("windows: the driver refused to hide some", held);
                after.clone()
            }
        }
    }

    fn program(
        &self,
        entries: &[WindowEntry],
        after: &FenceSet,
        held: &mut Held<'_, levels::Tickets>,
    ) -> Result<Option<Fence>> {
        let programmed = self.driver().program_windows(&WindowChange { entries, after })?;
        if let Some(fence) = &programmed {
            self.remember(fence, held);
        }
        Ok(programmed)
    }
}

fn slice(extents: &ExtentList, pages: &Range<u64>) -> ExtentList {
    let bytes = bytes_of(pages);
    extents.slice(bytes.start, bytes.end - bytes.start)
}

fn vram_spans(place: &ExtentList) -> Vec<Span> {
    let span = |extent: &Extent| Span { start_bytes: extent.addr.offset(), len_bytes: extent.len_bytes };
    place.iter().map(span).collect()
}

fn hidden(span: &Span) -> WindowEntry {
    WindowEntry { bar: BarAddr(span.start_bytes), len_bytes: span.len_bytes, shows: None }
}

/// Deals `spans` out to `places`, each as much as it is long.
fn split_spans(spans: &[Span], places: &[ExtentList]) -> Vec<Vec<Span>> {
    if let [_] = places {
        return vec![spans.to_vec()];
    }
    debug_assert_eq!(total_bytes(spans), places.iter().map(ExtentList::len_bytes).sum::<u64>());
    let mut spans = spans.iter().copied();
    let mut rest: Option<Span> = None;
    let deal = |place: &ExtentList| {
        let (mut part, mut missing) = (Vec::new(), place.len_bytes());
        while missing > 0 {
            let span = rest.take().or_else(|| spans.next()).expect("there is space for every place");
            let len_bytes = span.len_bytes.min(missing);
            part.push(Span { len_bytes, ..span });
            missing -= len_bytes;
            rest = (len_bytes < span.len_bytes).then(|| Span {
                start_bytes: span.start_bytes + len_bytes,
                len_bytes: span.len_bytes - len_bytes,
            });
        }
        part
    };
    places.iter().map(deal).collect()
}

/// Which run of BAR pages shows which run of `place`.
fn push_entries(spans: &[Span], place: &ExtentList, entries: &mut Vec<WindowEntry>) {
    let mut extents = place.iter().copied();
    let mut extent = Extent::new(Addr::Vram(VramAddr(0)), 0);
    for span in spans {
        let mut at = span.start_bytes;
        while at < span.end_bytes() {
            if extent.len_bytes == 0 {
                extent = extents.next().expect("a place is as long as its space");
            }
            let Addr::Vram(shows) = extent.addr else { unreachable!("a window shows VRAM alone") };
            let len_bytes = extent.len_bytes.min(span.end_bytes() - at);
            entries.push(WindowEntry { bar: BarAddr(at), len_bytes, shows: Some(shows) });
            at += len_bytes;
            extent = Extent::new(extent.addr.add(len_bytes), extent.len_bytes - len_bytes);
        }
    }
}
