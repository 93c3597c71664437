//! What was done, as a table, and the last line.

use crate::tally::Tally;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How a step went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What it counts for in the last line.
    pub tally: Tally,
    /// Why it was skipped or failed, or what it found.
    pub remark: String,
}

impl Outcome {
    /// It went well.
    pub fn passed(remark: impl Into<String>) -> Outcome {
        Outcome { tally: Tally::PASSED, remark: remark.into() }
    }

    /// It did not.
    pub fn failed(remark: impl Into<String>) -> Outcome {
        Outcome { tally: Tally::FAILED, remark: remark.into() }
    }

    /// It was not tried.
    pub fn skipped(remark: impl Into<String>) -> Outcome {
        Outcome { tally: Tally::SKIPPED, remark: remark.into() }
    }

    fn word(&self) -> &'static str {
        match self.tally {
            Tally { failed: 1.., .. } => "FAILED",
            Tally { passed: 0, skipped: 1.., .. } => "skipped",
            Tally { .. } => "passed",
        }
    }
}

/// A step that was done.
#[derive(Clone, Debug)]
pub struct Step {
    name: &'static str,
    took: Duration,
    outcome: Outcome,
}

impl Step {
    /// Announces a step, does it, and takes its time.
    pub fn timed(name: &'static str, body: impl FnOnce() -> Outcome) -> Step {
        println!("\n==> {name}");
        let begin = Instant::now();
        let outcome = body();
        Step { name, took: begin.elapsed(), outcome }
    }
}

/// Prints the table of all steps and the last line, and says how the process ends.
pub fn finish(steps: &[Step]) -> ExitCode {
    let mut total = Tally::default();
    let mut rows = vec![["step", "time", "result", "remark"].map(String::from)];
    for step in steps {
        total += step.outcome.tally;
        let word = step.outcome.word();
        rows.push([step.name.into(), seconds(step.took), word.into(), step.outcome.remark.clone()]);
    }
    println!("\n{}", table(&rows));
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Seconds, with as many digits as are worth reading.
pub fn seconds(time: Duration) -> String {
    match time.as_secs_f64() {
        short if short < 10.0 => format!("{short:.2} s"),
        long => format!("{long:.0} s"),
    }
}

/// Rows in columns as wide as they need; the first row is the heading.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
        if index == 0 {
            let rule = widths.map(|width| "-".repeat(width)).join("  ");
            text.push_str(&rule);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a", "b"], ["long", "c"]].map(|row| row.map(String::from));
        assert_eq!(table(&rows), "a     b\n----  -\nlong  c\n");
    }

    #[test]
    fn one_failure_makes_a_step_fail_however_much_passed() {
        let outcome = |passed, failed, skipped| Outcome {
            tally: Tally { passed, failed, skipped },
            remark: String::new(),
        };
        assert_eq!(outcome(9, 1, 0).word(), "FAILED");
        assert_eq!(outcome(9, 0, 4).word(), "passed");
        assert_eq!(outcome(0, 0, 1).word(), "skipped");
    }
}
