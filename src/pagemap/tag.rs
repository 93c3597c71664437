//! Numbers: of pagemaps, of importers, and the tag that a page of memory carries.
//!
//! ```text
//!   PageTag   | generation (12 bits) | slot + 1 (20 bits) |        0: system memory
//! ```
//!
//! A slot is used again when its pagemap has left, with the next generation. After 4,095 of them it is used no more, so that no tag ever
//! means another pagemap than the one it was made for.

use std::fmt;

const SLOT_BITS: u32 = 20;
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;

/// How many slots there are.
pub(super) const SLOTS: u32 = SLOT_MASK;
/// How many generations a slot has.
pub(super) const GENERATIONS: u32 = 1 << (32 - SLOT_BITS);

/// Whose memory a page is: the pagemap that it is part of, in four bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct PageTag(u32);

impl PageTag {
    /// Memory of the system.
    pub const SYSTEM: PageTag = PageTag(0);

    pub(super) fn new(slot: u32, generation: u32) -> PageTag {
        debug_assert!(slot < SLOTS && generation < GENERATIONS, "slot {slot}, generation {generation}");
        PageTag(generation << SLOT_BITS | (slot + 1))
    }

    /// The slot; beyond all of them for memory of the system, and for bytes that are no tag.
    #[inline]
    pub(super) fn slot(self) -> usize {
        (self.0 & SLOT_MASK).wrapping_sub(1) as usize
    }

    pub(super) fn generation(self) -> u32 {
        self.0 >> SLOT_BITS
    }

    /// The tag in four bytes, to keep it with a page.
    pub fn to_bits(self) -> u32 {
        self.0
    }

    /// The tag of four bytes. Bytes that are no tag resolve to a pagemap that is gone.
    pub fn from_bits(bits: u32) -> PageTag {
        PageTag(bits)
    }
}

impl fmt::Debug for PageTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            PageTag::SYSTEM => f.write_str("PageTag(system)"),
            tag => write!(f, "PageTag({}, generation {})", tag.slot(), tag.generation()),
        }
    }
}

/// A pagemap's number in its registry. Never that of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PagemapId(pub(super) PageTag);

impl PagemapId {
    /// What its pages carry.
    #[inline]
    pub fn tag(self) -> PageTag {
        self.0
    }
}

/// An importer's number in its registry. Never that of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImporterId {
    pub(super) slot: u32,
    pub(super) generation: u32,
}
