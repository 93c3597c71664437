//! Where the recordings are, and replays of them in this process.

use clap::Parser;
use devpagemap_cli::options::ReplayOptions;
use devpagemap_cli::replay::{Moment, Outcome, Replay};
use devpagemap_cli::trace::{self, Trace};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Says something past the test harness, which would swallow it.
pub fn say_loudly(what: &str) {
    let line = format!("\n*** {what} ***\n");
    std::io::stderr().write_all(line.as_bytes()).expect("standard error is open");
}

/// The path of a recording, or `None` when this machine does not have it; then it says so.
pub fn recording(name: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/traces");
    let path = std::env::var_os("DEVPAGEMAP_TRACES").map_or(beside, PathBuf::from).join(name);
    if path.exists() {
        return Some(path);
    }
    say_loudly(&format!("skipped: no recording {} (set DEVPAGEMAP_TRACES)", path.display()));
    None
}

/// Replays as `devpagemap replay <arguments>` would.
pub fn replay(arguments: &[&str]) -> (Trace, Outcome) {
    replay_watched(arguments, |_, _| {})
}

/// The same, calling `watch` before every step.
pub fn replay_watched(arguments: &[&str], watch: impl FnMut(&Replay, Moment)) -> (Trace, Outcome) {
    let options = ReplayOptions::parse_from([&["replay"], arguments].concat());
    let trace = trace::load(&options.source, options.format, options.seed).expect("a good workload");
    let trace = trace.scaled(options.scale).expect("a scale that leaves something");
    let replay = Replay::new(options.config(&trace)).expect("a device of this size");
    let outcome = replay.run(&trace, watch);
    (trace, outcome)
}

/// Fails the test unless everything was done, every byte was right and nothing was left behind.
pub fn assert_all_well(outcome: &Outcome) {
    assert_eq!(outcome.batches_failed, []);
    assert_eq!(outcome.problems, []);
    assert_eq!(outcome.verify.mismatches, 0, "{:?}", outcome.verify.first);
    assert_eq!(outcome.vram_in_use_at_end_bytes, 0);
    assert_eq!(outcome.stats.cpu_waits_in_validate, 0);
    assert_eq!(outcome.stats.allocs, outcome.stats.frees);
    assert!(outcome.succeeded());
}
