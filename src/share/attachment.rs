//! Attachments: one importer's interest in one buffer, and the list of them that the buffer keeps.
//!
//! The list is part of the buffer's state, under its reservation. Handles come and go without it: what they leave behind is
//! found and forgotten by whoever looks at the list next.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Weak};

use devpagemap_fence::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use devpagemap_fence::{Fence, FenceSet, Held, Lock, levels, lockdep};

use super::arbiter::Arbiter;
use super::importer::{Joined, Peer};
use super::peer_map::Mapped;
use super::pinned::Pin;
use super::scatter::ScatterLists;
use super::staged::StagedCopy;
use crate::aperture::Admitted;
use crate::bo::Buffer;
use crate::error::{Error, Result};
use crate::submit::Access;

/// Why nobody maps with an attachment any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Revoked {
    LastResort = 1,
    Overdue = 2,
    Unreachable = 3,
    Unplugged = 4,
}

impl Revoked {
    const ALL: [Revoked; 4] =
        [Revoked::LastResort, Revoked::Overdue, Revoked::Unreachable, Revoked::Unplugged];

    pub(super) fn text(self) -> &'static str {
        match self {
            Revoked::LastResort => "there was no other way to make room",
            Revoked::Overdue => "its transfer took longer than it had said",
            Revoked::Unreachable => "it does not reach the BAR any more, and takes nothing else",
            Revoked::Unplugged => "the device was unplugged, and it cannot map again",
        }
    }
}

/// What all who have to do with one attachment share.
pub(crate) struct Attached {
    /// Unique on its device. Constant.
    pub(super) id: u64,
    /// Constant.
    pub(super) joined: Arc<Joined>,
    /// Whether the [`Attachment`] is gone. Atomic.
    detached: AtomicBool,
    /// Why it was taken away from its importer, as [`Revoked`]; 0 if it was not. Set once, under the reservation.
    revoked: AtomicUsize,
    /// Its own lock.
    leavings: Lock<levels::Aperture, Leavings>,
}

/// What there is of an attachment besides maps.
#[derive(Default)]
struct Leavings {
    /// Until when holders of maps that are gone still use the buffer's bytes.
    departed: FenceSet,
    /// Pages of the BAR that are kept since the buffer was promoted, until the importer maps it again.
    kept: Vec<Admitted>,
    /// What keeps the buffer where it is, for an importer that is not told.
    pin: Option<Pin>,
}

impl Attached {
    /// A holder goes who uses the bytes until `fences` have signalled.
    pub(super) fn departs(&self, fences: &FenceSet) {
        let mut held = Held::in_destructor();
        let mut leavings = self.leavings.lock(&mut held);
        leavings.departed.prune();
        leavings.departed.merge(fences);
    }

    fn departed(&self) -> FenceSet {
        let mut held = Held::in_destructor();
        let mut leavings = self.leavings.lock(&mut held);
        leavings.departed.prune();
        leavings.departed.clone()
    }

    /// Keeps pages for the importer's next map. Back they come when there will be none.
    pub(super) fn keep(&self, admitted: Admitted) -> Option<Admitted> {
        let mut held = Held::in_destructor();
        let mut leavings = self.leavings.lock(&mut held);
        if self.is_detached() {
            return Some(admitted);
        }
        leavings.kept.push(admitted);
        None
    }

    /// What was kept; the caller gives it back.
    pub(super) fn take_kept(&self) -> Vec<Admitted> {
        let mut held = Held::in_destructor();
        std::mem::take(&mut self.leavings.lock(&mut held).kept)
    }

    fn has_kept(&self) -> bool {
        !self.leavings.lock(&mut Held::in_destructor()).kept.is_empty()
    }

    /// Whether nobody can map with it any more.
    pub(super) fn is_detached(&self) -> bool {
        self.detached.load(Ordering::Acquire)
    }

    fn revoked(&self) -> Option<Revoked> {
        let why = self.revoked.load(Ordering::Acquire);
        Revoked::ALL.into_iter().find(|revoked| *revoked as usize == why)
    }

    /// # Errors
    /// [`Error::Revoked`].
    pub(super) fn check_not_revoked(&self) -> Result<()> {
        match self.revoked() {
            Some(why) => Err(Error::Revoked { what: self.joined.name.clone(), why: why.text() }),
            None => Ok(()),
        }
    }

    /// Nobody maps with it from now on. For who holds the reservation, and ends its maps.
    pub(super) fn revoke(&self, why: Revoked) {
        self.revoked.store(why as usize, Ordering::Release);
    }

    /// Keeps the buffer where it is, until it goes.
    pub(super) fn pin(&self, pin: Pin) {
        self.leavings.lock(&mut Held::in_destructor()).pin = Some(pin);
    }

