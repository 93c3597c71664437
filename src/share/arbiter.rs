//! The arbiter: what all attachments of one buffer agree on, so that the buffer does not go to and fro between them.
//!
//! ```text
//!   who is attached                      accord
//!   all reach the BAR                    Direct: VRAM, everybody through the BAR
//!   some do not, and one requires it     Staged: VRAM, and a copy in system memory for those who do not
//!   some do not, or nobody does          Staged, or System: system memory for everybody; whichever costs less
//! ```
//!
//! **What it costs.** Each use is charged to both, as the time in which its bytes go the way that they would take:
//!
//! | use of *n* bytes | System | Staged |
//! |---|---|---|
//! | by an importer that reaches the BAR | *n* over the bus | *n* over its route |
//! | by one that does not | *n* over the bus | the same |
//! | its first after a write on the other side | | *n* copied |
//! | its own write | | *n* copied back |
//! | by a job of the GPU | *n* over the bus; if it may be in VRAM only, brought there and back | |
//! | a map that had to move it | all of it | |
//!
//! The last is charged whoever is attached: those who share a buffer need not be there at the same time.
//!
//! What has no bandwidth that anybody knows is charged as if it had that of the bus.
//!
//! **When it changes its mind.** What the present accord has cost more than the other would have, it regrets; what it has cost less
//! makes up for that, but is not saved up. When it regrets several times what a change costs, it changes, and regrets nothing. So
//! who uses the buffer in one way sees one change at most, and whatever happens, what changes cost is a fraction of what uses do.
//!
//! All of it is part of the buffer's state, under its reservation.

use crate::pagemap::Decision;

/// What is charged for bytes that take a way of unknown bandwidth: a x16 link of the third generation.
const BUS_BYTES_PER_S: u64 = 16_000_000_000;

/// How many times the cost of a change has to be regretted before it is made.
const HYSTERESIS: u64 = 4;

/// What the attachments of a buffer agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accord {
    /// VRAM, which all reach.
    Direct,
    /// System memory for all.
    System,
    /// VRAM, and a copy in system memory for those who do not reach it.
    Staged,
}

/// Who is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Parties {
    /// How many reach the BAR.
    pub(super) direct: usize,
    /// How many do not.
    pub(super) others: usize,
    /// Whether one of the first requires it.
    pub(super) required: bool,
    /// Whether the buffer would rather be in VRAM.
    pub(super) prefers_vram: bool,
}

/// What one use costs, in ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// Of a buffer in system memory.
    pub(super) system_ns: u64,
    /// Of a buffer in VRAM with a copy.
    pub(super) staged_ns: u64,
}

fn ns_of(bytes: u64, bytes_per_s: u64) -> u64 {
    let ns = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_s.max(1));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// How long it takes to move so many bytes between VRAM and system memory.
fn move_ns(bytes: u64) -> u64 {
    ns_of(bytes, BUS_BYTES_PER_S)
}

impl Cost {
    /// Of an importer's use.
    fn of_importer(decision: &Decision, bytes: u64) -> Cost {
        let system_ns = move_ns(bytes);
        let own = decision.bandwidth_bytes_per_s.filter(|_| decision.route.is_p2p());
        Cost { system_ns, staged_ns: own.map_or(system_ns, |own| ns_of(bytes, own)) }
    }

    /// Of a job of the GPU; `in_system` if it can run with the buffer in system memory.
    fn of_job(bytes: u64, in_system: bool) -> Cost {
        let system_ns = move_ns(bytes);
        Cost { system_ns: if in_system { system_ns } else { system_ns.saturating_mul(2) }, staged_ns: 0 }
    }

    fn with_copy(self, bytes: u64) -> Cost {
        Cost { staged_ns: self.staged_ns.saturating_add(move_ns(bytes)), ..self }
    }
}

/// What one buffer's attachments have agreed on. See the head of the module.
#[derive(Debug, Default)]
pub(crate) struct Arbiter {
    /// [`Accord::System`] or [`Accord::Staged`], once there was somebody who does not reach the BAR.
    accord: Option<Accord>,
    /// Who was there when it was asked last.
    parties: Parties,
    /// What the accord has cost too much.
    regret_ns: u64,
    /// Whether those who reach it have written since one who does not has looked.
    is_written: bool,
}

