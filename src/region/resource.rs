//! The piece of a region that holds a buffer's bytes now.

use std::ops::Range;
use std::sync::Arc;

use devpagemap_allocator::Span;
use devpagemap_migrate::{Addr, Extent, ExtentList, SysAddr, VramAddr};

use super::{NodeKey, RegionKind, bytes_of, total_bytes};
use crate::backend::OutsidePages;

/// Memory that one buffer owns in one region. It must be handed back to its region; the owner is the buffer's state,
/// under its reservation.
#[derive(Debug)]
pub(crate) struct Resource {
    /// Which region it belongs to. Changes only between GTT and System, which share their pages.
    pub(crate) region: RegionKind,
    /// In address order. Constant.
    pub(crate) spans: Vec<Span>,
    /// The same bytes as addresses that engines understand. Constant.
    pub(crate) extents: ExtentList,
    /// Its place in the region's LRU; `None` in System, which nobody is evicted from. The reservation.
    pub(crate) node: Option<NodeKey>,
    /// The pages, if they are not the arena's: they are on no heap and no LRU, and part of no budget of GTT. Constant.
    pub(crate) outside: Option<Arc<OutsidePages>>,
}

impl Resource {
    pub(crate) fn new(region: RegionKind, spans: Vec<Span>, node: Option<NodeKey>) -> Resource {
        let mut extents = ExtentList::new();
        for span in &spans {
            let addr = match region {
                RegionKind::Vram => Addr::Vram(VramAddr(span.start_bytes)),
                RegionKind::Gtt | RegionKind::System => Addr::System(SysAddr(span.start_bytes)),
            };
            extents.push(Extent { addr, len_bytes: span.len_bytes });
        }
        Resource { region, spans, extents, node, outside: None }
    }

    /// The first `len_bytes` of outside pages, which the GPU reaches as it does GTT.
    pub(crate) fn in_outside(pages: &Arc<OutsidePages>, len_bytes: u64) -> Resource {
        debug_assert!(len_bytes <= pages.len_bytes(), "{len_bytes} bytes are not in {pages:?}");
        let span = Span { start_bytes: pages.at().0, len_bytes };
        let outside = Some(pages.clone());
        Resource { outside, ..Resource::new(RegionKind::Gtt, vec![span], None) }
    }

    /// Whether its bytes are in system memory that is not the arena's.
    pub(crate) fn is_outside(&self) -> bool {
        self.outside.is_some()
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        total_bytes(&self.spans)
    }

    /// The end of its highest piece.
    pub(crate) fn end_bytes(&self) -> u64 {
        self.spans.last().map_or(0, Span::end_bytes)
    }

    /// Whether all of these `pages` of the buffer lie within the first `visible_bytes` of VRAM, or in system memory.
    pub(crate) fn shows_pages(&self, pages: &Range<u64>, visible_bytes: u64) -> bool {
        let bytes = bytes_of(pages);
        let wanted = self.extents.slice(bytes.start, bytes.end - bytes.start);
        self.region != RegionKind::Vram
            || wanted.iter().all(|extent| extent.addr.offset() + extent.len_bytes <= visible_bytes)
    }

    /// Whether all of it lies within the first `visible_bytes` of VRAM, or in system memory.
    pub(crate) fn is_cpu_visible(&self, visible_bytes: u64) -> bool {
        self.region != RegionKind::Vram || self.end_bytes() <= visible_bytes
    }
}
