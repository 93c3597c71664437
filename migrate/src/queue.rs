//! The move queue: what its owner sees.

use crate::address::Extent;
use crate::drive::{Driving, Inner};
use crate::engine::CopyEngine;
use crate::lane::Lane;
use crate::ledger::{Ledger, MoveStats};
use crate::peer::PeerQueue;
use crate::request::{MoveRequest, Urgency};
use crate::ring::{Ring, StagingMemory};
use crate::slots::{EngineSet, EngineSlot, Role};
use crate::state::State;
use crate::zones::Zones;
use devpagemap_fence::levels::{self, Below, Level};
use devpagemap_fence::lockdep::{self, Signalling};
use devpagemap_fence::sync::atomic::Ordering;
use devpagemap_fence::sync::mutant;
use devpagemap_fence::{Fence, Held, Timeline, Watched};
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Small enough that an urgent chunk waits tens of microseconds, large enough that handing it over costs nothing.
const CHUNK_BYTES: u64 = 1 << 20;
const CHUNK_ALIGN_BYTES: u64 = 4096;
const LANES: usize = 8;
/// Two keep both engines busy where each takes as long as the other; more even out what differs.
const STAGING_SLOTS: usize = 4;
const CHUNK_TIMEOUT: Duration = Duration::from_secs(2);

/// Moves bytes in the background, on as many engines as the device has, and signals a fence for each move.
///
/// Moves start once the fences they wait for have signalled, are cut into chunks, and are shared out to all engines
/// that reach both ends; at each chunk boundary the most urgent move goes on. Chunks that an engine failed are redone
/// whole by another, then by the fallback; each such event is counted with its reason in [`MoveStats`].
///
/// Dropping the queue finishes every move that can run, fails those that still wait for a fence
/// ([`FenceError::Abandoned`](devpagemap_fence::FenceError::Abandoned)), and lets go of the engines. It must be
/// dropped with no lock of the order held, and inside no callback of somebody else's fence; dropped inside a fence
/// callback of its own moves it does not wait.
///
/// ```
/// use devpagemap_fence::Held;
/// use devpagemap_migrate::{Addr, CpuEngine, Extent, HeapMemory, MoveQueue, MoveRequest, Space};
///
/// let memory = HeapMemory::new(1 << 20, 1 << 20);
/// memory.write(Addr::new(Space::System, 0), b"bytes");
/// let queue = MoveQueue::builder().engine(CpuEngine::new("cpu", memory.clone())).build();
///
/// let at = |space, offset| Extent::new(Addr::new(space, offset), 5);
/// let request = MoveRequest::copy(1, at(Space::System, 0).into(), at(Space::Vram, 4096).into());
/// let fence = queue.submit(request, &mut Held::enter());
/// fence.wait()?;
/// assert_eq!(memory.read(Addr::new(Space::Vram, 4096), 5), b"bytes");
/// assert_eq!(queue.stats().moved_bytes, 5);
/// # Ok::<_, devpagemap_fence::FenceError>(())
/// ```
pub struct MoveQueue {
    inner: Arc<Inner>,
}

impl MoveQueue {
    /// A queue to be configured.
    pub fn builder() -> MoveQueueBuilder {
        MoveQueueBuilder {
            name: "moves".to_owned(),
            engines: Vec::new(),
            fallback: None,
            chunk_bytes: CHUNK_BYTES,
            lanes: LANES,
            chunk_timeout: CHUNK_TIMEOUT,
            staging: None,
            staging_slots: STAGING_SLOTS,
        }
    }

