//! The recorded frames of a car chase: 249 buffers and 437 MiB that batches use, 332 MiB of them in one batch.

use crate::recordings::{assert_all_well, recording, replay, say_loudly};
use devpagemap_cli::replay::{Data, Outcome};
use devpagemap_cli::trace::{self, Format, Step, Trace};
use std::path::PathBuf;

const MIB: u64 = 1 << 20;

fn car_chase() -> Option<PathBuf> {
    recording("igt-wsim/carchasepart.wsim")
}

fn with_vram(path: &std::path::Path, mib: u64, more: &[&str]) -> Outcome {
    let size = format!("{mib}MiB");
    let arguments = [&[path.to_str().unwrap(), "--vram", &size], more].concat();
    let (trace, outcome) = replay(&arguments);
    assert_eq!((trace.bos, trace.batches, trace.largest_batch_bytes), (842, 101, 348_028_928));
    outcome
}

fn assert_decided_well(outcome: &Outcome, mib: u64) {
    assert_all_well(outcome);
    assert_eq!(outcome.batches_done, 101, "with {mib} MiB");
    let evictions = outcome.stats.evictions;
    assert_eq!(evictions > 0, mib < 437, "{evictions} evictions with {mib} MiB");
    assert!(outcome.stats.vram_peak_bytes <= mib * MIB);
}

fn assert_done_with(path: &std::path::Path, mib: u64) {
    let outcome = with_vram(path, mib, &[]);
    assert_decided_well(&outcome, mib);
    assert!(
        outcome.verify.bytes_checked > 7 << 30,
        "only {} bytes were checked",
        outcome.verify.bytes_checked
    );
}

#[test]
fn it_runs_with_just_enough_vram_for_its_largest_batch() {
    let Some(path) = car_chase() else { return };
    for mib in [332, 333] {
        assert_done_with(&path, mib);
    }
}

#[test]
fn it_runs_with_some_vram_to_spare() {
    let Some(path) = car_chase() else { return };
    for mib in [384, 420, 436] {
        assert_done_with(&path, mib);
    }
}

#[test]
fn it_evicts_nothing_once_all_that_it_uses_fits() {
    let Some(path) = car_chase() else { return };
    assert_done_with(&path, 437);
}

/// What decides is how many batches in a row fit at the same time. So these are both sides of the thresholds at which the largest 2, 3, 4,
/// 6, 8 and 25 neighbouring batches begin to fit together (346.2, 355.6, 404.1, 419.8, 431.4 and 435.4 MiB), and some between, where each
/// MiB more means a little less to evict: odd and even ones, because most of what is large is 2 MiB. What other tests replay with bytes is
/// not replayed here again.
const AMOUNTS_MIB: [u64; 18] =
    [334, 341, 346, 347, 355, 356, 364, 375, 394, 404, 405, 412, 419, 425, 431, 432, 434, 435];
/// Those of them that a long run replays with bytes: where any 2, 3, 4 and 8 batches in a row just fit.
const AMOUNTS_WITH_BYTES_MIB: [u64; 4] = [347, 356, 405, 432];

#[test]
fn it_runs_with_the_amounts_of_vram_between() {
    let Some(path) = car_chase() else { return };
    for mib in AMOUNTS_MIB {
        assert_decided_well(&with_vram(&path, mib, &["--data", "none"]), mib);
    }
    if std::env::var_os("DEVPAGEMAP_LONG").is_none_or(|value| value != "1") {
        say_loudly("skipped: every byte with 347, 356, 405 and 432 MiB of VRAM (set DEVPAGEMAP_LONG=1)");
        return;
    }
    for mib in AMOUNTS_WITH_BYTES_MIB {
        assert_done_with(&path, mib);
    }
}

#[test]
fn with_too_little_vram_exactly_the_batches_that_cannot_fit_fail_and_the_others_stay_right() {
    let Some(path) = car_chase() else { return };
    let outcome = with_vram(&path, 320, &[]);
    assert!(!outcome.succeeded());
    let failed: Vec<u32> = outcome.batches_failed.iter().map(|failed| failed.index).collect();
    let trace = trace::load(path.to_str().unwrap(), Format::Auto, 1).expect("a good workload");
    assert_eq!(failed, batches_larger_than(&trace, 320 * MIB));
    assert!(!failed.is_empty());
    for failed in &outcome.batches_failed {
        assert!(failed.error.contains("VRAM exhausted: wanted"), "{}", failed.error);
        assert!(failed.line > 0);
    }
    assert_eq!(outcome.batches_done as usize, 101 - failed.len());
    assert_eq!((outcome.verify.mismatches, outcome.vram_in_use_at_end_bytes), (0, 0));
    assert_eq!(outcome.problems, []);
}

fn batches_larger_than(trace: &Trace, limit_bytes: u64) -> Vec<u32> {
    let mut sizes = Vec::new();
    let mut larger = Vec::new();
    for step in &trace.steps {
        match step {
            Step::Create(bo) => sizes.push(bo.size_bytes),
            Step::Batch(batch) => {
                let bytes: u64 = batch.uses.iter().map(|one| sizes[one.bo.index()]).sum();
                larger.extend((bytes > limit_bytes).then_some(batch.index));
            }
            _ => {}
        }
    }
    larger
}

#[test]
fn with_gtt_allowed_even_too_little_vram_is_enough() {
    let Some(path) = car_chase() else { return };
    let outcome = with_vram(&path, 200, &["--placement", "vram-or-gtt"]);
    assert_all_well(&outcome);
    assert_eq!(outcome.batches_done, 101);
    assert!(outcome.samples.iter().any(|sample| sample.gtt_bytes > 0));
}

/// The counters that a decision of the manager shows in.
fn decisions(outcome: &Outcome) -> [u64; 7] {
    let stats = &outcome.stats;
    [
        stats.evictions,
        stats.evicted_bytes,
        stats.restores,
        stats.restored_bytes,
        stats.moves,
        stats.moved_bytes,
        stats.vram_peak_bytes,
    ]
}

#[test]
fn the_same_replay_decides_the_same_every_time_with_and_without_bytes() {
    let Some(path) = car_chase() else { return };
    let first = with_vram(&path, 350, &["--seed", "7"]);
    assert_decided_well(&first, 350);
    let again = with_vram(&path, 350, &["--seed", "7"]);
    let without_bytes = with_vram(&path, 350, &["--seed", "7", "--data", "none"]);
    assert_eq!(decisions(&first), decisions(&again));
    assert_eq!(decisions(&first), decisions(&without_bytes));
    assert_eq!(without_bytes.config.data, Data::None);
    assert_eq!(without_bytes.verify.bytes_checked, 0);
}

#[test]
fn strict_lru_does_it_too() {
    let Some(path) = car_chase() else { return };
    let outcome = with_vram(&path, 360, &["--policy", "lru"]);
    assert_all_well(&outcome);
    assert!(outcome.stats.evictions > 0);
}

#[test]
fn every_workload_of_the_set_is_read_and_replayed() {
    let Some(path) = car_chase() else { return };
    let folder = std::fs::read_dir(path.parent().unwrap()).unwrap();
    let files = folder.map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|file| file.extension().is_some_and(|ext| ext == "wsim")).collect();
    assert_eq!(files.len(), 18);
    for file in files {
        let (trace, outcome) = replay(&[file.to_str().unwrap(), "--data", "none"]);
        assert!(trace.batches > 0, "{}", file.display());
        assert_all_well(&outcome);
    }
}
