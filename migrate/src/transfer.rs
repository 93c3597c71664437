//! Performing a chunk with the processor.

use crate::copy::{self, Run};
use crate::engine::{Chunk, EngineError};
use crate::memory::MemoryMap;
use crate::piece::Piece;
use std::ptr;

/// Looks every piece of a chunk up, and checks that no source overlaps its destination.
///
/// # Errors
/// [`EngineError::Unreachable`] for the first address without memory; nothing was touched then.
pub(crate) fn resolve(memory: &dyn MemoryMap, chunk: &Chunk) -> Result<Vec<Run>, EngineError> {
    chunk.pieces().iter().map(|piece| resolve_piece(memory, piece)).collect()
}

fn resolve_piece(memory: &dyn MemoryMap, piece: &Piece) -> Result<Run, EngineError> {
    let find = |addr| {
        let len_bytes = piece.len_bytes;
        memory.resolve(addr, len_bytes).ok_or(EngineError::Unreachable { addr, len_bytes })
    };
    let dst = find(piece.dst)?.as_ptr();
    let src = match piece.src {
        Some(src) => find(src)?.as_ptr().cast_const(),
        None => ptr::null(),
    };
    let len_bytes = usize::try_from(piece.len_bytes)
        .map_err(|_| EngineError::Unreachable { addr: piece.dst, len_bytes: piece.len_bytes })?;
    if piece.src.is_some() && src.addr().abs_diff(dst.addr()) < len_bytes {
        return Err(EngineError::failed("source and destination overlap"));
    }
    Ok(Run { dst, src, len_bytes })
}

/// Copies or clears the runs of a chunk.
///
/// # Safety
/// The runs came from [`resolve`] for a map that is still alive, and the chunk is not performed or reset elsewhere
/// meanwhile.
pub(crate) unsafe fn perform(runs: &[Run], is_clear: bool) {
    // SAFETY: the map vouches for both ends of each run and for the order against other accesses; a run's ends do not
    // overlap (checked by resolve), and a move whose ends overlap is refused by the queue.
    unsafe { if is_clear { copy::fill_scattered(runs, 0) } else { copy::copy_scattered(runs) } }
    // A destination may be memory whose writes are combined: they have to be there before the fence says so.
    copy::publish();
}
