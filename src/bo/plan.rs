//! Planning an eviction: a look at the region under its lock, which ends in who goes, whom to wait for, or why it cannot be.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use devpagemap_fence::LockSet;
use devpagemap_fence::sync::mutant;

use super::validate::{Pass, Transaction};
use super::victims::{Victim, Walk, member_ids, spare_unneeded, walk};
use super::window::{Segment, cheapest_window};
use super::{Buffer, BufferObject, EvictionPolicy, Place, WeakBuffer};
use crate::error::Error;
use crate::region::{Node, RegionKind, Taken, VramState, bytes_within, intersect};

/// What an evictor owns so far.
#[derive(Default)]
pub(super) struct Claim {
    pub(super) taken: Taken,
    /// For contiguous memory: which bytes it will be.
    pub(super) window: Option<Range<u64>>,
}

/// What to do after a look at the region.
pub(super) enum Step {
    Evict(Vec<Victim>),
    WaitFor(Buffer),
    TryAgain,
    GiveUp(Error),
}

impl Transaction<'_, '_, '_> {
    /// Escrows what is free at `place` and locks victims for the rest.
    pub(super) fn plan_scattered(
        &mut self,
        buffer: &Arc<BufferObject>,
        place: &Place,
        pass: Pass,
        claim: &mut Claim,
    ) -> Step {
        let (set, mut held) = self.exec.split();
        let vram = &self.manager.vram;
        let wanted_bytes = buffer.footprint_bytes;
        let range = vram.range_of(place);
        let (walk, missing_bytes, claimed, pinned_bytes) = {
            let mut state = vram.state.lock(&mut held);
            let more = vram.take_up_to(&mut state, place, wanted_bytes - claim.taken.len_bytes());
            claim.taken.merge(more);
            if !mutant!("escrow_is_not_noted") {
                state.claims.insert(buffer.id(), WeakBuffer::of(buffer));
            }
            let missing_bytes = wanted_bytes - claim.taken.len_bytes();
            let useful = |node: &Node| match pass.spares(node) {
                true => 0,
                false => bytes_within(&node.spans, &range),
            };
            let mut walk = walk(set, &self.members, &state.lru, missing_bytes, useful);
            let claimed = other_claims(&state, buffer.id());
            if mutant!("walk_ends_under_the_region_lock") {
                walk = Walk { contended: Vec::new(), dying: true, ..walk };
            }
            (walk, missing_bytes, claimed, state.lru.pinned_bytes())
        };
        if walk.useful_bytes < missing_bytes {
            return when_short(walk, claimed, |walk| Error::Exhausted {
                region: RegionKind::Vram,
                wanted_bytes,
                free_bytes: wanted_bytes - missing_bytes + walk.useful_bytes,
                pinned_bytes,
                held_bytes: walk.held_bytes,
            });
        }
        let mut victims = walk.victims;
        if self.manager.policy == EvictionPolicy::LruSet {
            spare_unneeded(&mut victims, missing_bytes);
        }
        Step::Evict(victims)
    }

    /// Chooses contiguous bytes, locks whoever is in them and escrows what is free in them.
    pub(super) fn plan_window(
        &mut self,
        buffer: &Arc<BufferObject>,
        place: &Place,
        pass: Pass,
        claim: &mut Claim,
    ) -> Step {
        let (set, mut held) = self.exec.split();
        let vram = &self.manager.vram;
        let (wanted_bytes, range) = (buffer.footprint_bytes, vram.range_of(place));
        let mut avoided = member_ids(set, &self.members);
        let mut walk = Walk::default();
        let (claimed, largest_bytes) = {
            let mut state = vram.state.lock(&mut held);
            state.claims.insert(buffer.id(), WeakBuffer::of(buffer));
            avoided
                .extend(state.lru.in_eviction_order().filter(|node| pass.spares(node)).map(|node| node.id));
            while let Some((window, owners)) =
                choose_window(&state, wanted_bytes, &range, &avoided, self.manager.policy)
            {
                match lock_owners(set, &owners, &mut walk) {
                    Err(unavailable) => drop(avoided.insert(unavailable)),
                    Ok(victims) => {
                        let free = intersect(&state.heap.free_spans(), &window);
                        claim.taken = state.heap.take_exact(&free);
                        claim.window = Some(window);
                        return Step::Evict(victims);
                    }
                }
            }
            (other_claims(&state, buffer.id()), state.heap.largest_free_bytes())
        };
        when_short(walk, claimed, |_| Error::Fragmented {
            region: RegionKind::Vram,
            wanted_bytes,
            largest_bytes,
        })
    }
}

