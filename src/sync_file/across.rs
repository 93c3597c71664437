//! One dma-buf whose reservation object in the kernel hears of a buffer's fences, and whose fences the buffer hears of.

use std::sync::Arc;

use super::kernel::ReservationObject;
#[cfg(not(any(loom, shuttle)))]
use crate::backend::DmaBuf;
use crate::manager::Manager;

/// A buffer's way to the reservation object of its dma-buf. It is part of the buffer's state as long as others may have the dma-buf.
#[derive(Debug)]
pub(crate) struct Across {
    /// Constant.
    theirs: Arc<dyn ReservationObject>,
}

impl Across {
    /// Between buffers of this device and a dma-buf.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn new(dma_buf: Arc<DmaBuf>, manager: &Manager) -> Arc<Across> {
        Across::over(Arc::new(super::dma_buf::DmaBufFences::new(dma_buf)), manager)
    }

    /// The same with any reservation object.
    pub(crate) fn over(theirs: Arc<dyn ReservationObject>, _manager: &Manager) -> Arc<Across> {
        Arc::new(Across { theirs })
    }

    /// Names the reservation object.
    pub(crate) fn key(&self) -> u64 {
        self.theirs.key()
    }
}
