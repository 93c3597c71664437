//! A BAR, mapped for the CPU.
//!
//! ```text
//!   /sys/bus/pci/devices/0000:00:04.0/
//!     resource        where its BARs are, how long, and of what
//!     resource2       BAR 2: every access goes to the device
//!     resource2_wc    BAR 2: writes are gathered into lines        only if it is prefetchable, and the kernel has PAT or MTRRs
//!     enable          whether it answers on the bus at all
//! ```
//!
//! The memory behind it has no pages of the kernel's: the CPU reaches it, but O_DIRECT does not, nor does userfaultfd. A working driver knows
//! nothing of whoever maps its BAR, so a function that has one is refused.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;

use devpagemap_allocator::PAGE_BYTES;
use devpagemap_migrate::{Addr, MemoryFile, MemoryMap, VramAddr};
use rustix::fs::{FlockOperation, flock, fstat};
use rustix::io::Errno;

use super::function::{Enabled, Function, map_memory};
use crate::backend::mapped_file::MappedFile;
use crate::cpu::Caching;
use crate::error::{Error, Result};
use crate::size::Size;
use crate::topology::{PciAddress, Resource};

/// A BAR that this process has mapped, and nobody else of those who go this way. An offset in it is an offset in VRAM.
///
/// ```no_run
/// use devpagemap::{Caching, Device, PciBar, SoftwareGpu};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let bar = PciBar::open("0000:00:04.0".parse()?, 2, Caching::WriteCombined)?;
/// let device = Device::builder(SoftwareGpu::builder().vram_in(bar).build()?).build()?;
/// # Ok(())
/// # }
/// ```
pub struct PciBar {
    /// Constant.
    address: PciAddress,
    /// Constant.
    index: u8,
    /// Constant.
    caching: Caching,
    /// Constant.
    resource: Resource,
    /// Unmapped before the function is disabled. Constant.
    mapped: MappedFile,
    /// What is mapped. Constant.
    file: OwnedFd,
    /// Keeps others off, where `file` does not. Constant.
    _lock: Option<OwnedFd>,
    /// Constant.
    _enabled: Option<Enabled>,
}

impl PciBar {
    /// Maps BAR `index` of the function at `address`.
    ///
    /// # Errors
    /// [`Error::NotUsable`] with the cause: there is no such device or BAR, it is of I/O ports, there is no write-combined way to it, a driver
    /// works with it, another process has it. [`Error::NoRights`], [`Error::NoDescriptorsLeft`], [`Error::Io`].
    pub fn open(address: PciAddress, index: u8, caching: Caching) -> Result<PciBar> {
        PciBar::open_in(Path::new("/"), address, index, caching)
    }

    /// As [`open`](PciBar::open), with combined writes if there is a way to have them, else uncached.
    ///
    /// # Errors
    /// As [`open`](PciBar::open).
    pub fn open_best(address: PciAddress, index: u8) -> Result<PciBar> {
        let function = Function::find(Path::new("/"), address)?;
        let caching = match function.path(&wc_file(index)).exists() {
            true => Caching::WriteCombined,
            false => Caching::Uncached,
        };
        PciBar::open(address, index, caching)
    }

    /// As [`open`](PciBar::open), in a saved tree that has `sys` in it, whose `resourceN` are files with bytes.
    ///
    /// # Errors
    /// As [`open`](PciBar::open).
    pub fn open_in(root: &Path, address: PciAddress, index: u8, caching: Caching) -> Result<PciBar> {
        let function = Function::find(root, address)?;
        let refused = |why: String| refused(address, index, why);
        let resource = memory(&function, index)?;
        if let Some(driver) = function.working_driver() {
            let why = format!("the driver {driver} works with it; unbind that first (its `driver/unbind`)");
            return Err(refused(why));
        }
        let plain = format!("resource{index}");
        let lock = function.open(&plain, "open a BAR")?;
        let (file, lock) = match caching {
            Caching::Uncached => (lock, None),
            Caching::WriteCombined => (open_combined(&function, index, &resource)?, Some(lock)),
            Caching::Cached => return Err(refused("no bus keeps the CPU's caches in step with it".into())),
        };
        flock(lock.as_ref().unwrap_or(&file), FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| refused("another process has it, or this one twice".into()))?;
        let file_bytes =
            fstat(&file).map_err(|errno| Error::io("look at a BAR", 0, errno))?.st_size.cast_unsigned();
        if file_bytes < resource.len_bytes() {
            let wanted_bytes = resource.len_bytes();
            return Err(refused(format!("its file has {file_bytes} bytes and not {wanted_bytes}")));
        }
        let enabled = function.enable()?;
        let mapped = map_memory(file.as_fd(), resource.len_bytes()).map_err(|errno| match errno {
            Errno::PERM | Errno::ACCESS => {
                let path = function.path(&plain).display().to_string();
                Error::NoRights { path: path.into(), action: "map a BAR (is the kernel locked down?)" }
            }
            Errno::INVAL => refused("the kernel maps it for nobody: a driver has claimed it".into()),
            errno => Error::io("map a BAR", resource.len_bytes(), errno),
        })?;
        Ok(PciBar { address, index, caching, resource, mapped, file, _lock: lock, _enabled: enabled })
    }

