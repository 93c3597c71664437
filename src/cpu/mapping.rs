//! A CPU mapping and its protocol: an address that stays while the bytes move.
//!
//! ```text
//!   a mover, with the reservation         whoever serves touches (one thread a device)
//!
//!   zap ───────► Away ◄───────────────────── touch: noted as wanted, asked again when there is news
//!   queue the copy
//!   settle ────► There { extents, arrival } ◄ touch: arrived?  point a group of extents, wake the toucher
//!           └──► OutOfReach                            not yet?  noted; the arrival's callback posts the mapping
//!                      └──────────────────── touch: noted; a transaction brings the buffer where it is reached
//! ```
//!
//! A place may be one that only windows in the BAR show. Then a touch is noted too, and a transaction points a group at a window
//! (`windowed.rs`).
//!
//! Why no write is lost: the mover zaps before it collects what the copy must wait for, so every write that went to the old bytes
//! is older than the copy. Why no old byte is seen: nothing is pointed before the arrival has signalled, and what is pointed is the
//! target under the mapping's lock, which a newer zap also needs: a stale target cannot be pointed after it.
//!
//! The lock is of the aperture level: movers take it inside reservations, the callback of an arrival and the server of touches with
//! nothing held, so a touch of bytes that the CPU reaches takes no reservation. The system calls that change the address space are
//! made under it. Touches take no lock, and a toucher may hold any.

use std::ops::Range;
use std::sync::{Arc, Weak};

use devpagemap_fence::levels::{self, Below, Level};
use devpagemap_fence::sync::mutant;
use devpagemap_fence::{FenceSet, Held, Lock};
use devpagemap_migrate::{Extent, ExtentList, MemoryMap};

use super::AfterLoss;
use super::address_space::AddressSpace;
use super::faults::Faults;
use super::windowed::Piece;
use crate::backend::DeviceMemory;
use crate::bo::{CpuWish, WeakBuffer};
use crate::error::Result;
use crate::region::push_run;

/// How many extents are pointed at together: a touch of a scattered buffer makes so many mappings of the kernel's and no more.
const EXTENTS_PER_GROUP: usize = 16;

/// A granule of touches.
const PAGE_BYTES: u64 = devpagemap_allocator::PAGE_BYTES;

/// One range of one buffer at one address.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// For those who post it. Constant.
    this: Weak<Mapping>,
    /// Whose bytes it shows; it does not keep it alive. Constant.
    pub(crate) buffer: WeakBuffer,
    /// Which of its bytes, in whole pages. Constant.
    pub(crate) range: Range<u64>,
    /// What has to be true of a place for this mapping to show it. Constant.
    pub(crate) wish: CpuWish,
    /// Constant.
    after_loss: AfterLoss,
    /// Where the bytes can be mapped from. Constant.
    memory: DeviceMemory,
    /// Who serves touches. Constant.
    faults: Arc<Faults>,
    /// What it points at and wants.
    target: Lock<levels::Aperture, Target>,
    /// The addresses. Changed under the lock of `target`.
    pub(crate) space: AddressSpace,
}

/// Protected by the mapping's lock.
#[derive(Debug)]
struct Target {
    place: Place,
    /// Pages that somebody has touched and sleeps for, by offset in the mapping.
    wanted: Vec<u64>,
    /// Pages that were refused: they show no byte until the mapping has a new place.
    refused: Vec<u64>,
}

/// Where the bytes of a mapping are.
#[derive(Debug)]
enum Place {
    /// On their way to a place that nobody has told yet.
    Away,
    /// Where no address of the CPU leads, or nowhere, as before a buffer's first use.
    OutOfReach,
    /// Where they can be mapped, once they have arrived.
    There(There),
    /// Gone for good.
    Lost,
}

