//! Explores the models of a tool, and the mutants that show that they can fail.
//!
//! A model must hold on the code as it is, and must fail on each of its mutants, in a child process, by a panic or a
//! deadlock. All mutants are in the one build of the models; the child's environment says with which it runs. A mutant
//! whose model does not run proves nothing and counts as a failure. Where failures have seeds, the one that was printed
//! must lead to the same failure again.

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
/// The variable that names the mutant.
const MUTANT: &str = "DEVPAGEMAP_MUTANT";
/// The variable that names a storm's one round.
const SEED: &str = "DEVPAGEMAP_SHUTTLE_SEED";

/// A model: its file and its name.
type Model = (String, String);

/// A model and, unless it is to hold on the code as it is, the mutant that it must catch.
type Exploration = (Model, Option<String>);

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
    let programs = tool.build(&tool.files()?)?;
    let filter = match wanted {
        Wanted::Matching(filter) => filter,
        Wanted::AllForTheTable => "",
    };
    let pairs: Vec<Pair> = all.iter().filter(|pair| is_wanted(pair, filter)).cloned().collect();
    if pairs.is_empty() {
        return Err(format!("no {} and no mutant has `{filter}` in its name", tool.model));
    }
    let verdicts = explore_all(tool, &pairs, &programs);
    let mut outcome = summary(tool, &pairs, &verdicts);
    if matches!(wanted, Wanted::AllForTheTable) {
        let models = verdicts.iter().filter(|((_, mutant), _)| mutant.is_none());
        let executions = models.map(|((model, _), verdict)| (model.clone(), verdict.states())).collect();
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

/// Explores each model and each mutant once, as many at a time as there are processors. Mutants, which are soon caught,
/// come last, so that a long model does not begin when everything else is done.
fn explore_all(tool: &Tool, pairs: &[Pair], programs: &Programs) -> BTreeMap<Exploration, Verdict> {
    let models = pairs.iter().map(|pair| (model_of(pair), None)).collect::<BTreeSet<Exploration>>();
    let mutants = pairs.iter().filter_map(|pair| Some((model_of(pair), Some(pair.mutant.clone()?))));
    let all: Vec<Exploration> = models.into_iter().chain(mutants).collect();
    let next = AtomicUsize::new(0);
    let verdicts = Mutex::new(BTreeMap::new());
    let work = || {
        while let Some(exploration) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            let verdict = explore_one(tool, programs, exploration);
            verdicts.lock().expect("nobody panics with it").insert(exploration.clone(), verdict);
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

fn explore_one(tool: &Tool, programs: &Programs, (model, mutant): &Exploration) -> Verdict {
    let verdict = match mutant {
        None => run_test(programs, model, &[], MODEL_LIMIT).map(|run| verdict::of_model(&run)),
        Some(mutant) => explore_mutant(tool, programs, model, mutant),
    };
    let verdict = verdict.unwrap_or_else(Verdict::bad);
    let ((file, test), took) = (model, seconds(verdict.took));
    match mutant {
        None => println!("{file}::{test}: {} in {took}", verdict.text),
        Some(mutant) => println!("mutant {mutant}, {file}::{test}: {} in {took}", verdict.text),
    }
    verdict
}

fn explore_mutant(tool: &Tool, programs: &Programs, model: &Model, mutant: &str) -> Result<Verdict, String> {
    let run = run_test(programs, model, &[(MUTANT, mutant)], MUTANT_LIMIT)?;
    let first = verdict::of_mutant(&run);
    if !tool.has_seeds || !first.is_good {
        return Ok(first);
    }
    let Some(round) = verdict::failing_round(&run.output) else {
        return Err(format!("{}, and printed no seed", first.text));
    };
    let replay = run_test(programs, model, &[(MUTANT, mutant), (SEED, round)], MUTANT_LIMIT)?;
    Ok(verdict::of_replay(first, &replay))
}

fn run_test(
    programs: &Programs,
    (file, test): &Model,
    environment: &[(&str, &str)],
    limit: Duration,
) -> Result<Captured, String> {
    let program = programs.get(file).ok_or_else(|| format!("there is no test program {file}"))?;
    let mut command = Command::new(program);
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    // A bound, a mutant or a seed in our own environment would make an exploration something else.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("LOOM_") || text.starts_with("SHUTTLE_") || text == MUTANT || text == SEED {
            command.env_remove(name);
        }
    }
    command.env("RUST_BACKTRACE", "0").envs(environment.iter().copied());
    process::run_captured(&mut command, limit)
}

fn summary(tool: &Tool, pairs: &[Pair], verdicts: &BTreeMap<Exploration, Verdict>) -> Outcome {
    let mut rows = vec![[tool.model, "bound", "executions", "time", "mutant", "verdict"].map(String::from)];
    for pair in pairs {
        let model = &verdicts[&(model_of(pair), None)];
        let verdict = match &pair.mutant {
            Some(mutant) => {
                format!("{}; {}", model.text, verdicts[&(model_of(pair), Some(mutant.clone()))].text)
            }
            None => model.text.clone(),
        };
        let name = pair.mutant.as_deref().unwrap_or("-").to_owned();
        let test = format!("{}::{}", pair.file, pair.test);
        rows.push([test, pair.bound.clone(), model.states(), seconds(model.took), name, verdict]);
    }
    println!("\n{}", table(&rows));
    let good = |is_mutant: bool| {
        let kind = verdicts.iter().filter(move |((_, mutant), _)| mutant.is_some() == is_mutant);
        let (all, good) = kind.fold((0, 0), |(all, good), (_, v)| (all + 1, good + u64::from(v.is_good)));
        (good, all)
    };
    let ((hold, models), (caught, mutants)) = (good(false), good(true));
    let bad = models + mutants - hold - caught;
    let executions: u64 = verdicts.values().filter_map(|verdict| verdict.executions).sum();
    let remark = format!(
        "{hold} of {models} {}s hold ({executions} executions), {caught} of {mutants} mutants caught",
        tool.model
    );
    Outcome { tally: Tally { passed: hold + caught, failed: bad, skipped: 0 }, remark }
}
