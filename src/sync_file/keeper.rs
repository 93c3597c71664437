//! The keeper: one thread for all fences that cross, which exists as long as there is something to keep.
//!
//! It hears of sync_files whose fences have signalled, gives up those that do not in time, and renews kernel fences of ours before they
//! expire. Whoever adds the first of these starts it; it ends when it finds nothing left, and who adds something sees under the same lock
//! whether it still runs. It may sleep on for a while after the last fence of ours is gone, no longer than its device lives: a signal wakes
//! nobody, so that work which ends in time costs no system call.

use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use devpagemap_fence::sync::mutant;

use super::crossing::Crossing;
use super::foreign::Wait;
use super::kernel::Poller;
use super::kernel_fence::Owed;
use crate::error::Result;

/// What there is to keep.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// The last number given to anything below.
    last_id: u64,
    /// What others have to signal.
    waits: HashMap<u64, Wait>,
    /// What we have to signal, and the kernel would on its own; and when it is due.
    expiring: HashMap<u64, (Instant, Arc<Owed>)>,
    /// When something is to be done about either.
    due: BTreeSet<(Instant, u64)>,
    /// What the thread sleeps by; `None` while there is none.
    poller: Option<Arc<dyn Poller>>,
    /// Until when it sleeps; `None`: until it is woken, or it does not sleep.
    sleeps_until: Option<Instant>,
}

impl Table {
    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn is_empty(&self) -> bool {
        self.waits.is_empty() && self.expiring.is_empty()
    }

    fn expires(&mut self, at: Instant, owed: &Arc<Owed>) {
        self.due.insert((at, owed.id));
        self.expiring.insert(owed.id, (at, owed.clone()));
    }

    /// Whether the thread would sleep longer than until `at`.
    fn oversleeps(&self, at: Instant) -> bool {
        self.sleeps_until.is_none_or(|until| at < until)
    }
}

/// What is to be done now.
enum Due {
    GiveUp(Wait),
    Renew(Arc<Owed>),
}

impl Crossing {
    pub(super) fn next_id(&self) -> u64 {
        self.table.lock().next_id()
    }

    /// Ends the point of `wait` in time. Returns its number.
    pub(super) fn wait_for(self: &Arc<Self>, wait: Wait) -> Result<u64> {
        let mut table = self.table.lock();
        let id = table.next_id();
        let poller = self.running(&mut table)?;
        poller.watch(&*wait.file, id)?;
        let oversleeps = table.oversleeps(wait.deadline);
        table.due.insert((wait.deadline, id));
        table.waits.insert(id, wait);
        drop(table);
        if oversleeps {
            poller.poke();
        }
        Ok(id)
    }

    /// Nobody needs to know any more; the fence of that wait fails, unless it is over.
    pub(super) fn stop_listening(&self, id: u64) {
        drop(self.take_wait(id));
    }

    /// Renews what is owed until it is over. Nothing for what does not expire.
    pub(super) fn keep_from_expiring(self: &Arc<Self>, owed: &Arc<Owed>) -> Result<()> {
        let Some(at) = owed.renewal() else { return Ok(()) };
        let mut table = self.table.lock();
        let poller = self.running(&mut table)?;
        let oversleeps = table.oversleeps(at);
        table.expires(at, owed);
        drop(table);
        if oversleeps {
            poller.poke();
        }
        Ok(())
    }

    /// What was owed is over.
    pub(super) fn forget_expiring(&self, id: u64) {
        if self.kernel.expires_after().is_none() {
            return;
        }
        let mut table = self.table.lock();
        let gone = table.expiring.remove(&id);
        if let Some((at, _)) = &gone {
            table.due.remove(&(*at, id));
        }
        drop(table);
        drop(gone);
    }

    /// The device is gone: the thread looks whether anything is left, instead of later.
    pub(crate) fn device_is_gone(&self) {
        let poller = self.table.lock().poller.clone();
        if let Some(poller) = poller {
            poller.poke();
        }
    }

    /// Whether there is anything to keep, or there was until a moment ago.
    #[cfg(test)]
    pub(super) fn is_kept(&self) -> bool {
        self.table.lock().poller.is_some()
    }

    /// Whether it has seen that there is, and waits for something to do.
    #[cfg(test)]
    pub(super) fn has_a_sleeping_keeper(&self) -> bool {
        self.table.lock().sleeps_until.is_some()
    }

    /// The thread, started if there is none.
    fn running(self: &Arc<Self>, table: &mut Table) -> Result<Arc<dyn Poller>> {
        if let Some(poller) = &table.poller {
            return Ok(poller.clone());
        }
        let poller = self.kernel.poller()?;
        let (keeper, theirs) = (self.clone(), poller.clone());
        self.kernel.start(Box::new(move || keeper.run(&*theirs)))?;
        table.poller = Some(poller.clone());
        Ok(poller)
    }

    fn run(self: Arc<Self>, poller: &dyn Poller) {
        while let Some(until) = self.plan() {
            for id in poller.wait(until) {
                self.has_signalled(id);
            }
            self.do_what_is_due();
        }
    }

    /// Until when to sleep, or nothing when it is time to end.
    fn plan(&self) -> Option<Option<Instant>> {
        let mut table = self.table.lock();
        if table.is_empty() {
            if mutant!("the_keeper_ends_in_two_steps") {
                drop(table);
                table = self.table.lock();
            }
            table.poller = None;
            table.sleeps_until = None;
            return None;
        }
        table.sleeps_until = table.due.first().map(|(at, _)| *at);
        Some(table.sleeps_until)
    }

    fn has_signalled(&self, id: u64) {
        // Not there: given up since.
        let Some(wait) = self.take_wait(id) else { return };
        catch(|| wait.ends(self));
    }

    /// Whoever takes it out ends it.
    fn take_wait(&self, id: u64) -> Option<Wait> {
        let mut table = self.table.lock();
        let wait = table.waits.remove(&id)?;
        table.due.remove(&(wait.deadline, id));
        if let Some(poller) = &table.poller {
            poller.forget(&*wait.file, id);
        }
        Some(wait)
    }

    /// Gives up what is overdue and renews what is about to expire.
    pub(super) fn do_what_is_due(self: &Arc<Self>) {
        let now = self.now();
        while let Some(due) = self.take_due(now) {
            catch(|| match due {
                Due::GiveUp(wait) => wait.gives_up(self),
                Due::Renew(owed) => self.renew(&owed),
            });
        }
    }

    fn take_due(&self, now: Instant) -> Option<Due> {
        let id = {
            let mut table = self.table.lock();
            let (at, id) = *table.due.first().filter(|(at, _)| *at <= now)?;
            if let Some((_, owed)) = table.expiring.remove(&id) {
                table.due.remove(&(at, id));
                return Some(Due::Renew(owed));
            }
            id
        };
        // Only who keeps takes out what is due, so it is there unless it has signalled meanwhile.
        self.take_wait(id).map(Due::GiveUp).or_else(|| self.take_due(now))
    }

    fn renew(self: &Arc<Self>, owed: &Arc<Owed>) {
        let Some(at) = owed.renew() else { return };
        self.table.lock().expires(at, owed);
        // It may have ended between its renewal and now, and then nobody was here to be forgotten.
        if owed.is_over() {
            self.forget_expiring(owed.id);
        }
    }
}

/// Callbacks are other people's code; the thread outlives their panics.
fn catch(deed: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(deed)).is_err() {
        tracing::error!("a callback of a fence from outside panicked");
    }
}
