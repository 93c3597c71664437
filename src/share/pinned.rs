//! Importers that cannot be told to let go.
//!
//! | the importer holds | what keeps the buffer where it is | for how long |
//! |---|---|---|
//! | for as long as it is attached | the attachment: in system memory, or in the BAR if it requires that | until it is detached and has unmapped |
//! | for a transfer | each map, wherever the buffer is | until it is unmapped, or its time is up |
//!
//! Who is held is not evicted, and who needs the buffer elsewhere gets [`Error::Pinned`]. Two ways lead out, both told as
//! [`InvalidateReason::Revoked`] and followed by [`Error::Revoked`] for that attachment:
//!
//! - a transfer that takes longer than its importer has said: the watchdog notices, and the device's thread takes the map away;
//! - a revocable importer, when an eviction has found nobody else.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Instant;

use devpagemap_fence::sync::atomic::Ordering;
use devpagemap_fence::{Held, Lock, Slot, Watched, levels};

use super::attachment::{Attached, Revoked};
use super::importer::InvalidateReason;
use super::peer_map::{Mapped, PeerMap};
use super::promote::Promoter;
use crate::aperture::{OnPressure, P2p};
use crate::bo::{Buffer, BufferObject, Place, Transaction, WeakBuffer};
use crate::cpu::Hold;
use crate::error::{Error, Result};
use crate::events::Event;
use crate::manager::Manager;
use crate::pagemap::Holding;
use crate::region::{RegionKind, bytes_within};

/// What keeps a buffer where it is as long as its importer is attached.
pub(super) struct Pin {
    /// Its pages in the BAR, for one who requires that.
    _map: Option<PeerMap>,
    _hold: Hold,
}

/// One transfer's map.
type PinKey = (u64, u64, u64, u64);

struct ShortPin {
    until: Instant,
    buffer: WeakBuffer,
    mapped: Weak<Mapped>,
}

/// Maps that have a time limit. Its own lock.
pub(crate) struct ShortPins(Lock<levels::Aperture, BTreeMap<PinKey, ShortPin>>);

impl ShortPins {
    pub(crate) fn new() -> ShortPins {
        ShortPins(Lock::new("short pins", BTreeMap::new()))
    }

    /// Those whose time is up by `now`, which are forgotten.
    fn overdue(&self, now: Instant) -> Vec<(Buffer, Arc<Mapped>)> {
        let mut held = Held::in_destructor();
        let mut pins = self.0.lock(&mut held);
        let ended = pins.extract_if(.., |_, pin| {
            pin.until <= now || pin.mapped.upgrade().is_none_or(|mapped| !mapped.is_live())
        });
        let ended: Vec<ShortPin> = ended.map(|(_, pin)| pin).collect();
        drop(pins);
        let overdue =
            ended.into_iter().filter_map(|pin| Some((pin.buffer.upgrade()?, pin.mapped.upgrade()?)));
        overdue.filter(|(_, mapped)| mapped.is_live()).collect()
    }

    /// When the first is overdue.
    fn next(&self) -> Option<Instant> {
        self.0.lock(&mut Held::in_destructor()).values().map(|pin| pin.until).min()
    }
}

/// Looks at the clock for short pins, and has the device's thread take away what is overdue.
pub(crate) struct PinWatch {
    pub(crate) pins: Arc<ShortPins>,
    pub(crate) promoter: Arc<Promoter>,
}

impl Watched for PinWatch {
    fn check(&self, now: Instant) -> Option<Instant> {
        let next = self.pins.next()?;
        if next > now {
            return Some(next);
        }
        self.promoter.run_errands();
        None
    }
}

