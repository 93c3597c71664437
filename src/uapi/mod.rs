//! What the kernel's headers say and no crate does: structures, numbers, and the calls made with them.

pub(crate) mod userfaultfd;
