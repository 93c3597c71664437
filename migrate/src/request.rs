//! What the manager asks of the queue.

use crate::address::{Addr, ExtentList};
use crate::peer::PeerQueue;
use crate::piece::Operation;
use devpagemap_fence::FenceSet;

/// How soon a move is wanted. Orders by it: the urgent one first.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Urgency {
    /// Somebody waits for it: a fault, a buffer that a submission needs.
    Foreground,
    /// Nobody does yet: an eviction, a defragmentation.
    Background,
}

impl Urgency {
    /// Both, the urgent one first; the position is `urgency as usize`.
    pub const ALL: [Urgency; 2] = [Urgency::Foreground, Urgency::Background];
}

/// One move: what to copy or clear, how soon, and after what.
#[derive(Clone, Debug)]
pub struct MoveRequest {
    /// Which buffer this is about; for traces alone.
    pub label: u64,
    /// What to do.
    pub operation: Operation,
    /// How soon.
    pub urgency: Urgency,
    /// Must have signalled before the move starts; an error there does not matter.
    pub after: FenceSet,
    /// Must have signalled before the move starts; an error there fails the move, and nothing is copied.
    pub needs: FenceSet,
}

impl MoveRequest {
    /// A foreground move that waits for nothing.
    pub fn new(label: u64, operation: Operation) -> MoveRequest {
        MoveRequest {
            label,
            operation,
            urgency: Urgency::Foreground,
            after: FenceSet::default(),
            needs: FenceSet::default(),
        }
    }

    /// A foreground copy that waits for nothing.
    pub fn copy(label: u64, src: ExtentList, dst: ExtentList) -> MoveRequest {
        MoveRequest::new(label, Operation::Copy { src, dst })
    }

    /// A foreground clear that waits for nothing.
    pub fn clear(label: u64, dst: ExtentList) -> MoveRequest {
        MoveRequest::new(label, Operation::Clear { dst })
    }

    /// A foreground pull that waits for nothing: the engines of `from` copy `src`, which is in their memory, into the
    /// staging ring of the queue that this is submitted to, and its own engines copy it from there to `dst`.
    /// `ring_at` is where `from` sees the first byte of that [ring](crate::MoveQueue::staging_ring).
    ///
    /// `from` works for the pull as for its own moves, with its own fallbacks; an error there is the error of this move.
    /// What `src` has to wait for belongs to [`needs`](Self::needs) or [`after`](Self::after), as always.
    pub fn pull(label: u64, from: PeerQueue, src: ExtentList, ring_at: Addr, dst: ExtentList) -> MoveRequest {
        MoveRequest::new(label, Operation::Pull { from, src, ring_at, dst })
    }

    /// The same move without urgency.
    pub fn background(self) -> MoveRequest {
        MoveRequest { urgency: Urgency::Background, ..self }
    }

    /// The same move, started after these as well, whether they succeed or not.
    pub fn after(mut self, fences: impl Into<FenceSet>) -> MoveRequest {
        self.after.merge(&fences.into());
        self
    }

    /// The same move, done only if these succeed as well.
    pub fn needs(mut self, fences: impl Into<FenceSet>) -> MoveRequest {
        self.needs.merge(&fences.into());
        self
    }
}
