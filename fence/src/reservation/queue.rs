//! Waiting for a reservation: the queue, wait-die, and who gets the lock next.
//!
//! **Deadlock** between tickets that each lock several buffers is excluded by wait-die: whoever holds something and
//! finds the holder *older* than itself dies, which is to say it is told [`Contended`](LockError::Contended), lets go of
//! everything and begins again with the age it has. So those who wait while they hold something wait for younger ones
//! only, and no circle of waiting can close; the oldest ticket of all never dies, so somebody always gets on. A ticket that
//! holds nothing may always wait. Whoever locks a single buffer waits for no other, therefore nobody dies of it.
//!
//! The rule is applied when a ticket asks, and whenever it is rung. A lock may change hands while others queue for it, to
//! somebody older than they are. That does no harm until the new holder waits for something itself, so it is then that it rings
//! those who must not wait for what it holds; a new holder that waits for nothing has nothing to look at.
//!
//! **Why no wake-up can be missed.** The word and the number of waiters are two places, so that taking and giving back an
//! uncontended lock is one read-modify-write and one store. Each side announces itself in its place, passes a full
//! barrier, and looks at the other's:
//!
//! ```text
//!   waiter                              holder, letting go              new holder
//!     queue; waiting = 1                  word = free                     word: free -> mine
//!     ── full barrier ──                  ── full barrier ──              ── full barrier, before it waits itself ──
//!     word? free: take it                 waiting? ring the oldest        waiting? ring who must not wait for me
//!           else: sleep till rung
//! ```
//!
//! Of two barriers one comes first, and who passes the second sees what was announced before the first. So either the
//! waiter sees that the word changed, or whoever changed it sees the waiter. The queue has a lock, a bell keeps its ring
//! until it is heard, and a waiter looks again each time it is rung.
//!
//! The holder's first look is at one count of all who queue for anything, and only if there is somebody at its own objects: their
//! words may be another processor's already, who has taken them, and looking would mean to take them from it.
//!
//! **Spinning.** Most locks are held for less time than it takes to put a thread to sleep and wake it, so whoever may wait looks a
//! few microseconds long whether the lock comes free before it queues. Wait-die holds meanwhile too.
//!
//! **Fairness.** An unlock leaves the lock free and rings the oldest waiter alone. Whoever is running may be faster
//! and take it, which keeps a contended lock from costing two context switches each time; but for a waiter that lost
//! this race once the next unlock sets the lock aside. It is its *heir*, and nobody overtakes an heir.

use std::collections::VecDeque;

use super::Reservation;
use crate::error::LockError;
use crate::exec::Interrupt;
use crate::levels::{Guard, Timeline};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::barrier::full_fence;
use crate::sync::claim::{Claimed, Release, Unclaimed, Word};
use crate::sync::stamp::fresh_stamp;
use crate::sync::{Arc, Bell, mutant, process_wide};

/// As many looks as are worth it before queueing; some microseconds in all.
fn looks() -> impl Iterator<Item = ()> {
    std::iter::repeat_n((), if cfg!(any(loom, shuttle)) { 0 } else { 40 })
}

/// How long to pause between two looks, each of which takes the cache line away from whoever is about to write to it.
const PAUSES: u32 = 6;

fn pause() {
    (0..PAUSES).for_each(|_| std::hint::spin_loop());
}

/// How many queue for any reservation, on a cache line of its own.
#[repr(align(128))]
struct Queued(AtomicUsize);

process_wide! {
    const static QUEUED: Queued = Queued(AtomicUsize::new(0))
}

/// Whether anybody queues for any reservation. Whoever has given one back asks after a full barrier.
#[inline]
pub(crate) fn anybody_queues() -> bool {
    QUEUED.0.load(Ordering::Relaxed) != 0 && !mutant!("unlock_does_not_look_again")
}

