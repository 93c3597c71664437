//! How large a fragment is: measured, not guessed.
//!
//! Small fragments cost a hand-over each; large ones fill the pipeline late, leave the caches on their way and keep what
//! is urgent waiting. What is best depends on the engines, so real transfers are measured as they come:
//!
//! ```text
//!   trials   256K .. 1M .. 64K .. 4M .. 512K .. 128K .. 2M       a few fragments of each, in transfers that come anyway
//!   again    the same; the better of its two trials counts       who was disturbed in one was not in the other, most often
//!   settled  the fastest; of those that are about as fast, the smallest
//!   watch    the rate stays below 3/4 of that, for two trials in a row? measure all again
//! ```
//!
//! What is measured is how fast fragments *arrive* while one follows the other, so what the pipeline hides costs nothing
//! here either. A pause of the ring ends the stretch that is measured; fragments that are shorter than the size on
//! trial, or were begun under another, count for nothing. Nothing here looks at a clock: callers say when.

use std::time::{Duration, Instant};

/// In the order of their trials: a good guess first, then far apart, then what is between.
const SIZES_BYTES: [u64; 7] = [256 << 10, 1 << 20, 64 << 10, 4 << 20, 512 << 10, 128 << 10, 2 << 20];
/// How often each size is tried.
const PASSES: u8 = 2;
/// A trial ends after so many fragments and so many bytes have been measured.
const TRIAL_FRAGMENTS: u32 = 8;
const TRIAL_BYTES: u64 = 4 << 20;
/// Fragments at the start of a stretch that are not measured: the pipeline has to fill first.
const WARM_UP: u32 = 2;
/// A rate within this part of the best one counts as good, in percent.
const AS_GOOD_PERCENT: u64 = 97;
/// Below this part of the rate that was settled on a trial is slow, in percent.
const SLOW_PERCENT: u64 = 75;
/// So many slow trials in a row, and everything is measured again.
const SLOW_TRIALS: u32 = 2;

/// Names a trial; fragments remember theirs.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Trial(u64);

/// Finds the fragment size at which a staging ring is fastest.
///
/// ```
/// use devpagemap_migrate::FragmentTuner;
/// use std::time::{Duration, Instant};
///
/// // Engines that cost 20 us a fragment and 100 us a MiB.
/// let mut tuner = FragmentTuner::new();
/// let mut now = Instant::now();
/// while !tuner.is_settled() {
///     let (trial, bytes) = (tuner.trial(), tuner.fragment_bytes());
///     now += Duration::from_micros(20) + Duration::from_micros(100) * (bytes >> 10) as u32 / 1024;
///     tuner.arrived(trial, bytes, now);
/// }
/// assert_eq!(tuner.fragment_bytes(), FragmentTuner::MAX_BYTES);
/// ```
#[derive(Clone, Debug)]
pub struct FragmentTuner {
    /// The largest size that fits a slot.
    limit_bytes: u64,
    /// The best rate of each size so far, in bytes a second, and its trials; beside `SIZES_BYTES`.
    rates: [(u64, u8); SIZES_BYTES.len()],
    /// The size in use.
    size_bytes: u64,
    /// The rate that `size_bytes` was settled for.
    settled: Option<u64>,
    slow_trials: u32,
    trial: Trial,
    /// When the last fragment of this stretch arrived.
    last: Option<Instant>,
    /// Fragments of this stretch.
    stretch: u32,
    fragments: u32,
    bytes: u64,
    elapsed: Duration,
}

impl Default for FragmentTuner {
    fn default() -> FragmentTuner {
        FragmentTuner::new()
    }
}

impl FragmentTuner {
    /// The largest fragment, in bytes.
    pub const MAX_BYTES: u64 = 4 << 20;

    /// A tuner that has measured nothing.
    pub const fn new() -> FragmentTuner {
        FragmentTuner {
            limit_bytes: FragmentTuner::MAX_BYTES,
            rates: [(0, 0); SIZES_BYTES.len()],
            size_bytes: SIZES_BYTES[0],
            settled: None,
            slow_trials: 0,
            trial: Trial(0),
            last: None,
            stretch: 0,
            fragments: 0,
            bytes: 0,
            elapsed: Duration::ZERO,
        }
    }

    /// Tries no size beyond this, in bytes. What was measured is forgotten.
    pub fn limit_to(&mut self, limit_bytes: u64) {
        let trial = Trial(self.trial.0 + 1);
        *self = FragmentTuner { limit_bytes, trial, ..FragmentTuner::new() };
        self.size_bytes = self.next_on_trial().unwrap_or(limit_bytes);
    }

