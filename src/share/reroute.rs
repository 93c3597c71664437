//! Routes that change while buffers are mapped: whoever takes one that is gone, or could take a better one, is told.
//!
//! The registry says that something has changed from inside of whatever changed it, where importers must not be called. So the device's
//! own thread looks at all buffers that are shared, one after the other, with no lock of the registry held.

use std::collections::BTreeMap;
use std::sync::Arc;

use devpagemap_fence::{Held, Lock, Slot, levels};

use super::accord::{is_linked, reaches_bar};
use super::attachment::{Attached, Revoked};
use super::importer::InvalidateReason;
use super::peer_map::Mapped;
use crate::bo::{Buffer, BufferObject, Transaction, WeakBuffer};
use crate::error::Result;
use crate::events::PeerReason;
use crate::manager::Manager;
use crate::pagemap::Decision;

/// The buffers of a device that importers have attached to, by id. Its own lock.
pub(crate) struct SharedBuffers(Lock<levels::Aperture, BTreeMap<u64, WeakBuffer>>);

impl SharedBuffers {
    pub(crate) fn new() -> SharedBuffers {
        SharedBuffers(Lock::new("shared buffers", BTreeMap::new()))
    }

    pub(super) fn note(&self, buffer: &Arc<BufferObject>, held: &mut Held<'_, levels::Tickets>) {
        self.0.lock(held).entry(buffer.id()).or_insert_with(|| WeakBuffer::of(buffer));
    }

    /// For destructors.
    pub(crate) fn forget(&self, id: u64) {
        self.0.lock(&mut Held::in_destructor()).remove(&id);
    }

    /// Those that are alive.
    pub(super) fn all(&self, held: &mut Held<'_, levels::Tickets>) -> Vec<Buffer> {
        let weak: Vec<WeakBuffer> = self.0.lock(held).values().cloned().collect();
        weak.iter().filter_map(WeakBuffer::upgrade).collect()
    }
}

impl Manager {
    /// Looks at all shared buffers. Returns how many importers were told.
    pub(crate) fn reroute(&self) -> usize {
        let mut told = 0;
        for buffer in self.shared.all(&mut Held::in_destructor()) {
            match buffer.transact(|transaction, slot| transaction.reroute(slot)) {
                Ok(more) => told += more,
                Err(error) => tracing::debug!(buffer = buffer.id(), %error, "not rerouted"),
            }
        }
        told
    }
}

impl Transaction<'_, '_, '_> {
    /// Ends the maps of those who reach the buffer otherwise than when they mapped it.
    fn reroute(&mut self, slot: Slot) -> Result<usize> {
        let otherwise: Vec<Arc<Attached>> = {
            let peers = &self.exec.set().state(slot).peers;
            let is_otherwise = |attached: &&Arc<Attached>| {
                let now = self.manager.decision(&attached.joined);
                let mut maps = peers.live().filter(|mapped| mapped.attached.id == attached.id);
                maps.any(|mapped| takes_another_way(mapped, &now))
            };
            peers.parties().filter(is_otherwise).cloned().collect()
        };
        if otherwise.is_empty() {
            return Ok(0);
        }
        self.reserve_fences(slot, 0)?;
        let mut told = 0;
        for attached in &otherwise {
            let ends = |mapped: &Mapped| mapped.attached.id == attached.id;
            if attached.is_told() {
                self.invalidate_those(slot, InvalidateReason::Rerouted, ends);
            } else if attached.joined.profile.revocable && attached.joined.requires_p2p() {
                self.revoke_attachment(slot, attached, Revoked::Unreachable);
            } else {
                tracing::warn!(importer = &*attached.joined.name, "holds on to a route that has changed");
                continue;
            }
            told += 1;
        }
        Ok(told)
    }
}

/// Whether a map goes another way than it would now, as far as its importer is concerned.
fn takes_another_way(mapped: &Mapped, now: &Decision) -> bool {
    match mapped.why_system {
        None => !reaches_bar(now) || is_linked(now) != is_linked(&mapped.decision),
        Some(PeerReason::NoPeerAccess) => reaches_bar(now),
        // It is not for want of a route that it is there.
        Some(_) => false,
    }
}
