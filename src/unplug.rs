//! Taking a device's VRAM away, and giving it back: hot unplug and reset.
//!
//! ```text
//!   begin ─► passes ─► one buffer after the other, under its reservation ─► wait by callbacks ─► Revoked ─► re-arm
//!            returned   unplug: told, and queued to system memory, or lost     (share/revoke.rs)
//!                       reset:  told
//! ```
//!
//! The state machine is [`Revocation`](crate::pagemap::Revocation). Every transaction holds a pass of it, or was begun too late and uses
//! system memory only; so once the passes have been returned nothing comes into VRAM any more, and one walk over those who live
//! there meets everybody. The walk is made by the caller's thread. It waits for reservations, as any transaction does, and for
//! no fence.
//!
//! In the registry the device's pagemaps are revoked with the first step and armed with the last, so that decisions are for system memory
//! meanwhile.
//!
//! What is in system memory goes on working throughout: CPU maps follow their buffers there, and reads and writes are served.

use std::sync::Arc;
use std::time::Instant;

use devpagemap_fence::{Fence, FenceSet, Held, Slot, Watched, lockdep};
use devpagemap_migrate::Space;

use crate::aperture::Bar;
use crate::bo::{Buffer, Reach, Transaction};
use crate::error::{Error, Result};
use crate::events::Event;
use crate::manager::Manager;
use crate::pagemap::{Pagemap, Pass, Phase, RevokeCause, UnderRevoke};
use crate::region::GhostId;
use crate::share::{Drain, RevokeReport};
use crate::stats::Counters;

/// How a device goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unplug {
    /// It works until the revoke is done: every byte of VRAM is moved to system memory.
    Orderly,
    /// It is gone: what can still be read is moved, the rest is lost, and said to be.
    Surprise,
}

impl Unplug {
    fn cause(self) -> RevokeCause {
        match self {
            Unplug::Orderly => RevokeCause::Unplug,
            Unplug::Surprise => RevokeCause::SurpriseUnplug,
        }
    }
}

/// What a reset has left in VRAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VramContents {
    /// All bytes are what they were, and windows in the BAR show what they showed.
    Kept,
    /// Nothing that could be relied on.
    Lost,
}

/// A revoke that has begun; made by [`Device::unplug`](crate::Device::unplug). It goes on whether or not this is kept.
#[derive(Clone, Debug)]
pub struct Revoke(Arc<Drain>);

impl Revoke {
    /// Signals when nobody uses VRAM any more, but for those who are overdue.
    pub fn done(&self) -> &Fence {
        self.0.done()
    }

    /// Sleeps until then.
    ///
    /// # Panics
    /// In debug builds, where a fence may not be waited for.
    #[track_caller]
    pub fn wait(&self) -> RevokeReport {
        lockdep::assert_may_wait();
        // Its end is what counts; a revoke has no other outcome.
        let _ended = self.done().wait();
        self.report()
    }

    /// What it has come to so far.
    pub fn report(&self) -> RevokeReport {
        self.0.report()
    }

    /// Has it look who is overdue at `now`, as the device's watchdog does by itself. For tests, and for who has another clock.
    pub fn check(&self, now: Instant) {
        self.0.check(now);
    }
}

impl Manager {
    /// Begins something that may use VRAM: with a pass, or within system memory.
    ///
    /// # Errors
    /// [`Error::DeviceLost`].
    pub(crate) fn enter(&self) -> Result<(Option<Pass<'_>>, Reach<'_>)> {
        self.check_present()?;
        Ok(match self.revocation.enter() {
            Ok(pass) => (Some(pass), Reach::All),
            Err(under) => (None, Reach::BesideVram(under)),
        })
    }

    pub(crate) fn unplug(self: &Arc<Self>, how: Unplug) -> Result<Revoke> {
        let drain = match self.begin_revoke(how.cause()) {
            Ok(drain) => drain,
            Err(error) => return self.join_unplug(how).ok_or(error),
        };
        let in_flight = self.unreadable_in_flight(&drain);
        let walked = self.walk(&drain, |transaction, slot| transaction.evacuate(slot, &drain));
        if let Err(error) = walked {
            tracing::warn!(%error, "not unplugged: there is no place for what is in VRAM");
            self.call_off(&drain);
            return Err(error);
        }
        self.lose_all(&drain, &in_flight);
        self.all_are_told(&drain);
        Ok(Revoke(drain))
    }

    /// The unplug that is under way, or was; one without notice while one with notice is under way makes a surprise of it.
    fn join_unplug(self: &Arc<Self>, how: Unplug) -> Option<Revoke> {
        let drain = self.revoking.lock().clone()?;
        let is_unplug = matches!(drain.cause, RevokeCause::Unplug | RevokeCause::SurpriseUnplug);
        if !is_unplug || self.check_present().is_err() {
            return None;
        }
        if how == Unplug::Surprise && drain.cause == RevokeCause::Unplug {
            drain.surprise();
            self.lose_all(&drain, &self.unreadable_in_flight(&drain));
        }
        Some(Revoke(drain))
    }

    /// # Errors
    /// [`Error::FenceSlots`], [`Error::DeviceLost`], a revoke that is under way, or what the driver says, which is then lost.
    pub(crate) fn reset(self: &Arc<Self>) -> Result<RevokeReport> {
        let drain = self.begin_revoke(RevokeCause::Reset)?;
        if let Err(error) = self.walk(&drain, |transaction, slot| transaction.suspend(slot)) {
            self.resume(&drain);
            self.call_off(&drain);
            return Err(error);
        }
        self.all_are_told(&drain);
        self.wait(&FenceSet::from(drain.done().clone()))?;
        let in_flight: Vec<Buffer> =
            self.leaving().iter().filter_map(|leaving| leaving.buffer.upgrade()).collect();
        match self.driver().reset() {
            Ok(VramContents::Kept) => self.resume(&drain),
            Ok(VramContents::Lost) => {
                self.lose_all(&drain, &self.in_vram());
                self.lose_all(&drain, &in_flight);
            }
            Err(error) => {
                tracing::error!(%error, "the device cannot be reset, and is lost");
                self.declare_lost();
                return Err(error);
            }
        }
        self.give_back()?;
        Ok(drain.report())
    }

