//! Where timelines live: places that are made once, never freed, and used by one owner after another.
//!
//! A fence is a pointer and a number. That it needs no reference count, and that copying it is a plain copy, comes from two
//! promises:
//!
//! * the memory it points to is always a [`Place`] (`sync/stable.rs`);
//! * the points of a place only go up. An owner who leaves has all its points complete, and the next one counts on from
//!   there. So the fence of a former owner reads as signalled for ever, by the same load and compare as any other.
//!
//! ```text
//!   one place:   │ owner 17: points 18 19 20 │ owner 42: points 43 44 ...
//!                base 17                     base 42
//! ```
//!
//! **Numbers.** Users see points that begin with 1. The owner's `base` is what lies before its first point. Bases are drawn
//! in ascending order for the whole process, never below what the place has counted to; that makes a base the name of an
//! owner ([`TimelineId`](crate::TimelineId)), unique and ordered by age. Places have 63 bits to count in, enough for a
//! billion points a second for 290 years.
//!
//! **When a place is vacant.** Not before its owner has left, all points are complete, nobody is queued and no thread runs
//! its callbacks: the next owner's callbacks shall not wait for a former owner's. Who finds that out last (`Place::vacate`,
//! under the place's lock) gives the place back, once. Vacant places are taken in the order in which they came, so that
//! errors and names of former owners can be asked for as long as possible.
//!
//! **Memory.** There are as many places as there were ever timelines at once. Each has room for the failures that it
//! remembers (`failures.rs`), and nothing else that grows.

use std::collections::VecDeque;

use crate::place::{Place, Tenant};
use crate::sync::{Mutex, Stable, mutant, process_wide};

/// All places. Its lock is held for a few instructions, under the lock of no place, and takes nothing.
#[derive(Default)]
struct Places {
    vacant: VecDeque<Stable<Place>>, // the longest vacant first
    newest: u64,                     // the last base drawn
    made: usize,
}

process_wide! {
    static PLACES: Mutex<Places> = Mutex::new(Places::default())
}

/// A place for a new owner, and the owner's base.
pub(crate) fn take(tenant: impl FnOnce(u64) -> Tenant) -> (Stable<Place>, u64) {
    let mut places = PLACES.lock();
    let vacant = places.vacant.pop_front();
    let mut counted_to = vacant.as_ref().map_or(0, |place| place.allocated());
    if mutant!("former_points_are_counted_again") {
        counted_to = counted_to.min(places.newest);
    }
    let base = places.newest.max(counted_to) + 1;
    places.newest = base;
    places.made += usize::from(vacant.is_none());
    drop(places);
    let tenant = tenant(base);
    let place = match vacant {
        Some(place) => {
            place.move_in(tenant);
            place
        }
        None => Stable::new(Place::new(tenant)),
    };
    (place, base)
}

/// Takes a place back that is vacant.
pub(crate) fn give_back(place: Stable<Place>) {
    PLACES.lock().vacant.push_back(place);
}

/// How many places there are, vacant or not.
pub(crate) fn count() -> usize {
    PLACES.lock().made
}
