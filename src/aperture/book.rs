//! The arithmetic of the [ledger](super::ledger). Everything here is under the aperture lock.
//!
//! Every change of pages goes through [`Book::edit`]: the pieces that change are counted out of every sum that they are in,
//! changed, and counted in again. So the sums cannot drift from the pages.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use devpagemap_fence::FenceSet;
use devpagemap_fence::sync::mutant;

use super::gate::{Crossing, Gate};
use super::ledger::{AccountId, Candidate, Charge, Over, PendingId, PlaceKey, Unreaped, Usage, Wish};
use super::limits::{BarLimit, Marks, P2p, Rank};
use super::tally::{Tallies, Tally, Way};
use super::users::{PageUsers, PendingUse, Sum, Sums, Use, User, kind_for, kind_of, user_mut};
use crate::bo::WeakBuffer;
use crate::region::push_run;

/// A buffer of which pages are in use.
#[derive(Debug)]
struct Shown {
    weak: WeakBuffer,
    client: AccountId,
    rank: Rank,
    /// When it was mapped last, in wishes granted.
    mapped: u64,
    live_pages: u64,
    /// By generation.
    places: BTreeMap<u64, PageUsers>,
}

impl Shown {
    /// How many pages its demotion would free under a limit that `wish` is over.
    fn pages_under(&self, limit: BarLimit, wish: &Wish) -> u64 {
        match limit {
            BarLimit::Client if self.client != wish.client => 0,
            BarLimit::Importer => self.places.values().map(|pages| pages.live_pages_of(wish.importer)).sum(),
            _ => self.live_pages,
        }
    }
}

/// Pages that count until fences have signalled, less those that others have inherited.
#[derive(Debug)]
struct Pending {
    place: PlaceKey,
    pages: Range<u64>,
    importer: AccountId,
    fences: FenceSet,
    kind: PendingKind,
    /// Pages of the range that still count in some sum.
    left_pages: u64,
}

/// What the fences of pending pages are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PendingKind {
    /// A map was given back; its importer uses these pages until they signal.
    Former,
    /// A map has inherited these fences with pages elsewhere: those, and not these, are in use until they signal. So it is of
    /// no account while these pages are mapped, but whoever maps them waits too.
    Inherited,
}

/// Whose pending pages a wish inherits, in the sum that is theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Anybody,
    /// The buffers of this client.
    Client(AccountId),
    Importer(AccountId),
}

impl Whose {
    fn sum(self) -> Sum {
        match self {
            Whose::Anybody => Sum::Total,
            Whose::Client(_) => Sum::Client,
            Whose::Importer(_) => Sum::Importer,
        }
    }
}

/// What the aperture lock of the ledger protects.
#[derive(Debug)]
pub(super) struct Book {
    /// Constant.
    marks: Marks,
    gate: Gate,
    tallies: Tallies,
    peak_pages: u64,
    /// Set aside for demoters; counts as used.
    reserved_pages: u64,
    buffers: BTreeMap<u64, Shown>,
    /// The buffers with live pages: by rank, then by when they were mapped.
    by_rank: BTreeSet<(Rank, u64, u64)>,
    /// Oldest first.
    pendings: BTreeMap<PendingId, Pending>,
    /// The number of accounts, pendings and grants so far.
    next_id: u64,
    /// Not told yet, oldest first.
    crossings: VecDeque<Crossing>,
    /// Whether somebody has the duty to tell them.
    telling: bool,
}

impl Book {
    pub(super) fn new(marks: Marks) -> Book {
        Book {
            marks,
            gate: Gate::new(&marks),
            tallies: Tallies::default(),
            peak_pages: 0,
            reserved_pages: 0,
            buffers: BTreeMap::new(),
            by_rank: BTreeSet::new(),
            pendings: BTreeMap::new(),
            next_id: 0,
            crossings: VecDeque::new(),
            telling: false,
        }
    }

    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(super) fn open_account(&mut self) -> AccountId {
        let id = AccountId(self.next_id());
        self.tallies.open(id);
        id
    }

    pub(super) fn close_account(&mut self, id: AccountId) {
        self.tallies.close(id);
    }