impl Arbiter {
    /// What holds for these.
    pub(super) fn accord(&mut self, parties: Parties) -> Accord {
        self.parties = parties;
        if parties.others == 0 {
            return Accord::Direct;
        }
        if parties.required {
            self.regret_ns = 0;
            self.accord = Some(Accord::Staged);
        }
        let first = match parties.direct > 0 && parties.prefers_vram {
            true => Accord::Staged,
            false => Accord::System,
        };
        *self.accord.get_or_insert(first)
    }

    /// What was said last.
    pub(super) fn present(&self) -> Accord {
        match self.parties.others {
            0 => Accord::Direct,
            _ => self.accord.unwrap_or(Accord::Direct),
        }
    }

    /// An importer uses so many bytes of a buffer of `buffer_bytes`.
    pub(super) fn importer_uses(&mut self, decision: &Decision, bytes: u64, buffer_bytes: u64) {
        let mut cost = Cost::of_importer(decision, bytes);
        if !decision.route.is_p2p() && std::mem::take(&mut self.is_written) {
            cost = cost.with_copy(bytes);
        }
        self.charge(cost, buffer_bytes);
    }

    /// An importer has written.
    pub(super) fn importer_wrote(&mut self, decision: &Decision, bytes: u64, buffer_bytes: u64) {
        match decision.route.is_p2p() {
            true => self.is_written = true,
            false => self.charge(Cost::default().with_copy(bytes), buffer_bytes),
        }
    }

    /// A job of the GPU uses all of it. `in_system` if it can run with the buffer in system memory.
    pub(super) fn job_uses(&mut self, writes: bool, buffer_bytes: u64, in_system: bool) {
        self.is_written |= writes;
        self.charge(Cost::of_job(buffer_bytes, in_system), buffer_bytes);
    }

    /// A map has moved the buffer between VRAM and system memory.
    pub(super) fn was_moved(&mut self, buffer_bytes: u64) {
        let cost = Cost { system_ns: move_ns(buffer_bytes), staged_ns: 0 };
        self.charge_to(self.accord.unwrap_or(Accord::Direct), cost, buffer_bytes);
    }

    fn charge(&mut self, cost: Cost, buffer_bytes: u64) {
        self.charge_to(self.present(), cost, buffer_bytes);
    }

