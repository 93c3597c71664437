//! What the manager does with its [ledger](super::Ledger): admits peers, takes their pages back, and tells what happened.
//!
//! A crossing of a mark is made under the aperture lock and told outside of it. Two threads that crossed one after the other
//! could tell in the opposite order, and who listens would believe in a pressure that has ended. So crossings queue in the
//! ledger, and one thread at a time has the duty to tell them, the oldest first; who finds it taken leaves its own to that thread.
//!
//! Everything here may be called with reservations held, and in destructors and fence callbacks.

use std::sync::Arc;

use devpagemap_allocator::PAGE_BYTES;
use devpagemap_fence::sync::mutant;
use devpagemap_fence::{FenceSet, Held, levels};

use super::gate::Crossing;
use super::ledger::{Charge, Granted, Over, Released, Unreaped, Wish};
use crate::error::Error;
use crate::events::Event;
use crate::manager::Manager;
use crate::stats::Counters;

/// A wish that was granted.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// To be given to [`Manager::release_peer`] or [`Manager::demote_peer`].
    pub(crate) charge: Charge,
    /// What must have signalled before the importer's first access: it has inherited BAR pages from others.
    pub(crate) after: FenceSet,
}

/// Pages that a demoter has freed and nobody else can take. What is left of them when it is dropped is given back.
#[derive(Debug)]
pub(crate) struct Room<'m> {
    manager: &'m Manager,
    pages: u64,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if self.pages == 0 {
            return;
        }
        let mut held = Held::in_destructor();
        if self.manager.ledger.give_back_room(self.pages, &mut held) {
            self.manager.tell_crossings(&mut held);
        }
    }
}

impl Over {
    /// The error of a wish that is refused because of it.
    pub(crate) fn refusal(&self, wish: &Wish) -> Error {
        let bytes = |pages: u64| pages.saturating_mul(PAGE_BYTES);
        Error::ApertureFull {
            limit: self.limit,
            limit_bytes: bytes(self.limit_pages),
            used_bytes: bytes(self.used_pages),
            wanted_bytes: bytes(wish.pages.end - wish.pages.start),
        }
    }
}

