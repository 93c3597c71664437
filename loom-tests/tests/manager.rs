//! Buffers that want the same memory: validate against evict, against release, against the fences of former users.
#![cfg(loom)]

use devpagemap::migrate::{CpuEngine, HeapMemory};
use devpagemap::{
    Addr, Buffer, CopyEngine, Device, DeviceMemory, Driver, Fence, MemoryLayout, MemoryMap, Place, Size,
    Timeline,
};
use devpagemap_loom_tests::explore;
use loom::thread;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

const PAGE: u64 = 4096;

/// A GPU whose engine copies at once, in the thread that hands it a chunk. Its jobs are fences that the model signals.
struct ModelGpu {
    vram: OnceLock<Arc<Vram>>,
    jobs: Arc<Timeline>,
}

struct Vram(Arc<HeapMemory>);

// SAFETY: HeapMemory checks bounds and lives as long as self.
unsafe impl MemoryMap for Vram {
    fn resolve(&self, addr: Addr, len_bytes: u64) -> Option<NonNull<u8>> {
        self.0.resolve(addr, len_bytes)
    }
}

impl Driver for ModelGpu {
    fn map_vram(&self, layout: &MemoryLayout) -> devpagemap::Result<Option<Arc<dyn MemoryMap>>> {
        let vram = Arc::new(Vram(HeapMemory::new(layout.vram_bytes as usize, 1)));
        assert!(self.vram.set(vram.clone()).is_ok(), "a model's GPU is built into one device");
        Ok(Some(vram))
    }

    fn copy_engines(&self, memory: &DeviceMemory) -> devpagemap::Result<Vec<Arc<dyn CopyEngine>>> {
        Ok(vec![CpuEngine::new("inline", Arc::new(memory.clone()))])
    }
}

fn device(pages: u64) -> (Device<ModelGpu>, Arc<Timeline>) {
    let jobs = Arc::new(Timeline::new("jobs"));
    let gpu = ModelGpu { vram: OnceLock::new(), jobs: jobs.clone() };
    let system = Size::bytes(16 * PAGE);
    let device =
        Device::builder(gpu).vram(Size::bytes(pages * PAGE)).system(system).build().expect("a small device");
    (device, jobs)
}

fn buffer(device: &Device<ModelGpu>) -> Buffer {
    device.buffer(Size::bytes(PAGE)).prefer(Place::VRAM).create().expect("one page fits")
}

/// Submits work that writes `buffer`; the model says when it is done.
fn start_job(device: &Device<ModelGpu>, buffer: &Buffer) -> Fence {
    let fence = device.submit().writes(buffer).run(|gpu, _| Ok(gpu.jobs.next_point()));
    fence.expect("the only page is free")
}

/// Where the job writes: VRAM begins with the only page there is.
fn write_page(device: &Device<ModelGpu>, value: u8) {
    let vram = device.driver().vram.get().expect("built");
    vram.0.write(Addr::new(devpagemap::migrate::Space::Vram, 0), &[value; PAGE as usize]);
}

fn first_byte(buffer: &Buffer) -> u8 {
    let mut byte = [0];
    buffer.read_at(0, &mut byte).expect("the buffer is whole");
    byte[0]
}

/// Two threads, exhaustive.
#[test]
fn two_submitters_of_one_page_both_get_it() {
    explore(None, || {
        let (device, _) = device(1);
        let (first, second) = (buffer(&device), buffer(&device));
        let other = {
            let first = first.clone();
            thread::spawn(move || first.place_now())
        };
        let mine = second.place_now();
        assert_eq!((mine, other.join().expect("no panic")), (Ok(()), Ok(())));
    });
}

/// Two threads, exhaustive.
#[test]
fn memory_that_a_destructor_is_about_to_give_back_is_waited_for() {
    explore(None, || {
        let (device, _) = device(1);
        let dying = buffer(&device);
        dying.place_now().expect("the page is free");
        let destructor = thread::spawn(move || drop(dying));
        assert_eq!(buffer(&device).place_now(), Ok(()));
        destructor.join().expect("no panic");
        device.wait_idle();
        assert_eq!(device.stats().vram_used_bytes, 0);
    });
}

/// Two threads, exhaustive.
#[test]
fn reused_bytes_are_not_touched_before_their_former_user_is_done() {
    explore(None, || {
        let (device, jobs) = device(1);
        let first = buffer(&device);
        let fence = start_job(&device, &first);
        drop(first);
        let gpu = {
            let device = device.clone();
            thread::spawn(move || {
                write_page(&device, 7);
                jobs.signal(fence.seqno());
            })
        };
        let second = buffer(&device);
        second.place_now().expect("the page is free behind the job's fence");
        gpu.join().expect("no panic");
        assert_eq!(first_byte(&second), 0, "the clear came after the job's writes");
    });
}

/// Two threads, at most two preemptions.
#[test]
fn an_eviction_takes_along_what_the_last_job_wrote() {
    explore(Some(2), || {
        let (device, jobs) = device(1);
        let written = buffer(&device);
        let fence = start_job(&device, &written);
        let gpu = {
            let device = device.clone();
            thread::spawn(move || {
                write_page(&device, 7);
                jobs.signal(fence.seqno());
            })
        };
        buffer(&device).place_now().expect("the page is free once its buffer is evicted");
        assert_eq!(first_byte(&written), 7);
        gpu.join().expect("no panic");
    });
}
