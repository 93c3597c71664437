//! What the machine must have, and what it may have. What is missing is said loudly, never passed over.

use crate::cargo::{cargo, root};
use crate::process;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Prints what nobody may miss.
pub fn say_loudly(what: &str) {
    println!("\n*** {what} ***\n");
}

/// Sees to it that there is a C compiler. Rust needs one to link, and a dependency of the loom models builds with it
/// on some machines. Whether it is there now shows in the first build; this only tries to help.
pub fn need_a_c_compiler() {
    if runs("cc", &["--version"]) {
        return;
    }
    if !runs("apt-get", &["--version"]) || !is_root() {
        say_loudly(
            "there is no C compiler (cc): install gcc and libc6-dev, nothing can be linked without them",
        );
        return;
    }
    say_loudly("there is no C compiler (cc): installing gcc and libc6-dev");
    let install = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        process::run(command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    let updated = install(&["update"]);
    let installed = install(&["install", "-y", "--no-install-recommends", "gcc", "libc6-dev"]);
    if !installed.is_ok_and(|status| status.success()) {
        say_loudly(&format!("gcc could not be installed (apt-get update: {updated:?})"));
    }
}

/// Whether this cargo has the component behind `cargo <subcommand>`; says so loudly if not.
pub fn has_component(subcommand: &str, component: &str) -> Result<(), String> {
    let mut command = cargo(&[subcommand, "--version"]);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if status.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    let reason = format!("the toolchain has no {component} (rustup component add {component})");
    say_loudly(&format!("{reason}: this check is skipped"));
    Err(reason)
}

/// The folder with libgbm and the driver of Mesa's that serves a device without a driver of its own.
///
/// # Errors
/// What is missing.
pub fn image_libraries() -> Result<PathBuf, String> {
    let output = Command::new("cc").arg("-print-file-name=libgbm.so").stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("cc could not be started: {error}"))?;
    // The compiler prints a name without a folder for what it does not find.
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let folder = path.parent().filter(|folder| folder.is_absolute());
    let folder = folder.and_then(|folder| folder.canonicalize().ok()).ok_or("no libgbm.so (libgbm-dev)")?;
    let driver = folder.join("dri/kms_swrast_dri.so");
    if driver.exists() { Ok(folder) } else { Err(format!("no {} (libgl1-mesa-dri)", driver.display())) }
}

/// What cargo is told of features, so that everything that this machine can link is built and tested.
pub fn features() -> &'static [&'static str] {
    if image_libraries().is_ok() { &["--features", "devpagemap/gbm"] } else { &[] }
}

/// The recordings that tests replay.
///
/// # Errors
/// Why there are none.
pub fn recordings() -> Result<PathBuf, String> {
    let (dir, origin) = match std::env::var_os("DEVPAGEMAP_TRACES") {
        Some(dir) => (PathBuf::from(dir), "DEVPAGEMAP_TRACES"),
        None => (root().join("../shared/traces"), "beside the checkout; DEVPAGEMAP_TRACES is not set"),
    };
    if dir.is_dir() { Ok(dir) } else { Err(format!("no directory {} ({origin})", dir.display())) }
}

/// Whether a program runs well with these arguments.
pub fn runs(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    let status =
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Whether packages may be installed.
pub fn is_root() -> bool {
    let id = Command::new("id").arg("-u").stdin(Stdio::null()).output();
    id.is_ok_and(|id| id.stdout.trim_ascii() == b"0")
}
