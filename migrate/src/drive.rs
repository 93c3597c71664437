//! The loop that moves the queue forward, and who runs it.
//!
//! There is no worker thread. Whoever causes an event (a submission, a signalled fence, an engine's answer, a look at
//! the clock) notes it and then *drives*: as long as there is a next step, it takes it under the lock and performs it
//! without the lock.
//!
//! ```text
//!   submit()          fence callback     engine answers      watchdog
//!      | admit            | release          | inbox            | take chunks from the hung, reset
//!      `------------------+--------+---------+------------------'
//!                                  v
//!             lock { read inbox; next step }  -->  signal points        (runs callbacks)
//!                    ^                        -->  engine.submit(chunk) (may answer at once)
//!                    |                        -->  ask for the ring's memory, send an errand to a peer, report one
//!                    `----------------------------------'
//! ```
//!
//! A step may cause events in the same thread: a callback releases another move, an inline engine answers inside
//! `submit`. Those only note what happened, because the thread is already driving this queue and looks again before
//! it stops. So the stack stays flat however long a chain of dependent moves is, and an answer never needs to know
//! what its thread holds. Other threads drive at the same time; they share nothing but the lock.
//!
//! Nothing is lost: an event is noted before its thread drives, and a thread stops driving only after it has seen,
//! under the lock, that there is no next step.

use crate::address::Extent;
use crate::engine::{Completion, EngineError};
use crate::ledger::Ledger;
use crate::peer::Report;
use crate::ring::SlotIndex;
use crate::schedule::MoveId;
use crate::slots::Ticket;
use crate::state::{Publication, State, Step};
use devpagemap_fence::levels::{self, Below, Level};
use devpagemap_fence::lockdep::Signalling;
use devpagemap_fence::sync::atomic::{AtomicUsize, Ordering};
use devpagemap_fence::sync::thread::yield_now;
use devpagemap_fence::sync::{Condvar, mutant};
use devpagemap_fence::{FenceError, Held, Lock, Outside, Timeline, Watched};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Weak;
use std::time::{Duration, Instant};

/// What was answered.
enum Answer {
    /// By an engine, for a chunk.
    Chunk { engine: usize, ticket: Ticket, result: Result<(), EngineError> },
    /// By a peer, for an errand that fills a slot.
    Errand { slot: SlotIndex, outcome: Result<(), FenceError> },
}

/// The queue, shared by its handle, the callbacks it has registered and the chunks in flight.
pub(crate) struct Inner {
    /// Itself, for those.
    pub(crate) me: Weak<Inner>,
    /// Constant. A lane's points are handed out under the lock and signalled by its one publisher.
    pub(crate) timelines: Vec<Timeline>,
    /// Constant.
    pub(crate) chunk_timeout: Duration,
    pub(crate) state: Lock<levels::MoveQueue, State>,
    /// Answers nobody has looked at. Held for a push or a take; nothing is taken under it.
    inbox: Outside<VecDeque<Answer>>,
    pub(crate) ledger: Ledger,
    /// Moves whose fence has not signalled.
    pub(crate) unpublished: AtomicUsize,
    /// Notified whenever a thread stops driving.
    changed: Condvar,
}

impl Inner {
    pub(crate) fn new(
        me: Weak<Inner>,
        timelines: Vec<Timeline>,
        chunk_timeout: Duration,
        state: State,
        ledger: Ledger,
    ) -> Inner {
        Inner {
            me,
            timelines,
            chunk_timeout,
            state: Lock::new("move queue", state),
            inbox: Outside::new("move inbox", VecDeque::new()),
            ledger,
            unpublished: AtomicUsize::new(0),
            changed: Condvar::new(),
        }
    }

