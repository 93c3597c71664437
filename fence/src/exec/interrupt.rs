//! Interrupts: how somebody else makes an [`Exec`](crate::Exec) stop waiting.

use std::fmt;

use crate::sync::{Arc, Bell, Mutex, mutant};

#[derive(Default)]
struct State {
    raised: bool,
    bells: Vec<Arc<Bell>>,
}

/// Raised once, by anybody, it ends every wait of the Execs that were made with it. The kernel's cousin is a signal to a thread
/// that sleeps interruptibly: a Ctrl-C handler's or a closing client's way to get its threads back.
///
/// Clones are the same interrupt.
#[derive(Clone, Default)]
pub struct Interrupt {
    state: Arc<Mutex<State>>,
}

impl Interrupt {
    /// One that has not been raised.
    pub fn new() -> Interrupt {
        Interrupt::default()
    }

    /// Ends all waits, and lets no new one begin.
    pub fn raise(&self) {
        let bells = {
            let mut state = self.state.lock();
            state.raised = true;
            std::mem::take(&mut state.bells)
        };
        if !mutant!("raise_rings_nobody") {
            bells.iter().for_each(|bell| bell.ring());
        }
    }

    /// Takes it back, for the next use.
    pub fn reset(&self) {
        self.state.lock().raised = false;
    }

    /// Whether it has been raised.
    pub fn is_raised(&self) -> bool {
        self.state.lock().raised
    }

    /// Rings `bell` when raised, until the listener is dropped; at once if it is raised already.
    pub(crate) fn listen(&self, bell: &Arc<Bell>) -> Listener<'_> {
        let mut state = self.state.lock();
        if state.raised {
            drop(state);
            bell.ring();
        } else {
            state.bells.push(bell.clone());
        }
        Listener { interrupt: self, bell: bell.clone() }
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Interrupt({})", if self.is_raised() { "raised" } else { "not raised" })
    }
}

/// A bell that an interrupt rings.
pub(crate) struct Listener<'i> {
    interrupt: &'i Interrupt,
    bell: Arc<Bell>,
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        self.interrupt.state.lock().bells.retain(|bell| !Arc::ptr_eq(bell, &self.bell));
    }
}
