//! The declared order, taken once at start-up.
//!
//! The kernel does it at boot (`dma_resv_lockdep`): whatever test runs first then meets an order that somebody has
//! already taken, and an inversion needs one thread and no luck. Here it is also the order's own test, since each step
//! goes through the checks that every lock goes through: a level that is declared on the wrong side of the fences fails in
//! the first debug build and not in the first deadlock.

use std::sync::Once;

use super::super::ALONE;
use super::{acquire, begin_section, may_signal, may_wait, might_evict, stack};
use crate::levels::{Level, ORDER, Region};

static PRIMED: Once = Once::new();

pub(crate) fn prime() {
    PRIMED.call_once(|| stack::aside(take_the_whole_order));
}

fn take_the_whole_order() {
    let mut records = Vec::with_capacity(ORDER.len());
    for (rank, level) in (0u8..).zip(ORDER).skip(1) {
        if rank == Region::RANK {
            might_evict();
            may_wait();
            records.push(begin_section());
            may_signal();
        }
        records.push(acquire(rank, level, ALONE));
    }
}
