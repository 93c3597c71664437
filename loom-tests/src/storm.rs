//! Runs a scenario under shuttle, in a new order each time, and says how to have a failure again.
//!
//! A storm is a number of *rounds*. Each has a seed of its own, from which everything in it follows: which thread goes on at
//! each step, and every number that the scenario draws with [`shuttle::rand`]. Half of the rounds are one execution in which
//! any thread may go on at any step. The others are a few executions by PCT (Burckhardt et al., 2010): threads have random
//! priorities, which change at a few random steps, so that one thread can be starved for as long as it takes.
//!
//! ```text
//! DEVPAGEMAP_SHUTTLE_SEED=pct-1f0c93a2d5e1b774 RUSTFLAGS='--cfg shuttle' cargo test -p devpagemap-loom-tests --test exec_storm ...
//! ```
//!
//! With that variable a storm is that round alone. It is printed when a scenario panics or deadlocks, with the mutant if there was one.

use std::hash::{BuildHasher, RandomState};
use std::mem::ManuallyDrop;
use std::sync::{Mutex, Once};

use devpagemap_fence::sync::mutants;
use shuttle::scheduler::{PctScheduler, RandomScheduler, Schedule, Scheduler, Task, TaskId};
use shuttle::{Config, FailurePersistence, Runner};

/// The variable that names the one round to be run.
const SEED: &str = "DEVPAGEMAP_SHUTTLE_SEED";
/// Executions in a round of PCT. The first only counts the steps among which the priorities will change.
const PCT_EXECUTIONS: usize = 8;
/// How often priorities change in an execution of PCT, plus one.
const PCT_DEPTH: usize = 4;
/// What a scenario's threads need; shuttle's default is too little for a debug build.
const STACK_BYTES: usize = 256 << 10;

/// How threads are chosen in a round, and the number from which all choices follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    Random(u64),
    Pct(u64),
}

impl Round {
    fn parse(text: &str) -> Option<Round> {
        let (kind, seed) = text.split_once('-')?;
        let seed = u64::from_str_radix(seed, 16).ok()?;
        match kind {
            "random" => Some(Round::Random(seed)),
            "pct" => Some(Round::Pct(seed)),
            _ => None,
        }
    }
}

impl std::fmt::Display for Round {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Round::Random(seed) => write!(f, "random-{seed:016x}"),
            Round::Pct(seed) => write!(f, "pct-{seed:016x}"),
        }
    }
}

/// The round that is being run, for whoever reports a panic.
static CURRENT: Mutex<Option<(String, Round)>> = Mutex::new(None);

/// Runs `scenario` in `rounds` rounds of each kind, or in the one that the environment names.
///
/// # Panics
/// As the scenario does, after the round's name was printed.
pub fn storm(test: &str, rounds: u64, scenario: impl Fn() + Send + Sync + 'static) {
    report_panics();
    let scenario = std::sync::Arc::new(scenario);
    let mut executions = 0;
    for round in rounds_to_run(test, rounds) {
        *CURRENT.lock().expect("nobody panics with it") = Some((test.to_owned(), round));
        executions += run(round, &scenario);
    }
    *CURRENT.lock().expect("nobody panics with it") = None;
    println!("explored {executions} executions");
}

fn rounds_to_run(test: &str, rounds: u64) -> Vec<Round> {
    if let Ok(given) = std::env::var(SEED) {
        let round = Round::parse(&given);
        println!("{test}: the round {given}");
        return vec![
            round.unwrap_or_else(|| panic!("{SEED} is not `random-` or `pct-` and a number in hex: {given}")),
        ];
    }
    let first = RandomState::new().hash_one(test);
    println!("{test}: rounds from {first:016x} on");
    let seeds = (0..rounds).map(|index| first.wrapping_add(index));
    seeds.flat_map(|seed| [Round::Random(seed), Round::Pct(seed)]).collect()
}

fn run<F: Fn() + Send + Sync + 'static>(round: Round, scenario: &std::sync::Arc<F>) -> usize {
    let mut config = Config::new();
    config.stack_size = STACK_BYTES;
    config.failure_persistence = FailurePersistence::None;
    config.silence_warnings = true;
    config.ungraceful_shutdown_config.immediately_return_on_panic = true;
    let scenario = scenario.clone();
    let scenario = move || scenario();
    match round {
        Round::Random(seed) => {
            let scheduler = RandomScheduler::new_from_seed(seed, 1);
            Runner::new(Quiet(ManuallyDrop::new(scheduler)), config).run(scenario)
        }
        Round::Pct(seed) => {
            let scheduler = PctScheduler::new_from_seed(seed, PCT_DEPTH, PCT_EXECUTIONS);
            Runner::new(scheduler, config).run(scenario)
        }
    }
}

/// Prints how to have the round again that panics, before the panic itself is printed.
fn report_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if let Ok(mut current) = CURRENT.lock()
                && let Some((test, round)) = current.take()
            {
                let program = std::env::current_exe().unwrap_or_default();
                let program = program.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let file = program.rsplit_once('-').map_or(program.as_str(), |(file, _)| file);
                eprintln!("failing round: {round}; to have it again:");
                let mutant = mutants::chosen().map_or_else(String::new, |name| format!("{}={name} ", mutants::VARIABLE));
                eprintln!(
                    "{mutant}{SEED}={round} RUSTFLAGS='--cfg shuttle' cargo test --package devpagemap-loom-tests --test {file} {test}"
                );
            }
            others(panic);
        }));
    });
}

/// Random scheduling without a last word: shuttle's own advice on how to repeat a failure is about another variable.
#[derive(Debug)]
struct Quiet(ManuallyDrop<RandomScheduler>);

impl Scheduler for Quiet {
    fn new_execution(&mut self) -> Option<Schedule> {
        self.0.new_execution()
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, yields: bool) -> Option<TaskId> {
        self.0.next_task(runnable, current, yields)
    }

    fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }
}
