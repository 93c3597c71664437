//! The recorded allocations of a Vulkan driver on a card whose BAR shows 256 MiB of 8176.

use crate::recordings::{assert_all_well, recording, replay, say_loudly};
use devpagemap_cli::replay::Outcome;
use devpagemap_cli::trace::{Heap, Step};

const RECORDING: &str = "radeon-memory-trace/rx5500xt.csv.gz";

#[test]
fn on_the_recorded_card_nothing_is_evicted_and_the_peak_is_the_recorded_one() {
    let Some(path) = recording(RECORDING) else { return };
    let (trace, outcome) = replay(&[path.to_str().unwrap(), "--vram", "8176MiB", "--bar", "256MiB"]);
    assert_all_well(&outcome);
    assert_eq!((trace.bos, trace.batches, trace.events), (481, 938, 23_167));
    assert_eq!(trace.peak_live_bytes, 4_031_328_256);
    assert_eq!(trace.recorded_totals.map(|totals| totals.peak_live_bytes), Some(4_031_328_256));
    assert_eq!(outcome.stats.live_bo_peak_bytes, 4_031_328_256);
    assert_eq!((outcome.stats.evictions, outcome.stats.moves), (0, 0));
    assert_eq!(outcome.stats.cpu_maps, 13);
    assert!(outcome.verify.bytes_checked > 2 * trace.peak_live_bytes);
}

#[test]
fn the_heaps_of_the_recorded_card_are_the_default() {
    let Some(path) = recording(RECORDING) else { return };
    let (trace, outcome) = replay(&[path.to_str().unwrap(), "--data", "none", "--scale", "1/16"]);
    assert_all_well(&outcome);
    assert_eq!(outcome.config.vram_bytes, 8176 * 65_536);
    assert_eq!(outcome.config.bar_bytes, 256 * 65_536);
    assert!(trace.peak_live_bytes < 4_031_328_256 / 16 + 481 * 4096);
}

#[test]
fn half_of_its_peak_is_enough_when_the_rest_is_evicted() {
    let Some(path) = recording(RECORDING) else { return };
    let (_, outcome) = replay(&[path.to_str().unwrap(), "--vram", "2GiB", "--bar", "256MiB"]);
    assert_all_well(&outcome);
    assert!(outcome.stats.evictions > 0);
    assert_eq!(outcome.stats.vram_peak_bytes, 2 << 30);
}

#[test]
fn every_cpu_map_is_in_visible_vram_or_says_why_not() {
    let Some(path) = recording(RECORDING) else { return };
    let (trace, outcome) = replay(&[path.to_str().unwrap(), "--data", "none", "--scale", "1/8"]);
    let mut prefers_system = Vec::new();
    let mut maps_of_system = 0;
    for step in &trace.steps {
        match step {
            Step::Create(bo) => prefers_system.push(bo.heaps[0] == Heap::System),
            Step::CpuMap { bo, .. } => maps_of_system += u64::from(prefers_system[bo.index()]),
            _ => {}
        }
    }
    let reason = "cpu map: kept in system memory, its first preferred heap";
    assert_eq!(outcome.reasons.get(reason), Some(&maps_of_system));
    assert!(maps_of_system > 0 && maps_of_system < outcome.stats.cpu_maps);
    assert_eq!(outcome.stats.bar_fallbacks, 0);
}

#[test]
fn with_a_bar_of_one_page_maps_fall_back_to_system_memory_and_say_so() {
    let Some(path) = recording(RECORDING) else { return };
    let arguments = ["--bar", "4KiB", "--scale", "1/16", "--placement", "vram-or-gtt"];
    let (_, outcome) = replay(&[&[path.to_str().unwrap()], &arguments[..]].concat());
    assert_all_well(&outcome);
    let maps = outcome.reasons.iter().filter(|(reason, _)| reason.starts_with("cpu map"));
    let later_heap = |reason: &&String| reason.contains("a later preferred heap");
    assert!(outcome.reasons.keys().any(|reason| later_heap(&reason)), "{:?}", outcome.reasons);
    assert!(maps.map(|(_, times)| times).sum::<u64>() > 7, "{:?}", outcome.reasons);
}

#[test]
fn without_a_bar_only_a_buffer_that_must_be_visible_is_refused() {
    let Some(path) = recording(RECORDING) else { return };
    let (_, outcome) = replay(&[path.to_str().unwrap(), "--bar", "0", "--scale", "1/16"]);
    assert_eq!(outcome.verify.mismatches, 0);
    assert_eq!(outcome.batches_failed.len(), 1, "{:?}", outcome.batches_failed);
    assert!(outcome.batches_failed[0].error.contains("the limit is 0"));
    assert!(outcome.problem_count > 0, "its creation was refused too");
}

/// The sizes of BAR that cards of this kind have.
const BARS_MIB: [u64; 4] = [32, 64, 128, 256];

/// With a quarter of the recorded peak, everything that is not in use is evicted.
fn pressed(path: &std::path::Path, bar_mib: u64, scale: u64, more: &[&str]) -> Outcome {
    let (vram, bar) = (format!("{}MiB", 1024 / scale), format!("{}KiB", bar_mib * 1024 / scale));
    let scale = format!("1/{scale}");
    let arguments = [path.to_str().unwrap(), "--vram", &vram, "--bar", &bar, "--scale", &scale];
    let (_, outcome) = replay(&[&arguments[..], more].concat());
    outcome
}

/// Every map is where the CPU sees it in VRAM, or there is a reason for it.
fn assert_every_fallback_has_its_reason(outcome: &Outcome) {
    let of = |what: &str| {
        let counted = outcome.reasons.iter().filter(|(reason, _)| reason.contains(what));
        counted.map(|(_, times)| times).sum::<u64>()
    };
    assert_eq!(of("; served from system memory"), outcome.stats.bar_fallbacks, "{:?}", outcome.reasons);
    assert_eq!(of("visibility: ") > 0, outcome.stats.visibility_moved_bytes > 0, "{:?}", outcome.reasons);
}

fn assert_moves_less_than_migrating_on_access(path: &std::path::Path, bars_mib: &[u64], scale: u64) {
    for bar_mib in bars_mib.iter().copied() {
        let ours = pressed(path, bar_mib, scale, &[]);
        let theirs = pressed(path, bar_mib, scale, &["--policy", "migrate-on-access"]);
        for outcome in [&ours, &theirs] {
            assert_all_well(outcome);
            assert!(outcome.stats.evictions > 0);
            assert_eq!(outcome.stats.cpu_maps, 13);
            assert_every_fallback_has_its_reason(outcome);
        }
        let [ours, theirs] = [ours, theirs].map(|outcome| outcome.stats.visibility_moved_bytes);
        assert!(
            ours < theirs,
            "a BAR of {bar_mib} MiB: {ours} bytes moved for visibility, {theirs} by the other"
        );
    }
}

#[test]
fn with_every_size_of_bar_fewer_bytes_are_moved_for_visibility_than_by_migrating_on_access() {
    let Some(path) = recording(RECORDING) else { return };
    assert_moves_less_than_migrating_on_access(&path, &BARS_MIB, 16);
}

#[test]
fn the_same_at_its_real_size_with_the_smallest_and_the_largest_bar() {
    let Some(path) = recording(RECORDING) else { return };
    if std::env::var_os("DEVPAGEMAP_LONG").is_none_or(|value| value != "1") {
        say_loudly("skipped: two BARs and two policies at full size (set DEVPAGEMAP_LONG=1)");
        return;
    }
    let [smallest, .., largest] = BARS_MIB;
    assert_moves_less_than_migrating_on_access(&path, &[smallest, largest], 1);
}
