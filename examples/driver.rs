//! A prototype driver: a GPU with its own memory, a DMA engine, and a command ring with a page table.
//!
//! ```text
//!   submit ──► command ring ── waits for fences ──► looks the buffer up in its page table ──► VRAM
//!   rebind ──►   (a thread)                                    ▲                               ▲
//!                    └── a new place, once its bytes are there ┘       DMA engine (a thread) ──┴── system memory
//! ```
//!
//! `cargo run -p devpagemap --example driver`

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

use devpagemap::migrate::{Chunk, Completion, CpuEngine, EngineError, HeapMemory, Reset};
use devpagemap::{
    Arrivals, CopyEngine, Device, DeviceMemory, Driver, ExtentList, Fence, FenceError, FenceSet, Job,
    MemoryLayout, MemoryMap, Moved, Result, Size, Timeline,
};

/// Copies chunks on a thread of its own. A real one would write descriptors here, and ring a doorbell.
struct Dma {
    chunks: Sender<(u64, Chunk, Completion)>,
    state: Arc<DmaState>,
}

struct DmaState {
    /// Moves the bytes: it sees all of VRAM and all of system memory.
    wires: Arc<CpuEngine>,
    /// Raised by each reset: chunks of an earlier epoch are not begun any more.
    epoch: AtomicU64,
    /// Held while bytes move, so that a reset can wait for that.
    busy: Mutex<()>,
}

impl Dma {
    fn start(memory: DeviceMemory) -> Arc<Dma> {
        let wires = CpuEngine::new("dma0 wires", Arc::new(memory));
        let state = Arc::new(DmaState { wires, epoch: AtomicU64::new(0), busy: Mutex::new(()) });
        let (chunks, queue) = channel::<(u64, Chunk, Completion)>();
        let engine = state.clone();
        thread::spawn(move || {
            for (epoch, chunk, done) in queue {
                // Without an answer the chunk has failed, and the move queue has it done by somebody else.
                if let Some(result) = engine.perform(epoch, chunk) {
                    done.complete(result);
                }
            }
        });
        Arc::new(Dma { chunks, state })
    }
}

impl DmaState {
    fn perform(&self, epoch: u64, chunk: Chunk) -> Option<Result<(), EngineError>> {
        let _busy = self.busy.lock().expect("nobody panics with it");
        if epoch != self.epoch.load(Ordering::SeqCst) {
            return None;
        }
        let (answer, answered) = channel();
        let done = Completion::new(move |result| answer.send(result).expect("the answer is waited for"));
        Some(self.wires.submit(chunk, done).and_then(|()| answered.recv().expect("the wires answer at once")))
    }
}

impl CopyEngine for Dma {
    fn name(&self) -> &str {
        "dma0"
    }

    fn submit(&self, chunk: Chunk, done: Completion) -> Result<(), EngineError> {
        let epoch = self.state.epoch.load(Ordering::SeqCst);
        self.chunks.send((epoch, chunk, done)).map_err(|_| EngineError::Dead)
    }

    fn reset(&self) -> Reset {
        self.state.epoch.fetch_add(1, Ordering::SeqCst);
        drop(self.state.busy.lock());
        Reset::Recovered
    }
}

/// What the ring can do.
enum Command {
    /// Points the page table at a buffer's new place.
    Map { buffer: u64, extents: ExtentList },
    /// Writes `value` to every byte of a buffer.
    Fill { buffer: u64, value: u8 },
}

/// A command, and the fences around it.
struct Queued {
    after: FenceSet,
    needs: Arrivals,
    fence: Fence,
    command: Command,
}

/// The GPU: one ring, one DMA engine, and whatever VRAM the device is built with.
struct ToyGpu {
    timeline: Arc<Timeline>,
    /// Locked over a point's number and its queueing, so that both have one order.
    ring: Mutex<Sender<Queued>>,
    /// Taken when the ring starts.
    queue: Mutex<Option<Receiver<Queued>>>,
    vram: OnceLock<Arc<HeapMemory>>,
}

