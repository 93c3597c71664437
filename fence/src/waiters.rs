//! Who waits for the points of a timeline: threads that sleep and callbacks, each in a queue sorted by point.

use std::collections::VecDeque;

use crate::error::FenceError;
use crate::sync::{Arc, Bell, mutant};

/// How a point ended.
pub(crate) type Outcome = Result<(), FenceError>;
/// A callback.
pub(crate) type Notify = Box<dyn FnOnce(Outcome) + Send>;

/// Empty queues keep no more room than this, however many have waited at once.
const KEPT_ROOM: usize = 64;

pub(crate) struct Queued<T> {
    pub point: u64,
    pub id: u64,
    pub what: T,
}

/// The queues of one timeline. All of it is protected by the timeline's lock.
#[derive(Default)]
pub(crate) struct Waiters {
    sleepers: VecDeque<Queued<Arc<Bell>>>, // sorted by point, then by arrival
    callbacks: VecDeque<Queued<Notify>>,   // sorted by point, then by arrival
    next_id: u64,
    /// Some thread is running callbacks, and will run what becomes due meanwhile.
    pub draining: bool,
}

impl Waiters {
    pub(crate) fn is_empty(&self) -> bool {
        self.sleepers.is_empty() && self.callbacks.is_empty()
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(crate) fn add_sleeper(&mut self, point: u64, what: Arc<Bell>) -> u64 {
        let id = self.fresh_id();
        insert(&mut self.sleepers, Queued { point, id, what });
        id
    }

    pub(crate) fn add_callback(&mut self, point: u64, what: Notify) -> u64 {
        let id = self.fresh_id();
        insert(&mut self.callbacks, Queued { point, id, what });
        id
    }

    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn remove_sleeper(&mut self, point: u64, id: u64) {
        remove(&mut self.sleepers, point, id);
    }

    pub(crate) fn remove_callback(&mut self, point: u64, id: u64) -> Option<Queued<Notify>> {
        remove(&mut self.callbacks, point, id)
    }

    /// Takes out whoever sleeps for a point up to `completed`.
    pub(crate) fn take_due_sleepers(&mut self, completed: u64) -> Vec<Arc<Bell>> {
        let due = self.sleepers.partition_point(|sleeper| sleeper.point <= completed);
        self.sleepers.drain(..due).map(|sleeper| sleeper.what).collect()
    }

    /// Whether the caller shall run callbacks: some are due, and nobody else is at it.
    pub(crate) fn start_draining(&mut self, completed: u64) -> bool {
        let vacant = !self.draining || mutant!("callbacks_overtake");
        let start = vacant && self.callbacks.front().is_some_and(|next| next.point <= completed);
        self.draining |= start;
        start
    }

    pub(crate) fn pop_due_callback(&mut self, completed: u64) -> Option<Queued<Notify>> {
        self.callbacks.pop_front_if(|next| next.point <= completed)
    }

    /// Gives back the room of queues that are empty after a crowd.
    pub(crate) fn shrink(&mut self) {
        self.sleepers.shrink_to(KEPT_ROOM);
        self.callbacks.shrink_to(KEPT_ROOM);
    }
}

fn insert<T>(queue: &mut VecDeque<Queued<T>>, entry: Queued<T>) {
    // Points are mostly waited for in the order in which they are handed out.
    if queue.back().is_none_or(|last| last.point <= entry.point) {
        return queue.push_back(entry);
    }
    let index = queue.partition_point(|queued| queued.point <= entry.point);
    queue.insert(index, entry);
}

fn remove<T>(queue: &mut VecDeque<Queued<T>>, point: u64, id: u64) -> Option<Queued<T>> {
    let index = queue.binary_search_by_key(&(point, id), |queued| (queued.point, queued.id)).ok()?;
    queue.remove(index)
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_that_has_gone_leaves_no_room_behind() {
        let mut waiters = Waiters::default();
        let bell = Arc::new(Bell::mine());
        for point in 1..=10_000 {
            waiters.add_sleeper(point, bell.clone());
            waiters.add_callback(point, Box::new(|_| ()));
        }
        assert_eq!(waiters.take_due_sleepers(10_000).len(), 10_000);
        while waiters.pop_due_callback(10_000).is_some() {}
        assert!(waiters.is_empty());
        waiters.shrink();
        assert!(waiters.sleepers.capacity() <= KEPT_ROOM && waiters.callbacks.capacity() <= KEPT_ROOM);
    }
}
