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
//! | `loom.rs`, `models.rs` | loom models and the mutants that they must catch; their list |

mod bench;
mod cargo;
mod loom;
mod main_job;
mod models;
mod process;
mod report;
mod setup;
mod steps;
mod tally;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask <command>

  test [--quick]   every check of the project; --quick: format, lints and the short tests only
  loom [FILTER]    the loom models and their mutants; FILTER is a part of a model's or a mutant's name
  bench [FILTER]   the benchmarks, and a table of all of them; FILTER is a part of an operation's name; further
                   arguments go to the programs: --long, --rounds N, --blocks
  ci               what .ci/run runs: test, in full";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["test" | "ci"] => steps::run(steps::Extent::Full),
        ["test", "--quick"] => steps::run(steps::Extent::Quick),
        ["loom"] => loom_alone(""),
        ["loom", filter] if !filter.starts_with('-') => loom_alone(filter),
        ["bench", ref arguments @ ..] => bench::run(arguments),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn loom_alone(filter: &str) -> ExitCode {
    setup::need_a_c_compiler();
    let step = report::Step::timed("loom", || loom::run(filter));
    report::finish(&[step])
}
