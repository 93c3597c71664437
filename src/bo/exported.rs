//! What exports are to buffers: they stay where somebody outside has them, and memory that nobody has any more is found when it is needed.

use devpagemap_fence::{Held, Slot, levels};

use super::validate::Transaction;
use crate::error::{Error, Result};
use crate::manager::Manager;
use crate::region::{RegionKind, SystemState, Taken};

impl Manager {
    /// Pages of the arena for one buffer, counted nowhere yet; `with` counts them under the same hold of the region lock. When there are too
    /// few, exported buffers that nobody has any more are let go of first.
    ///
    /// # Errors
    /// [`Error::Exhausted`], [`Error::TooLarge`].
    pub(crate) fn take_pages<O>(
        &self,
        len_bytes: u64,
        held: &mut Held<'_, levels::Tickets>,
        with: impl Fn(&mut SystemState, Taken) -> O,
    ) -> Result<O> {
        let departures = self.export_departures();
        match self.system.take(len_bytes, held, &with) {
            Err(Error::Exhausted { .. }) if self.let_go_of_exports(departures) => {
                self.system.take(len_bytes, held, &with)
            }
            taken => taken,
        }
    }

    /// How often an exported buffer was let go of so far.
    #[cfg(not(any(loom, shuttle)))]
    pub(super) fn export_departures(&self) -> usize {
        self.exports.departures()
    }

    /// Lets go of exported buffers that nobody outside has any more; says whether any were since there were so many `departures`.
    #[cfg(not(any(loom, shuttle)))]
    pub(super) fn let_go_of_exports(&self, departures: usize) -> bool {
        self.exports.let_go_since(departures, self.weak())
    }

    /// A model has no kernel, and so exports nothing.
    #[cfg(any(loom, shuttle))]
    pub(super) fn export_departures(&self) -> usize {
        0
    }

    /// As above.
    #[cfg(any(loom, shuttle))]
    pub(super) fn let_go_of_exports(&self, _departures: usize) -> bool {
        false
    }
}

impl Transaction<'_, '_, '_> {
    /// Whether a job uses a buffer where it is, wherever it may be: it is in system memory, the GPU reaches it, and somebody outside
    /// holds it there.
    pub(super) fn stays_for_outsiders(&self, slot: Slot) -> bool {
        let (state, object) = (self.exec.set().state(slot), self.exec.set().object(slot));
        self.stays_outside(slot) || state.region() == Some(RegionKind::Gtt) && object.is_exported()
    }
}
