//! Directories of a test, which go with it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory that is removed when it is dropped.
pub struct Tree {
    path: PathBuf,
}

impl Tree {
    pub fn new() -> Tree {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("devpagemap-sysfs-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a directory for the test");
        Tree { path }
    }

    /// A tree with `sys/devices` and the table of a CPU.
    pub fn with_cpu(vendor: &str, family: u32) -> Tree {
        let tree = Tree::new();
        fs::create_dir_all(tree.path.join("sys/devices")).expect("a directory");
        let cpu = format!("processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: 1\n");
        tree.write("proc/cpuinfo", cpu.as_bytes());
        tree
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path.join(name);
        fs::create_dir_all(path.parent().expect("a file is in a directory")).expect("its directory");
        fs::write(path, bytes).expect("a file");
    }

    /// A NUMA node with its CPUs, all of one package.
    pub fn numa(&self, node: u32, package: u32, cpus: std::ops::Range<u32>) {
        let list = format!("{}-{}\n", cpus.start, cpus.end - 1);
        self.write(&format!("sys/devices/system/node/node{node}/cpulist"), list.as_bytes());
        for cpu in cpus {
            let file = format!("sys/devices/system/cpu/cpu{cpu}/topology/physical_package_id");
            self.write(&file, format!("{package}\n").as_bytes());
        }
    }

    /// A PCI function, whose way down is `way`, such as `pci0000:00/0000:00:01.0`. Returns its directory.
    pub fn function(&self, way: &str, class: u32, ids: (u16, u16)) -> String {
        let dir = format!("sys/devices/{way}");
        self.write(&format!("{dir}/class"), format!("0x{class:06x}\n").as_bytes());
        self.write(&format!("{dir}/vendor"), format!("0x{:04x}\n", ids.0).as_bytes());
        self.write(&format!("{dir}/device"), format!("0x{:04x}\n", ids.1).as_bytes());
        let devices = self.path.join("sys/bus/pci/devices");
        fs::create_dir_all(&devices).expect("a directory");
        let name = way.rsplit('/').next().expect("a way has a last step");
        symlink(format!("../../../devices/{way}"), devices.join(name)).expect("a link");
        dir
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // A directory that stays behind is no reason to fail a test that has passed.
        let _ = fs::remove_dir_all(&self.path);
    }
}
