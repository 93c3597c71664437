//! What the end of an exploration says: a model must hold, and must have run; a mutant must die of a panic or a deadlock.

use crate::process::Captured;
use crate::tally::Tally;
use std::time::Duration;

/// How one exploration ended.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The model holds, or the mutant is caught.
    pub is_good: bool,
    /// In words.
    pub text: String,
    /// How many executions it took; `None` when it did not end well.
    pub executions: Option<u64>,
    /// How long it took.
    pub took: Duration,
}

impl Verdict {
    /// What could not be explored.
    pub fn bad(text: impl Into<String>) -> Verdict {
        Verdict { is_good: false, text: text.into(), executions: None, took: Duration::ZERO }
    }

    /// The executions, for a table.
    pub fn states(&self) -> String {
        self.executions.map_or_else(|| "-".to_owned(), |count| count.to_string())
    }
}

/// Judges a run of a model on the code as it is.
pub fn of_model(run: &Captured) -> Verdict {
    let ran_one = run.output.lines().filter_map(Tally::of_line).any(|tally| tally == Tally::PASSED);
    let executions = executions(&run.output);
    let (is_good, text) = match run.status {
        Some(status) if status.success() && ran_one && executions.is_some() => (true, "holds".to_owned()),
        Some(status) if status.success() => (false, "did not run".to_owned()),
        Some(status) => {
            println!("{}", run.output);
            (false, format!("FAILED ({status})"))
        }
        None => (false, format!("FAILED: not done after {} s", run.took.as_secs())),
    };
    Verdict { is_good, text, executions, took: run.took }
}

/// Judges a run of a model on a mutant.
pub fn of_mutant(run: &Captured) -> Verdict {
    let (is_good, text) = match (run.status, cause_of_death(&run.output)) {
        (None, _) => (false, format!("NOT CAUGHT within {} s", run.took.as_secs())),
        (Some(status), _) if status.success() => (false, "NOT CAUGHT: the model holds".to_owned()),
        (Some(_), Some(cause)) => (true, format!("caught: {cause}")),
        (Some(status), None) => (false, format!("NOT CAUGHT: {status} without a panic")),
    };
    if !is_good {
        println!("{}", run.output);
    }
    Verdict { is_good, text, executions: None, took: run.took }
}

/// Judges a second run of a mutant, of the round that failed in the first.
pub fn of_replay(first: Verdict, replay: &Captured) -> Verdict {
    let again = of_mutant(replay);
    match again.text == first.text {
        true => Verdict { text: format!("{}, and again from its seed", first.text), ..first },
        false => Verdict::bad(format!("{}, but from its seed {}", first.text, again.text)),
    }
}

/// The round that failed, as the test printed it.
pub fn failing_round(output: &str) -> Option<&str> {
    let (_, rest) = output.split_once("failing round: ")?;
    Some(rest.split_once(';')?.0)
}

/// How many executions the model says that it explored.
fn executions(output: &str) -> Option<u64> {
    let (_, rest) = output.split_once("explored ")?;
    rest.split_once(" executions")?.0.parse().ok()
}

/// What the test said when it failed: the first line of its panic.
fn cause_of_death(output: &str) -> Option<String> {
    let mut lines = output.lines().skip_while(|line| !line.contains("panicked at"));
    let place = lines.next()?;
    let message = lines.next().map(str::trim).filter(|message| !message.is_empty());
    let message = message.unwrap_or(place);
    if output.to_lowercase().contains("deadlock") {
        return Some("deadlock".to_owned());
    }
    let short: String = message.chars().take(60).collect();
    Some(if short.len() < message.len() { format!("{short}..") } else { short })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(code: i32, output: &str) -> Captured {
        use std::os::unix::process::ExitStatusExt;
        let status = Some(std::process::ExitStatus::from_raw(code << 8));
        Captured { status, output: output.into(), line_ends: Vec::new(), took: Duration::ZERO }
    }

    #[test]
    fn a_model_holds_only_if_it_ran() {
        let result = |passed| {
            format!(
                "explored 7 executions\ntest result: ok. {passed} passed; 0 failed; 0 ignored; 0 measured"
            )
        };
        assert!(of_model(&ended(0, &result(1))).is_good);
        assert_eq!(of_model(&ended(0, &result(1))).states(), "7");
        assert!(!of_model(&ended(0, &result(0))).is_good, "a filter that matches nothing ends well too");
        assert!(!of_model(&ended(101, &result(1))).is_good);
        let uncounted = "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured";
        assert!(!of_model(&ended(0, uncounted)).is_good, "who does not count explores nothing");
    }

    #[test]
    fn a_mutant_is_caught_only_by_a_panic() {
        let panic = "thread 'x' panicked at src/a.rs:1:2:\nassertion failed: left == right\n";
        assert_eq!(of_mutant(&ended(101, panic)).text, "caught: assertion failed: left == right");
        assert!(!of_mutant(&ended(0, "test result: ok. 1 passed;")).is_good);
        assert!(!of_mutant(&ended(101, "error: no such option")).is_good);
        let deadlock = "thread 'x' panicked at a.rs:1:2:\ndeadlock; threads = [..]\n";
        assert_eq!(of_mutant(&ended(101, deadlock)).text, "caught: deadlock");
    }

    #[test]
    fn a_seed_must_lead_to_the_same_failure() {
        let failed = |cause: &str| {
            ended(
                101,
                &format!(
                    "failing round: pct-1f; to have it again:\nthread 'x' panicked at a.rs:1:2:\n{cause}\n"
                ),
            )
        };
        let first = failed("buffer 1 is wrong");
        assert_eq!(failing_round(&first.output), Some("pct-1f"));
        assert!(of_replay(of_mutant(&first), &first).is_good);
        assert!(!of_replay(of_mutant(&first), &failed("buffer 2 is wrong")).is_good);
        assert!(!of_replay(of_mutant(&first), &ended(0, "test result: ok. 1 passed;")).is_good);
    }
}
