//! The lock order at run time: what types cannot see, seen in debug builds and in models, free in release.
//!
//! Each thread keeps a stack of what it holds: rank, class and the place in the source where it was taken. Ranks are
//! a total order, so no graph of classes is needed: a lock may be waited for only when its rank is above every rank
//! that is held. Three things are added to that:
//!
//! * reservations share one rank, and may repeat inside one group (one [`Exec`](crate::Exec));
//! * a lock that was only *tried* cannot close a circle of waiters, so trying is legal at any point;
//! * a fence callback stands on the stack as a pseudo-lock of the reservations' rank. Whoever waits for a fence may
//!   hold reservations or outer locks, so a callback that wanted one of those would wait for its own waiter.
//!
//! A report names both ends: where the offending lock was asked for, and where the one in its way was taken.

/// The group of a lock that may not be joined by another of its rank.
pub(crate) const ALONE: Group = Group::ALONE;

#[cfg(not(any(debug_assertions, loom)))]
pub(crate) use unwatched::{Callback, Group, Record, acquire, acquire_tried, enter_root};
#[cfg(any(debug_assertions, loom))]
pub(crate) use watched::{Callback, Group, Record, acquire, acquire_tried, enter_root};

/// Panics, in debug builds and models, when this thread holds what a fence may need before it can signal: a lock of
/// the region level or further in. Every wait for a fence calls it.
#[inline]
#[track_caller]
pub fn assert_may_wait() {
    #[cfg(any(debug_assertions, loom))]
    watched::forbid_inner("wait for a fence", true);
}

/// Panics, in debug builds and models, when this thread holds a lock of the region level or further in: signalling
/// runs callbacks, and those may take such locks. Every signal calls it.
#[inline]
#[track_caller]
pub fn assert_may_signal() {
    #[cfg(any(debug_assertions, loom))]
    watched::forbid_inner("signal a fence", false);
}

/// How many locks of the order this thread holds; always 0 in release builds, where nobody counts.
pub fn held_count() -> usize {
    #[cfg(any(debug_assertions, loom))]
    return watched::depth();
    #[cfg(not(any(debug_assertions, loom)))]
    return 0;
}

#[cfg(any(debug_assertions, loom))]
mod watched {
    use super::ALONE;
    use crate::levels::{Level, ORDER, Region, Tickets};
    use std::cell::RefCell;
    use std::marker::PhantomData;
    use std::panic::Location;

    /// What locks of one rank have in common that may be held together.
    #[derive(Copy, Clone, PartialEq, Eq)]
    pub(crate) struct Group(u64);

    impl Group {
        pub(super) const ALONE: Group = Group(0);

        /// A group that no other set of locks has. A name, and no part of any protocol, so models need not see it drawn.
        pub(crate) fn fresh() -> Group {
            use std::sync::atomic::{AtomicU64, Ordering};
            static NEXT: AtomicU64 = AtomicU64::new(1);
            Group(NEXT.fetch_add(1, Ordering::Relaxed))
        }
    }

    struct Entry {
        id: u64,
        rank: u8,
        class: &'static str,
        group: Group,
        callback: bool,
        site: &'static Location<'static>,
    }

    #[derive(Default)]
    struct Stack {
        entries: Vec<Entry>, // this thread's
        next_id: u64,        // this thread's
    }

    impl Stack {
        fn push(&mut self, mut entry: Entry) -> Record {
            self.next_id += 1;
            entry.id = self.next_id;
            let record = Record { id: entry.id, not_send: PhantomData };
            self.entries.push(entry);
            record
        }
    }

    crate::sync::thread_local! {
        static STACK: RefCell<Stack> = RefCell::new(Stack::default());
    }

    /// Stands for one held lock; dropping it takes the lock off the thread's stack.
    pub(crate) struct Record {
        id: u64,
        not_send: PhantomData<*mut ()>,
    }

    impl Drop for Record {
        fn drop(&mut self) {
            let id = self.id;
            // A thread's locals may be gone when its last guards are; then nobody asks any more.
            let _ = STACK.try_with(|stack| {
                let entries = &mut stack.borrow_mut().entries;
                if let Some(index) = entries.iter().rposition(|entry| entry.id == id) {
                    entries.remove(index);
                }
            });
        }
    }

    fn describe(rank: u8, class: &str) -> String {
        format!("{class:?} (level {})", ORDER[usize::from(rank)])
    }

