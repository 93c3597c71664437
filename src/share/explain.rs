//! What the registry knows of a device and decides for its importers.

use std::sync::{Arc, Weak};

use super::importer::{Joined, Peer};
use super::promote::Promoter;
use crate::aperture::Bar;
use crate::bo::Buffer;
use crate::error::{Error, Result};
use crate::manager::Manager;
use crate::pagemap::{
    Decision, Explanation, Owner, Pagemap, PagemapId, PagemapSpec, Registry, Subscription, Update,
};
use crate::size::Size;

/// A device's memory in its registry. Constant.
pub(crate) struct Pagemaps {
    registry: Registry,
    owner: Owner,
    /// What the BAR shows, or can show; then what it does not. Not empty.
    pagemaps: Vec<Pagemap>,
}

impl Pagemaps {
    /// Has a device's VRAM join: what the BAR shows of it, and what it does not.
    ///
    /// # Errors
    /// [`Error::RegistryFull`].
    pub(crate) fn join(registry: Registry, owner: Owner, vram_bytes: u64, bar: Bar) -> Result<Pagemaps> {
        let vram = Size::bytes(vram_bytes);
        let shown = match bar {
            Bar::Prefix(size) => size,
            // Any of it, though not all at once.
            Bar::Windows(size) if size.as_bytes() > 0 => vram,
            Bar::Windows(none) => none,
        };
        let specs = PagemapSpec::of_vram(&owner, vram, shown);
        let pagemaps = specs.into_iter().map(|spec| registry.join_pagemap(spec)).collect::<Result<_>>()?;
        Ok(Pagemaps { registry, owner, pagemaps })
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.owner
    }

    /// All of them.
    pub(crate) fn all(&self) -> &[Pagemap] {
        &self.pagemaps
    }

    /// The one that importers map: buffers are brought there.
    fn shown(&self) -> PagemapId {
        self.pagemaps[0].id()
    }

    /// Has the device's thread look at all shared buffers when decisions change.
    pub(crate) fn watch(&self, manager: Weak<Manager>, promoter: Arc<Promoter>) -> Subscription {
        self.registry.subscribe(move |update: &Update| {
            if !update.cause.changes_decisions() {
                return;
            }
            // A model makes a pass when it wants to.
            if !cfg!(any(loom, shuttle)) {
                promoter.start(manager.clone());
                promoter.run_errands();
            }
        })
    }
}

impl Manager {
    /// How an importer reaches what the BAR shows. Takes no lock.
    pub(super) fn decision(&self, joined: &Joined) -> Decision {
        self.pagemaps.registry.decision(self.pagemaps.shown(), joined.importer_id())
    }

    pub(super) fn explain(&self, joined: &Joined) -> Explanation {
        self.pagemaps.registry.explain(self.pagemaps.shown(), joined.importer_id())
    }

    pub(super) fn why_no_peer_access(&self, joined: &Joined) -> Arc<str> {
        self.explain(joined).to_string().into()
    }
}

impl Buffer {
    /// How an importer reaches the memory of this buffer's device, and why so. Whether a map takes that way depends on more: see
    /// [`PeerMap::why_system`](crate::PeerMap::why_system).
    ///
    /// # Errors
    /// [`Error::ForeignPeer`] for one that has joined another device.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use devpagemap::pagemap::Profile;
    /// use devpagemap::{Device, Fence, Importer, Invalidated, Size, SoftwareGpu};
    ///
    /// struct Card;
    ///
    /// impl Importer for Card {
    ///     fn name(&self) -> &str {
    ///         "card"
    ///     }
    ///
    ///     fn profile(&self) -> Profile {
    ///         Profile::dynamic().system_only()
    ///     }
    ///
    ///     fn invalidate(&self, _what: &Invalidated) -> Option<Fence> {
    ///         None
    ///     }
    /// }
    ///
    /// # fn main() -> devpagemap::Result<()> {
    /// let device = Device::builder(SoftwareGpu::builder().build()?).vram(Size::mib(16)).build()?;
    /// let card = device.join(Arc::new(Card))?;
    /// let buffer = device.buffer(Size::mib(1)).create()?;
    /// let answer = buffer.explain(&card)?.to_string();
    /// assert!(answer.starts_with("staging: card can use nothing but system memory"), "{answer}");
    /// # Ok(())
    /// # }
    /// ```
    pub fn explain(&self, peer: &Peer) -> Result<Explanation> {
        let manager = &self.0.manager;
        if !Arc::ptr_eq(manager, &peer.manager) {
            return Err(Error::ForeignPeer { importer: peer.joined.name.clone() });
        }
        Ok(manager.explain(&peer.joined))
    }
}
