//! CPU maps of bytes in VRAM that only windows in the BAR show.
//!
//! ```text
//!   touch ─► nothing is pointed there ─► a transaction, if the buffer is free:
//!
//!      a window for the piece ── the driver has it queued? ─► a callback keeps the window until then, and posts the mapping
//!          │ there
//!          ▼
//!      follow it ─► point the piece at the BAR, under the mapping's lock ─► give the loan back, wake the toucher
//!          │ none to be had
//!          ▼
//!      the buffer comes to system memory, with the reason counted
//!
//!   somebody else wants the space ─► the window is taken back ─► zap: the piece is away ─► the BAR shows another buffer
//! ```
//!
//! A mapping keeps no window: it follows it. Why nobody reaches another buffer's bytes: the loan is held until the piece is pointed and
//! the mapping is on the window's list, so whoever takes the window back comes later and finds both; and it changes what the BAR
//! shows after it has told the followers, never before.
//!
//! A piece is up to 2 MiB, and a small part of a small BAR, so that maps take turns by pieces. It ends at the same offset of the buffer
//! for every mapping, so that these share windows.

use std::ops::Range;
use std::sync::{Arc, Weak};

use devpagemap_fence::sync::mutant;
use devpagemap_fence::{FenceError, FenceSet, Held, Slot};
use devpagemap_migrate::ExtentList;

use super::mapping::{Mapping, Way};
use crate::aperture::{Bar, BarExtent, BarMemory, PinnedWindow, Window, Zap};
use crate::bo::{CpuAccess, Transaction};
use crate::error::{Error, Result};
use crate::manager::Manager;

/// A run of bytes behind the BAR.
#[derive(Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) memory: BarMemory<'a>,
    pub(crate) len_bytes: u64,
}

const NOT_MAPPABLE: Error = Error::Unsupported { what: "this driver's BAR cannot be mapped" };

/// What a look behind a window finds.
pub(super) enum Behind<'a> {
    /// The bytes, in the order of the buffer's.
    Pieces(Vec<Piece<'a>>),
    /// The driver programs the window behind these.
    Queued(FenceSet),
}

/// What came of showing a part of a mapping.
pub(super) enum Shown {
    /// It is pointed at, or need not be any more.
    Done,
    /// The driver programs the window behind these. Whoever keeps it until then finds it.
    Queued(Window, FenceSet),
    /// There was no window, so the buffer is on its way to system memory.
    FellBack,
}

impl Zap for Mapping {
    fn zap(&self, bytes: &Range<u64>) {
        if self.hide(bytes, &mut Held::in_destructor()) {
            self.post();
        }
    }
}

