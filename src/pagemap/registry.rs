//! The registry: who is there, and what was decided for each pair.
//!
//! Whoever changes something does it under one lock: it takes the current snapshot, makes the next from it, publishes that and, with no lock held,
//! tells the subscribers. Whoever looks something up takes the snapshot that is current, without a lock.
//!
//! ```text
//!   join, observe, set_machine  ──lock──►  snapshot n+1  ──publish──► generation n+1 ──unlock──► subscribers
//!                                                             │             │
//!   decision, explain, resolve  ◄─────────────────────────────┘             │   one load, a compare, and the look-up
//!   Reader: has snapshot n, is it still n? ◄────────────────────────────────┘
//! ```
//!
//! The generation is raised after the snapshot is published: a reader that sees it gets that snapshot or a later one.
//!
//! **Leaving** takes no lock, since handles are dropped wherever it happens, under a reservation or inside a fence's callback. Who leaves says so in
//! a word that every snapshot shares ([`Fate`]), which look-ups see at once. Its slot is swept by whoever takes the lock next.

use std::convert::Infallible;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use devpagemap_fence::levels;
use devpagemap_fence::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use devpagemap_fence::sync::published::Published;
use devpagemap_fence::sync::{Arc, Weak, mutant};
use devpagemap_fence::{Held, Lock};

use super::decision::Decision;
use super::handles::{JoinedImporter, Pagemap, Reader};
use super::inputs::{Exporter, Seeker, Setting};
use super::observe::{Observation, Party, Sightings};
use super::owner::PagemapSpec;
use super::profile::Profile;
use super::reason::Explanation;
use super::redecide::{by_slot, decide_for};
use super::rules::{KernelRules, Rules};
use super::slots::Slots;
use super::snapshot::{Fate, ImporterRow, PagemapRow, Snapshot};
use super::table::Table;
use super::tag::{GENERATIONS, ImporterId, PageTag, PagemapId, SLOTS};
use super::way::World;
use crate::topology::{Change, Machine};
use crate::{Error, Result};

/// Who can reach whose memory. Clones are the same one.
///
/// ```
/// use devpagemap::pagemap::{Owner, PagemapSpec, Profile, Registry, Route};
///
/// let registry = Registry::unknown();
/// let gpu = Owner::new("gpu");
/// let vram = registry.join_pagemap(PagemapSpec::visible(&gpu))?;
/// let nic = registry.join(Profile::pinned().named("nic"))?;
/// assert_eq!(registry.decision(vram.id(), nic.id()).route, Route::Declared);
/// assert_eq!(registry.explain(vram.id(), nic.id()).to_string(), "p2p as declared: nic says that it can reach gpu");
/// # Ok::<_, devpagemap::Error>(())
/// ```
#[derive(Clone)]
pub struct Registry(Arc<Shared>);

struct Shared {
    published: Published<Snapshot>, // replaced under the registry lock
    /// Of the published snapshot; raised after that. Written under the registry lock.
    generation: AtomicU64,
    /// How many have left since somebody last looked.
    departed: AtomicUsize,
    /// Its own lock, the registry lock.
    book: Lock<levels::Registry, Book>,
}

/// What only those who change something need.
struct Book {
    /// The published one, to make the next from.
    current: Arc<Snapshot>,
    /// How many have joined, ever.
    joined: u64,
    pagemap_slots: Slots,
    importer_slots: Slots,
    subscribers: Vec<Weak<Subscriber>>,
}

type Subscriber = dyn Fn(&Update) + Send + Sync;

/// Why there is a new snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// A pagemap has joined. No other decision has changed.
    PagemapJoined(PagemapId),
    /// An importer has joined. No other decision has changed.
    ImporterJoined(ImporterId),
    /// Some have left. No decision among the others has changed.
    Left,
    /// Something was seen of a pair.
    Observed(Observation),
    /// What was seen of a pair was forgotten.
    Forgotten {
        /// Whose memory.
        exporter: Party,
        /// Who reaches for it.
        importer: Party,
    },
    /// There is another machine.
    Machine,
    /// There are other rules.
    Rules,
    /// The memory of a pagemap has been taken away.
    Revoked(PagemapId),
    /// The memory of a pagemap is there again.
    Rearmed(PagemapId),
}

