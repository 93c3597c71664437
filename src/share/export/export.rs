//! Exporting: which way is taken, and what the caller gets.
//!
//! ```text
//!   exported already? ── it fits ─► one more descriptor of the same dma-buf
//!     │ no
//!   each way in turn: is it here? may it? is it large enough? read-only? ── no ─► the reason is kept, the next way
//!     │ yes
//!   the exporter makes the dma-buf ─► the transaction: the buffer comes to its pages, and is held there ─► into the table
//!         may fail: the next way              nothing fails that has not failed before
//! ```

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use devpagemap_fence::{FenceSet, Held};

use super::attempt::{Attempt, Given};
use super::policy;
use super::via::{ExportRequest, Layout, PassedOver, Via, WhyNot};
use crate::backend::DmaBuf;
use crate::backend::exporter::Wanted;
use crate::bo::Buffer;
use crate::error::{Error, Result};
use crate::stats::Counters;

/// A buffer's dma-buf: a descriptor to be given to others, and how it came about.
///
/// The buffer lives, stays in system memory and keeps its bytes as long as anybody has the descriptor, a copy of it, a mapping, or an
/// import: also when all handles of the buffer and of its device are gone. It is let go a moment after the last of them is.
///
/// ```no_run
/// use std::os::fd::OwnedFd;
/// use devpagemap::{Device, Size, SoftwareGpu, Via};
///
/// # fn main() -> devpagemap::Result<()> {
/// let device = Device::builder(SoftwareGpu::builder().build()?).vram(Size::mib(8)).build()?;
/// let buffer = device.buffer(Size::mib(1)).name("frame").create()?;
/// let export = buffer.export(Via::Auto)?;
/// for passed_over in export.reasons() {
///     println!("not through {passed_over}");
/// }
/// println!("through {}", export.via());
/// let fd: OwnedFd = export.into();
/// # drop(fd);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Export {
    dma_buf: DmaBuf,
    via: Via,
    layout: Option<Layout>,
    reasons: Vec<PassedOver>,
    fences: Result<&'static str>,
}

impl Export {
    /// What makes the device's fences known to whoever has the descriptor: they poll it, or their driver waits by itself.
    ///
    /// # Errors
    /// [`Error::NoKernelFences`], which says why nothing does: others see the bytes while jobs of this device work on them. What was queued
    /// when the buffer was exported is over.
    pub fn fences(&self) -> Result<&'static str> {
        self.fences.clone()
    }

    /// Who made it.
    pub fn via(&self) -> &Via {
        &self.via
    }

    /// Where what lies in it, if it is an image.
    pub fn layout(&self) -> Option<&Layout> {
        self.layout.as_ref()
    }

    /// Who was asked before, and why it was not taken; nobody for one that was there already.
    pub fn reasons(&self) -> &[PassedOver] {
        &self.reasons
    }

    /// How large it is: the buffer's size in whole pages, or that of the image.
    pub fn len_bytes(&self) -> u64 {
        self.dma_buf.len_bytes()
    }

    /// Whether whoever gets the descriptor may only read.
    pub fn is_read_only(&self) -> bool {
        !self.dma_buf.is_writable()
    }

    /// The dma-buf, to ask the kernel about it.
    pub fn dma_buf(&self) -> &DmaBuf {
        &self.dma_buf
    }
}

impl AsFd for Export {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dma_buf.as_fd()
    }
}

impl From<Export> for OwnedFd {
    fn from(export: Export) -> OwnedFd {
        export.dma_buf.into()
    }
}

/// Why a way led nowhere.
pub(super) enum Failed {
    /// The next may do.
    Passed(WhyNot),
    /// None will.
    All(Error),
}

impl From<WhyNot> for Failed {
    fn from(why: WhyNot) -> Failed {
        Failed::Passed(why)
    }
}

impl From<Error> for Failed {
    /// What is wrong with the buffer, the device or the process is wrong whoever exports.
    fn from(error: Error) -> Failed {
        match error {
            Error::Io { .. }
            | Error::Unsupported { .. }
            | Error::InvalidSize { .. }
            | Error::Exhausted { .. }
            | Error::Fragmented { .. }
            | Error::TooLarge { .. }
            | Error::NoRights { .. }
            | Error::NoNode { .. } => Failed::Passed(WhyNot::of(error)),
            error => Failed::All(error),
        }
    }
}

