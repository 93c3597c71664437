//! Counting tests by the lines with which each test program ends:
//! `test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s`.

use std::ops::AddAssign;

/// How many things were tried, and how that went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Went well.
    pub passed: u64,
    /// Did not.
    pub failed: u64,
    /// Were not tried.
    pub skipped: u64,
}

impl Tally {
    /// One thing that went well.
    pub const PASSED: Tally = Tally { passed: 1, failed: 0, skipped: 0 };
    /// One thing that did not.
    pub const FAILED: Tally = Tally { passed: 0, failed: 1, skipped: 0 };
    /// One thing that was not tried.
    pub const SKIPPED: Tally = Tally { passed: 0, failed: 0, skipped: 1 };

    /// What a test program's last line says; `None` for any other line.
    pub fn of_line(line: &str) -> Option<Tally> {
        let (_, counts) = line.split_once("test result: ")?.1.split_once(". ")?;
        let mut tally = Tally::default();
        for count in counts.split(';') {
            let Some((number, what)) = count.trim().split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => tally.passed = number,
                "failed" => tally.failed = number,
                "ignored" => tally.skipped = number,
                _ => {}
            }
        }
        Some(tally)
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, more: Tally) {
        self.passed += more.passed;
        self.failed += more.failed;
        self.skipped += more.skipped;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_a_test_program_is_counted() {
        let line =
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s";
        assert_eq!(Tally::of_line(line), Some(Tally { passed: 12, failed: 0, skipped: 1 }));
        let line = "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(Tally::of_line(line), Some(Tally { passed: 3, failed: 2, skipped: 0 }));
    }

    #[test]
    fn a_colored_result_is_counted_too() {
        let line =
            "test result: \x1b[32mok\x1b[0m. 7 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(Tally::of_line(line), Some(Tally { passed: 7, failed: 0, skipped: 0 }));
    }

    #[test]
    fn other_lines_are_not() {
        for line in ["", "running 4 tests", "test result_of_something ... ok", "test result: "] {
            assert_eq!(Tally::of_line(line), None, "{line:?}");
        }
    }
}
