//! What a kernel driver takes in, said before it is tried.
//!
//! A driver that refuses a dma-buf says so with a number, after the exporter has pinned its pages and made a list of them. Which driver takes
//! whose buffers follows from the driver's code and not from the machine, so it is a table:
//!
//! ```text
//!   into            from itself   vgem, vkms   udmabuf, dma-heap   virtio-gpu   bochs, qxl
//!   vgem, vkms          yes           yes             yes              yes        ENOSYS
//!   virtio-gpu          yes         ENODEV          ENODEV           ENODEV       ENOSYS
//!   bochs               yes         EINVAL          EINVAL           EINVAL       EINVAL
//!   qxl                 yes         ENOSYS          ENOSYS           ENOSYS       ENOSYS
//! ```
//!
//! *Itself* is the same device, not another one of the same driver: to a second virtio-gpu the first one's buffers are foreign. Why each is
//! so: bochs has no function that takes a list of pages; virtio-gpu and qxl have one that only refuses; bochs and qxl, whose buffers may
//! lie in video memory, make no list of pages for others.
//!
//! What is in no table is [`ImportDecision::Unknown`], and is tried.

use std::fmt;

use rustix::io::Errno;

use super::node::{DrmNode, NodeKind};
use super::prime::GemHandle;
use crate::backend::{DmaBuf, DmaBufInfo};
use crate::error::{Error, Result};

/// A kernel driver that may take a dma-buf in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImportInto {
    /// Buffers without a GPU.
    Vgem,
    /// Screens without a GPU.
    Vkms,
    /// The GPU that a virtual machine's host provides.
    VirtioGpu,
    /// The screen of QEMU and Bochs.
    Bochs,
    /// The screen of SPICE.
    Qxl,
    /// Any other, by the name that it gives itself.
    Other(&'static str),
}

/// Whose pages a dma-buf shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExportedBy {
    /// vgem.
    Vgem,
    /// vkms.
    Vkms,
    /// virtio-gpu.
    VirtioGpu,
    /// bochs.
    Bochs,
    /// qxl.
    Qxl,
    /// Pages of a memfd.
    Udmabuf,
    /// A heap of the kernel.
    DmaHeap,
    /// Some DRM driver: the kernel calls all that use its own helpers alike, vgem, vkms, bochs and qxl among them.
    SomeDrm,
    /// Somebody else.
    Other,
}

/// What a driver does with a dma-buf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportDecision {
    /// It takes it.
    Taken,
    /// It refuses it.
    Refused(ImportRefusal),
    /// Nobody can say before it is tried.
    Unknown,
}

/// Why a driver refuses a dma-buf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportRefusal {
    /// The importer takes nothing but buffers of its own device; it tells by this error.
    OnlyItsOwn(Errno),
    /// The exporter makes no list of its pages for others.
    NoPagesForOthers,
}

impl ImportRefusal {
    /// What the kernel says when it is tried all the same.
    pub fn errno(self) -> i32 {
        match self {
            ImportRefusal::OnlyItsOwn(errno) => errno.raw_os_error(),
            ImportRefusal::NoPagesForOthers => Errno::NOSYS.raw_os_error(),
        }
    }
}

impl fmt::Display for ImportRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ImportRefusal::OnlyItsOwn(_) => "the driver takes nothing but buffers of its own device",
            ImportRefusal::NoPagesForOthers => "its exporter's buffers cannot be reached by other drivers",
        })
    }
}

impl ImportInto {
    /// The driver of this name.
    pub fn of_driver(name: &'static str) -> ImportInto {
        match name {
            "vgem" => ImportInto::Vgem,
            "vkms" => ImportInto::Vkms,
            "virtio_gpu" => ImportInto::VirtioGpu,
            "bochs-drm" => ImportInto::Bochs,
            "qxl" => ImportInto::Qxl,
            name => ImportInto::Other(name),
        }
    }

