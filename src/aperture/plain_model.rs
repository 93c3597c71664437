//! The ledger against a plain model: a list of maps, from which everything is counted anew after each step.
//!
//! The model knows nothing of runs, tallies or inheritance. It says which wishes have to be granted, what has to be told, and
//! which pages importers may really be using: those of maps whose fences to queue behind have signalled, until they are
//! given back and those fences have signalled too. That these never exceed a limit is what the ledger is for.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use devpagemap_allocator::PAGE_BYTES;
use devpagemap_fence::{FenceSet, Held, Timeline};
use proptest::prelude::*;
use proptest::sample::Index;

use super::gate::PressureLevel;
use super::ledger::{Account, AccountId, Charge, Ledger, Over, PlaceKey, Unreaped, Wish};
use super::limits::{BarLimit, Marks, P2p, Rank};
use crate::bo::WeakBuffer;
use crate::size::Size;

const IMPORTERS: usize = 3;
const CLIENTS: usize = 2;
const HARD_PAGES: u64 = 16;

#[derive(Clone, Debug)]
enum Step {
    Map {
        buffer: u64,
        generation: u64,
        pages: Range<u64>,
        importer: usize,
        rank: Rank,
    },
    Unmap {
        which: Index,
        fenced: bool,
    },
    Demote {
        which: Index,
        fenced: bool,
    },
    GiveBackRoom,
    Signal {
        which: Index,
    },
    Reap,
    SetLimit {
        account: usize,
        pages: u64,
    },
    SetRank {
        buffer: u64,
        rank: Rank,
    },
    /// An importer goes, whatever it has, and another comes.
    Rejoin {
        importer: usize,
    },
}

struct Map {
    place: PlaceKey,
    pages: Range<u64>,
    importer: usize,
    /// When it was granted, in grants.
    granted: u64,
    after: FenceSet,
    /// `None` once it was given back.
    charge: Option<Charge>,
    /// Behind which it was given back.
    fences: FenceSet,
}

type Page = (PlaceKey, u64);

impl Map {
    fn is_live(&self) -> bool {
        self.charge.is_some()
    }

    fn may_be_used(&self) -> bool {
        self.after.is_signaled() && (self.is_live() || !self.fences.is_signaled())
    }

    fn pages(&self) -> impl Iterator<Item = Page> {
        self.pages.clone().map(|page| (self.place, page))
    }
}

fn client_of(buffer: u64) -> usize {
    (buffer % CLIENTS as u64) as usize
}

struct Model {
    marks: Marks,
    ledger: Arc<Ledger>,
    /// Importers, then clients, then importers that came later. `None` once the owner is gone.
    accounts: Vec<Option<Account>>,
    /// Which accounts are the importers of now.
    importers: [usize; IMPORTERS],
    limits: Vec<u64>,
    /// The highest limit each ever had: what is in use may be as much.
    highest: Vec<u64>,
    maps: Vec<Map>,
    ranks: Vec<Rank>,
    timelines: Vec<Timeline>,
    unreaped: Vec<Unreaped>,
    room_pages: u64,
    is_soft: bool,
    is_hard: bool,
    told: Vec<(PressureLevel, bool)>,
    expected: Vec<(PressureLevel, bool)>,
}

fn pages_long(pages: u64) -> Size {
    Size::bytes(pages * PAGE_BYTES)
}

impl Model {
    fn new(soft_pages: u64, reopen_pages: u64, limits: Vec<u64>) -> Model {
        let marks = Marks { reopen_pages, soft_pages, hard_pages: HARD_PAGES };
        let ledger = Arc::new(Ledger::new(marks));
        let mut held = Held::in_destructor();
        let open = |limit: &u64| {
            let account = Account::open(&ledger, &mut held);
            account.set_limit(pages_long(*limit));
            Some(account)
        };
        let accounts = limits.iter().map(open).collect();
        Model {
            marks,
            ledger,
            accounts,
            importers: std::array::from_fn(|importer| importer),
            highest: limits.clone(),
            limits,
            maps: Vec::new(),
            ranks: vec![Rank { p2p: P2p::Allowed, priority: 0 }; 4],
            timelines: Vec::new(),
            unreaped: Vec::new(),
            room_pages: 0,
            is_soft: false,
            is_hard: false,
            told: Vec::new(),
            expected: Vec::new(),
        }
    }

    fn id(&self, account: usize) -> AccountId {
        self.accounts[account].as_ref().expect("it is there").id
    }

