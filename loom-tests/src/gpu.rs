//! A GPU for models: real bytes, no thread of its own. What it does, when, and in which thread is the model's to say.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};

use devpagemap::migrate::{Chunk, Completion, CpuEngine, EngineError, HeapMemory, Reset, Space};
use devpagemap::{
    Addr, Bar, BarAddr, BarMemory, Buffer, CopyEngine, Device, DeviceMemory, Driver, Fence, MemoryLayout,
    MemoryMap, P2pLimits, Place, Size, Timeline, WindowChange,
};
use devpagemap_fence::sync::{Condvar, Mutex};

/// The granularity of everything here.
pub const PAGE: u64 = 4096;

/// A driver whose jobs are fences that the model signals, and whose engine is one of two kinds.
pub struct ModelGpu {
    /// Set when the device is built, then constant.
    vram: OnceLock<Arc<HeapMemory>>,
    /// What its jobs signal.
    pub jobs: Arc<Timeline>,
    /// The page of VRAM that each page of the BAR shows. Its own lock.
    shown: Mutex<BTreeMap<u64, u64>>,
    /// `None`: copies are done at once, in the thread that hands a chunk over.
    crank: Option<Arc<Crank>>,
}

impl Drop for ModelGpu {
    /// The device is gone and has drained its queue: whoever turns the crank may go.
    fn drop(&mut self) {
        if let Some(crank) = &self.crank {
            crank.stop();
        }
    }
}

impl Driver for ModelGpu {
    fn map_vram(&self, layout: &MemoryLayout) -> devpagemap::Result<Option<Arc<dyn MemoryMap>>> {
        let vram = HeapMemory::new(layout.vram_bytes as usize, 1);
        assert!(self.vram.set(vram.clone()).is_ok(), "a model's GPU is built into one device");
        Ok(Some(vram))
    }

    fn copy_engines(&self, memory: &DeviceMemory) -> devpagemap::Result<Vec<Arc<dyn CopyEngine>>> {
        // All of VRAM, though a BAR of windows shows the CPU none of it.
        let whole = memory.with_vram(self.vram().clone(), u64::MAX);
        let cpu = CpuEngine::new("inline", Arc::new(whole));
        Ok(vec![match &self.crank {
            None => cpu,
            Some(crank) => Arc::new(Cranked { crank: crank.clone(), cpu }),
        }])
    }

    fn bar_memory(&self, addr: BarAddr, len_bytes: u64) -> Option<BarMemory<'_>> {
        /// Nobody maps it: a model's maps go to `start`.
        static NO_FILE: OnceLock<File> = OnceLock::new();
        let file = NO_FILE.get_or_init(|| File::open("/dev/null").expect("every machine has it")).as_fd();
        let page = self.shown(addr)?;
        let start = self.vram().resolve(Addr::new(Space::Vram, page), len_bytes)?;
        Some(BarMemory { file: Some(file), offset_bytes: 0, start })
    }

    fn program_windows(&self, change: &WindowChange<'_>) -> devpagemap::Result<Option<Fence>> {
        assert!(change.after().is_signaled(), "no model has a peer that is still at work");
        let mut shown = self.shown.lock();
        for entry in change.entries() {
            for at in (0..entry.len_bytes).step_by(PAGE as usize) {
                match entry.shows {
                    Some(start) => drop(shown.insert(entry.bar.0 + at, start.0 + at)),
                    None => drop(shown.remove(&(entry.bar.0 + at))),
                }
            }
        }
        Ok(None)
    }
}

/// A device with so many pages of VRAM behind so many pages of windows, that copies at once.
pub fn windows_device(vram_pages: u64, bar_pages: u64) -> Device<ModelGpu> {
    let builder = Device::builder(ModelGpu::new(None)).vram(Size::bytes(vram_pages * PAGE));
    let builder = builder.bar(Bar::Windows(Size::bytes(bar_pages * PAGE))).system(Size::bytes(64 * PAGE));
    builder.build().expect("a small device")
}

/// A device with so many pages of VRAM that copies at once.
pub fn device(pages: u64) -> Device<ModelGpu> {
    build(pages, None)
}

/// A device with so many pages of VRAM that copies when, and where, its crank is turned.
pub fn cranked_device(pages: u64) -> (Device<ModelGpu>, Arc<Crank>) {
    let crank = Arc::new(Crank::default());
    (build(pages, Some(crank.clone())), crank)
}

/// As [`cranked_device`], with so many pages of system memory.
pub fn tight_device(vram_pages: u64, system_pages: u64) -> (Device<ModelGpu>, Arc<Crank>) {
    let crank = Arc::new(Crank::default());
    let builder = Device::builder(ModelGpu::new(Some(crank.clone()))).vram(Size::bytes(vram_pages * PAGE));
    let device = builder.system(Size::bytes(system_pages * PAGE)).build();
    (device.expect("a small device"), crank)
}

/// A device with so many pages of VRAM, all in the BAR and for peers, and a soft limit of `soft_pages` that ends with them.
pub fn peer_device(pages: u64, soft_pages: u64) -> Device<ModelGpu> {
    let size = |pages: u64| Size::bytes(pages * PAGE);
    let limits = P2pLimits {
        soft: size(soft_pages),
        reopen: size(soft_pages - 1),
        hard: size(pages),
        cpu_reserve: size(0),
    };
    let builder = Device::builder(ModelGpu::new(None)).vram(size(pages)).p2p_limits(limits);
    builder.system(size(64)).build().expect("a small device")
}

