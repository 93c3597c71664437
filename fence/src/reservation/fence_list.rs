//! The fences of a reservation: written by the lock's holder, read by everybody without a lock.
//!
//! A [`FenceList`] only ever grows, up to the capacity that it was made with. The holder appends; readers see every entry up to
//! the length that they find. When it is full, the holder makes a new list of those entries that still count, and publishes
//! that instead; readers of the old one keep it as long as they look at it.
//!
//! ```text
//!   Published ──▶ list:   len 3 | 7 kernel | 9 write | 9 read | free | ...      append: fill the slot, then raise len
//!                 spare:  len 0 | free | ...                                    the list before, once nobody reads it
//! ```
//!
//! An entry counts while its fence is outstanding and no later entry implies it, which is to say one of the same timeline
//! with a later point and the same or a stronger usage. So a list has room for what is at work, and the two lists
//! take turns without any allocation, however long the history is. A fence that is added again with a weaker usage does
//! not take the stronger one back: the earlier entry stays, as nothing implies it.

use std::sync::OnceLock;

use super::Usage;
use crate::error::SlotsExhausted;
use crate::fence::Fence;
use crate::fence_set::FenceSet;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::published::Published;
use crate::sync::{Arc, mutant};

/// The smallest capacity of a list; what a buffer that one queue uses needs for a few rounds.
const SMALLEST: usize = 8;

struct Booked {
    fence: Fence,
    usage: Usage,
}

impl Booked {
    /// Whether whoever waits for this one waits for `other` as well.
    fn implies(&self, other: &Booked) -> bool {
        self.fence.timeline_id() == other.fence.timeline_id()
            && self.fence.seqno() >= other.fence.seqno()
            && self.usage <= other.usage
    }
}

/// Fences with their usages, in the order in which they were added.
pub(crate) struct FenceList {
    len: AtomicUsize,               // raised by the holder, after the slot was filled
    slots: Box<[OnceLock<Booked>]>, // those below `len` are filled and constant
}

impl FenceList {
    fn with_capacity(capacity: usize) -> Option<FenceList> {
        let mut slots = Vec::new();
        slots.try_reserve_exact(capacity).ok()?;
        slots.resize_with(capacity, OnceLock::new);
        Some(FenceList { len: AtomicUsize::new(0), slots: slots.into() })
    }

    fn booked(&self) -> impl Iterator<Item = &Booked> + Clone {
        let too_many = usize::from(mutant!("reader_sees_a_slot_too_early"));
        let len = self.len.load(Ordering::Acquire) + too_many;
        self.slots[..len].iter().map(|slot| slot.get().expect("slots below the length are filled"))
    }

    fn room(&self) -> usize {
        self.slots.len() - self.len.load(Ordering::Relaxed)
    }

    /// Appends; the caller is the only one who does, and has seen that there is room.
    fn append(&self, booked: Booked) {
        let index = self.len.load(Ordering::Relaxed);
        let filled = self.slots[index].set(booked);
        debug_assert!(filled.is_ok(), "slots from the length on are free");
        self.len.store(index + 1, Ordering::Release);
    }

    fn clear(&mut self) {
        self.slots.iter_mut().for_each(|slot| *slot = OnceLock::new());
        self.len = AtomicUsize::new(0);
    }

    /// Those that count: outstanding, and not implied by a later one.
    fn that_count(&self) -> impl Iterator<Item = &Booked> {
        let booked = self.booked();
        let mut later = booked.clone();
        booked.filter(move |old| {
            later.next();
            !old.fence.is_signaled() && !later.clone().any(|new| new.implies(old))
        })
    }

    /// The outstanding fences of all usages up to `usage`.
    pub(crate) fn outstanding(&self, usage: Usage) -> FenceSet {
        let wanted = |booked: &&Booked| booked.usage <= usage && !booked.fence.is_signaled();
        self.booked().filter(wanted).map(|booked| booked.fence.clone()).collect()
    }

    /// Whether a fence of a usage up to `usage` is outstanding.
    pub(crate) fn is_busy(&self, usage: Usage) -> bool {
        self.booked().any(|booked| booked.usage <= usage && !booked.fence.is_signaled())
    }

    /// The outstanding fences with the usages they were added with.
    pub(crate) fn with_usage(&self) -> Vec<(Fence, Usage)> {
        self.that_count().map(|booked| (booked.fence.clone(), booked.usage)).collect()
    }
}

