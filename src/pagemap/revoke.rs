//! Revocation: access to a pagemap is taken away from everybody, and given back.
//!
//! ```text
//!            begin               drain                 finish
//!   Active ─────────► Invalidating ─────────► Draining ─────────► Revoked
//!     ▲  ▲  no new passes; users   │  all were told; their fences          │  nobody uses it
//!     │  │  are told one by one    │  end by themselves, or are overdue    │
//!     │  └──────── call off ───────┘                                       │
//!     └───────────────────────────── re-arm, a new epoch ◄─────────────────┘
//! ```
//!
//! Hot unplug and reset are this machine with another cause. (Peers alone are kept out by [`Pagemap::revoke`](super::Pagemap::revoke):
//! decisions change, and the device sees to the rest.) All of it is one word, so that who begins to use the pagemap and who takes it
//! away agree in one step which of them came first:
//!
//! ```text
//!   | phase (2 bits) | cause (2 bits) | epoch (28 bits) | passes (32 bits) |
//! ```
//!
//! **Ordered against maps.** Whoever is about to use the pagemap (maps it, moves bytes into it, reads it) takes a [`Pass`], and keeps
//! it until what it made can be found: the map is on its buffer's list, the fence in the reservation. A pass is given in the same
//! step that finds the phase `Active`. So with a revoke beside it a map has a pass, and is then complete before anybody is told
//! ([`Revocation::wait_for_passes`]), so that it is told; or it has none, and is refused. There is no third way, and no lock.
//!
//! **Why a count and no list.** A pass is held while something is *made*, not while it is used, so it is short: no holder waits for a fence.
//! What is used for long is found where it is anyway (the buffer's list of maps, fences in reservations) and told by name, which a
//! count could not do.
//!
//! **Once each.** Every step but the first is made by whoever finds the phase before it, by compare-and-swap: two who begin, a last
//! fence and the watchdog that both finish, are told apart by what they get back.
//!
//! The lock beside the word is for sleeping only. It stands outside of the order and nothing is taken inside.

use std::fmt;

use devpagemap_fence::sync::atomic::{AtomicU64, Ordering};
use devpagemap_fence::sync::{Condvar, mutant};
use devpagemap_fence::{Outside, lockdep};

const PASS: u64 = 1;
const PASSES: u64 = (1 << 32) - 1;
const EPOCH: u64 = 1 << 32;
const EPOCHS: u64 = ((1 << 28) - 1) << 32;
const CAUSE_SHIFT: u32 = 60;
const CAUSES: u64 = 0b11 << CAUSE_SHIFT;
const PHASE_SHIFT: u32 = 62;
const PHASES: u64 = 0b11 << PHASE_SHIFT;

/// How far a revoke has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Anybody may use the pagemap.
    Active,
    /// Nobody new may; those who do are being told.
    Invalidating,
    /// All have been told, and have until a bound to be done.
    Draining,
    /// Nobody uses it, but for those who were named as overdue.
    Revoked,
}

impl Phase {
    const ALL: [Phase; 4] = [Phase::Active, Phase::Invalidating, Phase::Draining, Phase::Revoked];
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Active => "active",
            Phase::Invalidating => "invalidating",
            Phase::Draining => "draining",
            Phase::Revoked => "revoked",
        })
    }
}

/// Why a pagemap is revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RevokeCause {
    /// The device is about to be unplugged, and works until it is.
    Unplug,
    /// The device has been unplugged.
    SurpriseUnplug,
    /// The device is reset.
    Reset,
}

impl RevokeCause {
    const ALL: [RevokeCause; 3] = [RevokeCause::Unplug, RevokeCause::SurpriseUnplug, RevokeCause::Reset];

    /// For errors.
    pub fn text(self) -> &'static str {
        match self {
            RevokeCause::Unplug => "the device is being unplugged",
            RevokeCause::SurpriseUnplug => "the device was unplugged without notice",
            RevokeCause::Reset => "the device is being reset",
        }
    }
}

impl fmt::Display for RevokeCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// A revoke that stands in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UnderRevoke {
    /// How far it has come; `Active` when there is none, and one was expected.
    pub phase: Phase,
    /// Its cause, or that of the last one.
    pub cause: RevokeCause,
}

impl fmt::Display for UnderRevoke {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.phase {
            Phase::Active => f.write_str("nothing is revoked"),
            phase => write!(f, "{phase}: {}", self.cause),
        }
    }
}

impl std::error::Error for UnderRevoke {}

