//! A PCI function, as sysfs shows it to those who want its memory.

use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mm::{Advice, ProtFlags};

use crate::backend::mapped_file::MappedFile;
use crate::error::{Error, Result, errno_of};
use crate::topology::{PciAddress, Resource, dir_of_function, text};

/// How many BARs a function has.
const BARS: usize = 6;

/// Drivers that have nothing to do with the device themselves, and are there to keep others off.
const PLACEHOLDERS: [&str; 3] = ["pci-stub", "uio_pci_generic", "vfio-pci"];

/// One function's directory.
#[derive(Debug)]
pub(super) struct Function {
    /// Constant.
    pub(super) address: PciAddress,
    /// Constant.
    dir: PathBuf,
}

impl Function {
    /// # Errors
    /// [`Error::NotUsable`] when nothing is there.
    pub(super) fn find(root: &Path, address: PciAddress) -> Result<Function> {
        let dir = dir_of_function(root, address);
        match dir.is_dir() {
            true => Ok(Function { address, dir }),
            false => {
                let why = format!("there is no such PCI device ({} is not there)", dir.display());
                Err(Error::not_usable(address, why))
            }
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The text of an attribute.
    pub(super) fn attribute(&self, name: &str) -> Option<String> {
        text(&self.path(name))
    }

    /// Opens a file of it for reading and writing.
    ///
    /// # Errors
    /// [`Error::NoRights`], [`Error::NoDescriptorsLeft`], [`Error::Io`].
    pub(super) fn open(&self, name: &str, action: &'static str) -> Result<OwnedFd> {
        let path = self.path(name);
        open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| Error::of_path(action, &path.display().to_string(), errno))
    }

    /// What its BARs are of.
    ///
    /// # Errors
    /// [`Error::NotUsable`] for a table that cannot be read.
    pub(super) fn resources(&self) -> Result<Vec<Resource>> {
        let table = self.attribute("resource").unwrap_or_default();
        let lines: Option<Vec<Resource>> = table.lines().take(BARS).map(Resource::parse).collect();
        lines.filter(|lines| !lines.is_empty()).ok_or_else(|| {
            let why = format!("{} is no table of resources", self.path("resource").display());
            Error::not_usable(self.address, why)
        })
    }

    /// The driver that is bound to it, unless it is one that only keeps others off.
    pub(super) fn working_driver(&self) -> Option<String> {
        let link = fs::read_link(self.path("driver")).ok()?;
        let name = link.file_name()?.to_string_lossy().into_owned();
        Some(name).filter(|name| !PLACEHOLDERS.contains(&name.as_str()))
    }

    /// Sees to it that the function answers on the bus, for as long as the result lives.
    ///
    /// # Errors
    /// [`Error::NoRights`] and [`Error::NotUsable`] when it does not answer and cannot be made to.
    pub(super) fn enable(&self) -> Result<Option<Enabled>> {
        if self.attribute("enable").is_some_and(|count| count != "0") {
            return Ok(None);
        }
        let path = self.path("enable");
        let action = "enable a PCI device";
        fs::write(&path, "1").map_err(|error| match errno_of(&error) {
            Errno::BUSY => Error::not_usable(
                self.address,
                "it is not enabled, and as long as a driver is bound to it only that can enable it",
            ),
            errno => Error::of_path(action, &path.display().to_string(), errno),
        })?;
        Ok(Some(Enabled { path }))
    }
}

/// Maps the first `len_bytes` of a file that stands for memory on the bus. A forked child does not have them.
pub(super) fn map_memory(file: BorrowedFd<'_>, len_bytes: u64) -> std::result::Result<MappedFile, Errno> {
    let mapped = MappedFile::new(file, 0, len_bytes, ProtFlags::READ | ProtFlags::WRITE)?;
    // SAFETY: the advice changes nothing in this process.
    let kept = unsafe { mapped.advise(0, len_bytes, Advice::LinuxDontFork) };
    debug_assert!(kept.is_ok(), "a whole mapping can be kept from children: {kept:?}");
    Ok(mapped)
}

/// A function that would not answer otherwise.
#[derive(Debug)]
pub(super) struct Enabled {
    /// Constant.
    path: PathBuf,
}

impl Drop for Enabled {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.path, "0") {
            tracing::warn!(path = %self.path.display(), %error, "a PCI device stays enabled");
        }
    }
}
