//! Eviction as a transaction: choose a set of victims, give them homes, then hand their bytes over in one step.
//!
//! ```text
//!   gather      region lock: escrow what is free; lock victims until the rest is covered
//!               somebody else holds a victim? wait if older, restart if younger (never "out of memory")
//!   find homes  system pages for every victim                                   ── last step that can fail
//!   carry out   queue the copies, swap the victims' resources
//!               region lock: victims' bytes become ghosts, the evictor takes what it misses, in one hold
//! ```
//!
//! What the evictor has escrowed is noted as its *claim* under the region lock, and its buffer's reservation is held. So
//! whoever misses those bytes finds out whom to wait for, and space freed for one buffer cannot be stolen by another.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use devpagemap_allocator::Span;
use devpagemap_fence::sync::thread::yield_now;
use devpagemap_fence::{Fence, FenceSet, Slot};
use devpagemap_migrate::Urgency;

use super::plan::{Claim, Step};
use super::validate::{Found, Transaction};
use super::victims::Victim;
use super::{BufferObject, Place};
use crate::error::Result;
use crate::region::{RegionKind, Resource, Taken, intersect};
use crate::stats::Counters;

/// Who is evicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EvictionPolicy {
    /// The least recently used *set* that makes the room: by priority and age, without those that turn out not to be
    /// needed; for contiguous memory the window that moves the fewest bytes.
    #[default]
    LruSet,
    /// By priority and age, one after the other until the request fits, as TTM does.
    Lru,
}

impl EvictionPolicy {
    /// The name that command lines use.
    pub fn name(self) -> &'static str {
        match self {
            EvictionPolicy::LruSet => "lru-set",
            EvictionPolicy::Lru => "lru",
        }
    }
}

/// A victim and the system memory that it will live in.
struct Home {
    slot: Slot,
    taken: Taken,
}