/// Whether something may be used, by whom that is decided, and how many just begin to.
#[derive(Debug)]
pub struct Revocation {
    /// See the head of this file.
    word: AtomicU64,
    /// Who waits for passes sleeps under it.
    sleep: Outside<()>,
    /// Notified when the last pass is returned while somebody may wait for that.
    alone: Condvar,
}

impl Default for Revocation {
    fn default() -> Revocation {
        Revocation::new()
    }
}

impl Revocation {
    /// Nothing is revoked.
    pub fn new() -> Revocation {
        Revocation { word: AtomicU64::new(0), sleep: Outside::new("revocation", ()), alone: Condvar::new() }
    }

    /// Begins to use the pagemap. What is made under the pass is found by a revoke that begins meanwhile. Takes no lock.
    ///
    /// # Errors
    /// The revoke that has begun before.
    #[inline]
    pub fn enter(&self) -> Result<Pass<'_>, UnderRevoke> {
        let mut word = self.word.load(Ordering::Acquire);
        loop {
            if phase_of(word) != Phase::Active {
                return Err(under(word));
            }
            assert!(word & PASSES != PASSES, "less than 2^32 passes are held at once");
            if mutant!("pass_is_given_in_two_steps") {
                self.word.fetch_add(PASS, Ordering::AcqRel);
                return Ok(Pass(self));
            }
            match self.word.compare_exchange_weak(word, word + PASS, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Ok(Pass(self)),
                Err(found) => word = found,
            }
        }
    }

    /// Gives no more passes. Whoever this succeeds for makes the other steps of this revoke.
    ///
    /// # Errors
    /// The revoke that has begun before.
    pub fn begin(&self, cause: RevokeCause) -> Result<(), UnderRevoke> {
        self.step(Phase::Active, Phase::Invalidating, |word| word & !CAUSES | (cause as u64) << CAUSE_SHIFT)
    }

    /// Sleeps until every pass has been returned: what was made under them is complete by then. Passes are short, so this is.
    ///
    /// # Panics
    /// In debug builds, where nobody may wait. Who holds a pass waits for itself.
    #[track_caller]
    pub fn wait_for_passes(&self) {
        lockdep::assert_may_wait();
        debug_assert_ne!(self.phase(), Phase::Active, "passes are given as long as nothing is revoked");
        if mutant!("revoke_waits_for_no_pass") {
            return;
        }
        let mut sleep = self.sleep.lock();
        while self.word.load(Ordering::Acquire) & PASSES != 0 {
            sleep = sleep.wait(&self.alone);
        }
    }

    /// All users have been told.
    ///
    /// # Errors
    /// What is found instead of a revoke that tells.
    pub fn drain(&self) -> Result<(), UnderRevoke> {
        self.step(Phase::Invalidating, Phase::Draining, |word| word)
    }

    /// Nobody uses it any more, or has to. True for one caller alone: the last fence and the watchdog may both want to be it.
    pub fn finish(&self) -> bool {
        if mutant!("revoke_is_finished_twice") {
            let was = self.word.load(Ordering::Acquire);
            self.word.fetch_or(PHASES, Ordering::AcqRel);
            return phase_of(was) == Phase::Draining;
        }
        self.step(Phase::Draining, Phase::Revoked, |word| word).is_ok()
    }

    /// Takes a revoke back whose users are still being told. Those who were told map again.
    ///
    /// # Errors
    /// What is found instead of such a revoke.
    pub fn call_off(&self) -> Result<(), UnderRevoke> {
        self.step(Phase::Invalidating, Phase::Active, next_epoch)
    }

    /// Gives passes again. Who gets one sees all that was done before this.
    ///
    /// # Errors
    /// What is found instead of a finished revoke.
    pub fn rearm(&self) -> Result<(), UnderRevoke> {
        self.step(Phase::Revoked, Phase::Active, next_epoch)
    }

    /// How far a revoke has come.
    pub fn phase(&self) -> Phase {
        phase_of(self.word.load(Ordering::Acquire))
    }

    /// # Errors
    /// The revoke that has begun, however far it has come. The answer is old news at once, but where a pass is held.
    pub fn check_active(&self) -> Result<(), UnderRevoke> {
        let word = self.word.load(Ordering::Acquire);
        if phase_of(word) == Phase::Active { Ok(()) } else { Err(under(word)) }
    }

    /// How often access was given back, modulo 2^28.
    pub fn epoch(&self) -> u32 {
        ((self.word.load(Ordering::Acquire) & EPOCHS) / EPOCH) as u32
    }

    fn step(&self, from: Phase, to: Phase, change: impl Fn(u64) -> u64) -> Result<(), UnderRevoke> {
        let order = if mutant!("rearm_publishes_nothing") { Ordering::Acquire } else { Ordering::AcqRel };
        let mut word = self.word.load(Ordering::Acquire);
        loop {
            if phase_of(word) != from {
                return Err(under(word));
            }
            let new = change(word) & !PHASES | (to as u64) << PHASE_SHIFT;
            if to == Phase::Invalidating && mutant!("revoke_begins_twice") {
                self.word.fetch_or(new & (PHASES | CAUSES), order);
                return Ok(());
            }
            match self.word.compare_exchange_weak(word, new, order, Ordering::Acquire) {
                Ok(_) => return Ok(()),
                Err(found) => word = found,
            }
        }
    }
}