    /// The size of the next fragment, in bytes.
    pub fn fragment_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The trial that the next fragment belongs to.
    pub fn trial(&self) -> Trial {
        self.trial
    }

    /// Whether every size has been measured.
    pub fn is_settled(&self) -> bool {
        self.settled.is_some() || self.next_on_trial().is_none()
    }

    /// The rate of the size in use when it was settled on, in bytes a second.
    pub fn bytes_per_s(&self) -> Option<u64> {
        self.settled
    }

    /// A fragment of `len_bytes` that was begun during `trial` has arrived.
    pub fn arrived(&mut self, trial: Trial, len_bytes: u64, now: Instant) {
        if trial != self.trial || len_bytes < self.size_bytes {
            self.pause();
            return;
        }
        self.stretch += 1;
        if let Some(last) = self.last.replace(now)
            && self.stretch > WARM_UP
        {
            self.fragments += 1;
            self.bytes += len_bytes;
            self.elapsed += now.saturating_duration_since(last);
        }
        if self.fragments >= TRIAL_FRAGMENTS && self.bytes >= TRIAL_BYTES {
            self.end_trial();
        }
    }

    /// Nothing is in the ring: what comes next is not part of this stretch.
    pub fn pause(&mut self) {
        self.last = None;
        self.stretch = 0;
    }

    fn end_trial(&mut self) {
        let ns = self.elapsed.as_nanos().max(1);
        let rate = u64::try_from(u128::from(self.bytes) * 1_000_000_000 / ns).unwrap_or(u64::MAX);
        (self.fragments, self.bytes, self.elapsed) = (0, 0, Duration::ZERO);
        match self.settled {
            Some(settled) => self.watch(rate, settled),
            None => self.note(rate),
        }
    }

    /// Notes the rate of a size on trial, and goes on to the next, or settles.
    fn note(&mut self, rate: u64) {
        if let Some(at) = SIZES_BYTES.iter().position(|size| *size == self.size_bytes) {
            let (best, trials) = &mut self.rates[at];
            *best = rate.max(*best);
            *trials += 1;
        }
        self.begin_trial();
        if let Some(size_bytes) = self.next_on_trial() {
            self.size_bytes = size_bytes;
            return;
        }
        let of_trials = |(size, (rate, trials))| (trials > 0).then_some((size, rate));
        let rated = || SIZES_BYTES.into_iter().zip(self.rates).filter_map(of_trials);
        // A limit below every size leaves nothing to choose.
        let Some(best) = rated().map(|(_, rate)| rate).max() else { return };
        let is_as_good = |rate: u64| u128::from(rate) * 100 >= u128::from(best) * u128::from(AS_GOOD_PERCENT);
        let chosen = rated().filter(|(_, rate)| is_as_good(*rate)).min();
        if let Some((size_bytes, rate)) = chosen {
            (self.size_bytes, self.settled) = (size_bytes, Some(rate));
        }
    }

    /// Looks whether the settled size is still as fast as it was.
    fn watch(&mut self, rate: u64, settled: u64) {
        let is_slow = u128::from(rate) * 100 < u128::from(settled) * u128::from(SLOW_PERCENT);
        self.slow_trials = if is_slow { self.slow_trials + 1 } else { 0 };
        if self.slow_trials >= SLOW_TRIALS {
            self.limit_to(self.limit_bytes);
        }
    }

    fn begin_trial(&mut self) {
        self.trial.0 += 1;
        self.pause();
    }

