//! Transactions: buffers are locked, all or none, and what is done with them starts over when an older one needs them too.
//!
//! A transaction holds a pass of the device's [`Revocation`](crate::pagemap::Revocation), so a revoke that begins meanwhile finds what it
//! made. One that begins after a revoke has none, and may use what is in system memory and nothing else.

use std::sync::Arc;

use devpagemap_fence::{Exec, Held, Slot, blocking_waits, levels, lockdep};

use super::{BoState, Buffer, BufferObject, Transaction};
use crate::error::{Error, Result};
use crate::manager::Manager;
use crate::pagemap::UnderRevoke;
use crate::share::Drain;
use crate::stats::Counters;

/// What of a device a transaction may use.
#[derive(Clone, Copy)]
pub(crate) enum Reach<'a> {
    /// All of it: it has a pass.
    All,
    /// System memory alone: VRAM is being taken away.
    BesideVram(UnderRevoke),
    /// All of it, to take it away.
    Revoking(&'a Arc<Drain>),
}

impl Reach<'_> {
    /// # Errors
    /// [`Error::Revoked`] for a buffer in VRAM that is being taken away.
    pub(crate) fn check(self, state: &BoState) -> Result<()> {
        match self {
            Reach::BesideVram(under) if state.is_in_vram() => Err(under.into()),
            _ => Ok(()),
        }
    }
}

impl Manager {
    /// Locks `buffers`, all or none, and runs `body` with them; again from the start when an older transaction holds what
    /// it needs. Waits for nothing but reservations.
    pub(crate) fn transact<O>(
        self: &Arc<Self>,
        buffers: &[Arc<BufferObject>],
        mut body: impl FnMut(&mut Transaction<'_, '_, '_>) -> Result<O>,
    ) -> Result<O> {
        let (_pass, reach) = self.enter()?;
        self.run_transaction(|exec| {
            let members = buffers.iter().map(|buffer| exec.lock(buffer)).collect::<Result<Vec<_>, _>>()?;
            let mut transaction = Transaction::new(self, exec, members, reach);
            transaction.check_members()?;
            body(&mut transaction)
        })
    }

    /// [`Manager::transact`] with one buffer, for whoever takes the device away.
    pub(crate) fn transact_revoking<O>(
        self: &Arc<Self>,
        buffer: &Buffer,
        drain: &Arc<Drain>,
        mut body: impl FnMut(&mut Transaction<'_, '_, '_>, Slot) -> Result<O>,
    ) -> Result<O> {
        self.run_transaction(|exec| {
            let slot = exec.lock(&buffer.0)?;
            body(&mut Transaction::new(self, exec, vec![slot], Reach::Revoking(drain)), slot)
        })
    }

    /// Runs `attempt`, which locks and then works, until nobody is in its way; counts what that took.
    fn run_transaction<'o, O>(
        &self,
        attempt: impl FnMut(&mut Exec<'_, 'o, BufferObject>) -> Result<O>,
    ) -> Result<O> {
        lockdep::might_lock::<levels::Tickets>("reservation");
        let waits_before = blocking_waits();
        let mut held = Held::enter();
        let mut exec = Exec::new(&mut held);
        let result = exec.run(attempt);
        Counters::add(&self.counters.contended_restarts, u64::from(exec.restarts()));
        drop(exec);
        Counters::add(&self.counters.cpu_waits_in_validate, blocking_waits() - waits_before);
        debug_assert!(!matches!(result, Err(Error::Contended)), "a contended transaction restarts");
        result
    }
}

impl Buffer {
    /// [`Manager::transact`] with this buffer alone, in the slot that `body` is given.
    pub(crate) fn transact<O>(
        &self,
        mut body: impl FnMut(&mut Transaction<'_, '_, '_>, Slot) -> Result<O>,
    ) -> Result<O> {
        let manager = &self.0.manager;
        manager.transact(std::slice::from_ref(&self.0), |transaction| {
            let slot = transaction.member(0);
            body(transaction, slot)
        })
    }

    /// The same, unless somebody else holds the buffer; `None` then.
    pub(crate) fn transact_if_free<O>(
        &self,
        mut body: impl FnMut(&mut Transaction<'_, '_, '_>, Slot) -> Result<O>,
    ) -> Result<Option<O>> {
        let manager = &self.0.manager;
        let (_pass, reach) = manager.enter()?;
        manager.run_transaction(|exec| {
            let Some(slot) = exec.set_mut().try_lock(&self.0) else { return Ok(None) };
            let mut transaction = Transaction::new(manager, exec, vec![slot], reach);
            transaction.check_members()?;
            body(&mut transaction, slot).map(Some)
        })
    }
}

impl Transaction<'_, '_, '_> {
    /// # Errors
    /// [`Error::Revoked`] for a member in VRAM that is being taken away.
    fn check_members(&self) -> Result<()> {
        self.members.iter().try_for_each(|slot| self.reach.check(self.exec.set().state(*slot)))
    }

    /// # Errors
    /// [`Error::Revoked`].
    pub(crate) fn check_may_use_vram(&self) -> Result<()> {
        match self.reach {
            Reach::BesideVram(under) => Err(under.into()),
            Reach::All | Reach::Revoking(_) => Ok(()),
        }
    }
}
