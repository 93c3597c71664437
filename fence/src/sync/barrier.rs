//! Full barriers: what orders a store before a later load of another place.
//!
//! Two sides that each announce something and then look whether the other has ("I let go, does anybody wait?" against
//! "I wait, has it been let go?") need one on either side, or both may look too early and miss each other. They are
//! a large part of what an uncontended lock costs, so they are as cheap here as the machine allows:
//!
//! * [`full_fence`] on x86-64 is a locked no-op on the top of the stack, as in the kernel's `smp_mb()`: about half the price
//!   of the `mfence` that `fence(SeqCst)` becomes.
//! * [`fence_after_rmw`] stands after a read-modify-write, which on x86-64 is a full barrier itself; there it only binds
//!   the compiler (`smp_mb__after_atomic()`).
//!
//! Models and other machines use `fence(SeqCst)` for both.

#[cfg(any(loom, shuttle, miri, not(target_arch = "x86_64")))]
use super::atomic::{Ordering, fence};

/// Orders every access before it before every access after it.
#[inline(always)]
pub(crate) fn full_fence() {
    #[cfg(all(target_arch = "x86_64", not(any(loom, shuttle, miri))))]
    // SAFETY: or-ing nothing into the word on top of the stack changes neither memory nor stack pointer; the
    // processor's flags are declared clobbered by default.
    unsafe {
        std::arch::asm!("lock or dword ptr [rsp], 0", options(nostack));
    }
    #[cfg(any(loom, shuttle, miri, not(target_arch = "x86_64")))]
    fence(Ordering::SeqCst);
}

/// As [`full_fence`], right after an atomic read-modify-write by the same thread.
#[inline(always)]
pub(crate) fn fence_after_rmw() {
    #[cfg(all(target_arch = "x86_64", not(any(loom, shuttle, miri))))]
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
    #[cfg(any(loom, shuttle, miri, not(target_arch = "x86_64")))]
    fence(Ordering::SeqCst);
}
