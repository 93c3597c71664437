//! How moves end: noted when nothing of them is in flight, published in the order of their lane.

use super::{Outlet, Phase, Publication, State, Step};
use crate::lane::Place;
use crate::ledger::Ledger;
use crate::schedule::MoveId;
use devpagemap_fence::sync::mutant;
use std::time::Instant;

impl State {
    pub(super) fn end_if_done(&mut self, id: MoveId, ledger: &Ledger) {
        let Some(record) = self.moves.get_mut(&id) else { return };
        if record.in_flight > 0 || !matches!(record.phase, Phase::Ready) {
            return;
        }
        let is_cut = record.cursor.offset_bytes() == record.operation.len_bytes();
        let outcome = match record.failure.take() {
            Some(error) => Err(error),
            None if is_cut && record.waiting == 0 => Ok(()),
            None => return,
        };
        self.ready_count -= 1;
        match &mut record.outlet {
            Outlet::Lane(lane) => {
                let lane = *lane;
                ledger.move_ended(&record.operation, outcome.is_ok());
                self.lanes[lane].load_bytes -= record.operation.len_bytes();
                record.phase = Phase::Ended(outcome);
                self.list_if_publishable(lane);
            }
            Outlet::Errand(report) => {
                let report = report.take().expect("an errand ends once");
                self.moves.remove(&id);
                self.told.push_back((report, outcome));
            }
        }
    }

    pub(super) fn list_if_publishable(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        let has_ended = |place: &Place| matches!(self.moves[&place.id].phase, Phase::Ended(_));
        if !lane.publishing && !lane.listed && lane.line.front().is_some_and(has_ended) {
            lane.listed = true;
            self.publishable.push_back(index);
        }
    }

    /// Takes the ended moves off the lane's front, up to and including the first one that failed.
    pub(super) fn publish(&mut self, index: usize) -> Step {
        let lane = &mut self.lanes[index];
        lane.listed = false;
        lane.publishing = !mutant!("lane_has_two_publishers");
        self.publishing += 1;
        let mut publication =
            Publication { lane: index, upto: None, failed: None, count: 0, spans: Vec::new() };
        while publication.failed.is_none()
            && let Some(Place { id, seqno }) = lane.line.front().copied()
            && matches!(self.moves[&id].phase, Phase::Ended(_))
        {
            lane.line.pop_front();
            let record = self.moves.remove(&id).expect("a move in a lane is in the table");
            match record.phase {
                Phase::Ended(Err(error)) => publication.failed = Some((seqno, error)),
                _ => publication.upto = Some(seqno),
            }
            publication.count += 1;
            if !record.span.is_disabled() {
                publication.spans.push(record.span);
            }
        }
        Step::Publish(publication)
    }

    /// The points of a [`Step::Publish`] have been signalled.
    pub(crate) fn published(&mut self, lane: usize) {
        self.lanes[lane].publishing = false;
        self.publishing -= 1;
        self.list_if_publishable(lane);
    }

    /// Accounts the busy time when the last chunk has come back.
    pub(super) fn note_idle_engines(&mut self, now: Instant, ledger: &Ledger) {
        if self.engines.iter().all(|slot| slot.in_flight.is_empty())
            && let Some(since) = self.busy_since.take()
        {
            let ns = now.saturating_duration_since(since).as_nanos();
            ledger.busy(u64::try_from(ns).unwrap_or(u64::MAX));
        }
    }
}
