//! A map: the addresses under which an importer reaches a range of a buffer, until it drops it or is told to let go.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use devpagemap_fence::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use devpagemap_fence::sync::mutant;
use devpagemap_fence::{Fence, FenceSet, Held, Lock, levels, lockdep};
use devpagemap_migrate::{Addr, Extent, SysAddr, VramAddr};

use super::accord::is_linked;
use super::attachment::Attached;
use super::map::Asked;
use super::staged::StagedCopy;
use crate::aperture::{BarAddr, BarExtent, Charge, Window};
use crate::bo::Buffer;
use crate::cpu::Hold;
use crate::events::PeerReason;
use crate::manager::Manager;
use crate::pagemap::{Decision, Route};

/// An address at which a peer reaches bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeerAddr {
    /// In the BAR of the device that owns the buffer: over the bus, without system memory.
    Bar(BarAddr),
    /// In the system memory of that device.
    System(SysAddr),
    /// In its VRAM, over a private link: without the bus.
    Vram(VramAddr),
}

/// A run of bytes as a peer addresses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerExtent {
    /// Where it begins.
    pub addr: PeerAddr,
    /// How long it is.
    pub len_bytes: u64,
}

impl From<BarExtent> for PeerExtent {
    fn from(extent: BarExtent) -> PeerExtent {
        PeerExtent { addr: PeerAddr::Bar(extent.addr), len_bytes: extent.len_bytes }
    }
}

impl From<&Extent> for PeerExtent {
    /// Of VRAM, where the BAR shows a prefix of it: an offset in one is the same in the other.
    fn from(extent: &Extent) -> PeerExtent {
        let addr = match extent.addr {
            Addr::Vram(VramAddr(start)) => PeerAddr::Bar(BarAddr(start)),
            Addr::System(start) => PeerAddr::System(start),
        };
        PeerExtent { addr, len_bytes: extent.len_bytes }
    }
}

impl PeerExtent {
    /// As one addresses it who has a private link to the device, or is that device.
    pub(super) fn over_link(extent: &Extent) -> PeerExtent {
        let addr = match extent.addr {
            Addr::Vram(start) => PeerAddr::Vram(start),
            Addr::System(start) => PeerAddr::System(start),
        };
        PeerExtent { addr, len_bytes: extent.len_bytes }
    }
}

/// Set when the map shows a place that the buffer has left, or is about to.
const STALE: u32 = 1 << 31;

/// What all holders of one map share: one range of one attachment, at one place.
pub(super) struct Mapped {
    /// Constant.
    pub(super) attached: Arc<Attached>,
    /// Whole pages of the buffer, in bytes. Constant.
    pub(super) range: Range<u64>,
    /// Constant.
    pub(super) extents: Arc<[PeerExtent]>,
    /// How the importer reaches the buffer's memory. Constant.
    pub(super) decision: Decision,
    /// Why it is not in the BAR; `None` when it is. Constant.
    pub(super) why_system: Option<PeerReason>,
    /// Whether it shows a copy. Constant.
    pub(super) is_staged: bool,
    /// Whether its importer has begun to write to a copy. Written under the reservation.
    pub(super) writes_copy: AtomicBool,
    /// What must have signalled before the first access. Constant.
    pub(super) after: FenceSet,
    /// How many [`PeerMap`]s there are, and [`STALE`]. See the head of [`share`](super).
    word: AtomicU32,
    /// What it holds of the BAR. Its own lock.
    holdings: Lock<levels::Aperture, Holdings>,
}

/// What whoever ends a map has to give back.
#[derive(Default)]
struct Holdings {
    /// Pages in the ledger, if it is in the BAR.
    charge: Option<Charge>,
    /// What shows them, in a BAR of windows.
    window: Option<Window>,
    /// What it shows instead of the buffer's own bytes.
    copy: Option<Arc<StagedCopy>>,
    /// What keeps the buffer where it is, for an importer that is not told.
    hold: Option<Hold>,
    /// Until when holders that are gone still use them.
    until: FenceSet,
}