    /// The pages of the maps that are `counted`, each once.
    fn pages(&self, counted: impl Fn(&Map) -> bool) -> BTreeSet<Page> {
        self.maps.iter().filter(|map| counted(map)).flat_map(Map::pages).collect()
    }

    /// Whether a map counts for an account, an importer's or a client's.
    fn counts_for(account: usize, map: &Map) -> bool {
        map.importer == account || IMPORTERS + client_of(map.place.buffer) == account
    }

    fn used_pages(&self) -> u64 {
        self.pages(Map::is_live).len() as u64 + self.room_pages
    }

    /// What the wish is over, by the rules.
    fn verdict(&self, place: PlaceKey, pages: &Range<u64>, importer: usize, rank: Rank) -> Result<(), Over> {
        let wanted: BTreeSet<Page> = pages.clone().map(|page| (place, page)).collect();
        let total = self.pages(Map::is_live);
        let new_pages = wanted.difference(&total).count() as u64;
        let own = self.pages(|map| map.is_live() && map.importer == importer);
        let new_own_pages = wanted.difference(&own).count() as u64;
        let client = IMPORTERS + client_of(place.buffer);
        let clients = self.pages(|map| map.is_live() && Model::counts_for(client, map));
        let new_beyond_room = new_pages.saturating_sub(self.room_pages);
        let mut all = vec![
            (BarLimit::Importer, self.limits[importer], own.len() as u64, new_own_pages),
            (BarLimit::Client, self.limits[client], clients.len() as u64, new_pages),
            (BarLimit::Hard, self.marks.hard_pages, self.used_pages(), new_beyond_room),
        ];
        if rank.p2p == P2p::Allowed {
            if self.is_soft && new_beyond_room > 0 {
                all.push((BarLimit::Soft, self.used_pages(), self.used_pages(), new_beyond_room));
            }
            all.push((BarLimit::Soft, self.marks.soft_pages, self.used_pages(), new_beyond_room));
        }
        let over =
            all.into_iter().find(|(_, limit, used, new)| *new > 0 && used.saturating_add(*new) > *limit);
        over.map_or(Ok(()), |(limit, limit_pages, used_pages, new_pages)| {
            let missing_pages = used_pages + new_pages - limit_pages;
            let limit_pages = if limit == BarLimit::Soft { self.marks.soft_pages } else { limit_pages };
            Err(Over { limit, limit_pages, used_pages, missing_pages })
        })
    }

    fn map(&mut self, place: PlaceKey, pages: Range<u64>, importer: usize, rank: Rank) {
        let wish = Wish {
            place,
            pages: pages.clone(),
            importer: self.id(importer),
            client: self.id(IMPORTERS + client_of(place.buffer)),
            rank,
            buffer: WeakBuffer::default(),
        };
        let verdict = self.verdict(place, &pages, importer, rank);
        let total = self.pages(Map::is_live);
        let new_pages = pages.clone().filter(|page| !total.contains(&(place, *page))).count() as u64;
        let mut held = Held::in_destructor();
        let mut room_pages = self.room_pages;
        match self.ledger.admit(&wish, &mut room_pages, &mut held) {
            Ok(granted) => {
                assert_eq!(verdict, Ok(()), "{wish:?} was granted");
                assert_eq!(room_pages, self.room_pages.saturating_sub(new_pages));
                self.room_pages = room_pages;
                self.unreaped.extend(granted.unreaped);
                self.ranks[place.buffer as usize] = rank;
                let granted_before = self.maps.len() as u64;
                self.maps.push(Map {
                    place,
                    pages,
                    importer,
                    granted: granted_before,
                    after: granted.after,
                    charge: Some(granted.charge),
                    fences: FenceSet::new(),
                });
            }
            Err(over) => {
                assert_eq!(verdict, Err(over), "{wish:?} was refused");
                assert_eq!(room_pages, self.room_pages);
                self.check_candidates(&wish, &over);
            }
        }
    }

