//! The first file system of a guest: busybox, the kernel's modules, the programs with their libraries, and what the
//! guest is told. It is not compressed: an emulated processor copies faster than it unpacks.

use super::Kernel;
use super::cpio::Archive;
use super::packages;
use super::programs::Programs;
use std::fs;
use std::path::{Path, PathBuf};

/// The first process.
const INIT: &str = include_str!("../../vm/init");

/// What one run tells its guest.
pub struct Orders {
    /// Stands in the closing line, so that no other line can be taken for it.
    pub token: String,
    /// Parts of names: tests that have one of them are run, all without any; but not those with what stands behind `--skip`.
    pub filter: String,
    /// Which guest it is, for tests that expect something of it.
    pub guest: String,
    /// What must be there.
    pub required: String,
    /// How large the main replay on a PCI device is, as `1/N`.
    pub scale: String,
    /// How many drives there are.
    pub drives: usize,
    /// A folder of the host that the guest has at the same place.
    pub shared: Option<PathBuf>,
}

impl Orders {
    fn script(&self) -> String {
        let filter: Vec<String> = self.filter.split_whitespace().map(quoted).collect();
        let filter = filter.join(" ");
        let lines = [
            format!("TOKEN={}", quoted(&self.token)),
            format!("DRIVES={}", self.drives),
            format!(
                "SHARED={}",
                self.shared.as_deref().map(|path| quoted(&path.to_string_lossy())).unwrap_or_default()
            ),
            // One at a time: the last name in the log of a kernel that died is the test that killed it.
            format!("set -- --test-threads=1 {filter}"),
            format!("export DEVPAGEMAP_KERNEL_GUEST={}", quoted(&self.guest)),
            format!("export DEVPAGEMAP_KERNEL_REQUIRED={}", quoted(&self.required)),
            "export DEVPAGEMAP_COMMAND=/bin/devpagemap".to_owned(),
            format!("export DEVPAGEMAP_REPLAY_SCALE={}", quoted(&self.scale)),
        ];
        lines.join("\n") + "\n"
    }
}

/// The archive for one run.
///
/// # Errors
/// What could not be read.
pub fn archive(kernel: &Kernel, programs: &Programs, orders: &Orders) -> Result<Vec<u8>, String> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "tmp", "root", "bin", "sbin"] {
        archive.folder(folder);
    }
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("etc/guest", 0o644, orders.script().as_bytes());
    let busybox = packages::program("busybox").ok_or("there is no busybox")?;
    archive.file("bin/busybox", 0o755, &read(&busybox)?);
    archive.file("bin/kernel-tests", 0o755, &read(&programs.tests)?);
    archive.file("bin/devpagemap", 0o755, &read(&programs.command)?);
    for folder in ["lib", "lib64"] {
        // On most systems these are links into /usr by now.
        if let Ok(target) = fs::read_link(Path::new("/").join(folder)) {
            archive.link(folder, &target.to_string_lossy());
        }
    }
    for library in &programs.libraries {
        archive.file(library.to_string_lossy().trim_start_matches('/'), 0o755, &read(library)?);
    }
    let mut order = String::new();
    for module in &kernel.modules {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("modules/{name}"), 0o644, &read(module)?);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("etc/modules", 0o644, order.as_bytes());
    Ok(archive.finish())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// A word as the shell takes it, whatever is in it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_one_word_in_the_shell() {
        let word = "it's $HOME; `ls` \"x\"";
        let output =
            std::process::Command::new("sh").args(["-c", &format!("printf %s {}", quoted(word))]).output();
        assert_eq!(String::from_utf8_lossy(&output.unwrap().stdout), word);
    }
}
