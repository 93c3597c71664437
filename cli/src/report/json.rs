//! The result as one JSON object: sizes in bytes, times in nanoseconds. Scripts rely on the names and their order.

use crate::replay::Outcome;
use crate::trace::Trace;
use serde::Serialize;
use std::collections::BTreeMap;

/// The whole object.
#[derive(Serialize)]
pub struct Report<'a> {
    /// The workload.
    pub trace: TraceReport<'a>,
    /// How it was replayed.
    pub config: ConfigReport,
    /// What came of it.
    pub result: ResultReport<'a>,
}

/// The workload.
#[derive(Serialize)]
pub struct TraceReport<'a> {
    name: &'a str,
    format: &'a str,
    events: u64,
    bos: u32,
    batches: u32,
    peak_live_bytes: u64,
    largest_batch_bytes: u64,
}

/// How it was replayed.
#[derive(Serialize)]
pub struct ConfigReport {
    vram_bytes: u64,
    bar_bytes: u64,
    gtt_bytes: u64,
    placement: String,
    policy: String,
    data: String,
    scale: String,
    seed: u64,
}

/// A batch that was not done.
#[derive(Serialize)]
pub struct FailedReport<'a> {
    index: u32,
    error: &'a str,
}

/// What came of it.
#[derive(Serialize)]
pub struct ResultReport<'a> {
    batches_done: u32,
    batches_failed: Vec<FailedReport<'a>>,
    allocs: u64,
    frees: u64,
    evictions: u64,
    evicted_bytes: u64,
    restores: u64,
    restored_bytes: u64,
    relocations: u64,
    relocated_bytes: u64,
    moves: u64,
    moved_bytes: u64,
    visibility_moved_bytes: u64,
    bounced_bytes: u64,
    bar_fallbacks: u64,
    cpu_maps: u64,
    peer_maps: u64,
    demotions: u64,
    cleared_bytes: u64,
    vram_peak_bytes: u64,
    vram_in_use_at_end_bytes: u64,
    fence_waits: u64,
    cpu_waits_in_validate: u64,
    cpu_wait_ns: u64,
    wall_ns: u64,
    copy_bytes_per_s: u64,
    reasons: &'a BTreeMap<String, u64>,
    verify: VerifyReport,
}

/// What was checked.
#[derive(Serialize)]
pub struct VerifyReport {
    bytes_checked: u64,
    mismatches: u64,
}

impl<'a> Report<'a> {
    /// Gathers what the object holds.
    pub fn new(trace: &'a Trace, outcome: &'a Outcome) -> Report<'a> {
        let (config, stats) = (&outcome.config, &outcome.stats);
        Report {
            trace: TraceReport {
                name: &trace.name,
                format: trace.format,
                events: trace.events,
                bos: trace.bos,
                batches: trace.batches,
                peak_live_bytes: trace.peak_live_bytes,
                largest_batch_bytes: trace.largest_batch_bytes,
            },
            config: ConfigReport {
                vram_bytes: config.vram_bytes,
                bar_bytes: config.bar_bytes,
                gtt_bytes: config.gtt_bytes,
                placement: value_name(&config.placement),
                policy: value_name(&config.policy),
                data: value_name(&config.data),
                scale: format!("1/{}", config.scale),
                seed: config.seed,
            },
            result: ResultReport {
                batches_done: outcome.batches_done,
                batches_failed: outcome
                    .batches_failed
                    .iter()
                    .map(|failed| FailedReport { index: failed.index, error: &failed.error })
                    .collect(),
                allocs: stats.allocs,
                frees: stats.frees,
                evictions: stats.evictions,
                evicted_bytes: stats.evicted_bytes,
                restores: stats.restores,
                restored_bytes: stats.restored_bytes,
                relocations: stats.relocations,
                relocated_bytes: stats.relocated_bytes,
                moves: stats.moves,
                moved_bytes: stats.moved_bytes,
                visibility_moved_bytes: stats.visibility_moved_bytes,
                bounced_bytes: stats.bounced_bytes,
                bar_fallbacks: stats.bar_fallbacks,
                cpu_maps: stats.cpu_maps,
                peer_maps: stats.peer_maps,
                demotions: stats.demotions,
                cleared_bytes: stats.cleared_bytes,
                vram_peak_bytes: stats.vram_peak_bytes,
                vram_in_use_at_end_bytes: outcome.vram_in_use_at_end_bytes,
                fence_waits: stats.fence_waits,
                cpu_waits_in_validate: stats.cpu_waits_in_validate,
                cpu_wait_ns: stats.cpu_wait_ns,
                wall_ns: outcome.wall_ns,
                copy_bytes_per_s: outcome.copy_bytes_per_s(),
                reasons: &outcome.reasons,
                verify: VerifyReport {
                    bytes_checked: outcome.verify.bytes_checked,
                    mismatches: outcome.verify.mismatches,
                },
            },
        }
    }

    /// The object as text, with a line end.
    pub fn to_text(&self) -> String {
        let mut text =
            serde_json::to_string_pretty(self).expect("a report holds only strings, numbers and lists");
        text.push('\n');
        text
    }
}

/// The name of a choice as the command line spells it.
pub fn value_name(value: &impl clap::ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
}
