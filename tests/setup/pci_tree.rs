//! A saved tree of one PCI function, whose BARs are files. What is mapped of it no userfaultfd can watch, as with a real one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use devpagemap::topology::PciAddress;
use devpagemap::{Caching, PciBar};

pub const ADDRESS: &str = "0000:00:04.0";

/// Where BAR 2 is on the bus.
pub const BAR_START: u64 = 0x40_0000_0000;

/// A tree that only one test has, removed at its end.
pub struct PciTree {
    root: PathBuf,
}

impl PciTree {
    /// A function like that of ivshmem: BAR 0 is small, BAR 2 is prefetchable and has 64 bits, BAR 4 is of ports, BAR 5 has no place.
    pub fn new(bar_mib: u64) -> PciTree {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("devpagemap-pci-{}-{number}", std::process::id());
        let tree = PciTree { root: std::env::temp_dir().join(name) };
        fs::create_dir_all(tree.function()).expect("the folder for temporary files is writable");
        let len_bytes = bar_mib << 20;
        let lines = [
            (0xfebf_1000, 0x100, 0x40200),
            (0, 0, 0),
            (BAR_START, len_bytes, 0x14_220c),
            (0, 0, 0),
            (0xc040, 0x20, 0x40101),
            (0, 0x1000, 0x2004_0200),
        ];
        let line = |&(start, len, flags): &(u64, u64, u64)| {
            format!("{start:#018x} {:#018x} {flags:#018x}\n", (start + len).saturating_sub(1))
        };
        tree.write("resource", &lines.iter().map(line).collect::<String>());
        tree.write("enable", "0");
        for name in ["resource2", "resource2_wc"] {
            tree.write(name, "");
            let file = fs::File::options().write(true).open(tree.function().join(name)).expect("it is there");
            file.set_len(len_bytes).expect("a sparse file");
        }
        tree
    }

    fn function(&self) -> PathBuf {
        self.root.join("sys/bus/pci/devices").join(ADDRESS)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.function().join(name);
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a writable folder");
        fs::write(path, text).expect("a writable folder");
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.function().join(name)).expect("it is there")
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.function().join(name)).expect("it is there");
    }

    /// Binds a driver, in place of another.
    pub fn bind(&self, driver: &str) {
        let link = self.function().join("driver");
        let _was_unbound = fs::remove_file(&link);
        symlink(Path::new("../../drivers").join(driver), link).expect("a writable folder");
    }

    pub fn open(&self, index: u8, caching: Caching) -> devpagemap::Result<PciBar> {
        PciBar::open_in(&self.root, address(), index, caching)
    }

    pub fn bar(&self) -> PciBar {
        self.open(2, Caching::WriteCombined).expect("a BAR that can be used")
    }
}

impl Drop for PciTree {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.root).expect("the tree is still there");
    }
}

pub fn address() -> PciAddress {
    ADDRESS.parse().expect("an address")
}
