//! The drain of a revoke: who has been told to let go and has not yet, and what becomes of those who never do.
//!
//! ```text
//!   told ──► waits for its fences ── they end ──────────────► has let go ──┐
//!                  │                                                       ├─ the last one: Revoked
//!                  └─ nobody has let go for as long as the bound ► overdue ┘
//! ```
//!
//! No thread waits. Each user's fences call back, and the last callback ends the revoke; the watchdog looks when the bound is over.
//! The bound counts from the last time that *anybody* let go, so a long drain that gets on is not cut short.
//!
//! **Why a bound has two rounds.** Copies that carry the bytes out of VRAM queue behind importers. So that one that hangs takes no buffer with
//! it, they do not wait for its fence but for a *stand-in*, which signals when that fence does, or when the importer is found
//! overdue. Then the copies run, and have a bound of their own; what hangs after that (a job, an engine) is overdue too.
//!
//! **Quarantine.** Who is overdue may still touch its pages. They are a ghost by then (the place that the buffer left); it is taken out of the
//! heap before the stand-in signals, so nobody is given them again. When the device is back, everything else is as good as new.
//!
//! The state has a lock of the aperture level, under which nothing else is taken: fences are signalled, events told and ghosts
//! put away without it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use devpagemap_fence::sync::atomic::{AtomicBool, Ordering};
use devpagemap_fence::sync::mutant;
use devpagemap_fence::{Fence, FenceSet, Held, Lock, Slot, Timeline, Watched, levels};

use super::attachment::{Attached, Revoked};
use crate::bo::{Reach, Transaction};
use crate::events::Event;
use crate::manager::Manager;
use crate::pagemap::RevokeCause;
use crate::region::GhostId;
use crate::stats::Counters;

/// Somebody who did not let go in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// An importer, or the timeline of work that did not end.
    pub who: Arc<str>,
    /// Which buffer it was told about; `None` for work of the device's own.
    pub buffer: Option<u64>,
    /// How many bytes of VRAM nobody is given again because of that.
    pub quarantined_bytes: u64,
}

/// A buffer that has lost bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostBytes {
    /// The buffer's id.
    pub buffer: u64,
    /// How many bytes of it could not be had any more.
    pub bytes: u64,
    /// Why.
    pub why: Arc<str>,
}

/// What a revoke has come to so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RevokeReport {
    /// Buffers that were moved out of VRAM.
    pub evacuated: u64,
    /// Their bytes.
    pub evacuated_bytes: u64,
    /// Every buffer that has lost a byte, in the order in which that was found.
    pub lost: Vec<LostBytes>,
    /// Everybody who did not let go in time.
    pub overdue: Vec<Overdue>,
}

/// One revoke: whom it waits for. See the head of this file.
pub(crate) struct Drain {
    /// For callbacks, and for the watchdog. Constant.
    this: Weak<Drain>,
    /// Constant.
    manager: Weak<Manager>,
    /// Constant.
    pub(crate) cause: RevokeCause,
    /// Whether VRAM may be unreadable. Set at the beginning, or when the device goes earlier than it was to.
    is_surprise: AtomicBool,
    /// For how long nobody may let go before all are overdue. Constant.
    bound: Duration,
    state: Lock<levels::Aperture, State>,
    /// Signals when the revoke is finished.
    timeline: Timeline,
    /// Its only point. Constant.
    done: Fence,
}

/// The drain's lock.
#[derive(Default)]
struct State {
    users: BTreeMap<u64, User>,
    /// How many users there ever were.
    next: u64,
    /// How many users are neither gone nor overdue.
    awaited: usize,
    /// How many have let go, and how many had when the bound last began.
    progress: (u64, u64),
    /// Whether all have been told, so that the last one ends it.
    told_all: bool,
    /// Whether the revoke has been finished, or called off.
    is_over: bool,
    /// When the watchdog is to look; `None` before all have been told.
    deadline: Option<Instant>,
    report: RevokeReport,
}

/// Somebody who has been told.
struct User {
    who: Arc<str>,
    buffer: Option<u64>,
    /// What others wait for in place of its fence.
    stand_in: Option<Timeline>,
    /// The place in VRAM that its buffer has left.
    ghost: Option<GhostId>,
    /// The fences, and how many bytes of the buffer are lost if they fail.
    arrival: Option<(FenceSet, u64)>,
    is_overdue: bool,
}

