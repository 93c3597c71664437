//! Outside pages for tests and models: a memfd instead of somebody else's dma-buf.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
#[cfg(test)]
use std::{
    fs::{File, read_to_string},
    os::unix::fs::FileExt,
};

use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};

use super::{OutsideFile, OutsideMemory, OutsideRole};
use crate::import::Foreign;

/// A file in memory that others could have too.
pub(crate) struct MemfdPages {
    file: Arc<OwnedFd>,
    #[cfg(test)]
    name: String,
    len_bytes: u64,
}

impl MemfdPages {
    pub(crate) fn new(len_bytes: u64) -> MemfdPages {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("outside-test-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let file = memfd_create(name.as_str(), MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&file, len_bytes).expect("its size");
        MemfdPages {
            file: Arc::new(file),
            #[cfg(test)]
            name,
            len_bytes,
        }
    }

    /// To be mapped as pages of an export. `keep` is dropped with them.
    pub(crate) fn exported(&self, keep: impl Send + Sync + 'static) -> OutsideMemory {
        OutsideMemory {
            file: OutsideFile::Plain(self.file.clone()),
            len_bytes: self.len_bytes,
            writable: true,
            role: OutsideRole::Exported,
            keep: Box::new(keep),
        }
    }

    /// As somebody else's bytes.
    pub(crate) fn foreign(&self, writable: bool) -> Foreign {
        let inode = fstat(&self.file).expect("it is open").st_ino;
        Foreign { file: OutsideFile::Plain(self.file.clone()), inode, len_bytes: self.len_bytes, writable }
    }
}

#[cfg(test)]
impl MemfdPages {
    /// What others see.
    pub(crate) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.as_file().read_exact_at(&mut bytes, offset).expect("it is as long");
        bytes
    }

    /// What others do.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        self.as_file().write_all_at(bytes, offset).expect("it is as long");
    }

    /// How often this process has a part of it mapped.
    pub(crate) fn mappings(&self) -> usize {
        let maps = read_to_string("/proc/self/maps").expect("procfs");
        let end = format!("/memfd:{} (deleted)", self.name);
        maps.lines().filter(|line| line.ends_with(&end)).count()
    }

    fn as_file(&self) -> File {
        self.file.try_clone().expect("another descriptor").into()
    }
}
