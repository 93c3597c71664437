//! What a caller asks for, and the check that turns it into whole pages.
//!
//! All checking happens here, before anything changes; the policy in `buddy.rs` sees only a [`Plan`], in which
//! every number is in pages, fits the region, and cannot overflow.

use core::ops::Range;

use crate::find::Window;
use crate::span::{PAGE_BYTES, PAGE_SHIFT};
use crate::{AllocError, Span};

/// In how many pieces an allocation may lie.
///
/// ```
/// use devpagemap_allocator::{Buddy, Mode, Request};
///
/// let mut vram = Buddy::new(1 << 20)?;
/// let request = Request { mode: Mode::Scatter { min_block_bytes: 0x1_0000 }, ..Request::new(0x3_0000) };
/// for span in vram.alloc(&request)? {
///     assert_eq!(span.start_bytes % 0x1_0000, 0);
/// }
/// # Ok::<(), devpagemap_allocator::AllocError>(())
/// ```
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Several blocks, the largest first. With `g` the larger of `min_block_bytes` and the alignment, every
    /// block starts at a multiple of `g`, and every one but the last is a multiple of `g` long; the last
    /// holds what `len_bytes` leaves over.
    Scatter {
        /// No block is smaller than this (a power of two; below the page size it means a page).
        min_block_bytes: u64,
    },
    /// One block, of any number of pages.
    Contiguous,
}

/// From which end places are chosen, among the free blocks that fit equally well.
///
/// ```
/// use devpagemap_allocator::{Buddy, Direction, Request};
///
/// let mut vram = Buddy::new(1 << 20)?;
/// let request = Request { direction: Direction::TopDown, ..Request::new(0x1000) };
/// assert_eq!(vram.alloc(&request)?[0].end_bytes(), 1 << 20);
/// # Ok::<(), devpagemap_allocator::AllocError>(())
/// ```
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Low addresses first.
    BottomUp,
    /// High addresses first; what keeps a CPU-visible prefix free for those who need it.
    TopDown,
}

/// One allocation: how much, and where it may lie.
///
/// ```
/// use devpagemap_allocator::{Buddy, Request};
///
/// let mut vram = Buddy::new(16 << 20)?;
/// let request = Request::new(0x3000).aligned(0x1_0000).within(0..8 << 20).contiguous().top_down();
/// let spans = vram.alloc(&request)?;
/// assert_eq!((spans[0].start_bytes, spans[0].len_bytes), ((8 << 20) - 0x1_0000, 0x3000));
/// # Ok::<(), devpagemap_allocator::AllocError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// How much, in bytes; a multiple of [`PAGE_BYTES`].
    pub len_bytes: u64,
    /// What the start of every block is a multiple of: a power of two. Below the page size it means a page.
    pub align_bytes: u64,
    /// Where it may lie, page aligned. `end == u64::MAX` means up to the end of the region, any other end
    /// must be inside the region. A range as long as the allocation asks for exactly that range.
    pub range: Range<u64>,
    /// In how many pieces it may lie.
    pub mode: Mode,
    /// From which end places are chosen.
    pub direction: Direction,
}

impl Request {
    /// `len_bytes` anywhere, in any number of pieces, low addresses first.
    pub const fn new(len_bytes: u64) -> Request {
        Request {
            len_bytes,
            align_bytes: PAGE_BYTES,
            range: 0..u64::MAX,
            mode: Mode::Scatter { min_block_bytes: PAGE_BYTES },
            direction: Direction::BottomUp,
        }
    }

    /// Exactly these bytes: what firmware, a boot framebuffer or a bad page occupies.
    ///
    /// ```
    /// use devpagemap_allocator::{Buddy, Request, Span};
    ///
    /// let mut vram = Buddy::new(1 << 20)?;
    /// let firmware = Span { start_bytes: 0x8000, len_bytes: 0x3000 };
    /// assert_eq!(vram.alloc(&Request::exactly(firmware))?, [firmware]);
    /// # Ok::<(), devpagemap_allocator::AllocError>(())
    /// ```
    pub const fn exactly(span: Span) -> Request {
        Request { range: span.start_bytes..span.end_bytes(), ..Request::new(span.len_bytes) }
    }

