//! The loom models, and the mutants that show that they can fail.
//!
//! A model must hold on the code as it is, and must fail on each of its mutants, in a child process, by a panic or a
//! deadlock. A mutant that does not compile, or whose model does not run, proves nothing and counts as a failure.
//!
//! **How mutants are built.** A mutant is one more `--cfg` for this workspace's crates only. Given as RUSTFLAGS it would
//! rebuild every dependency each time. Instead cargo is told to call rustc through a *workspace wrapper*, a two-line
//! script per mutant that appends the `--cfg`. Cargo keeps what different wrappers built apart, by the wrapper's path:
//!
//! ```text
//!   target/loom/release/deps/   libloom-1f..   shared by all             (RUSTFLAGS="--cfg loom")
//!                               libdevpagemap_fence-78..   the code      no wrapper
//!                               libdevpagemap_fence-ae..   mutant a      RUSTC_WORKSPACE_WRAPPER=target/loom/mutants/a
//!                               libdevpagemap_fence-b3..   mutant b      RUSTC_WORKSPACE_WRAPPER=target/loom/mutants/b
//! ```
//!
//! So a mutant costs the workspace's own crates, unoptimised, and nothing at all when no source has changed since the
//! last time.

use crate::cargo::{cargo, root, target_dir};
use crate::models::{self, Pair};
use crate::process::{self, Captured};
use crate::report::{Outcome, seconds, table};
use crate::tally::Tally;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How long one model may explore. The longest takes seconds.
const MODEL_LIMIT: Duration = Duration::from_secs(600);
/// How long one mutant may explore before it counts as not caught.
const MUTANT_LIMIT: Duration = Duration::from_secs(300);
/// The page that describes the models.
const PAGE: &str = "docs/lock-order.md";
/// Where mutants live.
const MUTATED: [&str; 3] = ["fence/src", "migrate/src", "src"];
/// Explored code keeps its debug assertions and is not linked for minutes. What is said of dependencies must be the same
/// for models and mutants, or each would have its own.
const PROFILE: [&str; 6] = [
    "profile.release.lto=\"off\"",
    "profile.release.codegen-units=16",
    "profile.release.debug=0",
    "profile.release.debug-assertions=true",
    "profile.release.package.\"*\".debug-assertions=false",
    "profile.release.package.\"*\".opt-level=3",
];
/// A mutant explores only until it is caught, so compiling it is what costs.
const MUTANT_PROFILE: &str = "profile.release.opt-level=0";

/// A model: its file and its name.
type Model = (String, String);
/// The built test programs, by file.
type Programs = BTreeMap<String, PathBuf>;

/// How one exploration ended.
#[derive(Clone, Debug)]
struct Verdict {
    is_good: bool,
    text: String,
    took: Duration,
}

impl Verdict {
    fn bad(text: impl Into<String>) -> Verdict {
        Verdict { is_good: false, text: text.into(), took: Duration::ZERO }
    }
}

/// Flags under which the workspace is built for loom.
pub fn rustflags() -> String {
    let given = std::env::var("RUSTFLAGS").unwrap_or_default();
    format!("{given} --cfg loom").trim_start().to_owned()
}

/// Where it is built, apart from everything else.
pub fn loom_target_dir() -> PathBuf {
    target_dir().join("loom")
}

/// Explores every model, and every mutant, whose name contains `filter`.
pub fn run(filter: &str) -> Outcome {
    match explore(filter) {
        Ok(outcome) => outcome,
        Err(reason) => {
            println!("{reason}");
            Outcome::failed(reason.lines().next().unwrap_or_default())
        }
    }
}

fn explore(filter: &str) -> Result<Outcome, String> {
    let path = root().join("loom-tests/models.txt");
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let all = models::parse(&text)?;
    let programs = build(None, None)?;
    let gaps = gaps(&all, &programs)?;
    let pairs: Vec<Pair> = all.into_iter().filter(|pair| is_wanted(pair, filter)).collect();
    if pairs.is_empty() {
        return Err(format!("no model and no mutant has `{filter}` in its name"));
    }
    // A long model keeps one processor busy; mutants are built meanwhile.
    let (models, mutants) = std::thread::scope(|scope| {
        let models = scope.spawn(|| explore_models(&pairs, &programs));
        let mutants = explore_mutants(&pairs);
        (models.join().expect("exploring models does not panic"), mutants)
    });
    let mut outcome = summary(&pairs, &models, &mutants);
    for gap in gaps {
        println!("{gap}");
        outcome.tally += Tally::FAILED;
        outcome.remark = gap;
    }
    Ok(outcome)
}

