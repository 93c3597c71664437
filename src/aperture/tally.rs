//! The sums over pages: in total, and for each account. All under the aperture lock.

use std::collections::BTreeMap;

use super::ledger::{AccountId, PendingId};
use super::users::{Sum, Use, User, kind_of};

/// Pages in use, of everybody or of one account.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) live_pages: u64,
    pub(super) pending_pages: u64,
    /// The pending ones again, by what they wait for; a page that waits for several things is in each. Oldest first.
    by_pending: BTreeMap<PendingId, u64>,
}

impl Tally {
    /// What has been pending longest.
    pub(super) fn oldest_pending(&self) -> Option<PendingId> {
        self.by_pending.first_key_value().map(|(id, _)| *id)
    }

    pub(super) fn is_zero(&self) -> bool {
        self.live_pages == 0 && self.pending_pages == 0
    }

    fn count(&mut self, kind: Use, pages: u64, pendings: impl Iterator<Item = PendingId>, way: Way) {
        match kind {
            Use::Idle => {}
            Use::Live => way.apply(&mut self.live_pages, pages),
            Use::Pending => {
                way.apply(&mut self.pending_pages, pages);
                for id in pendings {
                    let waiting_pages = self.by_pending.entry(id).or_default();
                    way.apply(waiting_pages, pages);
                    if *waiting_pages == 0 {
                        self.by_pending.remove(&id);
                    }
                }
            }
        }
    }
}

/// Whether pages are counted in or out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    In,
    Out,
}

impl Way {
    fn apply(self, sum: &mut u64, pages: u64) {
        match self {
            Way::In => *sum += pages,
            Way::Out => *sum -= pages,
        }
    }
}

/// What an importer or a client uses and may use.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) tally: Tally,
    pub(super) limit_pages: u64,
    /// Whether its owner still exists.
    open: bool,
}

/// All sums of a device.
#[derive(Debug, Default)]
pub(super) struct Tallies {
    pub(super) total: Tally,
    accounts: BTreeMap<AccountId, Entry>,
}

const STAYS: &str = "an account stays while somebody owns it or pages count for it";

impl Tallies {
    pub(super) fn open(&mut self, id: AccountId) {
        self.accounts.insert(id, Entry { tally: Tally::default(), limit_pages: u64::MAX, open: true });
    }

    /// The account goes when its last page does.
    pub(super) fn close(&mut self, id: AccountId) {
        self.entry_mut(id).open = false;
        self.forget_if_unused(id);
    }

    pub(super) fn entry(&self, id: AccountId) -> &Entry {
        self.accounts.get(&id).expect(STAYS)
    }

    pub(super) fn entry_mut(&mut self, id: AccountId) -> &mut Entry {
        self.accounts.get_mut(&id).expect(STAYS)
    }

    pub(super) fn forget_if_unused(&mut self, id: AccountId) {
        if self.accounts.get(&id).is_some_and(|entry| !entry.open && entry.tally.is_zero()) {
            self.accounts.remove(&id);
        }
    }

    /// Counts a run of pages of a buffer of `client` into every sum that it is in, or out of it.
    pub(super) fn count(&mut self, client: AccountId, users: &[User], pages: u64, way: Way) {
        let all = |sum| users.iter().flat_map(move |user| user.pending_in(sum));
        self.total.count(kind_of(users, Sum::Total), pages, all(Sum::Total), way);
        let kind = kind_of(users, Sum::Client);
        self.entry_mut(client).tally.count(kind, pages, all(Sum::Client), way);
        for user in users {
            let (kind, own) = (user.kind(Sum::Importer), user.pending_in(Sum::Importer));
            if kind == Use::Idle {
                // Others have inherited all that it had; its account may be gone.
                continue;
            }
            self.entry_mut(user.importer).tally.count(kind, pages, own, way);
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.accounts.is_empty() && self.total.is_zero() && self.total.by_pending.is_empty()
    }
}
