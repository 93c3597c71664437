//! Which way a map takes: what the registry decides for its importer, and what all attachments of the buffer agree on.
//!
//! ```text
//!   registry: does it reach the BAR? ── the attachments: where is the buffer to be? ── a way for this map
//!     yes                                  Direct, Staged                                BAR
//!     needs none: a private link           Direct, Staged                                VRAM
//!     yes                                  System                                        system memory, with the others
//!     no                                   System                                        system memory
//!     no                                   Staged                                        a copy
//! ```
//!
//! The registry is asked at each map, which takes no lock, so nothing has to be told to attachments that map nothing. Those that do are
//! told when its answer for them changes (`reroute.rs`).

use std::sync::Arc;

use devpagemap_fence::Slot;

use super::arbiter::{Accord, Parties};
use super::attachment::Attached;
use super::map::Asked;
use super::peer_map::Mapped;
use crate::aperture::P2p;
use crate::bo::{BufferObject, Transaction};
use crate::error::{Error, Result};
use crate::events::PeerReason;
use crate::pagemap::{Decision, Direction, Holding, Route};
use crate::region::RegionKind;
use crate::submit::Access;

/// The way that a new map takes, and why it is not the BAR.
pub(super) enum Way {
    Bar,
    Link,
    System(PeerReason),
    Staged(PeerReason),
}

/// Whether an importer reaches the bytes where they are, to read and to write them.
pub(super) fn reaches_bar(decision: &Decision) -> bool {
    decision.route.is_p2p() && decision.p2p == Some(true) && decision.direction == Direction::BOTH
}

/// Whether it does so without the bus: over a private link, or because it is the device itself.
pub(super) fn is_linked(decision: &Decision) -> bool {
    matches!(decision.route, Route::PrivateLink | Route::SameDevice)
}

