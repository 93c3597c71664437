//! Callbacks on several fences that are taken back together.

use crate::fence::{Callback, Fence};
#[cfg(not(any(loom, shuttle)))]
use crate::fence_set::FenceSet;
use crate::sync::mutant;

/// Callbacks on several fences. Dropping it takes back those that have not run.
pub(crate) struct Hung(Vec<Callback>);

impl Hung {
    /// Hangs a callback on each of `fences`; nothing, and none is left hanging, if one of them has signalled.
    pub(crate) fn on_each<F: FnOnce() + Send + 'static>(
        fences: &[Fence],
        callback: impl Fn() -> F,
    ) -> Option<Hung> {
        let mut hung = Hung(Vec::with_capacity(fences.len()));
        for fence in fences {
            let callback = callback();
            hung.0.push(fence.on_signal(move |_| callback()).ok()?);
            if mutant!("any_listens_to_one_alone") {
                break;
            }
        }
        Some(hung)
    }

    /// Hangs `callback` on the last of `fences`; calls it here if all have signalled.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn on_last(fences: &FenceSet, callback: impl FnOnce() + Send + 'static) -> Hung {
        let mut hung = Hung(Vec::with_capacity(fences.len()));
        if let Some(callback) = fences.count_down(callback, |callback| hung.0.push(callback)) {
            callback();
        }
        hung
    }

    /// Lets the callbacks run when their time comes.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn leave(mut self) {
        self.0.clear();
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        for callback in self.0.drain(..) {
            callback.cancel();
        }
    }
}
