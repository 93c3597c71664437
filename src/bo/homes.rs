//! Where victims go: elsewhere in VRAM when only a part of VRAM has to be cleared, else to system memory.
//!
//! ```text
//!   0          visible_bytes                                size_bytes
//!   │ must be cleared │                 free ░░░░               │
//!   └── victim ───────┼─────── relocated ──►┘                   │
//!              └──────┼── no room, or its placement forbids ────┼──► system memory
//! ```
//!
//! A relocated buffer is still where the GPU wants it, and its bytes never cross the bus. It takes only what is free (idle or behind
//! a fence, which is the same number of bytes in every run) and keeps its age on the LRU.

use std::ops::Range;

use devpagemap_fence::Slot;

use super::make_way::places_outside;
use super::validate::Transaction;
use super::victims::Victim;
use crate::error::Result;
use crate::region::{RegionKind, Taken};

/// Where the victims of an eviction may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refuge {
    /// Elsewhere in VRAM only.
    Vram,
    /// Elsewhere in VRAM as far as there is room, else to system memory.
    Anywhere,
}

/// A victim and the memory that it will live in.
pub(super) struct Home {
    pub(super) slot: Slot,
    pub(super) taken: Taken,
    pub(super) region: RegionKind,
}

impl Transaction<'_, '_, '_> {
    /// A home outside of the `cleared` bytes of VRAM for every victim, or for none; `None` when `refuge` has no room.
    pub(super) fn find_homes(
        &mut self,
        victims: &[Victim],
        cleared: &Range<u64>,
        refuge: Refuge,
    ) -> Result<Option<Vec<Home>>> {
        let mut homes = Vec::with_capacity(victims.len());
        for victim in victims {
            match self.find_home(victim.slot, cleared, refuge) {
                Ok(Some(home)) => homes.push(home),
                Ok(None) => {
                    self.give_up_homes(homes);
                    return Ok(None);
                }
                Err(error) => {
                    self.give_up_homes(homes);
                    return Err(error);
                }
            }
        }
        Ok(Some(homes))
    }

    fn find_home(&mut self, slot: Slot, cleared: &Range<u64>, refuge: Refuge) -> Result<Option<Home>> {
        self.reserve_fences(slot, 2)?;
        if let Some(taken) = self.take_elsewhere(slot, cleared) {
            return Ok(Some(Home { slot, taken, region: RegionKind::Vram }));
        }
        match refuge {
            Refuge::Vram => Ok(None),
            Refuge::Anywhere => self.find_home_in_system(slot).map(Some),
        }
    }

    /// Free bytes of VRAM outside of `cleared` where the placement of the buffer in `slot` lets it be.
    fn take_elsewhere(&mut self, slot: Slot, cleared: &Range<u64>) -> Option<Taken> {
        let (set, mut held) = self.exec.split();
        let victim = set.object(slot);
        let vram = &self.manager.vram;
        let places = places_outside(vram, victim, cleared);
        if places.is_empty() {
            return None;
        }
        let mut state = vram.state.lock(&mut held);
        places.iter().find_map(|place| vram.take(&mut state, place, victim.footprint_bytes))
    }

    fn find_home_in_system(&mut self, slot: Slot) -> Result<Home> {
        let (set, mut held) = self.exec.split();
        let len_bytes = set.object(slot).footprint_bytes;
        self.manager.take_pages(len_bytes, &mut held, |state, taken| {
            state.system_used_bytes += len_bytes;
            Home { slot, taken, region: RegionKind::System }
        })
    }

    fn give_up_homes(&mut self, homes: Vec<Home>) {
        let (_, mut held) = self.exec.split();
        let (in_vram, in_system): (Vec<_>, Vec<_>) =
            homes.into_iter().partition(|home| home.region == RegionKind::Vram);
        let mut ghosts = Vec::new();
        {
            let mut state = self.manager.vram.state.lock(&mut held);
            in_vram.into_iter().for_each(|home| ghosts.extend(state.heap.give_back_unused(home.taken)));
        }
        self.manager.reap_when_signaled(RegionKind::Vram, std::mem::take(&mut ghosts));
        {
            let mut state = self.manager.system.state.lock(&mut held);
            for home in in_system {
                state.leave(RegionKind::System, home.taken.len_bytes(), None);
                ghosts.extend(state.heap.give_back_unused(home.taken));
            }
        }
        self.manager.reap_when_signaled(RegionKind::System, ghosts);
    }
}
