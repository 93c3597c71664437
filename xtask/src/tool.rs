//! The tools that explore models, and how the code is built for each of them.
//!
//! | | loom | shuttle |
//! |---|---|---|
//! | explores | every interleaving of 2 or 3 threads | random ones of 8 to 16 |
//! | models | `loom-tests/tests` | `loom-tests/shuttle` |
//! | list | `loom-tests/models.txt` | `loom-tests/storms.txt` |
//!
//! One build has all mutants: which one a model runs with is chosen when it is run (`fence/src/sync/mutants.rs`).

use crate::cargo::{cargo, root, target_dir};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Stdio;

/// A tool that explores models.
pub struct Tool {
    /// Its name, which is also its `--cfg`.
    pub name: &'static str,
    /// What one of its models is called.
    pub model: &'static str,
    /// The list of models and mutants.
    pub list: &'static str,
    /// Where the models' files are.
    dir: &'static str,
    /// Whether a failure must come again from the seed that it printed.
    pub has_seeds: bool,
    /// How it is built.
    profile: &'static [&'static str],
}

/// Every interleaving.
pub const LOOM: Tool = Tool {
    name: "loom",
    model: "model",
    list: "loom-tests/models.txt",
    dir: "loom-tests/tests",
    has_seeds: false,
    // Explored code keeps its debug assertions and is not linked for minutes.
    profile: &[
        "--release",
        "--config=profile.release.lto=\"off\"",
        "--config=profile.release.codegen-units=16",
        "--config=profile.release.debug=0",
        "--config=profile.release.debug-assertions=true",
        "--config=profile.release.package.\"*\".debug-assertions=false",
        "--config=profile.release.package.\"*\".opt-level=3",
    ],
};

/// Many threads, at random.
pub const SHUTTLE: Tool = Tool {
    name: "shuttle",
    model: "storm",
    list: "loom-tests/storms.txt",
    dir: "loom-tests/shuttle",
    has_seeds: true,
    // What `cargo test` builds, so that the printed line has the same round again.
    profile: &["--config=profile.dev.package.\"*\".opt-level=2"],
};

/// The built test programs, by file.
pub type Programs = BTreeMap<String, PathBuf>;

impl Tool {
    /// Flags under which the workspace is built for the tool.
    pub fn rustflags(&self) -> String {
        let given = std::env::var("RUSTFLAGS").unwrap_or_default();
        format!("{given} --cfg {}", self.name).trim_start().to_owned()
    }

    /// Where it is built, apart from everything else.
    pub fn target_dir(&self) -> PathBuf {
        target_dir().join(self.name)
    }

    /// The files with its models.
    ///
    /// # Errors
    /// What could not be read.
    pub fn files(&self) -> Result<BTreeSet<String>, String> {
        let failed = |error: std::io::Error| format!("{} cannot be read: {error}", self.dir);
        let entries = std::fs::read_dir(root().join(self.dir)).map_err(failed)?;
        let paths = entries.map(|entry| Ok(entry.map_err(failed)?.path()));
        let paths = paths.collect::<Result<Vec<_>, String>>()?;
        let sources = paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
        Ok(sources.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect())
    }

    /// Builds the test programs of these files.
    ///
    /// # Errors
    /// That they do not build.
    pub fn build(&self, files: &BTreeSet<String>) -> Result<Programs, String> {
        let mut command = cargo(&["test", "--package", "devpagemap-loom-tests", "--no-run"]);
        command.arg("--message-format=json-render-diagnostics").args(self.profile);
        command.arg("--target-dir").arg(self.target_dir());
        command.args(files.iter().flat_map(|file| ["--test", file]));
        command.env("RUSTFLAGS", self.rustflags()).stdin(Stdio::null()).stderr(Stdio::inherit());
        let output = command.output().map_err(|error| format!("cargo could not be started: {error}"))?;
        match output.status.success() {
            true => Ok(programs_in(&String::from_utf8_lossy(&output.stdout))),
            false => Err(format!("the code under --cfg {} does not build", self.name)),
        }
    }
}

/// The test programs that cargo's messages name.
fn programs_in(messages: &str) -> Programs {
    let artifacts = messages.lines().filter(|line| line.contains("\"reason\":\"compiler-artifact\""));
    let text_of = |line: &str, key: &str| {
        let (_, rest) = line.split_once(&format!("\"{key}\":\""))?;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let program = |line: &str| {
        let (_, target) = line.split_once("\"target\":")?;
        Some((text_of(target, "name")?, text_of(line, "executable")?.into()))
    };
    artifacts.filter_map(program).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_found_in_the_messages_of_cargo() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"lib"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"waits"},"executable":"/t/waits-1"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(programs_in(messages), Programs::from([("waits".into(), "/t/waits-1".into())]));
    }
}
