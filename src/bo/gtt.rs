//! Room in GTT. It is a budget, not a place: GTT and System share their pages, so making room copies nothing.

use std::sync::Arc;

use devpagemap_fence::sync::mutant;
use devpagemap_fence::sync::thread::yield_now;

use super::BufferObject;
use super::plan::{Claimed, Step, when_short};
use super::validate::{Pass, Transaction};
use super::victims::{Walk, walk};
use crate::error::{Error, Result};
use crate::region::RegionKind;
use crate::stats::Counters;

impl Transaction<'_, '_, '_> {
    /// Claims a GTT budget for `buffer`, evicting others to System if the pass allows; that copies nothing.
    pub(super) fn claim_gtt(&mut self, buffer: &Arc<BufferObject>, pass: Pass) -> Result<bool> {
        let wanted_bytes = buffer.footprint_bytes;
        let limit_bytes = self.manager.system.gtt_bytes;
        if wanted_bytes > limit_bytes {
            return Err(Error::TooLarge { region: RegionKind::Gtt, wanted_bytes, limit_bytes });
        }
        loop {
            let departures = self.manager.export_departures();
            let (set, mut held) = self.exec.split();
            let (walk, free_bytes, pinned_bytes, in_transit) = {
                let mut state = self.manager.system.state.lock(&mut held);
                let free_bytes = limit_bytes - state.gtt_used_bytes;
                if wanted_bytes <= free_bytes {
                    state.claim_gtt(wanted_bytes);
                    return Ok(true);
                }
                if pass == Pass::Free {
                    return Ok(false);
                }
                let walk =
                    walk(set, &self.members, &state.lru, wanted_bytes - free_bytes, |node| node.len_bytes);
                if walk.useful_bytes >= wanted_bytes - free_bytes {
                    for victim in &walk.victims {
                        self.manager.recount(set, victim.slot, RegionKind::System, &mut state);
                        Counters::count(&self.manager.counters.gtt_demotions);
                    }
                    state.claim_gtt(wanted_bytes);
                }
                (walk, free_bytes, state.lru.pinned_bytes(), state.gtt_in_transit())
            };
            if walk.useful_bytes >= wanted_bytes - free_bytes {
                self.unlock_bystanders(&[]);
                return Ok(true);
            }
            let exhausted = |walk: &Walk| Error::Exhausted {
                region: RegionKind::Gtt,
                wanted_bytes,
                free_bytes: free_bytes + walk.useful_bytes,
                pinned_bytes,
                held_bytes: walk.held_bytes,
            };
            let in_transit = if in_transit && !mutant!("gtt_in_transit_is_exhaustion") {
                Claimed::Unnamed
            } else {
                Claimed::Nobody
            };
            match when_short(walk, in_transit, exhausted) {
                Step::WaitFor(other) => drop(self.exec.lock(other.0.clone())?),
                Step::GiveUp(_) if self.manager.let_go_of_exports(departures) => {}
                Step::GiveUp(error) => return Err(error),
                Step::TryAgain | Step::Evict(_) => yield_now(),
            }
        }
    }
}
