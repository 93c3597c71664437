//! A place from which everybody reads the latest version of something, without a lock.
//!
//! One writer at a time (the caller sees to that) replaces the version; readers get the one that is current, and may keep it
//! as long as they like. Under a model it is a mutex: what is modelled is who sees which version, not how the pointer is
//! protected, which is the business of `arc_swap`.

use std::fmt;
use std::ops::Deref;

use super::Arc;

#[cfg(any(loom, shuttle))]
use super::Mutex;

/// The latest version of a `T`, if there has been one.
pub struct Published<T> {
    #[cfg(not(any(loom, shuttle)))]
    current: arc_swap::ArcSwapOption<T>,
    #[cfg(any(loom, shuttle))]
    current: Mutex<Option<Arc<T>>>,
}

impl<T> Published<T> {
    /// Nothing yet.
    pub fn none() -> Published<T> {
        #[cfg(not(any(loom, shuttle)))]
        return Published { current: arc_swap::ArcSwapOption::const_empty() };
        #[cfg(any(loom, shuttle))]
        return Published { current: Mutex::new(None) };
    }

    /// The current version. Lock-free; keeps that version alive as long as it is borrowed.
    #[inline]
    pub fn read(&self) -> impl Deref<Target = Option<Arc<T>>> {
        #[cfg(not(any(loom, shuttle)))]
        return self.current.load();
        #[cfg(any(loom, shuttle))]
        return Box::new(self.current.lock().clone());
    }

    /// Makes `version` the current one, and returns the one before.
    pub fn replace(&self, version: Arc<T>) -> Option<Arc<T>> {
        #[cfg(not(any(loom, shuttle)))]
        return self.current.swap(Some(version));
        #[cfg(any(loom, shuttle))]
        return self.current.lock().replace(version);
    }
}

impl<T> fmt::Debug for Published<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Published { .. }")
    }
}