    pub(super) fn set_limit(&mut self, id: AccountId, limit_pages: u64) {
        self.tallies.entry_mut(id).limit_pages = limit_pages;
    }

    pub(super) fn live_pages_of(&self, id: AccountId) -> u64 {
        self.tallies.entry(id).tally.live_pages
    }

    /// What decides: pages of maps, and what is set aside.
    fn used_pages(&self) -> u64 {
        self.tallies.total.live_pages + self.reserved_pages
    }

    /// Shows the gate what is used now; true when there are crossings to be told.
    pub(super) fn note_use(&mut self) -> bool {
        let used_pages = self.used_pages();
        self.peak_pages =
            self.peak_pages.max(self.tallies.total.live_pages + self.tallies.total.pending_pages);
        self.gate.observe(used_pages, &mut self.crossings);
        !self.crossings.is_empty()
    }

    /// Whether a wish fits, with so many pages that were set aside for it.
    pub(super) fn check(&self, wish: &Wish, room_pages: u64) -> Result<(), Over> {
        let (new_pages, new_for_importer_pages) = self.new_pages(wish);
        for (limit, id, new_pages) in [
            (BarLimit::Importer, wish.importer, new_for_importer_pages),
            (BarLimit::Client, wish.client, new_pages),
        ] {
            let entry = self.tallies.entry(id);
            check_limit(limit, entry.limit_pages, entry.tally.live_pages, new_pages)?;
        }
        // What is set aside is counted already.
        let new_pages = new_pages.saturating_sub(room_pages);
        let used_pages = self.used_pages();
        check_limit(BarLimit::Hard, self.marks.hard_pages, used_pages, new_pages)?;
        if wish.rank.p2p >= P2p::Prefer {
            return Ok(());
        }
        let limit_pages = self.marks.soft_pages;
        if self.gate.is_closed() && new_pages > 0 {
            let limit = BarLimit::Soft;
            return Err(Over { limit, limit_pages, used_pages, missing_pages: new_pages });
        }
        check_limit(BarLimit::Soft, limit_pages, used_pages, new_pages)
    }

    /// How many pages a wish adds in total, and how many for its importer.
    fn new_pages(&self, wish: &Wish) -> (u64, u64) {
        let mut new = (0, 0);
        for (piece, users) in self.pieces(wish) {
            let len_pages = piece.end - piece.start;
            new.0 += if kind_of(users, Sum::Total) == Use::Live { 0 } else { len_pages };
            new.1 += if kind_for(users, wish.importer) == Use::Live { 0 } else { len_pages };
        }
        new
    }

    fn pieces(&self, wish: &Wish) -> Vec<(Range<u64>, &[User])> {
        let place = self.place(wish.place);
        place.map_or_else(|| vec![(wish.pages.clone(), &[][..])], |place| place.pieces(&wish.pages))
    }

    fn place(&self, key: PlaceKey) -> Option<&PageUsers> {
        self.buffers.get(&key.buffer)?.places.get(&key.generation)
    }

    /// Charges a wish that fits. Returns what its first access has to queue behind, and what has to be reaped.
    pub(super) fn charge(&mut self, wish: &Wish, room_pages: &mut u64) -> (FenceSet, Vec<Unreaped>) {
        let (new_pages, new_for_importer_pages) = self.new_pages(wish);
        let fresh = self.not_mapped_by_importer(wish);
        let mut after = self.inherited_behind(wish);
        let taken_pages = new_pages.min(*room_pages);
        *room_pages -= taken_pages;
        self.reserved_pages -= taken_pages;
        self.enter(wish);
        let (inherited, sums) = self.inherit_what_is_beyond(wish, new_pages, new_for_importer_pages);
        if inherited.is_empty() {
            return (after, Vec::new());
        }
        after.merge(&inherited);
        let kind = PendingKind::Inherited;
        let add = |piece| self.add_pending(wish.place, piece, wish.importer, &inherited, kind, sums);
        (after, fresh.into_iter().map(add).collect())
    }

    /// The parts of a wish that its importer has not mapped.
    fn not_mapped_by_importer(&self, wish: &Wish) -> Vec<Range<u64>> {
        let mut fresh = Vec::new();
        for (piece, users) in self.pieces(wish) {
            if kind_for(users, wish.importer) != Use::Live {
                push_run(&mut fresh, piece);
            }
        }
        fresh
    }