    /// What keeps the buffer where it is; the caller drops it.
    pub(super) fn unpin(&self) -> Option<Pin> {
        self.leavings.lock(&mut Held::in_destructor()).pin.take()
    }

    pub(super) fn has_pin(&self) -> bool {
        self.leavings.lock(&mut Held::in_destructor()).pin.is_some()
    }

    fn has_left(&self) -> bool {
        self.is_detached() && self.departed().is_empty()
    }
}

/// One importer's interest in one buffer. It maps nothing by itself; maps outlive it.
pub struct Attachment {
    pub(super) attached: Arc<Attached>,
    pub(super) buffer: Buffer,
}

impl Buffer {
    /// Attaches an importer that has joined this buffer's device. One that holds what it maps for as long as it is attached, and cannot be
    /// told to let go, gets the buffer in system memory and keeps it there, or in the BAR if it [requires](crate::pagemap::Policy::Required) that.
    /// For all others nothing moves.
    ///
    /// # Errors
    /// [`Error::ForeignPeer`] for one that has joined another device. For one that keeps the buffer where it is, as when it is
    /// [mapped](crate::PeerMapRequest::map).
    pub fn attach(&self, peer: &Peer) -> Result<Attachment> {
        let manager = &self.0.manager;
        if !Arc::ptr_eq(manager, &peer.manager) {
            return Err(Error::ForeignPeer { importer: peer.joined.name.clone() });
        }
        let attachment = Attachment::new(self, &peer.joined);
        self.transact(|transaction, slot| transaction.enter_peer(slot, &attachment.attached))?;
        Ok(attachment)
    }
}

impl Attachment {
    /// Of an importer to a buffer that does not know of it yet: see [`Transaction::enter_peer`](crate::bo::Transaction::enter_peer).
    pub(super) fn new(buffer: &Buffer, joined: &Arc<Joined>) -> Attachment {
        let attached = Attached {
            id: buffer.0.manager.next_peer_id(),
            joined: joined.clone(),
            detached: AtomicBool::new(false),
            revoked: AtomicUsize::new(0),
            leavings: Lock::new("attachment", Leavings::default()),
        };
        Attachment { attached: Arc::new(attached), buffer: buffer.clone() }
    }

    /// Unique on its device; never reused.
    pub fn id(&self) -> u64 {
        self.attached.id
    }

    /// The buffer.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Adds work of the importer's to the buffer's fences: jobs and moves of the buffer queue behind it, as behind any other work.
    ///
    /// # Errors
    /// [`Error::FenceSlots`] when there is no memory for one more fence, [`Error::ReadOnly`] for a write to a buffer that was imported for
    /// reading.
    pub fn add_fence(&self, fence: &Fence, access: Access) -> Result<()> {
        self.buffer.0.check_permits(access)?;
        let mut held = Held::enter();
        let mut state = self.buffer.0.reservation.lock(&mut held);
        state.reserve_fences(1)?;
        let announced = state.announce(access)?;
        state.add_fence(fence.clone(), access.usage());
        if let Some(announced) = announced {
            announced.arm(&FenceSet::from(fence.clone()));
        }
        if access == Access::Write {
            state.peers.is_written();
        }
        Ok(())
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        lockdep::might_lock::<levels::Aperture>("BAR ledger");
        // First: who wants to keep pages for it from now on is told so.
        self.attached.detached.store(true, Ordering::Release);
        for Admitted { charge, after } in self.attached.take_kept() {
            self.buffer.0.manager.give_up_bar(charge, after);
        }
        drop(self.attached.unpin());
    }
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment")
            .field("id", &self.attached.id)
            .field("importer", &self.attached.joined.name)
            .field("buffer", &self.buffer.id())
            .finish()
    }
}

/// Maps by the range that they show.
type Maps = BTreeMap<(u64, u64), Arc<Mapped>>;

/// An attachment that has maps, or had.
struct Entry {
    attached: Arc<Attached>,
    maps: Maps,
    /// Dead maps are looked for when there are so many.
    sweep_at: usize,
}

/// Below this many maps of one attachment none is looked at for being dead.
const FEW: usize = 16;

/// The attachments of one buffer. All under its reservation; a buffer that was never mapped by a peer has none.
#[derive(Default)]
pub(crate) struct Peers {
    entries: Vec<Entry>,
    /// Whether it is in system memory only because the BAR had no room: it waits for its [promotion](super::promote).
    pub(crate) away: bool,
    /// What all attachments agree on.
    pub(super) arbiter: Arbiter,
    /// Lists of addresses that were made for maps.
    pub(super) lists: ScatterLists,
    /// For those who do not reach the buffer's own bytes. Whoever shows it keeps it.
    pub(super) copy: Weak<StagedCopy>,
}

