//! Range allocators for device memory: they hand out *numbers* (byte ranges of a region), never touch the memory behind
//! them, take no locks and need no operating system (`no_std` + `alloc`).
//!
//! [`Buddy`] manages one region (a device's VRAM, its arena of system pages). A [`Request`] says what is wanted, the
//! answer is a list of [`Span`]s:
//!
//! ```
//! use devpagemap_allocator::{Buddy, Request};
//!
//! const MIB: u64 = 1 << 20;
//! let mut vram = Buddy::new(256 * MIB)?;
//!
//! // The usual buffer may lie in several pieces ...
//! let buffer = vram.alloc(&Request::new(48 * MIB))?;
//! // ... a scan-out buffer may not, and must be in the first 64 MiB, which the CPU can see.
//! let scanout = vram.alloc(&Request::new(8 * MIB).aligned(2 * MIB).within(0..64 * MIB).contiguous())?;
//! assert_eq!(scanout.len(), 1);
//! assert_eq!(vram.free_bytes(), 200 * MIB);
//!
//! for span in buffer.into_iter().chain(scanout) {
//!     vram.free(span)?;
//! }
//! assert_eq!(vram.largest_free_bytes(), 256 * MIB);
//! # Ok::<(), devpagemap_allocator::AllocError>(())
//! ```
//!
//! Where things are: `request.rs` checks what a caller asks for, `buddy.rs` is the policy, `best_fit.rs` chooses a block,
//! `pages.rs` keeps which pages are free (the tree), `find.rs` asks it questions, `orders.rs` indexes the free blocks by
//! size, and `runs.rs` finds runs that are longer than any block.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod best_fit;
mod buddy;
mod consistency;
mod error;
mod find;
mod orders;
mod pages;
mod request;
mod runs;
mod span;
mod summary_set;
mod word;

pub use buddy::{Buddy, MAX_REGION_BYTES};
pub use error::AllocError;
pub use request::{Direction, Mode, Request};
pub use span::{PAGE_BYTES, Span};
