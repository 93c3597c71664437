//! Debian's own kernel, out of its package. It is never installed: its image and the few modules that the tests need
//! are kept, unpacked and in the order in which they are to be loaded.

use super::cache::Cache;
use super::packages;
use super::{Kernel, Unready};
use crate::setup::say_loudly;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// What the name of its package begins with, and ends with.
const PACKAGE: (&str, &str) = ("linux-image-6.12.", "+deb12-amd64");
/// The drivers that guests have, and with which they see folders of the host. What they need is found out.
const DRIVERS: [&str; 7] = ["vgem", "virtio-gpu", "bochs", "qxl", "nvme", "9p", "9pnet_virtio"];

/// The newest one that can be had; fetched when it is not in the cache.
///
/// # Errors
/// Why there is none.
pub fn get(cache: &Cache) -> Result<Kernel, Unready> {
    let package = match newest_package() {
        Ok(package) => package,
        Err(reason) => {
            let cached = cache.entries("stock-").pop();
            let name = cached.ok_or_else(|| Unready::Missing(reason.clone()))?;
            say_loudly(&format!("{reason}: taking {name} of the cache"));
            return kernel(&cache.dir().join(name));
        }
    };
    // A changed set of drivers makes another entry.
    let version = packages::version(&package).ok_or_else(|| format!("{package} has no version"))?;
    let name = format!("stock-{version}-{}", DRIVERS.join("-"));
    let dir = cache.get_or_make(&name, |dir| fill(cache, &package, dir))?;
    kernel(&dir)
}

/// The newest package that this machine's lists have, after an update of lists that have none.
fn newest_package() -> Result<String, String> {
    let newest = || packages::newest(PACKAGE.0, PACKAGE.1);
    if let Some(package) = newest() {
        return Ok(package);
    }
    packages::update()?;
    newest().ok_or_else(|| format!("this machine's lists have no package {}*{}", PACKAGE.0, PACKAGE.1))
}

/// Fills an entry of the cache: `vmlinuz`, `version`, `order` (a module a line) and `modules/`.
fn fill(cache: &Cache, package: &str, dir: &Path) -> Result<(), Unready> {
    let scratch = cache.scratch("fetching")?;
    let fetched = packages::fetch(package, scratch.path()).map_err(Unready::Missing)?;
    let root = scratch.path().join("root");
    packages::unpack(&fetched, &root)?;
    let release = package.trim_start_matches("linux-image-");
    copy(&root.join(format!("boot/vmlinuz-{release}")), &dir.join("vmlinuz"))?;
    let run = |program: &str| Command::new(packages::program(program).unwrap_or_else(|| program.into()));
    packages::run(run("depmod").arg("-b").arg(&root).arg(release))?;
    let modules = dir.join("modules");
    fs::create_dir(&modules).map_err(|error| format!("{}: {error}", modules.display()))?;
    let mut order: Vec<String> = Vec::new();
    for driver in DRIVERS {
        let mut command = run("modprobe");
        command.arg("-d").arg(&root).args(["-S", release, "--show-depends", driver]).stdin(Stdio::null());
        let output = command.output().map_err(|error| format!("modprobe could not be started: {error}"))?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Unready::Broken(format!("{package} has no module {driver}: {reason}")));
        }
        for path in String::from_utf8_lossy(&output.stdout).lines().filter_map(module_of) {
            let name = unpack_module(Path::new(path), &modules)?;
            if !order.contains(&name) {
                order.push(name);
            }
        }
    }
    write(&dir.join("order"), &(order.join("\n") + "\n"))?;
    Ok(write(&dir.join("version"), release)?)
}

/// The file in a line of `modprobe --show-depends`; `None` for what is built in.
fn module_of(line: &str) -> Option<&str> {
    Some(line.strip_prefix("insmod ")?.trim())
}

/// Unpacks one module, and returns its file's name.
fn unpack_module(path: &Path, modules: &Path) -> Result<String, String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some(plain) = name.strip_suffix(".xz") else {
        copy(path, &modules.join(&name))?;
        return Ok(name);
    };
    let target = modules.join(plain);
    let file = fs::File::create(&target).map_err(|error| format!("{}: {error}", target.display()))?;
    packages::run(Command::new("xz").args(["--decompress", "--stdout"]).arg(path).stdout(file))?;
    Ok(plain.to_owned())
}

fn kernel(dir: &Path) -> Result<Kernel, Unready> {
    let read = |name: &str| {
        let path = dir.join(name);
        fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let modules = read("order")?.lines().map(|name| dir.join("modules").join(name)).collect();
    Ok(Kernel { name: "stock", version: read("version")?, image: dir.join("vmlinuz"), modules })
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to).map(|_| ()).map_err(|error| format!("{}: {error}", from.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_drivers_have_no_file() {
        assert_eq!(
            module_of("insmod /r/lib/modules/6/kernel/vgem.ko.xz "),
            Some("/r/lib/modules/6/kernel/vgem.ko.xz")
        );
        assert_eq!(module_of("builtin udmabuf"), None);
    }
}