/// Who waits for a lock.
pub(crate) struct Bidder<'i> {
    /// Its age; smaller is older.
    pub stamp: u64,
    /// The word with which it will hold.
    pub claimed: Claimed,
    /// Whether it holds other reservations now.
    pub holds: bool,
    /// What makes it stop waiting.
    pub interrupt: Option<&'i Interrupt>,
}

impl Bidder<'_> {
    /// Somebody who locks one reservation and no other, as old as this moment.
    pub(crate) fn alone() -> Bidder<'static> {
        Bidder { stamp: fresh_stamp(), claimed: Claimed::ALONE, holds: false, interrupt: None }
    }

    /// Why it must not wait for the holder named by `word`, if so.
    pub(crate) fn must_not_wait(&self, word: Word) -> Option<LockError> {
        if self.interrupt.is_some_and(Interrupt::is_raised) {
            return Some(LockError::Interrupted);
        }
        must_die(self.stamp, self.holds, word).then_some(LockError::Contended)
    }
}

/// Whether a ticket must not wait for the holder named by `word`: it holds something, and the holder is older and may wait too.
fn must_die(stamp: u64, holds: bool, word: Word) -> bool {
    let holds = holds && !mutant!("younger_ones_wait_too");
    holds && word.ticket().is_some_and(|holder| holder < stamp)
}

struct Waiter {
    stamp: u64,
    holds: bool,
    lost: bool, // it was rung, and somebody else was faster
    bell: Arc<Bell>,
}

/// Those who wait for one reservation.
#[derive(Default)]
pub(crate) struct Waiters {
    queue: VecDeque<Waiter>, // oldest first
}

impl Waiters {
    fn of_stamp(&mut self, stamp: u64) -> Option<&mut Waiter> {
        self.queue.iter_mut().find(|waiter| waiter.stamp == stamp)
    }

    /// The word with which the lock is given back: it is for the oldest waiter alone, if that lost it once.
    fn next_word(&self) -> Unclaimed {
        let heir = self.queue.front().filter(|head| head.lost);
        heir.map_or(Unclaimed::FREE, |heir| Unclaimed::for_heir(heir.stamp))
    }

    fn ring_head(&self) {
        let Some(head) = self.queue.front() else { return };
        if head.lost && mutant!("heir_is_not_rung") {
            return;
        }
        if !mutant!("unlock_rings_nobody") {
            head.bell.ring();
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }
}

/// What a waiter finds when it looks.
enum Look {
    /// The word says that it may claim.
    Now(Unclaimed),
    /// Somebody has it for whom it may wait.
    Later,
    /// It must not wait any longer, and has left the queue.
    Never(LockError),
}

impl<T> Reservation<T> {
    fn enqueue(&self, bidder: &Bidder<'_>) -> Arc<Bell> {
        let bell = Arc::new(Bell::mine());
        let mut waiters = self.waiters.lock_leaf();
        let Bidder { stamp, holds, .. } = *bidder;
        let index = waiters.queue.partition_point(|waiter| waiter.stamp < stamp);
        waiters.queue.insert(index, Waiter { stamp, holds, lost: false, bell: bell.clone() });
        self.count_waiters(&waiters);
        QUEUED.0.fetch_add(1, Ordering::Relaxed);
        bell
    }

    fn dequeue(&self, waiters: &mut Guard<'_, Timeline, Waiters>, stamp: u64) {
        waiters.queue.retain(|waiter| waiter.stamp != stamp);
        self.count_waiters(waiters);
        QUEUED.0.fetch_sub(1, Ordering::Relaxed);
    }

    fn count_waiters(&self, waiters: &Waiters) {
        self.cell.waiting.store(waiters.len() as u32, Ordering::Relaxed);
    }

    /// Waits, and calls `claim` whenever `bidder` may claim, until that succeeds.
    ///
    /// `claim` gets the word that it must find.
    #[cold]
    pub(super) fn wait<C>(
        &self,
        bidder: &Bidder<'_>,
        mut claim: impl FnMut(Unclaimed) -> Option<C>,
    ) -> Result<C, LockError> {
        match self.spin(bidder, &mut claim) {
            Some(decided) => decided,
            None => self.wait_in_queue(bidder, claim),
        }
    }