    /// The largest BAR of memory of the function at `address`: where a GPU has its VRAM.
    ///
    /// # Errors
    /// [`Error::NotUsable`] when there is no such device, or it has no memory.
    pub fn largest(address: PciAddress) -> Result<u8> {
        let function = Function::find(Path::new("/"), address)?;
        let resources = function.resources()?;
        let memory = resources.iter().enumerate().filter(|(_, resource)| resource.is_memory());
        // The first of several that are as large.
        let largest = memory.max_by_key(|(index, resource)| (resource.len_bytes(), usize::MAX - index));
        largest
            .map(|(index, _)| index as u8)
            .ok_or_else(|| Error::not_usable(address, "it has no BAR of memory"))
    }

    /// Whose it is.
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// Its number.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// How long it is.
    pub fn size(&self) -> Size {
        Size::bytes(self.resource.len_bytes())
    }

    /// How the CPU's accesses reach it.
    pub fn caching(&self) -> Caching {
        self.caching
    }

    /// Where it begins on the bus.
    pub fn bus_start(&self) -> Option<u64> {
        self.resource.start()
    }

    /// Whether reading has no side effects.
    pub fn is_prefetchable(&self) -> bool {
        self.resource.is_prefetchable()
    }
}

// SAFETY: MappedFile checks bounds, and lives as long as self. The memory is the device's: this process reaches it through raw pointers
// only, and the lock on its file keeps others off.
unsafe impl MemoryMap for PciBar {
    fn resolve(&self, addr: Addr, len_bytes: u64) -> Option<NonNull<u8>> {
        match addr {
            Addr::Vram(VramAddr(offset)) => self.mapped.address(offset, len_bytes),
            Addr::System(_) => None,
        }
    }

    fn file(&self, addr: Addr, len_bytes: u64) -> Option<(MemoryFile<'_>, u64)> {
        self.resolve(addr, len_bytes)?;
        Some((MemoryFile::Borrowed(self.file.as_fd()), addr.offset()))
    }
}

impl fmt::Debug for PciBar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciBar")
            .field("address", &self.address)
            .field("index", &self.index)
            .field("size", &self.size())
            .field("caching", &self.caching)
            .finish_non_exhaustive()
    }
}

fn refused(address: PciAddress, index: u8, why: String) -> Error {
    Error::not_usable(format_args!("BAR {index} of {address}"), why)
}

fn wc_file(index: u8) -> String {
    format!("resource{index}_wc")
}

/// The BAR's line, if it is of memory that can be mapped.
fn memory(function: &Function, index: u8) -> Result<Resource> {
    let refused = |why: &str| Err(refused(function.address, index, why.into()));
    let resources = function.resources()?;
    let Some(resource) = resources.get(usize::from(index)) else {
        return refused("a function has BARs 0 to 5");
    };
    let before = usize::from(index).checked_sub(1).map(|before| resources[before]);
    match resource {
        none if none.len_bytes() == 0 && before.is_some_and(|before| before.takes_two()) => {
            refused("it is the upper half of the one before, which has 64 bits")
        }
        none if none.len_bytes() == 0 => refused("there is no such BAR"),
        ports if ports.is_io() => refused("it is of I/O ports, and not of memory"),
        other if !other.is_memory() => refused("it is of no memory"),
        unset if unset.start().is_none() => refused("nobody has given it a place on the bus"),
        short if !short.len_bytes().is_multiple_of(PAGE_BYTES) => refused("it is not made of whole pages"),
        memory => Ok(*memory),
    }
}

fn open_combined(function: &Function, index: u8, resource: &Resource) -> Result<OwnedFd> {
    let name = wc_file(index);
    if !function.path(&name).exists() {
        let why = match resource.is_prefetchable() {
            true => "the kernel has no way to combine writes (neither PAT nor MTRRs)",
            false => "it is not prefetchable, so writes to it are not to be combined",
        };
        return Err(refused(function.address, index, why.into()));
    }
    function.open(&name, "open a BAR with combined writes")
}
