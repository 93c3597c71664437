//! Where the recordings of real machines are.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Writes straight to standard error, past the test harness, which would keep it from whoever should know.
pub fn say_loudly(what: &str) {
    let line = format!("\n*** {what} ***\n");
    std::io::stderr().write_all(line.as_bytes()).expect("standard error is open");
}

/// The path of a recording, or `None` when this machine does not have it; then it says so.
pub fn recording(name: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/traces");
    let path = std::env::var_os("DEVPAGEMAP_TRACES").map_or(beside, PathBuf::from).join(name);
    if path.exists() {
        return Some(path);
    }
    say_loudly(&format!("skipped: no recording {} (set DEVPAGEMAP_TRACES)", path.display()));
    None
}

/// What a program writes to standard output; `None`, said loudly, when there is no such program.
pub fn output_of(command: &mut Command) -> Option<Vec<u8>> {
    let output = match command.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            say_loudly(&format!("skipped: no program {}", command.get_program().display()));
            return None;
        }
        output => output.expect("the program runs"),
    };
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(output.stdout)
}
