//! The steps of `cargo xtask test`.

use crate::cargo::cargo;
use crate::explore::{self, Wanted};
use crate::report::{Outcome, Step, finish};
use crate::tally::Tally;
use crate::tool::{LOOM, SHUTTLE, Tool};
use crate::vm::{self, Preparation};
use crate::{main_job, process, setup};
use std::process::{Command, ExitCode};

/// How much is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// What a change is checked with while it is being made.
    Quick,
    /// Everything.
    Full,
}

/// How long stress tests run in a full run.
const STRESS_SECONDS: &str = "30";
/// The examples, which must run and not only build.
const EXAMPLES: [&str; 2] = ["over_commit", "driver"];

/// Checks the project; what fails does not keep the rest from being checked.
pub fn run(extent: Extent) -> ExitCode {
    setup::need_a_c_compiler();
    let mut steps = Vec::new();
    let mut kernels = None;
    if extent == Extent::Full {
        steps.push(Step::timed("packages", vm::packages));
        kernels = Some(Preparation::begin());
    }
    steps.extend([
        Step::timed("rustfmt", rustfmt),
        Step::timed("clippy", clippy),
        Step::timed("recordings", recordings),
        Step::timed("tests", || tests(extent)),
    ]);
    if extent == Extent::Full {
        steps.push(Step::timed("rustdoc", rustdoc));
        steps.push(Step::timed("examples", examples));
        steps.push(Step::timed("main job", main_job::run));
        steps.push(Step::timed("clippy for loom", || clippy_for(&LOOM)));
        steps.push(Step::timed("clippy for shuttle", || clippy_for(&SHUTTLE)));
        steps.push(Step::timed("loom", || explore::run(&LOOM, &Wanted::Matching(""))));
        steps.push(Step::timed("shuttle", || explore::run(&SHUTTLE, &Wanted::Matching(""))));
    }
    // Last, so that kernels that had to be built are there by now.
    steps.extend(kernels.into_iter().flat_map(Preparation::steps));
    finish(&steps)
}

fn outcome_of(command: &mut Command) -> Outcome {
    match process::run(command) {
        Ok(status) if status.success() => Outcome::passed(""),
        Ok(status) => Outcome::failed(status.to_string()),
        Err(reason) => Outcome::failed(reason),
    }
}

fn rustfmt() -> Outcome {
    match setup::has_component("fmt", "rustfmt") {
        Ok(()) => outcome_of(&mut cargo(&["fmt", "--all", "--check"])),
        Err(reason) => Outcome::skipped(reason),
    }
}

fn clippy() -> Outcome {
    match setup::has_component("clippy", "clippy") {
        Ok(()) => outcome_of(
            cargo(&["clippy", "--workspace", "--all-targets"])
                .args(setup::features())
                .args(["--", "-D", "warnings"]),
        ),
        Err(reason) => Outcome::skipped(reason),
    }
}

fn clippy_for(tool: &Tool) -> Outcome {
    if let Err(reason) = setup::has_component("clippy", "clippy") {
        return Outcome::skipped(reason);
    }
    // The models, and with them every crate of the workspace that they explore.
    let mut command =
        cargo(&["clippy", "--package", "devpagemap-loom-tests", "--all-targets", "--target-dir"]);
    command.arg(tool.target_dir());
    command.args(["--", "-D", "warnings"]).env("RUSTFLAGS", tool.rustflags());
    outcome_of(&mut command)
}

fn rustdoc() -> Outcome {
    // Libraries only: the command's page would overwrite that of the library of the same name.
    let mut command = cargo(&["doc", "--workspace", "--no-deps", "--lib"]);
    command.args(setup::features());
    let given = std::env::var("RUSTDOCFLAGS").unwrap_or_default();
    outcome_of(command.env("RUSTDOCFLAGS", format!("{given} -D warnings").trim_start()))
}

/// Says whether the tests over recordings will run; they look in the same place.
fn recordings() -> Outcome {
    match setup::recordings() {
        Ok(dir) => {
            println!("recordings found in {}", dir.display());
            Outcome { tally: Tally::default(), remark: format!("found in {}", dir.display()) }
        }
        Err(reason) => {
            setup::say_loudly(&format!("{reason}: the tests over recordings are skipped"));
            Outcome::skipped(format!("{reason}: tests over recordings do not run"))
        }
    }
}

fn tests(extent: Extent) -> Outcome {
    let mut command = cargo(&["test", "--workspace", "--no-fail-fast"]);
    command.args(setup::features());
    if extent == Extent::Full {
        command.env("DEVPAGEMAP_LONG", "1").env("DEVPAGEMAP_STRESS_SECONDS", STRESS_SECONDS);
    } else {
        command.env_remove("DEVPAGEMAP_LONG").env_remove("DEVPAGEMAP_STRESS_SECONDS");
    }
    let mut tally = Tally::default();
    let status = process::run_streamed(&mut command, |line| {
        if let Some(more) = Tally::of_line(line) {
            tally += more;
        }
    });
    let remark = format!("{} passed, {} failed, {} ignored", tally.passed, tally.failed, tally.skipped);
    let broken = match status {
        Ok(status) if status.success() => None,
        Ok(status) if tally.failed == 0 => Some(format!("{remark}; cargo test ended with {status}")),
        Ok(_) => None,
        Err(reason) => Some(reason),
    };
    match broken {
        None => Outcome { tally, remark },
        // It did not build, or a test program died before it could count.
        Some(remark) => {
            tally += Tally::FAILED;
            Outcome { tally, remark }
        }
    }
}

fn examples() -> Outcome {
    for example in EXAMPLES {
        let outcome = outcome_of(&mut cargo(&["run", "--package", "devpagemap", "--example", example]));
        if outcome.tally != Tally::PASSED {
            return Outcome::failed(format!("{example}: {}", outcome.remark));
        }
    }
    Outcome::passed(EXAMPLES.join(", "))
}