    /// The name that the driver gives itself.
    pub fn driver(self) -> &'static str {
        match self {
            ImportInto::Vgem => "vgem",
            ImportInto::Vkms => "vkms",
            ImportInto::VirtioGpu => "virtio_gpu",
            ImportInto::Bochs => "bochs-drm",
            ImportInto::Qxl => "qxl",
            ImportInto::Other(name) => name,
        }
    }

    /// What this driver does with a dma-buf of that exporter. `itself` says that the importing device is the one that exported it.
    pub fn decide(self, by: ExportedBy, itself: bool) -> ImportDecision {
        let refused = ImportDecision::Refused;
        let pages_for_others = match by {
            _ if itself => return ImportDecision::Taken,
            ExportedBy::Bochs | ExportedBy::Qxl => Some(false),
            ExportedBy::SomeDrm | ExportedBy::Other => None,
            _ => Some(true),
        };
        match (self, pages_for_others) {
            (ImportInto::Bochs, _) => refused(ImportRefusal::OnlyItsOwn(Errno::INVAL)),
            (ImportInto::Qxl, _) => refused(ImportRefusal::OnlyItsOwn(Errno::NOSYS)),
            (_, Some(false)) => refused(ImportRefusal::NoPagesForOthers),
            (ImportInto::VirtioGpu, Some(true)) => refused(ImportRefusal::OnlyItsOwn(Errno::NODEV)),
            (ImportInto::Vgem | ImportInto::Vkms, Some(true)) => ImportDecision::Taken,
            (ImportInto::Other(_), _) | (_, None) => ImportDecision::Unknown,
        }
    }

    /// Takes a dma-buf into the first node of this driver, after the table has been asked.
    ///
    /// A virtio-gpu's buffer is tried on a virtio-gpu: whether it is the same device only the kernel knows.
    ///
    /// # Errors
    /// [`Error::NotImportable`] when the table or the kernel says that the driver refuses it, [`Error::NoNode`], [`Error::NoRights`],
    /// [`Error::NoDescriptorsLeft`], [`Error::Io`].
    pub fn import(self, dma_buf: &DmaBuf, by: ExportedBy) -> Result<KernelImport> {
        if let ImportDecision::Refused(why) = self.decide(by, by.may_be(self)) {
            return Err(self.refused(by, why));
        }
        // Importing needs no rights to a screen; drivers without render nodes import on the primary one.
        let node = match DrmNode::open(self.driver(), NodeKind::Render) {
            Err(Error::NoNode { .. }) => DrmNode::open(self.driver(), NodeKind::Primary),
            found => found,
        }?;
        let handle = GemHandle::import(&node, dma_buf).map_err(|error| self.in_words(by, error))?;
        Ok(KernelImport { handle, len_bytes: dma_buf.len_bytes() })
    }

    fn refused(self, by: ExportedBy, why: ImportRefusal) -> Error {
        Error::NotImportable { driver: self.driver(), exporter: by.name(), why: why.to_string().into() }
    }

    /// A refusal of the kernel's by the name that the table has for it.
    fn in_words(self, by: ExportedBy, error: Error) -> Error {
        let ImportDecision::Refused(why) = self.decide(by, false) else { return error };
        match error {
            Error::Io { errno, .. } if errno == why.errno() => self.refused(by, why),
            error => error,
        }
    }
}

impl ExportedBy {
    /// The exporter, as far as the kernel tells.
    pub fn of(info: &DmaBufInfo) -> ExportedBy {
        match info.exporter.as_str() {
            "udmabuf" => ExportedBy::Udmabuf,
            "virtio_gpu" => ExportedBy::VirtioGpu,
            "drm" => ExportedBy::SomeDrm,
            // Heaps give their own names: the one of ordinary memory, and those of contiguous memory.
            "system" | "reserved" | "linux,cma" | "default_cma_region" => ExportedBy::DmaHeap,
            _ => ExportedBy::Other,
        }
    }

    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            ExportedBy::Vgem => "vgem",
            ExportedBy::Vkms => "vkms",
            ExportedBy::VirtioGpu => "virtio-gpu",
            ExportedBy::Bochs => "bochs",
            ExportedBy::Qxl => "qxl",
            ExportedBy::Udmabuf => "udmabuf",
            ExportedBy::DmaHeap => "dma-heap",
            ExportedBy::SomeDrm => "a DRM driver",
            ExportedBy::Other => "an unknown exporter",
        }
    }

    /// Whether the exporter's device may be one of this driver.
    fn may_be(self, driver: ImportInto) -> bool {
        match self {
            ExportedBy::Vgem => driver == ImportInto::Vgem,
            ExportedBy::Vkms => driver == ImportInto::Vkms,
            ExportedBy::VirtioGpu => driver == ImportInto::VirtioGpu,
            ExportedBy::Bochs => driver == ImportInto::Bochs,
            ExportedBy::Qxl => driver == ImportInto::Qxl,
            ExportedBy::SomeDrm => driver != ImportInto::VirtioGpu,
            ExportedBy::Udmabuf | ExportedBy::DmaHeap | ExportedBy::Other => false,
        }
    }
}

