//! The ledger of BAR pages in peer use: who has them, who may have more, and never more than the hard limit.
//!
//! A page counts once in total and once for the client that its buffer belongs to, however many importers have mapped it, and
//! once for each of those importers. A map that is given back behind fences stays *pending*: its pages count until the
//! fences signal, since the importer may use them until then. But nobody is refused because of it. Whoever would not fit
//! inherits pending pages, the oldest first, and gets their fences to queue behind; those pages count no more, and the new ones
//! do. So the pages that are really in use never exceed a limit, although nobody waits. (For the same reason the fences stay with
//! the new pages: a second map of those queues behind them too, and if they are given back at once they count until then.)
//!
//! ```text
//!   hard limit 8      live ███████·   pending ░            a wish for 3
//!   admitted          live ██████████ would be 10 > 8      Over { missing: 2 }
//!
//!   hard limit 8      live █████      pending ░░░          a wish for 2
//!   admitted          live ███████    pending ░            after: the fences of the 2 oldest pending pages
//! ```
//!
//! What is admitted, and when the gate opens and closes, depends on live pages and rooms (below) alone: never on which fences
//! happen to have signalled. Checking and charging is one hold of the aperture lock.
//!
//! Who demotes others to make room must not lose it to a third before it is admitted. So the pages that it frees are
//! set aside: they go on counting as used, until its own wish takes them or they are given back.
//!
//! No callback runs under the lock. What has to be hung on fences is returned ([`Unreaped`]), and so is that a mark was
//! crossed; the crossings themselves stay in a queue here, so that they are told in the order in which they happened (see
//! [`pressure`](super::pressure)).

use std::ops::Range;
use std::sync::Arc;

use devpagemap_fence::{FenceSet, Held, Lock, levels};

use super::book::Book;
use super::gate::{Crossing, PressureLevel};
use super::limits::{BarLimit, Marks, P2p, Rank};
use crate::bo::WeakBuffer;

/// An importer's or a client's account. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct AccountId(pub(super) u64);

/// Pages that were given back and whose fences have not signalled. Never reused; older ones are less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PendingId(pub(super) u64);

/// A buffer at one of the places where it has been. The generation must change whenever its pages get other BAR pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PlaceKey {
    pub(crate) buffer: u64,
    pub(crate) generation: u64,
}

/// What somebody would like to map.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) place: PlaceKey,
    /// Pages of the buffer, not of the BAR. Not empty.
    pub(crate) pages: Range<u64>,
    pub(crate) importer: AccountId,
    /// The account that the buffer belongs to; always the same for one buffer.
    pub(crate) client: AccountId,
    /// Not [`P2p::Never`].
    pub(crate) rank: Rank,
    /// For [`Candidate::buffer`].
    pub(crate) buffer: WeakBuffer,
}

/// Pages that one map has. Must be given back.
#[derive(Debug)]
#[must_use = "these pages count until they are released"]
pub(crate) struct Charge {
    pub(super) place: PlaceKey,
    pub(super) pages: Range<u64>,
    pub(super) importer: AccountId,
}

/// A wish that did not fit; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Over {
    pub(crate) limit: BarLimit,
    pub(crate) limit_pages: u64,
    /// How many pages that limit counts now.
    pub(crate) used_pages: u64,
    /// How many have to be freed before the wish fits.
    pub(crate) missing_pages: u64,
}

/// A wish that was granted.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) charge: Charge,
    /// Who must have finished before the first access: the former users of inherited pages.
    pub(crate) after: FenceSet,
    pub(crate) unreaped: Vec<Unreaped>,
    /// Whether there are crossings to be told.
    pub(crate) crossed: bool,
}

/// Pages that count until `fences` have signalled: [`Ledger::reap`] must be hung on them, outside of the aperture lock.
#[derive(Debug)]
#[must_use = "without a callback these pages count for ever"]
pub(crate) struct Unreaped {
    pub(crate) id: PendingId,
    pub(crate) fences: FenceSet,
}

/// What giving back has left to do.
#[derive(Debug)]
#[must_use = "what is pending has to be reaped, and what was crossed has to be told"]
pub(crate) struct Released {
    pub(crate) unreaped: Option<Unreaped>,
    /// Whether there are crossings to be told.
    pub(crate) crossed: bool,
}

/// A buffer whose demotion would free pages.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) id: u64,
    pub(crate) buffer: WeakBuffer,
    pub(crate) rank: Rank,
    /// How many pages that would free, under the limit that was asked about.
    pub(crate) pages: u64,
}

/// How much is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// By maps.
    pub(crate) live_pages: u64,
    /// By maps that were given back, until their fences signal.
    pub(crate) pending_pages: u64,
    /// The most that both together have been.
    pub(crate) peak_pages: u64,
    /// Set aside for those who have demoted others.
    pub(crate) reserved_pages: u64,
    pub(crate) level: Option<PressureLevel>,
}

/// BAR pages in peer use, of one device.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// The aperture lock itself.
    book: Lock<levels::Aperture, Book>,
}

/// An importer's or a client's account, closed when it is dropped.
#[derive(Debug)]
pub(crate) struct Account {
    /// Constant.
    pub(crate) id: AccountId,
    /// Constant.
    ledger: Arc<Ledger>,
}

impl Account {
    /// An account without a limit.
    pub(crate) fn open(ledger: &Arc<Ledger>, held: &mut Held<'_, levels::Tickets>) -> Account {
        let id = ledger.book.lock(held).open_account();
        Account { id, ledger: ledger.clone() }
    }

