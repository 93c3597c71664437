//! The lists of models and mutants.
//!
//! `loom-tests/models.txt` and `storms.txt` have one line a pair: `test file | test name | mutant | threads | bound`. Whoever
//! adds a model or a mutant and forgets the list is told so: every test of the loom-tests crate must be on one, and every
//! `mutant!` in the sources.

use std::collections::BTreeSet;
use std::path::Path;

/// A model and a mutant that it must catch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The file in `loom-tests/tests` or `loom-tests/shuttle`, without its extension.
    pub file: String,
    /// The test in it.
    pub test: String,
    /// `None`: the model has no mutant of its own.
    pub mutant: Option<String>,
    /// How many threads, and which interleavings of them.
    pub bound: String,
}

/// Reads the list that is called `list`.
///
/// # Errors
/// The line that is not a pair.
pub fn parse(list: &str, text: &str) -> Result<Vec<Pair>, String> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines.map(|(number, line)| pair(line).ok_or_else(|| not_a_pair(list, number, line))).collect()
}

fn pair(line: &str) -> Option<Pair> {
    let fields: Vec<&str> = line.split('|').map(str::trim).collect();
    let [file, test, mutant, threads, bound] = fields[..] else { return None };
    if fields.iter().any(|field| field.is_empty()) || !(is_name(mutant) || mutant == "-") {
        return None;
    }
    let mutant = (mutant != "-").then(|| mutant.to_owned());
    Some(Pair { file: file.into(), test: test.into(), mutant, bound: format!("{threads} threads, {bound}") })
}

fn not_a_pair(list: &str, number: usize, line: &str) -> String {
    format!("{list}:{number}: not `test file | test name | mutant | threads | bound`: {line}")
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Every mutant that the sources under `dir` know.
///
/// # Errors
/// What could not be read.
pub fn mutants_in(dir: &Path) -> Result<BTreeSet<String>, String> {
    let failed = |error: std::io::Error| format!("{} cannot be read: {error}", dir.display());
    let mut mutants = BTreeSet::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            mutants.extend(mutants_in(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            mutants.extend(mutants_of(&std::fs::read_to_string(&path).map_err(failed)?));
        }
    }
    Ok(mutants)
}

fn mutants_of(source: &str) -> BTreeSet<String> {
    let code: Vec<&str> = source.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let names = code.split("mutant!(").skip(1).filter_map(|rest| rest.trim_start().strip_prefix('"'));
    let names = names.filter_map(|rest| rest.split_once('"'));
    names.map(|(name, _)| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_models_without_a_mutant_are_read() {
        let text = "# a comment\n\nfile | test | some_mutant | 2 | exhaustive\nfile | other | - | 3 | 2 preemptions\n";
        let pairs = parse("models.txt", text).unwrap();
        assert_eq!(pairs[0].mutant.as_deref(), Some("some_mutant"));
        assert_eq!(pairs[0].bound, "2 threads, exhaustive");
        assert_eq!((pairs.len(), &pairs[1].mutant), (2, &None));
    }

    #[test]
    fn a_line_that_is_no_pair_is_named() {
        for wrong in ["file | test | mutant | 2", "file | | m | 2 | x", "file | test | not a name | 2 | x"] {
            let error = parse("models.txt", &format!("# first\n{wrong}")).unwrap_err();
            assert!(error.starts_with("models.txt:2:"), "{error}");
        }
    }

    #[test]
    fn mutants_are_found_in_expressions_and_not_in_comments() {
        let source = "if mutant!(\"one\") && a {}\n//! mutant!(\"none\")\nlet b = !mutant!(\n    \"two\"\n);";
        assert_eq!(mutants_of(source), BTreeSet::from(["one".to_owned(), "two".to_owned()]));
    }
}
