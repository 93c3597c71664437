//! The archive that a kernel unpacks into its first file system: the "new ASCII" form of cpio, written in memory.

use std::collections::BTreeSet;
use std::path::{Component, Path};

/// The file's type in its mode, as `stat` has it.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An archive in the making.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    folders: BTreeSet<String>,
}

impl Archive {
    /// Adds a file and the folders above it. `path` is from the root, without its slash.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        if let Some(folder) = Path::new(path).parent() {
            self.folder(&folder.to_string_lossy());
        }
        self.entry(path, REGULAR | permissions, content);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.entry(path, LINK | 0o777, target.as_bytes());
    }

    /// Adds a folder and those above it, unless they are there.
    pub fn folder(&mut self, path: &str) {
        let mut above = String::new();
        for component in Path::new(path).components() {
            let Component::Normal(name) = component else { continue };
            if !above.is_empty() {
                above.push('/');
            }
            above.push_str(&name.to_string_lossy());
            if self.folders.insert(above.clone()) {
                self.entry(&above, DIRECTORY | 0o755, &[]);
            }
        }
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let links = if mode & 0o170_000 == DIRECTORY { 2 } else { 1 };
        let len = |bytes: usize| u32::try_from(bytes).expect("an entry of the archive is below 4 GiB");
        // Inode, mode, user, group, links, time, size, four device numbers, the name's length with its zero, no checksum.
        let fields =
            [self.entries, mode, 0, 0, links, 0, len(content.len()), 0, 0, 0, 0, len(path.len() + 1), 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(mut archive: &[u8]) -> Vec<String> {
        let mut names = Vec::new();
        while archive.len() >= 110 {
            let field = |index: usize| {
                let digits = std::str::from_utf8(&archive[6 + 8 * index..14 + 8 * index]).unwrap();
                usize::from_str_radix(digits, 16).unwrap()
            };
            assert_eq!(&archive[..6], b"070701");
            let (content_len, name_len) = (field(6), field(11));
            names.push(String::from_utf8(archive[110..110 + name_len - 1].to_vec()).unwrap());
            let content = (110 + name_len).next_multiple_of(4);
            archive = &archive[(content + content_len).next_multiple_of(4)..];
        }
        names
    }

    #[test]
    fn folders_come_before_what_is_in_them_and_once() {
        let mut archive = Archive::default();
        archive.file("usr/lib/a", 0o644, b"12345");
        archive.file("usr/lib/b", 0o644, b"");
        assert_eq!(names(&archive.finish()), ["usr", "usr/lib", "usr/lib/a", "usr/lib/b", "TRAILER!!!"]);
    }
}