#[derive(Debug)]
struct There {
    extents: Vec<Extent>,
    /// Whether only windows show these bytes.
    windowed: bool,
    /// The offset in the mapping at which each group of extents starts.
    starts: Vec<u64>,
    /// Which groups are pointed at.
    pointed: Vec<bool>,
    /// What brings the bytes.
    arrival: FenceSet,
    /// Whether a callback on `arrival` will post the mapping.
    awaited: bool,
}

/// What came of a touch.
#[derive(Debug)]
pub(crate) enum Touched {
    /// This range can be touched now.
    Served(Range<u64>),
    /// Whoever brings the bytes will post the mapping.
    Parked,
    /// To be asked again when this has signalled.
    Arriving(FenceSet),
    /// A transaction has to bring the buffer into reach, or show these bytes in the BAR.
    OutOfReach,
}

/// Where bytes are, and how the CPU gets at them there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// They can be mapped where they are.
    Direct,
    /// Windows show them, in groups that end where the buffer's offset is a multiple of this.
    Windows { piece_bytes: u64 },
}

impl There {
    /// `from_bytes`: where in the buffer the mapping begins.
    fn new(extents: &ExtentList, arrival: FenceSet, way: Way, from_bytes: u64) -> There {
        let starts = match way {
            Way::Direct => starts_of_groups(extents),
            Way::Windows { piece_bytes } => starts_of_pieces(extents, from_bytes, piece_bytes),
        };
        let (pointed, extents) = (vec![false; starts.len()], extents.as_slice().to_vec());
        There { extents, windowed: way != Way::Direct, starts, pointed, arrival, awaited: false }
    }

    fn group_of(&self, offset: u64) -> usize {
        self.starts.partition_point(|start| *start <= offset) - 1
    }

    fn range(&self, index: usize) -> Range<u64> {
        let end = self.starts.get(index + 1).copied().unwrap_or_else(|| len_bytes(&self.extents));
        self.starts[index]..end
    }

    /// The extents of a group that can be mapped where it is.
    fn group(&self, index: usize) -> &[Extent] {
        debug_assert!(!self.windowed);
        let first = index * EXTENTS_PER_GROUP;
        &self.extents[first..self.extents.len().min(first + EXTENTS_PER_GROUP)]
    }

    /// The groups that have a byte of `range`.
    fn groups_in(&self, range: &Range<u64>) -> Range<usize> {
        let first = self.group_of(range.start);
        first..self.starts.partition_point(|start| *start < range.end)
    }

    /// The runs of pointed groups.
    fn pointed_runs(&self) -> Vec<Range<u64>> {
        let mut runs = Vec::new();
        let pointed = (0..self.starts.len()).filter(|index| self.pointed[*index]);
        pointed.for_each(|index| push_run(&mut runs, self.range(index)));
        runs
    }
}

