//! What the queue counts.

use crate::piece::Operation;
use devpagemap_fence::Outside;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Distinct reasons kept; further ones are counted together, so that an engine with ever new excuses cannot fill
/// the memory.
const REASONS_MAX: usize = 64;
const OTHER_REASONS: &str = "other reasons";

/// What one engine did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// The engine's name.
    pub name: String,
    /// Bytes it copied and cleared.
    pub bytes: u64,
    /// Chunks it did.
    pub chunks: u64,
    /// Chunks it failed.
    pub failures: u64,
    /// Times it hung and was reset.
    pub hangs: u64,
    /// Why it gets no chunks any more, if so.
    pub quarantined: Option<String>,
}

/// Totals since the queue was built.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MoveStats {
    /// Moves that ended, with or without an error.
    pub moves: u64,
    /// Moves that ended with an error.
    pub failed_moves: u64,
    /// Bytes copied by moves that ended well.
    pub moved_bytes: u64,
    /// Bytes cleared by moves that ended well.
    pub cleared_bytes: u64,
    /// Chunks done.
    pub chunks: u64,
    /// Bytes that the fallback had to do.
    pub fallback_bytes: u64,
    /// Bytes that went through the staging ring.
    pub staged_bytes: u64,
    /// Memory of the staging ring, in bytes; 0 until the first move needs it.
    pub staging_ring_bytes: u64,
    /// How much of a move goes into a slot of the ring at a time, as measured so far, in bytes.
    pub fragment_bytes: u64,
    /// Chunks that an engine, or the fallback, failed.
    pub engine_failures: u64,
    /// Engines that hung and were reset.
    pub engine_hangs: u64,
    /// Answers for chunks that had been taken away from their engine; they are ignored.
    pub late_completions: u64,
    /// Time during which at least one chunk was in flight, in ns.
    pub busy_ns: u64,
    /// Why chunks were redone or not done by a copy engine, and how often.
    pub reasons: BTreeMap<String, u64>,
    /// Each engine in the order of joining, the fallback last.
    pub engines: Vec<EngineStats>,
}

/// The totals behind their own lock, so that they can be read whatever the reader holds.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// Taken for a few additions, mostly under the queue's lock; nothing is taken under it.
    stats: Outside<MoveStats>,
}

impl Ledger {
    pub(crate) fn new<'a>(engines: impl Iterator<Item = &'a Arc<str>>) -> Ledger {
        let engines =
            engines.map(|name| EngineStats { name: name.to_string(), ..EngineStats::default() }).collect();
        Ledger { stats: Outside::new("move ledger", MoveStats { engines, ..MoveStats::default() }) }
    }

    pub(crate) fn read(&self) -> MoveStats {
        self.stats.lock().clone()
    }

    pub(crate) fn late_completion(&self) {
        self.stats.lock().late_completions += 1;
    }

    pub(crate) fn chunk_done(&self, engine: usize, is_fallback: bool, len_bytes: u64) {
        let mut stats = self.stats.lock();
        stats.chunks += 1;
        stats.engines[engine].chunks += 1;
        stats.engines[engine].bytes += len_bytes;
        if is_fallback {
            stats.fallback_bytes += len_bytes;
        }
    }

    pub(crate) fn ring_is_there(&self, len_bytes: u64) {
        self.stats.lock().staging_ring_bytes = len_bytes;
    }

    pub(crate) fn staged(&self, len_bytes: u64, fragment_bytes: u64) {
        let mut stats = self.stats.lock();
        stats.staged_bytes += len_bytes;
        stats.fragment_bytes = fragment_bytes;
    }

    pub(crate) fn engine_failed(&self, engine: usize) {
        let mut stats = self.stats.lock();
        stats.engine_failures += 1;
        stats.engines[engine].failures += 1;
    }

    pub(crate) fn engine_hung(&self, engine: usize) {
        let mut stats = self.stats.lock();
        stats.engine_hangs += 1;
        stats.engines[engine].hangs += 1;
    }

    pub(crate) fn quarantined(&self, engine: usize, why: &str) {
        self.stats.lock().engines[engine].quarantined = Some(why.to_owned());
    }

    pub(crate) fn busy(&self, ns: u64) {
        self.stats.lock().busy_ns += ns;
    }

    pub(crate) fn move_ended(&self, operation: &Operation, ok: bool) {
        let mut stats = self.stats.lock();
        stats.moves += 1;
        match operation {
            _ if !ok => stats.failed_moves += 1,
            Operation::Copy { dst, .. } | Operation::Pull { dst, .. } => stats.moved_bytes += dst.len_bytes(),
            Operation::Clear { dst } => stats.cleared_bytes += dst.len_bytes(),
        }
    }

    pub(crate) fn reason(&self, reason: &str) {
        let reasons = &mut self.stats.lock().reasons;
        if let Some(count) = reasons.get_mut(reason) {
            *count += 1;
        } else {
            let key = if reasons.len() < REASONS_MAX { reason } else { OTHER_REASONS };
            *reasons.entry(key.to_owned()).or_default() += 1;
        }
    }
}
