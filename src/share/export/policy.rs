//! Who is asked to make a dma-buf, and in which order.
//!
//! | | why there |
//! |---|---|
//! | udmabuf | nothing is copied, and the buffer stays in the budget that it is in |
//! | dma-heap | ordinary pages, mapped at once; made for this |
//! | vgem | the same pages, mapped one by one when they are touched; the only one without a screen that can be read-only |
//! | virtio-gpu | every buffer of it has a twin on the host |
//!
//! An image is nothing that `Auto` can guess, so libgbm is asked only by name.

use std::sync::Arc;

use super::via::{Via, WhyNot};
#[cfg(feature = "gbm")]
use crate::backend::drm::Gbm;
use crate::backend::drm::{Vgem, VirtioGpu};
use crate::backend::exporter::Exporter;
use crate::backend::{SystemHeap, Udmabuf};

/// Whom [`Via::Auto`] asks, in this order.
pub(super) const ORDER: [Via; 4] = [Via::Udmabuf, Via::DmaHeap, Via::Vgem, Via::VirtioGpu];

/// Whom a request asks.
pub(super) fn candidates(via: &Via) -> Vec<Via> {
    match via {
        Via::Auto => ORDER.to_vec(),
        via => vec![via.clone()],
    }
}

/// Opens what stands behind a way.
///
/// # Errors
/// Why it cannot be used.
pub(super) fn open(via: &Via) -> Result<Arc<dyn Exporter>, WhyNot> {
    Ok(match via {
        Via::Auto => unreachable!("it stands for others, which are asked in its place"),
        Via::Udmabuf => Arc::new(Udmabuf::open()?),
        Via::DmaHeap => Arc::new(SystemHeap::open()?),
        Via::Vgem => Arc::new(Vgem::open()?),
        Via::VirtioGpu => Arc::new(VirtioGpu::open()?),
        #[cfg(feature = "gbm")]
        Via::Gbm(image) => Arc::new(Gbm::open(image)?),
        Via::Imported => return Err(WhyNot::NotHere { what: "the buffer was not imported".into() }),
    })
}
