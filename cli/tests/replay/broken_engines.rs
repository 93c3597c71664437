//! Copy engines that fail, hang or die in the middle of a replay: every byte stays right, and the fallback is counted.

use crate::recordings::{assert_all_well, replay_watched};
use devpagemap::migrate::Fault;

/// Replays the built-in workload; after `batch` batches every given engine gets its fault.
fn broken_after(batch: u32, faults: &[(usize, Fault)]) -> devpagemap_cli::replay::Outcome {
    let mut injected = false;
    let (_, outcome) = replay_watched(&["builtin:frames", "--scale", "1/4"], |replay, moment| {
        if injected || moment.batch < batch {
            return;
        }
        injected = true;
        for (engine, fault) in faults {
            replay.device().driver().copy_engine(*engine).expect("the engine exists").inject(*fault);
        }
    });
    assert!(injected);
    outcome
}

#[test]
fn a_chunk_that_fails_is_done_again_by_somebody_else() {
    let outcome = broken_after(20, &[(0, Fault::FailNext { chunks: 3 }), (1, Fault::FailNext { chunks: 3 })]);
    assert_all_well(&outcome);
    assert!(!outcome.reasons.is_empty(), "a fallback has its reason");
}

#[test]
fn when_every_engine_fails_the_cpu_copies() {
    let outcome =
        broken_after(20, &[(0, Fault::FailAfter { chunks: 5 }), (1, Fault::FailAfter { chunks: 0 })]);
    assert_all_well(&outcome);
    assert!(outcome.stats.fallback_bytes > 0);
    assert!(outcome.reasons.values().sum::<u64>() > 0, "{:?}", outcome.reasons);
}

#[test]
fn an_engine_that_hangs_is_reset_and_its_chunk_done_again() {
    let outcome = broken_after(30, &[(0, Fault::HangAfter { chunks: 2 })]);
    assert_all_well(&outcome);
    assert!(outcome.reasons.keys().any(|reason| reason.contains("sdma0")), "{:?}", outcome.reasons);
}

#[test]
fn an_engine_that_dies_leaves_its_work_to_the_others() {
    let outcome = broken_after(10, &[(1, Fault::DieAfter { chunks: 1 })]);
    assert_all_well(&outcome);
    assert!(outcome.reasons.keys().any(|reason| reason.contains("sdma1")), "{:?}", outcome.reasons);
}