fn is_wanted(pair: &Pair, filter: &str) -> bool {
    let mutant = pair.mutant.as_deref().unwrap_or_default();
    pair.file.contains(filter) || pair.test.contains(filter) || mutant.contains(filter)
}

/// Models and mutants that exist and are not listed, or are listed and do not exist.
fn gaps(pairs: &[Pair], programs: &Programs) -> Result<Vec<String>, String> {
    let listed: BTreeSet<Model> = pairs.iter().map(model_of).collect();
    let mut there = BTreeSet::new();
    for (file, program) in programs {
        let output =
            Command::new(program).args(["--list", "--format", "terse"]).stdin(Stdio::null()).output();
        let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let tests = text.lines().filter_map(|line| line.strip_suffix(": test"));
        there.extend(tests.map(|test| (file.clone(), test.to_owned())));
    }
    let named: BTreeSet<String> = pairs.iter().filter_map(|pair| pair.mutant.clone()).collect();
    let mut known = BTreeSet::new();
    for dir in MUTATED {
        known.extend(models::mutants_in(&root().join(dir))?);
    }
    let mut gaps = Vec::new();
    gaps.extend(there.difference(&listed).map(|(file, test)| format!("{file}::{test} is not in models.txt")));
    gaps.extend(listed.difference(&there).map(|(file, test)| format!("{file}::{test} does not exist")));
    gaps.extend(known.difference(&named).map(|mutant| format!("the mutant {mutant} is not in models.txt")));
    gaps.extend(named.difference(&known).map(|mutant| format!("the mutant {mutant} is in no source")));
    let page = std::fs::read_to_string(root().join(PAGE)).map_err(|error| format!("{PAGE}: {error}"))?;
    let missing = pairs.iter().filter(|pair| !is_described(&page, pair));
    gaps.extend(missing.map(|pair| format!("{PAGE} does not say what models.txt says of {}", pair.test)));
    Ok(gaps)
}

/// Whether the page's table has the model with its bound, and the mutant.
fn is_described(page: &str, pair: &Pair) -> bool {
    let row = format!("| `{}` | `{}` | {} |", pair.file, pair.test, pair.bound);
    let row = page.lines().find(|line| line.starts_with(&row));
    let mutant = pair.mutant.as_ref().map(|mutant| format!("`{mutant}`")).unwrap_or_default();
    row.is_some_and(|row| row.contains(&mutant))
}

fn model_of(pair: &Pair) -> Model {
    (pair.file.clone(), pair.test.clone())
}

/// Builds the test programs: all, or one file's for a mutant.
fn build(mutant: Option<&str>, files: Option<&BTreeSet<&str>>) -> Result<Programs, String> {
    let mut command = cargo(&["test", "--package", "devpagemap-loom-tests", "--release", "--no-run"]);
    command.arg("--message-format=json-render-diagnostics");
    command.arg("--target-dir").arg(loom_target_dir());
    command.args(PROFILE.iter().flat_map(|setting| ["--config", setting]));
    match files {
        Some(files) => command.args(files.iter().flat_map(|file| ["--test", file])),
        None => command.args(["--test", "*"]),
    };
    command.env("RUSTFLAGS", rustflags()).stdin(Stdio::null()).stderr(Stdio::inherit());
    if let Some(mutant) = mutant {
        command.arg("--quiet").args(["--config", MUTANT_PROFILE]);
        command.env("RUSTC_WORKSPACE_WRAPPER", wrapper(mutant)?);
    }
    let output = command.output().map_err(|error| format!("cargo could not be started: {error}"))?;
    if !output.status.success() {
        return Err(format!("{} does not build", mutant.unwrap_or("the code under --cfg loom")));
    }
    Ok(programs_in(&String::from_utf8_lossy(&output.stdout)))
}