/// The right to begin to use a pagemap, until dropped.
#[derive(Debug)]
#[must_use = "a pass is good for as long as it is held"]
pub struct Pass<'a>(&'a Revocation);

impl Drop for Pass<'_> {
    #[inline]
    fn drop(&mut self) {
        let order = if mutant!("pass_publishes_nothing") { Ordering::Relaxed } else { Ordering::Release };
        let word = self.0.word.fetch_sub(PASS, order);
        let may_be_awaited = word & PASSES == PASS && phase_of(word) == Phase::Invalidating;
        if may_be_awaited && !mutant!("last_pass_wakes_nobody") {
            // Whoever has looked and not found it returned is asleep once this lock can be had.
            drop(self.0.sleep.lock());
            self.0.alone.notify_all();
        }
    }
}

fn next_epoch(word: u64) -> u64 {
    word & !EPOCHS | word.wrapping_add(EPOCH) & EPOCHS
}

fn phase_of(word: u64) -> Phase {
    Phase::ALL[(word >> PHASE_SHIFT) as usize]
}

fn under(word: u64) -> UnderRevoke {
    let cause = RevokeCause::ALL[(word >> CAUSE_SHIFT & 0b11) as usize];
    UnderRevoke { phase: phase_of(word), cause }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn a_revoke_goes_through_its_phases_and_back() {
        let revocation = Revocation::new();
        for epoch in 0..3 {
            drop(revocation.enter().expect("nothing is revoked"));
            assert_eq!(revocation.begin(RevokeCause::Reset), Ok(()));
            let refused = revocation.enter().map(drop).expect_err("it is revoked");
            assert_eq!(refused, UnderRevoke { phase: Phase::Invalidating, cause: RevokeCause::Reset });
            revocation.wait_for_passes();
            assert_eq!(revocation.drain(), Ok(()));
            assert_eq!((revocation.finish(), revocation.finish()), (true, false));
            assert_eq!((revocation.phase(), revocation.epoch()), (Phase::Revoked, epoch));
            assert_eq!(revocation.rearm(), Ok(()));
        }
        assert_eq!(revocation.epoch(), 3);
    }

    #[test]
    fn a_step_is_refused_from_any_phase_but_the_one_before_and_changes_nothing() {
        let revocation = Revocation::new();
        let active = UnderRevoke { phase: Phase::Active, cause: RevokeCause::Unplug };
        assert_eq!((revocation.drain(), revocation.rearm()), (Err(active), Err(active)));
        assert_eq!((revocation.call_off(), revocation.finish()), (Err(active), false));
        revocation.begin(RevokeCause::Reset).expect("nothing is revoked");
        let second = revocation.begin(RevokeCause::Unplug).expect_err("one at a time");
        assert_eq!((second.phase, second.cause), (Phase::Invalidating, RevokeCause::Reset));
        assert_eq!(second.to_string(), "invalidating: the device is being reset");
        assert!(revocation.rearm().is_err() && !revocation.finish());
        revocation.drain().expect("it was begun");
        assert!(revocation.call_off().is_err(), "all have been told");
    }

    #[test]
    fn a_revoke_that_is_called_off_was_one_epoch_long() {
        let revocation = Revocation::new();
        revocation.begin(RevokeCause::Unplug).expect("nothing is revoked");
        revocation.call_off().expect("it tells");
        assert_eq!((revocation.phase(), revocation.epoch()), (Phase::Active, 1));
        drop(revocation.enter().expect("it is given again"));
    }

    #[test]
    fn the_epoch_begins_anew_after_its_last() {
        assert_eq!(next_epoch(EPOCHS | PASS), PASS);
    }
}
