//! The model that all formats share: a list of steps, in submission order, over numbered buffers.
//!
//! ```text
//!   Create(bo)   gives a buffer its size and its heaps        Batch    uses buffers, runs on one engine
//!   Destroy(bo)  checks and frees it                          Wait     the client waits for a batch
//!   CpuMap / CpuUnmap                                         Hold / Release   a fence the client signals itself
//!   Delay / Period / At      move the recording's clock; nothing sleeps
//! ```
//!
//! A [`TraceBuilder`] makes a [`Trace`] from them.

use super::builder::TraceBuilder;
use std::collections::{BTreeMap, HashMap};

/// The largest buffer that is accepted: 128 TiB, the reach of a 47-bit address.
pub const MAX_BO_BYTES: u64 = 1 << 47;
/// The most buffers that a trace may create.
pub const MAX_BOS: usize = 4_000_000;
/// The unit in which memory is given out.
pub const PAGE_BYTES: u64 = 4096;

/// The number of a buffer in its trace: 0 is the first that is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BoId(pub u32);

impl BoId {
    /// As an index into a table of all buffers of the trace.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A heap that a buffer of the trace would like to live in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Heap {
    /// Video memory, wherever.
    Vram,
    /// The part of video memory that the CPU sees through its BAR.
    VramVisible,
    /// System memory that the GPU can reach.
    System,
}

/// Who gives a buffer its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstBytes {
    /// The CPU uploads them when the buffer is created.
    Uploaded,
    /// The first submission that writes the buffer does; until then it must read as zeros.
    Submitted,
}

/// A buffer as the trace creates it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bo {
    /// Its number.
    pub id: BoId,
    /// A name for reports: `w3-41`, `0x300180000`.
    pub name: String,
    /// Its size in bytes; not 0, at most [`MAX_BO_BYTES`].
    pub size_bytes: u64,
    /// The heaps that the recording asked for, best first, no duplicates. Empty: the replay's `--placement` decides.
    pub heaps: Vec<Heap>,
    /// Whether the recording gave it its place when it was created rather than at its first use.
    pub placed_at_creation: bool,
    /// Who writes it first.
    pub first_bytes: FirstBytes,
    /// The line that created it, counted from 1.
    pub line: u64,
}

/// How a batch touches a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// The batch only reads it.
    Read,
    /// The batch writes it (and may read it first).
    Write,
}

/// One buffer of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// The buffer.
    pub bo: BoId,
    /// What is done with it.
    pub access: Access,
}

/// What a batch must come after, besides the batches before it on its own context and engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// An earlier batch, by its index.
    Batch(u32),
    /// A fence that the client makes with [`Step::Hold`] and signals with [`Step::Release`].
    Hold(u32),
}

/// One submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its number among the batches of the trace, from 0.
    pub index: u32,
    /// The client's context.
    pub context: u32,
    /// The engine as the trace names it (`RCS`, `VCS1`).
    pub engine: String,
    /// Its buffers, each once.
    pub uses: Vec<Use>,
    /// What it must come after.
    pub after: Vec<After>,
    /// How long it ran in the recording, in microseconds; `None`: until it was terminated.
    pub duration_us: Option<u64>,
    /// The line, counted from 1.
    pub line: u64,
}

/// One step of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A buffer comes to life.
    Create(Bo),
    /// A buffer's last owner lets go of it.
    Destroy {
        /// The buffer.
        bo: BoId,
        /// The line, counted from 1.
        line: u64,
    },
    /// A submission.
    Batch(Batch),
    /// The CPU maps a buffer. Maps of one buffer nest.
    CpuMap {
        /// The buffer.
        bo: BoId,
        /// The line, counted from 1.
        line: u64,
    },
    /// The CPU gives one map of a buffer back.
    CpuUnmap {
        /// The buffer.
        bo: BoId,
        /// The line, counted from 1.
        line: u64,
    },
    /// The client waits for a batch.
    Wait {
        /// The batch.
        batch: u32,
    },
    /// The client makes a fence that it will signal itself.
    Hold {
        /// The fence, from 0.
        hold: u32,
    },
    /// The client signals that fence.
    Release {
        /// The fence.
        hold: u32,
    },
    /// The client does nothing for so long.
    Delay {
        /// Microseconds.
        us: u64,
    },
    /// The client waits until so long after the start.
    Period {
        /// Microseconds.
        us: u64,
    },
    /// The recording's clock stood here.
    At {
        /// Microseconds since the recording began.
        us: u64,
    },
    /// The client ends a batch that would otherwise run for ever.
    Terminate {
        /// The batch.
        batch: u32,
    },
    /// Something that does not matter to memory (priorities, engine maps, page tables of the recorded driver).
    Other,
}