    /// Looks for a while whether the lock comes free, and does not take it.
    pub(crate) fn comes_free_soon(&self) -> bool {
        looks().any(|()| {
            pause();
            self.cell.word() == Word::Unclaimed(Unclaimed::FREE)
        })
    }

    /// Looks for a while whether the lock comes free, and takes it. Nothing of it in a model, where it would be a look more at
    /// what the queue looks at anyway.
    fn spin<C>(
        &self,
        bidder: &Bidder<'_>,
        claim: &mut impl FnMut(Unclaimed) -> Option<C>,
    ) -> Option<Result<C, LockError>> {
        for _ in looks() {
            let word = self.cell.word();
            if let Some(error) = bidder.must_not_wait(word) {
                return Some(Err(error));
            }
            if word == Word::Unclaimed(Unclaimed::FREE)
                && let Some(claimed) = claim(Unclaimed::FREE)
            {
                return Some(Ok(claimed));
            }
            pause();
        }
        None
    }

    fn wait_in_queue<C>(
        &self,
        bidder: &Bidder<'_>,
        mut claim: impl FnMut(Unclaimed) -> Option<C>,
    ) -> Result<C, LockError> {
        let bell = self.enqueue(bidder);
        let _listening = bidder.interrupt.map(|interrupt| interrupt.listen(&bell));
        if mutant!("waiter_does_not_look_after_queueing") {
            bell.hear();
        }
        let mut was_rung = false;
        loop {
            match self.look(bidder, was_rung) {
                Look::Now(from) => {
                    if let Some(claimed) = claim(from) {
                        self.dequeue(&mut self.waiters.lock_leaf(), bidder.stamp);
                        return Ok(claimed);
                    }
                }
                Look::Later => bell.hear(),
                Look::Never(error) => return Err(error),
            }
            was_rung = true;
        }
    }

    fn look(&self, bidder: &Bidder<'_>, was_rung: bool) -> Look {
        let mut waiters = self.waiters.lock_leaf();
        full_fence();
        let word = self.cell.word();
        match word {
            Word::Unclaimed(word) if word == Unclaimed::FREE => return Look::Now(word),
            Word::Unclaimed(word) if word == Unclaimed::for_heir(bidder.stamp) => return Look::Now(word),
            Word::Unclaimed(_) | Word::Claimed(_) => {}
        }
        if let Some(error) = bidder.must_not_wait(word) {
            self.dequeue(&mut waiters, bidder.stamp);
            return Look::Never(error);
        }
        if was_rung && let Some(waiter) = waiters.of_stamp(bidder.stamp) {
            waiter.lost = true;
        }
        Look::Later
    }

    /// Rings those in the queue that must not wait for the present holder.
    pub(crate) fn tell_the_doomed(&self) {
        let waiters = self.waiters.lock_leaf();
        let word = self.cell.word();
        for waiter in &waiters.queue {
            if must_die(waiter.stamp, waiter.holds, word) {
                waiter.bell.ring();
            }
        }
    }

    /// Gives back a lock that is waited for, to the heir if there is one, and rings who is next.
    #[cold]
    pub(super) fn hand_over<V>(&self, release: Release<'_, V>) {
        let waiters = self.waiters.lock_leaf();
        release.store(waiters.next_word());
        waiters.ring_head();
    }

    /// Says who is next, after the lock was given back and somebody was found waiting, and rings.
    #[cold]
    pub(crate) fn wake_next(&self) {
        let waiters = self.waiters.lock_leaf();
        let Word::Unclaimed(word) = self.cell.word() else { return };
        if word == Unclaimed::FREE || word == Unclaimed::FOR_QUEUE {
            self.cell.reassign(word, waiters.next_word());
        }
        waiters.ring_head();
    }
}