/// What is left of a user who is overdue.
struct Late {
    who: Arc<str>,
    buffer: Option<u64>,
    ghost: Option<GhostId>,
    stand_in: Option<Timeline>,
}

impl User {
    fn new(who: Arc<str>, buffer: Option<u64>) -> User {
        User { who, buffer, stand_in: None, ghost: None, arrival: None, is_overdue: false }
    }
}

impl Drain {
    pub(crate) fn new(manager: Weak<Manager>, cause: RevokeCause, bound: Duration) -> Arc<Drain> {
        let timeline = Timeline::new("revoke");
        let done = timeline.next_point();
        let state = Lock::new("revoke", State::default());
        let is_surprise = AtomicBool::new(cause == RevokeCause::SurpriseUnplug);
        Arc::new_cyclic(|this| {
            let this = this.clone();
            Drain { this, manager, cause, is_surprise, bound, state, timeline, done }
        })
    }

    /// Whether VRAM may not be readable any more.
    pub(crate) fn is_surprise(&self) -> bool {
        self.is_surprise.load(Ordering::Acquire)
    }

    /// The device goes before it was to.
    pub(crate) fn surprise(&self) {
        self.is_surprise.store(true, Ordering::Release);
    }

    /// What signals when the revoke is finished.
    pub(crate) fn done(&self) -> &Fence {
        &self.done
    }

    pub(crate) fn report(&self) -> RevokeReport {
        self.state.lock(&mut Held::in_destructor()).report.clone()
    }

    /// An importer lets go of a buffer when `fence` signals. Returns what others wait for instead: the same, or the time when the
    /// importer is overdue. Bytes that stay where they are are nobody else's, so then it is the fence itself.
    pub(crate) fn bounded(&self, fence: Fence, who: &Arc<str>, buffer: u64) -> Fence {
        if fence.is_signaled() {
            return fence;
        }
        let mut user = User::new(who.clone(), Some(buffer));
        let mut instead = fence.clone();
        if self.cause != RevokeCause::Reset {
            let stand_in = Timeline::new("revoke: an importer");
            instead = stand_in.next_point();
            user.stand_in = Some(stand_in);
        }
        self.await_user(user, FenceSet::from(fence));
        instead
    }

    /// A buffer is on its way out of VRAM.
    pub(crate) fn await_arrival(&self, buffer: u64, bytes: u64, arrival: FenceSet) {
        {
            let mut held = Held::in_destructor();
            let report = &mut self.state.lock(&mut held).report;
            report.evacuated += 1;
            report.evacuated_bytes += bytes;
        }
        let who = arrival.iter().next().map_or_else(|| "moves".into(), Fence::timeline_name);
        let user = User { arrival: Some((arrival.clone(), bytes)), ..User::new(who, Some(buffer)) };
        self.await_user(user, arrival);
    }

    /// Something is done when these have signalled.
    pub(crate) fn await_work(&self, fences: &FenceSet, ghost: Option<GhostId>) {
        for fence in fences.iter().filter(|fence| !fence.is_signaled()) {
            let user = User { ghost, ..User::new(fence.timeline_name(), None) };
            self.await_user(user, FenceSet::from(fence.clone()));
        }
    }

    fn await_user(&self, user: User, fences: FenceSet) {
        let id = {
            let mut held = Held::in_destructor();
            let mut state = self.state.lock(&mut held);
            let id = state.next;
            state.next += 1;
            state.awaited += 1;
            state.users.insert(id, user);
            id
        };
        // Kept alive by what it waits for: stand-ins have to signal, whatever becomes of the device.
        let drain = self.this.upgrade().expect("whoever calls this has it");
        fences.when_signaled(move || drain.let_go(id));
    }

    /// The buffer's users, who have been told, may still touch what is now this ghost.
    pub(crate) fn left(&self, buffer: u64, ghost: GhostId) {
        let is_late = {
            let mut held = Held::in_destructor();
            let mut state = self.state.lock(&mut held);
            let theirs = state.users.values_mut().filter(|user| user.buffer == Some(buffer));
            theirs.fold(false, |late, user| {
                user.ghost = Some(ghost);
                late || user.is_overdue
            })
        };
        if is_late {
            self.quarantine(ghost);
        }
    }

