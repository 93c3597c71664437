//! One run of one bench program: what was asked for, and the rows that come of it.
//!
//! ```text
//! cargo bench -p devpagemap-benches                      every contest
//! cargo bench -p devpagemap-benches --bench fences       those of one program
//! cargo bench -p devpagemap-benches -- signal --long     those whose name contains "signal", with longer set-ups
//! ```
//!
//! Without `--bench`, which `cargo bench` adds, each contest runs for a few rounds only: enough to see that it works.

use std::io::Write;
use std::path::PathBuf;

use crate::report::table;

/// Where `cargo xtask bench` collects the rows of all programs.
const ROWS: &str = "DEVPAGEMAP_BENCH_ROWS";
/// The heading above them.
const HEADING: [&str; 7] = ["operation", "ours", "floor", "of floor", "strongest peer", "of peer", "goal"];

const USAGE: &str = "arguments: [FILTER]... [--rounds N] [--blocks] [--long]";

/// A line of the table at the end.
pub struct Row(pub [String; 7]);

/// What was asked for, and what has come of it so far.
pub struct Session {
    filters: Vec<String>,
    rounds: usize,
    blocks: bool,
    long: bool,
    full: bool,
    rows: Vec<Row>,
    file: Option<PathBuf>,
}

impl Session {
    /// The session that the command line asks for; what it cannot read ends the process.
    pub fn from_arguments() -> Session {
        Session::parse(std::env::args().skip(1)).unwrap_or_else(|wrong| {
            eprintln!("{wrong}\n{USAGE}");
            std::process::exit(2)
        })
    }

    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Session, String> {
        let file = std::env::var_os(ROWS).map(PathBuf::from);
        let (filters, rows) = (Vec::new(), Vec::new());
        let mut session = Session { filters, rounds: 0, blocks: false, long: false, full: false, rows, file };
        let mut rounds = None;
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--bench" => session.full = true,
                "--blocks" => session.blocks = true,
                "--long" => session.long = true,
                "--rounds" => {
                    let number = arguments.next().ok_or("--rounds needs a number")?;
                    let parsed = number.parse().map_err(|_| format!("--rounds: {number} is no number"))?;
                    rounds = Some(parsed);
                }
                flag if flag.starts_with('-') => return Err(format!("unknown flag {flag}")),
                filter => session.filters.push(filter.to_owned()),
            }
        }
        session.rounds = rounds.unwrap_or(if session.full { 101 } else { 2 });
        if session.rounds == 0 { Err("--rounds 0 measures nothing".into()) } else { Ok(session) }
    }

    /// Whether a contest of this name is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter.as_str()))
    }

    /// How many rounds a contest has.
    pub fn rounds(&self) -> usize {
        self.rounds
    }

    /// Whether all rounds of one way come before those of the next.
    pub fn in_blocks(&self) -> bool {
        self.blocks
    }

    /// Whether set-ups may take minutes.
    pub fn is_long(&self) -> bool {
        self.long
    }

    /// Whether figures are wanted, and not only a look at whether everything runs.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Takes a row for the table at the end.
    pub fn file(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Prints the rows, or leaves them to who collects them. After a few rounds only they would say nothing.
    pub fn finish(self) {
        let rows: Vec<[String; 7]> = self.rows.into_iter().map(|row| row.0).collect();
        if rows.is_empty() || !self.full {
            return;
        }
        if let Some(path) = self.file {
            let text: String = rows.iter().map(|row| row.join("\t") + "\n").collect();
            let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
            let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
            written.unwrap_or_else(|error| panic!("{} cannot be written: {error}", path.display()));
            return;
        }
        let all: Vec<_> = [HEADING.map(String::from)].into_iter().chain(rows).collect();
        println!("\n{}", table(&all));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Session, String> {
        Session::parse(arguments.iter().map(|&argument| argument.to_owned()))
    }

    #[test]
    fn without_a_filter_everything_is_wanted_and_with_one_what_it_names() {
        assert!(parse(&["--bench"]).is_ok_and(|session| session.wants("anything")));
        let session = parse(&["signal", "lock", "--bench"]).expect("two filters");
        assert!(session.wants("create + signal") && session.wants("lock 16") && !session.wants("wake"));
    }

    #[test]
    fn what_is_no_argument_is_refused_by_name() {
        assert!(parse(&["--round"]).is_err_and(|wrong| wrong.contains("--round")));
        assert!(parse(&["--rounds", "few"]).is_err_and(|wrong| wrong.contains("few")));
        assert!(parse(&["--rounds", "0"]).is_err());
    }
}