    /// A second panic while unwinding would abort and hide the first.
    fn report(message: String) {
        if !std::thread::panicking() {
            panic!("{message}");
        }
    }

    /// Notes that a lock is about to be waited for.
    #[track_caller]
    pub(crate) fn acquire(rank: u8, class: &'static str, group: Group) -> Record {
        let site = Location::caller();
        let refusal = STACK.with(|stack| {
            let stack = stack.borrow();
            let in_the_way = stack.entries.iter().rev().find(|held| {
                held.rank > rank || (held.rank == rank && (group == ALONE || held.group != group))
            })?;
            Some(format!(
                "lock order violated: {} is taken at {site}, while {} is held since {}; the order is {}",
                describe(rank, class),
                describe(in_the_way.rank, in_the_way.class),
                in_the_way.site,
                ORDER.join(" > "),
            ))
        });
        if let Some(message) = refusal {
            report(message);
        }
        push(rank, class, group, false, site)
    }

    /// Notes that a lock was taken by a try, which cannot deadlock.
    #[track_caller]
    pub(crate) fn acquire_tried(rank: u8, class: &'static str, group: Group) -> Record {
        push(rank, class, group, false, Location::caller())
    }

    fn push(
        rank: u8,
        class: &'static str,
        group: Group,
        callback: bool,
        site: &'static Location<'static>,
    ) -> Record {
        STACK.with(|stack| stack.borrow_mut().push(Entry { id: 0, rank, class, group, callback, site }))
    }

    /// Refuses a second root token inside a lock; a fence callback begins anew.
    #[track_caller]
    pub(crate) fn enter_root() {
        let site = Location::caller();
        let refusal = STACK.with(|stack| {
            let stack = stack.borrow();
            let innermost = stack.entries.last().filter(|held| !held.callback)?;
            Some(format!(
                "a root token is forged at {site}, while {} is held since {}; hand the token down instead",
                describe(innermost.rank, innermost.class),
                innermost.site,
            ))
        });
        if let Some(message) = refusal {
            report(message);
        }
    }

    /// Refuses `deed` when a lock of the region level or further in is held, or (if asked) inside a callback.
    #[track_caller]
    pub(super) fn forbid_inner(deed: &str, callbacks_too: bool) {
        let site = Location::caller();
        let refusal = STACK.with(|stack| {
            let stack = stack.borrow();
            let in_the_way = stack
                .entries
                .iter()
                .rev()
                .find(|held| held.rank >= Region::RANK || (callbacks_too && held.callback))?;
            Some(format!(
                "this thread may not {deed} at {site}, while {} is held since {}",
                describe(in_the_way.rank, in_the_way.class),
                in_the_way.site,
            ))
        });
        if let Some(message) = refusal {
            report(message);
        }
    }

    pub(super) fn depth() -> usize {
        STACK.with(|stack| stack.borrow().entries.iter().filter(|held| !held.callback).count())
    }

    /// While this lives, the thread runs fence callbacks.
    pub(crate) struct Callback {
        _record: Record,
    }

    impl Callback {
        #[track_caller]
        pub(crate) fn begin() -> Callback {
            Callback { _record: push(Tickets::RANK, "fence callback", ALONE, true, Location::caller()) }
        }
    }
}

#[cfg(not(any(debug_assertions, loom)))]
mod unwatched {
    use std::marker::PhantomData;

    pub(crate) struct Record {
        _not_send: PhantomData<*mut ()>,
    }

    #[derive(Copy, Clone)]
    pub(crate) struct Group;

    impl Group {
        pub(super) const ALONE: Group = Group;

        #[inline(always)]
        pub(crate) fn fresh() -> Group {
            Group
        }
    }

    #[inline(always)]
    pub(crate) fn acquire(_rank: u8, _class: &'static str, _group: Group) -> Record {
        Record { _not_send: PhantomData }
    }

    #[inline(always)]
    pub(crate) fn acquire_tried(_rank: u8, _class: &'static str, _group: Group) -> Record {
        Record { _not_send: PhantomData }
    }

    #[inline(always)]
    pub(crate) fn enter_root() {}

    pub(crate) struct Callback;

    impl Callback {
        #[inline(always)]
        pub(crate) fn begin() -> Callback {
            Callback
        }
    }
}
