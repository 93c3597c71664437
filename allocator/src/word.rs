//! Arithmetic on one 64-bit word of a free bitmap: 64 neighbours at once.
//!
//! A word holds the free bits of 64 units (pages, or blocks of 64 pages, ...). A *block* of order `j` in it is an
//! aligned group of `2^j` units; it is *maximal* when it is wholly free and the group twice its size is not. All 63
//! groups are found by folding the word onto itself, without a loop over bits:
//!
//! ```text
//!   units           1 1 1 1 0 1 1 1     (unit 0 on the left)
//!   whole pairs     1   1   0   1       units & units >> 1, at even places
//!   whole fours     1       0           pairs & pairs >> 2, at every fourth place
//!   maximal         order 2 at 0, order 0 at 5, order 1 at 6
//! ```

/// Units of one word, as a shift.
pub(crate) const WORD_SHIFT: u32 = 6;

/// Orders of the blocks inside one word: 1 to 32 units. A word that is wholly free is one unit of the level above.
pub(crate) const ORDERS_PER_WORD: u32 = 6;

/// `STARTS[j]`: the places where an aligned group of `2^j` units begins.
pub(crate) const STARTS: [u64; 7] = [
    u64::MAX,
    0x5555_5555_5555_5555,
    0x1111_1111_1111_1111,
    0x0101_0101_0101_0101,
    0x0001_0001_0001_0001,
    0x0000_0001_0000_0001,
    1,
];

/// Bits `from..to`, with `from <= to <= 64`.
#[inline]
pub(crate) const fn mask(from: u64, to: u64) -> u64 {
    if from == to { 0 } else { (u64::MAX >> (64 - (to - from))) << from }
}

/// Given the whole groups of order `j`, those of order `j + 1`.
#[inline(always)]
pub(crate) const fn pair_up(whole: u64, j: u32) -> u64 {
    whole & (whole >> (1 << j)) & STARTS[j as usize + 1]
}

/// Given the whole groups of order `j` and of order `j + 1`, the maximal blocks of order `j`.
#[inline(always)]
pub(crate) const fn maximal(whole: u64, whole_pairs: u64, j: u32) -> u64 {
    whole & !(whole_pairs | (whole_pairs << (1 << j)))
}

/// Bit j is set when there is a maximal block of order `j` in `word`.
#[inline(always)]
pub(crate) const fn orders_in(word: u64) -> u64 {
    let whole_1 = pair_up(word, 0);
    let whole_2 = pair_up(whole_1, 1);
    let whole_3 = pair_up(whole_2, 2);
    let whole_4 = pair_up(whole_3, 3);
    let whole_5 = pair_up(whole_4, 4);
    let whole_6 = pair_up(whole_5, 5);
    has_maximal(word, whole_1, 0)
        | has_maximal(whole_1, whole_2, 1)
        | has_maximal(whole_2, whole_3, 2)
        | has_maximal(whole_3, whole_4, 3)
        | has_maximal(whole_4, whole_5, 4)
        | has_maximal(whole_5, whole_6, 5)
}

#[inline(always)]
const fn has_maximal(whole: u64, whole_pairs: u64, j: u32) -> u64 {
    // A group that is not maximal has its buddy beside it.
    ((whole != whole_pairs | (whole_pairs << (1 << j))) as u64) << j
}

/// First units of the maximal blocks of order `j` in `word`.
#[inline]
pub(crate) const fn blocks_of_order(word: u64, j: u32) -> u64 {
    let mut whole = word;
    let mut order = 0;
    while order < j {
        whole = pair_up(whole, order);
        order += 1;
    }
    maximal(whole, pair_up(whole, j), j)
}

/// Whether `word` has a run of `len` set bits, aligned or not (`1 <= len`).
pub(crate) const fn has_run(word: u64, len: u64) -> bool {
    if len > 64 {
        return false;
    }
    let (mut starts, mut covered) = (word, 1);
    while covered < len && starts != 0 {
        let step = if covered < len - covered { covered } else { len - covered };
        starts &= starts >> step;
        covered += step;
    }
    starts != 0
}

/// Length of the longest run of set bits in `word`.
pub(crate) const fn longest_run(word: u64) -> u64 {
    // `runs[i]`: first bits of the runs of at least 2^i.
    let mut runs = [word, 0, 0, 0, 0, 0, 0];
    let mut top = 0;
    while top < 6 && runs[top] & (runs[top] >> (1 << top)) != 0 {
        runs[top + 1] = runs[top] & (runs[top] >> (1 << top));
        top += 1;
    }
    // From the longest power of two on, append halves as long as one still begins right behind.
    let (mut starts, mut longest) = (runs[top], if word == 0 { 0 } else { 1 << top });
    while top > 0 && longest < 64 {
        top -= 1;
        let longer = starts & (runs[top] >> longest);
        if longer != 0 {
            starts = longer;
            longest += 1 << top;
        }
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn runs_bit_by_bit(word: u64) -> u64 {
        let (mut longest, mut run) = (0, 0);
        for bit in 0..64 {
            run = if word >> bit & 1 == 1 { run + 1 } else { 0 };
            longest = longest.max(run);
        }
        longest
    }

    fn group_is_whole(word: u64, order: u32, start: u64) -> bool {
        let group = mask(start, start + (1 << order));
        word & group == group
    }

    /// Words with long runs as well as noisy ones.
    fn words() -> impl Strategy<Value = u64> {
        prop_oneof![
            any::<u64>(),
            (any::<u64>(), any::<u64>()).prop_map(|(a, b)| a | b),
            (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(a, b, c)| a | b | c),
            (0u64..=64, 0u64..=64).prop_map(|(a, b)| mask(a.min(b), a.max(b))),
            (0u64..=64, 0u64..=64).prop_map(|(a, b)| !mask(a.min(b), a.max(b))),
        ]
    }

    proptest! {
        #[test]
        fn the_longest_run_is_what_counting_bit_by_bit_finds(word in words()) {
            let longest = runs_bit_by_bit(word);
            prop_assert_eq!(longest_run(word), longest);
            for len in 1..=65 {
                prop_assert_eq!(has_run(word, len), len <= longest, "{:#x} {}", word, len);
            }
        }

        #[test]
        fn maximal_blocks_are_whole_groups_whose_double_is_not_whole(word in words()) {
            for order in 0..ORDERS_PER_WORD {
                for start in 0..64u64 {
                    let double = start & !((2u64 << order) - 1);
                    let expected = start % (1 << order) == 0
                        && group_is_whole(word, order, start)
                        && !group_is_whole(word, order + 1, double);
                    prop_assert_eq!(blocks_of_order(word, order) >> start & 1 == 1, expected);
                }
                prop_assert_eq!(orders_in(word) >> order & 1 == 1, blocks_of_order(word, order) != 0);
            }
        }
    }
}
