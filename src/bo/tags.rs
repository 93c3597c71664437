//! What the application says of a buffer and may say otherwise at any time.

use devpagemap_fence::sync::atomic::{AtomicUsize, Ordering};
use devpagemap_fence::{Held, Slot};

use super::{Buffer, Transaction};
use crate::aperture::{P2p, Rank};
use crate::error::{Error, Result};
use crate::region::PRIORITIES;

/// The tags of one buffer. Written by the holder of its reservation; who holds that reads what is true, anybody else what was.
#[derive(Debug)]
pub(crate) struct Tags {
    /// Who makes way first: 0. Atomic.
    priority: AtomicUsize,
    /// A [`P2p`] by its number. Atomic.
    p2p: AtomicUsize,
}

/// By their numbers.
const P2P: [P2p; 4] = [P2p::Never, P2p::Allowed, P2p::Prefer, P2p::Require];

impl Tags {
    pub(crate) fn new(priority: usize, p2p: P2p) -> Tags {
        Tags { priority: AtomicUsize::new(priority), p2p: AtomicUsize::new(p2p as usize) }
    }

    pub(crate) fn priority(&self) -> usize {
        self.priority.load(Ordering::Relaxed)
    }

    pub(crate) fn p2p(&self) -> P2p {
        P2P[self.p2p.load(Ordering::Relaxed)]
    }

    /// Where it stands among those that want the BAR.
    pub(crate) fn rank(&self) -> Rank {
        Rank { p2p: self.p2p(), priority: self.priority() }
    }
}

impl Buffer {
    /// Its priority, 0 (makes way first) to 3 (makes way last).
    pub fn priority(&self) -> usize {
        self.0.tags.priority()
    }

    /// Gives it another priority. It holds from now on, for evictions and in the BAR: where the buffer lives it becomes the most
    /// recently used of its new priority. Nothing moves because of it.
    ///
    /// # Errors
    /// [`Error::InvalidPlacement`] for a priority that there is not.
    pub fn set_priority(&self, priority: usize) -> Result<()> {
        check_priority(priority)?;
        let mut held = Held::enter();
        let mut state = self.0.reservation.lock(&mut held);
        self.0.tags.priority.store(priority, Ordering::Relaxed);
        let (state, mut held) = state.split();
        if let Some(resource) = &state.resource
            && let Some(node) = resource.node
        {
            self.0.manager.with_lru(resource.region, &mut held, |lru| lru.set_priority(node, priority));
        }
        self.0.manager.ledger.set_rank(self.id(), self.0.tags.rank(), &mut held);
        Ok(())
    }

    /// What other devices may do with it through the BAR.
    pub fn p2p(&self) -> P2p {
        self.0.tags.p2p()
    }

    /// Says otherwise what other devices may do with it. It holds from now on: importers whose maps are not what the buffer
    /// allows or requires any more are [told](crate::Importer::invalidate), and get what it does when they map again. Nothing
    /// moves before that. A buffer that may have the BAR again comes back to it as one that was demoted does.
    ///
    /// # Errors
    /// [`Error::FenceSlots`] when there is no memory for the importers' fences; nothing has changed.
    pub fn set_p2p(&self, p2p: P2p) -> Result<()> {
        self.transact(|transaction, slot| {
            transaction.reserve_fences(slot, 0)?;
            transaction.retag(slot, p2p);
            Ok(())
        })
    }
}

impl Transaction<'_, '_, '_> {
    fn retag(&mut self, slot: Slot, p2p: P2p) {
        let buffer = self.exec.set().arc(slot);
        let before = buffer.tags.p2p();
        buffer.tags.p2p.store(p2p as usize, Ordering::Relaxed);
        self.follow_tag(slot, before, p2p);
        let (_, mut held) = self.exec.split();
        self.manager.ledger.set_rank(buffer.id(), buffer.tags.rank(), &mut held);
    }
}

/// Refuses a priority that there is not.
pub(super) fn check_priority(priority: usize) -> Result<()> {
    if priority >= PRIORITIES {
        let why = format!("priority {priority} is not one of 0 to {}", PRIORITIES - 1);
        return Err(Error::InvalidPlacement { why });
    }
    Ok(())
}
