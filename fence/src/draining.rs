//! Running callbacks flat: a callback that signals another timeline does not run that one's callbacks inside itself.
//!
//! Callbacks that signal, whose callbacks signal, would nest as deep as the chain of dependencies is long, and a chain
//! has no bound: a million jobs queued behind each other are a million stack frames when the first one completes. So
//! each thread keeps a queue of timelines whose callbacks are due. The outermost signal works it off; a signal from
//! inside a callback adds to it and returns.
//!
//! ```text
//!   signal(a) ─▶ callbacks of a ─▶ callbacks of b ─▶ callbacks of c      one after the other, one frame deep
//!                      │  ▲               │  ▲
//!            signal(b) └──┘     signal(c) └──┘  queued behind
//! ```
//!
//! Nothing else changes: sleepers are woken by their signaller at once, and the callbacks of one timeline run in
//! order. The lock order makes the delay harmless. Whoever holds a lock that a callback may take does not wait for
//! fences, so the callback that is running cannot wait for one that is queued behind it.

use std::cell::RefCell;
use std::collections::VecDeque;

use crate::fence::{InsideCallback, in_callback};
use crate::lockdep;
use crate::place::Place;
use crate::sync::{Stable, mutant};

crate::sync::thread_local! {
    static DUE: RefCell<VecDeque<Stable<Place>>> = RefCell::default();
}

/// Runs the callbacks that are due on `place` in this thread: now, or after the one that is running.
///
/// The caller has claimed the place: until its queue is found empty nobody else runs its callbacks.
#[track_caller]
pub(crate) fn run_callbacks(place: Stable<Place>) {
    if in_callback() && DUE.try_with(|due| due.borrow_mut().push_back(place.clone())).is_ok() {
        return;
    }
    let mut drainer = Drainer { current: Some(place) };
    drainer.drain();
    std::mem::forget(drainer);
}

/// Runs due callbacks until there are none, also when one of them panics: then its drop goes on.
struct Drainer {
    current: Option<Stable<Place>>, // this thread's
}

impl Drainer {
    #[track_caller]
    fn drain(&mut self) {
        let _scope = lockdep::Callback::begin();
        let _inside = InsideCallback::enter();
        while let Some(place) = &self.current {
            while let Some((callback, outcome)) = place.next_due() {
                callback(outcome);
            }
            if mutant!("queued_behind_and_forgotten") {
                break;
            }
            // A thread's locals may be gone while it ends; then nothing can have been queued behind.
            self.current = DUE.try_with(|due| due.borrow_mut().pop_front()).ok().flatten();
        }
    }
}

impl Drop for Drainer {
    fn drop(&mut self) {
        self.drain();
    }
}
