//! What the machine needs for guests, and Debian's packages: installed, looked up and fetched, by name.

use super::cache::numbers;
use crate::process;
use crate::setup::{image_libraries, is_root, runs, say_loudly};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Programs that guests need, with the package that brings each.
const FOR_GUESTS: [(&str, &str); 6] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
    ("ldd", "libc-bin"),
    ("setpriv", "util-linux"),
];
/// Programs with which a kernel is built.
const FOR_BUILDING: [(&str, &str); 8] = [
    ("make", "make"),
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("tar", "tar"),
    ("xz", "xz-utils"),
];
/// Folders in which programs are, also where they are not in `PATH`.
const FOLDERS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Installs what guests need and is missing; tried once.
///
/// # Errors
/// What is missing and cannot be installed, and why.
pub fn for_guests() -> Result<(), String> {
    static TRIED: OnceLock<Result<(), String>> = OnceLock::new();
    let try_it = || {
        install_missing(&FOR_GUESTS, &[])?;
        is_static(&program("busybox").ok_or("there is no busybox")?)
    };
    TRIED.get_or_init(try_it).clone()
}

/// Installs what buffers that are images need and is missing.
///
/// # Errors
/// What is missing and cannot be installed, and why.
pub fn for_images() -> Result<(), String> {
    if image_libraries().is_ok() {
        return Ok(());
    }
    install(&["libgbm-dev", "libgl1-mesa-dri"])?;
    image_libraries().map(drop)
}

/// Installs what building a kernel needs and is missing; tried once.
///
/// # Errors
/// What is missing and cannot be installed, and why.
pub fn for_building() -> Result<(), String> {
    static TRIED: OnceLock<Result<(), String>> = OnceLock::new();
    let headers = [("/usr/include/libelf.h", "libelf-dev")];
    TRIED.get_or_init(|| install_missing(&FOR_BUILDING, &headers)).clone()
}

/// Where a program is.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(FOLDERS.map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// The newest package whose name begins and ends like this, as far as this machine's lists know.
pub fn newest(beginning: &str, end: &str) -> Option<String> {
    let output =
        Command::new("apt-cache").arg("pkgnames").arg(beginning).stdin(Stdio::null()).output().ok()?;
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    newest_of(names.lines(), beginning, end)
}

fn newest_of<'a>(names: impl Iterator<Item = &'a str>, beginning: &str, end: &str) -> Option<String> {
    let is_version = |name: &&str| {
        let version = name.strip_prefix(beginning).and_then(|rest| rest.strip_suffix(end));
        version.is_some_and(|version| version.chars().all(|c| c.is_ascii_digit() || c == '.'))
    };
    names.filter(is_version).max_by_key(|name| numbers(name)).map(String::from)
}

/// The version of a package that would be fetched now.
pub fn version(package: &str) -> Option<String> {
    let mut command = Command::new("apt-cache");
    let output = command.args(["show", "--no-all-versions", package]).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().find_map(|line| line.strip_prefix("Version: ")).map(|version| version.trim().to_owned())
}

/// Brings this machine's lists of packages up to date.
///
/// # Errors
/// That it is not allowed here, or does not work.
pub fn update() -> Result<(), String> {
    if !is_root() {
        return Err("only root may bring the lists of packages up to date".into());
    }
    apt_get(&["update"], Path::new("/"))
}

/// Fetches a package into `folder` without installing it, and returns its file. Lists that are too old name files that
/// are gone; then they are brought up to date.
///
/// # Errors
/// Why it cannot be had.
pub fn fetch(package: &str, folder: &Path) -> Result<PathBuf, String> {
    println!("fetching the package {package}");
    let download = || apt_get(&["download", package], folder);
    download().or_else(|reason| {
        update().map_err(|why| format!("{reason}; {why}"))?;
        download()
    })?;
    let entries = std::fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let files = entries.flatten().map(|entry| entry.path());
    let mut packages = files.filter(|path| path.extension().is_some_and(|extension| extension == "deb"));
    packages.next().ok_or_else(|| format!("apt-get download {package} left no file"))
}

/// Unpacks a fetched package into `folder`.
///
/// # Errors
/// That it is damaged, or the disk is full.
pub fn unpack(package: &Path, folder: &Path) -> Result<(), String> {
    run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(folder))
}

/// Runs a command that must succeed.
///
/// # Errors
/// How it ended.
pub fn run(command: &mut Command) -> Result<(), String> {
    let status = process::run(command)?;
    let name = || command.get_program().to_string_lossy().into_owned();
    if status.success() { Ok(()) } else { Err(format!("{} ended with {status}", name())) }
}

/// Runs apt-get, one at a time: it holds locks for which another one does not wait.
fn apt_get(arguments: &[&str], folder: &Path) -> Result<(), String> {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut command = Command::new("apt-get");
    command.args(["--quiet", "--quiet"]).args(arguments).current_dir(folder);
    let run = run(command.env("DEBIAN_FRONTEND", "noninteractive"));
    run.map_err(|reason| format!("apt-get {}: {reason}", arguments.join(" ")))
}

fn install_missing(programs: &[(&str, &str)], files: &[(&str, &str)]) -> Result<(), String> {
    let missing = || {
        let programs = programs.iter().filter(|(name, _)| program(name).is_none());
        let files = files.iter().filter(|(path, _)| !Path::new(path).exists());
        programs.chain(files).map(|(_, package)| *package).collect::<Vec<_>>()
    };
    let packages = missing();
    if packages.is_empty() {
        return Ok(());
    }
    install(&packages)?;
    let still = missing();
    if still.is_empty() { Ok(()) } else { Err(format!("{} still missing", still.join(" "))) }
}

fn install(packages: &[&str]) -> Result<(), String> {
    let names = packages.join(" ");
    if !runs("apt-get", &["--version"]) {
        return Err(format!("{names} missing, and this machine has no apt-get"));
    }
    if !is_root() {
        return Err(format!("{names} missing, and only root may install packages: apt-get install {names}"));
    }
    say_loudly(&format!("installing {names}"));
    let arguments = [&["install", "-y", "--no-install-recommends"], packages].concat();
    apt_get(&arguments, Path::new("/")).or_else(|_| {
        update()?;
        apt_get(&arguments, Path::new("/"))
    })
}

/// A guest has no libraries when it starts.
fn is_static(busybox: &Path) -> Result<(), String> {
    let output = Command::new("ldd").arg(busybox).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("ldd could not be started: {error}"))?;
    match output.status.success() {
        // It has listed libraries.
        true => Err(format!("{} is not static: install busybox-static", busybox.display())),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_package_is_the_one_with_the_largest_numbers() {
        let names = [
            "linux-image-6.12.99+deb12-amd64",
            "linux-image-6.12.117+deb12-amd64",
            "linux-image-6.12.118+deb12-cloud-amd64",
            "linux-image-6.12.119+deb12-amd64-unsigned",
            "linux-image-6.12-rc1+deb12-amd64",
        ];
        let newest = newest_of(names.into_iter(), "linux-image-6.12.", "+deb12-amd64");
        assert_eq!(newest.as_deref(), Some("linux-image-6.12.117+deb12-amd64"));
        assert_eq!(newest_of(names.into_iter(), "linux-image-6.13.", "+deb12-amd64"), None);
    }

    #[test]
    fn a_program_that_is_nowhere_is_not_found() {
        assert!(program("sh").is_some());
        assert_eq!(program("no-such-program-here"), None);
    }
}
