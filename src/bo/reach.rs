//! Reach: bring a locked buffer where the CPU reaches its bytes, and keep it there while the CPU works on it.
//!
//! System memory is cached and always reachable. VRAM is reachable in its visible part, and there the CPU's reads are slow, so only
//! buffers that opted in are reached in VRAM (or all, where VRAM is cached); the others come to system memory.
//!
//! What [`CpuAccess::Auto`] does with a buffer in hidden VRAM that may be reached in VRAM, the first that can be had:
//!
//! ```text
//!   visible VRAM, free                                       moves this buffer
//!   visible VRAM, whose owners go to hidden VRAM             moves them too, but nothing crosses the bus
//!   visible VRAM, whose owners go where they can             only for one that has been brought to system memory and taken
//!                                                            back before: once more would be for ever
//!   GTT if it may be there, else System                      a fallback, with its reason
//!   visible VRAM, whoever has to go                          only without system memory for this buffer
//! ```
//!
//! But for the last, nobody makes way whom the CPU works on: two of them would drive each other out for ever.

use std::borrow::Cow;
use std::ops::Range;

use devpagemap_fence::Slot;

use super::validate::{FENCES_PER_BUFFER, Pass, Transaction};
use super::{Away, BufferObject, Place, Placement};
use crate::cpu::Caching;
use crate::error::{Error, Result};
use crate::region::RegionKind;
use crate::stats::Counters;

/// What becomes of a buffer in VRAM that the CPU wants to reach and does not see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CpuAccess {
    /// As little is moved as possible. A map moves it into the visible part of VRAM when that sends nobody to system memory, else it
    /// comes to system memory itself. Reads and writes at an offset copy just the bytes that they are about, until a move would have
    /// been cheaper. What is reachable stays where it is.
    #[default]
    Auto,
    /// Every map moves the buffer into the visible part of VRAM if it may be in VRAM at all, wherever it is and whoever has to go; so
    /// does every read or write at an offset that the CPU does not reach. To compare with.
    Visible,
    /// Where the BAR has [windows](crate::Bar::Windows), every access goes through one if the buffer may be reached in VRAM, and nothing
    /// is moved: reads and writes at an offset too, however long. `Auto` does so for maps and for short reads and writes, and
    /// has an engine copy long ones. Where the BAR is a prefix this is `Auto`.
    Window,
    /// Every access that the CPU does not reach moves it to system memory.
    System,
}

/// What the CPU is about to do with a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CpuWish {
    /// The slowest caching that will do. The buffer's own opt-in is asked for too.
    pub(crate) caching: Caching,
    /// Which pages of the buffer, from 0.
    pub(crate) pages: Range<u64>,
}

/// How the CPU reaches a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    /// Where.
    pub(crate) region: RegionKind,
    /// How fast.
    pub(crate) caching: Caching,
    /// Why it is in system memory although it may be reached in VRAM and wanted to be there.
    pub(crate) fell_back: Option<&'static str>,
}

const INTO_VISIBLE: &str = "visibility: moved into the visible part of VRAM for the CPU";
const OUT_OF_VISIBLE: &str = "visibility: left the visible part of VRAM for another that must be there";
const TO_SYSTEM: &str = "visibility: moved to system memory for the CPU";

