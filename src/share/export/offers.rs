//! What the machine that runs offers: nodes, heaps, udmabuf, fences that a program signals, and what keeps this process from using them.

use crate::backend::drm::{DrmNode, NodeKind, VgemNode};
use crate::backend::{Abilities, HeapFound, NodeFound, heaps};
use crate::error::Error;
use crate::share::{Via, WhyNot};
use crate::uapi;

/// What dma-bufs and fences of the kernel can be made with here, and now. The kernel's modules come and go.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Offers {
    /// The DRM nodes below `/dev/dri`, primary ones first; or why they cannot be looked for.
    pub nodes: Result<Vec<NodeFound>, WhyNot>,
    /// The dma-heaps, by name.
    pub heaps: Vec<HeapFound>,
    /// Who can make dma-bufs of buffers, in the order in which [`Via::Auto`] asks them: what each can do, or why it cannot be used.
    pub exporters: Vec<(Via, Result<Abilities, WhyNot>)>,
    /// Kernel fences that a program signals by a timeline of sw_sync's.
    pub sw_sync: Result<(), WhyNot>,
    /// Kernel fences that a program signals through vgem; they expire after ten seconds.
    pub vgem_fences: Result<(), WhyNot>,
}

impl Offers {
    /// Looks at the machine that runs. Opens every device that there is, and closes it again.
    pub fn of_this_machine() -> Offers {
        let exporters = super::policy::ORDER.into_iter().map(|via| {
            let can = super::policy::open(&via).map(|exporter| exporter.abilities());
            (via, can)
        });
        Offers {
            nodes: DrmNode::all().map_err(WhyNot::of),
            heaps: heaps(),
            exporters: exporters.collect(),
            sw_sync: sw_sync(),
            // The node that makes the buffers that they hang on.
            vgem_fences: VgemNode::open(NodeKind::Primary).map(drop).map_err(WhyNot::of),
        }
    }
}

fn sw_sync() -> Result<(), WhyNot> {
    let path = uapi::sw_sync::PATH;
    match std::fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(WhyNot::NotHere { what: format!("there is no {path}").into() })
        }
        Err(error) => {
            let errno = rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO);
            Err(WhyNot::of(Error::of_path("open sw_sync", path, errno)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_that_auto_takes_is_told_with_what_it_can_or_why_not() {
        let offers = Offers::of_this_machine();
        let ways: Vec<&Via> = offers.exporters.iter().map(|(via, _)| via).collect();
        assert_eq!(ways, [&Via::Udmabuf, &Via::DmaHeap, &Via::Vgem, &Via::VirtioGpu]);
        for (via, can) in &offers.exporters {
            match can {
                Ok(abilities) => assert!(abilities.max_bytes > 0, "{via} takes nothing"),
                Err(why) => assert!(!why.to_string().is_empty(), "{via} says nothing"),
            }
        }
    }
}
