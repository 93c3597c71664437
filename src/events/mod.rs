//! What the application is told: pressure on the BAR, and what became of whose peer maps.
//!
//! ```text
//!   manager ── emit ──▶ hub ──▶ queue of a subscriber ──▶ try_next, next, next_timeout
//!                          └──▶ queue of another      └─▶ eventfd, readable while there is something
//! ```
//!
//! Emitting never waits. A queue holds 1024 events; of one who does not keep up the oldest go, and it is told how many it has
//! missed, at the place in the order where they were missed. Without a subscriber an event is one load of an atomic.
//!
//! The list of subscribers (`hub.rs`) is under a lock of the aperture level, each queue under one of its own, outside of the order.
//! Neither is held while the other is taken.

#[cfg(not(any(loom, shuttle)))]
mod bell;
mod event;
mod hub;
mod subscription;

#[cfg(not(any(loom, shuttle)))]
pub use bell::Readable;
pub use event::{Event, PeerReason};
pub use subscription::Events;

pub(crate) use hub::Hub;