    /// Queues a move and returns its fence. Never fails and never waits for a fence or an asynchronous engine; what
    /// is wrong with the request, with what it needs, or with the engines, comes out as the fence's error. With inline
    /// engines ([`CpuEngine`](crate::CpuEngine)) the copying that can be done now is done here.
    ///
    /// # Lock level
    /// Takes the move queue's lock and may signal fences, so nothing at region level or further in may be held.
    pub fn submit<H: Level>(&self, request: MoveRequest, held: &mut Held<'_, H>) -> Fence
    where
        levels::Region: Below<H>,
        levels::MoveQueue: Below<H>,
    {
        let MoveRequest { label, operation, urgency, after: mut waits, needs } = request;
        waits.merge(&needs);
        let bytes = operation.len_bytes();
        let span = tracing::debug_span!("move", label, bytes, ?urgency, waits_for = waits.len());
        span.in_scope(|| tracing::debug!("queued"));
        let inner = &self.inner;
        let _signalling = Signalling::begin();
        inner.unpublished.fetch_add(1, Ordering::Relaxed);
        let blockers = waits.clone();
        let listen = |id| {
            let inner = Arc::downgrade(inner);
            blockers.is_empty() || blockers.on_signaled(move || released(&inner, id)).is_err()
        };
        let too_early = match mutant!("move_listens_before_it_is_admitted") {
            false => None,
            true => Some(listen(inner.state.lock(held).next_id())),
        };
        let (id, fence) =
            inner.state.lock(held).admit(operation, urgency, waits, needs, span, &inner.timelines);
        // Only now: whoever signals from here on finds the move.
        if too_early.unwrap_or_else(|| listen(id)) {
            inner.release(id, held);
        }
        fence
    }

    /// Where the staging ring is, for a peer that is to be shown it before a [pull](MoveRequest::pull). Its memory is asked
    /// for if it was not needed before; `None` when there is none. It stays where it is as long as the queue lives.
    ///
    /// # Lock level
    /// As [`submit`](Self::submit).
    pub fn staging_ring<H: Level>(&self, held: &mut Held<'_, H>) -> Option<Extent>
    where
        levels::Region: Below<H>,
        levels::MoveQueue: Below<H>,
    {
        self.inner.find_ring(held)
    }

    /// The queue's engines as the queues of other devices see them.
    pub fn peer(&self) -> PeerQueue {
        PeerQueue { queue: Arc::downgrade(&self.inner) }
    }

    /// Totals so far. May be called whatever is held.
    pub fn stats(&self) -> MoveStats {
        self.inner.ledger.read()
    }

    /// Whether the fence of every move has signalled, or is about to. May be called whatever is held.
    pub fn is_idle(&self) -> bool {
        self.inner.unpublished.load(Ordering::Acquire) == 0
    }

    /// Sleeps until every move has ended and its callbacks have run; engines that hang meanwhile are reset. A move
    /// that waits for a fence which nobody signals keeps this from returning.
    ///
    /// # Panics
    /// In debug builds, when a lock of the order is held, or inside a fence callback.
    pub fn drain(&self) {
        lockdep::assert_may_wait();
        self.inner.rest_until(&mut Held::enter(), State::is_idle);
    }

    /// The queue as something a watchdog looks after: each check resets the engines that have made no progress for
    /// the chunk timeout and has their chunks redone.
    pub fn watched(&self) -> Weak<dyn Watched> {
        let weak: Weak<Inner> = Arc::downgrade(&self.inner);
        weak
    }
}

/// The callback on what a move waits for.
fn released(queue: &Weak<Inner>, id: u64) {
    if let Some(queue) = queue.upgrade() {
        queue.release(id, &mut Held::in_destructor());
    }
}

impl Drop for MoveQueue {
    fn drop(&mut self) {
        let inner = &self.inner;
        // A callback of one of our own fences: this thread may be the one whose progress would be waited for. What
        // runs goes on without the handle, and the last chunk's completion takes the rest down.
        if Driving::is_here(inner) {
            inner.abandon_blocked(&mut Held::in_destructor());
            return;
        }
        lockdep::assert_may_wait();
        let mut held = Held::enter();
        inner.rest_until(&mut held, State::is_quiet);
        inner.abandon_blocked(&mut held);
        inner.drive(&mut held);
        inner.rest_until(&mut held, State::is_idle);
        let engines = inner.state.lock(&mut held).take_engines();
        drop(engines);
    }
}

impl fmt::Debug for MoveQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MoveQueue({} unpublished)", self.inner.unpublished.load(Ordering::Relaxed))
    }
}

