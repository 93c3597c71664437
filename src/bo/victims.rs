//! Choosing who has to go: a walk over the LRU that tries reservations and never waits for one.

use std::collections::HashSet;

use devpagemap_fence::{LockSet, Slot};

use super::{Buffer, BufferObject};
use crate::region::{Lru, Node};

/// A locked buffer whose eviction would help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Victim {
    pub(crate) slot: Slot,
    /// How many of its bytes are where they are wanted.
    pub(crate) useful_bytes: u64,
}

/// What a walk found. Drop it after the region lock: it may hold the last reference to a buffer.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    /// Locked by the walker's set, least recently used first.
    pub(crate) victims: Vec<Victim>,
    /// The sum over `victims`.
    pub(crate) useful_bytes: u64,
    /// Buffers that would help but are locked by somebody else.
    pub(crate) contended: Vec<Buffer>,
    /// Useful bytes of the walker's own members, which must stay.
    pub(crate) held_bytes: u64,
    /// A destructor is on its way to give useful bytes back.
    pub(crate) dying: bool,
}

/// Walks `lru` until the locked victims make up `missing_bytes`. `useful` says how much a node would contribute.
pub(crate) fn walk(
    set: &mut LockSet<'_, BufferObject>,
    members: &[Slot],
    lru: &Lru,
    missing_bytes: u64,
    useful: impl Fn(&Node) -> u64,
) -> Walk {
    let member_ids = member_ids(set, members);
    let mut walk = Walk::default();
    for node in lru.in_eviction_order() {
        let useful_bytes = useful(node);
        if useful_bytes == 0 {
            continue;
        }
        if member_ids.contains(&node.id) {
            walk.held_bytes += useful_bytes;
            continue;
        }
        if walk.useful_bytes >= missing_bytes {
            break;
        }
        let Some(buffer) = node.buffer.upgrade() else {
            walk.dying = true;
            continue;
        };
        match set.try_lock(buffer.0.clone()) {
            Some(slot) => {
                walk.victims.push(Victim { slot, useful_bytes });
                walk.useful_bytes += useful_bytes;
            }
            None => walk.contended.push(buffer),
        }
    }
    walk
}

/// The ids of a transaction's own buffers.
pub(crate) fn member_ids(set: &LockSet<'_, BufferObject>, members: &[Slot]) -> HashSet<u64> {
    members.iter().map(|slot| set.object(*slot).id()).collect()
}

/// Drops the victims that turned out not to be needed, the most recently used first: LRU order takes whoever comes until
/// the sum suffices, and the last, large one often makes several small ones before it unnecessary.
pub(crate) fn spare_unneeded(victims: &mut Vec<Victim>, missing_bytes: u64) {
    let mut surplus_bytes =
        victims.iter().map(|victim| victim.useful_bytes).sum::<u64>().saturating_sub(missing_bytes);
    for index in (0..victims.len()).rev() {
        if victims[index].useful_bytes <= surplus_bytes {
            surplus_bytes -= victims[index].useful_bytes;
            victims.remove(index);
        }
    }
}