impl Cause {
    /// Whether decisions may be other than they were, for pairs that were there before and still are.
    pub fn changes_decisions(&self) -> bool {
        !matches!(self, Cause::PagemapJoined(_) | Cause::ImporterJoined(_) | Cause::Left)
    }
}

/// What subscribers are told.
#[derive(Clone, Debug)]
pub struct Update {
    /// What is so now. A later one may have been told of before.
    pub snapshot: Arc<Snapshot>,
    /// Why.
    pub cause: Cause,
}

/// A subscription, until dropped. A call that began before may end after that.
#[must_use = "dropping it ends the subscription"]
pub struct Subscription {
    _subscriber: Arc<Subscriber>,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Subscription { .. }")
    }
}

impl Registry {
    /// A registry of what is in a machine.
    pub fn new(machine: Machine) -> Registry {
        Registry::with_limits(Some(machine), SLOTS, GENERATIONS)
    }

    /// A registry of a machine of which nothing is known: everybody's own word counts.
    pub fn unknown() -> Registry {
        Registry::with_limits(None, SLOTS, GENERATIONS)
    }

    pub(super) fn with_limits(machine: Option<Machine>, slots: u32, generations: u32) -> Registry {
        let setting = Setting {
            world: machine.map(|machine| Arc::new(World::new(machine))),
            rules: Arc::new(KernelRules::default()),
            sightings: Arc::new(Sightings::default()),
        };
        let current = Arc::new(Snapshot {
            generation: 1,
            setting,
            pagemaps: Table::default(),
            importers: Table::default(),
        });
        let published = Published::none();
        published.replace(Arc::clone(&current));
        let book = Book {
            current,
            joined: 0,
            pagemap_slots: Slots::new(slots, generations),
            importer_slots: Slots::new(slots, u32::MAX),
            subscribers: Vec::new(),
        };
        Registry(Arc::new(Shared {
            published,
            generation: AtomicU64::new(1),
            departed: AtomicUsize::new(0),
            book: Lock::new("registry", book),
        }))
    }

    /// The registry with other rules, for use where it is made.
    #[must_use]
    pub fn rules(self, rules: impl Rules + 'static) -> Registry {
        self.set_rules(rules);
        self
    }

    /// Decides by other rules from now on.
    pub fn set_rules(&self, rules: impl Rules + 'static) {
        self.change(|_, next| {
            next.setting.rules = Arc::new(rules);
            next.decide_all();
            ((), Cause::Rules)
        });
    }

    /// Has a pagemap join.
    ///
    /// # Errors
    /// [`Error::InvalidPagemap`] for one that cannot be, [`Error::RegistryFull`] when no number is left.
    pub fn join_pagemap(&self, spec: PagemapSpec) -> Result<Pagemap> {
        spec.check()?;
        let early = mutant!("newcomer_looks_before_the_lock").then(|| self.snapshot());
        let spec = Arc::new(spec);
        let fate = Arc::new(Fate::default());
        let id = self.try_change(|book, next| {
            let there = early.as_deref().unwrap_or(&*next);
            let (slot, generation) = book
                .pagemap_slots
                .next()
                .ok_or(Error::RegistryFull { what: "pagemaps", limit: book.pagemap_slots.limit() })?;
            let spot = next.setting.spot(spec.owner.place()).map(Arc::new);
            let exporter = Exporter { spec: &spec, spot: spot.as_deref() };
            let decisions = by_slot(&there.importers, |importer| {
                Some(decide_for(&next.setting, exporter, importer.seeker()))
            });
            let tag = PageTag::new(slot, generation);
            book.joined += 1;
            let (joined, spec, fate) = (book.joined, Arc::clone(&spec), Arc::clone(&fate));
            let row = PagemapRow { tag, joined, spec, spot, fate, decisions };
            next.pagemaps.set(slot as usize, Some(Arc::new(row)));
            book.pagemap_slots.take();
            Ok::<_, Error>((PagemapId(tag), Cause::PagemapJoined(PagemapId(tag))))
        })?;
        Ok(Pagemap { registry: self.clone(), id, spec, fate })
    }