impl Transaction<'_, '_, '_> {
    /// Which way a map takes, before asking whether there is room on it.
    ///
    /// # Errors
    /// [`Error::NoPeerAccess`] when the importer, or the buffer, takes nothing but the BAR, and the importer does not reach it.
    /// [`Error::NotPeerCapable`] when the buffer cannot be there.
    pub(super) fn choose_way(&mut self, slot: Slot, asked: &Asked<'_>) -> Result<Way> {
        let (p2p, placement) = (asked.buffer.tags.p2p(), asked.buffer.placement());
        let joined = &asked.attached.joined;
        let must = p2p == P2p::Require || joined.requires_p2p();
        if p2p == P2p::Never {
            self.check_may_do_without(asked, joined.requires_p2p(), "it is not for peers")?;
            return Ok(self.way_beside_bar(slot, asked.buffer, PeerReason::Never));
        }
        if placement.in_vram().is_none() {
            self.check_may_do_without(asked, must, "its placement does not allow VRAM")?;
            return Ok(Way::System(PeerReason::LivesInSystemMemory));
        }
        if !reaches_bar(&asked.decision) {
            if must {
                return Err(self.no_peer_access(asked));
            }
            return Ok(match self.lives_in_system(slot, asked.buffer) {
                true => Way::System(PeerReason::LivesInSystemMemory),
                false => self.way_beside_bar(slot, asked.buffer, PeerReason::NoPeerAccess),
            });
        }
        let accord = self.accord(slot, asked.buffer);
        if accord == Accord::System && self.is_held_in_system(slot) && must {
            self.check_may_do_without(
                asked,
                must,
                "an importer that cannot be told holds it in system memory",
            )?;
        }
        let direct = if is_linked(&asked.decision) { Way::Link } else { Way::Bar };
        if must {
            return Ok(direct);
        }
        let others_in_system = self.exec.set().state(slot).peers.hold_system(Some(asked.attached));
        match accord {
            Accord::System => Ok(Way::System(PeerReason::SharedInSystemMemory)),
            // They fell back, and come back together.
            Accord::Direct if others_in_system => Ok(Way::System(PeerReason::SharedInSystemMemory)),
            Accord::Direct | Accord::Staged => Ok(match self.lives_in_system(slot, asked.buffer) {
                true => Way::System(PeerReason::LivesInSystemMemory),
                false => direct,
            }),
        }
    }

    fn check_may_do_without(&self, asked: &Asked<'_>, must: bool, why: &'static str) -> Result<()> {
        match must {
            true => Err(Error::NotPeerCapable { buffer: asked.buffer.id(), why }),
            false => Ok(()),
        }
    }

    fn no_peer_access(&self, asked: &Asked<'_>) -> Error {
        let importer = asked.attached.joined.name.clone();
        let why = self.manager.why_no_peer_access(&asked.attached.joined);
        Error::NoPeerAccess { buffer: asked.buffer.id(), importer, why }
    }

    /// Whether it is in system memory, and would not rather be in VRAM.
    fn lives_in_system(&self, slot: Slot, buffer: &BufferObject) -> bool {
        let is_in_vram = self.exec.set().state(slot).is_in_vram();
        buffer.tags.p2p() <= P2p::Allowed && !is_in_vram && !buffer.placement().prefers_vram()
    }

    /// For one who does not get the BAR: system memory with all others, or a copy.
    pub(super) fn way_beside_bar(
        &mut self,
        slot: Slot,
        buffer: &Arc<BufferObject>,
        reason: PeerReason,
    ) -> Way {
        let is_in_system = self.is_in_system(slot);
        match self.accord(slot, buffer) {
            // As long as it is there anyway.
            Accord::Staged if !is_in_system => Way::Staged(reason),
            Accord::Staged | Accord::System | Accord::Direct => Way::System(reason),
        }
    }

    /// What all attachments of the buffer agree on now.
    pub(super) fn accord(&mut self, slot: Slot, buffer: &BufferObject) -> Accord {
        if self.is_held_in_system(slot) {
            return Accord::System;
        }
        let never = buffer.tags.p2p() == P2p::Never;
        let is_in_vram = self.exec.set().state(slot).is_in_vram();
        let mut parties =
            Parties { prefers_vram: is_in_vram || buffer.placement().prefers_vram(), ..Parties::default() };
        for attached in self.exec.set().state(slot).peers.parties() {
            match !never && reaches_bar(&self.manager.decision(&attached.joined)) {
                true => {
                    parties.direct += 1;
                    parties.required |= attached.joined.requires_p2p();
                }
                false => parties.others += 1,
            }
        }
        parties.required |= buffer.tags.p2p() == P2p::Require;
        self.exec.set_mut().state_mut(slot).peers.arbiter.accord(parties)
    }

    /// Whether an importer that cannot be told keeps it in system memory.
    fn is_held_in_system(&self, slot: Slot) -> bool {
        self.exec.set().state(slot).peers.parties().any(|attached| {
            let profile = &attached.joined.profile;
            profile.holding == Holding::PinnedLong && !attached.joined.requires_p2p()
        })
    }

    /// An importer uses what it has mapped.
    pub(super) fn note_peer_use(&mut self, slot: Slot, mapped: &Mapped) {
        let (bytes, buffer_bytes) = self.bytes_of(slot, mapped);
        let arbiter = &mut self.exec.set_mut().state_mut(slot).peers.arbiter;
        arbiter.importer_uses(&mapped.decision, bytes, buffer_bytes);
    }

    /// A map has brought the buffer from VRAM to system memory, or back.
    pub(super) fn note_peer_move(&mut self, slot: Slot) {
        let buffer_bytes = self.exec.set().object(slot).footprint_bytes;
        self.exec.set_mut().state_mut(slot).peers.arbiter.was_moved(buffer_bytes);
    }

    /// An importer has written to what it has mapped.
    pub(super) fn note_peer_write(&mut self, slot: Slot, mapped: &Mapped) {
        let (bytes, buffer_bytes) = self.bytes_of(slot, mapped);
        let arbiter = &mut self.exec.set_mut().state_mut(slot).peers.arbiter;
        arbiter.importer_wrote(&mapped.decision, bytes, buffer_bytes);
    }

    fn bytes_of(&self, slot: Slot, mapped: &Mapped) -> (u64, u64) {
        (mapped.range.end - mapped.range.start, self.exec.set().object(slot).footprint_bytes)
    }

    /// A job uses a buffer that importers may have attached to.
    pub(crate) fn note_job(&mut self, slot: Slot, access: Access) {
        if self.exec.set().state(slot).peers.is_empty() {
            return;
        }
        let buffer = self.exec.set().arc(slot);
        let state = self.exec.set_mut().state_mut(slot);
        let in_system = buffer.placement().allows(RegionKind::Gtt);
        state.peers.arbiter.job_uses(access == Access::Write, buffer.footprint_bytes, in_system);
        if access == Access::Write {
            self.note_write(slot);
        }
    }
}

impl Attached {
    /// Whether it can be told to let go.
    pub(super) fn is_told(&self) -> bool {
        self.joined.is_dynamic()
    }
}