    /// Who would have to make way for `wish`, by the rules.
    fn check_candidates(&self, wish: &Wish, over: &Over) {
        let mut buffers: Vec<(Rank, u64, u64)> = Vec::new();
        for buffer in (0..4).filter(|buffer| *buffer != wish.place.buffer) {
            let mapped =
                self.maps.iter().filter(|map| map.place.buffer == buffer).map(|map| map.granted).max();
            let rank = self.ranks[buffer as usize];
            buffers.extend(mapped.map(|mapped| (rank, mapped, buffer)));
        }
        buffers.sort_unstable();
        let mut expected = Vec::new();
        let mut missing_pages = over.missing_pages;
        for (rank, _, buffer) in buffers {
            let counts = |map: &Map| match over.limit {
                BarLimit::Importer => {
                    self.accounts[map.importer].as_ref().is_some_and(|of| of.id == wish.importer)
                }
                BarLimit::Client => self.id(IMPORTERS + client_of(buffer)) == wish.client,
                _ => true,
            };
            let live =
                self.pages(|map| map.is_live() && map.place.buffer == buffer && counts(map)).len() as u64;
            if live > 0 && missing_pages > 0 && rank < wish.rank && rank.p2p != P2p::Require {
                missing_pages = missing_pages.saturating_sub(live);
                expected.push((buffer, live));
            }
        }
        let found = self.ledger.candidates(wish, over, |_| false, &mut Held::in_destructor());
        let found: Vec<(u64, u64)> = found.iter().map(|candidate| (candidate.id, candidate.pages)).collect();
        assert_eq!(found, expected, "who makes way for {wish:?}");
    }

    /// Gives a live map back, behind a fence or none. With `room`, for the one who demotes.
    fn unmap(&mut self, which: &Index, fenced: bool, room: bool) {
        let live: Vec<usize> = (0..self.maps.len()).filter(|map| self.maps[*map].is_live()).collect();
        if !live.is_empty() {
            self.give_back(*which.get(&live), fenced, room);
        }
    }

    fn give_back(&mut self, map: usize, fenced: bool, room: bool) {
        let Some(charge) = self.maps[map].charge.take() else { return };
        let mut fences = FenceSet::new();
        if fenced {
            let timeline = Timeline::new("importer");
            fences.add(timeline.next_point());
            self.timelines.push(timeline);
        }
        self.maps[map].fences = fences.clone();
        let mut held = Held::in_destructor();
        let released = if room {
            self.ledger.demote(charge, fences, &mut self.room_pages, &mut held)
        } else {
            self.ledger.release(charge, fences, &mut held)
        };
        self.unreaped.extend(released.unreaped);
    }

