//! A kernel of our own: Debian's kernel source with what the tests need and Debian has switched off. It has no modules.
//!
//! Built once for each version of the source and each configuration, which is some minutes of two processors.

use super::cache::{Cache, numbers};
use super::packages;
use super::{Kernel, Unready};
use crate::report::seconds;
use crate::setup::say_loudly;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// The package with the source.
const PACKAGE: &str = "linux-source-6.12";
/// What is switched on.
const FRAGMENT: &str = include_str!("../../vm/kernel.config");
/// Parts of the source that no build of ours reads, by tar's patterns: half of its files.
const UNREAD: [&str; 4] = [
    "*/Documentation/*.rst",
    "*/Documentation/*.yaml",
    "*/tools/testing/*",
    "*/drivers/gpu/drm/amd/include/*",
];
/// How much of a failed build's log is shown.
const SHOWN_LINES: usize = 40;

/// The kernel of the newest source; built when it is not in the cache.
///
/// # Errors
/// Why there is none.
pub fn get(cache: &Cache) -> Result<Kernel, Unready> {
    let end = format!("-{:016x}", hash(FRAGMENT));
    let Some(version) = packages::version(PACKAGE) else {
        let reason = format!("this machine's lists have no package {PACKAGE}");
        let entries = cache.entries("own-").into_iter().filter(|name| name.ends_with(&end));
        let name =
            entries.max_by_key(|name| numbers(name)).ok_or_else(|| Unready::Missing(reason.clone()))?;
        say_loudly(&format!("{reason}: taking {name} of the cache"));
        return kernel(&cache.dir().join(name));
    };
    let dir = cache.get_or_make(&format!("own-{version}{end}"), |dir| {
        packages::for_building().map_err(Unready::Missing)?;
        build(cache, dir)
    })?;
    kernel(&dir)
}

/// Whether the cache has it already.
pub fn is_cached(cache: &Cache) -> bool {
    let end = format!("-{:016x}", hash(FRAGMENT));
    let entry = |version| cache.get(&format!("own-{version}{end}"));
    packages::version(PACKAGE).is_some_and(|version| entry(version).is_some())
}

/// Fills an entry of the cache: `bzImage`, `config`, `version` and `build.log`.
fn build(cache: &Cache, dir: &Path) -> Result<(), Unready> {
    let begin = Instant::now();
    let scratch = cache.scratch("building")?;
    let fetched = packages::fetch(PACKAGE, scratch.path()).map_err(Unready::Missing)?;
    packages::unpack(&fetched, scratch.path())?;
    let archive = scratch.path().join(format!("usr/src/{PACKAGE}.tar.xz"));
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--file").arg(&archive).arg("--directory").arg(scratch.path());
    packages::run(tar.args(UNREAD.map(|pattern| format!("--exclude={pattern}"))))?;
    let source = scratch.path().join(PACKAGE);
    let fragment = scratch.path().join("fragment");
    write(&fragment, FRAGMENT)?;
    let log = dir.join("build.log");
    let mut setting = format!("KCONFIG_ALLCONFIG={}", fragment.display());
    make(&source, &log, &[&setting, "allnoconfig"])?;
    let config = read(&source.join(".config"))?;
    let unset = unset(FRAGMENT, &config);
    if !unset.is_empty() {
        let names = unset.join(", ");
        return Err(Unready::Broken(format!("{PACKAGE} does not take these options: {names}")));
    }
    setting = format!("-j{}", std::thread::available_parallelism().map_or(1, usize::from));
    make(&source, &log, &[&setting, "bzImage"])?;
    copy(&source.join("arch/x86/boot/bzImage"), &dir.join("bzImage"))?;
    write(&dir.join("config"), &config)?;
    write(&dir.join("version"), read(&source.join("include/config/kernel.release"))?.trim())?;
    println!("the own kernel was built in {}", seconds(begin.elapsed()));
    Ok(())
}

/// Runs make on the source, behind everything else that this machine does.
fn make(source: &Path, log: &Path, arguments: &[&str]) -> Result<(), Unready> {
    let file = fs::File::options().create(true).append(true).open(log);
    let file = file.map_err(|error| failed(log, &error))?;
    let second = file.try_clone().map_err(|error| failed(log, &error))?;
    // The build goes when we go.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "nice", "-n", "19", "make"]).args(arguments).current_dir(source);
    // What cargo's own jobs and flags are is nothing to this make.
    for name in ["MAKEFLAGS", "MFLAGS", "CARGO_MAKEFLAGS", "CFLAGS", "LDFLAGS", "ARCH"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(file).stderr(second);
    let status = command.status().map_err(|error| Unready::Broken(format!("make: {error}")))?;
    if status.success() {
        return Ok(());
    }
    let text = read(log)?;
    let lines: Vec<&str> = text.lines().collect();
    println!("{}", lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n"));
    Err(Unready::Broken(format!("make {} ended with {status}", arguments.join(" "))))
}

/// The options of the fragment that the configuration has not taken over.
fn unset<'a>(fragment: &'a str, config: &str) -> Vec<&'a str> {
    let options = fragment.lines().map(str::trim).filter(|line| line.starts_with("CONFIG_"));
    options.filter(|option| !config.lines().any(|set| set == *option)).collect()
}

/// Names a configuration. Another version of Rust may give another number: then the kernel is built once more.
fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

fn kernel(dir: &Path) -> Result<Kernel, Unready> {
    let version = read(&dir.join("version"))?;
    Ok(Kernel { name: "own", version, image: dir.join("bzImage"), modules: Vec::new() })
}

fn read(path: &Path) -> Result<String, Unready> {
    fs::read_to_string(path).map_err(|error| failed(path, &error))
}

fn write(path: &Path, text: &str) -> Result<(), Unready> {
    fs::write(path, text).map_err(|error| failed(path, &error))
}

fn copy(from: &Path, to: &Path) -> Result<(), Unready> {
    fs::copy(from, to).map(|_| ()).map_err(|error| failed(from, &error))
}

fn failed(path: &Path, error: &std::io::Error) -> Unready {
    Unready::Broken(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_a_configuration_does_not_have_are_named() {
        let fragment = "# What it is for.\nCONFIG_DRM=y\nCONFIG_DRM_VKMS=y\nCONFIG_NR_CPUS=4\n";
        let config = "CONFIG_DRM=y\n# CONFIG_DRM_VKMS is not set\nCONFIG_NR_CPUS=64\n";
        assert_eq!(unset(fragment, config), ["CONFIG_DRM_VKMS=y", "CONFIG_NR_CPUS=4"]);
        assert_eq!(unset(fragment, fragment), Vec::<&str>::new());
    }
}