    /// Has an importer join.
    ///
    /// # Errors
    /// [`Error::InvalidImporter`] for one that cannot be, [`Error::RegistryFull`] when no number is left.
    pub fn join(&self, profile: Profile) -> Result<JoinedImporter> {
        profile.check()?;
        let early = mutant!("newcomer_looks_before_the_lock").then(|| self.snapshot());
        let profile = Arc::new(profile);
        let fate = Arc::new(Fate::default());
        let id = self.try_change(|book, next| {
            let there = early.as_deref().unwrap_or(&*next);
            let (slot, generation) = book
                .importer_slots
                .next()
                .ok_or(Error::RegistryFull { what: "importers", limit: book.importer_slots.limit() })?;
            let id = ImporterId { slot, generation };
            let party = party_of(&profile, id);
            let spot = next.setting.spot(profile.at).map(Arc::new);
            let seeker = Seeker { profile: &profile, party: &party, spot: spot.as_deref() };
            let decisions = by_slot(&there.pagemaps, |pagemap| {
                Some(decide_for(&next.setting, pagemap.exporter(), seeker))
            });
            let system = Decision::system(spot.as_ref().and_then(|spot| spot.up_bytes_per_s()));
            book.joined += 1;
            let (joined, profile, fate) = (book.joined, Arc::clone(&profile), Arc::clone(&fate));
            let row = ImporterRow { id, joined, profile, party, spot, fate, system, decisions };
            next.importers.set(slot as usize, Some(Arc::new(row)));
            book.importer_slots.take();
            Ok::<_, Error>((id, Cause::ImporterJoined(id)))
        })?;
        Ok(JoinedImporter { registry: self.clone(), id, profile, fate })
    }

    /// Notes what was seen of a pair, and decides it anew.
    pub fn observe(&self, observation: Observation) {
        self.change(|_, next| {
            let importer = placed(observation.importer, next);
            let observation = Observation { importer, ..observation };
            let mut sightings = Sightings::clone(&next.setting.sightings);
            sightings.note(observation.clone());
            next.setting.sightings = Arc::new(sightings);
            next.decide_pair(&observation.exporter, &observation.importer);
            ((), Cause::Observed(observation))
        });
    }

    /// Forgets what was seen of a pair, and decides it anew.
    pub fn forget(&self, exporter: impl Into<Party>, importer: impl Into<Party>) {
        let (exporter, importer) = (exporter.into(), importer.into());
        self.change(|_, next| {
            let (exporter, importer) = (exporter, placed(importer, next));
            let mut sightings = Sightings::clone(&next.setting.sightings);
            sightings.forget(&exporter, &importer);
            next.setting.sightings = Arc::new(sightings);
            next.decide_pair(&exporter, &importer);
            ((), Cause::Forgotten { exporter, importer })
        });
    }

    /// Says that the machine is another one now, and decides everything anew. What was seen of pairs between which something has
    /// changed is forgotten: it was seen of another way. Returns what is different; nothing, if no machine was known before.
    pub fn set_machine(&self, machine: Machine) -> Vec<Change> {
        self.change(|_, next| {
            let world = Arc::new(World::new(machine));
            let mut changes = Vec::new();
            if let Some(before) = &next.setting.world {
                changes = before.machine().changes(world.machine());
                let mut sightings = Sightings::clone(&next.setting.sightings);
                sightings.retain(|exporter, importer| World::is_same_way(before, &world, exporter, importer));
                next.setting.sightings = Arc::new(sightings);
            }
            next.setting.world = Some(world);
            next.decide_all();
            (changes, Cause::Machine)
        })
    }