impl ToyGpu {
    fn new() -> ToyGpu {
        let (ring, queue) = channel();
        let timeline = Arc::new(Timeline::new("ring0"));
        ToyGpu { timeline, ring: Mutex::new(ring), queue: Mutex::new(Some(queue)), vram: OnceLock::new() }
    }

    fn queue(&self, after: FenceSet, needs: Arrivals, command: Command) -> Fence {
        let ring = self.ring.lock().expect("nobody panics with it");
        let fence = self.timeline.next_point();
        ring.send(Queued { after, needs, fence: fence.clone(), command })
            .expect("the ring runs as long as the GPU");
        fence
    }

    fn fill(&self, job: &Job<'_>, buffer: u64, value: u8) -> Result<Fence> {
        Ok(self.queue(job.after().clone(), job.needs().clone(), Command::Fill { buffer, value }))
    }
}

/// The ring: in order, each command behind its fences, addresses through the page table.
fn run(queue: Receiver<Queued>, timeline: &Timeline, vram: &HeapMemory) {
    let mut page_table: HashMap<u64, ExtentList> = HashMap::new();
    for Queued { after, needs, fence, command } in queue {
        // Only the end counts: how somebody else's work ended is not this command's business.
        let _ordering_only = after.wait();
        if let Err(error) = needs.wait() {
            timeline.fail(fence.seqno(), FenceError::Dependency(Box::new(error)));
            continue;
        }
        match command {
            Command::Map { buffer, extents } => drop(page_table.insert(buffer, extents)),
            Command::Fill { buffer, value } => {
                for extent in page_table[&buffer].iter() {
                    vram.write(extent.addr, &vec![value; extent.len_bytes as usize]);
                }
            }
        }
        timeline.signal(fence.seqno());
    }
}

impl Driver for ToyGpu {
    fn map_vram(&self, layout: &MemoryLayout) -> Result<Option<Arc<dyn MemoryMap>>> {
        let vram = self.vram.get_or_init(|| HeapMemory::new(layout.vram_bytes as usize, 0)).clone();
        let queue =
            self.queue.lock().expect("nobody panics with it").take().expect("a GPU belongs to one device");
        let (timeline, memory) = (self.timeline.clone(), vram.clone());
        thread::spawn(move || run(queue, &timeline, &memory));
        Ok(Some(vram))
    }

    fn copy_engines(&self, memory: &DeviceMemory) -> Result<Vec<Arc<dyn CopyEngine>>> {
        let vram = self.vram.get().expect("VRAM is mapped before the engines start");
        // The CPU sees a part of VRAM, the engine all of it.
        Ok(vec![Dma::start(memory.with_vram(vram.clone(), u64::MAX))])
    }

    fn rebind(&self, moved: &Moved<'_>) -> Result<Option<Fence>> {
        let command = Command::Map { buffer: moved.buffer(), extents: moved.extents().clone() };
        Ok(Some(self.queue(moved.after().clone(), Arrivals::default(), command)))
    }
}

fn main() -> Result<()> {
    let device = Device::builder(ToyGpu::new()).vram(Size::mib(8)).visible(Size::mib(1)).build()?;
    let buffers = (0..5).map(|_| device.buffer(Size::mib(3)).create()).collect::<Result<Vec<_>>>()?;
    for (value, buffer) in (1..).zip(&buffers) {
        device.submit().writes(buffer).run(|gpu, job| gpu.fill(job, buffer.id(), value))?;
    }
    let mut bytes = vec![0; 3 << 20];
    for (value, buffer) in (1..).zip(&buffers) {
        buffer.read_at(0, &mut bytes)?;
        assert!(bytes.iter().all(|byte| *byte == value), "buffer {} lost bytes", buffer.id());
    }
    let stats = device.stats();
    println!("15 MiB in 8 MiB of VRAM: {} evictions, every byte is there", stats.evictions);
    println!("{} read through the 1 MiB BAR by copies", Size::bytes(stats.bounced_bytes));
    Ok(())
}
