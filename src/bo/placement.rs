//! Where a buffer may live: places in order of preference, with the flags of `ttm_place`.

use std::ops::Range;

use devpagemap_allocator::PAGE_BYTES;

use crate::aperture::Bar;
use crate::error::{Error, Result};
use crate::region::RegionKind;

/// One place a buffer may live in. A region, optionally a part of it, and flags.
///
/// ```
/// use devpagemap::Place;
/// let scanout = Place::VRAM.visible().contiguous();
/// assert_ne!(scanout, Place::VRAM);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which region. Constant.
    pub(crate) region: RegionKind,
    /// Byte range of the region; `None` is all of it. Constant.
    pub(crate) range: Option<Range<u64>>,
    /// One piece rather than several. Constant.
    pub(crate) contiguous: bool,
    /// From the top of the range. Constant.
    pub(crate) top_down: bool,
    /// Only where it costs no eviction. Constant.
    pub(crate) desired: bool,
    /// Only when nothing could be had without eviction. Constant.
    pub(crate) fallback: bool,
    /// Within the part of VRAM that the CPU sees. Constant.
    pub(crate) cpu_visible: bool,
}

impl Place {
    /// Anywhere in VRAM; the part that the CPU cannot see is used first.
    pub const VRAM: Place = Place::anywhere(RegionKind::Vram);
    /// System memory that the GPU can reach.
    pub const GTT: Place = Place::anywhere(RegionKind::Gtt);
    /// System memory that the GPU cannot reach: where evicted buffers wait.
    pub const SYSTEM: Place = Place::anywhere(RegionKind::System);

    const fn anywhere(region: RegionKind) -> Place {
        Place {
            region,
            range: None,
            contiguous: false,
            top_down: false,
            desired: false,
            fallback: false,
            cpu_visible: false,
        }
    }

    /// The region of this place.
    pub fn region(&self) -> RegionKind {
        self.region
    }

    /// Within the visible prefix of VRAM (`CPU_VISIBLE`). No effect elsewhere: the CPU sees all system memory.
    pub fn visible(self) -> Place {
        Place { cpu_visible: true, ..self }
    }

    /// In one piece (`CONTIGUOUS`).
    pub fn contiguous(self) -> Place {
        Place { contiguous: true, ..self }
    }

    /// From the top of the range (`TOPDOWN`).
    pub fn top_down(self) -> Place {
        Place { top_down: true, ..self }
    }

    /// Only if it can be had without evicting anybody (`DESIRED`).
    pub fn desired(self) -> Place {
        Place { desired: true, ..self }
    }

    /// Only after no other place could be had without evicting somebody (`FALLBACK`).
    pub fn fallback(self) -> Place {
        Place { fallback: true, ..self }
    }

    /// Only within these bytes of the region, page aligned.
    pub fn within(self, range: Range<u64>) -> Place {
        Place { range: Some(range), ..self }
    }
}

/// Places in order of preference; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Constant.
    places: Vec<Place>,
}

impl Placement {
    /// These places, the best first.
    ///
    /// # Errors
    /// [`Error::InvalidPlacement`] for no place at all, a place that is both `DESIRED` and `FALLBACK` (it would never be
    /// considered), or an empty, reversed or unaligned range.
    pub fn new(places: Vec<Place>) -> Result<Placement> {
        if places.is_empty() {
            return Err(Error::InvalidPlacement { why: "it names no place".into() });
        }
        for place in &places {
            if place.desired && place.fallback {
                return Err(Error::InvalidPlacement {
                    why: format!(
                        "{} is both desired and fallback, so no pass would consider it",
                        place.region
                    ),
                });
            }
            if let Some(range) = &place.range {
                check_range(place.region, range)?;
            }
        }
        Ok(Placement { places })
    }

    /// These places, which the caller knows to be at least one and each a valid one.
    pub(crate) fn in_order(places: Vec<Place>) -> Placement {
        debug_assert!(!places.is_empty(), "a placement names a place");
        Placement { places }
    }

    /// System memory only: where the CPU's first bytes of a buffer, and maps that VRAM cannot serve, go.
    pub(crate) fn system() -> Placement {
        Placement { places: vec![Place::SYSTEM] }
    }

    /// The places, the best first.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// The same preferences for a buffer that the CPU is about to touch: VRAM only where the CPU sees it.
    pub(crate) fn for_cpu(&self) -> Placement {
        let places = self.places.iter().cloned().map(|place| match place.region {
            RegionKind::Vram => place.visible(),
            RegionKind::Gtt | RegionKind::System => place,
        });
        Placement { places: places.collect() }
    }

    /// The VRAM of these places, as far as a BAR of this shape can show it; `None` when none is in VRAM.
    pub(crate) fn for_peers(&self, bar: Bar) -> Option<Placement> {
        let in_vram = self.in_vram()?;
        let shown = |place: Place| match bar {
            Bar::Prefix(_) => place.visible(),
            Bar::Windows(_) => place,
        };
        Some(Placement { places: in_vram.places.into_iter().map(shown).collect() })
    }

    /// The same places where they cost no eviction.
    pub(crate) fn if_free(self) -> Placement {
        let free = |place: Place| Place { desired: true, fallback: false, ..place };
        Placement { places: self.places.into_iter().map(free).collect() }
    }

    /// System memory, for a buffer that has to leave VRAM: such as the GPU can reach, if these places have that and it can be had
    /// without evicting anybody.
    pub(crate) fn beside_vram(&self) -> Placement {
        let gtt = self.allows(RegionKind::Gtt).then(|| Place::GTT.desired());
        Placement { places: gtt.into_iter().chain([Place::SYSTEM]).collect() }
    }

    /// Whether a place is in `region`.
    pub(crate) fn allows(&self, region: RegionKind) -> bool {
        self.places.iter().any(|place| place.region == region)
    }

    /// Whether the best place is in VRAM.
    pub(crate) fn prefers_vram(&self) -> bool {
        self.places.first().is_some_and(|place| place.region == RegionKind::Vram)
    }

    /// The same preferences for a buffer that has to be in VRAM; `None` when it may not be there.
    pub(crate) fn in_vram(&self) -> Option<Placement> {
        let is_vram = |place: &&Place| place.region == RegionKind::Vram;
        let places: Vec<_> = self.places.iter().filter(is_vram).cloned().collect();
        (!places.is_empty()).then_some(Placement { places })
    }

    /// Whether every place is in VRAM.
    pub(crate) fn needs_vram(&self) -> bool {
        self.places.iter().all(|place| place.region == RegionKind::Vram)
    }
}

fn check_range(region: RegionKind, range: &Range<u64>) -> Result<()> {
    let why = |what: &str| {
        Err(Error::InvalidPlacement {
            why: format!("the range {:#x}..{:#x} of {region} {what}", range.start, range.end),
        })
    };
    if region != RegionKind::Vram {
        return why("cannot be kept: only VRAM has addresses that matter");
    }
    if range.start >= range.end {
        return why("is empty");
    }
    if !range.start.is_multiple_of(PAGE_BYTES) || !range.end.is_multiple_of(PAGE_BYTES) {
        return why("is not made of whole pages");
    }
    Ok(())
}
