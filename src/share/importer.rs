//! Importers: other devices, as far as this one has to know them.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};

use devpagemap_fence::{Fence, Held};

use crate::aperture::Account;
use crate::error::Result;
use crate::manager::Manager;
use crate::pagemap::{Holding, ImporterId, JoinedImporter, Policy, Profile};
use crate::size::Size;

/// A device that maps buffers of another, and can be told to let go of them. The kernel's cousin is `dma_buf_attach_ops`.
///
/// An importer is told as long as it lives. Its [`Peer`] keeps it alive; attachments and maps do not, so it may keep those in itself.
/// When it is dropped, it uses nothing any more.
pub trait Importer: Send + Sync {
    /// For people: in events, reasons and errors.
    fn name(&self) -> &str;

    /// What it can do, and wants. Asked once, when it joins. By default it lets go when it is told to, reaches the BAR, and is nowhere in the
    /// machine, so that its own word counts.
    fn profile(&self) -> Profile {
        Profile::dynamic()
    }

    /// All maps of one attachment are about to become invalid. Once this has returned and the returned fence has signalled, with an error
    /// or without, the importer uses none of their addresses any more; without a fence that is so at once. It may map again as soon
    /// as it likes after it has returned.
    ///
    /// Called with the buffer's reservation held and no inner lock, before the buffer moves or its part of the BAR is given
    /// away. It may queue work and drop [`PeerMap`](crate::PeerMap)s. It must not call back into the device otherwise, which
    /// debug builds report, and should not wait: that is what the fence is for. It must see to it that the fence signals in finite time,
    /// since the buffer arrives nowhere before that.
    fn invalidate(&self, what: &Invalidated) -> Option<Fence>;
}

/// Why maps become invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InvalidateReason {
    /// The buffer moves: it was evicted, a job needs it elsewhere, or another map does.
    Moved,
    /// The BAR is full and others go before this buffer: it moves to system memory.
    Demoted,
    /// There is room in the BAR again: the buffer comes back, and can be mapped there.
    Promoted,
    /// The application has changed what peers may do with the buffer.
    Retagged,
    /// There is another way to the buffer now, or the one that was taken is gone, or all who share it have agreed on another.
    Rerouted,
    /// It is taken away: the device goes, or is reset, or there is no other way to make room. Unlike after all others, mapping it
    /// again is an [`Error::Revoked`](crate::Error::Revoked), for good or until the device is armed again.
    Revoked,
}

/// What an importer has to let go of.
#[derive(Debug)]
pub struct Invalidated {
    pub(super) buffer: u64,
    pub(super) attachment: u64,
    pub(super) reason: InvalidateReason,
}

impl Invalidated {
    /// The buffer's id.
    pub fn buffer(&self) -> u64 {
        self.buffer
    }

    /// The id of the attachment, all of whose maps are meant.
    pub fn attachment(&self) -> u64 {
        self.attachment
    }

    /// Why.
    pub fn reason(&self) -> InvalidateReason {
        self.reason
    }
}

/// An importer that has joined a device. Clones are the same one.
#[derive(Clone)]
pub struct Peer {
    pub(super) manager: Arc<Manager>,
    pub(super) joined: Arc<Joined>,
    /// Kept alive to be told.
    _importer: Arc<dyn Importer>,
}

/// What attachments know of their importer.
pub(crate) struct Joined {
    /// Unique on its device. Constant.
    pub(crate) id: u64,
    /// Constant.
    pub(crate) name: Arc<str>,
    /// Constant.
    pub(super) profile: Profile,
    /// Its place in the registry. Constant.
    member: JoinedImporter,
    /// Whoever is told. Constant.
    importer: Weak<dyn Importer>,
    /// What it uses of the BAR. Its own lock.
    pub(super) account: Account,
}

impl Joined {
    pub(super) fn importer_id(&self) -> ImporterId {
        self.member.id()
    }

    /// Whether it is the importer at this address.
    #[cfg(not(any(loom, shuttle)))]
    pub(super) fn is(&self, importer: *const ()) -> bool {
        std::ptr::addr_eq(self.importer.as_ptr(), importer)
    }

    /// Whether nothing but the BAR will do.
    pub(super) fn requires_p2p(&self) -> bool {
        self.profile.policy == Policy::Required
    }

    /// Whether it lets go when it is told to.
    pub(super) fn is_dynamic(&self) -> bool {
        self.profile.holding == Holding::Dynamic
    }

    /// Tells the importer. One that is gone uses nothing, and one that panics is taken by its word no more: half-way through a
    /// move there is nobody who could do anything about it.
    pub(super) fn invalidate(&self, what: &Invalidated) -> Option<Fence> {
        let importer = self.importer.upgrade()?;
        catch_unwind(AssertUnwindSafe(|| importer.invalidate(what))).unwrap_or_else(|_| {
            tracing::error!(
                importer = &*self.name,
                buffer = what.buffer,
                "an importer panicked when it was told"
            );
            None
        })
    }
}

impl Peer {
    pub(crate) fn join(manager: Arc<Manager>, importer: Arc<dyn Importer>) -> Result<Peer> {
        let profile = importer.profile();
        let profile = if profile.name.is_none() { profile.named(importer.name()) } else { profile };
        let member = manager.pagemaps.registry().join(profile.clone())?;
        let id = manager.next_peer_id();
        let account = Account::open(&manager.ledger, &mut Held::in_destructor());
        let name = importer.name().into();
        let joined = Joined { id, name, profile, member, importer: Arc::downgrade(&importer), account };
        Ok(Peer { manager, joined: Arc::new(joined), _importer: importer })
    }

    /// What attachments know of it.
    #[cfg(not(any(loom, shuttle)))]
    pub(super) fn joined(&self) -> &Arc<Joined> {
        &self.joined
    }

    /// Unique on its device; never reused.
    pub fn id(&self) -> u64 {
        self.joined.id
    }

    /// Its number in the device's [registry](crate::Device::registry).
    pub fn importer_id(&self) -> ImporterId {
        self.joined.importer_id()
    }

    /// The importer's name.
    pub fn name(&self) -> &str {
        &self.joined.name
    }

    /// As [`set_p2p_limit`](Peer::set_p2p_limit), for use where the importer joins.
    #[must_use = "it is the importer with its limit"]
    pub fn p2p_limit(self, limit: Size) -> Peer {
        self.set_p2p_limit(limit);
        self
    }

    /// How much of the BAR it may map, from now on; in whole pages, rounded down. What it has mapped beyond that stays, but
    /// there is no more. Without a limit, those of the device and of the buffers' clients are the only ones.
    pub fn set_p2p_limit(&self, limit: Size) {
        self.joined.account.set_limit(limit);
    }

    /// How much of the BAR its maps keep. In a BAR of windows that may be more than their ranges: who maps a part of what others
    /// have mapped keeps all of it when they are gone, and so it counts from the beginning.
    pub fn p2p_used(&self) -> Size {
        self.joined.account.used()
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("id", &self.joined.id).field("name", &self.joined.name).finish()
    }
}
