//! The end of a device that is gone: unplugged, or beyond reset.
//!
//! ```text
//!   declare_lost ──► flag ──► every mapping shows its loss, sleepers wake
//!                     └─────► whatever is asked for later: Error::DeviceLost
//! ```
//!
//! The flag comes before the mappings are told, and a new mapping looks at the flag after it can be found: none is missed.

use devpagemap_fence::Held;
use devpagemap_fence::sync::atomic::Ordering;

use crate::error::{Error, Result};
use crate::manager::Manager;

impl Manager {
    pub(crate) fn declare_lost(&self) {
        self.lost.store(true, Ordering::SeqCst);
        for mapping in self.faults.all() {
            mapping.lose(&mut Held::enter());
        }
    }

    /// # Errors
    /// [`Error::DeviceLost`].
    pub(crate) fn check_present(&self) -> Result<()> {
        match self.lost.load(Ordering::SeqCst) {
            true => Err(Error::DeviceLost),
            false => Ok(()),
        }
    }
}