    /// The size with the fewest trials, unless all have had theirs.
    fn next_on_trial(&self) -> Option<u64> {
        let sizes = SIZES_BYTES.into_iter().zip(self.rates).filter(|(size, _)| *size <= self.limit_bytes);
        let (size_bytes, (_, trials)) = sizes.min_by_key(|(_, (_, trials))| *trials)?;
        (trials < PASSES).then_some(size_bytes)
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    /// Engines on which a fragment costs this much and a KiB that much.
    struct Engines {
        now: Instant,
        ns_a_fragment: u64,
        /// Up to this size a KiB costs 100 ns, beyond it 200 ns.
        cache_bytes: u64,
        factor: u64,
    }

    impl Engines {
        fn new(ns_a_fragment: u64, cache_bytes: u64) -> Engines {
            Engines { now: Instant::now(), ns_a_fragment, cache_bytes, factor: 1 }
        }

        fn copy(&mut self, tuner: &mut FragmentTuner, fragments: u32) {
            for _ in 0..fragments {
                let (trial, bytes) = (tuner.trial(), tuner.fragment_bytes());
                let ns_a_kib = if bytes <= self.cache_bytes { 100 } else { 200 };
                let ns = self.ns_a_fragment + (bytes >> 10) * ns_a_kib;
                self.now += Duration::from_nanos(ns * self.factor);
                tuner.arrived(trial, bytes, self.now);
            }
        }

        fn settle(&mut self, tuner: &mut FragmentTuner) -> u64 {
            let mut fragments = 0;
            while !tuner.is_settled() {
                self.copy(tuner, 1);
                fragments += 1;
                assert!(fragments < 1000, "fourteen trials need fewer fragments");
            }
            tuner.fragment_bytes()
        }
    }

    #[test]
    fn hand_overs_that_cost_much_make_fragments_large() {
        assert_eq!(Engines::new(100_000, u64::MAX).settle(&mut FragmentTuner::new()), 4 << 20);
    }

    #[test]
    fn bytes_that_leave_the_cache_make_fragments_small() {
        assert_eq!(Engines::new(2_000, 512 << 10).settle(&mut FragmentTuner::new()), 512 << 10);
    }

    #[test]
    fn where_all_are_as_fast_the_smallest_wins() {
        assert_eq!(Engines::new(0, u64::MAX).settle(&mut FragmentTuner::new()), 64 << 10);
    }

    #[test]
    fn a_rate_that_falls_for_good_is_measured_anew() {
        let (mut tuner, mut engines) = (FragmentTuner::new(), Engines::new(2_000, 512 << 10));
        assert_eq!(engines.settle(&mut tuner), 512 << 10);
        engines.cache_bytes = 128 << 10;
        let settled = tuner.bytes_per_s();
        engines.copy(&mut tuner, 40);
        assert!(!tuner.is_settled(), "two slow trials are over");
        assert_eq!(engines.settle(&mut tuner), 128 << 10);
        assert!(tuner.bytes_per_s() < settled);
    }

    #[test]
    fn a_trial_that_was_disturbed_has_a_second_one() {
        let (mut tuner, mut engines) = (FragmentTuner::new(), Engines::new(2_000, 512 << 10));
        let (mut disturbed, mut fragments) = (None, 0);
        while !tuner.is_settled() && fragments < 1000 {
            // Somebody else has the machine during the first trial of the size that is best.
            if tuner.fragment_bytes() == 512 << 10 {
                disturbed.get_or_insert(tuner.trial());
            }
            engines.factor = if disturbed == Some(tuner.trial()) { 5 } else { 1 };
            engines.copy(&mut tuner, 1);
            fragments += 1;
        }
        assert_eq!(tuner.fragment_bytes(), 512 << 10);
    }

    #[test]
    fn one_slow_trial_changes_nothing() {
        let (mut tuner, mut engines) = (FragmentTuner::new(), Engines::new(2_000, 512 << 10));
        engines.settle(&mut tuner);
        engines.factor = 4;
        engines.copy(&mut tuner, TRIAL_FRAGMENTS);
        engines.factor = 1;
        engines.copy(&mut tuner, 100);
        assert!(tuner.is_settled());
    }

    #[test]
    fn pauses_and_short_fragments_are_not_measured() {
        let (mut tuner, mut engines) = (FragmentTuner::new(), Engines::new(2_000, 512 << 10));
        let mut disturbed = (tuner.clone(), Engines::new(2_000, 512 << 10));
        for _ in 0..400 {
            engines.copy(&mut tuner, 7);
            disturbed.1.copy(&mut disturbed.0, 7);
            // The ring runs dry for an hour; then a short move comes along.
            disturbed.0.pause();
            disturbed.1.now += Duration::from_secs(3600);
            disturbed.0.arrived(disturbed.0.trial(), 4096, disturbed.1.now);
        }
        assert!(tuner.is_settled() && disturbed.0.is_settled());
        assert_eq!(tuner.fragment_bytes(), disturbed.0.fragment_bytes());
        assert_eq!(tuner.bytes_per_s(), disturbed.0.bytes_per_s());
    }

    #[test]
    fn no_fragment_is_larger_than_a_slot() {
        let mut tuner = FragmentTuner::new();
        tuner.limit_to(600 << 10);
        let mut engines = Engines::new(100_000, u64::MAX);
        assert_eq!(engines.settle(&mut tuner), 512 << 10);
        tuner.limit_to(8192);
        assert_eq!(tuner.fragment_bytes(), 8192);
        engines.copy(&mut tuner, 2000);
        assert_eq!(tuner.fragment_bytes(), 8192);
    }
}
