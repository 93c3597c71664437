//! Timelines, fences, reservations and the declared lock order: what the rest of devpagemap synchronises with.
//!
//! | module | what it holds |
//! |---|---|
//! | [`levels`] | the lock order; [`Lock`], [`Held`]: a wrong order does not compile |
//! | [`Outside`] | locks that have no level |
//! | [`lockdep`] | the same order at run time, for what types cannot see (debug builds and models) |
//! | [`Timeline`], [`Fence`] | points that signal once, in order, with an error or without |
//! | [`FenceSet`] | the latest point of each of several timelines |
//! | [`AllOf`], [`AnyOf`] | one fence for all of a set; the first of several |
//! | [`FenceFuture`], [`FenceSetFuture`], [`AnyOfFuture`] | waiting as a task |
//! | [`FenceEvent`] | waiting in an event loop: a descriptor that becomes readable |
//! | [`FdWatcher`] | the other way round: descriptors from outside as fences |
//! | [`Watchdog`] | the thread that notices what hangs |
//! | [`Reservation`] | a buffer's lock and its fences by [`Usage`] |
//! | [`Exec`] | many reservations at once, in any order, without deadlock |
//! | [`sync`] | the shim over `parking_lot` or `loom` |
//!
//! The kernel's cousins are `dma_fence`, `dma_resv`, `ww_mutex` and `drm_exec`.
//!
//! ```
//! use std::sync::Arc;
//! use devpagemap_fence::{Exec, Held, Reservable, Reservation, Timeline, Usage};
//!
//! struct Buffer {
//!     reservation: Reservation<u64>,
//! }
//! impl Reservable for Buffer {
//!     type State = u64;
//!     fn reservation(&self) -> &Reservation<u64> {
//!         &self.reservation
//!     }
//! }
//!
//! let timeline = Timeline::new("ring 0");
//! let (a, b) = (Arc::new(Buffer { reservation: Reservation::new(1) }), Arc::new(Buffer { reservation: Reservation::new(2) }));
//!
//! let mut held = Held::enter();
//! let mut exec = Exec::new(&mut held);
//! let fence = exec.run(|exec| {
//!     let (a, b) = (exec.lock(&a)?, exec.lock(&b)?);
//!     exec.set_mut().reserve_fences(a, 1)?;
//!     exec.set_mut().reserve_fences(b, 1)?;
//!     let fence = timeline.next_point(); // from here on nothing may fail
//!     exec.set_mut().add_fence(a, fence.clone(), Usage::Read);
//!     exec.set_mut().add_fence(b, fence.clone(), Usage::Write);
//!     Ok::<_, Box<dyn std::error::Error>>(fence)
//! })?;
//! drop(exec);
//!
//! timeline.signal(fence.seqno());
//! assert_eq!(b.reservation.fences(Usage::Bookkeep).wait(), Ok(()));
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod all_of;
mod any_of;
mod deadline;
mod draining;
mod error;
#[cfg(not(any(loom, shuttle)))]
mod event;
mod exec;
mod failures;
mod fence;
mod fence_set;
#[cfg(not(any(loom, shuttle)))]
mod foreign;
mod future;
mod hang;
mod hung;
pub mod levels;
pub mod lockdep;
mod outside;
mod owner;
mod place;
mod places;
mod reservation;
pub mod sync;
mod timeline;
mod timestamps;
mod waiters;
mod watchdog;

pub use all_of::AllOf;
pub use any_of::{AnyOf, First};
pub use deadline::Deadline;
pub use error::{DescriptorError, FenceError, LockError, SlotsExhausted, WaitError};
#[cfg(not(any(loom, shuttle)))]
pub use event::FenceEvent;
pub use exec::{Exec, Interrupt, LockSet, Sealed, Slot};
pub use fence::{Callback, Fence, blocking_waits, in_callback};
pub use fence_set::FenceSet;
#[cfg(not(any(loom, shuttle)))]
pub use foreign::{FdWatcher, ImportRefused};
pub use future::{AnyOfFuture, FenceFuture, FenceSetFuture};
pub use hang::{Hang, HangAction, HangHook};
pub use levels::{Below, Guard, Held, Level, Lock};
pub use outside::{Outside, OutsideGuard};
pub use reservation::{Locked, Reservable, Reservation, Usage};
pub use sync::claim::Keep;
pub use timeline::{Timeline, TimelineBuilder, TimelineId};
pub use timestamps::SignalTime;
#[cfg(not(any(loom, shuttle)))]
pub use watchdog::Watchdog;
pub use watchdog::Watched;
