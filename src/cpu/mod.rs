//! The CPU's way to the bytes of a buffer: the only place where a CPU thread waits for the GPU.

mod access;
mod approach;
mod bounce;
mod caching;
mod map;

pub use caching::Caching;
pub use map::CpuMap;
