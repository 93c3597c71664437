//! Transactions: buffers are locked, all or none, and what is done with them starts over when an older one needs them too.

use std::sync::Arc;

use devpagemap_fence::{Exec, Held, Slot, blocking_waits, levels, lockdep};

use super::{Buffer, BufferObject, Transaction};
use crate::error::{Error, Result};
use crate::manager::Manager;
use crate::stats::Counters;

impl Manager {
    /// Locks `buffers`, all or none, and runs `body` with them; again from the start when an older transaction holds what
    /// it needs. Waits for nothing but reservations.
    pub(crate) fn transact<O>(
        self: &Arc<Self>,
        buffers: &[Arc<BufferObject>],
        mut body: impl FnMut(&mut Transaction<'_, '_, '_>) -> Result<O>,
    ) -> Result<O> {
        self.run_transaction(|exec| {
            let members = buffers.iter().map(|buffer| exec.lock(buffer)).collect::<Result<Vec<_>, _>>()?;
            body(&mut Transaction::new(self, exec, members))
        })
    }

    /// Runs `attempt`, which locks and then works, until nobody is in its way; counts what that took.
    fn run_transaction<'o, O>(
        &self,
        attempt: impl FnMut(&mut Exec<'_, 'o, BufferObject>) -> Result<O>,
    ) -> Result<O> {
        lockdep::might_lock::<levels::Tickets>("reservation");
        self.check_present()?;
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
        manager.run_transaction(|exec| match exec.set_mut().try_lock(&self.0) {
            Some(slot) => body(&mut Transaction::new(manager, exec, vec![slot]), slot).map(Some),
            None => Ok(None),
        })
    }
}