    /// A buffer has lost bytes.
    pub(crate) fn lost(&self, lost: LostBytes) {
        let LostBytes { buffer, bytes, ref why } = lost;
        let event = Event::Lost { buffer, bytes, why: why.clone() };
        self.state.lock(&mut Held::in_destructor()).report.lost.push(lost);
        if let Some(manager) = self.manager.upgrade() {
            Counters::count(&manager.counters.lost_buffers);
            Counters::add(&manager.counters.lost_bytes, bytes);
            manager.tell(event, &mut Held::in_destructor());
        }
    }

    /// All have been told at `now`: who lets go last ends the revoke from here on. Has the watchdog look when the bound is over.
    pub(crate) fn told_all(&self, now: Instant) {
        {
            let mut held = Held::in_destructor();
            let mut state = self.state.lock(&mut held);
            state.told_all = true;
            state.progress.1 = state.progress.0;
            state.deadline = Some(now + self.bound);
        }
        self.finish_if_alone();
    }

    /// The revoke is taken back. Who has been told keeps its bound.
    pub(crate) fn call_off(&self, now: Instant) {
        let mut held = Held::in_destructor();
        let mut state = self.state.lock(&mut held);
        state.is_over = true;
        state.deadline = Some(now + self.bound);
        drop(state);
        self.timeline.signal(self.done.seqno());
    }

    /// The fences of a user have signalled.
    fn let_go(&self, id: u64) {
        let user = {
            let mut held = Held::in_destructor();
            let mut state = self.state.lock(&mut held);
            let user = state.users.remove(&id).expect("a user lets go once");
            if !user.is_overdue {
                state.awaited -= 1;
                state.progress.0 += 1;
            }
            user
        };
        if let Some((error, bytes)) =
            user.arrival.and_then(|(arrival, bytes)| Some((arrival.first_error()?, bytes)))
        {
            let buffer = user.buffer.expect("only buffers arrive");
            self.lost(LostBytes { buffer, bytes, why: error.to_string().into() });
        }
        user.stand_in.iter().for_each(|stand_in| stand_in.signal(1));
        self.finish_if_alone();
    }

    fn finish_if_alone(&self) {
        {
            let mut held = Held::in_destructor();
            let mut state = self.state.lock(&mut held);
            if !state.told_all || state.awaited > 0 || std::mem::replace(&mut state.is_over, true) {
                return;
            }
        }
        if let Some(manager) = self.manager.upgrade() {
            let finished = manager.revocation.finish();
            debug_assert!(finished, "a drain is over once");
            let RevokeReport { lost, overdue, .. } = self.report();
            let event = Event::Revoked { cause: self.cause, lost: lost.len(), overdue: overdue.len() };
            manager.tell(event, &mut Held::in_destructor());
        }
        self.timeline.signal(self.done.seqno());
    }

    /// All who are awaited, if none of them has let go since the bound began; but if importers are among them, those alone. Else when
    /// to look again.
    fn take_overdue(&self, now: Instant) -> Result<Vec<Late>, Option<Instant>> {
        let mut held = Held::in_destructor();
        let mut state = self.state.lock(&mut held);
        if state.is_over && state.awaited == 0 {
            state.deadline = None;
        }
        match state.deadline {
            None => return Err(None),
            Some(deadline) if now < deadline => return Err(Some(deadline)),
            Some(_) => state.deadline = Some(now + self.bound),
        }
        let (gone, gone_before) = state.progress;
        state.progress = (gone, gone);
        if gone > gone_before {
            return Err(state.deadline);
        }
        let importers_first = state.users.values().any(|user| user.stand_in.is_some());
        let mut overdue = Vec::new();
        for user in state.users.values_mut() {
            if user.is_overdue || importers_first && user.stand_in.is_none() {
                continue;
            }
            user.is_overdue = true;
            let (who, buffer, ghost) = (user.who.clone(), user.buffer, user.ghost);
            overdue.push(Late { who, buffer, ghost, stand_in: user.stand_in.take() });
        }
        state.awaited -= overdue.len();
        Ok(overdue)
    }

