//! Devices, buffers and jobs as the scenarios need them.

pub mod gate;
pub mod importer;
pub mod jobs;
pub mod machines;
pub mod numbers;
pub mod pattern;
pub mod pci_tree;
pub mod rig;
pub mod scattered;

use std::time::{Duration, Instant};

use devpagemap::{
    Buffer, Device, DeviceBuilder, Driver, EvictionPolicy, Extent, ExtentList, Fence, P2pLimits, Place,
    Result, Size, SoftwareGpu,
};

pub use gate::Gate;
pub use jobs::{RunsJobs, check_pattern, fill, verify, write_pattern};
pub use scattered::scattered;

pub type Lab = Device<SoftwareGpu>;

pub const MIB: u64 = 1 << 20;

/// Long enough that only a deadlock takes longer.
pub const FOREVER: Duration = Duration::from_secs(30);

/// A device to be, with enough rings that a held-back job holds back nobody else's.
pub fn builder(vram_mib: u64) -> DeviceBuilder<SoftwareGpu> {
    let gpu = SoftwareGpu::builder().rings(4).build().expect("threads for the rings");
    Device::builder(gpu).vram(Size::mib(vram_mib)).system(Size::mib(256)).gtt(Size::mib(128))
}

pub fn device(vram_mib: u64) -> Lab {
    builder(vram_mib).build().expect("a small device")
}

/// A device whose BAR shows all of VRAM, and peers may have all of it.
pub fn device_for_peers(vram_mib: u64) -> Lab {
    let all = Size::mib(vram_mib);
    let limits = P2pLimits { soft: all, reopen: all, hard: all, cpu_reserve: Size::bytes(0) };
    builder(vram_mib).p2p_limits(limits).build().expect("a small device")
}

pub fn device_with(policy: EvictionPolicy, vram_mib: u64) -> Lab {
    builder(vram_mib).policy(policy).build().expect("a small device")
}

/// A buffer that wants this place only and has not been used. The CPU may reach it in VRAM.
pub fn buffer_at<D: Driver>(device: &Device<D>, place: Place, mib: u64) -> Buffer {
    let buffer = device.buffer(Size::mib(mib)).prefer(place).write_combined();
    buffer.create().expect("a buffer that fits")
}

pub fn vram_buffer<D: Driver>(device: &Device<D>, mib: u64) -> Buffer {
    buffer_at(device, Place::VRAM, mib)
}

/// A buffer in VRAM that the GPU has filled with the pattern of `seed`.
pub fn filled<D: RunsJobs>(device: &Device<D>, mib: u64, seed: u64) -> Buffer {
    let buffer = vram_buffer(device, mib);
    fill(device, &buffer, seed).expect("room for the buffer");
    buffer
}

/// Reads all of it with the CPU.
#[track_caller]
pub fn expect_bytes(buffer: &Buffer, seed: u64) {
    let bytes = read_all(buffer);
    if let Err(wrong) = pattern::check(seed, 0, &bytes) {
        panic!("buffer {}: {wrong}", buffer.id());
    }
}

#[track_caller]
pub fn expect_zeros(buffer: &Buffer) {
    assert!(read_all(buffer).iter().all(|byte| *byte == 0), "buffer {} is not all zeros", buffer.id());
}

#[track_caller]
fn read_all(buffer: &Buffer) -> Vec<u8> {
    let mut bytes = vec![0xa5; buffer.size().as_bytes() as usize];
    buffer.read_at(0, &mut bytes).expect("a readable buffer");
    bytes
}

/// A job that writes nothing new to the buffer and ends when the gate is opened.
#[track_caller]
pub fn hold<D: RunsJobs>(device: &Device<D>, buffer: &Buffer, gate: &Gate) {
    let job = device
        .submit()
        .after(gate.fence())
        .writes(buffer)
        .run(|driver, job| driver.gpu().run(job, |_| Ok(())));
    job.expect("a submission");
}

/// Where a buffer is. Brings it in first, as every submission does.
pub fn extents(device: &Lab, buffer: &Buffer) -> Vec<Extent> {
    let mut found = ExtentList::new();
    let job = device.submit().reads(buffer).run(|_, job| {
        found = job.extents(buffer);
        Ok(Fence::signaled())
    });
    job.expect("a place for the buffer");
    found.iter().copied().collect()
}

/// Waits for what must come by itself.
#[track_caller]
pub fn soon(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + FOREVER;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits for a fence that nothing holds back; a fence that is held back fails the test instead of hanging it.
#[track_caller]
pub fn finished(fence: Result<Fence>) {
    fence
        .expect("a submission")
        .wait_timeout(FOREVER)
        .expect("the job ends well and is held back by nothing");
}

/// Runs a scenario in a thread of its own, and fails when it comes to no end.
#[track_caller]
pub fn without_deadlock(scenario: impl FnOnce() + Send + 'static) {
    let (ended, end) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let _tells_also_when_it_panics = ended;
        scenario();
    });
    let waited = end.recv_timeout(2 * FOREVER);
    assert_ne!(waited, Err(std::sync::mpsc::RecvTimeoutError::Timeout), "the scenario hangs");
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}
