//! What of this process belongs to devices: their threads, their files, their mappings.

use std::fs;

/// What is left of devices. All zero when none is alive.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Rings, copy engines and watchdogs.
    pub threads: usize,
    /// Open files that are memory of devices.
    pub memfds: usize,
    /// What CPU maps need: a userfaultfd.
    pub userfaultfds: usize,
    /// Mappings of the memory.
    pub mappings: usize,
}

pub fn take() -> Census {
    let names = entries("/proc/self/task").filter_map(|task| fs::read_to_string(task.join("comm")).ok());
    let ours = |name: &String| ["gfx", "sdma", "devpagemap"].iter().any(|prefix| name.starts_with(prefix));
    let files: Vec<_> = entries("/proc/self/fd").filter_map(|file| fs::read_link(file).ok()).collect();
    let open = |name: &str| files.iter().filter(|file| file.to_string_lossy().contains(name)).count();
    let maps = fs::read_to_string("/proc/self/maps").expect("a process has maps");
    Census {
        threads: names.filter(ours).count(),
        memfds: open("memfd:devpagemap"),
        userfaultfds: open("[userfaultfd]"),
        mappings: maps.lines().filter(|line| line.contains("memfd:devpagemap")).count(),
    }
}

/// A thread or a file may be gone before it is looked at.
fn entries(directory: &str) -> impl Iterator<Item = std::path::PathBuf> {
    fs::read_dir(directory).expect("proc is mounted").flatten().map(|entry| entry.path())
}
