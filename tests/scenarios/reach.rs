//! Where a buffer goes when the CPU wants its bytes.

use devpagemap::{Buffer, Caching, Device, Place, RegionKind, Size, SoftwareGpu};

use crate::setup::*;

const VRAM: Option<RegionKind> = Some(RegionKind::Vram);
const GTT: Option<RegionKind> = Some(RegionKind::Gtt);
const SYSTEM: Option<RegionKind> = Some(RegionKind::System);

/// A device of 8 MiB of which the CPU sees the first 2.
fn small_bar() -> Lab {
    builder(8).visible(Size::mib(2)).build().expect("a device with a small BAR")
}

/// A buffer of 1 MiB whose creator did not say that slow reads are fine.
fn plain(device: &Lab, places: &[Place], seed: u64) -> Buffer {
    let builder = device.buffer(Size::mib(1));
    let builder = places.iter().cloned().fold(builder, |builder, place| builder.or(place));
    let buffer = builder.create().expect("a buffer that fits");
    fill(device, &buffer, seed).expect("room");
    buffer
}

#[test]
fn a_buffer_that_did_not_opt_in_is_mapped_in_cached_system_memory_even_if_it_was_visible() {
    let device = small_bar();
    let buffer = plain(&device, &[Place::VRAM.visible()], 1);
    let map = buffer.map().expect("system memory is plenty");
    assert_eq!(
        (map.fell_back(), buffer.region()),
        (None, SYSTEM),
        "that is no fallback, but what it asked for"
    );
    let mut bytes = [0; 4096];
    map.read(4096, &mut bytes).expect("inside");
    assert_eq!(pattern::check(1, 4096, &bytes), Ok(()));
    finished(verify(&device, &buffer, 1));
    assert_eq!(buffer.region(), VRAM, "the GPU takes it back");
}

#[test]
fn a_buffer_that_did_not_opt_in_is_mapped_in_gtt_if_it_may_be_there() {
    let device = small_bar();
    let buffer = plain(&device, &[Place::VRAM, Place::GTT], 1);
    let _map = buffer.map().expect("GTT is plenty");
    assert_eq!(buffer.region(), GTT);
    finished(verify(&device, &buffer, 1));
    assert_eq!(buffer.region(), GTT, "the GPU reaches it there");
}

#[test]
fn where_vram_is_cached_nobody_has_to_opt_in() {
    let gpu = SoftwareGpu::builder().vram_caching(Caching::Cached).build().expect("threads");
    let device = Device::builder(gpu).vram(Size::mib(8)).visible(Size::mib(2)).system(Size::mib(64));
    let device = device.build().expect("a device with a coherent link");
    let buffer = plain(&device, &[Place::VRAM], 1);
    let map = buffer.map().expect("the visible part is free");
    assert_eq!((map.fell_back(), buffer.region(), buffer.visible()), (None, VRAM, true));
    expect_bytes(&buffer, 1);
}

#[test]
fn where_vram_is_uncached_even_a_write_combined_buffer_comes_to_system_memory() {
    let gpu = SoftwareGpu::builder().vram_caching(Caching::Uncached).build().expect("threads");
    let device = Device::builder(gpu).vram(Size::mib(8)).system(Size::mib(64)).build().expect("a device");
    let buffer = filled(&device, 1, 1);
    let _map = buffer.map().expect("system memory is plenty");
    assert_eq!(buffer.region(), SYSTEM);
    expect_bytes(&buffer, 1);
}