/// A dma-buf that a kernel driver has taken in, for as long as this is kept.
#[derive(Debug)]
pub struct KernelImport {
    /// Constant.
    handle: GemHandle,
    /// Constant.
    len_bytes: u64,
}

impl KernelImport {
    /// The name that the driver gives itself.
    pub fn driver(&self) -> &str {
        self.handle.node().driver()
    }

    /// The number of the buffer on the driver's node.
    pub fn handle(&self) -> u32 {
        self.handle.number()
    }

    /// How large it is.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Takes another dma-buf into the same node. One that is there already is the same buffer by the same handle, which stays until
    /// all of its imports are gone.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn beside(&self, dma_buf: &DmaBuf) -> Result<KernelImport> {
        let handle = GemHandle::import(self.handle.node(), dma_buf)?;
        Ok(KernelImport { handle, len_bytes: dma_buf.len_bytes() })
    }

    /// The driver's buffer as a dma-buf: the very one that it came from.
    ///
    /// # Errors
    /// [`Error::NoDescriptorsLeft`], [`Error::Io`].
    pub fn export(&self) -> Result<DmaBuf> {
        self.handle.export(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODEV: ImportDecision = ImportDecision::Refused(ImportRefusal::OnlyItsOwn(Errno::NODEV));
    const INVAL: ImportDecision = ImportDecision::Refused(ImportRefusal::OnlyItsOwn(Errno::INVAL));
    const NOSYS: ImportDecision = ImportDecision::Refused(ImportRefusal::OnlyItsOwn(Errno::NOSYS));
    const NO_PAGES: ImportDecision = ImportDecision::Refused(ImportRefusal::NoPagesForOthers);
    const ALL: [ExportedBy; 9] = [
        ExportedBy::Vgem,
        ExportedBy::Vkms,
        ExportedBy::Udmabuf,
        ExportedBy::DmaHeap,
        ExportedBy::VirtioGpu,
        ExportedBy::Bochs,
        ExportedBy::Qxl,
        ExportedBy::SomeDrm,
        ExportedBy::Other,
    ];

    #[test]
    fn every_driver_takes_its_own() {
        for into in ["vgem", "vkms", "virtio_gpu", "bochs-drm", "qxl", "i915"].map(ImportInto::of_driver) {
            for by in ALL {
                assert_eq!(into.decide(by, true), ImportDecision::Taken, "{into:?} {by:?}");
            }
        }
    }

    #[test]
    fn the_table_is_what_is_decided() {
        use ImportDecision::{Taken, Unknown};
        let shmem = [Taken, Taken, Taken, Taken, Taken, NO_PAGES, NO_PAGES, Unknown, Unknown];
        let virtio = [NODEV, NODEV, NODEV, NODEV, NODEV, NO_PAGES, NO_PAGES, Unknown, Unknown];
        let other = [Unknown, Unknown, Unknown, Unknown, Unknown, NO_PAGES, NO_PAGES, Unknown, Unknown];
        let rows = [
            ("vgem", shmem),
            ("vkms", shmem),
            ("virtio_gpu", virtio),
            ("bochs-drm", [INVAL; 9]),
            ("qxl", [NOSYS; 9]),
            ("amdgpu", other),
        ];
        for (driver, row) in rows {
            let into = ImportInto::of_driver(driver);
            assert_eq!(into.driver(), driver);
            assert_eq!(ALL.map(|by| into.decide(by, false)), row, "{driver}");
        }
    }

    #[test]
    fn the_kernels_name_for_an_exporter_says_as_much_as_it_says() {
        let by = |name: &str| ExportedBy::of(&DmaBufInfo { exporter: name.into(), ..DmaBufInfo::default() });
        assert_eq!(by("udmabuf"), ExportedBy::Udmabuf);
        assert_eq!(by("system"), ExportedBy::DmaHeap);
        assert_eq!(by("virtio_gpu"), ExportedBy::VirtioGpu);
        assert_eq!(by("drm"), ExportedBy::SomeDrm);
        assert_eq!(by("i915"), ExportedBy::Other);
    }

    #[test]
    fn a_refusal_of_the_table_is_said_without_a_node() {
        let refused =
            ImportInto::VirtioGpu.refused(ExportedBy::Udmabuf, ImportRefusal::OnlyItsOwn(Errno::NODEV));
        assert_eq!(
            refused.to_string(),
            "virtio_gpu does not import dma-bufs of udmabuf: the driver takes nothing but buffers of its own device"
        );
    }
}
