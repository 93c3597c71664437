//! The same buffers on our manager, with room for as many.

use devpagemap::{Buffer, Device, EvictionPolicy, Place, RegionKind, Result, Size, SoftwareGpu};

use super::Inside;
use crate::pattern;

pub struct Ours {
    device: Device<SoftwareGpu>,
    buffers: Vec<Buffer>,
}

impl Ours {
    pub fn new(room: usize, count: usize, size_bytes: usize) -> Ours {
        let size = Size::bytes(size_bytes as u64);
        let gpu = SoftwareGpu::builder().build().expect("it has memory");
        let vram = Size::bytes((room * size_bytes) as u64);
        let device = Device::builder(gpu).vram(vram).policy(EvictionPolicy::Lru).build();
        let device = device.expect("it is a device");
        let new = |_| device.buffer(size).prefer(Place::VRAM).create();
        let buffers = (0..count).map(new).collect::<Result<Vec<_>>>().expect("they are buffers");
        Ours { device, buffers }
    }

    /// A job that compares all bytes with what is expected, if something is, and writes new ones.
    pub fn bring(&self, buffer: usize, expected: Option<u64>, new: u64) {
        let target = &self.buffers[buffer];
        let queued = self.device.submit().writes(target).run(|gpu, job| {
            let extents = job.extents(target);
            gpu.run(job, move |memory| {
                memory.write(&extents, |offset, bytes| {
                    if let Some(expected) = expected {
                        pattern::check(expected, offset, bytes)
                            .unwrap_or_else(|wrong| panic!("ours, buffer {buffer}: {wrong}"));
                    }
                    pattern::write(new, offset, bytes);
                });
                Ok(())
            })
        });
        queued.expect("there is room").wait().expect("the bytes are right");
    }

    pub fn inside(&self) -> Inside {
        let is_in = |buffer: &Buffer| buffer.region() == Some(RegionKind::Vram);
        (0..).zip(&self.buffers).filter(|(_, buffer)| is_in(buffer)).map(|(index, _)| index).collect()
    }

    pub fn evictions(&self) -> usize {
        self.device.stats().evictions as usize
    }

    pub fn read(&self, buffer: usize, into: &mut [u8]) {
        self.buffers[buffer].read_at(0, into).expect("it can be read");
    }
}
