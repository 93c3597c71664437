//! What a thread holds, in the order in which it came to hold it.
//!
//! The stack is a local of its thread. Other locals may end later and take locks while they do; then nobody watches.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::panic::Location;

use super::classes::ClassId;
use super::graph::GRAPH;
use super::rules::{Bid, Deed};

/// A place in the source.
pub(super) type Site = &'static Location<'static>;

/// One held lock, or one scope in which the thread is on the way to a signal.
pub(super) struct Entry {
    id: u64,
    pub(super) class: ClassId,
    /// How far in its class stands; none outside of the order.
    pub(super) depth: Option<u8>,
    pub(super) group: u64,
    /// The lock's address; 0 where nobody asks.
    instance: usize,
    pub(super) deed: Deed,
    pub(super) site: Site,
    /// Of the class and the group of the entry before it, so that what may be said against it was said of that one. A
    /// ticket with a thousand reservations is one entry to be looked at.
    pub(super) repeats: bool,
}

impl Entry {
    /// A lock of this class, taken here.
    #[cfg(all(test, not(any(loom, shuttle))))]
    #[track_caller]
    pub(super) fn of(class: ClassId) -> Entry {
        let site = Location::caller();
        Entry { id: 0, class, depth: None, group: 0, instance: 0, deed: Deed::Take, site, repeats: false }
    }

    /// Whether it stands for a lock and not for a scope.
    fn is_lock(&self) -> bool {
        matches!(self.deed, Deed::Take | Deed::Try)
    }
}

/// One thread's.
#[derive(Default)]
pub(super) struct Stack {
    /// Outermost first.
    pub(super) entries: Vec<Entry>,
    next_id: u64,
    /// Where the last root tokens were made, the latest first.
    pub(super) roots: [Option<Site>; 2],
}

/// Why a root token may not be made.
pub(super) enum Forgery {
    /// A lock is held.
    InsideLock { class: ClassId, since: Site, root: Option<Site> },
    /// A callback has a token of its own.
    InsideCallback { since: Site },
}

crate::sync::thread_local! {
    static STACK: RefCell<Stack> = RefCell::new(Stack::default());
}

/// Looks at what this thread holds; none once the thread has ended.
pub(super) fn look<O>(body: impl FnOnce(&Stack) -> O) -> Option<O> {
    STACK.try_with(|stack| body(&stack.borrow())).ok()
}

fn change<O>(body: impl FnOnce(&mut Stack) -> O) -> Option<O> {
    STACK.try_with(|stack| body(&mut stack.borrow_mut())).ok()
}

/// Runs `body` as if this thread held nothing.
pub(super) fn aside(body: impl FnOnce()) {
    let own = change(std::mem::take);
    body();
    change(|stack| *stack = own.unwrap_or_default());
}

/// Stands for one held lock, or one scope; dropping it takes that off the thread's stack.
pub(crate) struct Record {
    id: u64,
    not_send: PhantomData<*mut ()>,
}

impl Record {
    /// Notes the address of the lock, for those who ask whether this very one is held.
    pub(crate) fn of(self, instance: usize) -> Record {
        change(|stack| {
            if let Some(entry) = stack.entries.iter_mut().rfind(|entry| entry.id == self.id) {
                entry.instance = instance;
            }
        });
        self
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        change(|stack| {
            let entries = &mut stack.entries;
            if let Some(index) = entries.iter().rposition(|entry| entry.id == self.id) {
                let gone = entries.remove(index);
                if let Some(next) = entries.get_mut(index) {
                    next.repeats &= gone.repeats;
                }
            }
        });
    }
}

pub(super) fn push(bid: &Bid, group: u64) -> Record {
    let depth = GRAPH.classes.get(bid.class).position.depth();
    let pushed = change(|stack| {
        stack.next_id += 1;
        let id = stack.next_id;
        let Bid { class, deed, site, .. } = *bid;
        let repeats = stack.entries.last().is_some_and(|last| last.class == class && last.group == group);
        stack.entries.push(Entry { id, class, depth, group, instance: 0, deed, site, repeats });
        id
    });
    // No entry is called 0.
    Record { id: pushed.unwrap_or(0), not_send: PhantomData }
}

/// Whether this thread holds the lock at this address.
pub(super) fn holds(instance: usize) -> bool {
    look(|stack| stack.entries.iter().any(|held| held.instance == instance)).unwrap_or(true)
}

pub(crate) fn held_count() -> usize {
    look(|stack| stack.entries.iter().filter(|held| held.is_lock()).count()).unwrap_or(0)
}

/// Notes where a root token is made. A signalling section is no lock, so a token may be made inside one.
pub(super) fn enter_root(site: Site) -> Result<(), Forgery> {
    let entered = change(|stack| {
        let innermost = stack.entries.iter().rfind(|held| held.deed != Deed::Section);
        match innermost {
            None => {
                stack.roots = [Some(site), stack.roots[0]];
                Ok(())
            }
            Some(held) if held.deed == Deed::Callback => Err(Forgery::InsideCallback { since: held.site }),
            Some(held) => {
                Err(Forgery::InsideLock { class: held.class, since: held.site, root: stack.roots[0] })
            }
        }
    });
    entered.unwrap_or(Ok(()))
}