/// A device with a page of VRAM and so many pages of GTT, that copies at once.
pub fn gtt_device(gtt_pages: u64) -> Device<ModelGpu> {
    let builder = Device::builder(ModelGpu::new(None)).vram(Size::bytes(PAGE));
    let builder = builder.gtt(Size::bytes(gtt_pages * PAGE)).system(Size::bytes(64 * PAGE));
    builder.build().expect("a small device")
}

/// A device with so many pages of VRAM that the CPU does not see, and a GPU that copies at once.
pub fn blind_device(pages: u64) -> Device<ModelGpu> {
    let builder =
        Device::builder(ModelGpu::new(None)).vram(Size::bytes(pages * PAGE)).visible(Size::bytes(0));
    builder.system(Size::bytes(64 * PAGE)).build().expect("a small device")
}

fn build(pages: u64, crank: Option<Arc<Crank>>) -> Device<ModelGpu> {
    let builder = Device::builder(ModelGpu::new(crank)).vram(Size::bytes(pages * PAGE));
    builder.system(Size::bytes(64 * PAGE)).build().expect("a small device")
}

impl ModelGpu {
    /// Its memory.
    pub fn vram(&self) -> &Arc<HeapMemory> {
        self.vram.get().expect("a model's GPU is built into a device at once")
    }

    /// The page of VRAM that a page of the BAR shows.
    pub fn shown(&self, page: BarAddr) -> Option<u64> {
        self.shown.lock().get(&page.0).copied()
    }

    fn new(crank: Option<Arc<Crank>>) -> ModelGpu {
        let jobs = Arc::new(Timeline::new("jobs"));
        ModelGpu { vram: OnceLock::new(), jobs, shown: Mutex::default(), crank }
    }
}

/// A buffer of one page, for VRAM.
pub fn buffer(device: &Device<ModelGpu>) -> Buffer {
    device.buffer(Size::bytes(PAGE)).prefer(Place::VRAM).write_combined().create().expect("one page fits")
}

/// Submits work that writes `buffer`; the model says when it is done.
pub fn start_job(device: &Device<ModelGpu>, buffer: &Buffer) -> Fence {
    let fence = device.submit().writes(buffer).run(|gpu, _| Ok(gpu.jobs.next_point()));
    fence.expect("there is a page for it")
}

/// What a job does to a page of VRAM.
pub fn write_page(device: &Device<ModelGpu>, page: u64, value: u8) {
    device.driver().vram().write(Addr::new(Space::Vram, page * PAGE), &[value; PAGE as usize]);
}

/// The first byte of a buffer, wherever it is.
pub fn first_byte(buffer: &Buffer) -> u8 {
    let mut byte = [0];
    buffer.read_at(0, &mut byte).expect("the buffer is whole");
    byte[0]
}

/// The chunks that a device's engine has taken and not done.
#[derive(Default)]
pub struct Crank {
    /// The crank's lock.
    taken: Mutex<Taken>,
    /// Notified for each chunk, and at the end.
    turned: Condvar,
}

#[derive(Default)]
struct Taken {
    chunks: Vec<(Chunk, Completion, Arc<CpuEngine>)>,
    over: bool,
}

impl Crank {
    /// Waits for a chunk and does it, in the calling thread; false when it is over and there is none. The newest goes first:
    /// engines owe no order, and who relies on one is found out.
    pub fn turn(&self) -> bool {
        let mut taken = self.taken.lock();
        loop {
            if let Some((chunk, done, cpu)) = taken.chunks.pop() {
                drop(taken);
                cpu.submit(chunk, done).expect("the CPU refuses nothing");
                return true;
            }
            if taken.over {
                return false;
            }
            taken = self.turned.wait(taken);
        }
    }

    /// Lets whoever turns it go, once nothing is left to do.
    pub fn stop(&self) {
        self.taken.lock().over = true;
        self.turned.notify_all();
    }
}

/// An engine that keeps its chunks until the crank is turned.
struct Cranked {
    crank: Arc<Crank>,
    cpu: Arc<CpuEngine>,
}

impl CopyEngine for Cranked {
    fn name(&self) -> &str {
        "cranked"
    }

    fn submit(&self, chunk: Chunk, done: Completion) -> Result<(), EngineError> {
        self.crank.taken.lock().chunks.push((chunk, done, self.cpu.clone()));
        self.crank.turned.notify_one();
        Ok(())
    }

    fn reset(&self) -> Reset {
        self.crank.taken.lock().chunks.clear();
        Reset::Recovered
    }
}

/// What must be true of a device on which nothing goes on: every counter adds up, and nothing is pending.
///
/// # Panics
/// When something does not.
pub fn check_at_rest(device: &Device<ModelGpu>, vram_pages: u64, system_pages: u64) {
    let stats = device.stats();
    assert_eq!(stats.vram_used_bytes, vram_pages * PAGE, "VRAM in use");
    assert_eq!(stats.system_used_bytes, system_pages * PAGE, "system memory in use");
    assert_eq!((stats.vram_pending_bytes, stats.vram_ghosts), (0, 0), "ghosts in VRAM");
    assert_eq!(stats.system_pending_bytes, 0, "ghosts in system memory");
    assert_eq!(stats.vram_pinned_bytes, 0, "pins");
}