/// An attachment whose importer has to be told, and its maps that have just been marked.
pub(super) struct Ended {
    pub(super) attached: Arc<Attached>,
    pub(super) maps: Vec<Arc<Mapped>>,
    /// Pages that it has without a map.
    pub(super) kept: Vec<Admitted>,
}

impl Peers {
    /// Whether nobody was ever attached.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many fences one move of the buffer may get from importers: one of each, and that of what it has written to a copy.
    pub(crate) fn fence_slots(&self) -> usize {
        let writers = self.live().filter(|mapped| mapped.is_staged).count();
        self.entries.len() + writers
    }

    /// Whom it concerns what is decided for the buffer: who is attached, or has left maps behind.
    pub(super) fn parties(&self) -> impl Iterator<Item = &Arc<Attached>> {
        let is_party = |entry: &&Entry| {
            let is_here = !entry.attached.is_detached() || entry.maps.values().any(|map| map.is_live());
            is_here && entry.attached.revoked().is_none()
        };
        self.entries.iter().filter(is_party).map(|entry| &entry.attached)
    }

    /// How many maps of an attachment keep the buffer where it is.
    pub(super) fn holds(&self, attachment: u64) -> usize {
        self.live().filter(|mapped| mapped.attached.id == attachment && mapped.has_hold()).count()
    }

    /// One more is attached.
    pub(super) fn enter(&mut self, attached: &Arc<Attached>) {
        self.entry(attached);
    }

    /// The buffer's bytes are, or will be, others than they were.
    pub(crate) fn is_written(&self) {
        if let Some(copy) = self.copy.upgrade() {
            copy.is_stale();
        }
    }

    /// One holder more of a live map of exactly this range.
    pub(super) fn share(&self, attached: &Attached, range: &Range<u64>) -> Option<Arc<Mapped>> {
        let entry = self.entries.iter().find(|entry| entry.attached.id == attached.id)?;
        entry.maps.get(&(range.start, range.end)).filter(|mapped| mapped.share()).cloned()
    }

    /// Keeps a new map, in the place of a dead one of its range.
    pub(super) fn keep(&mut self, mapped: Arc<Mapped>) {
        let entry = self.entry(&mapped.attached);
        if entry.maps.len() >= entry.sweep_at {
            entry.maps.retain(|_, mapped| mapped.is_live());
            entry.sweep_at = FEW.max(2 * entry.maps.len());
        }
        entry.maps.insert((mapped.range.start, mapped.range.end), mapped);
    }

    fn entry(&mut self, attached: &Arc<Attached>) -> &mut Entry {
        let known = self.entries.iter().position(|entry| entry.attached.id == attached.id);
        let index = known.unwrap_or_else(|| {
            self.entries
                .retain(|entry| !entry.attached.has_left() || entry.maps.values().any(|map| map.is_live()));
            self.entries.push(Entry { attached: attached.clone(), maps: Maps::new(), sweep_at: FEW });
            self.entries.len() - 1
        });
        &mut self.entries[index]
    }

    /// The live maps of all attachments.
    pub(super) fn live(&self) -> impl Iterator<Item = &Arc<Mapped>> {
        self.entries.iter().flat_map(|entry| entry.maps.values()).filter(|mapped| mapped.is_live())
    }

    /// Marks the maps of which `ends` says so, and takes what was kept for others to come. Who is still there has to be told.
    pub(super) fn make_stale(&mut self, ends: impl Fn(&Mapped) -> bool) -> Vec<Ended> {
        let ended = self.entries.iter_mut().map(|entry| {
            let maps = entry.maps.extract_if(.., |_, mapped| ends(mapped)).map(|(_, mapped)| mapped);
            let maps = maps.filter(|mapped| mapped.make_stale()).collect();
            Ended { attached: entry.attached.clone(), maps, kept: entry.attached.take_kept() }
        });
        ended.filter(|ended| !ended.maps.is_empty() || !ended.kept.is_empty()).collect()
    }

    /// Whether importers have it in the BAR, or will map it there.
    pub(super) fn hold_bar(&self) -> bool {
        self.live().any(|mapped| mapped.is_in_bar())
            || self.entries.iter().any(|entry| entry.attached.has_kept())
    }

    /// Whether an importer has it in system memory; other than that of `attached`, if that is given.
    pub(super) fn hold_system(&self, but: Option<&Attached>) -> bool {
        let is_other = |mapped: &Mapped| but.is_none_or(|but| mapped.attached.id != but.id);
        self.live().any(|mapped| mapped.is_in_system() && is_other(mapped))
    }

    /// Until when holders that are gone use the buffer's bytes. To be asked for after [`Peers::make_stale`].
    pub(crate) fn departed(&self) -> FenceSet {
        let mut departed = FenceSet::new();
        self.entries.iter().for_each(|entry| departed.merge(&entry.attached.departed()));
        departed
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peers({} attachments)", self.entries.len())
    }
}