impl Transaction<'_, '_, '_> {
    /// Brings a locked buffer where the CPU reaches what it wishes for. Queues what is needed and waits for nothing: the bytes are
    /// there once the buffer's `arrival` has signalled.
    ///
    /// # Errors
    /// [`Error::Contended`] (restart), [`Error::Pinned`] when it is pinned where the CPU does not reach it,
    /// [`Error::FenceFailed`] when its bytes are lost, [`Error::Exhausted`] when neither VRAM nor system memory can be had.
    pub(crate) fn make_reachable(&mut self, slot: Slot, wish: &CpuWish) -> Result<Reached> {
        self.exec.set().state(slot).check_not_lost()?;
        let buffer = self.exec.set().arc(slot);
        self.exec.set_mut().state_mut(slot).cpu.accessed();
        let in_vram = buffer.may_be_reached_in_vram(wish.caching);
        let is_new = self.resource(slot).is_none();
        let fell_back = match self.manager.cpu_access {
            _ if self.stays_for_outsiders(slot) || !in_vram && self.is_in_system_memory(slot) => None,
            _ if !in_vram => self.reach_in_system_memory(slot, &buffer, Away::ForCpu).map(|()| None)?,
            CpuAccess::Visible => {
                let in_sight = self.in_sight(&buffer).map_or(Cow::Borrowed(buffer.placement()), Cow::Owned);
                self.reach_by_evicting(slot, &in_sight)?
            }
            CpuAccess::Auto | CpuAccess::Window if is_new => {
                let in_sight = match self.manager.reaches_by_windows() {
                    true => Cow::Borrowed(buffer.placement()),
                    false => Cow::Owned(buffer.placement().for_cpu()),
                };
                self.reach_by_evicting(slot, &in_sight)?
            }
            _ if self.is_reachable(slot, &wish.pages) => None,
            CpuAccess::Auto | CpuAccess::Window => self.reach_with_little_moved(slot, &buffer)?,
            CpuAccess::System => {
                self.reach_in_system_memory(slot, &buffer, Away::ForCpu)?;
                None
            }
        };
        self.exec.set_mut().state_mut(slot).cpu.moved();
        let region = self.region(slot).expect("it was brought somewhere just now");
        let caching = match region {
            RegionKind::Vram => self.manager.vram_caching,
            RegionKind::Gtt | RegionKind::System => Caching::Cached,
        };
        Ok(Reached { region, caching, fell_back })
    }

    /// Its places in VRAM, where the BAR shows them or can; `None` when it has none.
    fn in_sight(&self, buffer: &BufferObject) -> Option<Placement> {
        buffer.placement().for_peers(self.manager.windows.bar())
    }

    fn is_in_system_memory(&self, slot: Slot) -> bool {
        self.region(slot).is_some_and(|region| region != RegionKind::Vram)
    }

    fn is_reachable(&self, slot: Slot, pages: &Range<u64>) -> bool {
        let visible_bytes = self.manager.vram.visible_bytes;
        self.resource(slot).is_some_and(|resource| {
            self.manager.reaches_by_windows() || resource.shows_pages(pages, visible_bytes)
        })
    }

    /// The first of these places, which the CPU all sees, evicting others; else system memory.
    fn reach_by_evicting(&mut self, slot: Slot, visible: &Placement) -> Result<Option<&'static str>> {
        match self.reach_in(slot, visible, &[Pass::Free, Pass::Evicting]) {
            Ok(()) => Ok(None),
            Err(refused) => self.fall_back(slot, refused).map(Some),
        }
    }

    /// See the table above.
    fn reach_with_little_moved(&mut self, slot: Slot, buffer: &BufferObject) -> Result<Option<&'static str>> {
        let visible = self.in_sight(buffer).expect("it is in VRAM, where the CPU does not reach it");
        let passes = [Pass::Free, Pass::Relocating, Pass::EvictingIdle];
        let passes = match self.exec.set().state(slot).cpu.goes_back_and_forth() {
            true => &passes[..],
            false => &passes[..2],
        };
        let refused = match self.reach_in(slot, &visible, passes) {
            Ok(()) => return Ok(None),
            Err(refused) => refused,
        };
        match self.fall_back(slot, refused) {
            Err(
                Error::Exhausted { region: RegionKind::System, .. }
                | Error::TooLarge { region: RegionKind::System, .. },
            ) => self.reach_in(slot, &visible, &[Pass::Evicting]).map(|()| None),
            fallen_back => fallen_back.map(Some),
        }
    }

    fn reach_in(&mut self, slot: Slot, placement: &Placement, passes: &[Pass]) -> Result<()> {
        self.moving_for(Some(INTO_VISIBLE), |transaction| transaction.validate_in(slot, placement, passes))
    }

    fn reach_in_system_memory(&mut self, slot: Slot, buffer: &BufferObject, away: Away) -> Result<()> {
        let placement = buffer.placement().in_system_memory();
        let was_in_vram = self.region(slot) == Some(RegionKind::Vram);
        self.moving_for(Some(TO_SYSTEM), |transaction| transaction.validate(slot, &placement))?;
        if was_in_vram {
            self.exec.set_mut().state_mut(slot).away = Some(away);
        }
        Ok(())
    }

    /// System memory instead of visible VRAM, which was `refused`; the reason is counted.
    pub(crate) fn fall_back(&mut self, slot: Slot, refused: Error) -> Result<&'static str> {
        let Some(reason) = fallback_reason(&refused) else { return Err(refused) };
        let buffer = self.exec.set().arc(slot);
        self.reach_in_system_memory(slot, &buffer, Away::ForLackOfVisibility)?;
        let (_, mut held) = self.exec.split();
        Counters::count(&self.manager.counters.bar_fallbacks);
        self.manager.reasons.count(reason, &mut held);
        tracing::debug!(buffer = buffer.id(), reason, "the CPU reaches a buffer in system memory instead");
        Ok(reason)
    }

    /// Runs `body`; with a `reason`, every copy that it queues is counted as one for visibility.
    pub(super) fn moving_for<O>(
        &mut self,
        reason: Option<&'static str>,
        body: impl FnOnce(&mut Self) -> O,
    ) -> O {
        let outer = std::mem::replace(&mut self.moving_for, reason);
        let result = body(self);
        self.moving_for = outer;
        result
    }

    /// Why others move out of `place`, if that is for the sake of visibility.
    pub(super) fn making_visible(&self, place: &Place) -> Option<&'static str> {
        let vram = &self.manager.vram;
        (place.cpu_visible && vram.visible_bytes < vram.size_bytes).then_some(OUT_OF_VISIBLE)
    }

    /// Brings a locked buffer to one of its own places, one that the CPU reaches while the CPU works on it.
    ///
    /// # Errors
    /// As [`Transaction::validate`].
    pub(crate) fn validate_for_gpu(&mut self, slot: Slot) -> Result<()> {
        let buffer = self.exec.set().arc(slot);
        if self.stays_for_outsiders(slot) {
            self.exec.set().state(slot).check_not_lost()?;
            return self.reserve_fences(slot, FENCES_PER_BUFFER);
        }
        let hinted = self.exec.set().state(slot).cpu.is_alive();
        let stays_in_system = hinted && self.is_in_system_memory(slot);
        let placement = match stays_in_system {
            true => buffer.placement().near_the_cpu(buffer.may_be_reached_in_vram(Caching::Uncached)),
            false => Cow::Borrowed(buffer.placement()),
        };
        self.validate(slot, &placement)
    }

    /// Notes that a submission uses a member.
    pub(crate) fn note_submission(&mut self, slot: Slot) {
        let buffer = self.exec.set().arc(slot);
        let in_vram = buffer.may_be_reached_in_vram(Caching::Uncached);
        let stays = in_vram || buffer.placement().allows(RegionKind::Gtt);
        self.exec.set_mut().state_mut(slot).cpu.submitted(stays);
    }
}