/// Who else owns bytes that are on no LRU.
pub(super) enum Claimed {
    Nobody,
    /// Somebody in the middle of a step that waits for nothing.
    Unnamed,
    By(Buffer),
}

/// Why a walk came short decides what to do: wait for who holds the bytes, look again, or say that there are none.
pub(super) fn when_short(walk: Walk, claimed: Claimed, error: impl FnOnce(&Walk) -> Error) -> Step {
    if let Some(other) = walk.contended.first()
        && !mutant!("contention_is_exhaustion")
    {
        return Step::WaitFor(other.clone());
    }
    match claimed {
        Claimed::By(other) => Step::WaitFor(other),
        Claimed::Unnamed => Step::TryAgain,
        Claimed::Nobody if walk.dying && !mutant!("a_dying_buffer_has_no_bytes") => Step::TryAgain,
        Claimed::Nobody => Step::GiveUp(error(&walk)),
    }
}

fn other_claims(state: &VramState, own: u64) -> Claimed {
    let mut others = state.claims.iter().filter(|(id, _)| **id != own);
    match others.next().map(|(_, other)| other.upgrade()) {
        None => Claimed::Nobody,
        Some(None) => Claimed::Unnamed,
        Some(Some(other)) => Claimed::By(other),
    }
}

/// A buffer on the LRU: its id, and a way to it while it lives.
type Owner = (u64, WeakBuffer);

/// Tries the reservations of all `owners`; `Err` names the first that cannot be had now.
fn lock_owners(
    set: &mut LockSet<'_, BufferObject>,
    owners: &[Owner],
    walk: &mut Walk,
) -> Result<Vec<Victim>, u64> {
    let mut victims = Vec::with_capacity(owners.len());
    for (id, owner) in owners {
        let Some(owner) = owner.upgrade() else {
            walk.dying = true;
            return Err(*id);
        };
        let Some(slot) = set.try_lock(owner.0.clone()) else {
            walk.contended.push(owner);
            return Err(*id);
        };
        victims.push(Victim { slot, useful_bytes: owner.0.footprint_bytes });
    }
    Ok(victims)
}

/// The window that `policy` wants, and the buffers to evict for it, which may be more than those in the window.
pub(super) fn choose_window(
    state: &VramState,
    len_bytes: u64,
    range: &Range<u64>,
    avoided: &HashSet<u64>,
    policy: EvictionPolicy,
) -> Option<(Range<u64>, Vec<Owner>)> {
    let nodes: Vec<&Node> =
        state.lru.in_eviction_order().filter(|node| !avoided.contains(&node.id)).collect();
    let free = state.heap.free_spans();
    let window_among = |count: usize| {
        let free = free.iter().map(|span| Segment { span: *span, owner: None });
        let owned = nodes[..count].iter().enumerate().flat_map(|(owner, node)| {
            node.spans.iter().map(move |span| Segment { span: *span, owner: Some(owner) })
        });
        // Bytes of important buffers count for more, so that many unimportant bytes go before a few important ones.
        let cost: Vec<u128> =
            nodes.iter().map(|node| u128::from(node.len_bytes) << (8 * node.priority)).collect();
        cheapest_window(&mut free.chain(owned).collect::<Vec<_>>(), &cost, len_bytes, range)
    };
    let name = |owner: usize| (nodes[owner].id, nodes[owner].buffer.clone());
    match policy {
        EvictionPolicy::LruSet => {
            window_among(nodes.len()).map(|(window, owners)| (window, owners.into_iter().map(name).collect()))
        }
        EvictionPolicy::Lru => {
            // "Until it fits" is a smallest prefix of the LRU; a longer prefix always fits as well.
            window_among(nodes.len())?;
            let counts: Vec<usize> = (0..=nodes.len()).collect();
            let count = counts.partition_point(|count| window_among(*count).is_none());
            window_among(count).map(|(window, _)| (window, (0..count).map(name).collect()))
        }
    }
}
