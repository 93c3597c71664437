//! The bytes that buffers hold during a replay, such that bytes in the wrong place are always noticed.
//!
//! A buffer's contents are 8-byte little-endian words. Word `i` is `key + i * STRIDE` (wrapping), where the key is mixed
//! from the replay's seed, the buffer and the version of its contents. `STRIDE` is odd, so no two words of a buffer
//! are equal before 2^64 of them; a word of another buffer, another version or another offset is a different word.
//!
//! ```text
//!   offset   0      8            16             24
//!          | key  | key + S    | key + 2 S    | ..        key = mix(seed, buffer, version)
//! ```
//!
//! Filling and checking are plain loops over whole blocks, one add and one compare a word, which compilers turn into
//! vector instructions; a block that does not match is searched again, word by word, only once something is wrong.

/// Added from word to word; odd, with its bits well spread.
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;
/// Bytes in a word.
const WORD_BYTES: usize = 8;
/// Words that are compared before the result is looked at.
const BLOCK_WORDS: u64 = 512;

/// A small random generator (splitmix64), the same on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator that gives the same numbers for the same seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn next_word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STRIDE);
        mix(self.0)
    }

    /// A number in the range, both ends included.
    pub fn within(&mut self, range: &std::ops::RangeInclusive<u64>) -> u64 {
        match (range.end() - range.start()).checked_add(1) {
            Some(choices) => {
                range.start() + ((u128::from(self.next_word()) * u128::from(choices)) >> 64) as u64
            }
            None => self.next_word(),
        }
    }
}

/// Spreads every bit of `z` over the whole word (the finalizer of splitmix64).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What a buffer must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Zeros: nobody has written it yet.
    Zeros,
    /// The words of one version, by their key.
    Words(u64),
}

/// The first wrong word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Where it begins in the buffer, in bytes; a multiple of 8.
    pub offset_bytes: u64,
    /// What should be there.
    pub expected: u64,
    /// What is there.
    pub found: u64,
}

impl Pattern {
    /// The contents of version `version` of buffer `bo`; version 0 is all zeros.
    pub fn of(seed: u64, bo: u32, version: u32) -> Pattern {
        match version {
            0 => Pattern::Zeros,
            _ => {
                Pattern::Words(mix(mix(seed ^ STRIDE).wrapping_add(u64::from(bo) << 32 | u64::from(version))))
            }
        }
    }

    fn word(self, index: u64) -> u64 {
        match self {
            Pattern::Zeros => 0,
            Pattern::Words(key) => key.wrapping_add(index.wrapping_mul(STRIDE)),
        }
    }

    /// The sum of the words of a buffer of this size, wrapping; for those who have no generator of patterns.
    pub fn sum(self, size_bytes: u64) -> u64 {
        let words = size_bytes / WORD_BYTES as u64;
        // Of `n` and `n - 1` one is even; halved first, the product wraps as the sum does.
        let pairs = match words.is_multiple_of(2) {
            true => (words / 2).wrapping_mul(words.wrapping_sub(1)),
            false => words.wrapping_mul((words - 1) / 2),
        };
        self.word(0).wrapping_mul(words).wrapping_add(self.stride().wrapping_mul(pairs))
    }

    /// From one word to the next.
    fn stride(self) -> u64 {
        match self {
            Pattern::Zeros => 0,
            Pattern::Words(_) => STRIDE,
        }
    }

    /// Writes what belongs at `offset_bytes` of the buffer into `bytes`.
    pub fn fill(self, offset_bytes: u64, bytes: &mut [u8]) {
        let (head, body, tail) = split(offset_bytes, bytes.len());
        self.fill_part(offset_bytes, &mut bytes[..head]);
        let first = (offset_bytes + head as u64) / WORD_BYTES as u64;
        let (mut word, stride) = (self.word(first), self.stride());
        for bytes in bytes[head..head + body].as_chunks_mut::<WORD_BYTES>().0 {
            *bytes = word.to_le_bytes();
            word = word.wrapping_add(stride);
        }
        let at = bytes.len() - tail;
        self.fill_part(offset_bytes + at as u64, &mut bytes[at..]);
    }

    /// Part of one word.
    fn fill_part(self, offset_bytes: u64, bytes: &mut [u8]) {
        let word = self.word(offset_bytes / WORD_BYTES as u64).to_le_bytes();
        let from = (offset_bytes % WORD_BYTES as u64) as usize;
        bytes.copy_from_slice(&word[from..from + bytes.len()]);
    }