impl BufferObject {
    /// Whether the CPU may reach it in VRAM: whether that is cached as its creator wants at least, and as `wished`.
    pub(crate) fn may_be_reached_in_vram(&self, wished: Caching) -> bool {
        wished.max(self.caching()) <= self.manager.vram_caching
    }
}

impl Placement {
    /// Where in system memory the CPU reaches the buffer: where the GPU does too, if the buffer may be there.
    fn in_system_memory(&self) -> Placement {
        let gtt = self.places().iter().filter(|place| place.region() == RegionKind::Gtt);
        Placement::in_order(gtt.cloned().chain([Place::SYSTEM]).collect())
    }

    /// The same places, preferring without evicting anybody those that the CPU reaches: GTT, where the bytes are already, else
    /// visible VRAM if they may be reached there.
    fn near_the_cpu(&self, in_vram: bool) -> Cow<'_, Placement> {
        let near = |place: &Place| match place.region() {
            RegionKind::Gtt => Some(Place { fallback: false, ..place.clone().desired() }),
            RegionKind::Vram if in_vram && !self.allows(RegionKind::Gtt) => {
                Some(Place { fallback: false, ..place.clone().visible().desired() })
            }
            RegionKind::Vram | RegionKind::System => None,
        };
        let near: Vec<Place> = self.places().iter().filter_map(near).collect();
        match near.is_empty() {
            true => Cow::Borrowed(self),
            false => {
                Cow::Owned(Placement::in_order(near.into_iter().chain(self.places().to_vec()).collect()))
            }
        }
    }
}

/// Why a buffer may go to system memory instead; `None` for errors that system memory would not cure.
fn fallback_reason(refused: &Error) -> Option<&'static str> {
    match refused {
        Error::TooLarge { region: RegionKind::Vram, .. } => {
            Some("cpu map: larger than the visible part of VRAM; served from system memory")
        }
        Error::Exhausted { region: RegionKind::Vram, .. } => {
            Some("cpu map: the visible part of VRAM is exhausted; served from system memory")
        }
        Error::Fragmented { region: RegionKind::Vram, .. } => {
            Some("cpu map: the visible part of VRAM is fragmented; served from system memory")
        }
        Error::Revoked { .. } => Some("cpu map: VRAM was taken away; served from system memory"),
        Error::ApertureFull { .. } => {
            Some("cpu map: users of windows keep all of the BAR; served from system memory")
        }
        Error::Unsupported { .. } => {
            Some("cpu map: the driver shows the CPU no windows; served from system memory")
        }
        Error::Driver { .. } | Error::Io { .. } => {
            Some("cpu map: the driver refused to program a window; served from system memory")
        }
        Error::TooLarge { region: RegionKind::Gtt, .. }
        | Error::Exhausted { region: RegionKind::Gtt, .. } => {
            Some("cpu map: neither visible VRAM nor GTT has room; served from system memory")
        }
        _ => None,
    }
}
