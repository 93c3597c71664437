//! The tables of models and storms in the documentation: checked by every run, written by `--write-table`.
//!
//! The column of executions changes with the code and is not checked.

use crate::models::Pair;
use crate::tool::Tool;
use std::collections::BTreeMap;

/// The page that describes the models.
pub const PAGE: &str = "docs/lock-order.md";

/// Whether a table of the page has the model with its bound, and the mutant.
pub fn describes(page: &str, pair: &Pair) -> bool {
    let row = format!("| `{}` | `{}` | {} |", pair.file, pair.test, pair.bound);
    let row = page.lines().find(|line| line.starts_with(&row));
    let mutant = pair.mutant.as_ref().map(|mutant| format!("`{mutant}`")).unwrap_or_default();
    row.is_some_and(|row| row.contains(&mutant))
}

/// The page with the tool's table written anew. `executions` is by file and test.
///
/// # Errors
/// That the page has no such table.
pub fn rewritten(
    page: &str,
    tool: &Tool,
    pairs: &[Pair],
    executions: &BTreeMap<(String, String), String>,
) -> Result<String, String> {
    let heading = format!("| file | {} |", tool.model);
    let before: Vec<&str> = page.lines().take_while(|line| !line.starts_with(&heading)).collect();
    let from_table = page.lines().skip(before.len());
    let after: Vec<&str> = from_table.skip_while(|line| line.starts_with('|')).collect();
    if before.len() == page.lines().count() {
        return Err(format!("{PAGE} has no table that begins with `{heading}`"));
    }
    let mut lines: Vec<String> = before.into_iter().map(str::to_owned).collect();
    lines.push(format!("{heading} bound | executions | must catch |"));
    lines.push("|---|---|---|---|---|".to_owned());
    lines.extend(rows(pairs, executions));
    lines.extend(after.into_iter().map(str::to_owned));
    Ok(lines.join("\n") + "\n")
}

/// One row a model, in the order of the list.
fn rows(pairs: &[Pair], executions: &BTreeMap<(String, String), String>) -> Vec<String> {
    let mut models: Vec<(&Pair, Vec<String>)> = Vec::new();
    for pair in pairs {
        let mutant = pair.mutant.iter().map(|mutant| format!("`{mutant}`"));
        match models.iter_mut().find(|(known, _)| (&known.file, &known.test) == (&pair.file, &pair.test)) {
            Some((_, mutants)) => mutants.extend(mutant),
            None => models.push((pair, mutant.collect())),
        }
    }
    let row = |(pair, mutants): (&Pair, Vec<String>)| {
        let Pair { file, test, bound, .. } = pair;
        let executions = executions.get(&(file.clone(), test.clone())).map_or("-", String::as_str);
        format!("| `{file}` | `{test}` | {bound} | {executions} | {} |", mutants.join(", "))
    };
    models.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::LOOM;

    fn pair(bound: &str, mutant: &str) -> Pair {
        Pair { file: "f".into(), test: "t".into(), mutant: Some(mutant.into()), bound: bound.into() }
    }

    #[test]
    fn a_page_must_have_the_bound_and_the_mutant() {
        let page = "| file | model |\n| `f` | `t` | 2 threads, exhaustive | 9 | `one`, `two` |\n";
        assert!(describes(page, &pair("2 threads, exhaustive", "two")));
        assert!(!describes(page, &pair("2 threads, exhaustive", "three")));
        assert!(!describes(page, &pair("3 threads, exhaustive", "two")));
    }

    #[test]
    fn a_table_is_replaced_and_the_rest_of_the_page_stays() {
        let pairs = [pair("2 threads", "one"), pair("2 threads", "two")];
        let executions = BTreeMap::from([(("f".to_owned(), "t".to_owned()), "9".to_owned())]);
        let page = "above\n\n| file | model | old |\n|---|\n| gone |\n\nbelow\n";
        let page = rewritten(page, &LOOM, &pairs, &executions).unwrap();
        assert!(page.starts_with("above\n\n| file | model | bound | executions | must catch |\n"));
        assert!(page.ends_with("|\n| `f` | `t` | 2 threads | 9 | `one`, `two` |\n\nbelow\n"));
        assert!(pairs.iter().all(|pair| describes(&page, pair)));
        assert!(rewritten("no table", &LOOM, &pairs, &executions).is_err());
    }
}
