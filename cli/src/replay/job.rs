//! What a batch does on the software GPU: it checks every byte that it reads, and checks and rewrites what it writes.

use super::contents::{Checker, Expected};
use super::pattern::Pattern;
use devpagemap::{Buffer, ExtentList, Job, JobMemory};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// When a batch ran.
#[derive(Debug, Default)]
pub struct Times {
    /// Nanoseconds since the replay began.
    pub start_ns: AtomicU64,
    /// The same.
    pub end_ns: AtomicU64,
}

/// One buffer of a job: where it is, what it must hold, what it shall hold then.
pub struct Part {
    /// The buffer's name, for reports.
    pub name: Arc<str>,
    /// Where it is while the batch runs.
    pub extents: ExtentList,
    /// What it must hold.
    pub expected: Expected,
    /// What it shall hold; `None` if the batch only reads it.
    pub new: Option<Pattern>,
}

/// The same before the manager has given the buffer a place.
#[derive(Debug)]
pub struct Plan {
    /// The buffer.
    pub buffer: Buffer,
    /// Its name, for reports.
    pub name: Arc<str>,
    /// What it must hold.
    pub expected: Expected,
    /// What it shall hold; `None` if the batch only reads it.
    pub new: Option<Pattern>,
}

impl Plan {
    /// With the place that the buffer has in `job`.
    pub fn part(self, job: &Job<'_>) -> Part {
        Part { extents: job.extents(&self.buffer), name: self.name, expected: self.expected, new: self.new }
    }
}

/// What a batch does on the GPU.
pub struct Work {
    /// Its buffers; none if nobody looks at the bytes.
    pub parts: Vec<Part>,
    /// Its number; `None` for the check of a freed buffer.
    pub batch: Option<u32>,
    /// Counts what was checked.
    pub checker: Arc<Checker>,
    /// Where it says when it ran.
    pub times: Arc<Times>,
    /// When the replay began.
    pub begin: Instant,
}

impl Work {
    /// Does it, on the thread of a ring.
    pub fn run(&self, memory: &JobMemory) {
        self.times.start_ns.store(self.begin.elapsed().as_nanos() as u64, Ordering::Relaxed);
        for part in &self.parts {
            let mut pass = self.checker.pass(&part.expected);
            match part.new {
                None => memory.read(&part.extents, |offset, bytes| pass.check(offset, bytes)),
                Some(new) => {
                    memory.write(&part.extents, |offset, bytes| pass.check_and_fill(offset, bytes, new))
                }
            }
            pass.end(&part.name, self.batch);
        }
        self.times.end_ns.store(self.begin.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }
}
