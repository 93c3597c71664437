//! Cutting an operation into pieces and chunks.
//!
//! The two lists of a copy break at different offsets. Walking them together gives *pieces*: runs that are
//! contiguous at both ends. A *chunk* is what an engine is handed at a time: pieces of one buffer range, up
//! to a size limit, all on one [`Route`], so that "can this engine do it" has one answer a chunk.
//!
//! ```text
//!   src     [ a ......... ][ b .... ][ c ......... ]
//!   dst     [ x ... ][ y ................. ][ z ... ]
//!   pieces  [ a>x   ][a>y  ][ b>y   ][ c>y ][ c>z  ]
//!   chunks  |  chunk 0     :     chunk 1   :  2    |      (':' every chunk_bytes)
//! ```
//!
//! A chunk is remembered by its byte range alone and cut again when it has to be redone; the same range of
//! the same operation always gives the same pieces.

use crate::address::{Addr, ExtentList, Space};
use crate::peer::PeerQueue;
use crate::zones::{Way, Zones};

/// A run of bytes that is contiguous at both ends.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where the bytes come from; `None` clears the destination to zero.
    pub src: Option<Addr>,
    /// Where they go.
    pub dst: Addr,
    /// How many bytes.
    pub len_bytes: u64,
}

/// The memories that a piece goes from (`None`: it is a clear) and to.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// Where the bytes come from; `None` for a clear.
    pub from: Option<Space>,
    /// Where they go.
    pub to: Space,
}

impl Route {
    /// Every route there is; the position is [`index`](Self::index).
    pub const ALL: [Route; 6] = [
        Route { from: None, to: Space::Vram },
        Route { from: None, to: Space::System },
        Route { from: Some(Space::Vram), to: Space::Vram },
        Route { from: Some(Space::Vram), to: Space::System },
        Route { from: Some(Space::System), to: Space::Vram },
        Route { from: Some(Space::System), to: Space::System },
    ];

    /// The position in [`ALL`](Self::ALL).
    pub const fn index(self) -> usize {
        let from = match self.from {
            None => 0,
            Some(Space::Vram) => 2,
            Some(Space::System) => 4,
        };
        from + matches!(self.to, Space::System) as usize
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.from {
            Some(from) => write!(f, "copy {from} to {}", self.to),
            None => write!(f, "clear {}", self.to),
        }
    }
}

impl Piece {
    /// The memories this piece goes from and to.
    pub fn route(&self) -> Route {
        Route { from: self.src.map(Addr::space), to: self.dst.space() }
    }
}

/// What a move does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Copies the bytes of `src` to `dst`; equal lengths, no byte in both.
    Copy {
        /// What is read.
        src: ExtentList,
        /// What is written.
        dst: ExtentList,
    },
    /// Sets `dst` to zero.
    Clear {
        /// What is written.
        dst: ExtentList,
    },
    /// Copies the bytes of `src`, in the memory of another device, to `dst`: the engines of that device fill this
    /// queue's staging ring, those of this queue empty it. Equal lengths.
    Pull {
        /// Who copies into the ring.
        from: PeerQueue,
        /// What is read, as `from` sees it.
        src: ExtentList,
        /// Where `from` sees the first byte of this queue's [ring](crate::MoveQueue::staging_ring).
        ring_at: Addr,
        /// What is written.
        dst: ExtentList,
    },
}

impl Operation {
    /// How many bytes the operation writes.
    pub fn len_bytes(&self) -> u64 {
        self.dst().len_bytes()
    }

    /// What is read, if anything is.
    pub fn src(&self) -> Option<&ExtentList> {
        match self {
            Operation::Copy { src, .. } | Operation::Pull { src, .. } => Some(src),
            Operation::Clear { .. } => None,
        }
    }

    /// What is written.
    pub fn dst(&self) -> &ExtentList {
        match self {
            Operation::Copy { dst, .. } | Operation::Clear { dst } | Operation::Pull { dst, .. } => dst,
        }
    }

    /// Whether another device's engines read for it.
    pub(crate) fn is_pull(&self) -> bool {
        matches!(self, Operation::Pull { .. })
    }

    /// Why the operation makes no sense, if it does not.
    pub(crate) fn fault(&self) -> Option<String> {
        let (src, dst) = (self.src()?, self.dst());
        if src.len_bytes() != dst.len_bytes() {
            return Some(format!(
                "a copy of {} bytes to {} bytes: the ends differ in length",
                src.len_bytes(),
                dst.len_bytes()
            ));
        }
        // Addresses of two devices cannot be compared.
        (!self.is_pull() && src.overlaps(dst))
            .then(|| "a copy whose source and destination overlap".to_owned())
    }
}

