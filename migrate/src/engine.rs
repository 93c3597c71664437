//! What performs copies: the trait a driver implements for each of its copy engines.
//!
//! An engine is handed [`Chunk`]s and answers each with its [`Completion`], from whatever thread and whenever
//! it likes, also before `submit` returns. It does not order chunks, know about fences or retry; the move
//! queue does all that. It must keep two promises:
//!
//! - `complete(Ok(()))` means that every byte of the chunk is in place and visible to whoever observes the
//!   completion;
//! - once [`CopyEngine::reset`] has returned, no chunk handed over before touches memory any more.

use crate::address::{Addr, Space};
use crate::piece::{Piece, Route};
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

/// Performs chunks of moves. A driver implements it once for each of its copy engines.
///
/// `submit` and `reset` are called with none of this library's locks held at region level or further in, and on the way
/// to a fence's signal: neither may wait for a fence, which debug builds report.
pub trait CopyEngine: Send + Sync {
    /// The engine's name, for errors, reasons and statistics.
    fn name(&self) -> &str;

    /// Whether the engine can copy from one memory to the other; `from` is `None` for clearing.
    /// Asked once, when the engine joins a queue.
    fn reaches(&self, from: Option<Space>, to: Space) -> bool {
        let _ = (from, to);
        true
    }

    /// Which offsets of a memory the engine can address; all of them by default. What lies outside and no other engine
    /// reaches either goes through the queue's [staging ring](crate::MoveQueueBuilder::staging), which lies where it
    /// helps most of those that say what they see. One that answers [`EngineError::Unreachable`] instead is believed,
    /// but may be shown a ring that it does not see.
    /// Asked once, when the engine joins a queue.
    fn window(&self, space: Space) -> Range<u64> {
        let _ = space;
        0..u64::MAX
    }

    /// How many chunks the engine holds at a time, at least 1. Two keep it busy while the queue looks for the
    /// next. Asked once, when the engine joins a queue.
    fn depth(&self) -> usize {
        2
    }

    /// Takes a chunk and does not wait for it. `done` may be completed from any thread, also before this returns.
    ///
    /// # Errors
    /// When the chunk cannot be taken; it then must not touch memory any more, and `done` may be dropped.
    fn submit(&self, chunk: Chunk, done: Completion) -> Result<(), EngineError>;

    /// Stops everything in flight. After this has returned no chunk handed over before touches memory, and
    /// what is completed for one of them is ignored. [`Reset::Recovered`]: the engine takes chunks again.
    fn reset(&self) -> Reset;
}

/// What became of an engine that was reset.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Reset {
    /// It works again.
    Recovered,
    /// It will not work again.
    Dead,
}

/// Pieces to be copied (or cleared) by one engine, all on one route. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    pieces: Vec<Piece>,
}

impl Chunk {
    /// A chunk of these pieces.
    ///
    /// # Panics
    /// When there is no piece, a piece is empty, or the pieces are not all on one route.
    pub fn new(pieces: Vec<Piece>) -> Chunk {
        let route = pieces.first().expect("a chunk has a piece").route();
        assert!(pieces.iter().all(|piece| piece.len_bytes > 0 && piece.route() == route));
        Chunk { pieces }
    }

    /// The pieces, in buffer order.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// How many bytes the chunk writes.
    pub fn len_bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len_bytes).sum()
    }

    /// The memories that the chunk goes from and to.
    pub fn route(&self) -> Route {
        self.pieces[0].route()
    }
}

/// Why an engine did not perform a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineError {
    /// The engine tried and failed, or broke its promise.
    Failed {
        /// What went wrong.
        reason: Cow<'static, str>,
    },
    /// The engine cannot reach an address of the chunk. Says nothing about the engine's health.
    Unreachable {
        /// The address.
        addr: Addr,
        /// The bytes wanted there.
        len_bytes: u64,
    },
    /// The engine made no progress in time and was reset.
    Hung {
        /// How long nothing had happened, in ns.
        waited_ns: u64,
    },
    /// The engine is beyond recovery.
    Dead,
}

impl EngineError {
    /// [`EngineError::Failed`] for this reason.
    pub fn failed(reason: impl Into<Cow<'static, str>>) -> EngineError {
        EngineError::Failed { reason: reason.into() }
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EngineError::Failed { reason } => write!(f, "failed: {reason}"),
            EngineError::Unreachable { addr, len_bytes } => {
                write!(f, "cannot reach {len_bytes} bytes at {addr}")
            }
            EngineError::Hung { waited_ns } => {
                write!(f, "hung: no progress for {} ms", waited_ns / 1_000_000)
            }
            EngineError::Dead => f.write_str("is dead"),
        }
    }
}

impl std::error::Error for EngineError {}

/// The answer that an engine owes for a chunk. Dropped without an answer, the chunk has failed.
#[must_use = "dropping a completion fails its chunk"]
pub struct Completion {
    answer: Option<Answer>,
}

type Answer = Box<dyn FnOnce(Result<(), EngineError>) + Send>;

impl Completion {
    /// A completion that hands its result to `answer`, once.
    pub fn new(answer: impl FnOnce(Result<(), EngineError>) + Send + 'static) -> Completion {
        Completion { answer: Some(Box::new(answer)) }
    }

    /// Reports how the chunk ended. Inside [`CopyEngine::submit`] and [`CopyEngine::reset`] the report is only noted;
    /// elsewhere fences are signalled and callbacks run before this returns, so no lock of the region level or further
    /// in may be held, and none that `submit` or `reset` takes. A fence callback may report too.
    pub fn complete(mut self, result: Result<(), EngineError>) {
        if let Some(answer) = self.answer.take() {
            answer(result);
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            answer(Err(EngineError::failed("the engine dropped the chunk without an answer")));
        }
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion").finish_non_exhaustive()
    }
}
