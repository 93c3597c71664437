//! The main job of the command, from its built binary: it must end with status 0, and its JSON must say that every
//! batch was done, that bytes were moved, and that every byte that was checked was right.

use crate::cargo::{cargo, root, target_dir};
use crate::process;
use crate::report::Outcome;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Far beyond what it takes on a slow machine.
const LIMIT: Duration = Duration::from_secs(900);

/// Builds the command as `cargo run --release` does, runs it, and looks at its JSON.
pub fn run() -> Outcome {
    let json = std::env::temp_dir().join(format!("devpagemap-main-job-{}.json", std::process::id()));
    let result = build().and_then(|binary| replay(binary, &json));
    // It may never have been written.
    let _was_not_there = std::fs::remove_file(&json);
    match result {
        Ok(remark) => Outcome::passed(remark),
        Err(reason) => {
            println!("{reason}");
            Outcome::failed(reason.lines().next().unwrap_or_default())
        }
    }
}

fn build() -> Result<PathBuf, String> {
    let status = process::run(&mut cargo(&["build", "--release", "--package", "devpagemap-cli"]))?;
    if !status.success() {
        return Err(format!("the command does not build: {status}"));
    }
    Ok(target_dir().join("release/devpagemap"))
}

fn replay(binary: PathBuf, json: &PathBuf) -> Result<String, String> {
    let mut command = Command::new(binary);
    command.args(["replay", "builtin:frames", "--json"]).arg(json).current_dir(root());
    let run = process::run_captured(&mut command, LIMIT)?;
    println!("{}", run.output.trim_end());
    match run.status {
        Some(status) if status.success() => {}
        Some(status) => return Err(format!("the main job ended with {status}")),
        None => return Err(format!("the main job did not end within {} s", LIMIT.as_secs())),
    }
    let text = std::fs::read_to_string(json).map_err(|error| format!("its JSON cannot be read: {error}"))?;
    check(&text)
}

fn check(json: &str) -> Result<String, String> {
    let batches = number(json, "batches")?;
    let done = number(json, "batches_done")?;
    let evictions = number(json, "evictions")?;
    let moved_bytes = number(json, "moved_bytes")?;
    let checked_bytes = number(json, "bytes_checked")?;
    let wrong = number(json, "mismatches")?;
    let waits = number(json, "cpu_waits_in_validate")?;
    if batches == 0 || done != batches || evictions == 0 || moved_bytes == 0 || checked_bytes == 0 {
        return Err(format!(
            "the main job did {done} of {batches} batches, {evictions} evictions, moved {moved_bytes} bytes and \
             checked {checked_bytes}"
        ));
    }
    if wrong != 0 || waits != 0 {
        return Err(format!(
            "the main job found {wrong} wrong buffers and waited {waits} times while placing"
        ));
    }
    Ok(format!("{done} batches, {evictions} evictions, {checked_bytes} bytes checked, none wrong"))
}

/// The number behind a key that occurs once.
fn number(json: &str, key: &str) -> Result<u64, String> {
    let missing = || format!("its JSON has no number `{key}`");
    let (_, rest) = json.split_once(&format!("\"{key}\":")).ok_or_else(missing)?;
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().map_err(|_| missing())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(done: u64, mismatches: u64) -> String {
        format!(
            r#"{{ "trace": {{ "batches": 3 }}, "result": {{ "batches_done": {done}, "evictions": 2, "moved_bytes": 8192,
            "cpu_waits_in_validate": 0, "verify": {{ "bytes_checked": 4096, "mismatches": {mismatches} }} }} }}"#
        )
    }

    #[test]
    fn a_result_counts_only_when_everything_was_done_and_right() {
        assert!(check(&json(3, 0)).is_ok());
        assert!(check(&json(2, 0)).unwrap_err().contains("2 of 3 batches"));
        assert!(check(&json(3, 1)).unwrap_err().contains("1 wrong"));
    }

    #[test]
    fn a_missing_key_is_named() {
        assert!(check("{}").unwrap_err().contains("`batches`"));
        assert!(number("{\"batches\": \"many\"}", "batches").is_err());
    }
}
