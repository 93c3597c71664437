//! Demotion: buffers of lower rank leave the BAR for one that has no room in it.
//!
//! ```text
//!   choose      ledger: whose pages would do, lowest rank first
//!   lock        try each reservation; somebody else holds one? wait for it, or restart, and choose again
//!   find homes  system memory for each                                        ── last step that can fail
//!   carry out   end its maps; the pages that frees are set aside for whom they are freed
//!               queue its copy, behind the importers' fences
//! ```
//!
//! Nothing waits. The pages that were freed count for the newcomer at once, and it queues behind the fences of those who had them.

use std::collections::HashSet;
use std::sync::Arc;

use devpagemap_fence::sync::mutant;
use devpagemap_fence::sync::thread::yield_now;
use devpagemap_fence::{FenceSet, Slot};
use devpagemap_migrate::Urgency;

use super::importer::InvalidateReason;
use super::map::Denied;
use crate::aperture::{Over, Room, Wish};
use crate::bo::{BufferObject, Found, Pass, Place, Transaction, member_ids};
use crate::error::{Error, Result};
use crate::events::{Event, PeerReason};
use crate::region::{RegionKind, Resource};

/// The system memory that a buffer will live in, and its former users.
struct Home {
    resource: Resource,
    after: FenceSet,
}

/// A buffer that makes way.
struct Demotion {
    slot: Slot,
    buffer: Arc<BufferObject>,
    home: Home,
}

/// Why nobody makes way.
const NO_HOME: &str = "demotion from the BAR: no system memory for those who would make way";

/// What came of locking those that should make way.
enum Step {
    Demote(Vec<(Slot, Arc<BufferObject>)>),
    Again,
    TooFew,
}

impl Transaction<'_, '_, '_> {
    /// Has buffers of lower rank than that of `wish` make way. Says whether they did; if they are not enough all together, nobody
    /// does.
    ///
    /// # Errors
    /// [`Error::Contended`]: restart. Or `over`, when there is no system memory for them.
    pub(super) fn demote_for(
        &mut self,
        wish: &Wish,
        over: &Over,
        room: &mut Room<'_>,
    ) -> Result<bool, Denied> {
        // Others of a group are mapped together with this one.
        let mut immovable = member_ids(self.exec.set(), &self.members);
        loop {
            let victims = match self.choose_demotions(wish, over, &immovable).map_err(Denied::Place)? {
                Step::Demote(victims) => victims,
                Step::Again => continue,
                Step::TooFew => return Ok(false),
            };
            match self.find_demotion_homes(victims) {
                Ok(demotions) => {
                    demotions.into_iter().for_each(|demotion| self.demote(demotion, wish, over, room));
                    self.unlock_bystanders(&[]);
                    return Ok(true);
                }
                Err(Error::Pinned { buffer, .. }) => drop(immovable.insert(buffer)),
                Err(Error::Contended) => return Err(Denied::Place(Error::Contended)),
                Err(error) => {
                    self.unlock_bystanders(&[]);
                    tracing::debug!(%error, "nobody is demoted");
                    let (_, mut held) = self.exec.split();
                    self.manager.reasons.count(NO_HOME, &mut held);
                    return Err(Denied::Over(*over, over.refusal(wish)));
                }
            }
        }
    }

    fn choose_demotions(&mut self, wish: &Wish, over: &Over, immovable: &HashSet<u64>) -> Result<Step> {
        let (set, mut held) = self.exec.split();
        let candidates = self.manager.ledger.candidates(wish, over, |id| immovable.contains(&id), &mut held);
        if candidates.iter().map(|candidate| candidate.pages).sum::<u64>() < over.missing_pages {
            self.unlock_bystanders(&[]);
            return Ok(Step::TooFew);
        }
        let mut victims = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            tracing::trace!(buffer = candidate.id, pages = candidate.pages, "may make way");
            let Some(buffer) = candidate.buffer.upgrade() else {
                yield_now();
                return Ok(Step::Again);
            };
            let Some(slot) = set.try_lock(buffer.0.clone()) else {
                // Whoever holds it may be ending its maps: that is no reason to give up.
                self.exec.lock(buffer.0.clone())?;
                return Ok(Step::Again);
            };
            if !set.state(slot).peers.hold_bar() {
                if mutant!("a_map_that_is_going_has_no_pages") {
                    return Ok(Step::TooFew);
                }
                // Its last map is just going, and is about to give its pages back.
                yield_now();
                return Ok(Step::Again);
            }
            victims.push((slot, buffer.0.clone()));
        }
        Ok(Step::Demote(victims))
    }

    /// System memory for every one, or for none.
    fn find_demotion_homes(&mut self, victims: Vec<(Slot, Arc<BufferObject>)>) -> Result<Vec<Demotion>> {
        let mut demotions: Vec<Demotion> = Vec::with_capacity(victims.len());
        for (slot, buffer) in victims {
            match self.find_demotion_home(slot, &buffer) {
                Ok(home) => demotions.push(Demotion { slot, buffer, home }),
                Err(error) => {
                    for Demotion { home, .. } in demotions {
                        self.manager.retire(home.resource, home.after);
                    }
                    return Err(error);
                }
            }
        }
        Ok(demotions)
    }

    fn find_demotion_home(&mut self, slot: Slot, buffer: &Arc<BufferObject>) -> Result<Home> {
        self.reserve_fences(slot, 2)?;
        let mut found = None;
        if buffer.placement().allows(RegionKind::Gtt) {
            found = self.find(slot, buffer, &Place::GTT, Pass::Free)?;
        }
        if found.is_none() {
            found = self.find(slot, buffer, &Place::SYSTEM, Pass::Free)?;
        }
        match found {
            Some(Found::Memory(resource, after)) => Ok(Home { resource, after }),
            _ => unreachable!("who is in the BAR is in VRAM, and system memory is found or an error"),
        }
    }

    /// Cannot fail.
    fn demote(&mut self, demotion: Demotion, wish: &Wish, over: &Over, room: &mut Room<'_>) {
        let Demotion { slot, buffer, home } = demotion;
        let ended = self.end_maps(slot, InvalidateReason::Demoted, |mapped| !mapped.is_staged);
        let reason = PeerReason::Outranked { by: wish.place.buffer };
        let (_, mut held) = self.exec.split();
        for (charge, until) in ended.charges {
            self.manager.demote_peer(charge, until, room, &mut held);
        }
        for importer in ended.importers {
            let demoted =
                Event::Demoted { buffer: buffer.id(), importer, reason, missing_pages: over.missing_pages };
            self.manager.tell(demoted, &mut held);
        }
        let Home { resource, mut after } = home;
        after.merge(&ended.until);
        let (old, fence) = self.queue_bytes(slot, &buffer, resource, after, Urgency::Background);
        if let Some(old) = old {
            self.manager.retire(old, FenceSet::from(fence));
        }
        self.wait_for_promotion(slot);
        tracing::debug!(buffer = buffer.id(), by = wish.place.buffer, "demoted");
    }
}
