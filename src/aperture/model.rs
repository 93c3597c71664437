//! For models of the ledger alone: an importer that maps and gives back, of buffers that never move.

use std::sync::Arc;

use devpagemap_fence::{FenceSet, Held};

use super::{Account, Charge, P2p, PlaceKey, Rank, Wish};
use crate::bo::{Buffer, WeakBuffer};
use crate::error::Result;
use crate::manager::Manager;

/// An importer that has joined the device of some buffer.
#[derive(Debug)]
pub struct LedgerUser {
    manager: Arc<Manager>,
    account: Account,
}

/// What it has mapped. Dropped, it is given back behind no fences.
#[derive(Debug)]
pub struct LedgerMap {
    manager: Arc<Manager>,
    /// `None` once it is given back.
    charge: Option<Charge>,
    after: FenceSet,
}

impl LedgerUser {
    /// Joins the device of `buffer`.
    pub fn join(buffer: &Buffer) -> LedgerUser {
        let manager = buffer.0.manager.clone();
        let account = Account::open(&manager.ledger, &mut Held::in_destructor());
        LedgerUser { manager, account }
    }

    /// Maps the first pages of `buffer`.
    ///
    /// # Errors
    /// [`Error::ApertureFull`](crate::Error::ApertureFull).
    pub fn map(&self, buffer: &Buffer, pages: u64) -> Result<LedgerMap> {
        let wish = Wish {
            place: PlaceKey { buffer: buffer.id(), generation: 0 },
            pages: 0..pages,
            importer: self.account.id,
            client: buffer.0.client.id(),
            rank: Rank { p2p: P2p::Prefer, priority: 1 },
            buffer: WeakBuffer::of(&buffer.0),
        };
        let admitted = self.manager.admit_peer(&wish, &mut self.manager.room(), &mut Held::in_destructor());
        let admitted = admitted.map_err(|over| over.refusal(&wish))?;
        Ok(LedgerMap { manager: self.manager.clone(), charge: Some(admitted.charge), after: admitted.after })
    }
}

impl LedgerMap {
    /// What the first access has to queue behind.
    pub fn after(&self) -> &FenceSet {
        &self.after
    }

    /// Gives the pages back behind `fences`.
    pub fn unmap(mut self, fences: FenceSet) {
        self.release(fences);
    }

    fn release(&mut self, fences: FenceSet) {
        if let Some(charge) = self.charge.take() {
            self.manager.release_peer(charge, fences, &mut Held::in_destructor());
        }
    }
}

impl Drop for LedgerMap {
    fn drop(&mut self) {
        self.release(FenceSet::new());
    }
}
