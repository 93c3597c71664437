//! Stamps: the ages of tickets. Smaller is older, and no two are the same.
//!
//! A counter that all threads share costs each ticket a read-modify-write of a line that other processors have, which is as
//! much as locking another object. So a thread takes stamps from the counter in blocks, and gives out of its own. A thread that has
//! been idle may then pass for older than it is, for as many tickets as a block holds and no longer: of the stamps older than a given
//! one there is a fixed number, each good for one ticket, and that is all that fairness needs.
//!
//! In a model each stamp is drawn from the counter, which begins anew with each execution.

use super::atomic::{AtomicU64, Ordering};
use super::process_wide;

process_wide! {
    const static DRAWN: AtomicU64 = AtomicU64::new(0)
}

/// How many stamps a thread takes at a time.
#[cfg(not(any(loom, shuttle)))]
const BLOCK: u64 = 16;

/// A stamp that nobody has had, later than all that this thread has drawn.
#[cfg(not(any(loom, shuttle)))]
#[inline]
pub(crate) fn fresh_stamp() -> u64 {
    use std::cell::Cell;
    thread_local! {
        static NEXT: Cell<u64> = const { Cell::new(0) };
    }
    NEXT.with(|next| {
        let stamp = next.get();
        let stamp = if stamp % BLOCK == 0 { fresh_block() } else { stamp };
        next.set(stamp + 1);
        stamp
    })
}

/// The first stamp of a block; a multiple of the block's size, plus one, as nobody has stamp 0 and the next block begins where
/// the remainder is 0.
#[cfg(not(any(loom, shuttle)))]
#[cold]
fn fresh_block() -> u64 {
    DRAWN.fetch_add(1, Ordering::Relaxed) * BLOCK + 1
}

/// A stamp that nobody has had in this execution.
#[cfg(any(loom, shuttle))]
pub(crate) fn fresh_stamp() -> u64 {
    DRAWN.fetch_add(1, Ordering::Relaxed) + 1
}
