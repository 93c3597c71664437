//! What a guest said on its serial line, and what to think of it.
//!
//! QEMU's exit status says nothing about the tests: a guest that died ends like one that finished. What counts is the
//! closing line with this run's token, libtest's own count, and that the count is that of the tests there are.

use crate::process::Captured;
use crate::tally::Tally;
use std::time::Duration;

/// What was to be run.
pub struct Expected<'a> {
    /// Stands in the closing line.
    pub token: &'a str,
    /// How many tests there are.
    pub tests: u64,
}

/// What a guest has done.
#[derive(Debug, PartialEq)]
pub struct Report {
    /// The tests by how they ended; what was skipped is not among those that passed.
    pub tally: Tally,
    /// Why tests were skipped, each reason once.
    pub skips: Vec<String>,
    /// How long the kernel took until the tests began, in the guest's own time.
    pub boot_seconds: f64,
    /// How long the tests took, in the guest's own time.
    pub test_seconds: f64,
    /// The tests that took longest, and how long that was, the longest first.
    pub slowest: Vec<(String, Duration)>,
}

/// How many tests are among the slowest.
const SLOWEST: usize = 5;

/// Begins the lines of the first process.
const GUEST: &str = "guest: ";
/// What a kernel says when something is wrong in it; our tests drive it, so it is a finding.
const COMPLAINTS: [&str; 8] = [
    "Kernel panic",
    "BUG: ",
    "Oops: ",
    "general protection fault",
    "WARNING: CPU",
    "blocked for more than",
    "guest: the module ",
    "guest: the host's ",
];

/// Judges a run.
///
/// # Errors
/// Why it shows nothing, or what was wrong.
pub fn judge(run: &Captured, expected: &Expected<'_>) -> Result<Report, String> {
    let lines: Vec<&str> = run.output.lines().map(str::trim_end).collect();
    if let Some(line) = lines.iter().find(|line| COMPLAINTS.iter().any(|complaint| line.contains(complaint)))
    {
        return Err(format!("the kernel complains: {}", line.trim()));
    }
    let Some(status) = run.status else {
        return Err(format!("not done after {} s; the last line is: {}", run.took.as_secs(), last(&lines)));
    };
    let closing = format!("{GUEST}{} ended with status ", expected.token);
    let Some(end) = lines.iter().find_map(|line| line.strip_prefix(&closing)) else {
        return Err(format!("no closing line (QEMU: {status}); the last line is: {}", last(&lines)));
    };
    let tallies: Vec<Tally> = lines.iter().filter_map(|line| Tally::of_line(line)).collect();
    let [tally] = tallies[..] else {
        return Err(format!("{} lines with results instead of one", tallies.len()));
    };
    let ran = tally.passed + tally.failed + tally.skipped;
    if ran != expected.tests || ran == 0 {
        return Err(format!("{ran} tests ran, and there are {}", expected.tests));
    }
    let (code, after) = end.split_once(" after ").unwrap_or((end, ""));
    if (code == "0") != (tally.failed == 0) {
        return Err(format!("{} tests failed, but the program ended with status {code}", tally.failed));
    }
    let boot_seconds = lines.iter().find_map(|line| line.strip_prefix(GUEST)?.strip_prefix("up after "));
    let (boot_seconds, end_seconds) = (seconds(boot_seconds.unwrap_or_default()), seconds(after));
    let (skipped, skips) = skips(&lines);
    let tally = Tally {
        passed: tally.passed.saturating_sub(skipped),
        failed: tally.failed,
        skipped: tally.skipped + skipped,
    };
    let mut slowest = times(&lines, &run.line_ends);
    slowest.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
    slowest.truncate(SLOWEST);
    Ok(Report { tally, skips, boot_seconds, test_seconds: end_seconds - boot_seconds, slowest })
}

/// How long each test took, by when the lines came. Tests run one at a time: the line with the next one's name, or with the result,
/// begins when a test has ended, whatever it has said itself.
fn times(lines: &[&str], line_ends: &[Duration]) -> Vec<(String, Duration)> {
    let mut times: Vec<(String, Duration)> = Vec::new();
    let mut running: Option<(&str, Duration)> = None;
    let begins = std::iter::once(&Duration::ZERO).chain(line_ends);
    for (line, begin) in lines.iter().zip(begins) {
        let Some(rest) = line.strip_prefix("test ") else { continue };
        if let Some((name, since)) = running.take() {
            times.push((name.to_owned(), begin.saturating_sub(since)));
        }
        running = rest.split_once(" ...").map(|(name, _)| (name, *begin));
    }
    times
}