impl Transaction<'_, '_, '_> {
    /// Points `range` of a mapping at a window, if windows are what shows its bytes now.
    ///
    /// # Errors
    /// Those of moving the buffer to system memory, when there is no window for it.
    pub(super) fn show_range(
        &mut self,
        slot: Slot,
        mapping: &Arc<Mapping>,
        range: &Range<u64>,
    ) -> Result<Shown> {
        if !matches!(self.way(slot, mapping), Some(Way::Windows { .. })) {
            return Ok(Shown::Done);
        }
        match self.show_by_window(slot, mapping, range) {
            Err(refused) => self.fall_back(slot, refused).map(|_reason| Shown::FellBack),
            shown => shown,
        }
    }

    /// The same for bytes that only windows show.
    ///
    /// # Errors
    /// Why there is no window, or none that can be mapped.
    fn show_by_window(&mut self, slot: Slot, mapping: &Arc<Mapping>, range: &Range<u64>) -> Result<Shown> {
        let window = self.show(slot, &mapping.in_buffer(range))?;
        let manager = self.manager;
        let place = &self.resource(slot).expect("a buffer with a window has a place").extents;
        let pieces = match manager.look_behind(&window, place)? {
            Behind::Pieces(pieces) if !is_mappable(&pieces) => return Err(NOT_MAPPABLE),
            Behind::Pieces(pieces) => pieces,
            Behind::Queued(after) => return Ok(Shown::Queued(window, after)),
        };
        let follower: Weak<dyn Zap> = Arc::<Mapping>::downgrade(mapping);
        let follows = if mutant!("fault_follows_no_window") {
            follower.strong_count() > 0
        } else {
            !mapping.space.is_watched() || window.follow(&follower)
        };
        debug_assert!(follows, "a window on loan is taken back under its buffer's reservation only");
        if mutant!("fault_returns_its_window_too_early") {
            drop(window);
        }
        // The loan ends behind this: who wants the space before it is pointed at does not get it.
        mapping.point_at_window(range, &pieces, &mut self.exec.split().1);
        Ok(Shown::Done)
    }

    /// A window on the first group of a mapping that needs windows, so that its first touch finds one, or a reason why there is none.
    pub(super) fn try_window(&mut self, slot: Slot, mapping: &Mapping) -> Result<Option<&'static str>> {
        let Some(Way::Windows { piece_bytes }) = self.way(slot, mapping) else { return Ok(None) };
        let end = mapping.range.end.min(mapping.range.start / piece_bytes * piece_bytes + piece_bytes);
        match self.show(slot, &(mapping.range.start..end)) {
            // It stays until somebody wants its space.
            Ok(window) if self.can_be_mapped(slot, &window) => Ok(None),
            Ok(_) => self.fall_back(slot, NOT_MAPPABLE).map(Some),
            Err(refused) => self.fall_back(slot, refused).map(Some),
        }
    }

    /// Keeps a window on all of a mapping that never moves, if it needs windows. When there is none: an error for one that was
    /// `asked_for`, else a reason why the buffer is in system memory now.
    pub(super) fn keep_window(
        &mut self,
        slot: Slot,
        mapping: &Mapping,
        asked_for: bool,
    ) -> Result<(Option<PinnedWindow>, Option<&'static str>)> {
        if !matches!(self.way(slot, mapping), Some(Way::Windows { .. })) {
            return Ok((None, None));
        }
        match self.pin_window(slot, &mapping.range) {
            Ok(window) if self.can_be_mapped(slot, &window) => Ok((Some(window), None)),
            Ok(window) => {
                drop(window);
                Ok((None, Some(self.fall_back(slot, NOT_MAPPABLE)?)))
            }
            Err(full @ Error::ApertureFull { .. }) if asked_for => Err(full),
            Err(refused) => Ok((None, Some(self.fall_back(slot, refused)?))),
        }
    }

    /// Whether the CPU can map what a window shows, as far as that is known before the driver has programmed it.
    fn can_be_mapped(&self, slot: Slot, window: &Window) -> bool {
        let place = &self.resource(slot).expect("a buffer with a window has a place").extents;
        let behind = || self.manager.behind(window, place);
        !window.after().is_signaled() || behind().is_some_and(|pieces| is_mappable(&pieces))
    }
}

/// Whether these bytes can have a second address.
fn is_mappable(pieces: &[Piece<'_>]) -> bool {
    pieces.iter().all(|piece| piece.memory.file.is_some())
}

/// # Errors
/// [`Error::Driver`] when a window whose fences have signalled may show something else, as one of them failed.
fn check_programmed(after: &FenceSet) -> Result<()> {
    let failed =
        |error: FenceError| Error::Driver { action: "program a window", reason: error.to_string().into() };
    after.first_error().map_or(Ok(()), |error| Err(failed(error)))
}

impl Manager {
    /// Whether the CPU reaches bytes in VRAM through windows.
    pub(crate) fn reaches_by_windows(&self) -> bool {
        matches!(self.windows.bar(), Bar::Windows(_)) && self.cpu_access != CpuAccess::System
    }

    /// Looks behind a window on a buffer at `place`.
    ///
    /// # Errors
    /// [`Error::Driver`] when it may show something else, [`Error::Unsupported`] when the CPU cannot map what it shows.
    pub(super) fn look_behind(&self, window: &Window, place: &ExtentList) -> Result<Behind<'_>> {
        let after = window.after();
        if !after.is_signaled() {
            return Ok(Behind::Queued(after));
        }
        check_programmed(&after)?;
        self.behind(window, place).map(Behind::Pieces).ok_or(NOT_MAPPABLE)
    }

    /// What is behind a window on a buffer at `place`, once its fences have signalled; `None` when the CPU cannot map it.
    fn behind(&self, window: &Window, place: &ExtentList) -> Option<Vec<Piece<'_>>> {
        let bytes = window.bytes();
        let place = place.slice(bytes.start, bytes.end - bytes.start);
        let mut pieces = Vec::new();
        let mut runs = place.iter().map(|extent| extent.len_bytes);
        let mut run_bytes = 0;
        for BarExtent { addr, len_bytes } in window.extents() {
            let mut at = 0;
            while at < len_bytes {
                if run_bytes == 0 {
                    run_bytes = runs.next().expect("a window shows as much as there is");
                }
                let part_bytes = run_bytes.min(len_bytes - at);
                let memory = self.driver().bar_memory(addr.add(at), part_bytes)?;
                pieces.push(Piece { memory, len_bytes: part_bytes });
                at += part_bytes;
                run_bytes -= part_bytes;
            }
        }
        Some(pieces)
    }
}