/// The test programs that cargo's messages name.
fn programs_in(messages: &str) -> Programs {
    let artifacts = messages.lines().filter(|line| line.contains("\"reason\":\"compiler-artifact\""));
    let text_of = |line: &str, key: &str| {
        let (_, rest) = line.split_once(&format!("\"{key}\":\""))?;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let program = |line: &str| {
        let (_, target) = line.split_once("\"target\":")?;
        Some((text_of(target, "name")?, text_of(line, "executable")?.into()))
    };
    artifacts.filter_map(program).collect()
}

/// The script through which cargo calls rustc for a mutant. Rewritten only when it says something else.
fn wrapper(mutant: &str) -> Result<PathBuf, String> {
    let dir = loom_target_dir().join("mutants");
    let path = dir.join(mutant);
    let script = format!("#!/bin/sh\nexec \"$@\" --cap-lints allow --cfg 'loom_mutant=\"{mutant}\"'\n");
    if std::fs::read_to_string(&path).is_ok_and(|there| there == script) {
        return Ok(path);
    }
    let failed = |error| format!("{}: {error}", path.display());
    std::fs::create_dir_all(&dir).map_err(failed)?;
    std::fs::write(&path, script).map_err(failed)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
    Ok(path)
}

/// Explores each model once, as many at a time as there are processors.
fn explore_models(pairs: &[Pair], programs: &Programs) -> BTreeMap<Model, Verdict> {
    let models: Vec<Model> = pairs.iter().map(model_of).collect::<BTreeSet<_>>().into_iter().collect();
    let next = AtomicUsize::new(0);
    let verdicts = Mutex::new(BTreeMap::new());
    let work = || {
        while let Some(model) = models.get(next.fetch_add(1, Ordering::Relaxed)) {
            let verdict = match run_test(programs, model, MODEL_LIMIT) {
                Ok(run) => judge_model(&run),
                Err(reason) => Verdict::bad(reason),
            };
            println!("{}::{}: {} in {}", model.0, model.1, verdict.text, seconds(verdict.took));
            verdicts.lock().expect("nobody panics with it").insert(model.clone(), verdict);
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(work);
        }
    });
    verdicts.into_inner().expect("nobody panicked with it")
}

/// Builds each mutant once and runs its models against it.
fn explore_mutants(pairs: &[Pair]) -> BTreeMap<(String, Model), Verdict> {
    let mut by_mutant: BTreeMap<&str, Vec<&Pair>> = BTreeMap::new();
    for pair in pairs {
        if let Some(mutant) = &pair.mutant {
            by_mutant.entry(mutant).or_default().push(pair);
        }
    }
    let mut verdicts = BTreeMap::new();
    for (mutant, pairs) in by_mutant {
        let files = pairs.iter().map(|pair| pair.file.as_str()).collect();
        let begin = std::time::Instant::now();
        let programs = build(Some(mutant), Some(&files));
        let built = seconds(begin.elapsed());
        for pair in pairs {
            let run = programs.as_ref().map_err(String::clone);
            let run = run.and_then(|programs| run_test(programs, &model_of(pair), MUTANT_LIMIT));
            let verdict = run.map_or_else(Verdict::bad, |run| judge_mutant(&run));
            println!("mutant {mutant} (built in {built}), {}: {}", pair.test, verdict.text);
            verdicts.insert((mutant.to_owned(), model_of(pair)), verdict);
        }
    }
    verdicts
}

fn run_test(programs: &Programs, (file, test): &Model, limit: Duration) -> Result<Captured, String> {
    let program = programs.get(file).ok_or_else(|| format!("there is no test program {file}"))?;
    let mut command = Command::new(program);
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    // A bound in the environment would make an exhaustive model something else.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LOOM_") {
            command.env_remove(name);
        }
    }
    process::run_captured(command.env("RUST_BACKTRACE", "0"), limit)
}

fn judge_model(run: &Captured) -> Verdict {
    let ran_one = run.output.lines().filter_map(Tally::of_line).any(|tally| tally == Tally::PASSED);
    let (is_good, text) = match run.status {
        Some(status) if status.success() && ran_one => (true, "holds".to_owned()),
        Some(status) if status.success() => (false, "did not run".to_owned()),
        Some(status) => {
            println!("{}", run.output);
            (false, format!("FAILED ({status})"))
        }
        None => (false, format!("FAILED: not done after {} s", run.took.as_secs())),
    };
    Verdict { is_good, text, took: run.took }
}

