//! The last resort: the processor copies, in whatever thread hands it a chunk.

use crate::engine::{Chunk, Completion, CopyEngine, EngineError, Reset};
use crate::memory::MemoryMap;
use crate::transfer;
use devpagemap_fence::Outside;
use devpagemap_fence::sync::Condvar;
use std::fmt;
use std::sync::Arc;

/// How many threads may copy at a time.
const DEPTH: usize = 8;

/// Copies in the calling thread. Made to be a queue's fallback.
pub struct CpuEngine {
    name: String,
    memory: Arc<dyn MemoryMap>,
    /// Chunks being copied.
    busy: Outside<usize>,
    /// Notified when that becomes none.
    quiet: Condvar,
}

impl CpuEngine {
    /// An engine over this memory.
    pub fn new(name: impl Into<String>, memory: Arc<dyn MemoryMap>) -> Arc<CpuEngine> {
        Arc::new(CpuEngine {
            name: name.into(),
            memory,
            busy: Outside::new("cpu engine", 0),
            quiet: Condvar::new(),
        })
    }

    fn perform(&self, chunk: &Chunk) -> Result<(), EngineError> {
        let runs = transfer::resolve(&*self.memory, chunk)?;
        *self.busy.lock() += 1;
        // SAFETY: resolved from our own map just now; `reset` waits until we are done.
        unsafe { transfer::perform(&runs, chunk.route().from.is_none()) };
        let mut busy = self.busy.lock();
        *busy -= 1;
        if *busy == 0 {
            self.quiet.notify_all();
        }
        Ok(())
    }
}

impl CopyEngine for CpuEngine {
    fn name(&self) -> &str {
        &self.name
    }

    fn depth(&self) -> usize {
        DEPTH
    }

    fn submit(&self, chunk: Chunk, done: Completion) -> Result<(), EngineError> {
        done.complete(self.perform(&chunk));
        Ok(())
    }

    /// Waits for the copies that are running; there is no other way to stop them.
    fn reset(&self) -> Reset {
        let mut busy = self.busy.lock();
        while *busy > 0 {
            busy = busy.wait(&self.quiet);
        }
        Reset::Recovered
    }
}

impl fmt::Debug for CpuEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuEngine({:?})", self.name)
    }
}
