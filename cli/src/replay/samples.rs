//! What memory looked like while the replay ran: a bounded number of samples, however long it takes.

use devpagemap::Stats;

/// The most samples that are kept.
const MAX_SAMPLES: usize = 4096;

/// Memory at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Nanoseconds since the replay began.
    pub at_ns: u64,
    /// Batches submitted so far.
    pub batches: u64,
    /// VRAM in use.
    pub vram_bytes: u64,
    /// System memory in use that the GPU reaches.
    pub gtt_bytes: u64,
    /// System memory in use that it does not reach.
    pub system_bytes: u64,
    /// Evictions so far.
    pub evictions: u64,
    /// Bytes evicted so far.
    pub evicted_bytes: u64,
}

impl Sample {
    /// From the device's own figures.
    pub fn of(stats: &Stats, at_ns: u64, batches: u64) -> Sample {
        Sample {
            at_ns,
            batches,
            vram_bytes: stats.vram_used_bytes,
            gtt_bytes: stats.gtt_used_bytes,
            system_bytes: stats.system_used_bytes,
            evictions: stats.evictions,
            evicted_bytes: stats.evicted_bytes,
        }
    }
}

/// Samples in the order of time. When there are too many, every second one is dropped, and from then on only every
/// second, fourth, .. moment is sampled.
#[derive(Clone, Debug)]
pub struct Samples {
    kept: Vec<Sample>,
    every: u64,
    moments: u64,
}

impl Default for Samples {
    fn default() -> Samples {
        Samples { kept: Vec::new(), every: 1, moments: 0 }
    }
}

impl Samples {
    /// A moment to sample has come; `sample` is asked only if it will be kept.
    pub fn moment(&mut self, sample: impl FnOnce() -> Sample) {
        if self.moments.is_multiple_of(self.every) {
            self.kept.push(sample());
        }
        self.moments += 1;
        if self.kept.len() >= MAX_SAMPLES {
            let mut index = 0;
            self.kept.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.every *= 2;
        }
    }

    /// The last moment, which is always kept.
    pub fn last(&mut self, sample: Sample) {
        self.kept.push(sample);
    }

    /// All that were kept.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Sample> {
        self.kept.iter()
    }

    /// In `slices` equal parts: the most VRAM used in each part, and the evictions in it.
    pub fn sliced(&self, slices: usize) -> Vec<(u64, u64)> {
        let count = self.kept.len();
        let mut before = 0;
        let slice = |index: usize| {
            let (from, to) =
                (index * count / slices, ((index + 1) * count / slices).max(index * count / slices + 1));
            let part = &self.kept[from.min(count - 1)..to.min(count)];
            let peak = part.iter().map(|sample| sample.vram_bytes).max().unwrap_or(0);
            let now = part.last().map_or(before, |sample| sample.evictions);
            let evictions = now - before;
            before = now;
            (peak, evictions)
        };
        if count == 0 { Vec::new() } else { (0..slices).map(slice).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ns: u64) -> Sample {
        Sample { at_ns: ns, vram_bytes: ns, evictions: ns / 2, ..Sample::default() }
    }

    #[test]
    fn a_long_replay_keeps_evenly_spread_samples() {
        let mut samples = Samples::default();
        for ns in 0..100_000 {
            samples.moment(|| at(ns));
        }
        assert!((1000..=MAX_SAMPLES).contains(&samples.iter().len()));
        let times: Vec<u64> = samples.iter().map(|sample| sample.at_ns).collect();
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] == times[1] - times[0]));
    }

    #[test]
    fn slices_hold_every_eviction_once_even_when_there_are_few_samples() {
        for count in [1, 7, 60, 100, 5000] {
            let mut samples = Samples::default();
            for ns in 0..count {
                samples.moment(|| at(ns));
            }
            let last = samples.iter().last().unwrap().evictions;
            let sliced = samples.sliced(60);
            assert_eq!(sliced.iter().map(|(_, evictions)| evictions).sum::<u64>(), last);
        }
    }
}