    /// What earlier maps of the same pages have inherited, and every map of them has to queue behind.
    fn inherited_behind(&self, wish: &Wish) -> FenceSet {
        let mut behind = FenceSet::new();
        for (_, users) in self.pieces(wish) {
            let pendings =
                users.iter().flat_map(|user| &user.pending).map(|pending| &self.pendings[&pending.id]);
            pendings
                .filter(|pending| pending.kind == PendingKind::Inherited)
                .for_each(|p| behind.merge(&p.fences));
        }
        behind.prune();
        behind
    }

    /// Makes the pages of a wish live.
    fn enter(&mut self, wish: &Wish) {
        let mapped = self.next_id();
        self.buffers.entry(wish.place.buffer).or_insert_with(|| Shown {
            weak: wish.buffer.clone(),
            client: wish.client,
            rank: wish.rank,
            mapped,
            live_pages: 0,
            places: BTreeMap::new(),
        });
        self.edit(wish.place, &wish.pages, |_, users| user_mut(users, wish.importer).maps += 1);
        self.reindex(wish.place.buffer, |shown| (shown.rank, shown.mapped) = (wish.rank, mapped));
    }

    /// Inherits as many pending pages as there are too many in each sum. Returns their fences, and in which sums there were any.
    fn inherit_what_is_beyond(
        &mut self,
        wish: &Wish,
        new_pages: u64,
        new_for_importer_pages: u64,
    ) -> (FenceSet, Sums) {
        let importer = self.tallies.entry(wish.importer);
        let client = self.tallies.entry(wish.client);
        let beyond_pages = [
            (Whose::Anybody, beyond(&self.tallies.total, self.marks.hard_pages, new_pages)),
            (Whose::Client(wish.client), beyond(&client.tally, client.limit_pages, new_pages)),
            (
                Whose::Importer(wish.importer),
                beyond(&importer.tally, importer.limit_pages, new_for_importer_pages),
            ),
        ];
        let (mut inherited, mut sums) = (FenceSet::new(), Sums::default());
        for (whose, pages) in beyond_pages.into_iter().filter(|(_, pages)| *pages > 0) {
            self.inherit(whose, pages, &mut inherited);
            sums.add(whose.sum());
        }
        debug_assert!(
            self.tallies.total.live_pages + self.tallies.total.pending_pages <= self.marks.hard_pages
        );
        inherited.prune();
        (inherited, sums)
    }

    /// Makes pages pending, beside what they are otherwise.
    fn add_pending(
        &mut self,
        place: PlaceKey,
        pages: Range<u64>,
        importer: AccountId,
        fences: &FenceSet,
        kind: PendingKind,
        sums: Sums,
    ) -> Unreaped {
        let id = PendingId(self.next_id());
        self.edit(place, &pages, |_, users| user_mut(users, importer).pending.push(PendingUse { id, sums }));
        let left_pages = pages.end - pages.start;
        self.pendings
            .insert(id, Pending { place, pages, importer, fences: fences.clone(), kind, left_pages });
        Unreaped { id, fences: fences.clone() }
    }

    /// Makes a map's pages pending, or idle if `fences` have signalled. Returns how many live pages that freed.
    pub(super) fn release(&mut self, charge: Charge, mut fences: FenceSet) -> (u64, Option<Unreaped>) {
        let Charge { place, pages, importer } = charge;
        let live_before = self.tallies.total.live_pages;
        fences.prune();
        let unreaped = (!fences.is_empty()).then(|| {
            self.add_pending(place, pages.clone(), importer, &fences, PendingKind::Former, Sums::ALL)
        });
        self.edit(place, &pages, |_, users| {
            let user = user_mut(users, importer);
            user.maps = user.maps.checked_sub(1).expect("a charge is given back once");
        });
        self.reindex(place.buffer, |_| {});
        self.tallies.forget_if_unused(importer);
        (live_before - self.tallies.total.live_pages, unreaped)
    }