    /// Whether an importer that was overdue still has not let go.
    pub(crate) fn is_anybody_late(&self) -> bool {
        let mut held = Held::in_destructor();
        let state = self.state.lock(&mut held);
        state.users.values().any(|user| user.is_overdue && user.buffer.is_some() && user.arrival.is_none())
    }

    /// Takes a ghost out of the heap for good.
    fn quarantine(&self, ghost: GhostId) -> u64 {
        let Some(manager) = self.manager.upgrade() else { return 0 };
        manager.vram.quarantine(ghost, &mut Held::in_destructor())
    }

    fn name_overdue(&self, overdue: Overdue) {
        let Overdue { who, buffer, quarantined_bytes } = overdue.clone();
        tracing::warn!(%who, buffer, quarantined_bytes, "has not let go in time; the revoke goes on");
        self.state.lock(&mut Held::in_destructor()).report.overdue.push(overdue);
        if let Some(manager) = self.manager.upgrade() {
            Counters::count(&manager.counters.revoke_overdue);
            let event = Event::RevokeOverdue { who, buffer, quarantined_bytes };
            manager.tell(event, &mut Held::in_destructor());
        }
    }
}

impl Transaction<'_, '_, '_> {
    /// The buffer leaves VRAM whoever keeps it there: attachments of importers that cannot be told to map again are at their end.
    pub(crate) fn end_pinned_attachments(&mut self, slot: Slot) {
        let (manager, buffer) = (self.manager, self.exec.set().object(slot).id());
        let peers = &self.exec.set().state(slot).peers;
        let is_in_bar = |attached: &Attached| {
            let mut maps = peers.live().filter(|mapped| mapped.attached.id == attached.id);
            maps.any(|mapped| mapped.why_system.is_none())
        };
        let ended: Vec<Arc<Attached>> = peers
            .parties()
            .filter(|attached| !attached.is_told() && (attached.has_pin() || is_in_bar(attached)))
            .cloned()
            .collect();
        for attached in ended {
            attached.revoke(Revoked::Unplugged);
            drop(attached.unpin());
            let (importer, why) = (attached.joined.name.clone(), Revoked::Unplugged.text());
            manager.tell(Event::AttachmentRevoked { buffer, importer, why }, &mut self.exec.split().1);
        }
    }

    /// What others wait for in place of an importer's `fence`: when VRAM is being taken away, no longer than its bound.
    pub(super) fn bounded(&self, fence: Fence, who: &Arc<str>, buffer: u64) -> Fence {
        match self.reach {
            Reach::Revoking(drain) => drain.bounded(fence, who, buffer),
            Reach::All | Reach::BesideVram(_) => fence,
        }
    }

    /// The same for importers that had gone before.
    pub(super) fn all_bounded(&self, fences: FenceSet, buffer: u64) -> FenceSet {
        let mut bounded = FenceSet::new();
        fences
            .iter()
            .for_each(|fence| bounded.add(self.bounded(fence.clone(), &fence.timeline_name(), buffer)));
        bounded
    }
}

impl Watched for Drain {
    /// Names whoever is overdue at `now`, and goes on without them.
    fn check(&self, now: Instant) -> Option<Instant> {
        let overdue = match self.take_overdue(now) {
            Ok(overdue) => overdue,
            Err(next) => return next,
        };
        // By name: a hung timeline may be what many ghosts wait for.
        let mut named: BTreeMap<(Option<u64>, Arc<str>), u64> = BTreeMap::new();
        let mut stand_ins = Vec::new();
        for Late { who, buffer, ghost, stand_in } in overdue {
            let ghost = ghost.filter(|_| !mutant!("pages_of_who_is_overdue_are_free"));
            let quarantined_bytes = ghost.map_or(0, |ghost| self.quarantine(ghost));
            *named.entry((buffer, who)).or_default() += quarantined_bytes;
            stand_ins.extend(stand_in);
        }
        for ((buffer, who), quarantined_bytes) in named {
            self.name_overdue(Overdue { who, buffer, quarantined_bytes });
        }
        stand_ins.iter().for_each(|stand_in| stand_in.signal(1));
        self.finish_if_alone();
        Some(now + self.bound)
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain").field("cause", &self.cause).field("done", &self.done).finish_non_exhaustive()
    }
}
