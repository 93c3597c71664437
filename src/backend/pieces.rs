//! Bytes that lie in several mapped pieces, copied as if they were one run.

use std::ptr::NonNull;

use devpagemap_migrate::copy;

/// Fills `into` from `pieces`, one after the other.
///
/// # Safety
/// Each piece is as many mapped bytes as it says for as long as this runs, nobody writes them meanwhile, and `into` is none of them.
pub(crate) unsafe fn gather(pieces: impl IntoIterator<Item = (NonNull<u8>, usize)>, into: &mut [u8]) {
    let mut rest = into;
    for (start, len) in pieces {
        let (piece, behind) = rest.split_at_mut(len);
        // SAFETY: the caller vouches for `len` readable bytes from `start` that do not overlap `piece`, which is as long.
        unsafe { std::ptr::copy_nonoverlapping(start.as_ptr(), piece.as_mut_ptr(), len) };
        rest = behind;
    }
    debug_assert!(rest.is_empty(), "{} bytes are in no piece", rest.len());
}

/// Writes `from` to `pieces`, one after the other.
///
/// # Safety
/// As for [`gather`], and nobody reads the pieces meanwhile either.
pub(crate) unsafe fn scatter(from: &[u8], pieces: impl IntoIterator<Item = (NonNull<u8>, usize)>) {
    let mut rest = from;
    for (start, len) in pieces {
        let (piece, behind) = rest.split_at(len);
        // SAFETY: the caller vouches for `len` writable bytes from `start` that do not overlap `piece`, which is as long.
        unsafe { std::ptr::copy_nonoverlapping(piece.as_ptr(), start.as_ptr(), len) };
        rest = behind;
    }
    debug_assert!(rest.is_empty(), "{} bytes go to no piece", rest.len());
    // They may be memory whose writes are combined, and whoever is told next expects them to be there.
    copy::publish();
}
