//! The command from its arguments to its exit status.

use crate::doctor::{self, Diagnosis};
use crate::error::{Error, Result};
use crate::export;
use crate::import;
use crate::options::{Command, DoctorOptions, ExplainOptions, Options, ReplayOptions, TopoOptions};
use crate::replay::{Outcome, Replay};
use crate::report::json::Report;
use crate::report::output::{Output, print};
use crate::report::paint::Paint;
use crate::report::progress::Progress;
use crate::report::summary::Summary;
use crate::report::{html, perfetto, units};
use crate::topology::{self, Survey};
use crate::trace::{self, Trace};
use clap::Parser;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Runs the command with these arguments, the first being its own name.
pub fn main_with(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let options = match Options::try_parse_from(arguments) {
        Ok(options) => options,
        Err(error) => {
            // Nobody may be reading; the exit status says it all the same.
            let _nobody_reads = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let done = match options.command {
        Some(Command::Replay(replay)) => run_replay(&replay),
        Some(Command::Topo(options)) => run_topo(&options),
        Some(Command::Explain(options)) => run_explain(&options),
        Some(Command::Doctor(options)) => run_doctor(&options),
        Some(Command::Export(options)) => export::run(&options, &mut say),
        Some(Command::Import(options)) => import::run(&options, &mut say),
        None => run_replay(&ReplayOptions::default_workload()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            // As above.
            let _nobody_reads = writeln!(std::io::stderr(), "devpagemap: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}

/// The files that results go to.
struct Outputs {
    json: Option<Output>,
    html: Option<Output>,
    perfetto: Option<Output>,
}

impl Outputs {
    fn open(options: &ReplayOptions) -> Result<Outputs> {
        let named: Vec<_> = [&options.json, &options.html, &options.perfetto].into_iter().flatten().collect();
        for (index, path) in named.iter().enumerate() {
            if named[..index].contains(path) {
                return Err(Error::usage(
                    path.display().to_string(),
                    "two results cannot go to the same file",
                ));
            }
        }
        for (option, path) in [("--html", &options.html), ("--perfetto", &options.perfetto)] {
            if path.as_ref().is_some_and(|path| path.as_os_str() == "-") {
                return Err(Error::usage(option, "only --json can go to standard output"));
            }
        }
        let open = |path: &Option<std::path::PathBuf>| path.as_deref().map(Output::open).transpose();
        Ok(Outputs {
            json: open(&options.json)?,
            html: open(&options.html)?,
            perfetto: open(&options.perfetto)?,
        })
    }
}

/// Replays as `options` say; whether the workload was done.
fn run_replay(options: &ReplayOptions) -> Result<bool> {
    options.check()?;
    let trace = trace::load(&options.source, options.format, options.seed)?;
    let trace = trace.scaled(options.scale).map_err(|reason| Error::input(&options.source, None, reason))?;
    let outputs = Outputs::open(options)?;
    let replay = Replay::new(options.config(&trace))?;
    stop_on_interrupt(replay.stop_flag());
    let outcome = replay_with_progress(replay, &trace);
    let json_on_stdout = matches!(outputs.json, Some(Output::Stdout));
    if let Some(output) = outputs.json {
        output.write(&Report::new(&trace, &outcome).to_text())?;
    }
    if let Some(output) = outputs.html {
        output.write(&html::render(&trace, &outcome))?;
    }
    if let Some(output) = outputs.perfetto {
        output.write(&perfetto::render(&trace, &outcome))?;
    }
    print_summary(&trace, &outcome, json_on_stdout)?;
    Ok(outcome.succeeded())
}

/// Shows who can reach whose memory; it is always done.
fn run_topo(options: &TopoOptions) -> Result<bool> {
    let survey = Survey::of(&options.source)?;
    let output = options.json.as_deref().map(Output::open).transpose()?;
    let json_on_stdout = matches!(output, Some(Output::Stdout));
    if let Some(output) = output {
        output.write(&topology::json::of_all(&survey))?;
    }
    print_result(json_on_stdout, |paint| topology::matrix::render(&survey, paint))?;
    Ok(true)
}

/// Says why one device reaches another's memory as it does; it is always done.
fn run_explain(options: &ExplainOptions) -> Result<bool> {
    let survey = Survey::of(&options.source)?;
    let question = survey.question(&options.exporter, &options.importer)?;
    let output = options.json.as_deref().map(Output::open).transpose()?;
    let json_on_stdout = matches!(output, Some(Output::Stdout));
    if let Some(output) = output {
        output.write(&topology::json::of_one(&survey, &question))?;
    }
    print_result(json_on_stdout, |paint| topology::explain::render(&survey, &question, paint))?;
    Ok(true)
}

/// Shows what this machine offers; it is always done.
fn run_doctor(options: &DoctorOptions) -> Result<bool> {
    let output = options.json.as_deref().map(Output::open).transpose()?;
    let found = Diagnosis::of_this_machine();
    let json_on_stdout = matches!(output, Some(Output::Stdout));
    if let Some(output) = output {
        output.write(&doctor::json::of(&found))?;
    }
    print_result(json_on_stdout, |paint| doctor::table::render(&found, paint))?;
    Ok(true)
}

/// A line for people, at once: others wait for it.
fn say(line: &str) {
    // Nobody may be reading; the exit status says it all the same.
    let _nobody_reads = print(&mut std::io::stdout().lock(), &format!("{line}\n"));
}

fn replay_with_progress(replay: Replay, trace: &Trace) -> Outcome {
    let steps = trace.steps.len() as u64;
    let mut progress = Progress::on_terminal(steps);
    let outcome = replay.run(trace, |replay, moment| {
        progress.update(moment.step, || {
            let used = units::size(replay.device().stats().vram_used_bytes);
            match moment.batch {
                0 => "creating buffers".to_string(),
                batch => format!("batch {batch} of {}, {used} in VRAM", trace.batches),
            }
        });
    });
    progress.finish();
    outcome
}

fn print_summary(trace: &Trace, outcome: &Outcome, json_on_stdout: bool) -> Result<()> {
    print_result(json_on_stdout, |paint| Summary::new(trace, outcome, paint).to_string())
}

/// What people read goes to standard output, unless the JSON does.
fn print_result(json_on_stdout: bool, render: impl FnOnce(Paint) -> String) -> Result<()> {
    if json_on_stdout {
        let mut stderr = std::io::stderr().lock();
        let text = render(Paint::for_stream(stderr.is_terminal()));
        // The result is on standard output; a closed standard error takes nothing from it.
        let _result_is_out = print(&mut stderr, &text);
        return Ok(());
    }
    let mut stdout = std::io::stdout().lock();
    let text = render(Paint::for_stream(stdout.is_terminal()));
    print(&mut stdout, &text)
}

/// The first Ctrl-C lets the replay end in order; the second ends the process.
fn stop_on_interrupt(stop: Arc<AtomicBool>) {
    let handler = move || {
        if stop.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        // Nobody may be reading.
        let _nobody_reads =
            writeln!(std::io::stderr(), "\ninterrupted: ending in order; once more to end at once");
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        let _nobody_reads =
            writeln!(std::io::stderr(), "devpagemap: Ctrl-C will end the replay at once: {error}");
    }
}