/// A position inside an operation; walks both lists together.
///
/// ```
/// use devpagemap_migrate::{Addr, Cursor, Extent, Operation, Space};
///
/// let at = |space, offset, len| Extent::new(Addr::new(space, offset), len);
/// let operation = Operation::Copy {
///     src: [at(Space::Vram, 0, 12288)].into_iter().collect(),
///     dst: [at(Space::System, 0, 4096), at(Space::System, 65536, 8192)].into_iter().collect(),
/// };
/// let mut cursor = Cursor::default();
/// let first = cursor.next_piece(&operation, u64::MAX).unwrap();
/// assert_eq!(first.len_bytes, 4096);
/// assert_eq!(cursor.next_piece(&operation, u64::MAX).unwrap().len_bytes, 8192);
/// assert!(cursor.next_piece(&operation, u64::MAX).is_none());
/// ```
#[derive(Copy, Clone, Debug, Default)]
pub struct Cursor {
    /// Bytes before this position.
    offset_bytes: u64,
    src: End,
    dst: End,
}

/// A position inside one list.
#[derive(Copy, Clone, Debug, Default)]
struct End {
    /// The extent.
    index: usize,
    /// Bytes of that extent that lie before the position.
    within_bytes: u64,
}

impl End {
    /// The address here and how far it runs on.
    fn run(&self, list: &ExtentList) -> Option<(Addr, u64)> {
        let extent = list.as_slice().get(self.index)?;
        Some((extent.addr.add(self.within_bytes), extent.len_bytes - self.within_bytes))
    }

    fn advance(&mut self, list: &ExtentList, bytes: u64) {
        self.within_bytes += bytes;
        if list.as_slice()[self.index].len_bytes == self.within_bytes {
            *self = End { index: self.index + 1, within_bytes: 0 };
        }
    }
}

impl Cursor {
    /// Bytes of the operation that lie before this position.
    pub fn offset_bytes(&self) -> u64 {
        self.offset_bytes
    }

    /// The next piece, of at most `limit_bytes` bytes; `None` at the end of the operation or for a limit of 0.
    pub fn next_piece(&mut self, operation: &Operation, limit_bytes: u64) -> Option<Piece> {
        let piece = self.peek(operation, limit_bytes)?;
        self.advance(operation, &piece);
        Some(piece)
    }

    /// The route of the next piece.
    pub fn route(&self, operation: &Operation) -> Option<Route> {
        self.peek(operation, u64::MAX).map(|piece| piece.route())
    }

    /// The next chunk: pieces of one route, at most `limit_bytes` bytes of them. Empty at the end.
    pub fn next_chunk(&mut self, operation: &Operation, limit_bytes: u64) -> Vec<Piece> {
        self.next_chunk_within(operation, limit_bytes, &Zones::whole())
    }

    /// The way of the next piece.
    pub(crate) fn way(&self, operation: &Operation, zones: &Zones) -> Option<Way> {
        self.peek(operation, u64::MAX).map(|piece| zones.way(operation, &piece))
    }

    /// As [`next_chunk`](Self::next_chunk), where no piece leaves its zone and all pieces go one way.
    pub(crate) fn next_chunk_within(
        &mut self,
        operation: &Operation,
        limit_bytes: u64,
        zones: &Zones,
    ) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let Some(way) = self.way(operation, zones) else { return pieces };
        let end = self.offset_bytes.saturating_add(limit_bytes);
        while let Some(mut piece) = self.peek(operation, end - self.offset_bytes)
            && zones.way(operation, &piece) == way
        {
            zones.clip(operation, &mut piece);
            self.advance(operation, &piece);
            pieces.push(piece);
        }
        pieces
    }

    fn advance(&mut self, operation: &Operation, piece: &Piece) {
        if let Some(src) = operation.src() {
            self.src.advance(src, piece.len_bytes);
        }
        self.dst.advance(operation.dst(), piece.len_bytes);
        self.offset_bytes += piece.len_bytes;
    }

    /// The position `offset_bytes` into `operation`.
    pub fn at(operation: &Operation, offset_bytes: u64) -> Cursor {
        let seek = |list: &ExtentList| {
            let (mut index, mut left) = (0, offset_bytes);
            while let Some(extent) = list.as_slice().get(index)
                && extent.len_bytes <= left
            {
                left -= extent.len_bytes;
                index += 1;
            }
            End { index, within_bytes: left }
        };
        Cursor { offset_bytes, src: operation.src().map_or(End::default(), seek), dst: seek(operation.dst()) }
    }

    fn peek(&self, operation: &Operation, limit_bytes: u64) -> Option<Piece> {
        let (dst, dst_run) = self.dst.run(operation.dst())?;
        let (src, src_run) = match operation.src() {
            Some(src) => self.src.run(src).map(|(addr, run)| (Some(addr), run))?,
            None => (None, u64::MAX),
        };
        let len_bytes = dst_run.min(src_run).min(limit_bytes);
        (len_bytes > 0).then_some(Piece { src, dst, len_bytes })
    }
}