    /// All decisions as they are now. Takes no lock.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(self.0.published.read().as_ref().expect("a registry begins with a snapshot"))
    }

    /// Counts the snapshots; takes no lock.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }

    /// How an importer reaches a pagemap. Takes no lock. For one that has left, that nothing is reached.
    #[inline]
    pub fn decision(&self, pagemap: PagemapId, importer: ImporterId) -> Decision {
        let current = self.0.published.read();
        current.as_ref().map_or(Decision::GONE, |snapshot| snapshot.decision(pagemap, importer))
    }

    /// A decision with all its reasons. Takes no lock.
    pub fn explain(&self, pagemap: PagemapId, importer: ImporterId) -> Explanation {
        self.snapshot().explain(pagemap, importer)
    }

    /// For look-ups again and again from one thread.
    pub fn reader(&self) -> Reader {
        let generation = self.generation();
        Reader { registry: self.clone(), generation, snapshot: self.snapshot() }
    }

    /// Has `subscriber` called after each new snapshot, in the thread that made it, with no lock of the registry held. Two threads may call it at
    /// once; the snapshot's generation tells which is later. Whoever subscribes and then looks misses nothing.
    pub fn subscribe(&self, subscriber: impl Fn(&Update) + Send + Sync + 'static) -> Subscription {
        let subscriber: Arc<Subscriber> = Arc::new(subscriber);
        let mut held = Held::enter();
        self.0.book.lock(&mut held).subscribers.push(Arc::downgrade(&subscriber));
        Subscription { _subscriber: subscriber }
    }

    /// Whether both are the same registry.
    pub fn is_same(&self, other: &Registry) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn change<T>(&self, work: impl FnOnce(&mut Book, &mut Snapshot) -> (T, Cause)) -> T {
        let done = self.try_change(|book, next| Ok::<_, Infallible>(work(book, next)));
        done.unwrap_or_else(|never| match never {})
    }

    /// Makes the next snapshot from the current one, unless `work` fails or panics.
    fn try_change<T, E>(
        &self,
        work: impl FnOnce(&mut Book, &mut Snapshot) -> Result<(T, Cause), E>,
    ) -> Result<T, E> {
        let mut held = Held::enter();
        let mut guard = self.0.book.lock(&mut held);
        let book = &mut *guard;
        self.sweep_into(book);
        let mut next = book.current.next();
        let (value, cause) = work(book, &mut next)?;
        let snapshot = Arc::new(next);
        let subscribers = book.listeners();
        if mutant!("subscribers_are_told_too_early") {
            tell(&subscribers, &Update { snapshot: Arc::clone(&snapshot), cause: cause.clone() });
        }
        let before = self.publish(book, &snapshot);
        drop(guard);
        tracing::debug!(generation = snapshot.generation, ?cause, "decided");
        drop(before); // its tables may be long, and nobody has to wait for that
        tell(&subscribers, &Update { snapshot, cause });
        Ok(value)
    }

    /// Frees the slots of those who have left.
    fn sweep_into(&self, book: &mut Book) {
        if self.0.departed.swap(0, Ordering::AcqRel) > 0 {
            let mut next = book.current.next();
            book.sweep(&mut next);
            self.publish(book, &Arc::new(next));
        }
    }

    fn publish(&self, book: &mut Book, snapshot: &Arc<Snapshot>) -> Arc<Snapshot> {
        if mutant!("generation_goes_ahead") {
            self.0.generation.store(snapshot.generation, Ordering::Release);
        }
        self.0.published.replace(Arc::clone(snapshot));
        self.0.generation.store(snapshot.generation, Ordering::Release);
        std::mem::replace(&mut book.current, Arc::clone(snapshot))
    }

    /// Says that somebody has left, in any context.
    pub(super) fn depart(&self, fate: &Fate) {
        if mutant!("departures_are_counted_too_early") {
            self.0.departed.fetch_add(1, Ordering::Release);
            return fate.leave();
        }
        fate.leave();
        self.0.departed.fetch_add(1, Ordering::Release);
    }

    /// Sweeps who has left, at once.
    pub(super) fn sweep(&self) {
        self.change(|_, _| ((), Cause::Left));
    }

    /// Tells subscribers of a change that needs no new decisions.
    pub(super) fn tell_of(&self, cause: Cause) {
        self.change(|_, _| ((), cause));
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("generation", &self.generation()).finish_non_exhaustive()
    }
}

