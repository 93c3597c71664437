//! Memory that is never given back, so that whoever points into it needs no reference count.
//!
//! A [`Stable`] is a pointer to a value that lives as long as the process. Copying one is a plain copy, and there is
//! nothing to do when one goes away. Whoever makes them must therefore use them again: the number of values is that
//! of a peak, and must not grow with time. (The kernel's cousin is a slab with `SLAB_TYPESAFE_BY_RCU`: the memory may
//! change its user, never its type.)
//!
//! In a model nothing may outlive an execution. There it is a counted reference, which is all that differs.

use std::ops::Deref;

/// A value that stays where it is for good.
pub(crate) struct Stable<T: 'static>(
    #[cfg(not(any(loom, shuttle)))] &'static T,
    #[cfg(any(loom, shuttle))] super::Arc<T>,
);

impl<T> Stable<T> {
    /// Puts `value` into memory that is never given back.
    pub(crate) fn new(value: T) -> Stable<T> {
        #[cfg(not(any(loom, shuttle)))]
        return Stable(Box::leak(Box::new(value)));
        #[cfg(any(loom, shuttle))]
        return Stable(super::Arc::new(value));
    }
}

impl<T> Clone for Stable<T> {
    #[inline]
    fn clone(&self) -> Self {
        #[cfg(not(any(loom, shuttle)))]
        return Stable(self.0);
        #[cfg(any(loom, shuttle))]
        return Stable(self.0.clone());
    }
}

impl<T> Deref for Stable<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        #[cfg(not(any(loom, shuttle)))]
        return self.0;
        #[cfg(any(loom, shuttle))]
        return &self.0;
    }
}
