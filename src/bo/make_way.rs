//! Buffers of one submission making way for each other.
//!
//! A buffer that may be anywhere in VRAM can sit where another of the same submission has to be: in the part that the CPU sees, or in
//! the middle of the only contiguous bytes. It is no victim, because the submission needs it in VRAM; but it may just as well be
//! elsewhere in VRAM.

use std::collections::HashSet;
use std::ops::Range;

use devpagemap_fence::Slot;

use super::plan::choose_window;
use super::validate::{FENCES_PER_BUFFER, Pass, Transaction};
use super::{BufferObject, EvictionPolicy, Place};
use crate::error::{Error, Result};
use crate::region::{RegionKind, VramRegion, bytes_within};

impl Transaction<'_, '_, '_> {
    /// Moves members out of the bytes in which `buffer` could be at `place`, as far as their own placement lets them be
    /// elsewhere in VRAM. Says whether one moved.
    pub(super) fn make_way(&mut self, buffer: &BufferObject, place: &Place) -> Result<bool> {
        let Some(range) = self.range_to_clear(buffer, place) else { return Ok(false) };
        let reason = self.making_visible(place);
        let mut moved = false;
        for slot in self.members.clone() {
            let member = self.exec.set().arc(slot);
            if member.id() == buffer.id() || !self.overlaps_vram(slot, &range) {
                continue;
            }
            self.reserve_fences(slot, FENCES_PER_BUFFER)?;
            for place in places_outside(&self.manager.vram, &member, &range) {
                match self.find(slot, &member, &place, Pass::Evicting) {
                    Ok(Some(found)) => {
                        self.moving_for(reason, |transaction| transaction.move_to(slot, &member, found));
                        moved = true;
                        break;
                    }
                    Err(Error::Contended) => return Err(Error::Contended),
                    // It stays where it is, and is one of the reasons why the other does not get its place.
                    Ok(None) | Err(_) => {}
                }
            }
        }
        Ok(moved)
    }

    /// What `place` allows; for contiguous bytes the cheapest window, whoever is in it.
    fn range_to_clear(&mut self, buffer: &BufferObject, place: &Place) -> Option<Range<u64>> {
        let vram = &self.manager.vram;
        let range = vram.range_of(place);
        if !place.contiguous {
            return Some(range);
        }
        let (_, mut held) = self.exec.split();
        let state = vram.state.lock(&mut held);
        let (len_bytes, itself) = (buffer.footprint_bytes, HashSet::from([buffer.id()]));
        choose_window(&state, len_bytes, &range, &itself, EvictionPolicy::LruSet).map(|(window, _)| window)
    }

    fn overlaps_vram(&self, slot: Slot, range: &Range<u64>) -> bool {
        self.resource(slot).is_some_and(|resource| {
            resource.region == RegionKind::Vram && bytes_within(&resource.spans, range) > 0
        })
    }
}

/// Where in VRAM `member` may be without a byte in `range`, best first.
pub(super) fn places_outside(vram: &VramRegion, member: &BufferObject, range: &Range<u64>) -> Vec<Place> {
    let in_vram = member.placement().places().iter().filter(|place| place.region() == RegionKind::Vram);
    let outside = in_vram.flat_map(|place| {
        let allowed = vram.range_of(place);
        let above = range.end.max(allowed.start)..allowed.end;
        let below = allowed.start..range.start.min(allowed.end);
        [above, below].map(|part| (place, part))
    });
    let fits = outside.filter(|(_, part)| part.end.saturating_sub(part.start) >= member.footprint_bytes);
    fits.map(|(place, part)| place.clone().within(part)).collect()
}