    /// Performs steps until there is none. Does nothing if this thread is driving already.
    pub(crate) fn drive<H: Level>(&self, held: &mut Held<'_, H>)
    where
        levels::MoveQueue: Below<H>,
    {
        let Some(driving) = Driving::begin(self) else { return };
        let _signalling = Signalling::begin();
        let (mut published, mut supplied, mut panicked) = (None, None, None);
        loop {
            let now = Instant::now();
            let mut state = self.state.lock(held);
            if let Some(lane) = published.take() {
                state.published(lane);
            }
            if let Some(found) = supplied.take() {
                state.supplied(found, &self.ledger);
            }
            self.read_inbox(&mut state, now);
            let step = state.next_step(now, &self.ledger);
            let notes = state.take_notes();
            drop(state);
            notes.iter().for_each(|reason| tracing::warn!(%reason, "move queue fell back"));
            match step {
                Step::Publish(publication) => {
                    published = Some(publication.lane);
                    // A callback that panics must stop neither its lane nor what others wait for.
                    let signalled = catch_unwind(AssertUnwindSafe(|| self.publish(publication)));
                    panicked = panicked.or(signalled.err());
                }
                Step::Submit { engine, index, ticket, chunk } => {
                    if let Err(error) = engine.submit(chunk, self.completion(index, ticket)) {
                        // Before what the dropped completion has noted meanwhile: this says why.
                        let answer = Answer::Chunk { engine: index, ticket, result: Err(error) };
                        self.inbox.lock().push_front(answer);
                    }
                }
                Step::Tell(report, outcome) => {
                    let told = catch_unwind(AssertUnwindSafe(|| report(outcome)));
                    panicked = panicked.or(told.err());
                }
                Step::FindRing(wish) => {
                    let found = catch_unwind(AssertUnwindSafe(|| wish.ask()));
                    supplied = Some(found.unwrap_or_else(|panic| {
                        panicked.get_or_insert(panic);
                        None
                    }));
                }
                Step::Errand { peer, operation, urgency, slot } => {
                    peer.send(operation, urgency, self.report(slot), held);
                }
                Step::Rest => break,
            }
        }
        drop(driving);
        if mutant!("one_hears_that_driving_ends") {
            self.changed.notify_one();
        } else if !mutant!("nobody_hears_that_driving_ends") {
            self.changed.notify_all();
        }
        if let Some(panic) = panicked {
            resume_unwind(panic);
        }
    }

    /// The fences that a move waited for have signalled.
    pub(crate) fn release<H: Level>(&self, id: MoveId, held: &mut Held<'_, H>)
    where
        levels::MoveQueue: Below<H>,
    {
        let fences = self.state.lock(held).release(id, &self.ledger);
        drop(fences);
        self.drive(held);
    }

    /// Where the staging ring is; its memory is asked for if need be.
    pub(crate) fn find_ring<H: Level>(&self, held: &mut Held<'_, H>) -> Option<Extent>
    where
        levels::MoveQueue: Below<H>,
    {
        let wish = loop {
            let mut state = self.state.lock(held);
            if let Some(extent) = state.ring_extent() {
                return Some(extent);
            }
            if !state.is_asking_for_ring() {
                break state.wish_for_ring()?;
            }
            drop(state);
            yield_now();
        };
        let asked = catch_unwind(AssertUnwindSafe(|| wish.ask()));
        let found = asked.as_ref().ok().copied().flatten();
        self.state.lock(held).supplied(found, &self.ledger);
        // Moves that came meanwhile have left it to us.
        if !mutant!("found_ring_moves_nothing_on") {
            self.drive(held);
        }
        asked.unwrap_or_else(|panic| resume_unwind(panic)).map(|(_, extent)| extent)
    }

    /// Fails the moves that still wait for fences.
    pub(crate) fn abandon_blocked<H: Level>(&self, held: &mut Held<'_, H>)
    where
        levels::MoveQueue: Below<H>,
    {
        let fences = self.state.lock(held).abandon_blocked(&self.timelines, &self.ledger);
        drop(fences);
    }

    /// Sleeps until the queue is as wanted, resetting engines that hang meanwhile.
    pub(crate) fn rest_until(&self, held: &mut Held<'_, levels::Root>, is_so: impl Fn(&State) -> bool) {
        loop {
            let mut state = self.state.lock(held);
            if is_so(&state) {
                return;
            }
            if mutant!("drainer_does_not_look_again") {
                drop(state);
                state = self.state.lock(held);
            }
            #[cfg(any(loom, shuttle))]
            drop(state.wait(&self.changed));
            #[cfg(not(any(loom, shuttle)))]
            {
                let deadline = state.first_deadline(self.chunk_timeout);
                let deadline = deadline.unwrap_or_else(|| Instant::now() + self.chunk_timeout);
                let (state, timed_out) = state.wait_until(&self.changed, deadline);
                drop(state);
                if timed_out {
                    self.reset_hung(Instant::now(), held);
                }
            }
        }
    }

    /// Signals points of a lane.
    fn publish(&self, publication: Publication) {
        let Publication { lane, upto, failed, count, spans } = publication;
        let timeline = &self.timelines[lane];
        // Counted first: who was woken by the fence may ask at once whether the queue is idle.
        let order = if mutant!("idle_publishes_nothing") { Ordering::Relaxed } else { Ordering::Release };
        self.unpublished.fetch_sub(count, order);
        if let Some(seqno) = upto {
            timeline.signal(seqno);
        }
        if let Some((seqno, error)) = failed {
            tracing::warn!(timeline = timeline.name(), seqno, %error, "move failed");
            timeline.fail(seqno, error);
        }
        drop(spans);
    }

    fn completion(&self, engine: usize, ticket: Ticket) -> Completion {
        let me = self.me.upgrade().expect("a queue that is borrowed is alive");
        Completion::new(move |result| me.answer(Answer::Chunk { engine, ticket, result }))
    }

    fn report(&self, slot: SlotIndex) -> Report {
        let me = self.me.upgrade().expect("a queue that is borrowed is alive");
        Box::new(move |outcome| match mutant!("report_is_noted_and_not_acted_upon") {
            false => me.answer(Answer::Errand { slot, outcome }),
            true => me.inbox.lock().push_back(Answer::Errand { slot, outcome }),
        })
    }

    fn answer(&self, answer: Answer) {
        self.inbox.lock().push_back(answer);
        if !Driving::is_here(self) {
            // The thread may be in a callback: an engine may wait for fences of its own.
            self.drive(&mut Held::in_destructor());
        }
    }

    fn read_inbox(&self, state: &mut State, now: Instant) {
        let answers = std::mem::take(&mut *self.inbox.lock());
        for answer in answers {
            match answer {
                Answer::Chunk { engine, ticket, result } => {
                    state.answered(engine, ticket, result, now, &self.ledger);
                }
                Answer::Errand { slot, outcome } => state.errand_ended(slot, outcome, &self.ledger),
            }
        }
    }

    /// Takes the chunks of engines that hang, resets those, and has the chunks redone.
    fn reset_hung(&self, now: Instant, held: &mut Held<'_, levels::Root>) {
        loop {
            let mut state = self.state.lock(held);
            self.read_inbox(&mut state, now);
            let Some(hung) = state.take_hung(now, self.chunk_timeout, &self.ledger) else { break };
            drop(state);
            let (engine, error) = (hung.engine.name(), &hung.error);
            tracing::warn!(engine, %error, chunks = hung.chunks.len(), "copy engine is reset");
            // What the engine drops while it resets is noted and not acted upon inside its locks.
            let driving = Driving::begin(self);
            let _signalling = Signalling::begin();
            let outcome = hung.engine.reset();
            drop(driving);
            self.state.lock(held).was_reset(hung, outcome, &self.ledger);
        }
        if !mutant!("reset_moves_nothing_on") {
            self.drive(held);
        }
    }
}

impl Watched for Inner {
    fn check(&self, now: Instant) -> Option<Instant> {
        let mut held = Held::enter();
        self.reset_hung(now, &mut held);
        // With nothing in flight: whatever starts from now on cannot hang before that.
        Some(
            self.state.lock(&mut held).first_deadline(self.chunk_timeout).unwrap_or(now + self.chunk_timeout),
        )
    }
}

devpagemap_fence::sync::thread_local! {
    /// The queues that this thread is driving, by address.
    static DRIVEN: RefCell<Vec<usize>> = RefCell::default();
}

/// While it lives, this thread drives a queue.
pub(crate) struct Driving(usize);

impl Driving {
    fn begin(queue: &Inner) -> Option<Driving> {
        if Driving::is_here(queue) {
            return None;
        }
        let address = std::ptr::from_ref(queue).addr();
        DRIVEN.with(|driven| driven.borrow_mut().push(address));
        Some(Driving(address))
    }

    /// Whether this thread is driving the queue.
    pub(crate) fn is_here(queue: &Inner) -> bool {
        DRIVEN.with(|driven| driven.borrow().contains(&std::ptr::from_ref(queue).addr()))
    }
}

impl Drop for Driving {
    fn drop(&mut self) {
        DRIVEN.with(|driven| driven.borrow_mut().retain(|address| *address != self.0));
    }
}
