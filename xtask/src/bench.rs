//! The benchmarks. Each program prints its contests while they are held and leaves its rows in a file, out of which
//! comes one table at the end. A goal that is missed is said in the table and is no failure: figures depend on the machine.

use crate::cargo::cargo;
use crate::process;
use crate::report::{Outcome, Step, finish, table};
use std::path::{Path, PathBuf};

/// Where the programs leave their rows.
const ROWS: &str = "DEVPAGEMAP_BENCH_ROWS";
const HEADING: [&str; 7] = ["operation", "ours", "floor", "of floor", "strongest peer", "of peer", "goal"];

/// Runs the benchmarks with these arguments.
pub fn run(arguments: &[&str]) -> std::process::ExitCode {
    finish(&[Step::timed("benchmarks", || measure(arguments))])
}

fn measure(arguments: &[&str]) -> Outcome {
    let file = std::env::temp_dir().join(format!("devpagemap-bench-rows-{}", std::process::id()));
    let result = run_programs(arguments, &file).and_then(|()| rows(&file));
    // It may never have been written.
    let _was_not_there = std::fs::remove_file(&file);
    match result {
        Ok(rows) => {
            let all: Vec<_> = [HEADING.map(String::from)].into_iter().chain(rows).collect();
            println!("\n{}", table(&all));
            Outcome::passed(verdict(&all))
        }
        Err(reason) => Outcome::failed(reason),
    }
}

fn run_programs(arguments: &[&str], file: &Path) -> Result<(), String> {
    let mut command = cargo(&["bench", "--package", "devpagemap-benches", "--benches", "--"]);
    let status = process::run(command.args(arguments).env(ROWS, file))?;
    if status.success() { Ok(()) } else { Err(format!("cargo bench ended with {status}")) }
}

fn rows(file: &PathBuf) -> Result<Vec<[String; 7]>, String> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("the rows cannot be read: {error}")),
    };
    text.lines().map(parse).collect()
}

fn parse(line: &str) -> Result<[String; 7], String> {
    let cells: Vec<String> = line.split('\t').map(String::from).collect();
    cells.try_into().map_err(|_| format!("not a row of {} cells: {line}", HEADING.len()))
}

fn verdict(rows: &[[String; 7]]) -> String {
    let count = |word: &str| rows.iter().filter(|row| row[6].ends_with(word)).count();
    format!("{} goals met, {} missed", count(": met"), count(": MISSED"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_a_cell_too_few_is_no_row() {
        assert!(parse("a\tb\tc\td\te\tf\tgoal: met").is_ok());
        assert!(parse("a\tb\tc\td\te\tf").is_err_and(|reason| reason.contains("7 cells")));
    }

    #[test]
    fn goals_are_counted_by_how_they_ended() {
        let row = |goal: &str| ["", "", "", "", "", "", goal].map(String::from);
        let rows = [row("1.25x floor: met"), row("-"), row("ahead: MISSED"), row("ahead: met")];
        assert_eq!(verdict(&rows), "2 goals met, 1 missed");
    }
}
