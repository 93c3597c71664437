//! What the queue's tests share: memory with known bytes, and an engine worked by hand.

use devpagemap_fence::Fence;
use devpagemap_fence::Held;
use devpagemap_migrate::{
    Addr, Chunk, Completion, CopyEngine, EngineError, Extent, ExtentList, HeapMemory, MoveQueue, MoveRequest,
    Reset, Space,
};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex};

pub const PAGE: u64 = 4096;

/// An extent of whole pages.
pub fn pages(space: Space, first: u64, count: u64) -> Extent {
    Extent::new(Addr::new(space, first * PAGE), count * PAGE)
}

/// A list of one extent in VRAM.
pub fn vram(first: u64, count: u64) -> ExtentList {
    pages(Space::Vram, first, count).into()
}

/// A list of one extent in system memory.
pub fn system(first: u64, count: u64) -> ExtentList {
    pages(Space::System, first, count).into()
}

/// A copy of `count` pages from system memory to VRAM.
pub fn upload(label: u64, from: u64, to: u64, count: u64) -> MoveRequest {
    MoveRequest::copy(label, system(from, count), vram(to, count))
}

/// Memory whose every page is different from every other one.
pub fn memory(vram_pages: u64, system_pages: u64) -> Arc<HeapMemory> {
    let memory = HeapMemory::new((vram_pages * PAGE) as usize, (system_pages * PAGE) as usize);
    for (space, count) in [(Space::Vram, vram_pages), (Space::System, system_pages)] {
        for page in 0..count {
            memory.write(Addr::new(space, page * PAGE), &page_bytes(space, page));
        }
    }
    memory
}

/// What a page holds at first.
pub fn page_bytes(space: Space, page: u64) -> Vec<u8> {
    let seed = page * 2 + matches!(space, Space::Vram) as u64;
    (0..PAGE).map(|at| (seed.wrapping_mul(0x9e37_79b9).wrapping_add(at * 31) >> 3) as u8).collect()
}

/// Whether VRAM from page `to` on holds what system memory held from page `from` on.
pub fn uploaded(memory: &HeapMemory, from: u64, to: u64, count: u64) -> bool {
    (0..count).all(|page| {
        memory.read(Addr::new(Space::Vram, (to + page) * PAGE), PAGE as usize)
            == page_bytes(Space::System, from + page)
    })
}

pub fn submit(queue: &MoveQueue, request: MoveRequest) -> Fence {
    queue.submit(request, &mut Held::enter())
}

/// An engine that does what the test tells it, when it tells it.
pub struct HandEngine {
    name: String,
    depth: usize,
    /// The pages of system memory that it sees.
    window: Range<u64>,
    /// Whether it sees VRAM.
    sees_vram: bool,
    memory: Arc<HeapMemory>,
    chunks: Mutex<VecDeque<(Chunk, Completion)>>,
    /// What a reset says.
    outcome: Reset,
}

impl HandEngine {
    pub fn new(name: &str, depth: usize, memory: &Arc<HeapMemory>) -> Arc<HandEngine> {
        HandEngine::with_reset(name, depth, memory, Reset::Recovered)
    }

    pub fn with_reset(name: &str, depth: usize, memory: &Arc<HeapMemory>, outcome: Reset) -> Arc<HandEngine> {
        HandEngine::seeing(name, depth, memory, outcome, true, 0..u64::MAX / PAGE)
    }

    /// One that sees all of VRAM or nothing of it, and these pages of system memory.
    pub fn seeing(
        name: &str,
        depth: usize,
        memory: &Arc<HeapMemory>,
        outcome: Reset,
        sees_vram: bool,
        window: Range<u64>,
    ) -> Arc<HandEngine> {
        let (name, memory, chunks) = (name.to_owned(), memory.clone(), Mutex::default());
        Arc::new(HandEngine { name, depth, window, sees_vram, memory, chunks, outcome })
    }

    /// Where the chunks it holds come from and go to, in pages.
    pub fn ways(&self) -> Vec<(u64, u64)> {
        let page = |addr: Addr| addr.offset() / PAGE;
        let ends = |chunk: &Chunk| {
            let piece = &chunk.pieces()[0];
            (page(piece.src.expect("it copies")), page(piece.dst))
        };
        self.chunks.lock().unwrap().iter().map(|(chunk, _)| ends(chunk)).collect()
    }

    /// Where the chunks it holds go to, in pages.
    pub fn held(&self) -> Vec<u64> {
        self.chunks.lock().unwrap().iter().map(|(chunk, _)| chunk.pieces()[0].dst.offset() / PAGE).collect()
    }

    /// Takes chunk `index` without answering.
    pub fn take(&self, index: usize) -> (Chunk, Completion) {
        self.chunks.lock().unwrap().remove(index).expect("the engine holds that chunk")
    }

    /// Does the oldest chunk; where it went to, in pages.
    pub fn finish(&self) -> u64 {
        self.finish_at(0)
    }

    /// Does chunk `index`.
    pub fn finish_at(&self, index: usize) -> u64 {
        let (chunk, done) = self.take(index);
        self.perform(&chunk);
        done.complete(Ok(()));
        chunk.pieces()[0].dst.offset() / PAGE
    }

    /// Fails the oldest chunk.
    pub fn fail(&self) {
        self.take(0).1.complete(Err(EngineError::failed("parity error")));
    }

    pub fn perform(&self, chunk: &Chunk) {
        for piece in chunk.pieces() {
            let len = piece.len_bytes as usize;
            let bytes = piece.src.map_or_else(|| vec![0; len], |src| self.memory.read(src, len));
            self.memory.write(piece.dst, &bytes);
        }
    }
}

impl CopyEngine for HandEngine {
    fn name(&self) -> &str {
        &self.name
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn window(&self, space: Space) -> Range<u64> {
        match space {
            Space::Vram if self.sees_vram => 0..u64::MAX,
            Space::Vram => 0..0,
            Space::System => self.window.start * PAGE..self.window.end * PAGE,
        }
    }

    fn submit(&self, chunk: Chunk, done: Completion) -> Result<(), EngineError> {
        self.chunks.lock().unwrap().push_back((chunk, done));
        Ok(())
    }

    fn reset(&self) -> Reset {
        let chunks = std::mem::take(&mut *self.chunks.lock().unwrap());
        drop(chunks);
        self.outcome
    }
}