/// What a map is made of.
pub(super) struct NewMap {
    pub(super) attached: Arc<Attached>,
    pub(super) range: Range<u64>,
    pub(super) extents: Arc<[PeerExtent]>,
    pub(super) decision: Decision,
    pub(super) why_system: Option<PeerReason>,
    pub(super) after: FenceSet,
    pub(super) charge: Option<Charge>,
    pub(super) window: Option<Window>,
    pub(super) copy: Option<Arc<StagedCopy>>,
    pub(super) hold: Option<Hold>,
}

impl NewMap {
    /// One that shows nothing yet.
    pub(super) fn of(asked: &Asked<'_>) -> NewMap {
        NewMap {
            attached: asked.attached.clone(),
            range: asked.range.clone(),
            extents: Arc::default(),
            decision: asked.decision,
            why_system: None,
            after: FenceSet::new(),
            charge: None,
            window: None,
            copy: None,
            hold: None,
        }
    }
}

impl Mapped {
    /// A map with one holder, which the caller makes.
    pub(super) fn new(new: NewMap) -> Arc<Mapped> {
        let NewMap { attached, range, extents, decision, why_system, after, charge, window, copy, hold } =
            new;
        let is_staged = copy.is_some();
        let holdings = Holdings { charge, window, copy, hold, until: FenceSet::new() };
        Arc::new(Mapped {
            attached,
            range,
            extents,
            decision,
            why_system,
            is_staged,
            writes_copy: AtomicBool::new(false),
            after,
            word: AtomicU32::new(1),
            holdings: Lock::new("peer map", holdings),
        })
    }

    /// One holder more, unless the map has come to its end. Only for who holds the reservation.
    pub(super) fn share(&self) -> bool {
        let mut word = self.word.load(Ordering::Acquire);
        while word != 0 && word & STALE == 0 {
            match self.word.compare_exchange_weak(word, word + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(found) => word = found,
            }
        }
        false
    }

    /// Whether somebody holds it and it shows where the buffer is.
    pub(super) fn is_live(&self) -> bool {
        let word = self.word.load(Ordering::Acquire);
        word != 0 && word & STALE == 0
    }

    /// Marks it stale. True when that ended it: then what it holds is the caller's to give back. Only for who holds the
    /// reservation.
    pub(super) fn make_stale(&self) -> bool {
        let before = self.word.fetch_or(STALE, Ordering::AcqRel);
        before != 0 && before & STALE == 0
    }

    /// One holder less, who uses the bytes until `fences` have signalled. True when that ended the map: then what it holds
    /// is the caller's to give back.
    fn leave(&self, fences: &FenceSet) -> bool {
        let is_last = || self.word.fetch_sub(1, Ordering::AcqRel) == 1;
        let early = mutant!("a_peer_goes_before_it_says_until_when").then(is_last);
        // Before the holder is gone: who finds none looks here next.
        if !fences.is_signaled() {
            self.holdings.lock(&mut Held::in_destructor()).until.merge(fences);
            self.attached.departs(fences);
        }
        early.unwrap_or_else(is_last)
    }

    /// What whoever ended the map has to give back to the ledger, and until when it is in use: until `told` has signalled, and
    /// what holders have said. The window goes first, so that who is admitted next finds its space.
    pub(super) fn take_holdings(&self, told: Option<&Fence>) -> (Option<Charge>, FenceSet) {
        let Holdings { charge, window, copy, hold, mut until } =
            std::mem::take(&mut *self.holdings.lock(&mut Held::in_destructor()));
        until.extend(told.cloned());
        window.into_iter().for_each(|window| window.release_after(&until));
        copy.iter().for_each(|copy| copy.is_used_until(&until));
        drop((copy, hold));
        (charge, until)
    }

    /// The copy that it shows, while it is live.
    pub(super) fn copy(&self) -> Option<Arc<StagedCopy>> {
        self.holdings.lock(&mut Held::in_destructor()).copy.clone()
    }

    /// Whether it keeps the buffer where it is.
    pub(super) fn has_hold(&self) -> bool {
        self.holdings.lock(&mut Held::in_destructor()).hold.is_some()
    }

    /// The way that accesses take.
    pub(super) fn route(&self) -> Route {
        match (self.is_staged, self.why_system) {
            (true, _) => Route::Staging,
            (false, Some(_)) => Route::System,
            (false, None) => self.decision.route,
        }
    }

