//! CPU maps that follow their buffer: what it costs to take one away and to point it at its bytes again.

use std::hint::black_box;
use std::ptr::null_mut;
use std::time::Instant;

use devpagemap::{Buffer, CpuMap, Device, Place, Size, SoftwareGpu};
use devpagemap_benches::contest::{Contest, Goal, Sample};
use devpagemap_benches::session::Session;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

/// What is mapped.
const LEN: usize = 2 << 20;
const PAGE: usize = 4096;
/// How often it is pointed anew in a batch.
const POINTS: u32 = 8;
const ROUNDS: usize = 101;

fn main() {
    let mut session = Session::from_arguments();
    re_pointing(&mut session);
    touching(&mut session);
    session.finish();
}

fn mapped() -> (Buffer, CpuMap) {
    let gpu = SoftwareGpu::builder().build().expect("threads");
    let device = Device::builder(gpu).vram(Size::mib(4)).system(Size::mib(16)).build().expect("a device");
    // Off a huge page's start, so that both maps consist of small pages whatever the system does for shared memory.
    let place = Place::VRAM.within(PAGE as u64..(LEN + PAGE) as u64);
    let buffer = device.buffer(Size::bytes(LEN as u64)).prefer(place).write_combined().create();
    let buffer = buffer.expect("it fits");
    let map = buffer.map().expect("all is visible");
    (buffer, map)
}

fn touch_all(start: *mut u8) {
    for page in 0..LEN / PAGE {
        // SAFETY: both ways map LEN bytes for as long as the contest lasts, which nobody else uses.
        unsafe { start.add(page * PAGE).write_volatile(1) };
    }
}

/// Does `operation` on pages that have all been touched.
fn batch(start: *mut u8, mut operation: impl FnMut()) -> Sample {
    let mut spent = std::time::Duration::ZERO;
    for _ in 0..POINTS {
        touch_all(start);
        let begin = Instant::now();
        operation();
        spent += begin.elapsed();
    }
    Sample::of(spent.as_nanos() as f64 / f64::from(POINTS))
}

/// A mapping of a file, replaced by another of its pages.
struct Bare {
    memfd: std::os::fd::OwnedFd,
    start: *mut u8,
}

impl Bare {
    fn new() -> Bare {
        let memfd = memfd_create("bench", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&memfd, 2 * LEN as u64 + 2 * PAGE as u64).expect("it can have a size");
        fill_with_huge_pages(&memfd, 2 * LEN + 2 * PAGE);
        let start = Bare::map(&memfd, null_mut(), MapFlags::SHARED, PAGE);
        Bare { memfd, start }
    }

    fn map(memfd: &std::os::fd::OwnedFd, at: *mut u8, flags: MapFlags, offset: usize) -> *mut u8 {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, or one over our own.
        let start =
            unsafe { mmap(at.cast(), LEN, protection, flags | MapFlags::NORESERVE, memfd, offset as u64) };
        start.expect("it can be mapped").cast()
    }

    fn re_map(&self, offset: usize) {
        Bare::map(&self.memfd, self.start, MapFlags::SHARED | MapFlags::FIXED, offset);
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody uses any more.
        unsafe { munmap(self.start.cast(), LEN) }.expect("it can be unmapped");
    }
}

/// Gives a memfd the pages that a device's memory has, which are cheaper to map and to unmap.
fn fill_with_huge_pages(memfd: &std::os::fd::OwnedFd, len: usize) {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, which is unmapped before anybody knows of it; its bytes are the bench's own.
    unsafe {
        let start = mmap(null_mut(), len, protection, MapFlags::SHARED, memfd, 0).expect("it can be mapped");
        let _small_pages_then = madvise(start, len, Advice::LinuxHugepage);
        start.cast::<u8>().write_bytes(1, len);
        munmap(start, len).expect("it can be unmapped");
    }
}

fn re_pointing(session: &mut Session) {
    const NAME: &str = "re-pointing a map of 2 MiB: zapped, and pointed at its bytes";
    if !session.wants(NAME) {
        return;
    }
    let ((_buffer, map), bare, mut at) = (mapped(), Bare::new(), 0);
    let mut contest = Contest::new(NAME, Goal::of_floor(1.5)).of_few_rounds(ROUNDS);
    contest.ours_measured(|| {
        batch(map.as_ptr(), || {
            map.forget();
            map.populate().expect("all is visible");
        })
    });
    contest.floor_measured("bare MAP_FIXED", || {
        batch(bare.start, || {
            at = 1 - at;
            bare.re_map(PAGE + at * LEN);
        })
    });
    contest.hold(session);
}

fn touching(session: &mut Session) {
    const NAME: &str = "the first touch of a map whose bytes were taken away";
    if !session.wants(NAME) {
        return;
    }
    let (_buffer, map) = mapped();
    let (start, mut contest) = (map.as_ptr(), Contest::new(NAME, Goal::NONE).of_few_rounds(ROUNDS));
    contest.ours_measured(|| {
        let mut spent = std::time::Duration::ZERO;
        for _ in 0..POINTS {
            map.forget();
            let begin = Instant::now();
            // SAFETY: the map is alive, and nobody else uses these bytes.
            black_box(unsafe { start.read_volatile() });
            spent += begin.elapsed();
        }
        Sample::of(spent.as_nanos() as f64 / f64::from(POINTS))
    });
    contest.hold(session);
}