    fn reap(&mut self) {
        let mut held = Held::in_destructor();
        self.unreaped.retain(|unreaped| {
            let signalled = unreaped.fences.is_signaled();
            if signalled {
                self.ledger.reap(unreaped.id, &mut held);
            }
            !signalled
        });
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Map { buffer, generation, pages, importer, rank } => {
                self.map(PlaceKey { buffer, generation }, pages, self.importers[importer], rank);
            }
            Step::Unmap { which, fenced } => self.unmap(&which, fenced, false),
            Step::Demote { which, fenced } => self.unmap(&which, fenced, true),
            Step::GiveBackRoom => {
                let room_pages = std::mem::take(&mut self.room_pages);
                self.ledger.give_back_room(room_pages, &mut Held::in_destructor());
            }
            Step::Signal { which } if !self.timelines.is_empty() => {
                let timeline = self.timelines.swap_remove(which.index(self.timelines.len()));
                timeline.signal(1);
            }
            Step::Signal { .. } => {}
            Step::Reap => self.reap(),
            Step::SetLimit { account, pages } => {
                let account = self.importers.get(account).copied().unwrap_or(account);
                self.limits[account] = pages;
                self.highest[account] = self.highest[account].max(pages);
                self.accounts[account].as_ref().expect("it is there").set_limit(pages_long(pages));
            }
            Step::SetRank { buffer, rank } => {
                self.ranks[buffer as usize] = rank;
                self.ledger.set_rank(buffer, rank, &mut Held::in_destructor());
            }
            Step::Rejoin { importer } => {
                self.accounts[self.importers[importer]] = None;
                self.importers[importer] = self.accounts.len();
                self.accounts.push(Some(Account::open(&self.ledger, &mut Held::in_destructor())));
                self.limits.push(u64::MAX);
                self.highest.push(u64::MAX);
            }
        }
        self.check();
    }

    fn check(&mut self) {
        let mut held = Held::in_destructor();
        let usage = self.ledger.usage(&mut held);
        assert_eq!(usage.live_pages, self.pages(Map::is_live).len() as u64, "live pages");
        assert_eq!(usage.reserved_pages, self.room_pages, "what is set aside");
        assert!(
            usage.live_pages + usage.pending_pages <= HARD_PAGES,
            "counted beyond the hard limit: {usage:?}"
        );
        assert!(usage.peak_pages <= HARD_PAGES, "{usage:?}");
        let in_use = self.pages(Map::may_be_used).len() as u64;
        assert!(in_use <= usage.live_pages + usage.pending_pages, "{in_use} pages are in use, of {usage:?}");
        for (account, owner) in self.accounts.iter().enumerate() {
            let counted = |map: &Map| Model::counts_for(account, map);
            let live = self.pages(|map| map.is_live() && counted(map)).len() as u64;
            if let Some(owner) = owner {
                assert_eq!(owner.used(), pages_long(live), "live pages of account {account}");
            }
            let in_use = self.pages(|map| map.may_be_used() && counted(map)).len() as u64;
            assert!(in_use <= self.highest[account], "{in_use} pages of account {account} are in use");
        }
        self.expect_crossings();
        let mut next = self.ledger.first_crossing(&mut held);
        while let Some(crossing) = next {
            self.told.push((crossing.level, crossing.began));
            next = self.ledger.next_crossing(&mut held);
        }
        assert_eq!(self.told, self.expected, "what was told");
    }

    fn expect_crossings(&mut self) {
        let Marks { reopen_pages, soft_pages, hard_pages } = self.marks;
        let used = self.used_pages();
        let was = (self.is_soft, self.is_hard);
        self.is_hard = used >= hard_pages || (self.is_hard && used > soft_pages.min(hard_pages - 1));
        self.is_soft = used > reopen_pages && (used >= soft_pages || self.is_soft);
        match was {
            (_, true) if !self.is_hard => self.expected.push((PressureLevel::Hard, false)),
            _ => {}
        }
        if was.0 != self.is_soft {
            self.expected.push((PressureLevel::Soft, self.is_soft));
        }
        if !was.1 && self.is_hard {
            self.expected.push((PressureLevel::Hard, true));
        }
    }

    /// When everything was given back and every fence has signalled, nothing counts any more.
    fn finish(mut self) {
        for map in 0..self.maps.len() {
            self.give_back(map, false, false);
            self.check();
        }
        self.step(Step::GiveBackRoom);
        self.timelines.drain(..).for_each(|timeline| timeline.signal(1));
        self.step(Step::Reap);
        let usage = self.ledger.usage(&mut Held::in_destructor());
        assert_eq!((usage.live_pages, usage.pending_pages, usage.level), (0, 0, None));
        let ledger = self.ledger.clone();
        drop(self);
        assert!(ledger.is_empty(), "something is left in {ledger:?}");
    }
}

fn any_rank() -> impl Strategy<Value = Rank> {
    let p2p = prop_oneof![3 => Just(P2p::Allowed), 2 => Just(P2p::Prefer), 1 => Just(P2p::Require)];
    (p2p, 0usize..3).prop_map(|(p2p, priority)| Rank { p2p, priority })
}

fn any_step() -> impl Strategy<Value = Step> {
    let account = 0..IMPORTERS + CLIENTS;
    prop_oneof![
        8 => (0u64..4, 0u64..2, 0u64..10, 1u64..8, 0..IMPORTERS, any_rank()).prop_map(
            |(buffer, generation, start, len, importer, rank)| {
                Step::Map { buffer, generation, pages: start..start + len, importer, rank }
            }
        ),
        5 => (any::<Index>(), prop::bool::weighted(0.8))
            .prop_map(|(which, fenced)| Step::Unmap { which, fenced }),
        2 => (any::<Index>(), prop::bool::weighted(0.8))
            .prop_map(|(which, fenced)| Step::Demote { which, fenced }),
        1 => Just(Step::GiveBackRoom),
        2 => any::<Index>().prop_map(|which| Step::Signal { which }),
        1 => Just(Step::Reap),
        1 => (account, 0u64..16).prop_map(|(account, pages)| Step::SetLimit { account, pages }),
        1 => (0u64..4, any_rank()).prop_map(|(buffer, rank)| Step::SetRank { buffer, rank }),
        1 => (0..IMPORTERS).prop_map(|importer| Step::Rejoin { importer }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_ledger_does_what_the_model_does(
        soft in 0..=HARD_PAGES,
        reopen in 0..=HARD_PAGES,
        limits in prop::collection::vec(4u64..24, IMPORTERS + CLIENTS),
        steps in prop::collection::vec(any_step(), 1..80),
    ) {
        let mut model = Model::new(soft.max(reopen), soft.min(reopen), limits);
        steps.into_iter().for_each(|step| model.step(step));
        model.finish();
    }
}
