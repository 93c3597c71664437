//! What nobody can do, and what its fence says then.

use super::{Means, State};
use crate::ledger::Ledger;
use crate::request::Urgency;
use crate::schedule::MoveId;
use crate::slots::{Health, Part};
use crate::zones::{Way, WaySet};
use devpagemap_fence::FenceError;

impl State {
    /// Fails the moves for which nobody is left. What cannot be finished in the ring is tried without it first.
    pub(super) fn fail_hopeless(&mut self, ledger: &Ledger) {
        while let Some(at) = self.waiting.iter().position(|part| self.means_of(part) == Means::Nobody) {
            let part = self.waiting[at].clone();
            if let Some(whole) = self.unstage(&part) {
                self.waiting[at] = whole;
                continue;
            }
            let error = self.error_for(&part);
            self.fail_move(part.id, error, ledger);
        }
        for way in self.zones.ways() {
            let only = WaySet::default().with(self.zones.index(way)).intersect(self.unserved);
            for urgency in Urgency::ALL {
                while let Some(id) = self.ready.oldest(urgency, only) {
                    let error = self.error_for_way(way);
                    self.fail_move(id, error, ledger);
                }
            }
        }
        if self.ring.zone().is_none() {
            self.fail_pulls(ledger);
        }
    }

    /// Fails the pulls that have bytes left to be cut: there is no ring.
    fn fail_pulls(&mut self, ledger: &Ledger) {
        for urgency in Urgency::ALL {
            let ids: Vec<MoveId> = self.ring.pulls(urgency).collect();
            for id in ids {
                let error = FenceError::failed(format!("{}, so nothing can be pulled", self.ring.why_none()));
                self.fail_move(id, error, ledger);
            }
        }
    }

    /// The error of a move of which nobody could do this part: the last engine that tried, and what it said.
    fn error_for(&self, part: &Part) -> FenceError {
        let Some((engine, error)) = &part.trouble else { return self.error_for_way(part.way) };
        FenceError::EngineFailed {
            engine: self.engines[*engine].name.clone(),
            reason: format!("{error}; nobody is left to redo the chunk").into(),
        }
    }

    fn error_for_way(&self, way: Way) -> FenceError {
        let legs = self.legs(way).into_iter().flatten();
        let lost = std::iter::once(way).chain(legs).find_map(|way| self.lost_on(way));
        lost.unwrap_or_else(|| FenceError::EngineFailed {
            engine: "none".into(),
            reason: format!("no engine and no fallback can {}", self.zones.describe(way)).into(),
        })
    }

    /// The error of a way whose last engine is quarantined.
    fn lost_on(&self, way: Way) -> Option<FenceError> {
        let index = self.zones.index(way);
        let reaching = self.engines.iter().rev().filter(|slot| slot.reaches.contains(index));
        let (mut lost, mut is_served) = (None, false);
        for slot in reaching {
            match &slot.health {
                Health::Quarantined(error) => lost = lost.or_else(|| Some((slot.name.clone(), error))),
                Health::Working | Health::Resetting => is_served = true,
            }
        }
        let (engine, error) = lost.filter(|_| !is_served)?;
        let way = self.zones.describe(way);
        Some(FenceError::EngineFailed {
            engine,
            reason: format!("quarantined ({error}), and nothing else can {way}").into(),
        })
    }

    /// Gives a move up: nothing more of it is started, and it ends once nothing of it is in flight.
    pub(super) fn fail_move(&mut self, id: MoveId, error: FenceError, ledger: &Ledger) {
        self.unlist(id);
        while let Some(at) = self.waiting.iter().position(|part| part.id == id) {
            let part = self.wait_no_more(at);
            if let Some(slot) = part.leg.slot() {
                self.ring.vacate(slot);
            }
        }
        let record = self.moves.get_mut(&id).expect("a move to be failed is in the table");
        record.failure.get_or_insert(error);
        self.end_if_done(id, ledger);
    }
}