fn judge_mutant(run: &Captured) -> Verdict {
    let (is_good, text) = match (run.status, cause_of_death(&run.output)) {
        (None, _) => (false, format!("NOT CAUGHT within {} s", run.took.as_secs())),
        (Some(status), _) if status.success() => (false, "NOT CAUGHT: the model holds".to_owned()),
        (Some(_), Some(cause)) => (true, format!("caught: {cause}")),
        (Some(status), None) => (false, format!("NOT CAUGHT: {status} without a panic")),
    };
    if !is_good {
        println!("{}", run.output);
    }
    Verdict { is_good, text, took: run.took }
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

fn summary(
    pairs: &[Pair],
    models: &BTreeMap<Model, Verdict>,
    mutants: &BTreeMap<(String, Model), Verdict>,
) -> Outcome {
    let mut rows = vec![["model", "bound", "time", "mutant", "verdict"].map(String::from)];
    for pair in pairs {
        let model = &models[&model_of(pair)];
        let mutant = pair.mutant.as_ref().map(|mutant| &mutants[&(mutant.clone(), model_of(pair))]);
        let verdict = match mutant {
            Some(mutant) => format!("{}; {}", model.text, mutant.text),
            None => model.text.clone(),
        };
        let name = pair.mutant.as_deref().unwrap_or("-").to_owned();
        let test = format!("{}::{}", pair.file, pair.test);
        rows.push([test, pair.bound.clone(), seconds(model.took), name, verdict]);
    }
    println!("\n{}", table(&rows));
    let verdicts = || models.values().chain(mutants.values());
    let bad = verdicts().filter(|verdict| !verdict.is_good).count();
    let tally = Tally { passed: (verdicts().count() - bad) as u64, failed: bad as u64, skipped: 0 };
    let caught = mutants.values().filter(|verdict| verdict.is_good).count();
    let hold = models.values().filter(|verdict| verdict.is_good).count();
    let remark =
        format!("{hold} of {} models hold, {caught} of {} mutants caught", models.len(), mutants.len());
    Outcome { tally, remark }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(code: i32, output: &str) -> Captured {
        use std::os::unix::process::ExitStatusExt;
        let status = Some(std::process::ExitStatus::from_raw(code << 8));
        Captured { status, output: output.into(), took: Duration::ZERO }
    }

    #[test]
    fn a_model_holds_only_if_it_ran() {
        let result = |passed| format!("test result: ok. {passed} passed; 0 failed; 0 ignored; 0 measured");
        assert!(judge_model(&ended(0, &result(1))).is_good);
        assert!(!judge_model(&ended(0, &result(0))).is_good, "a filter that matches nothing ends well too");
        assert!(!judge_model(&ended(101, &result(1))).is_good);
    }

    #[test]
    fn a_mutant_is_caught_only_by_a_panic() {
        let panic = "thread 'x' panicked at src/a.rs:1:2:\nassertion failed: left == right\n";
        assert_eq!(judge_mutant(&ended(101, panic)).text, "caught: assertion failed: left == right");
        assert!(!judge_mutant(&ended(0, "test result: ok. 1 passed;")).is_good);
        assert!(!judge_mutant(&ended(101, "error: no such option")).is_good);
        let deadlock = "thread 'x' panicked at a.rs:1:2:\ndeadlock; threads = [..]\n";
        assert_eq!(judge_mutant(&ended(101, deadlock)).text, "caught: deadlock");
    }

    #[test]
    fn a_page_must_have_the_bound_and_the_mutant() {
        let page = "| file | model |\n| `f` | `t` | 2 threads, exhaustive | `one`, `two` |\n";
        let pair = |bound: &str, mutant: &str| Pair {
            file: "f".into(),
            test: "t".into(),
            mutant: Some(mutant.into()),
            bound: bound.into(),
        };
        assert!(is_described(page, &pair("2 threads, exhaustive", "two")));
        assert!(!is_described(page, &pair("2 threads, exhaustive", "three")));
        assert!(!is_described(page, &pair("3 threads, exhaustive", "two")));
    }

    #[test]
    fn test_programs_are_found_in_the_messages_of_cargo() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"lib"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"waits"},"executable":"/t/waits-1"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(programs_in(messages), Programs::from([("waits".into(), "/t/waits-1".into())]));
    }
}
