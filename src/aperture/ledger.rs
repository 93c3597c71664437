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

use devpagemap_allocator::PAGE_BYTES;
use devpagemap_fence::sync::mutant;
use devpagemap_fence::{FenceSet, Held, Lock, levels};

use super::book::Book;
use super::gate::{Crossing, PressureLevel};
use super::limits::{BarLimit, Marks, P2p, Rank};
use crate::bo::WeakBuffer;
use crate::size::Size;

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

    /// What it may use from now on, in whole pages, rounded down. What it uses beyond that stays, but there is no more.
    pub(crate) fn set_limit(&self, limit: Size) {
        let limit_pages = limit.as_bytes() / PAGE_BYTES;
        self.ledger.book.lock(&mut Held::in_destructor()).set_limit(self.id, limit_pages);
    }

    /// What its maps use.
    pub(crate) fn used(&self) -> Size {
        let live_pages = self.ledger.book.lock(&mut Held::in_destructor()).live_pages_of(self.id);
        Size::bytes(live_pages * PAGE_BYTES)
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
        if mutant!("check_and_charge_in_two_holds") {
            drop(book);
            book = self.book.lock(held);
        }
        let (after, unreaped) = book.charge(wish, room_pages);
        let charge = Charge { place: wish.place, pages: wish.pages.clone(), importer: wish.importer };
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

#[cfg(test)]
mod tests {
    use super::*;
    use devpagemap_fence::{Fence, Timeline};

    /// Soft limit 8, open again at 4, hard limit 12; one importer and one client without limits of their own.
    struct Desk {
        ledger: Arc<Ledger>,
        importer: Account,
        client: Account,
        room_pages: u64,
    }

    fn allowed(priority: usize) -> Rank {
        Rank { p2p: P2p::Allowed, priority }
    }

    fn prefer(priority: usize) -> Rank {
        Rank { p2p: P2p::Prefer, priority }
    }

    impl Desk {
        fn open() -> Desk {
            let marks = Marks { reopen_pages: 4, soft_pages: 8, hard_pages: 12 };
            let ledger = Arc::new(Ledger::new(marks));
            let mut held = Held::in_destructor();
            let [importer, client] = [(); 2].map(|()| Account::open(&ledger, &mut held));
            Desk { ledger, importer, client, room_pages: 0 }
        }

        fn wish(&self, buffer: u64, pages: Range<u64>, rank: Rank) -> Wish {
            let place = PlaceKey { buffer, generation: 0 };
            let (importer, client) = (self.importer.id, self.client.id);
            Wish { place, pages, importer, client, rank, buffer: WeakBuffer::default() }
        }

        fn try_map(&mut self, wish: &Wish) -> Result<Granted, Over> {
            self.ledger.admit(wish, &mut self.room_pages, &mut Held::in_destructor())
        }

        fn map(&mut self, buffer: u64, pages: Range<u64>, rank: Rank) -> Granted {
            let wish = self.wish(buffer, pages, rank);
            self.try_map(&wish).expect("there is room")
        }

        fn refused(&mut self, buffer: u64, pages: Range<u64>, rank: Rank) -> Over {
            let wish = self.wish(buffer, pages, rank);
            self.try_map(&wish).expect_err("there is no room")
        }

        fn unmap(&self, granted: Granted, fence: &Fence) -> Released {
            self.ledger.release(granted.charge, fence.clone().into(), &mut Held::in_destructor())
        }

        fn usage(&self) -> (u64, u64) {
            let usage = self.ledger.usage(&mut Held::in_destructor());
            (usage.live_pages, usage.pending_pages)
        }

        fn demote(&mut self, granted: Granted, fences: FenceSet) {
            let held = &mut Held::in_destructor();
            let _ = self.ledger.demote(granted.charge, fences, &mut self.room_pages, held);
        }

        fn candidates(&self, wish: &Wish, over: &Over) -> Vec<u64> {
            let found = self.ledger.candidates(wish, over, |_| false, &mut Held::in_destructor());
            found.iter().map(|candidate| candidate.id).collect()
        }
    }

    fn points(count: u64) -> (Timeline, Vec<Fence>) {
        let timeline = Timeline::new("importer");
        let fences = (0..count).map(|_| timeline.next_point()).collect();
        (timeline, fences)
    }

    #[test]
    fn a_page_that_two_importers_have_counts_once_in_total_and_once_for_each() {
        let mut desk = Desk::open();
        let other = Account::open(&desk.ledger, &mut Held::in_destructor());
        let _first = desk.map(1, 0..4, allowed(0));
        let wish = Wish { importer: other.id, ..desk.wish(1, 2..6, allowed(0)) };
        let _second = desk.try_map(&wish).expect("there is room");
        let live = |account: &Account| account.used().as_bytes() / PAGE_BYTES;
        assert_eq!((desk.usage(), live(&desk.client)), ((6, 0), 6));
        assert_eq!((live(&desk.importer), live(&other)), (4, 4));
    }

    #[test]
    fn pending_pages_are_inherited_oldest_first_and_only_as_many_as_are_missing() {
        let mut desk = Desk::open();
        let (_importer, fences) = points(2);
        let (older, newer) = (desk.map(1, 0..4, prefer(0)), desk.map(2, 0..4, prefer(0)));
        let _ = desk.unmap(older, &fences[0]);
        let _ = desk.unmap(newer, &fences[1]);
        let fits = desk.map(3, 0..4, prefer(0));
        assert!(fits.after.is_empty(), "4 and 8 pending ones are no more than 12");
        let inherits = desk.map(4, 0..3, prefer(0));
        assert_eq!(inherits.after.iter().map(Fence::seqno).collect::<Vec<_>>(), [1]);
        assert_eq!(desk.usage(), (7, 5));
        let takes_the_rest = desk.map(5, 0..5, prefer(0));
        assert_eq!(takes_the_rest.after.iter().map(Fence::seqno).collect::<Vec<_>>(), [2]);
        assert_eq!(desk.usage(), (12, 0));
    }

    #[test]
    fn pages_that_are_mapped_again_before_their_fence_signals_wait_for_nothing() {
        let mut desk = Desk::open();
        let (importer, fences) = points(1);
        let first = desk.map(1, 0..4, allowed(0));
        let released = desk.unmap(first, &fences[0]);
        let again = desk.map(1, 0..4, allowed(0));
        assert!(again.after.is_empty());
        assert_eq!(desk.usage(), (4, 0));
        importer.signal(1);
        desk.ledger.reap(released.unreaped.expect("its fence was open").id, &mut Held::in_destructor());
        assert_eq!(desk.usage(), (4, 0));
    }

    #[test]
    fn inherited_fences_stay_with_the_pages_for_a_second_map_and_for_one_that_is_given_back_at_once() {
        let mut desk = Desk::open();
        let (_importer, fences) = points(1);
        let former = desk.map(1, 0..12, prefer(0));
        let _ = desk.unmap(former, &fences[0]);
        let first = desk.map(2, 0..12, prefer(0));
        let second = desk.map(2, 3..5, prefer(0));
        assert_eq!((first.after.len(), second.after.len()), (1, 1));
        for granted in [first, second] {
            let _ = desk.ledger.release(granted.charge, FenceSet::new(), &mut Held::in_destructor());
        }
        assert_eq!(desk.usage(), (0, 12), "the former user is not done");
        assert_eq!(desk.map(3, 0..1, prefer(0)).after.len(), 1);
    }

    #[test]
    fn the_gate_closes_for_buffers_without_priority_and_re_opens_at_the_lower_mark() {
        let mut desk = Desk::open();
        let (first, second) = (desk.map(1, 0..4, allowed(3)), desk.map(2, 0..4, allowed(3)));
        let over = desk.refused(3, 0..1, allowed(3));
        let soft = Over { limit: BarLimit::Soft, limit_pages: 8, used_pages: 8, missing_pages: 1 };
        assert_eq!(over, soft);
        let third = desk.map(3, 0..1, prefer(0));
        drop(desk.ledger.release(third.charge, FenceSet::new(), &mut Held::in_destructor()));
        let part = desk.map(2, 0..1, allowed(0));
        drop(desk.ledger.release(second.charge, FenceSet::new(), &mut Held::in_destructor()));
        assert_eq!((desk.usage(), desk.refused(3, 0..1, allowed(3)).used_pages), ((5, 0), 5));
        drop(desk.ledger.release(part.charge, FenceSet::new(), &mut Held::in_destructor()));
        let _open_again = desk.map(3, 0..1, allowed(0));
        drop(first);
    }

    #[test]
    fn at_the_hard_limit_nothing_is_admitted_but_what_adds_no_page() {
        let mut desk = Desk::open();
        let _full = desk.map(1, 0..12, prefer(0));
        let require = Rank { p2p: P2p::Require, priority: 3 };
        let hard = Over { limit: BarLimit::Hard, limit_pages: 12, used_pages: 12, missing_pages: 2 };
        assert_eq!(desk.refused(2, 0..2, require), hard);
        let _again = desk.map(1, 0..12, allowed(0));
        assert_eq!(desk.usage(), (12, 0));
    }

    #[test]
    fn limits_of_an_importer_and_of_a_client_are_their_own() {
        let mut desk = Desk::open();
        desk.importer.set_limit(Size::bytes(3 * PAGE_BYTES));
        desk.client.set_limit(Size::bytes(6 * PAGE_BYTES - 1));
        let _first = desk.map(1, 0..3, allowed(0));
        assert_eq!(desk.refused(2, 0..1, allowed(0)).limit, BarLimit::Importer);
        let other = Account::open(&desk.ledger, &mut Held::in_destructor());
        let wish = Wish { importer: other.id, ..desk.wish(2, 0..3, prefer(0)) };
        let over = desk.try_map(&wish).expect_err("6 pages of the client's 5");
        let client = Over { limit: BarLimit::Client, limit_pages: 5, used_pages: 3, missing_pages: 1 };
        assert_eq!(over, client);
    }

    #[test]
    fn a_limit_that_is_lowered_takes_nothing_away_and_gives_nothing_more() {
        let mut desk = Desk::open();
        let first = desk.map(1, 0..6, allowed(0));
        desk.client.set_limit(Size::bytes(2 * PAGE_BYTES));
        assert_eq!((desk.usage(), desk.refused(1, 6..7, allowed(0)).missing_pages), ((6, 0), 5));
        drop(desk.ledger.release(first.charge, FenceSet::new(), &mut Held::in_destructor()));
        let _within = desk.map(1, 0..2, allowed(0));
    }

    #[test]
    fn lower_ranks_make_way_first_then_who_was_mapped_longest_ago_and_never_what_is_required() {
        let mut desk = Desk::open();
        let _maps = [
            desk.map(1, 0..1, prefer(1)),
            desk.map(2, 0..2, allowed(2)),
            desk.map(3, 0..2, allowed(0)),
            desk.map(4, 0..2, allowed(0)),
            desk.map(5, 0..5, Rank { p2p: P2p::Require, priority: 0 }),
            desk.map(3, 0..1, allowed(0)),
        ];
        let wish = desk.wish(6, 0..12, Rank { p2p: P2p::Require, priority: 3 });
        let over = desk.try_map(&wish).expect_err("all is in use");
        assert_eq!(over.missing_pages, 12);
        assert_eq!(desk.candidates(&wish, &over), [4, 3, 2, 1]);
        let few = Over { missing_pages: 3, ..over };
        assert_eq!(desk.candidates(&wish, &few), [4, 3]);
        let lower = desk.wish(6, 0..12, allowed(2));
        assert_eq!(desk.candidates(&lower, &over), [4, 3], "not its equals");
        desk.ledger.set_rank(2, allowed(0), &mut Held::in_destructor());
        assert_eq!(desk.candidates(&wish, &over), [2, 4, 3, 1], "a rank may change at any time");
    }

    #[test]
    fn what_is_freed_for_a_wish_is_nobody_elses_and_opens_no_gate() {
        let mut desk = Desk::open();
        let (_importer, fences) = points(1);
        let _kept = desk.map(1, 0..4, allowed(0));
        let victim = desk.map(2, 0..4, allowed(0));
        desk.demote(victim, fences[0].clone().into());
        assert_eq!((desk.room_pages, desk.usage()), (4, (4, 4)));
        let thief = desk.wish(3, 0..1, allowed(3));
        let refused = desk.ledger.admit(&thief, &mut 0, &mut Held::in_destructor());
        assert_eq!(refused.expect_err("the gate is closed").limit, BarLimit::Soft);
        let greedy = desk.wish(4, 0..5, prefer(3));
        let refused = desk.ledger.admit(&greedy, &mut 0, &mut Held::in_destructor());
        assert_eq!(refused.expect_err("4 of 12 pages are another's").missing_pages, 1);
        let winner = desk.map(5, 0..3, allowed(1));
        assert_eq!((desk.room_pages, desk.usage()), (1, (7, 4)));
        assert!(winner.after.is_empty(), "7 and 4 pending ones are no more than 12");
        assert!(desk.ledger.usage(&mut Held::in_destructor()).level.is_some(), "it went from hand to hand");
        desk.ledger.give_back_room(desk.room_pages, &mut Held::in_destructor());
    }

    #[test]
    fn only_one_tells_crossings_and_finds_those_that_were_made_meanwhile() {
        let mut desk = Desk::open();
        let held = &mut Held::in_destructor();
        let full = desk.map(1, 0..12, prefer(0));
        assert!(full.crossed);
        let first = desk.ledger.first_crossing(held).expect("the soft limit was reached");
        assert_eq!((first.level, first.began), (PressureLevel::Soft, true));
        let released = desk.ledger.release(full.charge, FenceSet::new(), held);
        assert!(released.crossed && desk.ledger.first_crossing(held).is_none(), "another has the duty");
        let rest = [(); 4].map(|()| desk.ledger.next_crossing(held).map(|next| (next.level, next.began)));
        let hard = PressureLevel::Hard;
        assert_eq!(rest, [Some((hard, true)), Some((hard, false)), Some((PressureLevel::Soft, false)), None]);
        assert!(desk.ledger.first_crossing(held).is_none());
    }

    #[test]
    fn an_account_whose_owner_is_gone_stays_until_its_last_page_goes() {
        let mut desk = Desk::open();
        let (importer, fences) = points(1);
        let short_lived = Account::open(&desk.ledger, &mut Held::in_destructor());
        let wish = Wish { importer: short_lived.id, ..desk.wish(1, 0..2, allowed(0)) };
        let map = desk.try_map(&wish).expect("there is room");
        drop(short_lived);
        let _ = desk.unmap(map, &fences[0]);
        assert_eq!(desk.usage(), (0, 2));
        importer.signal(1);
        desk.ledger.reap_signalled(&mut Held::in_destructor());
        assert_eq!(desk.usage(), (0, 0));
        let Desk { ledger, importer, client, .. } = desk;
        drop((importer, client));
        assert!(ledger.is_empty(), "{ledger:?}");
    }
}