/// Configures a [`MoveQueue`].
#[must_use]
pub struct MoveQueueBuilder {
    name: String,
    engines: Vec<Arc<dyn CopyEngine>>,
    fallback: Option<Arc<dyn CopyEngine>>,
    chunk_bytes: u64,
    lanes: usize,
    chunk_timeout: Duration,
    staging: Option<Arc<dyn StagingMemory>>,
    staging_slots: usize,
}

impl MoveQueueBuilder {
    /// The name its timelines begin with; "moves" by default.
    pub fn name(self, name: impl Into<String>) -> Self {
        MoveQueueBuilder { name: name.into(), ..self }
    }

    /// Adds a copy engine.
    pub fn engine(mut self, engine: Arc<dyn CopyEngine>) -> Self {
        self.engines.push(engine);
        self
    }

    /// What does the chunks that no copy engine can do; it is never quarantined for failures. None by default.
    pub fn fallback(self, engine: Arc<dyn CopyEngine>) -> Self {
        MoveQueueBuilder { fallback: Some(engine), ..self }
    }

    /// How many bytes an engine is handed at a time, at most; rounded up to whole 4 KiB pages. 1 MiB by default.
    pub fn chunk_bytes(self, bytes: u64) -> Self {
        let chunk_bytes = bytes.max(1).div_ceil(CHUNK_ALIGN_BYTES).saturating_mul(CHUNK_ALIGN_BYTES);
        MoveQueueBuilder { chunk_bytes, ..self }
    }

    /// How many timelines each urgency has, at least 1. 8 by default.
    pub fn lanes(self, lanes: usize) -> Self {
        MoveQueueBuilder { lanes: lanes.max(1), ..self }
    }

    /// How long an engine may hold chunks without answering any before it is reset. 2 s by default.
    pub fn chunk_timeout(self, timeout: Duration) -> Self {
        MoveQueueBuilder { chunk_timeout: timeout, ..self }
    }

    /// Where the memory of a staging ring comes from, through which moves go whose ends no engine reaches alone. It is
    /// asked for when the first such move comes. Without it, which is the default, they go to the fallback or fail.
    pub fn staging(self, memory: impl StagingMemory + 'static) -> Self {
        MoveQueueBuilder { staging: Some(Arc::new(memory)), ..self }
    }

    /// How many slots the staging ring has, at least 1; with one, its two engines take turns. 4 by default.
    pub fn staging_slots(self, slots: usize) -> Self {
        MoveQueueBuilder { staging_slots: slots.max(1), ..self }
    }

    /// The queue.
    ///
    /// # Panics
    /// When there are more than 64 engines, the fallback included, and when their
    /// [windows](CopyEngine::window) cut the two memories into more than 10 parts.
    pub fn build(self) -> MoveQueue {
        let engines = || self.engines.iter().chain(&self.fallback);
        let zones = Zones::of(engines().map(|engine| &**engine));
        let roles = std::iter::repeat_n(Role::Engine, self.engines.len()).chain([Role::Fallback]);
        let engines: Vec<EngineSlot> = engines()
            .zip(roles)
            .map(|(engine, role)| EngineSlot::new(engine.clone(), role, &zones))
            .collect();
        assert!(engines.len() <= EngineSet::CAPACITY, "{} engines are too many for a queue", engines.len());
        let lanes = Urgency::ALL.into_iter().flat_map(|urgency| (0..self.lanes).map(move |at| (urgency, at)));
        let (timelines, lanes): (Vec<Timeline>, Vec<Lane>) = lanes
            .map(|(urgency, at)| {
                let timeline = Timeline::new(format!("{} {urgency:?} {at}", self.name));
                let lane = Lane::new(&timeline, urgency);
                (timeline, lane)
            })
            .unzip();
        let ledger = Ledger::new(engines.iter().map(|slot| &slot.name));
        let ring = Ring::new(self.staging, self.staging_slots);
        let state = State::new(engines, zones, ring, lanes, self.chunk_bytes);
        let inner =
            Arc::new_cyclic(|me| Inner::new(me.clone(), timelines, self.chunk_timeout, state, ledger));
        MoveQueue { inner }
    }
}
