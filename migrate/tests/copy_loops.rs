//! The copy loops against a plain copy: every kernel of this machine, odd alignments, odd lengths, scattered runs.

use devpagemap_migrate::copy::{self, Kernel, Run, tuning};
use proptest::prelude::*;

const CANARY: u8 = 0xee;

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Copies with `by`, checks the bytes and that nothing around them was touched.
fn check_copy(by: impl Fn(&[Run]), runs: &[(usize, usize, usize)]) {
    let src_len = runs.iter().map(|(src, _, len)| src + len).max().unwrap_or(0);
    let dst_len = runs.iter().map(|(_, dst, len)| dst + len).max().unwrap_or(0) + 64;
    let src = noise(src_len, 7);
    let mut dst = vec![CANARY; dst_len];
    let mut model = dst.clone();
    for (from, to, len) in runs.iter().copied() {
        model[to..to + len].copy_from_slice(&src[from..from + len]);
    }
    let base = dst.as_mut_ptr();
    let resolved: Vec<Run> = runs
        .iter()
        .map(|(from, to, len)| Run {
            dst: base.wrapping_add(*to),
            src: src.as_ptr().wrapping_add(*from),
            len_bytes: *len,
        })
        .collect();
    by(&resolved);
    assert!(dst == model, "the bytes differ from those of a plain copy");
}

/// Runs one after the other at both ends, with gaps, the destinations in the order of the sources.
fn runs(len: impl Strategy<Value = usize> + Clone) -> impl Strategy<Value = Vec<(usize, usize, usize)>> {
    prop::collection::vec((0usize..130, 0usize..130, len), 1..12).prop_map(|gaps| {
        let (mut src, mut dst) = (0, 0);
        gaps.into_iter()
            .map(|(src_gap, dst_gap, len)| {
                let run = (src + src_gap, dst + dst_gap, len);
                (src, dst) = (run.0 + len, run.1 + len);
                run
            })
            .collect()
    })
}

#[test]
fn every_length_at_every_alignment_of_a_line_is_copied_exactly() {
    for kernel in Kernel::available() {
        for align in 0..64 {
            for len in [0, 1, 63, 64, 65, 4095, 4096, 4097, 4096 * 4 + align, 4096 * 9 - 1] {
                // SAFETY: the runs lie within the buffers of the check.
                check_copy(|runs| unsafe { kernel.stream(runs) }, &[(63 - align, align, len)]);
            }
        }
    }
}

#[test]
fn a_run_long_enough_to_go_straight_is_copied_exactly() {
    let len = tuning().straight_min_bytes.min(1 << 20) + 4096 + 17;
    for kernel in Kernel::available() {
        // SAFETY: the runs lie within the buffers of the check.
        check_copy(|runs| unsafe { kernel.stream(runs) }, &[(5, 3, len), (len + 9, len + 99, 4096 * 5)]);
    }
}

#[test]
fn every_length_at_every_alignment_is_cleared_exactly() {
    for kernel in Kernel::available() {
        for align in 0..64 {
            for len in [0, 1, 63, 64, 65, 127, 128, 4096, 4096 * 3 + 5] {
                let mut bytes = vec![CANARY; 64 + len + 64];
                let dst = bytes[align..].as_mut_ptr();
                // SAFETY: `len` bytes from `align` on lie within the buffer.
                unsafe { kernel.stream_fill(&[Run { dst, src: std::ptr::null(), len_bytes: len }], 0) };
                assert!(bytes[align..align + len].iter().all(|byte| *byte == 0));
                assert!(bytes[..align].iter().chain(&bytes[align + len..]).all(|byte| *byte == CANARY));
            }
        }
    }
}

#[test]
fn a_fill_writes_the_value_on_both_sides_of_the_switch() {
    for len in [100, tuning().streaming_min_bytes - 1, tuning().streaming_min_bytes + 63] {
        let mut bytes = vec![CANARY; len + 2];
        // SAFETY: the middle of the buffer.
        unsafe { copy::fill(bytes[1..].as_mut_ptr(), 0x5a, len) };
        assert!(bytes[1..=len].iter().all(|byte| *byte == 0x5a));
        assert_eq!((bytes[0], bytes[len + 1]), (CANARY, CANARY));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn scattered_runs_arrive_as_by_a_plain_copy(runs in runs(0usize..20_000)) {
        for kernel in Kernel::available() {
            // SAFETY: the runs lie within the buffers of the check and do not overlap.
            check_copy(|runs| unsafe { kernel.stream(runs) }, &runs);
        }
    }

    #[test]
    fn the_choice_of_the_loop_does_not_show(runs in runs(prop_oneof![0usize..5000, 100_000usize..200_000])) {
        // SAFETY: the runs lie within the buffers of the check and do not overlap.
        check_copy(|runs| unsafe { copy::copy_scattered(runs) }, &runs);
    }
}
