//! The table of all windows, with their order of use.
//!
//! ```text
//!   listed    first ⇄ … ⇄ last     the first is asked back first; one that was used meanwhile goes to the end once
//!   lent      off the list: it was asked back while somebody had it, and who returns it puts it at the end
//!   leaving   off the list: its buffer moves away
//!   orphan    off the list: its buffer has moved away, and somebody still has it
//!   fixed     never on the list: a prefix of VRAM, whose space nobody can take
//! ```
//!
//! Everything here is under the aperture lock.

use std::sync::Weak;

use devpagemap_fence::FenceSet;
use devpagemap_fence::sync::lending::{Answer, Lender};
use slab::Slab;

use super::Zap;
use super::window::Shown;

/// Where a window stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Listed { prev: Option<usize>, next: Option<usize> },
    Lent,
    Leaving,
    Orphan,
    Fixed,
}

/// One window. All of it is under the aperture lock.
pub(super) struct Entry {
    pub(super) lender: Lender<Shown>,
    /// Whom to tell when it is taken.
    pub(super) followers: Vec<Weak<dyn Zap>>,
    /// The driver's programming of it, and what former users still wait for.
    pub(super) ends: FenceSet,
    pub(super) standing: Standing,
}

/// What asking the first of the list back came to.
pub(super) enum Asked {
    /// It is out of the table, and its space the asker's.
    Taken(Entry),
    /// It is the last now, as it was used since it was last asked.
    Spared,
    /// It is off the list, as somebody has it.
    Lent,
    /// The list is empty.
    Nobody,
}

#[derive(Default)]
pub(super) struct Table {
    entries: Slab<Entry>,
    first: Option<usize>,
    last: Option<usize>,
}

impl Table {
    /// The key that the next entry will have.
    pub(super) fn next_key(&self) -> usize {
        self.entries.vacant_key()
    }

    /// Adds a window, at the end of the list unless it is fixed.
    pub(super) fn insert(&mut self, lender: Lender<Shown>, fixed: bool) {
        // Nobody may have waited until it shows what it shall, and what its pages show next must come after that.
        let ends = lender.after.clone();
        let entry = Entry { lender, followers: Vec::new(), ends, standing: Standing::Fixed };
        let key = self.entries.insert(entry);
        if !fixed {
            self.link_last(key);
        }
    }

    /// A window's entry; `None` once its space is somebody else's.
    pub(super) fn get_mut(&mut self, lender: &Lender<Shown>) -> Option<&mut Entry> {
        self.entries.get_mut(lender.key).filter(|entry| entry.lender.is_same(lender))
    }

    /// Takes a window off the list for good.
    pub(super) fn detach(&mut self, lender: &Lender<Shown>, standing: Standing) {
        self.unlink(lender.key);
        self.entries[lender.key].standing = standing;
    }

    pub(super) fn remove(&mut self, lender: &Lender<Shown>) -> Entry {
        self.unlink(lender.key);
        self.entries.remove(lender.key)
    }

    /// Asks the first of the list back.
    pub(super) fn ask_first(&mut self, spare_used: bool) -> Asked {
        let Some(key) = self.first else { return Asked::Nobody };
        match self.entries[key].lender.ask_back(spare_used) {
            Answer::TakenBack => {
                self.unlink(key);
                Asked::Taken(self.entries.remove(key))
            }
            Answer::SecondChance => {
                self.unlink(key);
                self.link_last(key);
                Asked::Spared
            }
            Answer::Lent => {
                self.unlink(key);
                self.entries[key].standing = Standing::Lent;
                Asked::Lent
            }
        }
    }

    /// Puts a returned window at the end of the list.
    pub(super) fn link_last(&mut self, key: usize) {
        let prev = self.last.replace(key);
        self.entries[key].standing = Standing::Listed { prev, next: None };
        match prev {
            None => self.first = Some(key),
            Some(prev) => match &mut self.entries[prev].standing {
                Standing::Listed { next, .. } => *next = Some(key),
                standing => unreachable!("the last of the list is {standing:?}"),
            },
        }
    }

    fn unlink(&mut self, key: usize) {
        let Standing::Listed { prev, next } = self.entries[key].standing else { return };
        match prev.map(|prev| &mut self.entries[prev].standing) {
            None => self.first = next,
            Some(Standing::Listed { next: of_prev, .. }) => *of_prev = next,
            Some(standing) => unreachable!("a neighbour on the list is {standing:?}"),
        }
        match next.map(|next| &mut self.entries[next].standing) {
            None => self.last = prev,
            Some(Standing::Listed { prev: of_next, .. }) => *of_next = prev,
            Some(standing) => unreachable!("a neighbour on the list is {standing:?}"),
        }
    }
}
