//! One error enum for the whole library. Every variant carries its operands, and its text names the cause.

use std::fmt;
use std::sync::Arc;

use devpagemap_fence::{FenceError, LockError, SlotsExhausted};

use rustix::io::Errno;

use crate::aperture::{BarAddr, BarLimit};
use crate::pagemap::UnderRevoke;
use crate::region::RegionKind;
use crate::share::PassedOver;
use crate::size::Size;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something could not be done. Nothing was changed unless the variant says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A reservation is held by somebody older. Never seen by users of the public API: the transaction restarts.
    Contended,
    /// The region cannot hold what was asked for, even after evicting all that may be evicted.
    Exhausted {
        /// Which region.
        region: RegionKind,
        /// Bytes asked for.
        wanted_bytes: u64,
        /// Bytes that were free, or could have been freed.
        free_bytes: u64,
        /// Bytes that may not move.
        pinned_bytes: u64,
        /// Bytes that the same submission itself keeps there.
        held_bytes: u64,
    },
    /// There is enough room, but not in one piece, and no eviction can make the piece.
    Fragmented {
        /// Which region.
        region: RegionKind,
        /// Bytes asked for, contiguously.
        wanted_bytes: u64,
        /// The largest piece there is.
        largest_bytes: u64,
    },
    /// Larger than the range it must lie in: no eviction could help.
    TooLarge {
        /// Which region.
        region: RegionKind,
        /// Bytes asked for.
        wanted_bytes: u64,
        /// Bytes in the range.
        limit_bytes: u64,
    },
    /// A size of zero, or one that overflows when rounded up to whole pages.
    InvalidSize {
        /// What has this size.
        what: &'static str,
        /// The size.
        bytes: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A placement that cannot be: no place at all, or a range that the region does not have.
    InvalidPlacement {
        /// What is wrong with it.
        why: String,
    },
    /// An access beyond the end of a buffer.
    OutOfBounds {
        /// Where the access starts.
        offset_bytes: u64,
        /// How long it is.
        len_bytes: u64,
        /// How long the buffer is.
        size_bytes: u64,
    },
    /// The buffer is pinned where it is, and would have to move.
    Pinned {
        /// The buffer.
        buffer: u64,
        /// Where it is pinned.
        region: RegionKind,
    },
    /// There is no more of the BAR for this.
    ApertureFull {
        /// What has no room left.
        limit: BarLimit,
        /// How much it allows.
        limit_bytes: u64,
        /// How much of that is in use.
        used_bytes: u64,
        /// Bytes asked for.
        wanted_bytes: u64,
    },
    /// The same buffer belongs to another device.
    ForeignBuffer {
        /// The buffer.
        buffer: u64,
    },
    /// The importer has joined another device.
    ForeignPeer {
        /// The importer's name.
        importer: Arc<str>,
    },
    /// A pagemap that cannot be.
    InvalidPagemap {
        /// Whose it would be.
        owner: String,
        /// What is wrong with it.
        why: String,
    },
    /// An importer that cannot be.
    InvalidImporter {
        /// What is wrong with it.
        why: String,
    },
    /// The registry has no number left for another one.
    RegistryFull {
        /// Of what.
        what: &'static str,
        /// How many it can number.
        limit: u32,
    },
    /// The buffer cannot be where its peers have to reach it.
    NotPeerCapable {
        /// The buffer.
        buffer: u64,
        /// Why not.
        why: &'static str,
    },
    /// The importer takes nothing but peer-to-peer access, or the buffer does, and there is none.
    NoPeerAccess {
        /// The buffer.
        buffer: u64,
        /// The importer's name.
        importer: Arc<str>,
        /// Why there is none.
        why: Arc<str>,
    },
    /// The map shows a place that its buffer has left.
    StaleMap {
        /// The buffer.
        buffer: u64,
    },
    /// A buffer has more outstanding fences than it can keep.
    FenceSlots(SlotsExhausted),
    /// A fence that had to be waited for carries an error.
    FenceFailed(FenceError),
    /// This device cannot do it at all.
    Unsupported {
        /// What it cannot do, and why.
        what: &'static str,
    },
    /// An access through the BAR met nothing.
    BarAccess {
        /// Where it starts.
        addr: BarAddr,
        /// How long it is.
        len_bytes: u64,
        /// What it met.
        why: &'static str,
    },
    /// A write through a map that was made for reading, or to a buffer that was imported for reading.
    ReadOnly {
        /// The buffer.
        buffer: u64,
    },
    /// It was taken away from whoever used it: a pagemap from all, or an attachment from its importer.
    Revoked {
        /// What.
        what: Arc<str>,
        /// Why.
        why: &'static str,
    },
    /// The device was declared lost, and its bytes with it.
    DeviceLost,
    /// A descriptor of something else where a dma-buf is needed.
    NotADmaBuf {
        /// The descriptor.
        fd: i32,
        /// What it is.
        is: &'static str,
    },
    /// A descriptor of something else where a sync_file is needed.
    NotASyncFile {
        /// The descriptor.
        fd: i32,
    },
    /// A descriptor of something else where a syncobj is needed.
    NotASyncobj {
        /// The descriptor.
        fd: i32,
    },
    /// No node of this machine has syncobjs with timelines, or none that this process may open.
    NoSyncobjs {
        /// What was looked at, and why each will not do.
        why: Arc<str>,
    },
    /// A point that cannot be the next of a syncobj.
    PointOutOfOrder {
        /// The point.
        point: u64,
        /// What stands in its way: `last`.
        why: &'static str,
        /// The point that does.
        last: u64,
    },
    /// Nothing on this machine makes kernel fences that a program signals.
    NoKernelFences {
        /// What was looked for, and why each will not do.
        why: Arc<str>,
    },
    /// A number where a descriptor is needed, with no open file behind it.
    ClosedFd {
        /// The number.
        fd: i32,
    },
    /// A kernel driver does not take dma-bufs of this exporter.
    NotImportable {
        /// The driver, by the name that it gives itself.
        driver: &'static str,
        /// Whose dma-buf it is.
        exporter: &'static str,
        /// Why not.
        why: Arc<str>,
    },
    /// A dma-buf that has fewer bytes than are needed.
    DmaBufTooSmall {
        /// How many it has.
        len_bytes: u64,
        /// How many are needed.
        wanted_bytes: u64,
    },
    /// A dma-buf that may only be read, where it is to be written.
    DmaBufReadOnly,
    /// A dma-buf that is a buffer of this device already, and not as it is wanted now.
    AlreadyImported {
        /// The buffer.
        buffer: u64,
        /// What it is that is not wanted.
        why: &'static str,
    },
    /// More bytes of other people's dma-bufs than the client may have.
    ImportLimit {
        /// How many it may have.
        limit_bytes: u64,
        /// How many it has.
        used_bytes: u64,
        /// How many more were asked for.
        wanted_bytes: u64,
    },
    /// The client is one of another device.
    ForeignClient {
        /// Its name.
        client: Arc<str>,
    },
    /// The process, or the system, has no descriptor left for another file.
    NoDescriptorsLeft {
        /// What was attempted.
        action: &'static str,
    },
    /// A file or device that this process has no rights to.
    NoRights {
        /// Which.
        path: Arc<str>,
        /// What was attempted.
        action: &'static str,
    },
    /// There is no DRM node of this driver.
    NoNode {
        /// The driver, by the name it gives itself.
        driver: &'static str,
        /// Which node of it was looked for: `primary` or `render`.
        kind: &'static str,
    },
    /// Nothing makes a dma-buf of this buffer.
    NotExportable {
        /// The buffer.
        buffer: u64,
        /// What was passed over, and why.
        reasons: Arc<[PassedOver]>,
    },
    /// A device, or a part of one, that cannot be used as it was asked for.
    NotUsable {
        /// Which.
        what: Arc<str>,
        /// Why not.
        why: Arc<str>,
    },
    /// The driver refused.
    Driver {
        /// What it was asked to do.
        action: &'static str,
        /// What it said.
        reason: Arc<str>,
    },
    /// The operating system refused.
    Io {
        /// What was attempted.
        action: &'static str,
        /// How many bytes it was about.
        bytes: u64,
        /// The system's error number.
        errno: i32,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes: &u64| Size::bytes(*bytes);
        match self {
            Error::Contended => {
                write!(f, "contended: a reservation is held by an older transaction; restart")
            }
            Error::Exhausted { region, wanted_bytes, free_bytes, pinned_bytes, held_bytes } => write!(
                f,
                "{region} exhausted: wanted {wanted_bytes} bytes ({}), of which {free_bytes} can be had; \
                 {pinned_bytes} are pinned and {held_bytes} are held by the same submission",
                size(wanted_bytes)
            ),
            Error::Fragmented { region, wanted_bytes, largest_bytes } => write!(
                f,
                "{region} fragmented: wanted {wanted_bytes} contiguous bytes ({}), the largest piece is {largest_bytes}",
                size(wanted_bytes)
            ),
            Error::TooLarge { region, wanted_bytes, limit_bytes } => write!(
                f,
                "too large for {region}: wanted {wanted_bytes} bytes ({}), the limit is {limit_bytes}",
                size(wanted_bytes)
            ),
            Error::InvalidSize { what, bytes, why } => {
                write!(f, "invalid size of {what}: {bytes} bytes {why}")
            }
            Error::InvalidPlacement { why } => write!(f, "invalid placement: {why}"),
            Error::OutOfBounds { offset_bytes, len_bytes, size_bytes } => write!(
                f,
                "out of bounds: {len_bytes} bytes at offset {offset_bytes} of a buffer of {size_bytes} bytes"
            ),
            Error::Pinned { buffer, region } => {
                write!(f, "buffer {buffer} is pinned in {region} and may not move")
            }
            Error::ApertureFull { limit, limit_bytes, used_bytes, wanted_bytes } => write!(
                f,
                "BAR aperture full: wanted {wanted_bytes} bytes ({}), but of {limit} ({limit_bytes} bytes) {used_bytes} are used",
                size(wanted_bytes)
            ),
            Error::ForeignBuffer { buffer } => write!(f, "buffer {buffer} belongs to another device"),
            Error::ForeignPeer { importer } => write!(f, "{importer} has joined another device"),
            Error::InvalidPagemap { owner, why } => write!(f, "invalid pagemap of {owner}: {why}"),
            Error::InvalidImporter { why } => write!(f, "invalid importer: {why}"),
            Error::RegistryFull { what, limit } => {
                write!(f, "the registry has no room for more {what} than {limit}")
            }
            Error::NotPeerCapable { buffer, why } => write!(f, "buffer {buffer} is not peer capable: {why}"),
            Error::NoPeerAccess { buffer, importer, why } => {
                write!(
                    f,
                    "{importer} has no peer-to-peer access to buffer {buffer}, and nothing else will do: {why}"
                )
            }
            Error::StaleMap { buffer } => {
                write!(f, "the map shows a place that buffer {buffer} has left; map it again")
            }
            Error::ReadOnly { buffer } => {
                write!(f, "buffer {buffer} was mapped or imported for reading only")
            }
            Error::Revoked { what, why } => write!(f, "{what} was revoked: {why}"),
            Error::DeviceLost => write!(f, "the device is lost"),
            Error::NotADmaBuf { fd, is } => write!(f, "descriptor {fd} is no dma-buf but {is}"),
            Error::NotASyncFile { fd } => write!(f, "descriptor {fd} is no sync_file"),
            Error::NotASyncobj { fd } => write!(f, "descriptor {fd} is no syncobj"),
            Error::NoSyncobjs { why } => {
                write!(f, "no DRM node has syncobjs with timelines: {why}")
            }
            Error::PointOutOfOrder { point, why, last } => {
                write!(f, "point {point} cannot be the next of a syncobj: {why} {last}")
            }
            Error::NoKernelFences { why } => {
                write!(f, "nothing on this machine makes kernel fences that a program signals: {why}")
            }
            Error::ClosedFd { fd } => write!(f, "there is no open file behind descriptor {fd}"),
            Error::NotImportable { driver, exporter, why } => {
                write!(f, "{driver} does not import dma-bufs of {exporter}: {why}")
            }
            Error::DmaBufTooSmall { len_bytes, wanted_bytes } => {
                write!(f, "the dma-buf has {len_bytes} bytes, and {wanted_bytes} are needed")
            }
            Error::DmaBufReadOnly => write!(f, "the dma-buf may be read only, and is to be written"),
            Error::AlreadyImported { buffer, why } => {
                write!(f, "the dma-buf is buffer {buffer} of this device already, {why}")
            }
            Error::ImportLimit { limit_bytes, used_bytes, wanted_bytes } => write!(
                f,
                "too many imported bytes: wanted {wanted_bytes} ({}), but of {limit_bytes} that the client may have {used_bytes} are used",
                size(wanted_bytes)
            ),
            Error::ForeignClient { client } => write!(f, "client {client} is one of another device"),
            Error::NoDescriptorsLeft { action } => {
                write!(f, "could not {action}: no descriptors are left (ulimit -n, fs.file-max)")
            }
            Error::NoRights { path, action } => {
                write!(f, "could not {action}: no rights to {path}")
            }
            Error::NoNode { driver, kind } => {
                write!(f, "there is no {kind} node of the DRM driver {driver} below /dev/dri")
            }
            Error::NotExportable { buffer, reasons } => {
                write!(f, "buffer {buffer} cannot be exported as a dma-buf")?;
                reasons.iter().enumerate().try_for_each(|(index, reason)| {
                    write!(f, "{} {reason}", if index == 0 { ":" } else { ";" })
                })
            }
            Error::NotUsable { what, why } => write!(f, "{what} cannot be used: {why}"),
            Error::FenceSlots(error) => write!(f, "no room for another fence: {error}"),
            Error::FenceFailed(error) => write!(f, "a fence failed: {error}"),
            Error::Unsupported { what } => write!(f, "unsupported: {what}"),
            Error::BarAccess { addr, len_bytes, why } => {
                write!(f, "an access of {len_bytes} bytes at {addr} {why}")
            }
            Error::Driver { action, reason } => write!(f, "the driver could not {action}: {reason}"),
            Error::Io { action, bytes, errno } => {
                write!(f, "could not {action} ({bytes} bytes): {}", std::io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// The system refused something that is about `bytes`.
    pub(crate) fn io(action: &'static str, bytes: u64, errno: Errno) -> Error {
        match errno {
            Errno::MFILE | Errno::NFILE => Error::NoDescriptorsLeft { action },
            errno => Error::Io { action, bytes, errno: errno.raw_os_error() },
        }
    }

    /// As [`io`](Error::io), for what the standard library says.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn of_std(action: &'static str, bytes: u64, error: &std::io::Error) -> Error {
        Error::io(action, bytes, errno_of(error))
    }

    /// The system refused something that is about a descriptor.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn of_descriptor(action: &'static str, errno: Errno) -> Error {
        Error::io(action, 0, errno)
    }

    /// `what` cannot be used.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn not_usable(what: impl fmt::Display, why: impl Into<Arc<str>>) -> Error {
        Error::NotUsable { what: what.to_string().into(), why: why.into() }
    }

    /// The system refused to open a file or a device.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn of_path(action: &'static str, path: &str, errno: Errno) -> Error {
        match errno {
            Errno::ACCESS | Errno::PERM => Error::NoRights { path: path.into(), action },
            errno => Error::io(action, 0, errno),
        }
    }
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Error {
        match never {}
    }
}

/// The system's number in an error of the standard library's.
#[cfg(not(any(loom, shuttle)))]
pub(crate) fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl From<LockError> for Error {
    fn from(error: LockError) -> Error {
        match error {
            LockError::Contended => Error::Contended,
            LockError::Interrupted => unreachable!("no transaction is made interruptible"),
        }
    }
}

impl From<FenceError> for Error {
    fn from(error: FenceError) -> Error {
        Error::FenceFailed(error)
    }
}

impl From<UnderRevoke> for Error {
    fn from(under: UnderRevoke) -> Error {
        Error::Revoked { what: "the device's VRAM".into(), why: under.cause.text() }
    }
}

impl From<SlotsExhausted> for Error {
    fn from(error: SlotsExhausted) -> Error {
        Error::FenceSlots(error)
    }
}