    /// What it may use from now on. What it uses beyond that stays, but there is no more.
    pub(crate) fn set_limit(&self, limit_pages: u64, held: &mut Held<'_, levels::Tickets>) {
        self.ledger.book.lock(held).set_limit(self.id, limit_pages);
    }

    /// The pages of its maps.
    pub(crate) fn live_pages(&self, held: &mut Held<'_, levels::Tickets>) -> u64 {
        self.ledger.book.lock(held).live_pages_of(self.id)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.ledger.book.lock(&mut Held::in_destructor()).close_account(self.id);
    }
}

impl Ledger {
    pub(crate) fn new(marks: Marks) -> Ledger {
        Ledger { book: Lock::new("BAR ledger", Book::new(marks)) }
    }

    /// Charges a wish, or says what it is over. `room_pages` is what the caller has freed by [`Ledger::demote`]; what the wish
    /// takes of it is subtracted.
    pub(crate) fn admit(
        &self,
        wish: &Wish,
        room_pages: &mut u64,
        held: &mut Held<'_, levels::Tickets>,
    ) -> Result<Granted, Over> {
        debug_assert!(!wish.pages.is_empty() && wish.rank.p2p != P2p::Never, "{wish:?}");
        let mut book = self.book.lock(held);
        book.check(wish, *room_pages)?;
        #[cfg(loom_mutant = "check_and_charge_in_two_holds")]
        let mut book = {
            drop(book);
            self.book.lock(held)
        };
        let (after, unreaped) = book.charge(wish, room_pages);
        let Wish { place, pages, importer, .. } = wish.clone();
        let charge = Charge { place, pages, importer };
        Ok(Granted { charge, after, unreaped, crossed: book.note_use() })
    }

    /// Gives a map's pages back behind `fences`.
    pub(crate) fn release(
        &self,
        charge: Charge,
        fences: FenceSet,
        held: &mut Held<'_, levels::Tickets>,
    ) -> Released {
        let mut book = self.book.lock(held);
        let (_, unreaped) = book.release(charge, fences);
        Released { unreaped, crossed: book.note_use() }
    }

    /// As [`release`](Ledger::release), and sets aside what that frees: nobody else gets it. `room_pages` grows by it.
    pub(crate) fn demote(
        &self,
        charge: Charge,
        fences: FenceSet,
        room_pages: &mut u64,
        held: &mut Held<'_, levels::Tickets>,
    ) -> Released {
        let mut book = self.book.lock(held);
        let (freed_pages, unreaped) = book.release(charge, fences);
        *room_pages += freed_pages;
        book.reserve(freed_pages);
        Released { unreaped, crossed: book.note_use() }
    }

    /// Gives back what was set aside and not taken; true when there are crossings to be told.
    pub(crate) fn give_back_room(&self, room_pages: u64, held: &mut Held<'_, levels::Tickets>) -> bool {
        let mut book = self.book.lock(held);
        book.unreserve(room_pages);
        book.note_use()
    }

    /// The fences of these pages have signalled: they count no more, unless somebody has inherited them.
    pub(crate) fn reap(&self, id: PendingId, held: &mut Held<'_, levels::Tickets>) {
        self.book.lock(held).reap(id);
    }

    /// Reaps everything whose fences have signalled but whose callback has not run yet.
    pub(crate) fn reap_signalled(&self, held: &mut Held<'_, levels::Tickets>) {
        let mut book = self.book.lock(held);
        book.signalled().into_iter().for_each(|id| book.reap(id));
    }

    /// Buffers of a rank below that of `wish` whose demotion would help it with `over`: lowest rank first, of one rank the least
    /// recently mapped. As many as free what is missing, or all there are. `skip` is asked whether to leave a buffer out.
    /// [`P2p::Require`] is never among them, nor the buffer of the wish itself.
    pub(crate) fn candidates(
        &self,
        wish: &Wish,
        over: &Over,
        skip: impl FnMut(u64) -> bool,
        held: &mut Held<'_, levels::Tickets>,
    ) -> Vec<Candidate> {
        self.book.lock(held).candidates(wish, over, skip)
    }

    /// Whether a wish would be granted now. The next moment may differ.
    pub(crate) fn would_admit(&self, wish: &Wish, held: &mut Held<'_, levels::Tickets>) -> Result<(), Over> {
        self.book.lock(held).check(wish, 0)
    }

    /// A buffer's rank has changed. Nothing is demoted because of it now.
    pub(crate) fn set_rank(&self, buffer: u64, rank: Rank, held: &mut Held<'_, levels::Tickets>) {
        self.book.lock(held).set_rank(buffer, rank);
    }

    pub(crate) fn usage(&self, held: &mut Held<'_, levels::Tickets>) -> Usage {
        self.book.lock(held).usage()
    }

    /// Whether there is no account, no buffer and nothing to be reaped.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.book.lock(&mut Held::in_destructor()).is_empty()
    }

    /// The oldest crossing that nobody has told, and with it the duty to tell it and to ask for the
    /// [next](Ledger::next_crossing), until there is none. `None` too when somebody has that duty already, who will find it.
    pub(crate) fn first_crossing(&self, held: &mut Held<'_, levels::Tickets>) -> Option<Crossing> {
        self.book.lock(held).first_crossing()
    }

    /// The next crossing; `None` ends the duty.
    pub(crate) fn next_crossing(&self, held: &mut Held<'_, levels::Tickets>) -> Option<Crossing> {
        self.book.lock(held).next_crossing()
    }
}
