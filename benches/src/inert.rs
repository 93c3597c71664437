//! A device whose driver does nothing: moves are done when they are asked for, and no memory is behind VRAM. What is left is
//! what the library itself costs.

use std::sync::Arc;

use devpagemap::migrate::{Chunk, Completion, EngineError, Reset};
use devpagemap::{
    Bar, Buffer, CopyEngine, Device, DeviceMemory, Driver, Fence, Place, Result, Size, WindowChange,
};

/// The size of a page.
pub const PAGE_BYTES: u64 = 4096;

/// A driver that does nothing.
pub struct Inert;

struct NoCopies;

impl CopyEngine for NoCopies {
    fn name(&self) -> &str {
        "none"
    }

    fn submit(&self, _: Chunk, done: Completion) -> Result<(), EngineError> {
        done.complete(Ok(()));
        Ok(())
    }

    fn reset(&self) -> Reset {
        Reset::Recovered
    }
}

impl Driver for Inert {
    fn copy_engines(&self, _: &DeviceMemory) -> Result<Vec<Arc<dyn CopyEngine>>> {
        Ok(vec![Arc::new(NoCopies)])
    }

    fn program_windows(&self, _: &WindowChange<'_>) -> Result<Option<Fence>> {
        Ok(None)
    }
}

/// A buffer of so many pages in VRAM, on a device whose BAR has windows for so many.
///
/// # Panics
/// When there is not enough address space.
pub fn buffer_behind_windows(buffer_pages: u64, bar_pages: u64) -> Buffer {
    let vram = Size::bytes(buffer_pages * PAGE_BYTES);
    let device = Device::builder(Inert).vram(vram).bar(Bar::Windows(Size::bytes(bar_pages * PAGE_BYTES)));
    let device = device.system(Size::mib(1)).build().expect("it takes no memory");
    let buffer = device.buffer(vram).prefer(Place::VRAM).create().expect("it fits");
    buffer.place_now().expect("all of VRAM is free");
    device.wait_idle();
    buffer
}
