//! A queue as the queues of other devices see it: who copies out of its memory for a pull.
//!
//! A pull is a move of the device that wants the bytes. Its queue has the staging ring, and asks the queue of the device
//! that has the bytes to copy one fragment at a time into a slot; its own engines do the rest.
//!
//! ```text
//!    device B has the bytes                              device A wants them
//!   [vram of B] --engines of B--> [ slot | slot | slot ] --engines of A--> [vram of A]
//!                 an errand         the ring of A's queue     a leg
//! ```
//!
//! What the other queue is asked for is an *errand*: it is scheduled, redone and given up like a move, but has no fence.
//! It must not have one: fences of a lane signal in order, so an errand that stood behind a move which (through a job)
//! waits for the pull would never end. Its result is told to whoever sent it.

use crate::drive::Inner;
use crate::piece::Operation;
use crate::request::Urgency;
use devpagemap_fence::levels::{self, Below, Level};
use devpagemap_fence::lockdep::Signalling;
use devpagemap_fence::sync::mutant;
use devpagemap_fence::{FenceError, Held};
use std::fmt;
use std::sync::Weak;

/// Who wants to know how an errand ended. Called once, with no lock held.
pub(crate) type Report = Box<dyn FnOnce(Result<(), FenceError>) + Send>;

/// The engines of another device, for [pulls](crate::MoveRequest::pull). Does not keep the queue alive; what is
/// asked of one that is gone fails.
#[derive(Clone)]
pub struct PeerQueue {
    pub(crate) queue: Weak<Inner>,
}

impl PeerQueue {
    /// Has `operation` done, and then reports.
    pub(crate) fn send<H: Level>(
        &self,
        operation: Operation,
        urgency: Urgency,
        report: Report,
        held: &mut Held<'_, H>,
    ) where
        levels::MoveQueue: Below<H>,
    {
        let Some(queue) = self.queue.upgrade() else {
            return report(Err(FenceError::Abandoned { timeline: "the queue of a peer".into() }));
        };
        let _signalling = Signalling::begin();
        queue.state.lock(held).admit_errand(operation, urgency, report, &queue.ledger);
        if !mutant!("errand_is_noted_and_not_begun") {
            queue.drive(held);
        }
    }
}

impl PartialEq for PeerQueue {
    fn eq(&self, other: &PeerQueue) -> bool {
        self.queue.ptr_eq(&other.queue)
    }
}

impl Eq for PeerQueue {}

impl fmt::Debug for PeerQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_there = self.queue.strong_count() > 0;
        f.write_str(if is_there { "PeerQueue" } else { "PeerQueue(gone)" })
    }
}
