//! What a replay is told and what comes of it.

use super::contents::Mismatch;
use super::samples::Samples;
use crate::options::Policy;
use clap::ValueEnum;
use devpagemap::Stats;
use std::collections::BTreeMap;

/// Where a batch's buffers may be while it runs, unless the recording says it itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Placement {
    /// In video memory only; a batch that does not fit fails.
    Vram,
    /// In video memory or, when that is full, in system memory that the GPU reaches.
    VramOrGtt,
}

/// Whether buffers hold bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Data {
    /// Every byte is written, moved and checked.
    Full,
    /// Memory is given out and moved, but nobody looks at the bytes.
    None,
}

/// How to replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Video memory.
    pub vram_bytes: u64,
    /// As much of it as the CPU sees; more than there is means all.
    pub bar_bytes: u64,
    /// System memory that the GPU reaches.
    pub gtt_bytes: u64,
    /// Where batches may run.
    pub placement: Placement,
    /// Who must leave.
    pub policy: Policy,
    /// Whether there are bytes.
    pub data: Data,
    /// The trace was made so many times smaller (for reports).
    pub scale: u64,
    /// Seeds the bytes.
    pub seed: u64,
}

/// A batch that was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedBatch {
    /// Its number in the trace, from 0.
    pub index: u32,
    /// Its line, from 1.
    pub line: u64,
    /// Why.
    pub error: String,
}

/// Something other than a batch that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line of the trace, from 1; 0 when no line asked for it.
    pub line: u64,
    /// What happened, with the operands.
    pub what: String,
}

/// What was checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verify {
    /// Bytes compared.
    pub bytes_checked: u64,
    /// Buffers that held something else, once for each time it was noticed.
    pub mismatches: u64,
    /// The first of them.
    pub first: Vec<Mismatch>,
}

/// A batch as it ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Its number in the trace.
    pub index: u32,
    /// Its line.
    pub line: u64,
    /// Its context.
    pub context: u32,
    /// Its engine, as the trace names it.
    pub engine: String,
    /// How many buffers it used.
    pub buffers: usize,
    /// Their bytes.
    pub bytes: u64,
    /// When it was submitted, in nanoseconds since the replay began.
    pub submitted_ns: u64,
    /// When it began to run.
    pub start_ns: u64,
    /// When it ended.
    pub end_ns: u64,
}

/// What came of a replay.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it was replayed.
    pub config: Config,
    /// Batches that ran to their end.
    pub batches_done: u32,
    /// Batches that did not, in order.
    pub batches_failed: Vec<FailedBatch>,
    /// What else went wrong: the first of it.
    pub problems: Vec<Problem>,
    /// How much else went wrong.
    pub problem_count: u64,
    /// The device's own figures, after everything was freed.
    pub stats: Stats,
    /// VRAM that was still in use after everything was freed.
    pub vram_in_use_at_end_bytes: u64,
    /// Why fallbacks and refusals happened, and how often.
    pub reasons: BTreeMap<String, u64>,
    /// How long it took.
    pub wall_ns: u64,
    /// What was checked.
    pub verify: Verify,
    /// Memory over time.
    pub samples: Samples,
    /// The batches that ran, in submission order.
    pub slices: Vec<Slice>,
    /// Whether somebody stopped it.
    pub interrupted: bool,
}

impl Outcome {
    /// Whether the workload was done, every byte of it right and nothing left behind.
    pub fn succeeded(&self) -> bool {
        self.batches_failed.is_empty()
            && self.problem_count == 0
            && self.verify.mismatches == 0
            && self.vram_in_use_at_end_bytes == 0
            && !self.interrupted
    }

    /// How fast a copy engine moved and cleared bytes while it was busy.
    pub fn copy_bytes_per_s(&self) -> u64 {
        let bytes = u128::from(self.stats.moved_bytes) + u128::from(self.stats.cleared_bytes);
        (bytes * 1_000_000_000 / u128::from(self.stats.copy_busy_ns.max(1))) as u64
    }
}
