//! What of this process belongs to devices: their threads, their files, their mappings.

use std::fs;

/// What is left of devices. All zero when none is alive.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Rings, copy engines and watchdogs.
    pub threads: usize,
    /// Open files that are VRAM.
    pub memfds: usize,
    /// Mappings of those.
    pub mappings: usize,
}

pub fn take() -> Census {
    let names = entries("/proc/self/task").filter_map(|task| fs::read_to_string(task.join("comm")).ok());
    let ours = |name: &String| ["gfx", "sdma", "devpagemap"].iter().any(|prefix| name.starts_with(prefix));
    let files = entries("/proc/self/fd").filter_map(|file| fs::read_link(file).ok());
    let maps = fs::read_to_string("/proc/self/maps").expect("a process has maps");
    Census {
        threads: names.filter(ours).count(),
        memfds: files.filter(|file| file.to_string_lossy().contains("devpagemap")).count(),
        mappings: maps.lines().filter(|line| line.contains("devpagemap-vram")).count(),
    }
}

/// A thread or a file may be gone before it is looked at.
fn entries(directory: &str) -> impl Iterator<Item = std::path::PathBuf> {
    fs::read_dir(directory).expect("proc is mounted").flatten().map(|entry| entry.path())
}