impl Manager {
    /// Room for one wish: none yet.
    pub(crate) fn room(&self) -> Room<'_> {
        Room { manager: self, pages: 0 }
    }

    /// Charges a wish, with what was demoted for it. Takes the aperture lock.
    ///
    /// # Errors
    /// What the wish is over; then nothing has changed.
    pub(crate) fn admit_peer(
        &self,
        wish: &Wish,
        room: &mut Room<'_>,
        held: &mut Held<'_, levels::Tickets>,
    ) -> Result<Admitted, Over> {
        let Granted { charge, after, unreaped, crossed } = self.ledger.admit(wish, &mut room.pages, held)?;
        self.reap_pages_when_signaled(unreaped);
        if crossed {
            self.tell_crossings(held);
        }
        Ok(Admitted { charge, after })
    }

    /// Gives a map's pages back: they count until `fences` have signalled, or somebody inherits them. Takes the aperture lock.
    pub(crate) fn release_peer(
        &self,
        charge: Charge,
        fences: FenceSet,
        held: &mut Held<'_, levels::Tickets>,
    ) {
        let released = self.ledger.release(charge, fences, held);
        self.finish_release(released, held);
    }

    /// As [`release_peer`](Manager::release_peer), for a buffer that makes way: what that frees is `room`'s. Takes the aperture lock.
    pub(crate) fn demote_peer(
        &self,
        charge: Charge,
        fences: FenceSet,
        room: &mut Room<'_>,
        held: &mut Held<'_, levels::Tickets>,
    ) {
        let released = self.ledger.demote(charge, fences, &mut room.pages, held);
        self.finish_release(released, held);
    }

    fn finish_release(&self, released: Released, held: &mut Held<'_, levels::Tickets>) {
        self.reap_pages_when_signaled(released.unreaped);
        if released.crossed {
            self.tell_crossings(held);
        }
    }

    /// Lets pages count no more as soon as their fences signal, on whatever thread that happens.
    fn reap_pages_when_signaled(&self, unreaped: impl IntoIterator<Item = Unreaped>) {
        for Unreaped { id, fences } in unreaped {
            let ledger = Arc::downgrade(&self.ledger);
            let reap = move || {
                if let Some(ledger) = ledger.upgrade() {
                    ledger.reap(id, &mut Held::in_destructor());
                }
            };
            match mutant!("pages_that_are_late_are_forgotten") {
                false => fences.when_signaled(reap),
                true => drop(fences.on_signaled(reap)),
            }
        }
    }

    /// Tells crossings until none is left, unless another thread does. Takes the aperture lock.
    fn tell_crossings(&self, held: &mut Held<'_, levels::Tickets>) {
        let mut next = self.ledger.first_crossing(held);
        while let Some(crossing) = next {
            self.tell_crossing(&crossing, held);
            next = self.ledger.next_crossing(held);
        }
    }

    fn tell_crossing(&self, crossing: &Crossing, held: &mut Held<'_, levels::Tickets>) {
        let Crossing { level, began, used_pages, limit_pages } = *crossing;
        self.tell(
            match began {
                true => Event::BarPressure { level, used_pages, limit_pages },
                false => Event::BarRelief { level, used_pages, limit_pages },
            },
            held,
        );
    }

    /// Counts what happened, with its reason, and tells whoever listens. Takes the aperture lock.
    pub(crate) fn tell(&self, event: Event, held: &mut Held<'_, levels::Tickets>) {
        let counter = match &event {
            Event::Demoted { .. } => Some(&self.counters.demotions),
            Event::Promoted { .. } => Some(&self.counters.promotions),
            Event::FellBack { .. } => Some(&self.counters.p2p_fallbacks),
            Event::Refused { .. } => Some(&self.counters.p2p_refusals),
            Event::AttachmentRevoked { .. } => Some(&self.counters.revoked_attachments),
            _ => None,
        };
        counter.into_iter().for_each(Counters::count);
        if let Some(reason) = event.counted_as() {
            self.reasons.count(&reason, held);
        }
        tracing::debug!(%event, "aperture");
        self.events.emit(event, held);
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::collections::BTreeMap;
    use std::ops::Range;
    use std::sync::Mutex;

    use devpagemap_fence::Timeline;

    use super::*;
    use crate::aperture::{Account, BarLimit, P2p, P2pLimits, PlaceKey, PressureLevel, Rank};
    use crate::bo::{Buffer, WeakBuffer};
    use crate::events::PeerReason;
    use crate::{Device, Size, SoftwareGpu};

    fn device() -> Device<SoftwareGpu> {
        let gpu = SoftwareGpu::builder().build().expect("threads for the rings");
        let limits = P2pLimits {
            soft: Size::kib(32),
            reopen: Size::kib(16),
            hard: Size::kib(48),
            cpu_reserve: Size::kib(16),
        };
        let builder = Device::builder(gpu).vram(Size::kib(64)).system(Size::mib(1)).p2p_limits(limits);
        builder.build().expect("a small device")
    }

    fn wish(buffer: &Buffer, importer: &Account, pages: Range<u64>) -> Wish {
        Wish {
            place: PlaceKey { buffer: buffer.id(), generation: 0 },
            pages,
            importer: importer.id,
            client: buffer.0.client.id(),
            rank: Rank { p2p: P2p::Prefer, priority: 1 },
            buffer: WeakBuffer::of(&buffer.0),
        }
    }

    fn used_pages(device: &Device<SoftwareGpu>) -> [u64; 3] {
        let stats = device.stats();
        [stats.p2p_used_bytes, stats.p2p_pending_bytes, stats.p2p_peak_bytes].map(|bytes| bytes / PAGE_BYTES)
    }

    #[test]
    fn crossings_are_told_and_pages_count_until_their_fences_signal_whoever_signals_them() {
        let device = device();
        let events = device.events();
        let buffer = device.buffer(Size::kib(64)).create().expect("a buffer that fits");
        let manager = &buffer.0.manager;
        let mut held = Held::in_destructor();
        let importer = Account::open(&manager.ledger, &mut held);
        let admitted = manager.admit_peer(&wish(&buffer, &importer, 0..9), &mut manager.room(), &mut held);
        let admitted = admitted.expect("9 of 12 pages");
        let level = PressureLevel::Soft;
        assert_eq!(events.try_next(), Some(Event::BarPressure { level, used_pages: 9, limit_pages: 8 }));
        assert_eq!(device.bar_pressure(), Some(level));

        let work = Timeline::new("importer");
        manager.release_peer(admitted.charge, work.next_point().into(), &mut held);
        assert_eq!(events.try_next(), Some(Event::BarRelief { level, used_pages: 0, limit_pages: 4 }));
        assert_eq!((used_pages(&device), device.bar_pressure()), ([0, 9, 9], None));
        std::thread::spawn(move || work.signal(1)).join().expect("no panic");
        assert_eq!((used_pages(&device), events.try_next()), ([0, 0, 9], None));
    }

    #[test]
    fn room_that_is_not_taken_is_given_back_and_the_relief_is_told_then() {
        let device = device();
        let buffer = device.buffer(Size::kib(64)).create().expect("a buffer that fits");
        let manager = &buffer.0.manager;
        let mut held = Held::in_destructor();
        let importer = Account::open(&manager.ledger, &mut held);
        let mut room = manager.room();
        let admitted = manager.admit_peer(&wish(&buffer, &importer, 0..12), &mut room, &mut held);
        let events = device.events();
        manager.demote_peer(admitted.expect("all there is").charge, FenceSet::new(), &mut room, &mut held);
        assert_eq!((used_pages(&device), events.try_next()), ([0, 0, 12], None));
        drop(room);
        let told: Vec<Event> = std::iter::from_fn(|| events.try_next()).collect();
        let relief = |level, limit_pages| Event::BarRelief { level, used_pages: 0, limit_pages };
        assert_eq!(told, [relief(PressureLevel::Hard, 8), relief(PressureLevel::Soft, 4)]);
    }

    /// What importers really use: pages by their users.
    #[derive(Default)]
    struct InUse(Mutex<BTreeMap<(u64, u64), u32>>);

    impl InUse {
        fn begin(&self, buffer: u64, pages: Range<u64>) {
            let mut pages_in_use = self.0.lock().expect("no panic");
            pages.for_each(|page| *pages_in_use.entry((buffer, page)).or_default() += 1);
            assert!(
                pages_in_use.len() <= 12,
                "{} pages are in use, the hard limit is 12",
                pages_in_use.len()
            );
        }

        fn end(&self, buffer: u64, pages: Range<u64>) {
            let mut pages_in_use = self.0.lock().expect("no panic");
            for page in pages {
                let users = pages_in_use.get_mut(&(buffer, page)).expect("it was begun");
                *users -= 1;
                if *users == 0 {
                    pages_in_use.remove(&(buffer, page));
                }
            }
        }
    }

    /// Maps at random, uses what it got once it may, and goes on using it for a while after it was given back.
    fn be_an_importer(buffers: &[Buffer], in_use: &InUse, seed: u64) {
        let manager = &buffers[0].0.manager;
        let importer = Account::open(&manager.ledger, &mut Held::in_destructor());
        let work = Timeline::new("importer");
        let mut random = seed;
        let mut next = |limit: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % limit
        };
        for _ in 0..2000 {
            let buffer = &buffers[next(buffers.len() as u64) as usize];
            let start = next(4);
            let wish = wish(buffer, &importer, start..start + 1 + next(6));
            let mut held = Held::in_destructor();
            let Ok(admitted) = manager.admit_peer(&wish, &mut manager.room(), &mut held) else { continue };
            if next(4) == 0 {
                manager.release_peer(admitted.charge, FenceSet::new(), &mut held);
                continue;
            }
            admitted.after.wait().expect("importers do not fail");
            in_use.begin(buffer.id(), wish.pages.clone());
            let done = work.next_point();
            manager.release_peer(admitted.charge, done.clone().into(), &mut held);
            std::thread::yield_now();
            in_use.end(buffer.id(), wish.pages);
            work.signal(done.seqno());
        }
    }

    #[test]
    fn sixteen_importers_never_use_more_than_the_hard_limit_and_are_told_of_pressure_in_turns() {
        let device = device();
        let events = device.events();
        let create = |_| device.buffer(Size::kib(64)).create().expect("a buffer that fits");
        let buffers: Vec<Buffer> = (0..4).map(create).collect();
        let in_use = InUse::default();
        let mut lasts = BTreeMap::new();
        let start = |seed| {
            let (buffers, in_use) = (&buffers, &in_use);
            move || be_an_importer(buffers, in_use, seed)
        };
        std::thread::scope(|scope| {
            let importers: Vec<_> = (0..16).map(|seed| scope.spawn(start(seed))).collect();
            while !importers.iter().all(|importer| importer.is_finished()) {
                let told = std::iter::from_fn(|| events.try_next());
                told.for_each(|event| note(&mut lasts, &event));
                std::thread::yield_now();
            }
        });
        std::iter::from_fn(|| events.try_next()).for_each(|event| note(&mut lasts, &event));
        assert!(lasts.values().all(|lasts| !lasts), "{lasts:?}");
        let [used, pending, peak] = used_pages(&device);
        assert_eq!((used, pending, device.bar_pressure()), (0, 0, None));
        assert!((9..=12).contains(&peak), "{peak} pages at most");
    }

    /// Each level begins and ends in turns. Who has missed something begins anew.
    fn note(lasts: &mut BTreeMap<PressureLevel, bool>, event: &Event) {
        let (level, begins) = match event {
            Event::BarPressure { level, .. } => (*level, true),
            Event::BarRelief { level, .. } => (*level, false),
            Event::Missed { .. } => return lasts.clear(),
            other => panic!("nobody did this: {other}"),
        };
        let before = lasts.insert(level, begins);
        assert_ne!(before, Some(begins), "{event}");
    }

    #[test]
    fn what_is_refused_says_which_limit_and_by_how_much_and_is_counted_with_its_reason() {
        let device = device();
        let client = device.client("compositor").p2p_limit(Size::kib(8));
        let buffer = client.buffer(Size::kib(64)).create().expect("a buffer that fits");
        let manager = &buffer.0.manager;
        let mut held = Held::in_destructor();
        let importer = Account::open(&manager.ledger, &mut held);
        let wish = wish(&buffer, &importer, 0..3);
        let over = manager.admit_peer(&wish, &mut manager.room(), &mut held).expect_err("3 of 2 pages");
        assert_eq!((over.limit, over.missing_pages), (BarLimit::Client, 1));
        let limit = BarLimit::Client;
        let refusal = Error::ApertureFull { limit, limit_bytes: 8192, used_bytes: 0, wanted_bytes: 12288 };
        assert_eq!(over.refusal(&wish), refusal);

        let reason = PeerReason::Over(over.limit);
        let refused = Event::Refused { buffer: 1, importer: "nic".into(), reason, missing_pages: 1 };
        manager.tell(refused, &mut held);
        let stats = device.stats();
        assert_eq!(stats.p2p_refusals, 1);
        assert_eq!(stats.reasons["peer map refused: the client's p2p limit is reached"], 1);
        client.set_p2p_limit(Size::kib(12));
        let admitted = manager.admit_peer(&wish, &mut manager.room(), &mut held).expect("3 of 3 pages");
        assert_eq!(client.p2p_used(), Size::kib(12));
        manager.release_peer(admitted.charge, FenceSet::new(), &mut held);
        assert_eq!(client.p2p_used(), Size::bytes(0));
    }
}
