//! What there is on this kernel, and what to do where it is not.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use drm::Device as _;

/// Names of things that must be there, with commas between them: in guests.
const REQUIRED: &str = "DEVPAGEMAP_KERNEL_REQUIRED";
/// Which guest this is: the kernel and the processor.
const GUEST: &str = "DEVPAGEMAP_KERNEL_GUEST";

/// What a test may need of the kernel and of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thing {
    /// A DRM node of the driver `vgem`.
    Vgem,
    /// One of `virtio_gpu`.
    VirtioGpu,
    /// One of `vkms`.
    Vkms,
    /// One of `bochs-drm`.
    Bochs,
    /// One of `qxl`.
    Qxl,
    /// `/dev/udmabuf`.
    Udmabuf,
    /// `/dev/dma_heap/system`.
    DmaHeap,
    /// `/sys/kernel/debug/sync/sw_sync`.
    SwSync,
    /// `/sys/kernel/debug/dma_buf/bufinfo`: the kernel's list of dma-bufs.
    DmaBufList,
    /// A PCI function of `ivshmem`, whose BAR 2 is memory.
    Ivshmem,
    /// That BAR, mapped write-combined.
    IvshmemWriteCombined,
    /// An NVMe drive.
    Nvme,
    /// Memory of a PCI function that the kernel lends to peers (`p2pmem`).
    PeerMemory,
    /// libgbm, and a driver of Mesa's for a node.
    Gbm,
    /// Filters for a thread's own calls.
    Seccomp,
}

/// What there is of a thing.
type Look = Result<(), String>;

impl Thing {
    /// All of them.
    pub const ALL: [Thing; 15] = [
        Thing::Vgem,
        Thing::VirtioGpu,
        Thing::Vkms,
        Thing::Bochs,
        Thing::Qxl,
        Thing::Udmabuf,
        Thing::DmaHeap,
        Thing::SwSync,
        Thing::DmaBufList,
        Thing::Ivshmem,
        Thing::IvshmemWriteCombined,
        Thing::Nvme,
        Thing::PeerMemory,
        Thing::Gbm,
        Thing::Seccomp,
    ];

    /// How it is called in the list of what must be there.
    pub fn name(self) -> &'static str {
        match self {
            Thing::Vgem => "vgem",
            Thing::VirtioGpu => "virtio-gpu",
            Thing::Vkms => "vkms",
            Thing::Bochs => "bochs",
            Thing::Qxl => "qxl",
            Thing::Udmabuf => "udmabuf",
            Thing::DmaHeap => "dma-heap",
            Thing::SwSync => "sw-sync",
            Thing::DmaBufList => "dma-buf-list",
            Thing::Ivshmem => "ivshmem",
            Thing::IvshmemWriteCombined => "ivshmem-wc",
            Thing::Nvme => "nvme",
            Thing::PeerMemory => "p2pmem",
            Thing::Gbm => "gbm",
            Thing::Seccomp => "seccomp",
        }
    }

    /// Whether it is there and may be used; why not.
    pub fn look(self) -> Look {
        match self {
            Thing::Vgem => node("vgem").map(drop),
            Thing::VirtioGpu => node("virtio_gpu").map(drop),
            Thing::Vkms => node("vkms").map(drop),
            Thing::Bochs => node("bochs-drm").map(drop),
            Thing::Qxl => node("qxl").map(drop),
            Thing::Udmabuf => writable("/dev/udmabuf"),
            Thing::DmaHeap => writable("/dev/dma_heap/system"),
            Thing::SwSync => writable("/sys/kernel/debug/sync/sw_sync"),
            Thing::DmaBufList => readable("/sys/kernel/debug/dma_buf/bufinfo"),
            Thing::Ivshmem => writable(ivshmem()?.join("resource2")),
            Thing::IvshmemWriteCombined => writable(ivshmem()?.join("resource2_wc")),
            Thing::Nvme => writable(drive()?),
            Thing::PeerMemory => writable(peer_memory()?.join("p2pmem/allocate")),
            Thing::Gbm => images(),
            Thing::Seccomp => crate::refusing::look(),
        }
    }
}

/// Whether everything that a test needs is there. Where it is not, this says so, and the test is to end; in a guest that
/// must have it, this panics.
#[track_caller]
pub fn need(things: &[Thing]) -> bool {
    let missing = things.iter().filter_map(|thing| Some((thing, thing.look().err()?)));
    let missing: Vec<_> = missing.collect();
    for (thing, reason) in &missing {
        assert!(!is_required(**thing), "{}, which must be here, is not: {reason}", thing.name());
        say_loudly(&format!("skipped: no {} here: {reason}", thing.name()));
    }
    missing.is_empty()
}