/// Tells everybody. What is decided is decided, so one who panics keeps nobody else from hearing of it.
fn tell(subscribers: &[Arc<Subscriber>], update: &Update) {
    for subscriber in subscribers {
        if catch_unwind(AssertUnwindSafe(|| subscriber(update))).is_err() {
            tracing::error!(cause = ?update.cause, "a subscriber of the registry panicked when it was told");
        }
    }
}

/// By whom an importer goes in observations.
fn party_of(profile: &Profile, id: ImporterId) -> Party {
    match (profile.at, &profile.device) {
        (Some(at), _) => Party::At(at),
        (None, Some(device)) => Party::from(device),
        (None, None) => Party::Importer(id),
    }
}

/// An importer that has a place goes by that.
fn placed(importer: Party, snapshot: &Snapshot) -> Party {
    match importer {
        Party::Importer(id) => snapshot.importer(id).map_or(importer, |row| row.party.clone()),
        placed => placed,
    }
}

impl Snapshot {
    fn next(&self) -> Snapshot {
        Snapshot {
            generation: self.generation + 1,
            setting: self.setting.clone(),
            pagemaps: self.pagemaps.clone(),
            importers: self.importers.clone(),
        }
    }
}

impl Book {
    /// Takes those who have left out of the next snapshot, and frees their slots.
    fn sweep(&mut self, next: &mut Snapshot) {
        let gone: Vec<PageTag> =
            next.pagemaps.rows().filter(|(_, row)| row.fate.is_gone()).map(|(_, row)| row.tag).collect();
        for tag in &gone {
            next.pagemaps.set(tag.slot(), None);
            self.pagemap_slots.give_back(tag.slot() as u32, tag.generation());
        }
        let left: Vec<ImporterId> =
            next.importers.rows().filter(|(_, row)| row.fate.is_gone()).map(|(_, row)| row.id).collect();
        for id in &left {
            next.importers.set(id.slot as usize, None);
            self.importer_slots.give_back(id.slot, id.generation);
        }
        next.forget_the_gone();
    }

    /// Those who are still listening.
    fn listeners(&mut self) -> Vec<Arc<Subscriber>> {
        self.subscribers.retain(|subscriber| subscriber.strong_count() > 0);
        self.subscribers.iter().filter_map(Weak::upgrade).collect()
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::pagemap::Owner;

    /// Fault injection: the only step of joining that can fail.
    #[test]
    fn a_registry_that_is_full_refuses_and_has_room_again_when_somebody_leaves() {
        let registry = Registry::with_limits(None, 1, 2);
        let spec = || PagemapSpec::visible(&Owner::new("gpu"));
        let pagemap = registry.join_pagemap(spec()).expect("there is one slot");
        let importer = registry.join(Profile::dynamic()).expect("there is one slot");
        let before = (registry.generation(), registry.decision(pagemap.id(), importer.id()));
        let full = |what| Error::RegistryFull { what, limit: 1 };
        assert_eq!(registry.join_pagemap(spec()).expect_err("full"), full("pagemaps"));
        assert_eq!(registry.join(Profile::dynamic()).expect_err("full"), full("importers"));
        assert_eq!((registry.generation(), registry.decision(pagemap.id(), importer.id())), before);
        drop(pagemap);
        let second = registry.join_pagemap(spec()).expect("it has left");
        drop(second);
        let error = registry.join_pagemap(spec()).expect_err("the slot has had both its generations");
        assert_eq!(error.to_string(), "the registry has no room for more pagemaps than 1");
    }
}
