//! Buffers as dma-bufs, through everything that makes them: what comes out (`made.rs`), what others keep (`kept.rs`), and what is refused
//! (`refused.rs`).

mod kept;
mod made;
mod refused;

use std::os::fd::AsFd;

use devpagemap::{Buffer, Device, Error, FenceSource, PassedOver, Place, Size, SoftwareGpu, Via};
use rustix::fs::fstat;

use crate::observe::wait_until;
use crate::setup::Thing;

const ALL: [Thing; 5] = [Thing::Udmabuf, Thing::DmaHeap, Thing::Vgem, Thing::VirtioGpu, Thing::DmaBufList];
const WAYS: [Via; 4] = [Via::Udmabuf, Via::DmaHeap, Via::Vgem, Via::VirtioGpu];
const BYTES: u64 = 1 << 20;

type Lab = Device<SoftwareGpu>;

fn device() -> Lab {
    device_of(FenceSource::Auto)
}

fn device_of(source: FenceSource) -> Lab {
    let gpu = SoftwareGpu::builder().build().expect("threads for the rings");
    let builder = Device::builder(gpu).vram(Size::mib(8)).visible(Size::mib(8));
    let builder = builder.gtt(Size::mib(128)).system(Size::mib(256)).fence_source(source);
    builder.build().expect("a small device")
}

fn buffer(device: &Lab, name: &str) -> Buffer {
    let builder = device.buffer(Size::bytes(BYTES)).prefer(Place::VRAM).or(Place::GTT);
    builder.name(name).create().expect("a buffer")
}

fn pattern(seed: u8) -> impl Fn(usize) -> u8 {
    move |at| (at as u8).wrapping_mul(31).wrapping_add((at >> 12) as u8).wrapping_add(seed)
}

fn bytes_of(seed: u8) -> Vec<u8> {
    (0..BYTES as usize).map(pattern(seed)).collect()
}

/// Has the GPU fill a buffer, wherever it is.
fn fill(device: &Lab, buffer: &Buffer, seed: u8) {
    let job = device.submit().writes(buffer).run(|gpu, job| {
        let extents = job.extents(buffer);
        gpu.run(job, move |memory| {
            let fill = pattern(seed);
            memory.write(&extents, |offset, bytes| {
                bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = fill(offset as usize + at));
            });
            Ok(())
        })
    });
    job.expect("a job");
}

fn read_all(buffer: &Buffer) -> Vec<u8> {
    let mut bytes = vec![0; BYTES as usize];
    buffer.read_at(0, &mut bytes).expect("nothing is lost");
    bytes
}

fn inode(fd: impl AsFd) -> u64 {
    fstat(fd).expect("it is open").st_ino
}

/// Nobody has anything of this device any more, and it knows.
fn let_go(device: &Lab) {
    device.release_exports();
    wait_until("it is let go of", || device.stats().exported_bytes == 0);
}

#[track_caller]
fn reasons(error: Error) -> Vec<PassedOver> {
    match error {
        Error::NotExportable { reasons, .. } => reasons.to_vec(),
        error => panic!("{error}"),
    }
}