impl Transaction<'_, '_, '_> {
    /// An importer is attached to the buffer in `slot`.
    ///
    /// # Errors
    /// Why the buffer cannot be kept where one that is not told needs it.
    pub(super) fn enter_peer(&mut self, slot: Slot, attached: &Arc<Attached>) -> Result<()> {
        let manager = self.manager;
        let (set, mut held) = self.exec.split();
        set.state_mut(slot).peers.enter(attached);
        manager.shared.note(&set.arc(slot), &mut held);
        if attached.joined.profile.holding == Holding::PinnedLong {
            self.pin_for(slot, attached)?;
        }
        Ok(())
    }

    fn pin_for(&mut self, slot: Slot, attached: &Arc<Attached>) -> Result<()> {
        self.exec.set().state(slot).check_not_lost()?;
        let buffer = self.exec.set().arc(slot);
        let map = match attached.joined.requires_p2p() {
            true => {
                let (all, decision) = (0..buffer.footprint_bytes, self.manager.decision(&attached.joined));
                Some(self.map_range(slot, attached, &all, OnPressure::Demote, decision)?)
            }
            false => {
                self.come_to_system(slot, attached, &buffer)?;
                None
            }
        };
        let pin = Pin { _map: map, _hold: self.hold(slot) };
        attached.pin(pin);
        Ok(())
    }

    /// Brings the buffer to system memory, to stay there.
    fn come_to_system(&mut self, slot: Slot, attached: &Attached, buffer: &BufferObject) -> Result<()> {
        self.check_may_be_held_in_system(slot, attached)?;
        self.bring_to_system(slot, buffer)
    }

    /// # Errors
    /// [`Error::NotPeerCapable`] for a buffer that has to be where the BAR shows it.
    pub(super) fn check_may_be_held_in_system(&self, slot: Slot, attached: &Attached) -> Result<()> {
        let buffer = self.exec.set().object(slot);
        if buffer.tags.p2p() == P2p::Require || self.is_required_by_another(slot, attached) {
            let why = "an importer that cannot be told holds system memory, and others need the BAR";
            return Err(Error::NotPeerCapable { buffer: buffer.id(), why });
        }
        Ok(())
    }

    /// What keeps the buffer where it is for one map of an importer that is not told.
    pub(super) fn hold_for(&mut self, slot: Slot, attached: &Attached) -> Option<Hold> {
        (!attached.is_told()).then(|| self.hold(slot))
    }

    /// The time of a map that has one runs from now on.
    pub(super) fn note_short_pin(&mut self, slot: Slot, mapped: &Arc<Mapped>) {
        let Holding::PinnedShort { longest } = mapped.attached.joined.profile.holding else { return };
        let manager = self.manager;
        let (set, mut held) = self.exec.split();
        let buffer = set.arc(slot);
        let key = (buffer.id(), mapped.attached.id, mapped.range.start, mapped.range.end);
        let pin = ShortPin {
            until: Instant::now() + longest,
            buffer: WeakBuffer::of(&buffer),
            mapped: Arc::downgrade(mapped),
        };
        manager.short_pins.0.lock(&mut held).insert(key, pin);
        manager.watch_short_pins();
    }

    /// Takes an attachment away from its importer, for good. The caller has reserved fence slots for the importers.
    pub(super) fn revoke_attachment(&mut self, slot: Slot, attached: &Arc<Attached>, why: Revoked) {
        attached.revoke(why);
        self.invalidate_those(slot, InvalidateReason::Revoked, |mapped| mapped.attached.id == attached.id);
        drop(attached.unpin());
        let manager = self.manager;
        let (set, mut held) = self.exec.split();
        let (buffer, importer) = (set.object(slot).id(), attached.joined.name.clone());
        manager.tell(Event::AttachmentRevoked { buffer, importer, why: why.text() }, &mut held);
    }

    /// Takes away from a revocable importer what keeps a buffer at `place`, when nothing else could make room there. Says whether there was
    /// one.
    ///
    /// # Errors
    /// [`Error::Contended`]: restart.
    pub(crate) fn revoke_for(&mut self, place: &Place) -> Result<bool> {
        let range = self.manager.vram.range_of(place);
        let (_, mut held) = self.exec.split();
        let shared = self.manager.shared.all(&mut held);
        for buffer in shared {
            if buffer.0.holds.load(Ordering::Acquire) == 0 {
                continue;
            }
            let slot = match self.exec.set_mut().try_lock(buffer.0.clone()) {
                Some(slot) => slot,
                None => self.exec.lock(buffer.0.clone())?,
            };
            let in_the_way = self.resource(slot).is_some_and(|resource| {
                resource.region == RegionKind::Vram && bytes_within(&resource.spans, &range) > 0
            });
            if in_the_way && let Some(held_by) = self.who_can_be_revoked(slot) {
                self.reserve_fences(slot, 0)?;
                held_by.iter().for_each(|attached| {
                    self.revoke_attachment(slot, attached, Revoked::LastResort);
                });
                self.unlock_bystanders(&[]);
                return Ok(true);
            }
        }
        self.unlock_bystanders(&[]);
        Ok(false)
    }

    /// Those who keep the buffer where it is, if nobody else does and all of them can be revoked.
    fn who_can_be_revoked(&self, slot: Slot) -> Option<Vec<Arc<Attached>>> {
        let peers = &self.exec.set().state(slot).peers;
        let mut holds = 0;
        let mut found = Vec::new();
        for attached in peers.parties() {
            let count = usize::from(attached.has_pin()) + peers.holds(attached.id);
            if count > 0 && !attached.joined.profile.revocable {
                return None;
            }
            if count > 0 {
                found.push(attached.clone());
            }
            holds += count;
        }
        let all = self.exec.set().object(slot).holds.load(Ordering::Acquire) == holds;
        (all && holds > 0).then_some(found)
    }
}

impl Manager {
    /// There is one more map with a time limit.
    fn watch_short_pins(&self) {
        // A model has no clock.
        #[cfg(not(any(loom, shuttle)))]
        {
            self.promoter.start(self.weak());
            self.poke_watchdog();
        }
    }

    /// Takes away what transfers hold whose time is up.
    pub(super) fn revoke_overdue(&self) {
        for (buffer, mapped) in self.short_pins.overdue(Instant::now()) {
            let result = buffer.transact(|transaction, slot| {
                transaction.reserve_fences(slot, 0)?;
                if mapped.is_live() {
                    transaction.revoke_attachment(slot, &mapped.attached, Revoked::Overdue);
                }
                Ok(())
            });
            if let Err(error) = result {
                tracing::error!(buffer = buffer.id(), %error, "an overdue map could not be taken away");
            }
        }
        if self.short_pins.next().is_some() {
            self.watch_short_pins();
        }
    }
}