/// Prints what nobody may miss, past libtest, which keeps what a test prints to itself.
pub fn say_loudly(what: &str) {
    let line = format!("\n*** {what} ***\n");
    std::io::stderr().write_all(line.as_bytes()).expect("standard error is open");
}

/// Whether this guest must have it.
pub fn is_required(thing: Thing) -> bool {
    required().contains(&thing.name().to_owned())
}

/// The names of what must be there.
pub fn required() -> Vec<String> {
    let list = std::env::var(REQUIRED).unwrap_or_default();
    list.split(',').filter(|name| !name.is_empty()).map(String::from).collect()
}

/// A guest of `cargo xtask vm`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// `stock`: Debian's kernel; `own`: built from its source with what that switches off.
    pub kernel: String,
    /// QEMU's name of the processor: `max`, `EPYC`.
    pub processor: String,
}

/// The guest that this is; `None` on other machines.
pub fn guest() -> Option<Guest> {
    let name = std::env::var(GUEST).ok()?;
    let (kernel, processor) = name.split_once(',').expect("a kernel and a processor");
    Some(Guest { kernel: kernel.into(), processor: processor.into() })
}

/// A DRM node, for looking at it.
#[derive(Debug)]
pub struct Node(File);

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl drm::Device for Node {}

/// The primary node of a driver. Numbers of cards depend on who came first, so it is found by its driver's name.
///
/// # Errors
/// That there is none, or that it may not be opened.
pub fn node(driver: &str) -> Result<PathBuf, String> {
    static NODES: OnceLock<Vec<(PathBuf, Result<String, String>)>> = OnceLock::new();
    let nodes = NODES.get_or_init(|| {
        let cards = entries("/dev/dri").into_iter().filter(|path| file_name(path).starts_with("card"));
        cards.map(|path| (driver_of(&path), path)).map(|(driver, path)| (path, driver)).collect()
    });
    let found = nodes.iter().find(|(_, name)| name.as_deref() == Ok(driver));
    let (path, _) = found.ok_or_else(|| {
        let closed = nodes.iter().filter_map(|(_, name)| name.clone().err());
        let closed: String = closed.map(|reason| format!(", {reason}")).collect();
        format!("no node of the driver {driver}{closed}")
    })?;
    Ok(path.clone())
}

fn driver_of(path: &Path) -> Result<String, String> {
    let file = File::options().read(true).write(true).open(path);
    let node = Node(file.map_err(|error| format!("{}: {error}", path.display()))?);
    let driver = node.get_driver().map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(driver.name().to_string_lossy().into_owned())
}

/// The PCI function of an `ivshmem` device, in sysfs.
///
/// # Errors
/// That there is none.
pub fn ivshmem() -> Result<PathBuf, String> {
    let is_it = |path: &PathBuf| {
        let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap_or_default();
        read("vendor").trim() == "0x1af4" && read("device").trim() == "0x1110"
    };
    pci_function(is_it).ok_or_else(|| "no PCI function 1af4:1110".to_owned())
}

/// The PCI function that lends memory to peers, in sysfs.
///
/// # Errors
/// That there is none.
pub fn peer_memory() -> Result<PathBuf, String> {
    let function = pci_function(|path| path.join("p2pmem/allocate").exists());
    function.ok_or_else(|| "no PCI function has p2pmem/allocate".to_owned())
}

fn pci_function(is_it: impl Fn(&PathBuf) -> bool) -> Option<PathBuf> {
    entries("/sys/bus/pci/devices").into_iter().find(is_it)
}

/// Whether libgbm has a driver for the node of `virtio_gpu`.
#[cfg(feature = "gbm")]
fn images() -> Look {
    let path = node("virtio_gpu")?;
    let failed = |error| format!("libgbm with {}: {error}", path.display());
    let file = File::options().read(true).write(true).open(&path).map_err(failed)?;
    gbm::Device::new(file).map(drop).map_err(failed)
}

#[cfg(not(feature = "gbm"))]
fn images() -> Look {
    Err("built without the feature gbm".to_owned())
}

/// The block device of the first NVMe drive.
fn drive() -> Result<PathBuf, String> {
    let mut drives = entries("/dev").into_iter();
    let is_drive = |path: &PathBuf| file_name(path).starts_with("nvme") && file_name(path).ends_with("n1");
    drives.find(is_drive).ok_or_else(|| "no /dev/nvme*n1".to_owned())
}

fn entries(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn writable(path: impl AsRef<Path>) -> Look {
    opened(File::options().read(true).write(true).open(&path), path.as_ref())
}

fn readable(path: impl AsRef<Path>) -> Look {
    opened(File::open(&path), path.as_ref())
}

fn opened(file: std::io::Result<File>, path: &Path) -> Look {
    file.map(drop).map_err(|error| format!("{}: {error}", path.display()))
}
