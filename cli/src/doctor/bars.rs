//! Memory of PCI functions: BARs that could be a prototype's video memory, and what the kernel lends to peers.

use super::limits::number;
use rustix::fs::{Access, access};
use std::path::{Path, PathBuf};

/// A smaller BAR holds registers.
const SMALLEST_BYTES: u64 = 1 << 20;
/// `IORESOURCE_MEM` and `IORESOURCE_PREFETCH`.
const MEMORY: u64 = 0x200;
const PREFETCHABLE: u64 = 0x2000;
/// A function has six; what follows is its ROM, and windows of bridges.
const BARS: usize = 6;

/// A BAR of memory that can be read without consequences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BarFound {
    /// The function's address.
    pub device: String,
    /// Which BAR.
    pub number: usize,
    /// How large it is.
    pub len_bytes: u64,
    /// Who has the function; nobody, then it can be taken.
    pub driver: Option<String>,
    /// The file that it is mapped through.
    pub path: PathBuf,
    /// Whether there is a second one, through which writes are combined.
    pub write_combined: bool,
    /// Whether this process may map it for writing.
    pub permitted: bool,
}

/// A function's memory that the kernel lends to peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerMemory {
    /// The function's address.
    pub device: String,
    /// How much there is.
    pub size_bytes: Option<u64>,
    /// How much of it is not lent.
    pub available_bytes: Option<u64>,
    /// Whether other drivers may use it.
    pub published: bool,
    /// Whether this process may map some of it: the kernel must be 6.2 or newer, and permit it.
    pub permitted: bool,
}

/// All of them, below `root`.
pub fn bars(root: &Path) -> Vec<BarFound> {
    functions(root).iter().flat_map(|function| bars_of(function)).collect()
}

/// The same.
pub fn peer_memory(root: &Path) -> Vec<PeerMemory> {
    let functions = functions(root).into_iter().filter(|function| function.join("p2pmem").is_dir());
    let of = |function: PathBuf| {
        let file = |name: &str| function.join("p2pmem").join(name);
        PeerMemory {
            device: name(&function),
            size_bytes: number(&file("size")),
            available_bytes: number(&file("available")),
            published: number::<u8>(&file("published")) == Some(1),
            permitted: is_writable(&file("allocate")),
        }
    };
    functions.map(of).collect()
}

fn functions(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root.join("sys/bus/pci/devices")).into_iter().flatten().flatten();
    let mut functions: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    functions.sort();
    functions
}

fn bars_of(function: &Path) -> Vec<BarFound> {
    let text = std::fs::read_to_string(function.join("resource")).unwrap_or_default();
    let driver = std::fs::canonicalize(function.join("driver")).ok().map(|path| name(&path));
    let bar = |(number, line): (usize, &str)| {
        let len_bytes = prefetchable_bytes(line).filter(|bytes| *bytes >= SMALLEST_BYTES)?;
        let path = function.join(format!("resource{number}"));
        let write_combined = function.join(format!("resource{number}_wc")).exists();
        let permitted = is_writable(&path);
        let (device, driver) = (name(function), driver.clone());
        Some(BarFound { device, number, len_bytes, driver, path, write_combined, permitted })
    };
    text.lines().take(BARS).enumerate().filter_map(bar).collect()
}

/// The size in a line of `resource`, `start end flags`, if it is memory that may be prefetched.
fn prefetchable_bytes(line: &str) -> Option<u64> {
    let mut numbers = line.split_whitespace().map(|word| {
        let digits = word.strip_prefix("0x")?;
        u64::from_str_radix(digits, 16).ok()
    });
    let (start, end, flags) = (numbers.next()??, numbers.next()??, numbers.next()??);
    let wanted = MEMORY | PREFETCHABLE;
    (flags & wanted == wanted && end > start).then(|| end - start + 1)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn is_writable(path: &Path) -> bool {
    access(path, Access::READ_OK | Access::WRITE_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, remove_dir_all, write};

    /// A virtual machine's shared memory (no driver), a GPU (a driver), a drive that lends memory.
    fn machine() -> PathBuf {
        let root = std::env::temp_dir().join(format!("devpagemap-bars-{}", std::process::id()));
        let devices = root.join("sys/bus/pci/devices");
        let function = |address: &str, resources: &str| {
            create_dir_all(devices.join(address)).unwrap();
            write(devices.join(address).join("resource"), resources).unwrap();
        };
        let registers = "0x00000000fe000000 0x00000000fe0000ff 0x0000000000040200\n";
        let none = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n";
        let shared = "0x0000008000000000 0x000000801fffffff 0x000000000014220c\n";
        function("0000:00:03.0", &format!("{registers}{none}{shared}"));
        for file in ["resource2", "resource2_wc"] {
            write(devices.join("0000:00:03.0").join(file), "").unwrap();
        }
        function("0000:01:00.0", shared);
        create_dir_all(root.join("sys/bus/pci/drivers/amdgpu")).unwrap();
        std::os::unix::fs::symlink(
            root.join("sys/bus/pci/drivers/amdgpu"),
            devices.join("0000:01:00.0/driver"),
        )
        .unwrap();
        function("0000:02:00.0", "this is no resource\n");
        create_dir_all(devices.join("0000:02:00.0/p2pmem")).unwrap();
        for (file, text) in [("size", "67108864\n"), ("available", "67104768\n"), ("published", "1\n")] {
            write(devices.join("0000:02:00.0/p2pmem").join(file), text).unwrap();
        }
        root
    }

    #[test]
    fn large_prefetchable_bars_are_found_with_who_has_them() {
        let root = machine();
        let (found, lent) = (bars(&root), peer_memory(&root));
        remove_dir_all(&root).unwrap();
        let [shared, gpu] = &found[..] else { panic!("{found:?}") };
        assert_eq!((shared.device.as_str(), shared.number, shared.len_bytes), ("0000:00:03.0", 2, 512 << 20));
        assert!(shared.driver.is_none() && shared.write_combined && shared.permitted);
        assert_eq!((gpu.number, gpu.driver.as_deref()), (0, Some("amdgpu")));
        assert!(!gpu.write_combined && !gpu.permitted, "there is no file to map it through");
        let [memory] = &lent[..] else { panic!("{lent:?}") };
        assert_eq!((memory.size_bytes, memory.available_bytes), (Some(67_108_864), Some(67_104_768)));
        assert!(memory.published && !memory.permitted);
    }
}