    /// # Errors
    /// A revoke that is not finished, an importer that may still be at windows in the BAR, what the driver says.
    pub(crate) fn rearm(self: &Arc<Self>) -> Result<()> {
        self.check_present()?;
        let Some(drain) = self.revoking.lock().clone() else { return Ok(()) };
        match self.revocation.check_active() {
            Ok(()) => return Ok(()),
            Err(UnderRevoke { phase: Phase::Revoked, .. }) if drain.cause != RevokeCause::Reset => {}
            Err(under) => return Err(under.into()),
        }
        let has_windows = matches!(self.windows.bar(), Bar::Windows(_));
        if has_windows && drain.is_anybody_late() {
            let why = "an importer that did not let go in time still may use windows in it";
            return Err(Error::Revoked { what: "the device's BAR".into(), why });
        }
        self.driver().rearm()?;
        self.give_back()
    }

    fn give_back(&self) -> Result<()> {
        self.revocation.rearm()?;
        self.pagemaps.all().iter().for_each(Pagemap::rearm);
        let epoch = self.revocation.epoch();
        self.tell(Event::Rearmed { epoch }, &mut Held::in_destructor());
        self.promoter.poke();
        Ok(())
    }

    /// Nobody begins to use VRAM from here on, and what was begun is complete.
    fn begin_revoke(self: &Arc<Self>, cause: RevokeCause) -> Result<Arc<Drain>> {
        self.check_present()?;
        lockdep::assert_may_wait();
        // Who is inside a transaction, or called by one, would wait for itself.
        let _outermost = Held::enter();
        let drain = Drain::new(self.weak(), cause, self.revoke_bound);
        let former = {
            let mut revoking = self.revoking.lock();
            self.revocation.begin(cause)?;
            revoking.replace(drain.clone())
        };
        drop(former);
        self.pagemaps.all().iter().for_each(Pagemap::revoke);
        Counters::count(&self.counters.revokes);
        tracing::info!(%cause, "VRAM is taken away");
        self.revocation.wait_for_passes();
        Ok(drain)
    }

    fn call_off(&self, drain: &Arc<Drain>) {
        let called_off = self.revocation.call_off();
        debug_assert!(called_off.is_ok(), "who begins a revoke makes its next step");
        self.pagemaps.all().iter().for_each(Pagemap::rearm);
        drain.call_off(Instant::now());
        self.look_after(drain);
    }

    fn in_vram(&self) -> Vec<Buffer> {
        let residents = self.vram.residents(&mut Held::in_destructor());
        residents.iter().filter_map(|buffer| buffer.upgrade()).collect()
    }

    /// Runs `each` with everybody who lives in VRAM. One that is being dropped gives its bytes back by itself.
    fn walk(
        self: &Arc<Self>,
        drain: &Arc<Drain>,
        mut each: impl FnMut(&mut Transaction<'_, '_, '_>, Slot) -> Result<()>,
    ) -> Result<()> {
        self.in_vram().iter().try_for_each(|buffer| self.transact_revoking(buffer, drain, &mut each))
    }

    fn resume(self: &Arc<Self>, drain: &Arc<Drain>) {
        let resumed = self.walk(drain, |transaction, slot| {
            transaction.resume(slot);
            Ok(())
        });
        debug_assert!(resumed.is_ok(), "{resumed:?}");
    }

    /// The buffers whose copy out of VRAM has not ended, from where nothing can be read any more.
    fn unreadable_in_flight(&self, drain: &Drain) -> Vec<Buffer> {
        if !drain.is_surprise() {
            return Vec::new();
        }
        let mut leaving = self.leaving();
        leaving.retain(|leaving| {
            let mut in_vram = leaving.from.iter().filter(|extent| extent.addr.space() == Space::Vram);
            in_vram.any(|extent| !self.driver().is_readable(extent))
        });
        leaving.iter().filter_map(|leaving| leaving.buffer.upgrade()).collect()
    }

    /// These buffers have lost what was in VRAM, or on its way out; unless it has arrived by now.
    fn lose_all(self: &Arc<Self>, drain: &Arc<Drain>, buffers: &[Buffer]) {
        for buffer in buffers {
            let lost = self.transact_revoking(buffer, drain, |transaction, slot| {
                transaction.lose_unless_arrived(slot, drain)
            });
            debug_assert!(lost.is_ok(), "{lost:?}");
        }
    }

    /// From here on nobody waits: the last who lets go ends the revoke.
    fn all_are_told(&self, drain: &Arc<Drain>) {
        let ghosts: Vec<(GhostId, FenceSet)> = {
            let mut held = Held::in_destructor();
            let state = self.vram.state.lock(&mut held);
            state.heap.ghosts().map(|(id, fences)| (id, fences.clone())).collect()
        };
        ghosts.iter().for_each(|(ghost, fences)| drain.await_work(fences, Some(*ghost)));
        drain.await_work(&self.queued_so_far(), None);
        let draining = self.revocation.drain();
        debug_assert!(draining.is_ok(), "who begins a revoke makes its next step");
        drain.told_all(Instant::now());
        self.look_after(drain);
    }

    fn look_after(&self, drain: &Arc<Drain>) {
        let watched: Arc<dyn Watched> = drain.clone();
        self.watch(Arc::downgrade(&watched));
    }
}
