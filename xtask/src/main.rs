//! `cargo xtask <command>`: how this project is checked.
//!
//! | file | what it holds |
//! |---|---|
//! | `steps.rs` | the steps of `cargo xtask test`, in order |
//! | `setup.rs` | what the machine must have, and where recordings are |
//! | `cargo.rs` | calling cargo, and where its results lie |
//! | `process.rs` | children: shown while they run, or captured with a time limit |
//! | `tally.rs` | counting `test result:` lines |
//! | `report.rs` | tables and the last line |
//! | `main_job.rs` | the command's main job from its built binary, and what its JSON must say |
//! | `bench.rs` | the benchmarks, and one table of them all |
//! | `explore.rs` | models, and the mutants that they must catch, under loom and under shuttle |
//! | `tool.rs` | those two, and how the code is built for them |
//! | `models.rs`, `model_table.rs` | the lists of models and mutants, and the tables in the documentation |
//! | `verdict.rs` | what the end of an exploration says |
//! | `vm/` | the kernel tests, in guests that boot real kernels |

mod bench;
mod cargo;
mod explore;
mod main_job;
mod model_table;
mod models;
mod process;
mod report;
mod setup;
mod steps;
mod tally;
mod tool;
mod verdict;
mod vm;

use explore::Wanted;
use std::process::ExitCode;
use tool::{LOOM, SHUTTLE, Tool};

const USAGE: &str = "\
usage: cargo xtask <command>

  test [--quick]   every check of the project; --quick: format, lints and the short tests only
  loom [FILTER]    the loom models and their mutants; FILTER is a part of a model's or a mutant's name
                   --write-table instead of FILTER: all, and their figures into docs/lock-order.md
  shuttle [FILTER] the storms of many threads and their mutants
  bench [FILTER]   the benchmarks, and a table of all of them; FILTER is a part of an operation's name; further
                   arguments go to the programs: --long, --rounds N, --blocks
  vm [FILTER]      the kernel tests in a guest with Debian's kernel; FILTER is a part of a test's name
                   --own-kernel: with our own build of its source, which takes minutes the first time
                   --kvm: on the processor itself, where that works
                   --scale 1/N: how large the main replay on a PCI device is; 1/1 is its full size
  ci               what .ci/run runs: test, in full";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["test" | "ci"] => steps::run(steps::Extent::Full),
        ["test", "--quick"] => steps::run(steps::Extent::Quick),
        ["loom", ref rest @ ..] if rest.len() <= 1 => explore_alone("loom", &LOOM, rest.first()),
        ["shuttle", ref rest @ ..] if rest.len() <= 1 => explore_alone("shuttle", &SHUTTLE, rest.first()),
        ["vm", ref arguments @ ..] => in_guests(arguments),
        ["bench", ref arguments @ ..] => bench::run(arguments),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => misused(),
    }
}

fn misused() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn explore_alone(name: &'static str, tool: &Tool, argument: Option<&&str>) -> ExitCode {
    let wanted = match argument.copied() {
        Some("--write-table") => Wanted::AllForTheTable,
        Some(option) if option.starts_with('-') => return misused(),
        filter => Wanted::Matching(filter.unwrap_or_default()),
    };
    setup::need_a_c_compiler();
    let step = report::Step::timed(name, || explore::run(tool, &wanted));
    report::finish(&[step])
}

fn in_guests(arguments: &[&str]) -> ExitCode {
    let Some(options) = vm::Options::parse(arguments) else { return misused() };
    setup::need_a_c_compiler();
    report::finish(&[report::Step::timed("kernel tests", || vm::run(&options))])
}
