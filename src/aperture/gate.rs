//! The gate with two marks: what pressure there is, and when that changes.
//!
//! A level of pressure begins when use reaches its upper mark, and ends when use has fallen to its lower one; in between it
//! stays what it was. The ledger shows the gate every change of use, and the gate says which levels began or ended.

use std::collections::VecDeque;
use std::fmt;

use super::limits::Marks;

/// How much of the BAR peers use, in steps that the device tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PressureLevel {
    /// The soft limit was reached, and use has not fallen to the reopen mark since: buffers without priority get no more.
    Soft,
    /// The hard limit was reached, and use has not fallen to the soft limit, or below the hard one, since.
    Hard,
}

impl fmt::Display for PressureLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PressureLevel::Soft => "soft",
            PressureLevel::Hard => "hard",
        })
    }
}

/// A level that began or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crossing {
    pub(crate) level: PressureLevel,
    /// Whether it began.
    pub(crate) began: bool,
    /// The use that did it.
    pub(crate) used_pages: u64,
    /// The mark that it reached.
    pub(crate) limit_pages: u64,
}

/// One level's two marks.
#[derive(Debug)]
struct Step {
    level: PressureLevel,
    /// Constant.
    begins_at_pages: u64,
    /// Constant.
    ends_at_pages: u64,
    /// The aperture lock.
    lasts: bool,
}

impl Step {
    fn observe(&mut self, used_pages: u64) -> Option<Crossing> {
        let ends = used_pages <= self.ends_at_pages;
        let begins = used_pages >= self.begins_at_pages && !ends;
        let changes = if self.lasts { ends } else { begins };
        if !changes {
            return None;
        }
        self.lasts = begins;
        let limit_pages = if begins { self.begins_at_pages } else { self.ends_at_pages };
        Some(Crossing { level: self.level, began: begins, used_pages, limit_pages })
    }
}

/// The levels of one device. All under the aperture lock.
#[derive(Debug)]
pub(crate) struct Gate {
    soft: Step,
    hard: Step,
}

impl Gate {
    pub(crate) fn new(marks: &Marks) -> Gate {
        let hard_ends_at_pages = marks.soft_pages.min(marks.hard_pages.saturating_sub(1));
        Gate {
            soft: Step {
                level: PressureLevel::Soft,
                begins_at_pages: marks.soft_pages,
                ends_at_pages: marks.reopen_pages,
                lasts: false,
            },
            hard: Step {
                level: PressureLevel::Hard,
                begins_at_pages: marks.hard_pages,
                ends_at_pages: hard_ends_at_pages,
                lasts: false,
            },
        }
    }

    /// Whether buffers without priority get no more.
    pub(crate) fn is_closed(&self) -> bool {
        self.soft.lasts
    }

    /// The highest level that lasts.
    pub(crate) fn level(&self) -> Option<PressureLevel> {
        [&self.hard, &self.soft].into_iter().find(|step| step.lasts).map(|step| step.level)
    }

    /// Notes in `crossings` what begins or ends with this use: the lower level begins first and ends last.
    pub(crate) fn observe(&mut self, used_pages: u64, crossings: &mut VecDeque<Crossing>) {
        let found = [self.soft.observe(used_pages), self.hard.observe(used_pages)];
        let ended = found.into_iter().rev().flatten().filter(|crossing| !crossing.began);
        crossings.extend(ended.chain(found.into_iter().flatten().filter(|crossing| crossing.began)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PressureLevel::{Hard, Soft};

    fn told(marks: [u64; 3], uses: &[u64]) -> Vec<(PressureLevel, bool, u64)> {
        let [reopen_pages, soft_pages, hard_pages] = marks;
        let mut gate = Gate::new(&Marks { reopen_pages, soft_pages, hard_pages });
        let mut crossings = VecDeque::new();
        uses.iter().for_each(|used| gate.observe(*used, &mut crossings));
        crossings.iter().map(|crossing| (crossing.level, crossing.began, crossing.used_pages)).collect()
    }

    #[test]
    fn use_that_goes_up_and_down_between_the_marks_is_told_once() {
        let uses = [4, 8, 7, 8, 6, 9, 5, 8, 4, 5, 7];
        assert_eq!(told([4, 8, 16], &uses), [(Soft, true, 8), (Soft, false, 4)]);
    }

    #[test]
    fn both_levels_may_begin_and_end_at_once_the_lower_begins_first_and_ends_last() {
        let wanted = [(Soft, true, 16), (Hard, true, 16), (Hard, false, 0), (Soft, false, 0)];
        assert_eq!(told([4, 8, 16], &[16, 0]), wanted);
    }

    #[test]
    fn the_hard_level_lasts_until_use_has_fallen_to_the_soft_limit() {
        let uses = [16, 15, 9, 16, 8];
        assert_eq!(told([4, 8, 16], &uses), [(Soft, true, 16), (Hard, true, 16), (Hard, false, 8)]);
    }

    #[test]
    fn with_all_marks_in_one_place_full_is_still_told() {
        assert_eq!(told([8, 8, 8], &[7, 8, 7]), [(Hard, true, 8), (Hard, false, 7)]);
    }

    #[test]
    fn without_any_bar_there_is_no_pressure() {
        assert_eq!(told([0, 0, 0], &[0, 0]), []);
    }
}