impl Mapping {
    pub(crate) fn new(
        buffer: WeakBuffer,
        range: Range<u64>,
        wish: CpuWish,
        after_loss: AfterLoss,
        memory: DeviceMemory,
        faults: Arc<Faults>,
        space: AddressSpace,
    ) -> Arc<Mapping> {
        let target = Target { place: Place::OutOfReach, wanted: Vec::new(), refused: Vec::new() };
        let target = Lock::new("CPU mapping", target);
        let mapping = Arc::new_cyclic(|this| {
            let this = this.clone();
            Mapping { this, buffer, range, wish, after_loss, memory, faults, target, space }
        });
        mapping.faults.add(&mapping);
        mapping
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Has it served again.
    pub(super) fn post(&self) {
        self.faults.post(self.this.clone());
    }

    /// Which bytes of the buffer are at `range` of the mapping.
    pub(crate) fn in_buffer(&self, range: &Range<u64>) -> Range<u64> {
        self.range.start + range.start..self.range.start + range.end
    }

    /// Whether all of these bytes are where the CPU sees them and have files that can be mapped (in models: are seen).
    pub(crate) fn can_show(&self, extents: &ExtentList) -> bool {
        extents.iter().all(|extent| match cfg!(any(loom, shuttle)) {
            true => self.memory.resolve(extent.addr, extent.len_bytes).is_some(),
            false => self.memory.file(extent.addr, extent.len_bytes).is_some(),
        })
    }

    /// Takes the bytes away: from its return on every touch sleeps. Before a move is queued, under the buffer's reservation.
    pub(crate) fn zap<H: Level>(&self, held: &mut Held<'_, H>)
    where
        levels::Aperture: Below<H>,
    {
        let mut target = self.target.lock(held);
        let runs = match &target.place {
            Place::Lost => return,
            Place::There(there) => there.pointed_runs(),
            Place::Away | Place::OutOfReach => Vec::new(),
        };
        target.place = Place::Away;
        self.zap_runs(&mut target, runs);
    }

    /// Takes these ranges away. Where that fails the mapping shows nothing from then on, and nobody wants anything of it.
    fn zap_runs(&self, target: &mut Target, runs: Vec<Range<u64>>) {
        for run in runs {
            if let Err(error) = self.space.zap(run) {
                tracing::error!(%error, "a CPU mapping cannot be taken away; it shows nothing from now on");
                return self.give_up(target, AfterLoss::Signal);
            }
            self.faults.counters.zapped();
        }
    }

    /// Tells where the bytes are now, or will be; `None` when the CPU has no address for that. Under the buffer's reservation. Says
    /// whether the mapping has to be posted, as somebody sleeps for it.
    #[must_use = "whoever sleeps for the mapping sleeps until it is posted"]
    pub(crate) fn settle<H: Level>(
        &self,
        place: Option<(ExtentList, FenceSet, Way)>,
        held: &mut Held<'_, H>,
    ) -> bool
    where
        levels::Aperture: Below<H>,
    {
        let mut target = self.target.lock(held);
        match (&target.place, place) {
            (Place::Lost, _) => return false,
            // Told already, and perhaps pointed at.
            (Place::There(there), Some((extents, ..))) if there.extents == extents.as_slice() => {
                return false;
            }
            (Place::There(_), _) => debug_assert!(false, "a place is left by a zap"),
            (_, None) => target.place = Place::OutOfReach,
            (_, Some((extents, arrival, way))) => {
                debug_assert_eq!(extents.len_bytes(), self.len_bytes());
                target.place = Place::There(There::new(&extents, arrival, way, self.range.start));
                let Target { wanted, refused, .. } = &mut *target;
                wanted.append(refused);
            }
        }
        !target.wanted.is_empty()
    }

    /// Serves a touch of the page at `offset` of the mapping, if that is possible now.
    pub(crate) fn touch<H: Level>(&self, offset: u64, held: &mut Held<'_, H>) -> Touched
    where
        levels::Aperture: Below<H>,
    {
        let mut target = self.target.lock(held);
        if mutant!("stale_target_is_pointed") {
            let stale = match &target.place {
                Place::There(there) if there.arrival.is_signaled() => Some(there.group(0).to_vec()),
                _ => None,
            };
            drop(target);
            if let Some(extents) = stale {
                self.space.point(0, &extents, &self.memory).expect("a model points at everything");
                return Touched::Served(0..self.len_bytes());
            }
            target = self.target.lock(held);
        }
        target.want(offset);
        let there = match &mut target.place {
            Place::Away => return Touched::Parked,
            Place::OutOfReach => return Touched::OutOfReach,
            Place::Lost => return Touched::Served(0..self.len_bytes()),
            Place::There(there) => there,
        };
        if !there.arrival.is_signaled() && !mutant!("bytes_are_shown_before_they_arrive") {
            return match std::mem::replace(&mut there.awaited, true) {
                true => Touched::Parked,
                false => Touched::Arriving(there.arrival.clone()),
            };
        }
        if there.arrival.first_error().is_some() {
            self.give_up(&mut target, self.after_loss);
            return Touched::Served(0..self.len_bytes());
        }
        let index = there.group_of(offset);
        if there.windowed && !there.pointed[index] {
            return Touched::OutOfReach;
        }
        Touched::Served(self.point_group(&mut target, offset))
    }

    /// Points at the group that holds `offset`, whose bytes have arrived.
    fn point_group(&self, target: &mut Target, offset: u64) -> Range<u64> {
        self.point_once(target, offset, |there, index| {
            self.space.point(there.starts[index], there.group(index), &self.memory)
        })
    }

    /// Points at the group that holds `offset`, unless somebody has; nobody who sleeps for it needs to any more.
    fn point_once(
        &self,
        target: &mut Target,
        offset: u64,
        point: impl FnOnce(&There, usize) -> Result<()>,
    ) -> Range<u64> {
        let Place::There(there) = &mut target.place else { unreachable!("the caller found it there") };
        let index = there.group_of(offset);
        let range = there.range(index);
        if !std::mem::replace(&mut there.pointed[index], true) {
            match point(there, index) {
                Ok(()) => self.faults.counters.pointed(),
                Err(error) => {
                    tracing::error!(%error, "a part of a CPU mapping cannot be shown; touching it raises SIGBUS");
                    self.space.show_loss(range.clone(), AfterLoss::Signal);
                }
            }
        }
        target.wanted.retain(|wanted| !range.contains(wanted));
        range
    }

    /// The groups that no window shows: those that somebody sleeps for, or all. None before the bytes have arrived.
    pub(crate) fn hidden_groups<H: Level>(&self, all: bool, held: &mut Held<'_, H>) -> Vec<Range<u64>>
    where
        levels::Aperture: Below<H>,
    {
        let target = self.target.lock(held);
        let there = match &target.place {
            Place::There(there) if there.windowed && there.arrival.is_signaled() => there,
            _ => return Vec::new(),
        };
        let is_wanted = |range: &Range<u64>| all || target.wanted.iter().any(|page| range.contains(page));
        let hidden = (0..there.starts.len()).filter(|index| !there.pointed[*index]);
        hidden.map(|index| there.range(index)).filter(is_wanted).collect()
    }

    /// Points the group `range` at what the BAR shows of it. Under the buffer's reservation, with a loan of the window, which the mapping
    /// follows already.
    pub(crate) fn point_at_window<H: Level>(
        &self,
        range: &Range<u64>,
        pieces: &[Piece<'_>],
        held: &mut Held<'_, H>,
    ) where
        levels::Aperture: Below<H>,
    {
        let mut target = self.target.lock(held);
        let Place::There(there) = &target.place else { return };
        let group = there.range(there.group_of(range.start));
        debug_assert!(there.windowed && group == *range, "a buffer moves under its reservation");
        self.point_once(&mut target, range.start, |_, _| self.space.point_at_bar(range.start, pieces));
    }

    /// A window with these bytes of the buffer is taken away: takes its groups away. Says whether the mapping has to be posted.
    pub(super) fn hide<H: Level>(&self, bytes: &Range<u64>, held: &mut Held<'_, H>) -> bool
    where
        levels::Aperture: Below<H>,
    {
        let mut target = self.target.lock(held);
        let (start, end) = (bytes.start.max(self.range.start), bytes.end.min(self.range.end));
        let there = match &mut target.place {
            Place::There(there) if there.windowed && start < end => there,
            _ => return false,
        };
        let mut pointed = Vec::new();
        for index in there.groups_in(&(start - self.range.start..end - self.range.start)) {
            if std::mem::take(&mut there.pointed[index]) {
                pointed.push(there.range(index));
            }
        }
        self.zap_runs(&mut target, pointed);
        !target.wanted.is_empty()
    }

    /// Points at everything that needs no window, if the bytes have arrived; what is away or lost stays so.
    pub(crate) fn point_all<H: Level>(&self, held: &mut Held<'_, H>)
    where
        levels::Aperture: Below<H>,
    {
        let mut target = self.target.lock(held);
        let starts = match &target.place {
            Place::There(there) if there.arrival.is_signaled() && !there.windowed => there.starts.clone(),
            _ => return,
        };
        for start in starts {
            self.point_group(&mut target, start);
        }
    }

    /// What somebody sleeps for.
    pub(crate) fn take_wanted<H: Level>(&self, held: &mut Held<'_, H>) -> Vec<u64>
    where
        levels::Aperture: Below<H>,
    {
        let mut target = self.target.lock(held);
        if let Place::There(there) = &mut target.place {
            there.awaited = false;
        }
        std::mem::take(&mut target.wanted)
    }

    /// The bytes cannot be brought into reach: who sleeps for them gets SIGBUS. A new place gives later touches another chance.
    pub(crate) fn refuse_wanted<H: Level>(&self, held: &mut Held<'_, H>) -> Vec<Range<u64>>
    where
        levels::Aperture: Below<H>,
    {
        let mut target = self.target.lock(held);
        match &target.place {
            Place::OutOfReach => {}
            Place::There(there) if there.windowed => {}
            _ => return Vec::new(),
        }
        let wanted = std::mem::take(&mut target.wanted);
        let pages: Vec<_> = wanted.iter().map(|page| *page..page + PAGE_BYTES).collect();
        for page in &pages {
            self.space.show_loss(page.clone(), AfterLoss::Signal);
        }
        target.refused.extend(wanted);
        pages
    }

    /// The device is lost, and the bytes with it.
    pub(crate) fn lose<H: Level>(&self, held: &mut Held<'_, H>)
    where
        levels::Aperture: Below<H>,
    {
        self.give_up(&mut self.target.lock(held), self.after_loss);
        self.space.wake(0..self.len_bytes());
    }

    fn give_up(&self, target: &mut Target, what: AfterLoss) {
        *target = Target { place: Place::Lost, wanted: Vec::new(), refused: Vec::new() };
        self.space.show_loss(0..self.len_bytes(), what);
    }
}

impl Target {
    fn want(&mut self, offset: u64) {
        let page = offset - offset % PAGE_BYTES;
        if !self.wanted.contains(&page) {
            self.wanted.push(page);
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // The address is somebody else's as soon as `space` has given it back.
        self.faults.remove(self.space.start());
    }
}

fn starts_of_groups(extents: &ExtentList) -> Vec<u64> {
    let mut at = 0;
    let mut starts = Vec::with_capacity(extents.as_slice().len().div_ceil(EXTENTS_PER_GROUP));
    for group in extents.as_slice().chunks(EXTENTS_PER_GROUP) {
        starts.push(at);
        at += len_bytes(group);
    }
    starts
}

/// A piece ends at the next multiple of `piece_bytes` in the buffer, so that mappings of one buffer share windows; and after so many
/// extents, as any group does.
fn starts_of_pieces(extents: &ExtentList, from_bytes: u64, piece_bytes: u64) -> Vec<u64> {
    let (mut starts, mut at, mut extents_in_piece) = (vec![0], 0, 0);
    for extent in extents.iter() {
        if extents_in_piece == EXTENTS_PER_GROUP && starts.last() != Some(&at) {
            starts.push(at);
            extents_in_piece = 0;
        }
        extents_in_piece += 1;
        let end = at + extent.len_bytes;
        let mut next = (from_bytes + at) / piece_bytes * piece_bytes + piece_bytes - from_bytes;
        while next < end {
            starts.push(next);
            extents_in_piece = 1;
            next += piece_bytes;
        }
        if next == end && end < extents.len_bytes() {
            starts.push(end);
            extents_in_piece = 0;
        }
        at = end;
    }
    starts
}

fn len_bytes(extents: &[Extent]) -> u64 {
    extents.iter().map(|extent| extent.len_bytes).sum()
}