impl Buffer {
    /// A descriptor of this buffer for other processes and devices: [`Via::Auto`] takes the best way that this machine has,
    /// `Via::Auto.read_only()` one on which nobody else may write.
    ///
    /// The buffer comes to system memory, by a queued move, and stays there as long as anybody outside has the descriptor. Jobs use it there.
    /// Exported once more, it is the same dma-buf.
    ///
    /// # Errors
    /// [`Error::NotExportable`] with what is wrong with each way; [`Error::NoRights`] when one alone was asked for, and this process may not use
    /// its device. [`Error::NotPeerCapable`] for a buffer that has to be in the BAR ([`P2p::Require`](crate::P2p::Require), or an importer
    /// that takes nothing else), [`Error::Pinned`] for one that is held elsewhere, [`Error::FenceFailed`] for one whose bytes are lost,
    /// [`Error::NoDescriptorsLeft`]. The buffer is not exported then, and has all its bytes.
    pub fn export(&self, request: impl Into<ExportRequest>) -> Result<Export> {
        let request = request.into();
        let manager = &self.0.manager;
        let _under_way = manager.exports.begin(manager.weak())?;
        let outsiders = manager.exports.outsiders(manager)?;
        let mut reasons = Vec::new();
        for via in policy::candidates(&request.via) {
            let attempt = Attempt::new(self, &outsiders, &request, via.clone());
            match self.try_export(&attempt) {
                Ok(given) => return self.exported(given, reasons),
                Err(Failed::All(error)) => return Err(error),
                Err(Failed::Passed(why)) => {
                    tracing::debug!(buffer = self.id(), %via, %why, "a way to export is passed over");
                    reasons.push(PassedOver { via, why });
                }
            }
        }
        Err(self.not_exportable(reasons))
    }

    fn try_export(&self, attempt: &Attempt<'_>) -> Result<Given, Failed> {
        if let Some(there) = attempt.again()? {
            return Ok(there);
        }
        let exporter = self.0.manager.exports.exporter(&attempt.via)?;
        let abilities = exporter.abilities();
        abilities
            .check(Wanted { len_bytes: self.0.footprint_bytes, writable: !attempt.request.read_only })?;
        match abilities.in_place {
            true => attempt.in_place(&*exporter),
            false => attempt.elsewhere(&*exporter),
        }
    }

    /// The bytes may be on their way. Where the kernel knows our fences, whoever gets the descriptor waits for them there; elsewhere it is waited
    /// for here.
    fn exported(&self, given: Given, reasons: Vec<PassedOver>) -> Result<Export> {
        let Given { dma_buf, via, layout, shows_others } = given;
        let manager = &self.0.manager;
        if shows_others {
            // What others had in its pages is nobody's to see.
            let arrival = self.0.reservation.lock(&mut Held::enter()).arrival.clone();
            self.wait_counted(&arrival, "its pages still had those of other buffers")?;
        }
        Counters::count(&manager.counters.exports);
        tracing::debug!(buffer = self.id(), %via, passed_over = reasons.len(), "exported");
        let export = Export { dma_buf, via, layout, reasons, fences: manager.crossing.source() };
        if let Err(why) = &export.fences {
            self.wait_counted(&self.fences(), why)?;
        }
        Ok(export)
    }

    /// Waits for the bytes before anybody gets the descriptor.
    fn wait_counted(&self, fences: &FenceSet, why: impl fmt::Display) -> Result<()> {
        let manager = &self.0.manager;
        if !fences.is_signaled() {
            let reason = format!("export: waited for the bytes: {why}");
            manager.reasons.count(&reason, &mut Held::in_destructor());
        }
        manager.wait(fences)
    }

    fn not_exportable(&self, mut reasons: Vec<PassedOver>) -> Error {
        if let [PassedOver { why: WhyNot::NoRights { path }, .. }] = &reasons[..] {
            return Error::NoRights { path: path.clone(), action: "export a buffer" };
        }
        let reasons: Arc<[PassedOver]> = std::mem::take(&mut reasons).into();
        Error::NotExportable { buffer: self.id(), reasons }
    }
}

impl fmt::Display for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.is_read_only() { "read-only" } else { "to write" };
        write!(f, "{} bytes through {}, {how}", self.len_bytes(), self.via)
    }
}
