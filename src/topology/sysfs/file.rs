//! Small files of a tree that changes while it is read, and that somebody may have made by hand.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// No attribute of sysfs is longer than a page; a list of CPUs in `proc` is.
const LONGEST_BYTES: u64 = 16 << 20;

/// Whatever is in a file, or the first part of a long one; `None` when it cannot be read, or is no file.
pub fn bytes(path: &Path) -> Option<Vec<u8>> {
    // Opening a FIFO would wait for a writer.
    fs::metadata(path).ok().filter(|found| found.is_file())?;
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(LONGEST_BYTES).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The text of a file, without what is blank around it.
pub fn text(path: &Path) -> Option<String> {
    String::from_utf8(bytes(path)?).ok().map(|text| text.trim().to_string())
}

/// A number in hexadecimal, with or without `0x`.
pub fn hex(path: &Path) -> Option<u32> {
    let text = text(path)?;
    u32::from_str_radix(text.strip_prefix("0x").unwrap_or(&text), 16).ok()
}

/// The names in a directory, sorted; none when it cannot be read.
pub fn entries(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Where a symbolic link points, as it is written.
pub fn link_of(path: &Path) -> Option<PathBuf> {
    fs::read_link(path).ok()
}
