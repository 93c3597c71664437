//! Explores the models of a tool, and the mutants that show that they can fail.
//!
//! A model must hold on the code as it is, and must fail on each of its mutants, in a child process, by a panic or a
//! deadlock. A mutant that does not compile, or whose model does not run, proves nothing and counts as a failure. Where
//! failures have seeds, the one that was printed must lead to the same failure again.

use crate::cargo::root;
use crate::model_table::{self, PAGE};
use crate::models::{self, Pair};
use crate::process::{self, Captured};
use crate::report::{Outcome, seconds, table};
use crate::tally::Tally;
use crate::tool::{LOOM, Programs, SHUTTLE, Tool};
use crate::verdict::{self, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How long one model may explore. The longest takes seconds.
const MODEL_LIMIT: Duration = Duration::from_secs(600);
/// How long one mutant may explore before it counts as not caught.
const MUTANT_LIMIT: Duration = Duration::from_secs(300);
/// Where mutants live.
const MUTATED: [&str; 3] = ["fence/src", "migrate/src", "src"];
/// The variable that names a storm's one round.
const SEED: &str = "DEVPAGEMAP_SHUTTLE_SEED";

/// A model: its file and its name.
type Model = (String, String);

/// What is asked for.
pub enum Wanted<'a> {
    /// The models and mutants whose names contain this.
    Matching(&'a str),
    /// All, and their executions written into the documentation.
    AllForTheTable,
}

/// Explores models and mutants.
pub fn run(tool: &Tool, wanted: &Wanted<'_>) -> Outcome {
    match explore(tool, wanted) {
        Ok(outcome) => outcome,
        Err(reason) => {
            println!("{reason}");
            Outcome::failed(reason.lines().next().unwrap_or_default())
        }
    }
}

fn explore(tool: &Tool, wanted: &Wanted<'_>) -> Result<Outcome, String> {
    let all = listed(tool)?;
    let programs = tool.build(None, &tool.files()?)?;
    let filter = match wanted {
        Wanted::Matching(filter) => filter,
        Wanted::AllForTheTable => "",
    };
    let pairs: Vec<Pair> = all.iter().filter(|pair| is_wanted(pair, filter)).cloned().collect();
    if pairs.is_empty() {
        return Err(format!("no {} and no mutant has `{filter}` in its name", tool.model));
    }
    // A long model keeps one processor busy; mutants are built meanwhile.
    let (models, mutants) = std::thread::scope(|scope| {
        let models = scope.spawn(|| explore_models(&pairs, &programs));
        let mutants = explore_mutants(tool, &pairs);
        (models.join().expect("exploring models does not panic"), mutants)
    });
    let mut outcome = summary(tool, &pairs, &models, &mutants);
    if matches!(wanted, Wanted::AllForTheTable) {
        let executions = models.iter().map(|(model, verdict)| (model.clone(), verdict.states())).collect();
        write_table(tool, &all, &executions)?;
    }
    for gap in gaps(tool, &all, &programs)? {
        println!("{gap}");
        outcome.tally += Tally::FAILED;
        outcome.remark = gap;
    }
    Ok(outcome)
}

fn listed(tool: &Tool) -> Result<Vec<Pair>, String> {
    models::parse(tool.list, &read(tool.list)?)
}

fn read(path: &str) -> Result<String, String> {
    std::fs::read_to_string(root().join(path)).map_err(|error| format!("{path}: {error}"))
}

fn write_table(tool: &Tool, pairs: &[Pair], executions: &BTreeMap<Model, String>) -> Result<(), String> {
    let page = model_table::rewritten(&read(PAGE)?, tool, pairs, executions)?;
    std::fs::write(root().join(PAGE), page).map_err(|error| format!("{PAGE}: {error}"))?;
    println!("the table of {}s in {PAGE} is written", tool.model);
    Ok(())
}

fn is_wanted(pair: &Pair, filter: &str) -> bool {
    let mutant = pair.mutant.as_deref().unwrap_or_default();
    pair.file.contains(filter) || pair.test.contains(filter) || mutant.contains(filter)
}

/// Models and mutants that exist and are not listed, or are listed and do not exist.
fn gaps(tool: &Tool, pairs: &[Pair], programs: &Programs) -> Result<Vec<String>, String> {
    let list = tool.list;
    let of_tool: BTreeSet<Model> = pairs.iter().map(model_of).collect();
    let mut there = BTreeSet::new();
    for (file, program) in programs {
        let output =
            Command::new(program).args(["--list", "--format", "terse"]).stdin(Stdio::null()).output();
        let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let tests = text.lines().filter_map(|line| line.strip_suffix(": test"));
        there.extend(tests.map(|test| (file.clone(), test.to_owned())));
    }
    let mutants_of =
        |pairs: &[Pair]| pairs.iter().filter_map(|pair| pair.mutant.clone()).collect::<BTreeSet<_>>();
    let named = mutants_of(pairs);
    let named_somewhere = &mutants_of(&listed(&LOOM)?) | &mutants_of(&listed(&SHUTTLE)?);
    let mut known = BTreeSet::new();
    for dir in MUTATED {
        known.extend(models::mutants_in(&root().join(dir))?);
    }
    let mut gaps = Vec::new();
    gaps.extend(there.difference(&of_tool).map(|(file, test)| format!("{file}::{test} is not in {list}")));
    gaps.extend(of_tool.difference(&there).map(|(file, test)| format!("{file}::{test} does not exist")));
    gaps.extend(
        known.difference(&named_somewhere).map(|mutant| format!("the mutant {mutant} is in no list")),
    );
    gaps.extend(named.difference(&known).map(|mutant| format!("the mutant {mutant} is in no source")));
    let page = read(PAGE)?;
    let missing = pairs.iter().filter(|pair| !model_table::describes(&page, pair));
    gaps.extend(missing.map(|pair| {
        let refresh = format!("cargo xtask {} --write-table", tool.name);
        format!("{PAGE} does not say what {list} says of {}; `{refresh}` writes it", pair.test)
    }));
    Ok(gaps)
}

fn model_of(pair: &Pair) -> Model {
    (pair.file.clone(), pair.test.clone())
}

/// Explores each model once, as many at a time as there are processors.
fn explore_models(pairs: &[Pair], programs: &Programs) -> BTreeMap<Model, Verdict> {
    let models: Vec<Model> = pairs.iter().map(model_of).collect::<BTreeSet<_>>().into_iter().collect();
    let next = AtomicUsize::new(0);
    let verdicts = Mutex::new(BTreeMap::new());
    let work = || {
        while let Some(model) = models.get(next.fetch_add(1, Ordering::Relaxed)) {
            let run = run_test(programs, model, None, MODEL_LIMIT);
            let verdict = run.map_or_else(Verdict::bad, |run| verdict::of_model(&run));
            let (file, test) = model;
            println!("{file}::{test}: {} in {}", verdict.text, seconds(verdict.took));
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
fn explore_mutants(tool: &Tool, pairs: &[Pair]) -> BTreeMap<(String, Model), Verdict> {
    let mut by_mutant: BTreeMap<&str, Vec<&Pair>> = BTreeMap::new();
    for pair in pairs {
        if let Some(mutant) = &pair.mutant {
            by_mutant.entry(mutant).or_default().push(pair);
        }
    }
    let mut verdicts = BTreeMap::new();
    for (mutant, pairs) in by_mutant {
        let files = pairs.iter().map(|pair| pair.file.clone()).collect();
        let begin = std::time::Instant::now();
        let programs = tool.build(Some(mutant), &files);
        let built = seconds(begin.elapsed());
        for pair in pairs {
            let verdict = match &programs {
                Ok(programs) => explore_mutant(tool, programs, &model_of(pair)),
                Err(reason) => Verdict::bad(reason.clone()),
            };
            println!("mutant {mutant} (built in {built}), {}: {}", pair.test, verdict.text);
            verdicts.insert((mutant.to_owned(), model_of(pair)), verdict);
        }
    }
    verdicts
}

fn explore_mutant(tool: &Tool, programs: &Programs, model: &Model) -> Verdict {
    let run = match run_test(programs, model, None, MUTANT_LIMIT) {
        Ok(run) => run,
        Err(reason) => return Verdict::bad(reason),
    };
    let first = verdict::of_mutant(&run);
    if !tool.has_seeds || !first.is_good {
        return first;
    }
    let Some(round) = verdict::failing_round(&run.output) else {
        return Verdict::bad(format!("{}, and printed no seed", first.text));
    };
    let replay = run_test(programs, model, Some(round), MUTANT_LIMIT);
    replay.map_or_else(Verdict::bad, |replay| verdict::of_replay(first, &replay))
}

fn run_test(
    programs: &Programs,
    (file, test): &Model,
    round: Option<&str>,
    limit: Duration,
) -> Result<Captured, String> {
    let program = programs.get(file).ok_or_else(|| format!("there is no test program {file}"))?;
    let mut command = Command::new(program);
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    // A bound or a seed in the environment would make an exploration something else.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("LOOM_") || text.starts_with("SHUTTLE_") || text == SEED {
            command.env_remove(name);
        }
    }
    if let Some(round) = round {
        command.env(SEED, round);
    }
    process::run_captured(command.env("RUST_BACKTRACE", "0"), limit)
}

fn summary(
    tool: &Tool,
    pairs: &[Pair],
    models: &BTreeMap<Model, Verdict>,
    mutants: &BTreeMap<(String, Model), Verdict>,
) -> Outcome {
    let mut rows = vec![[tool.model, "bound", "executions", "time", "mutant", "verdict"].map(String::from)];
    for pair in pairs {
        let model = &models[&model_of(pair)];
        let mutant = pair.mutant.as_ref().map(|mutant| &mutants[&(mutant.clone(), model_of(pair))]);
        let verdict = match mutant {
            Some(mutant) => format!("{}; {}", model.text, mutant.text),
            None => model.text.clone(),
        };
        let name = pair.mutant.as_deref().unwrap_or("-").to_owned();
        let test = format!("{}::{}", pair.file, pair.test);
        rows.push([test, pair.bound.clone(), model.states(), seconds(model.took), name, verdict]);
    }
    println!("\n{}", table(&rows));
    let verdicts = || models.values().chain(mutants.values());
    let bad = verdicts().filter(|verdict| !verdict.is_good).count();
    let tally = Tally { passed: (verdicts().count() - bad) as u64, failed: bad as u64, skipped: 0 };
    let caught = mutants.values().filter(|verdict| verdict.is_good).count();
    let hold = models.values().filter(|verdict| verdict.is_good).count();
    let executions: u64 = models.values().filter_map(|verdict| verdict.executions).sum();
    let remark = format!(
        "{hold} of {} {}s hold ({executions} executions), {caught} of {} mutants caught",
        models.len(),
        tool.model,
        mutants.len()
    );
    Outcome { tally, remark }
}