    /// Compares `bytes`, which lie at `offset_bytes` of the buffer, and returns the first word that is wrong.
    pub fn check(self, offset_bytes: u64, bytes: &[u8]) -> Result<(), Wrong> {
        let (head, body, tail) = split(offset_bytes, bytes.len());
        self.check_part(offset_bytes, &bytes[..head])?;
        let first = (offset_bytes + head as u64) / WORD_BYTES as u64;
        for (index, block) in bytes[head..head + body].chunks(BLOCK_WORDS as usize * WORD_BYTES).enumerate() {
            self.check_block(first + index as u64 * BLOCK_WORDS, block)?;
        }
        let at = bytes.len() - tail;
        self.check_part(offset_bytes + at as u64, &bytes[at..])
    }

    fn check_block(self, first: u64, block: &[u8]) -> Result<(), Wrong> {
        let words = block.as_chunks::<WORD_BYTES>().0;
        let (mut word, stride) = (self.word(first), self.stride());
        let mut differs = 0;
        for bytes in words {
            differs |= word ^ u64::from_le_bytes(*bytes);
            word = word.wrapping_add(stride);
        }
        if differs == 0 {
            return Ok(());
        }
        let mut found = words.iter().map(|bytes| u64::from_le_bytes(*bytes)).zip(first..);
        match found.find(|(found, index)| *found != self.word(*index)) {
            Some((found, index)) => {
                Err(Wrong { offset_bytes: index * WORD_BYTES as u64, expected: self.word(index), found })
            }
            None => Ok(()),
        }
    }

    /// Compares part of one word; the bytes that were not given count as right.
    fn check_part(self, offset_bytes: u64, bytes: &[u8]) -> Result<(), Wrong> {
        let index = offset_bytes / WORD_BYTES as u64;
        let expected = self.word(index);
        let from = (offset_bytes % WORD_BYTES as u64) as usize;
        let mut found = expected.to_le_bytes();
        found[from..from + bytes.len()].copy_from_slice(bytes);
        let found = u64::from_le_bytes(found);
        if found == expected {
            return Ok(());
        }
        Err(Wrong { offset_bytes: index * WORD_BYTES as u64, expected, found })
    }
}

/// How many bytes come before the first whole word, belong to whole words, and come after the last one.
fn split(offset_bytes: u64, len: usize) -> (usize, usize, usize) {
    let word = WORD_BYTES as u64;
    let head = (offset_bytes.next_multiple_of(word) - offset_bytes).min(len as u64) as usize;
    let body = (len - head) / WORD_BYTES * WORD_BYTES;
    (head, body, len - head - body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_byte_of_another_buffer_version_or_place_is_noticed() {
        let mine = Pattern::of(1, 7, 3);
        let mut bytes = vec![0; 64 * 1024];
        mine.fill(0, &mut bytes);
        assert_eq!(mine.check(0, &bytes), Ok(()));
        for other in [Pattern::of(2, 7, 3), Pattern::of(1, 8, 3), Pattern::of(1, 7, 4), Pattern::Zeros] {
            assert_eq!(other.check(0, &bytes).unwrap_err().offset_bytes, 0);
        }
        assert_eq!(mine.check(8, &bytes[..4096]).unwrap_err().offset_bytes, 8, "shifted by a word");
        let mut moved = bytes.clone();
        moved.swap(5000, 50_000);
        assert_eq!(mine.check(0, &moved).unwrap_err().offset_bytes, 5000);
    }

    #[test]
    fn version_zero_is_zeros() {
        let mut bytes = vec![1; 100];
        Pattern::of(5, 5, 0).fill(3, &mut bytes);
        assert_eq!(bytes, vec![0; 100]);
        bytes[99] = 1;
        assert_eq!(Pattern::Zeros.check(0, &bytes).unwrap_err().offset_bytes, 96);
    }

    proptest! {
        #[test]
        fn pieces_filled_in_any_cut_make_the_whole(cuts in proptest::collection::vec(0usize..9000, 0..6), wrong in 0usize..9000) {
            let pattern = Pattern::of(3, 1, 1);
            let mut whole = vec![0; 9000];
            pattern.fill(0, &mut whole);
            let mut cuts = cuts;
            cuts.extend([0, 9000]);
            cuts.sort_unstable();
            let mut pieces = vec![0; 9000];
            for pair in cuts.windows(2) {
                pattern.fill(pair[0] as u64, &mut pieces[pair[0]..pair[1]]);
            }
            prop_assert!(whole == pieces);
            pieces[wrong] ^= 0x10;
            for pair in cuts.windows(2) {
                let result = pattern.check(pair[0] as u64, &pieces[pair[0]..pair[1]]);
                prop_assert_eq!(result.is_err(), (pair[0]..pair[1]).contains(&wrong));
                if let Err(error) = result {
                    prop_assert_eq!(error.offset_bytes, wrong as u64 / 8 * 8);
                }
            }
        }
    }
}
