//! Eviction as a transaction: choose a set of victims, give them homes, then hand their bytes over in one step.
//!
//! ```text
//!   gather      region lock: escrow what is free; lock victims until the rest is covered
//!               somebody else holds a victim? wait if older, restart if younger (never "out of memory")
//!   find homes  hidden VRAM or system pages for every victim (homes.rs)         ── last step that can fail
//!   carry out   queue the copies, swap the victims' resources
//!               region lock: victims' bytes become ghosts, the evictor takes what it misses, in one hold
//! ```
//!
//! What the evictor has escrowed is noted as its *claim* under the region lock, and its buffer's reservation is held. So
//! whoever misses those bytes finds out whom to wait for, and space freed for one buffer cannot be stolen by another.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use devpagemap_allocator::Span;
use devpagemap_fence::sync::mutant;
use devpagemap_fence::sync::thread::yield_now;
use devpagemap_fence::{Fence, FenceSet, Slot};
use devpagemap_migrate::Urgency;

use super::homes::{Home, Refuge};
use super::plan::{Claim, Step};
use super::validate::{Found, Pass, Transaction};
use super::victims::Victim;
use super::{Away, BufferObject, Place};
use crate::error::Result;
use crate::region::{RegionKind, Resource, intersect};
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

/// A victim whose copy is queued: what it leaves behind, and what ends the use of that.
struct Left {
    slot: Slot,
    old: Resource,
    fence: Fence,
}

impl Transaction<'_, '_, '_> {
    /// Makes room for `buffer` at `place` and takes it; `None` when the victims find no room where the `pass` lets them go.
    pub(super) fn evict_for(
        &mut self,
        buffer: &Arc<BufferObject>,
        place: &Place,
        pass: Pass,
    ) -> Result<Option<Found>> {
        let mut claim = Claim::default();
        let refuge = if pass == Pass::Relocating { Refuge::Vram } else { Refuge::Anywhere };
        let homes = self.gather(buffer, place, pass, &mut claim).and_then(|victims| {
            let cleared = claim.window.clone().unwrap_or_else(|| self.manager.vram.range_of(place));
            self.find_homes(&victims, &cleared, refuge)
        });
        match homes {
            Ok(Some(homes)) => Ok(Some(self.carry_out(buffer, place, claim, homes))),
            Ok(None) => {
                self.give_up_claim(buffer, claim);
                Ok(None)
            }
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
        pass: Pass,
        claim: &mut Claim,
    ) -> Result<Vec<Victim>> {
        loop {
            let step = match place.contiguous {
                true => self.plan_window(buffer, place, pass, claim),
                false => self.plan_scattered(buffer, place, pass, claim),
            };
            match step {
                Step::Evict(victims) => {
                    self.unlock_bystanders(&victims);
                    return Ok(victims);
                }
                Step::WaitFor(other) => {
                    let slot = self.exec.lock(other.0.clone())?;
                    if mutant!("walk_goes_on_where_it_stood") {
                        return Ok(vec![Victim { slot, useful_bytes: other.0.footprint_bytes }]);
                    }
                }
                Step::TryAgain => yield_now(),
                Step::GiveUp(error) => return Err(error),
            }
        }
    }

    /// Unlocks what was locked on the way and is neither a member nor a victim.
    pub(crate) fn unlock_bystanders(&mut self, victims: &[Victim]) {
        let set = self.exec.set_mut();
        let needed =
            |slot: &Slot| self.members.contains(slot) || victims.iter().any(|victim| victim.slot == *slot);
        let bystanders: Vec<Slot> = set.slots().filter(|slot| !needed(slot)).collect();
        for slot in bystanders {
            set.unlock(slot);
        }
    }

    fn carry_out(
        &mut self,
        buffer: &Arc<BufferObject>,
        place: &Place,
        claim: Claim,
        homes: Vec<Home>,
    ) -> Found {
        let left: Vec<Left> = self.moving_for(self.making_visible(place), |transaction| {
            homes.into_iter().map(|home| transaction.leave_for(home)).collect()
        });
        let slots: Vec<Slot> = left.iter().map(|left| left.slot).collect();
        let found = self.hand_over(buffer, place, claim, left);
        for slot in slots {
            self.exec.set_mut().unlock(slot);
        }
        found
    }

    /// Queues one victim's copy to its new home and swaps its resource.
    fn leave_for(&mut self, home: Home) -> Left {
        let Home { slot, taken, region } = home;
        let victim = self.exec.set().arc(slot);
        debug_assert!(!self.is_pinned(slot), "buffer {} is pinned, and a victim", victim.id());
        let after = taken.after();
        let resource = Resource::new(region, taken.spans, None);
        let (old, fence) = self.queue_bytes(slot, &victim, resource, after, Urgency::Background);
        let old =
            old.expect("a victim has a resource: it was found on the LRU and its reservation is held since");
        let counters = &self.manager.counters;
        if region == RegionKind::Vram {
            Counters::count(&counters.relocations);
            Counters::add(&counters.relocated_bytes, victim.footprint_bytes);
            tracing::debug!(buffer = victim.id(), bytes = victim.footprint_bytes, "relocated within VRAM");
            return Left { slot, old, fence };
        }
        let away = self.moving_for.map_or(Away::Evicted, |_| Away::EvictedForVisibility);
        self.exec.set_mut().state_mut(slot).away = Some(away);
        victim.evictions.fetch_add(1, Ordering::Relaxed);
        Counters::count(&counters.evictions);
        Counters::add(&counters.evicted_bytes, victim.footprint_bytes);
        tracing::debug!(buffer = victim.id(), bytes = victim.footprint_bytes, "evicted");
        Left { slot, old, fence }
    }

    /// One hold of the region lock: relocated victims enter the LRU where they were, the bytes that victims left become ghosts, and the
    /// evictor takes what it still misses.
    fn hand_over(
        &mut self,
        buffer: &Arc<BufferObject>,
        place: &Place,
        claim: Claim,
        left: Vec<Left>,
    ) -> Found {
        let manager = self.manager;
        let (set, mut held) = self.exec.split();
        let mut ghosts = Vec::with_capacity(left.len());
        let (resource, after) = {
            let mut state = manager.vram.state.lock(&mut held);
            let mut taken = claim.taken;
            for Left { slot, old, fence } in &left {
                manager.vram.enter_relocated(&mut state, set, *slot, old);
                ghosts.extend(manager.vram.retire(&mut state, old, FenceSet::from(fence.clone())));
            }
            if mutant!("hand_over_in_two_holds") {
                drop(state);
                state = manager.vram.state.lock(&mut held);
            }
            let more = match &claim.window {
                None => {
                    manager.vram.take_up_to(&mut state, place, buffer.footprint_bytes - taken.len_bytes())
                }
                Some(window) => {
                    let vacated: Vec<Span> =
                        left.iter().flat_map(|left| intersect(&left.old.spans, window)).collect();
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
