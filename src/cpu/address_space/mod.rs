//! A mapping's addresses: the seam between the protocol of `mapping.rs` and the page tables of this process.
//!
//! ```text
//!   reserve ──► away ── point ──► pointed ──┐
//!                ▲                          │      away:    a touch sleeps, and somebody is told of it
//!                └────────── zap ◄──────────┘      pointed: a touch goes to the bytes, and nobody notices
//! ```
//!
//! Two things have to hold whatever a touch meets in between, since touches take no lock:
//!
//! * **`zap` loses no write.** Until it returns, a touch goes to the old bytes or sleeps; afterwards every touch sleeps. So the
//!   range is watched first, while its page-table entries still serve, and only then are the entries taken away. It is never
//!   unmapped, nor replaced by other memory: a write to that would vanish.
//! * **`point` shows nothing half-way.** One replacement of a mapping by another, which the kernel makes under the lock that a touch
//!   takes when it finds no entry.
//!
//! In models the page table is a word behind a lock, and the protocol above it is the one that ships.

#[cfg(any(loom, shuttle))]
mod model;
#[cfg(not(any(loom, shuttle)))]
mod real;
#[cfg(not(any(loom, shuttle)))]
mod watcher;

#[cfg(any(loom, shuttle))]
pub(crate) use model::{AddressSpace, Watcher};
#[cfg(not(any(loom, shuttle)))]
pub(crate) use real::AddressSpace;
#[cfg(not(any(loom, shuttle)))]
pub(crate) use watcher::Watcher;

/// What a mapping shows when the bytes behind it are gone for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AfterLoss {
    /// Zeros; writes go nowhere.
    #[default]
    Zeros,
    /// Nothing: a touch raises `SIGBUS`, as the end of a mapped file does.
    Signal,
}
