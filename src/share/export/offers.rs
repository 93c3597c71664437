//! What the machine that runs offers: nodes, heaps, udmabuf, fences that a program signals, and what keeps this process from using them.

use rustix::io::Errno;

use crate::backend::drm::{DrmNode, NodeKind, VgemNode};
use crate::backend::{Abilities, HeapFound, NodeFound, heaps};
use crate::error::Error;
use crate::share::{Via, WhyNot};
use crate::sync_file::open_timeline;
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
    open_timeline().map(drop).map_err(|error| match error {
        Error::Io { errno, .. } if errno == Errno::NOENT.raw_os_error() => {
            WhyNot::NotHere { what: format!("there is no {}", uapi::sw_sync::PATH).into() }
        }
        error => WhyNot::of(error),
    })
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