    /// Makes pages idle whose fences have signalled.
    pub(super) fn reap(&mut self, id: PendingId) {
        let Some(Pending { place, pages, importer, .. }) = self.pendings.remove(&id) else { return };
        self.edit(place, &pages, |_, users| {
            users
                .iter_mut()
                .filter(|user| user.importer == importer)
                .for_each(|user| user.pending.retain(|pending| pending.id != id));
        });
        self.tallies.forget_if_unused(importer);
    }

    /// The pendings whose fences have signalled.
    pub(super) fn signalled(&self) -> Vec<PendingId> {
        let pendings = self.pendings.iter();
        pendings.filter(|(_, pending)| pending.fences.is_signaled()).map(|(id, _)| *id).collect()
    }

    /// Takes so many pending pages off those that they count for, oldest first, and adds their fences to `after`.
    fn inherit(&mut self, whose: Whose, pages: u64, after: &mut FenceSet) {
        let mut missing_pages = pages;
        while missing_pages > 0 {
            let tally = match whose {
                Whose::Anybody => &self.tallies.total,
                Whose::Client(id) | Whose::Importer(id) => &self.tallies.entry(id).tally,
            };
            let id =
                tally.oldest_pending().expect("what is live fits, so what is beyond the limit is pending");
            for piece in self.inheritable(whose, id, missing_pages) {
                missing_pages -= piece.end - piece.start;
                self.take_over(whose, id, &piece, after);
            }
        }
    }

    /// Up to so many pages of a pending that are nobody else's business: of an importer, those that it has not mapped
    /// otherwise; else those that nobody has mapped.
    fn inheritable(&self, whose: Whose, id: PendingId, mut limit_pages: u64) -> Vec<Range<u64>> {
        let pending = &self.pendings[&id];
        let place = self.place(pending.place).expect("a place stays while pages of it are pending");
        let mut found = Vec::new();
        for (piece, users) in place.pieces(&pending.pages) {
            let counts = users.iter().flat_map(|user| user.pending_in(whose.sum())).any(|other| other == id);
            let kind = match whose {
                Whose::Importer(importer) => kind_for(users, importer),
                Whose::Anybody | Whose::Client(_) => kind_of(users, whose.sum()),
            };
            if counts && kind == Use::Pending && limit_pages > 0 {
                let end = piece.end.min(piece.start + limit_pages);
                limit_pages -= end - piece.start;
                found.push(piece.start..end);
            }
        }
        found
    }

    /// Takes the pending uses of a piece, of one importer or of all, out of a sum, with their fences.
    fn take_over(&mut self, whose: Whose, id: PendingId, piece: &Range<u64>, after: &mut FenceSet) {
        let place = self.pendings[&id].place;
        // With how many of its pages that leaves without any sum.
        let mut taken: Vec<(PendingId, u64)> = Vec::new();
        let mut importers: Vec<AccountId> = Vec::new();
        self.edit(place, piece, |len_pages, users| {
            for user in users.iter_mut() {
                if matches!(whose, Whose::Importer(importer) if importer != user.importer) {
                    continue;
                }
                importers.push(user.importer);
                for pending in user.pending.iter_mut().filter(|pending| pending.sums.contains(whose.sum())) {
                    pending.sums.remove(whose.sum());
                    taken.push((pending.id, if pending.sums.is_empty() { len_pages } else { 0 }));
                }
                user.pending.retain(|pending| !pending.sums.is_empty());
            }
        });
        for (id, gone_pages) in taken {
            let pending = self.pendings.get_mut(&id).expect("a page names pendings that are left");
            after.merge(&pending.fences);
            pending.left_pages -= gone_pages;
            if pending.left_pages == 0 {
                self.pendings.remove(&id);
            }
        }
        importers.into_iter().for_each(|importer| self.tallies.forget_if_unused(importer));
    }

