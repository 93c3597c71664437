//! Which bytes of a copy are those of the buffer.

use std::ops::Range;

/// Ranges of bytes, in order, that neither touch nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fresh(Vec<Range<u64>>);

impl Fresh {
    /// Nothing is.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// These are, from now on.
    pub(super) fn add(&mut self, bytes: &Range<u64>) {
        if bytes.is_empty() {
            return;
        }
        let first = self.0.partition_point(|run| run.end < bytes.start);
        let behind = self.0.partition_point(|run| run.start <= bytes.end);
        let touched = &self.0[first..behind];
        let start = touched.first().map_or(bytes.start, |run| run.start.min(bytes.start));
        let end = touched.last().map_or(bytes.end, |run| run.end.max(bytes.end));
        self.0.splice(first..behind, std::iter::once(start..end));
    }

    /// Those of `bytes` that are not.
    pub(super) fn missing(&self, bytes: &Range<u64>) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        let mut at = bytes.start;
        let first = self.0.partition_point(|run| run.end <= bytes.start);
        for run in self.0[first..].iter().take_while(|run| run.start < bytes.end) {
            if at < run.start {
                missing.push(at..run.start);
            }
            at = run.end;
        }
        if at < bytes.end {
            missing.push(at..bytes.end);
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_agrees_with_a_list_of_bytes() {
        let (mut fresh, mut bytes) = (Fresh::default(), [false; 64]);
        let mut seed = 1u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        for round in 0..2000 {
            let start = next(64);
            let range = start..start + next(65 - start);
            if round % 97 == 0 {
                (fresh, bytes) = (Fresh::default(), [false; 64]);
            }
            let missing = fresh.missing(&range);
            for at in range.clone() {
                let is_missing = missing.iter().any(|run| run.contains(&at));
                assert_eq!(is_missing, !bytes[at as usize], "{at} in {range:?} of {fresh:?}");
            }
            assert!(
                missing.iter().all(|run| !run.is_empty() && run.start >= range.start && run.end <= range.end)
            );
            fresh.add(&range);
            range.for_each(|at| bytes[at as usize] = true);
            assert!(fresh.0.windows(2).all(|pair| pair[0].end < pair[1].start), "{fresh:?}");
        }
    }
}
