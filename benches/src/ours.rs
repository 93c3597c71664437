//! Every call into the library that is measured, each a small function: what a driver would write.

use std::sync::Arc;

use devpagemap_fence::levels::Root;
use devpagemap_fence::{Exec, Fence, FenceSet, Held, Reservable, Reservation, Slot, Timeline, Usage};

use crate::peers::{Payload, count};

/// A buffer as a driver would have it.
pub struct Object {
    reservation: Reservation<Payload>,
}

impl Reservable for Object {
    type State = Payload;

    fn reservation(&self) -> &Reservation<Payload> {
        &self.reservation
    }
}

/// So many buffers, each an allocation of its own.
pub fn objects(count: usize) -> Vec<Arc<Object>> {
    let object = |_| Arc::new(Object { reservation: Reservation::new([0; 8]) });
    (0..count).map(object).collect()
}

/// Hands out a point and signals it, with nobody waiting.
#[inline]
pub fn create_and_signal(timeline: &Timeline) {
    let fence = std::hint::black_box(timeline.next_point());
    timeline.signal(fence.seqno());
}

/// A submission's locking: a new ticket, every object, and everything unlocked.
#[inline]
pub fn lock_all(held: &mut Held<'_, Root>, objects: &[Arc<Object>]) {
    let mut exec = Exec::new(held);
    lock_all_with(&mut exec, objects);
}

/// As [`lock_all`], with a ticket that the caller keeps.
#[inline]
pub fn lock_all_again<'o>(exec: &mut Exec<'_, 'o, Object>, objects: &'o [Arc<Object>]) {
    lock_all_with(exec, objects);
    exec.unlock_all();
}

#[inline]
fn lock_all_with<'o>(exec: &mut Exec<'_, 'o, Object>, objects: &'o [Arc<Object>]) {
    let locked = exec.run(|exec| objects.iter().try_for_each(|object| exec.lock(object).map(drop)));
    locked.expect("nobody else locks");
}

/// Locks one buffer and no other: no ticket, no set.
#[inline]
pub fn lock_single(held: &mut Held<'_, Root>, object: &Object) {
    drop(std::hint::black_box(Exec::one(held, object)));
}

/// Adds a fence to a buffer.
///
/// # Panics
/// Without memory.
#[inline]
pub fn add_fence(held: &mut Held<'_, Root>, object: &Object, fence: Fence, usage: Usage) {
    let mut locked = object.reservation.lock(held);
    locked.reserve_fences(1).expect("there is memory for a fence");
    locked.add_fence(fence, usage);
}

/// What somebody sees who wants to know what is being done to a buffer.
#[inline]
pub fn fences(object: &Object) -> FenceSet {
    object.reservation.fences(Usage::Bookkeep)
}

/// Locks a choice of the objects, counts in each of them, unlocks; how often it had to begin again.
#[inline]
pub fn transaction(
    held: &mut Held<'_, Root>,
    objects: &[Arc<Object>],
    choice: &[usize],
    slots: &mut Vec<Slot>,
) -> u64 {
    let mut exec = Exec::new(held);
    let locked = exec.run(|exec| {
        slots.clear();
        choice.iter().try_for_each(|&index| exec.lock(&objects[index]).map(|slot| slots.push(slot)))
    });
    locked.expect("contention ends in a restart, never in an error");
    let set = exec.set_mut();
    slots.iter().for_each(|&slot| count(set.state_mut(slot)));
    u64::from(exec.restarts())
}

/// What the objects have counted all in all.
pub fn counted(objects: &mut [Arc<Object>]) -> u64 {
    let mut held = Held::enter();
    objects.iter().map(|object| object.reservation.lock(&mut held)[0]).sum()
}
