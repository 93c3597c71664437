//! The programs that run in a guest: the kernel tests and the command, as `cargo test` builds them, with the
//! libraries that they are linked to. A static build of everything would cost minutes; copying libc costs nothing.

use crate::cargo::cargo;
use crate::setup;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What was built.
pub struct Programs {
    /// The test program of `tests/kernel/`.
    pub tests: PathBuf,
    /// The `devpagemap` command.
    pub command: PathBuf,
    /// The loader and the libraries of both.
    pub libraries: Vec<PathBuf>,
}

impl Programs {
    /// Builds them. The features are those of the step with all tests, so that nothing is built twice.
    ///
    /// # Errors
    /// That they do not build.
    pub fn build() -> Result<Programs, String> {
        let mut command = cargo(&["build", "--workspace", "--test", "kernel", "--bin", "devpagemap"]);
        command.args(setup::features());
        command.arg("--message-format=json-render-diagnostics").stdin(Stdio::null()).stderr(Stdio::inherit());
        let output = command.output().map_err(|error| format!("cargo could not be started: {error}"))?;
        if !output.status.success() {
            return Err("the kernel tests do not build".into());
        }
        let messages = String::from_utf8_lossy(&output.stdout);
        let built = |kind, name| {
            let program = executable_in(&messages, kind, name);
            program.ok_or_else(|| format!("cargo names no program of the {kind} target {name}"))
        };
        let (tests, command) = (built("test", "kernel")?, built("bin", "devpagemap")?);
        let mut libraries = libraries_of(&tests)?;
        libraries.extend(libraries_of(&command)?);
        libraries.sort();
        libraries.dedup();
        Ok(Programs { tests, command, libraries })
    }

    /// The names of the tests that contain a word of `filter`, all without any; but not those with what stands behind `--skip`.
    ///
    /// # Errors
    /// That the program does not list them.
    pub fn listed(&self, filter: &str) -> Result<Vec<String>, String> {
        let mut command = Command::new(&self.tests);
        command.args(["--list", "--format", "terse"]).stdin(Stdio::null());
        command.args(filter.split_whitespace());
        let output = command.output().map_err(|error| format!("{}: {error}", self.tests.display()))?;
        if !output.status.success() {
            return Err(format!("{} --list ended with {}", self.tests.display(), output.status));
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(String::from).collect())
    }
}

/// The program that cargo's messages name for a target.
fn executable_in(messages: &str, kind: &str, name: &str) -> Option<PathBuf> {
    let is_it = |line: &&str| {
        let target = line.split_once("\"target\":").map(|(_, target)| target);
        target.is_some_and(|target| {
            target.contains(&format!("\"kind\":[\"{kind}\"]"))
                && target.contains(&format!("\"name\":\"{name}\""))
        })
    };
    let line = messages.lines().find(is_it)?;
    let (_, rest) = line.split_once("\"executable\":\"")?;
    Some(rest.split_once('"')?.0.into())
}

fn libraries_of(program: &Path) -> Result<Vec<PathBuf>, String> {
    let output = Command::new("ldd").arg(program).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("ldd could not be started: {error}"))?;
    if !output.status.success() {
        return Err(format!("ldd {}: {}", program.display(), String::from_utf8_lossy(&output.stderr).trim()));
    }
    String::from_utf8_lossy(&output.stdout).lines().filter_map(library_in).collect()
}

/// The file in a line of `ldd`: `libc.so.6 => /lib/libc.so.6 (0x7f..)` or `/lib64/ld-linux-x86-64.so.2 (0x7f..)`.
fn library_in(line: &str) -> Option<Result<PathBuf, String>> {
    if line.contains("not found") {
        return Some(Err(format!("a library is missing: {}", line.trim())));
    }
    let path = Path::new(line.split_whitespace().find(|word| word.starts_with('/'))?);
    // The folder may be named through a link.
    let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
    Some(Ok(folder.map_or_else(|| path.into(), |folder| folder.join(path.file_name().unwrap_or_default()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_told_from_a_library_of_the_same_name() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"devpagemap"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"devpagemap"},"executable":"/t/devpagemap"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"kernel"},"executable":"/t/kernel-1"}"#;
        assert_eq!(executable_in(messages, "bin", "devpagemap"), Some("/t/devpagemap".into()));
        assert_eq!(executable_in(messages, "test", "kernel"), Some("/t/kernel-1".into()));
        assert_eq!(executable_in(messages, "bin", "kernel"), None);
    }

    #[test]
    fn libraries_and_the_loader_are_files_and_the_kernels_own_is_none() {
        assert_eq!(
            library_in("\tlibc.so.6 => /nowhere/libc.so.6 (0x7f)"),
            Some(Ok("/nowhere/libc.so.6".into()))
        );
        assert_eq!(library_in("\t/nowhere/ld.so.2 (0x7f)"), Some(Ok("/nowhere/ld.so.2".into())));
        assert_eq!(library_in("\tlinux-vdso.so.1 (0x00007f)"), None);
        assert!(library_in("\tlibgbm.so.1 => not found").is_some_and(|library| library.is_err()));
    }
}
