//! Why a call was refused. Every variant carries the numbers that decided it.

use core::fmt;

use crate::{MAX_REGION_BYTES, PAGE_BYTES};

/// What an allocator answers when it does not do what was asked. Nothing has changed then.
///
/// The `Invalid*` variants and [`TooLarge`](AllocError::TooLarge) are about the call alone: it would fail in an empty region too. The
/// others depend on what is allocated at the moment, so giving something back can help.
///
/// ```
/// use devpagemap_allocator::{AllocError, Buddy, Request};
///
/// let mut vram = Buddy::new(1 << 20)?;
/// vram.alloc(&Request::new(0xc_0000))?;
/// let error = vram.alloc(&Request::new(0x8_0000)).unwrap_err();
/// assert_eq!(error, AllocError::Exhausted { wanted_bytes: 0x8_0000, free_bytes: 0x4_0000 });
/// assert_eq!(error.to_string(), "524288 bytes wanted, 262144 bytes free");
/// # Ok::<(), AllocError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllocError {
    /// A region must be a multiple of the page size, not empty, and at most [`MAX_REGION_BYTES`].
    InvalidRegion {
        /// The size asked for.
        size_bytes: u64,
    },
    /// An allocation must be a multiple of the page size and not empty.
    InvalidSize {
        /// The length asked for.
        len_bytes: u64,
    },
    /// An alignment must be a power of two.
    InvalidAlign {
        /// The alignment asked for.
        align_bytes: u64,
    },
    /// The smallest block of a scattered allocation must be a power of two.
    InvalidMinBlock {
        /// The minimum asked for.
        min_block_bytes: u64,
    },
    /// A range must be page aligned, not empty or reversed, and inside the region.
    InvalidRange {
        /// Start of the range asked for.
        start_bytes: u64,
        /// End of the range asked for.
        end_bytes: u64,
        /// Size of the region.
        size_bytes: u64,
    },
    /// A span to be freed must be page aligned, not empty, and inside the region.
    InvalidSpan {
        /// Start of the span.
        start_bytes: u64,
        /// Length of the span.
        len_bytes: u64,
        /// Size of the region.
        size_bytes: u64,
    },
    /// It would not fit the range even if nothing were allocated there.
    TooLarge {
        /// The length asked for.
        wanted_bytes: u64,
        /// What the range holds, counted from its first aligned address.
        range_bytes: u64,
    },
    /// There are fewer free bytes in the range than asked for.
    Exhausted {
        /// The length asked for.
        wanted_bytes: u64,
        /// The free bytes in the range.
        free_bytes: u64,
    },
    /// There are enough free bytes in the range, but not in pieces that are long enough or aligned as asked for.
    Fragmented {
        /// The length asked for.
        wanted_bytes: u64,
        /// The longest run of free bytes in the range, of any alignment.
        largest_bytes: u64,
    },
    /// An exact range was asked for (its length is the allocation's), and part of it is allocated.
    Busy {
        /// Start of the range asked for.
        start_bytes: u64,
        /// Its length.
        len_bytes: u64,
        /// The first address in it that is taken.
        taken_at_bytes: u64,
    },
    /// A span to be freed is free already, or part of it is: a double free.
    AlreadyFree {
        /// Start of the span.
        start_bytes: u64,
        /// Its length.
        len_bytes: u64,
        /// The first address in it that is free already.
        free_at_bytes: u64,
    },
}

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            AllocError::InvalidRegion { size_bytes } => {
                write!(f, "a region of {size_bytes} bytes: must be a multiple of {PAGE_BYTES}, ")?;
                write!(f, "more than 0 and at most {MAX_REGION_BYTES}")
            }
            AllocError::InvalidSize { len_bytes } => {
                write!(
                    f,
                    "an allocation of {len_bytes} bytes: must be a multiple of {PAGE_BYTES} and more than 0"
                )
            }
            AllocError::InvalidAlign { align_bytes } => {
                write!(f, "an alignment of {align_bytes} bytes: must be a power of two")
            }
            AllocError::InvalidMinBlock { min_block_bytes } => {
                write!(f, "blocks of at least {min_block_bytes} bytes: must be a power of two")
            }
            AllocError::InvalidRange { start_bytes, end_bytes, size_bytes } => {
                write!(
                    f,
                    "the range {start_bytes:#x}..{end_bytes:#x}: must be page aligned, not empty or reversed, "
                )?;
                write!(f, "and inside the region of {size_bytes:#x} bytes")
            }
            AllocError::InvalidSpan { start_bytes, len_bytes, size_bytes } => {
                write!(f, "the span {start_bytes:#x}+{len_bytes:#x}: must be page aligned, not empty, ")?;
                write!(f, "and inside the region of {size_bytes:#x} bytes")
            }
            AllocError::TooLarge { wanted_bytes, range_bytes } => {
                write!(f, "{wanted_bytes} bytes wanted from a range that holds {range_bytes} bytes")
            }
            AllocError::Exhausted { wanted_bytes, free_bytes } => {
                write!(f, "{wanted_bytes} bytes wanted, {free_bytes} bytes free")
            }
            AllocError::Fragmented { wanted_bytes, largest_bytes } => {
                write!(f, "{wanted_bytes} bytes wanted, enough are free but not in the pieces asked for; ")?;
                write!(f, "the longest free run has {largest_bytes} bytes")
            }
            AllocError::Busy { start_bytes, len_bytes, taken_at_bytes } => {
                write!(f, "the exact range {start_bytes:#x}+{len_bytes:#x} is taken at {taken_at_bytes:#x}")
            }
            AllocError::AlreadyFree { start_bytes, len_bytes, free_at_bytes } => {
                write!(
                    f,
                    "freeing {start_bytes:#x}+{len_bytes:#x}, which is free already at {free_at_bytes:#x}"
                )
            }
        }
    }
}

impl core::error::Error for AllocError {}