/// The names of the tests that failed.
pub fn failed_tests(log: &str) -> Vec<&str> {
    // libtest lists them once more after the word `failures:`.
    let (_, list) = log.rsplit_once("failures:").unwrap_or_default();
    let lines = list.lines().map(str::trim).skip_while(|line| line.is_empty());
    lines.take_while(|line| !line.is_empty()).collect()
}

/// How many tests said that they were skipped, and why. A test may miss several things and say so several times.
fn skips(lines: &[&str]) -> (u64, Vec<String>) {
    let mut reasons: Vec<String> = Vec::new();
    let (mut count, mut is_counted) = (0, false);
    for line in lines {
        if line.starts_with("test ") {
            is_counted = false;
        }
        let Some((_, reason)) = line.split_once("*** skipped: ") else { continue };
        let reason = reason.trim_end_matches("***").trim().to_owned();
        count += u64::from(!is_counted);
        is_counted = true;
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    (count, reasons)
}

fn seconds(text: &str) -> f64 {
    text.trim_end_matches(" s").parse().unwrap_or(f64::NAN)
}

fn last<'a>(lines: &[&'a str]) -> &'a str {
    lines.iter().rev().find(|line| !line.trim().is_empty()).map_or("(nothing at all)", |line| line.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    const GOOD: &str = "guest: up after 2.50 s\r
running 3 tests\r
test a ... ok\r
test b ... \r
*** skipped: no vkms: here ***\r
ok\r
test c ... ok\r
\r
test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.01s\r
\r
guest: run-1 ended with status 0 after 3.75 s\r
";

    fn ended(output: &str) -> Captured {
        let status = Some(std::process::ExitStatus::from_raw(0));
        let line_ends = (1..).map(Duration::from_secs).take(output.lines().count()).collect();
        Captured { status, output: output.into(), line_ends, took: Duration::from_secs(4) }
    }

    fn judged(output: &str, tests: u64) -> Result<Report, String> {
        judge(&ended(output), &Expected { token: "run-1", tests })
    }

    #[test]
    fn a_run_counts_with_its_closing_line_and_all_its_tests() {
        let report = judged(GOOD, 3).unwrap();
        assert_eq!(report.tally, Tally { passed: 2, failed: 0, skipped: 1 });
        assert_eq!(report.skips, ["no vkms: here"]);
        assert_eq!((report.boot_seconds, report.test_seconds), (2.5, 1.25));
    }

    #[test]
    fn a_test_took_from_the_line_with_its_name_to_the_next_one_or_the_result() {
        // A line a second; what `b` says takes two.
        let took = |name: &str, seconds| (name.to_owned(), Duration::from_secs(seconds));
        assert_eq!(judged(GOOD, 3).unwrap().slowest, [took("b", 3), took("c", 2), took("a", 1)]);
    }

    #[test]
    fn a_run_of_another_number_of_tests_does_not() {
        assert!(judged(GOOD, 4).unwrap_err().contains("3 tests ran, and there are 4"));
        let none = GOOD.replace("3 passed", "0 passed");
        assert!(judged(&none, 0).unwrap_err().contains("0 tests ran"));
    }

    #[test]
    fn a_guest_that_died_or_belongs_to_another_run_does_not() {
        let cut = GOOD.split("guest: run-1").next().unwrap();
        assert!(judged(cut, 3).unwrap_err().contains("no closing line"));
        assert!(judged(&GOOD.replace("run-1", "run-2"), 3).unwrap_err().contains("no closing line"));
        assert!(judged("", 3).unwrap_err().contains("nothing at all"));
        let slow = Captured { status: None, ..ended(cut) };
        assert!(
            judge(&slow, &Expected { token: "run-1", tests: 3 }).unwrap_err().contains("not done after 4 s")
        );
    }

    #[test]
    fn a_status_that_does_not_fit_the_count_is_found() {
        assert!(judged(&GOOD.replace("status 0", "status 101"), 3).unwrap_err().contains("status 101"));
    }

    #[test]
    fn a_complaint_of_the_kernel_is_a_failure_however_the_tests_ended() {
        let oops = GOOD.replace("test c", "[    3.1] BUG: kernel NULL pointer dereference\r\ntest c");
        assert!(judged(&oops, 3).unwrap_err().contains("NULL pointer"));
        let module = GOOD.replace("running", "guest: the module qxl.ko cannot be loaded\r\nrunning");
        assert!(judged(&module, 3).unwrap_err().contains("qxl.ko"));
    }

    #[test]
    fn the_tests_that_failed_are_named() {
        let log =
            "failures:\n\n---- a::b stdout ----\nx\n\n\nfailures:\n    a::b\n    c\n\ntest result: FAILED.";
        assert_eq!(failed_tests(log), ["a::b", "c"]);
        assert_eq!(failed_tests("all is well"), Vec::<&str>::new());
    }
}
