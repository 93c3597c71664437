//! A buffer in many pieces.

use devpagemap::{Buffer, Place, Size};

use super::{Lab, fill};

const PAGE: u64 = 4096;

/// A buffer of every other page of VRAM, filled with the pattern of `seed`.
pub fn scattered(device: &Lab, pages: u64, seed: u64) -> Buffer {
    let holders = (0..2 * pages).map(|page| {
        let place = Place::VRAM.within(page * PAGE..(page + 1) * PAGE);
        let buffer = device.buffer(Size::bytes(PAGE)).prefer(place).create().expect("it fits");
        buffer.place_now().expect("room");
        buffer
    });
    let kept: Vec<_> = holders.collect::<Vec<_>>().into_iter().step_by(2).collect();
    device.wait_idle();
    let place = Place::VRAM.within(0..2 * pages * PAGE);
    let buffer = device.buffer(Size::bytes(pages * PAGE)).prefer(place).write_combined().create();
    let buffer = buffer.expect("it fits");
    fill(device, &buffer, seed).expect("every other page is free");
    drop(kept);
    buffer
}