    fn charge_to(&mut self, accord: Accord, cost: Cost, buffer_bytes: u64) {
        let (mine_ns, other_ns, other) = match accord {
            Accord::Direct => return,
            Accord::System => (cost.system_ns, cost.staged_ns, Accord::Staged),
            Accord::Staged => (cost.staged_ns, cost.system_ns, Accord::System),
        };
        self.regret_ns = self.regret_ns.saturating_add(mine_ns).saturating_sub(other_ns);
        let enough_ns = move_ns(buffer_bytes).saturating_mul(HYSTERESIS);
        if self.regret_ns > enough_ns && !self.parties.required {
            tracing::debug!(?other, regret_ns = self.regret_ns, "the accord changes");
            self.regret_ns = 0;
            self.accord = Some(other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pagemap::{Direction, LatencyClass, Route};

    const MIB: u64 = 1 << 20;

    fn decision(route: Route, bandwidth_bytes_per_s: Option<u64>) -> Decision {
        Decision {
            route,
            p2p: Some(route.is_p2p()),
            direction: Direction { reads: true, writes: true },
            atomics: None,
            latency: LatencyClass::Near,
            bandwidth_bytes_per_s,
        }
    }

    fn direct() -> Decision {
        decision(Route::Switch, None)
    }

    fn other() -> Decision {
        decision(Route::Staging, None)
    }

    fn mixed() -> Parties {
        Parties { direct: 1, others: 1, required: false, prefers_vram: true }
    }

    /// How often the accord changes in `turns` turns.
    fn changes(turns: usize, mut turn: impl FnMut(&mut Arbiter)) -> (usize, Accord) {
        let mut arbiter = Arbiter::default();
        let mut last = arbiter.accord(mixed());
        let mut changes = 0;
        for _ in 0..turns {
            turn(&mut arbiter);
            let now = arbiter.accord(mixed());
            changes += usize::from(now != last);
            last = now;
        }
        (changes, last)
    }

    #[test]
    fn who_all_reach_the_bar_have_nothing_to_agree_on() {
        let mut arbiter = Arbiter::default();
        let parties = Parties { direct: 3, others: 0, ..mixed() };
        assert_eq!(arbiter.accord(parties), Accord::Direct);
        arbiter.importer_uses(&direct(), MIB, MIB);
        assert_eq!((arbiter.regret_ns, arbiter.accord(parties)), (0, Accord::Direct));
    }

    #[test]
    fn nobody_moves_what_is_in_vram_for_one_who_does_not_reach_it() {
        assert_eq!(Arbiter::default().accord(mixed()), Accord::Staged);
        let lives_elsewhere = Parties { prefers_vram: false, ..mixed() };
        assert_eq!(Arbiter::default().accord(lives_elsewhere), Accord::System);
        let nobody_reaches_it = Parties { direct: 0, ..mixed() };
        assert_eq!(Arbiter::default().accord(nobody_reaches_it), Accord::System);
    }

    #[test]
    fn who_write_and_read_in_turn_meet_in_system_memory_and_stay_there() {
        let turn = |arbiter: &mut Arbiter| {
            arbiter.importer_uses(&direct(), MIB, MIB);
            arbiter.importer_wrote(&direct(), MIB, MIB);
            arbiter.importer_uses(&other(), MIB, MIB);
        };
        assert_eq!(changes(10_000, turn), (1, Accord::System));
    }

    #[test]
    fn what_the_gpu_works_on_stays_in_vram() {
        let turn = |arbiter: &mut Arbiter| {
            arbiter.job_uses(true, MIB, true);
            arbiter.importer_uses(&other(), MIB, MIB);
        };
        assert_eq!(changes(10_000, turn), (0, Accord::Staged));
        let in_vram_only = |arbiter: &mut Arbiter| {
            arbiter.job_uses(true, MIB, false);
            arbiter.importer_uses(&other(), MIB, MIB);
            arbiter.importer_wrote(&other(), MIB, MIB);
        };
        assert_eq!(changes(10_000, in_vram_only), (0, Accord::Staged));
    }

    #[test]
    fn a_fast_link_outweighs_a_copy() {
        let link = decision(Route::PrivateLink, Some(300_000_000_000));
        let turn = |arbiter: &mut Arbiter| {
            (0..2).for_each(|_| arbiter.importer_uses(&link, MIB, MIB));
            arbiter.importer_wrote(&link, MIB, MIB);
            arbiter.importer_uses(&other(), MIB, MIB);
        };
        assert_eq!(changes(10_000, turn), (0, Accord::Staged));
    }

    #[test]
    fn who_come_one_after_the_other_stop_moving_the_buffer() {
        let mut arbiter = Arbiter::default();
        let alone = |direct| Parties { direct, others: 1 - direct, ..mixed() };
        let mut moves = 0;
        for _ in 0..10_000 {
            for (parties, decision) in [(alone(0), other()), (alone(1), direct())] {
                let accord = arbiter.accord(parties);
                if arbiter.accord != Some(Accord::Staged) && (moves % 2 == 0) == (accord == Accord::System) {
                    moves += 1;
                    arbiter.was_moved(MIB);
                }
                arbiter.importer_uses(&decision, MIB, MIB);
            }
        }
        assert!((1..=HYSTERESIS + 1).contains(&moves), "{moves}");
    }

    #[test]
    fn nothing_is_taken_from_one_who_requires_the_bar() {
        let parties = Parties { required: true, ..mixed() };
        let mut arbiter = Arbiter::default();
        arbiter.accord(Parties { direct: 0, ..mixed() });
        assert_eq!(arbiter.accord(parties), Accord::Staged);
        for _ in 0..1000 {
            arbiter.importer_wrote(&other(), MIB, MIB);
        }
        assert_eq!(arbiter.accord(parties), Accord::Staged);
    }

    #[test]
    fn whoever_changes_his_ways_pays_a_fraction_of_his_uses_for_changes() {
        let mut arbiter = Arbiter::default();
        let (mut last, mut changes, mut uses) = (arbiter.accord(mixed()), 0u64, 0u64);
        for round in 0..1000 {
            for _ in 0..round % 17 {
                uses += 1;
                match round % 2 {
                    0 => arbiter.importer_wrote(&other(), MIB, MIB),
                    _ => arbiter.job_uses(false, MIB, true),
                }
                let now = arbiter.accord(mixed());
                changes += u64::from(now != last);
                last = now;
            }
        }
        assert!(changes > 0 && changes * HYSTERESIS <= uses, "{changes} changes in {uses} uses");
    }

    #[test]
    fn bytes_beyond_measure_cost_no_more_than_everything() {
        let mut arbiter = Arbiter::default();
        arbiter.accord(mixed());
        (0..3).for_each(|_| arbiter.importer_wrote(&other(), u64::MAX, u64::MAX));
        arbiter.job_uses(true, u64::MAX, false);
        assert_eq!(ns_of(u64::MAX, 0), u64::MAX);
    }
}
