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
    PRIMED.call_once(|| stack::aside(|| take((0..ORDER.len() as u8).skip(1), Region::RANK)));
}

/// Takes levels in this order. Just before one of them everything is done that has to do with fences.
fn take(ranks: impl Iterator<Item = u8>, fences_before: u8) {
    let mut records = Vec::with_capacity(ORDER.len());
    for rank in ranks {
        if rank == fences_before {
            might_evict();
            may_wait();
            records.push(begin_section());
            may_signal();
        }
        records.push(acquire(rank, ORDER[usize::from(rank)], ALONE));
    }
}

#[cfg(test)]
mod tests {
    use super::super::classes::{ClassId, Position};
    use super::super::graph::GRAPH;
    use super::*;
    use crate::levels::{Aperture, Device, MoveQueue, Tickets, Timeline};
    use std::panic::catch_unwind;

    fn class_of<L: Level>() -> ClassId {
        GRAPH.classes.id(L::NAME, Position::Level(L::RANK)).unwrap()
    }

    fn is_refused(ranks: &[u8], fences_before: u8) -> bool {
        let ranks = ranks.to_vec();
        catch_unwind(|| stack::aside(|| take(ranks.into_iter(), fences_before))).is_err()
    }

    #[test]
    fn after_priming_the_whole_order_and_the_place_of_fences_are_on_record() {
        prime();
        for (outer, inner) in [
            (class_of::<Device>(), class_of::<Timeline>()),
            (class_of::<Tickets>(), class_of::<Region>()),
            (class_of::<Tickets>(), ClassId::FENCE),
            (class_of::<Tickets>(), ClassId::EVICTION),
            (ClassId::FENCE, class_of::<Region>()),
            (ClassId::FENCE, class_of::<MoveQueue>()),
        ] {
            assert!(GRAPH.knows(outer, inner) && GRAPH.chain(outer, inner).is_some());
            assert!(!GRAPH.knows(inner, outer));
        }
    }

    #[test]
    fn an_order_that_contradicts_the_rules_fails_when_it_is_primed() {
        let right = [Device::RANK, Tickets::RANK, Region::RANK, Aperture::RANK];
        assert!(!is_refused(&right, Region::RANK));
        assert!(
            is_refused(&[Device::RANK, Region::RANK, Tickets::RANK], MoveQueue::RANK),
            "levels exchanged"
        );
        assert!(is_refused(&right, Aperture::RANK), "a region would be held while waiting");
        assert!(is_refused(&right, Tickets::RANK), "reservations would be taken while signalling");
    }
}