/// The holder's side of a reservation's fences.
#[derive(Default)]
pub(crate) struct Book {
    list: Option<Arc<FenceList>>,  // the published one
    spare: Option<Arc<FenceList>>, // empty
}

impl Book {
    /// Makes room for `count` fences more than there are.
    pub(crate) fn make_room(
        &mut self,
        published: &Published<FenceList>,
        count: usize,
    ) -> Result<(), SlotsExhausted> {
        if self.list.as_ref().is_some_and(|list| list.room() >= count) {
            return Ok(());
        }
        let counting = self.list.as_ref().map_or(0, |list| list.that_count().count());
        let list =
            self.empty_list(counting, count).ok_or(SlotsExhausted { wanted: count, in_use: counting })?;
        let kept = if mutant!("new_list_forgets_the_old") { 0 } else { counting };
        for Booked { fence, usage } in self.list.iter().flat_map(|list| list.that_count()).take(kept) {
            list.append(Booked { fence: fence.clone(), usage: *usage });
        }
        self.publish(published, list);
        Ok(())
    }

    /// A list with room for `counting` fences and `count` more; the spare one, if it is large enough.
    fn empty_list(&mut self, counting: usize, count: usize) -> Option<Arc<FenceList>> {
        let needed = counting.checked_add(count)?;
        if let Some(spare) = self.spare.take().filter(|spare| spare.slots.len() >= needed) {
            return Some(spare);
        }
        // Twice what counts now, so that the next lists are as large and take turns.
        let roomy = counting.checked_mul(2)?.checked_add(count)?.checked_next_power_of_two()?;
        FenceList::with_capacity(roomy.max(SMALLEST)).map(Arc::new)
    }

    fn publish(&mut self, published: &Published<FenceList>, list: Arc<FenceList>) {
        self.list = Some(list.clone());
        let before = published.replace(list);
        self.spare = before.and_then(|mut before| {
            Arc::get_mut(&mut before)?.clear();
            Some(before)
        });
    }

    /// Adds a fence. Cannot fail when room was made.
    pub(crate) fn book(&mut self, published: &Published<FenceList>, fence: Fence, usage: Usage) {
        let new = Booked { fence, usage };
        let is_idle = new.fence.is_signaled();
        if is_idle || self.list.iter().flat_map(|list| list.booked()).any(|old| old.implies(&new)) {
            return;
        }
        self.make_room(published, 1).expect("there is memory for one more fence");
        let list = self.list.as_ref().expect("room was made");
        list.append(new);
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::timeline::Timeline;

    /// How many fences the two lists have room for.
    fn room(book: &Book) -> usize {
        [&book.list, &book.spare].into_iter().flatten().map(|list| list.slots.len()).sum()
    }

    #[test]
    fn a_million_fences_leave_two_small_lists_that_take_turns() {
        let (published, mut book) = (Published::none(), Book::default());
        let timeline = Timeline::new("ring");
        let mut lists = Vec::new();
        for seqno in 1..=1_000_000 {
            book.make_room(&published, 2).expect("a little memory");
            book.book(&published, timeline.next_point(), Usage::Write);
            timeline.signal(seqno);
            let list = book.list.as_ref().map(Arc::as_ptr);
            if !lists.contains(&list) {
                lists.push(list);
            }
        }
        assert_eq!((room(&book), lists.len()), (2 * SMALLEST, 2));
    }

    #[test]
    fn what_is_outstanding_stays_when_the_list_is_made_anew() {
        let (published, mut book) = (Published::none(), Book::default());
        let (slow, fast) = (Timeline::new("slow"), Timeline::new("fast"));
        book.book(&published, slow.next_point(), Usage::Read);
        for seqno in 1..=100 {
            book.book(&published, fast.next_point(), Usage::Write);
            fast.signal(seqno);
        }
        let read = published.read();
        let list = read.as_ref().expect("there is a list");
        assert_eq!(list.outstanding(Usage::Bookkeep).len(), 1);
        assert!(list.is_busy(Usage::Read) && !list.is_busy(Usage::Write));
    }

    #[test]
    fn a_reader_keeps_the_list_that_it_looks_at() {
        let (published, mut book) = (Published::none(), Book::default());
        let timeline = Timeline::new("ring");
        book.book(&published, timeline.next_point(), Usage::Write);
        let read = published.read();
        for seqno in 2..=50 {
            book.book(&published, timeline.next_point(), Usage::Write);
            timeline.signal(seqno - 1);
        }
        assert_eq!(
            read.as_ref().expect("the list of then").booked().next().map(|first| first.fence.seqno()),
            Some(1)
        );
    }
}