    /// Whether it is where it is because of who shares the buffer, and not for want of room.
    pub(super) fn is_in_accord(&self) -> bool {
        !matches!(self.why_system, Some(PeerReason::Over(_) | PeerReason::NoVisibleRoom))
    }

    /// Whether it shows the buffer's own bytes in VRAM.
    pub(super) fn is_direct(&self) -> bool {
        self.why_system.is_none()
    }

    /// Whether it shows them through the BAR.
    pub(super) fn is_in_bar(&self) -> bool {
        self.is_direct() && !is_linked(&self.decision)
    }

    /// Whether it shows the buffer's own bytes in system memory.
    pub(super) fn is_in_system(&self) -> bool {
        self.why_system.is_some() && !self.is_staged
    }
}

/// A range of a buffer, mapped for an importer. Dropping it unmaps: the importer uses its addresses no more. That of an importer that can be
/// told never keeps the buffer where it is; the importer is [told](crate::Importer::invalidate) before it moves, and maps again if it
/// wants to.
///
/// Uses are said by [`begin`](PeerMap::begin) and [`end`](PeerMap::end), which is what keeps a staged copy in step.
pub struct PeerMap {
    /// Constant.
    pub(super) mapped: Arc<Mapped>,
    /// Constant.
    pub(super) buffer: Buffer,
    /// What its first access must queue behind. Constant.
    after: FenceSet,
    /// Until when its holder uses the bytes, once it is dropped.
    until: FenceSet,
}

impl PeerMap {
    pub(super) fn new(mapped: Arc<Mapped>, buffer: Buffer, after: FenceSet) -> PeerMap {
        PeerMap { mapped, buffer, after, until: FenceSet::new() }
    }

    /// The mapped buffer.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Which bytes of the buffer it shows: what was asked for, in whole pages.
    pub fn range(&self) -> Range<u64> {
        self.mapped.range.clone()
    }

    /// Where these bytes are, in their order. Good until the importer is told otherwise.
    pub fn extents(&self) -> &[PeerExtent] {
        &self.mapped.extents
    }

    /// What the importer must queue its accesses behind: the copies that bring the bytes there, and former users of this part of the
    /// BAR. The work of others on the buffer is in [`Buffer::fences`]; [`begin`](PeerMap::begin) has both.
    pub fn after(&self) -> &FenceSet {
        &self.after
    }

    /// Which way accesses go.
    pub fn route(&self) -> Route {
        self.mapped.route()
    }

    /// How the importer reaches the memory that the buffer's device has, as it was known when this was mapped. Whether that is used is
    /// another question: see [`route`](PeerMap::route) and [`why_system`](PeerMap::why_system).
    pub fn decision(&self) -> Decision {
        self.mapped.decision
    }

    /// Why accesses go through system memory; `None` when they do not.
    pub fn why_system(&self) -> Option<PeerReason> {
        self.mapped.why_system
    }

    /// Whether it still shows where the buffer is. Somebody may move it the moment after: what counts is that the importer is told.
    pub fn is_current(&self) -> bool {
        self.mapped.is_live()
    }

    /// Unmaps, while work that is queued still uses the addresses until `fences` have signalled. The bytes stay there, and the pages
    /// of the BAR count, until then.
    pub fn unmap_after(mut self, fences: impl Into<FenceSet>) {
        self.until = fences.into();
    }
}

impl Drop for PeerMap {
    fn drop(&mut self) {
        lockdep::might_lock::<levels::Aperture>("BAR ledger");
        if self.mapped.leave(&self.until) {
            let (charge, until) = self.mapped.take_holdings(None);
            charge.into_iter().for_each(|charge| self.buffer.0.manager.give_up_bar(charge, until.clone()));
        }
    }
}

impl fmt::Debug for PeerMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerMap")
            .field("buffer", &self.buffer.id())
            .field("importer", &self.mapped.attached.joined.name)
            .field("range", &self.mapped.range)
            .field("route", &self.route())
            .field("current", &self.is_current())
            .finish()
    }
}

impl Manager {
    /// Gives pages of the BAR back that a map had, which are in use `until` then. For destructors too.
    pub(super) fn give_up_bar(&self, charge: Charge, until: FenceSet) {
        self.release_peer(charge, until, &mut Held::in_destructor());
        self.promoter.poke();
    }
}