impl Transaction<'_, '_, '_> {
    /// Makes room for `buffer` at `place` and takes it.
    pub(super) fn evict_for(&mut self, buffer: &Arc<BufferObject>, place: &Place) -> Result<Found> {
        let mut claim = Claim::default();
        let homes = self.gather(buffer, place, &mut claim).and_then(|victims| self.find_homes(&victims));
        match homes {
            Ok(homes) => Ok(self.carry_out(buffer, place, claim, homes)),
            Err(error) => {
                self.give_up_claim(buffer, claim);
                Err(error)
            }
        }
    }

    fn give_up_claim(&mut self, buffer: &BufferObject, claim: Claim) {
        let (_, mut held) = self.exec.split();
        let ghosts = {
            let mut state = self.manager.vram.state.lock(&mut held);
            state.claims.remove(&buffer.id());
            state.heap.give_back_unused(claim.taken)
        };
        self.manager.reap_when_signaled(RegionKind::Vram, ghosts);
    }

    fn gather(
        &mut self,
        buffer: &Arc<BufferObject>,
        place: &Place,
        claim: &mut Claim,
    ) -> Result<Vec<Victim>> {
        loop {
            let step = match place.contiguous {
                true => self.plan_window(buffer, place, claim),
                false => self.plan_scattered(buffer, place, claim),
            };
            match step {
                Step::Evict(victims) => {
                    self.unlock_bystanders(&victims);
                    return Ok(victims);
                }
                #[cfg(loom_mutant = "walk_goes_on_where_it_stood")]
                Step::WaitFor(other) => {
                    let slot = self.exec.lock(other.0.clone())?;
                    return Ok(vec![Victim { slot, useful_bytes: other.0.footprint_bytes }]);
                }
                #[cfg(not(loom_mutant = "walk_goes_on_where_it_stood"))]
                Step::WaitFor(other) => drop(self.exec.lock(other.0.clone())?),
                Step::TryAgain => yield_now(),
                Step::GiveUp(error) => return Err(error),
            }
        }
    }

    /// Unlocks what was locked on the way and is neither a member nor a victim.
    pub(super) fn unlock_bystanders(&mut self, victims: &[Victim]) {
        let set = self.exec.set_mut();
        let needed =
            |slot: &Slot| self.members.contains(slot) || victims.iter().any(|victim| victim.slot == *slot);
        let bystanders: Vec<Slot> = set.slots().filter(|slot| !needed(slot)).collect();
        for slot in bystanders {
            set.unlock(slot);
        }
    }

    /// System memory for every victim, or for none.
    fn find_homes(&mut self, victims: &[Victim]) -> Result<Vec<Home>> {
        let mut homes = Vec::with_capacity(victims.len());
        for victim in victims {
            match self.find_home(victim.slot) {
                Ok(home) => homes.push(home),
                Err(error) => {
                    self.give_up_homes(homes);
                    return Err(error);
                }
            }
        }
        Ok(homes)
    }

    fn find_home(&mut self, slot: Slot) -> Result<Home> {
        let (set, mut held) = self.exec.split();
        set.reserve_fences(slot, 2)?;
        let len_bytes = set.object(slot).footprint_bytes;
        self.manager.system.take(len_bytes, &mut held, |state, taken| {
            state.system_used_bytes += len_bytes;
            Home { slot, taken }
        })
    }

    fn give_up_homes(&mut self, homes: Vec<Home>) {
        let (_, mut held) = self.exec.split();
        let mut ghosts = Vec::new();
        {
            let mut state = self.manager.system.state.lock(&mut held);
            for home in homes {
                state.leave(RegionKind::System, home.taken.len_bytes(), None);
                ghosts.extend(state.heap.give_back_unused(home.taken));
            }
        }
        self.manager.reap_when_signaled(RegionKind::System, ghosts);
    }

    fn carry_out(
        &mut self,
        buffer: &Arc<BufferObject>,
        place: &Place,
        claim: Claim,
        homes: Vec<Home>,
    ) -> Found {
        let slots: Vec<Slot> = homes.iter().map(|home| home.slot).collect();
        let left: Vec<(Resource, Fence)> = homes.into_iter().map(|home| self.evict(home)).collect();
        let found = self.hand_over(buffer, place, claim, left);
        for slot in slots {
            self.exec.set_mut().unlock(slot);
        }
        found
    }

    /// Queues one victim's copy and swaps its resource; returns the old one and what ends its use.
    fn evict(&mut self, home: Home) -> (Resource, Fence) {
        let victim = self.exec.set().arc(home.slot);
        let after = home.taken.after();
        let resource = Resource::new(RegionKind::System, home.taken.spans, None);
        let (old, fence) = self.queue_bytes(home.slot, &victim, resource, after, Urgency::Background);
        let old =
            old.expect("a victim has a resource: it was found on the LRU and its reservation is held since");
        self.exec.set_mut().state_mut(home.slot).evicted = true;
        victim.evictions.fetch_add(1, Ordering::Relaxed);
        Counters::count(&self.manager.counters.evictions);
        Counters::add(&self.manager.counters.evicted_bytes, victim.footprint_bytes);
        tracing::debug!(buffer = victim.id(), bytes = victim.footprint_bytes, "evicted");
        (old, fence)
    }

    /// One hold of the region lock: the victims' bytes become ghosts, and the evictor takes what it still misses.
    fn hand_over(
        &mut self,
        buffer: &Arc<BufferObject>,
        place: &Place,
        claim: Claim,
        left: Vec<(Resource, Fence)>,
    ) -> Found {
        let manager = self.manager;
        let (_, mut held) = self.exec.split();
        let mut ghosts = Vec::with_capacity(left.len());
        let (resource, after) = {
            let mut state = manager.vram.state.lock(&mut held);
            let mut taken = claim.taken;
            for (old, fence) in &left {
                ghosts.extend(manager.vram.retire(&mut state, old, FenceSet::from(fence.clone())));
            }
            #[cfg(loom_mutant = "hand_over_in_two_holds")]
            let mut state = {
                drop(state);
                manager.vram.state.lock(&mut held)
            };
            let more = match &claim.window {
                None => {
                    manager.vram.take_up_to(&mut state, place, buffer.footprint_bytes - taken.len_bytes())
                }
                Some(window) => {
                    let vacated: Vec<Span> =
                        left.iter().flat_map(|(old, _)| intersect(&old.spans, window)).collect();
                    state.heap.take_exact(&vacated)
                }
            };
            taken.merge(more);
            assert_eq!(taken.len_bytes(), buffer.footprint_bytes, "victims make up exactly what was missing");
            state.claims.remove(&buffer.id());
            let after = taken.after();
            (manager.vram.install(&mut state, buffer, taken.spans), after)
        };
        manager.reap_when_signaled(RegionKind::Vram, ghosts);
        Found::Memory(resource, after)
    }
}