    /// Changes who uses pages, and every sum with it.
    fn edit(&mut self, key: PlaceKey, range: &Range<u64>, mut change: impl FnMut(u64, &mut Vec<User>)) {
        let Some(shown) = self.buffers.get_mut(&key.buffer) else { return };
        let (client, live_before) = (shown.client, self.tallies.total.live_pages);
        let place = shown.places.entry(key.generation).or_default();
        place.edit(range, |len_pages, users| {
            self.tallies.count(client, users, len_pages, Way::Out);
            change(len_pages, users);
            self.tallies.count(client, users, len_pages, Way::In);
        });
        if place.is_empty() {
            shown.places.remove(&key.generation);
        }
        shown.live_pages = shown.live_pages + self.tallies.total.live_pages - live_before;
        if shown.places.is_empty() {
            self.by_rank.remove(&(shown.rank, shown.mapped, key.buffer));
            self.buffers.remove(&key.buffer);
            self.tallies.forget_if_unused(client);
        }
    }

    /// Changes what a buffer is found by; one of which nothing is in use is not known here.
    fn reindex(&mut self, buffer: u64, change: impl FnOnce(&mut Shown)) {
        let Some(shown) = self.buffers.get_mut(&buffer) else { return };
        self.by_rank.remove(&(shown.rank, shown.mapped, buffer));
        change(shown);
        if shown.live_pages > 0 {
            self.by_rank.insert((shown.rank, shown.mapped, buffer));
        }
    }

    pub(super) fn set_rank(&mut self, buffer: u64, rank: Rank) {
        self.reindex(buffer, |shown| shown.rank = rank);
    }

    /// See [`Ledger::candidates`](super::Ledger::candidates).
    pub(super) fn candidates(
        &self,
        wish: &Wish,
        over: &Over,
        mut skip: impl FnMut(u64) -> bool,
    ) -> Vec<Candidate> {
        let mut found = Vec::new();
        let mut missing_pages = over.missing_pages;
        for (rank, _, id) in self.by_rank.range(..(wish.rank, 0, 0)) {
            if missing_pages == 0 || rank.p2p == P2p::Require {
                break;
            }
            if *id == wish.place.buffer || skip(*id) {
                continue;
            }
            let shown = &self.buffers[id];
            let pages = shown.pages_under(over.limit, wish);
            if pages > 0 {
                missing_pages = missing_pages.saturating_sub(pages);
                found.push(Candidate { id: *id, buffer: shown.weak.clone(), pages });
            }
        }
        found
    }

    /// Sets pages aside that a demotion has freed.
    pub(super) fn reserve(&mut self, pages: u64) {
        self.reserved_pages += pages;
    }

    /// Ends that for pages that nobody took.
    pub(super) fn unreserve(&mut self, pages: u64) {
        self.reserved_pages -= pages;
    }

    pub(super) fn usage(&self) -> Usage {
        Usage {
            live_pages: self.tallies.total.live_pages,
            pending_pages: self.tallies.total.pending_pages,
            peak_pages: self.peak_pages,
            reserved_pages: self.reserved_pages,
            level: self.gate.level(),
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.tallies.is_empty()
            && self.buffers.is_empty()
            && self.by_rank.is_empty()
            && self.pendings.is_empty()
    }

    /// See [`Ledger::first_crossing`](super::Ledger::first_crossing).
    pub(super) fn first_crossing(&mut self) -> Option<Crossing> {
        if self.telling && !mutant!("crossings_are_told_by_whoever_made_them") {
            return None;
        }
        self.next_crossing()
    }

    /// See [`Ledger::next_crossing`](super::Ledger::next_crossing).
    pub(super) fn next_crossing(&mut self) -> Option<Crossing> {
        let next = self.crossings.pop_front();
        self.telling = next.is_some();
        next
    }
}

fn check_limit(limit: BarLimit, limit_pages: u64, used_pages: u64, new_pages: u64) -> Result<(), Over> {
    let wanted_pages = used_pages.saturating_add(new_pages);
    if new_pages == 0 || wanted_pages <= limit_pages {
        return Ok(());
    }
    Err(Over { limit, limit_pages, used_pages, missing_pages: wanted_pages - limit_pages })
}

/// By how much a tally exceeds a limit through `new_pages`, all of it pending.
fn beyond(tally: &Tally, limit_pages: u64, new_pages: u64) -> u64 {
    let beyond_pages = (tally.live_pages + tally.pending_pages).saturating_sub(limit_pages);
    beyond_pages.min(tally.pending_pages).min(new_pages)
}
