//! What limits sharing: descriptors, and what udmabuf takes.

use rustix::process::{Resource, getrlimit};
use std::path::Path;
use std::str::FromStr;

/// Limits, as far as the system tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Open files of this process; `None` is no limit.
    pub open_files: Option<u64>,
    /// Up to which this process may raise that itself.
    pub open_files_hard: Option<u64>,
    /// Open files of the whole system: now.
    pub system_files: Option<u64>,
    /// The same: at most.
    pub system_files_max: Option<u64>,
    /// Pieces of memory that udmabuf makes one dma-buf of.
    pub udmabuf_pieces: Option<u64>,
    /// Bytes that it makes one of.
    pub udmabuf_bytes: Option<u64>,
}

impl Limits {
    /// Reads them, of this process and below `root`.
    pub fn read(root: &Path) -> Limits {
        let files = getrlimit(Resource::Nofile);
        let text = std::fs::read_to_string(root.join("proc/sys/fs/file-nr")).unwrap_or_default();
        let mut numbers = text.split_whitespace().map(|word| word.parse().ok());
        let parameters = root.join("sys/module/udmabuf/parameters");
        Limits {
            open_files: files.current,
            open_files_hard: files.maximum,
            system_files: numbers.next().flatten(),
            system_files_max: numbers.nth(1).flatten(),
            udmabuf_pieces: number(&parameters.join("list_limit")),
            udmabuf_bytes: number::<u64>(&parameters.join("size_limit_mb"))
                .map(|mib| mib.saturating_mul(1 << 20)),
        }
    }
}

/// A file with one number in it.
pub fn number<N: FromStr>(path: &Path) -> Option<N> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_where_the_system_tells_them() {
        let root = std::env::temp_dir().join(format!("devpagemap-limits-{}", std::process::id()));
        let parameters = root.join("sys/module/udmabuf/parameters");
        std::fs::create_dir_all(&parameters).unwrap();
        std::fs::create_dir_all(root.join("proc/sys/fs")).unwrap();
        std::fs::write(root.join("proc/sys/fs/file-nr"), "1216\t0\t98765\n").unwrap();
        std::fs::write(parameters.join("list_limit"), "1024\n").unwrap();
        std::fs::write(parameters.join("size_limit_mb"), "64\n").unwrap();
        let limits = Limits::read(&root);
        assert_eq!((limits.system_files, limits.system_files_max), (Some(1216), Some(98_765)));
        assert_eq!((limits.udmabuf_pieces, limits.udmabuf_bytes), (Some(1024), Some(64 << 20)));
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(Limits::read(&root).udmabuf_bytes, None);
    }
}
