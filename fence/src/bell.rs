//! A bell: how one thread is told to look again.

use crate::sync::{Arc, Condvar, Mutex};

/// Rings stay until they are heard, so a ring between a look and a wait is not lost.
#[derive(Default)]
pub(crate) struct Bell {
    rung: Mutex<bool>,
    wake: Condvar,
}

impl Bell {
    pub(crate) fn new() -> Arc<Bell> {
        Arc::default()
    }

    /// Wakes whoever waits, or lets the next wait return at once.
    pub(crate) fn ring(&self) {
        *self.rung.lock() = true;
        self.wake.notify_one();
    }

    /// Sleeps until the bell is rung.
    pub(crate) fn wait(&self) {
        let mut rung = self.rung.lock();
        while !std::mem::take(&mut *rung) {
            rung = self.wake.wait(rung);
        }
    }
}
