//! Six buffers of 16 MiB take turns in 64 MiB of VRAM, and not a byte is lost.
//!
//! `cargo run -p devpagemap --example over_commit`

use devpagemap::{Buffer, Device, Fence, Place, Result, Size, SoftwareGpu};

const SIZE: Size = Size::mib(16);

/// A job that adds `value` to every byte of `buffer`. It is queued; nothing waits for it here.
fn add(device: &Device<SoftwareGpu>, buffer: &Buffer, value: u8) -> Result<Fence> {
    device.submit().writes(buffer).run(|gpu, job| {
        let extents = job.extents(buffer);
        gpu.run(job, move |memory| {
            memory.write(&extents, |_, bytes| bytes.iter_mut().for_each(|byte| *byte += value));
            Ok(())
        })
    })
}

fn main() -> Result<()> {
    let gpu = SoftwareGpu::builder().build()?;
    let device = Device::builder(gpu).vram(Size::mib(64)).visible(Size::mib(16)).build()?;
    let new = |_| device.buffer(SIZE).prefer(Place::VRAM).create();
    let buffers = (0..6).map(new).collect::<Result<Vec<_>>>()?;

    // Three rounds over more than fits: who was not used for longest leaves, and comes back when it is its turn.
    for _ in 0..3 {
        for (value, buffer) in (1..).zip(&buffers) {
            add(&device, buffer, value)?;
        }
    }

    let mut bytes = vec![0; SIZE.as_bytes() as usize];
    for (value, buffer) in (1..).zip(&buffers) {
        buffer.read_at(0, &mut bytes)?;
        assert!(bytes.iter().all(|byte| *byte == 3 * value), "buffer {} lost bytes", buffer.id());
    }

    let stats = device.stats();
    let moved = Size::bytes(stats.moved_bytes);
    println!("{} evictions, {} restores, {moved} moved", stats.evictions, stats.restores);
    let (placing, reading) = (stats.cpu_waits_in_validate, stats.fence_waits);
    println!("{placing} waits while placing and evicting, {reading} while reading");
    Ok(())
}