/// The heaps of the GPU that a recording was made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordedHeaps {
    /// All of its video memory, in bytes.
    pub vram_bytes: u64,
    /// The part that the CPU sees, in bytes.
    pub visible_bytes: u64,
}

/// Totals that a recording carries itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordedTotals {
    /// The most bytes that were alive at one time.
    pub peak_live_bytes: u64,
}

/// A workload, ready to be replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Its name: the file's, or `builtin:frames`.
    pub name: String,
    /// The format it was read from: `wsim`, `rmv`, `frames`.
    pub format: &'static str,
    /// The steps in submission order.
    pub steps: Vec<Step>,
    /// How many events the source holds, also those that do not matter to memory.
    pub events: u64,
    /// How many buffers it creates.
    pub bos: u32,
    /// How many batches it submits.
    pub batches: u32,
    /// The most bytes alive at one time, sizes as the trace gives them.
    pub peak_live_bytes: u64,
    /// The bytes of the batch that uses the most.
    pub largest_batch_bytes: u64,
    /// Buffers that some batch uses.
    pub referenced_bos: u32,
    /// Their bytes.
    pub referenced_bytes: u64,
    /// How long the recording runs on its own clock, in microseconds.
    pub span_us: u64,
    /// Events that cannot be replayed, by reason.
    pub strays: BTreeMap<String, u64>,
    /// The heaps it was recorded on, if it says so.
    pub recorded_heaps: Option<RecordedHeaps>,
    /// The totals that it carries itself, if any.
    pub recorded_totals: Option<RecordedTotals>,
}

/// Rounds up to whole pages; `size_bytes` is at most [`MAX_BO_BYTES`].
pub fn page_rounded(size_bytes: u64) -> u64 {
    size_bytes.next_multiple_of(PAGE_BYTES)
}

impl Trace {
    /// The same workload with every buffer `divisor` times smaller (rounded up to whole pages). Heaps of the recording
    /// shrink alike, and totals that the recording carries no longer apply.
    pub fn scaled(self, divisor: u64) -> Result<Trace, String> {
        if divisor <= 1 {
            return Ok(self);
        }
        let mut builder = TraceBuilder::new(self.name, self.format);
        for step in self.steps {
            let step = match step {
                Step::Create(mut bo) => {
                    bo.size_bytes = page_rounded(bo.size_bytes.div_ceil(divisor));
                    Step::Create(bo)
                }
                other => other,
            };
            builder.push(step)?;
        }
        builder.recorded_heaps = self.recorded_heaps.map(|heaps| RecordedHeaps {
            vram_bytes: page_rounded(heaps.vram_bytes.div_ceil(divisor)),
            visible_bytes: page_rounded(heaps.visible_bytes.div_ceil(divisor)),
        });
        builder.events = self.events;
        Ok(Trace { strays: self.strays, ..builder.finish()? })
    }
}

/// Brings a batch's buffer list into shape: each buffer once, a write counting for more than a read, first use first.
pub fn merged_uses(uses: impl IntoIterator<Item = Use>) -> Vec<Use> {
    let mut merged: Vec<Use> = Vec::new();
    let mut position: HashMap<BoId, usize> = HashMap::new();
    for one in uses {
        match position.get(&one.bo) {
            Some(&at) => merged[at].access = merged[at].access.max(one.access),
            None => {
                position.insert(one.bo, merged.len());
                merged.push(one);
            }
        }
    }
    merged
}