    /// The same, each block starting at a multiple of `align_bytes`.
    #[must_use]
    pub const fn aligned(mut self, align_bytes: u64) -> Request {
        self.align_bytes = align_bytes;
        self
    }

    /// The same, inside `range`.
    #[must_use]
    pub const fn within(mut self, range: Range<u64>) -> Request {
        self.range = range;
        self
    }

    /// The same, in one piece.
    #[must_use]
    pub const fn contiguous(mut self) -> Request {
        self.mode = Mode::Contiguous;
        self
    }

    /// The same, in several pieces of at least `min_block_bytes`.
    #[must_use]
    pub const fn scattered(mut self, min_block_bytes: u64) -> Request {
        self.mode = Mode::Scatter { min_block_bytes };
        self
    }

    /// The same, high addresses first.
    #[must_use]
    pub const fn top_down(mut self) -> Request {
        self.direction = Direction::TopDown;
        self
    }
}

/// A request that was checked against a region, in pages.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Plan {
    /// How many.
    pub len: u64,
    /// Every block starts at a multiple of `2^align` pages; when scattered, it is a multiple of that long too, but for the last.
    pub align: u32,
    /// Where, with the start rounded up to the alignment; at least `len` long.
    pub window: Window,
    /// In one piece.
    pub contiguous: bool,
    /// The caller named exactly these pages.
    pub exact: bool,
}

impl Plan {
    /// Checks `request` against a region of `size_bytes`.
    pub fn new(request: &Request, size_bytes: u64) -> Result<Plan, AllocError> {
        let len_bytes = request.len_bytes;
        if len_bytes == 0 || !len_bytes.is_multiple_of(PAGE_BYTES) {
            return Err(AllocError::InvalidSize { len_bytes });
        }
        let align = request.granule()?;
        let (start_bytes, end_bytes) = request.range_in(size_bytes)?;
        let end = end_bytes >> PAGE_SHIFT;
        // At most 2^32 pages, rounded up to at most 2^51.
        let start = (start_bytes >> PAGE_SHIFT).next_multiple_of(1 << align);
        let len = len_bytes >> PAGE_SHIFT;
        if end.saturating_sub(start) < len {
            let range_bytes = end.saturating_sub(start) << PAGE_SHIFT;
            return Err(AllocError::TooLarge { wanted_bytes: len_bytes, range_bytes });
        }
        let top_down = request.direction == Direction::TopDown;
        Ok(Plan {
            len,
            align,
            window: Window { start, end, top_down },
            contiguous: request.mode == Mode::Contiguous,
            exact: request.range.end != u64::MAX && end - start == len,
        })
    }
}

impl Request {
    /// What blocks start at a multiple of, as a power of two in pages.
    fn granule(&self) -> Result<u32, AllocError> {
        if !self.align_bytes.is_power_of_two() {
            return Err(AllocError::InvalidAlign { align_bytes: self.align_bytes });
        }
        let granule_bytes = match self.mode {
            Mode::Contiguous => self.align_bytes,
            Mode::Scatter { min_block_bytes } if min_block_bytes.is_power_of_two() => {
                self.align_bytes.max(min_block_bytes)
            }
            Mode::Scatter { min_block_bytes } => return Err(AllocError::InvalidMinBlock { min_block_bytes }),
        };
        Ok(granule_bytes.trailing_zeros().saturating_sub(PAGE_SHIFT))
    }

    /// The range asked for, as start and end in bytes.
    fn range_in(&self, size_bytes: u64) -> Result<(u64, u64), AllocError> {
        let Range { start, end } = self.range;
        let actual_end = if end == u64::MAX { size_bytes } else { end };
        let aligned = start.is_multiple_of(PAGE_BYTES) && actual_end.is_multiple_of(PAGE_BYTES);
        if !aligned || start >= actual_end || actual_end > size_bytes {
            return Err(AllocError::InvalidRange { start_bytes: start, end_bytes: end, size_bytes });
        }
        Ok((start, actual_end))
    }
}
