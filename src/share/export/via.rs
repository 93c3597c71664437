//! Which way a buffer becomes a dma-buf, and why another way did not do.

use std::fmt;
use std::sync::Arc;

use crate::error::Error;
use crate::size::Size;

/// Who makes the dma-buf.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Via {
    /// The first that can; see `docs/dma-buf.md` for the order, and its reasons.
    #[default]
    Auto,
    /// `/dev/udmabuf`: the very pages that the buffer has in system memory. Nothing is copied. Never read-only.
    Udmabuf,
    /// The kernel's heap of ordinary memory, `/dev/dma_heap/system`. Never read-only.
    DmaHeap,
    /// vgem, a DRM driver without a GPU: a dumb buffer of it.
    Vgem,
    /// The GPU of a virtual machine: a blob in the guest's memory where the host has those, else a dumb buffer. The only one that
    /// a virtio-gpu imports.
    VirtioGpu,
    /// libgbm, for buffers that are images: the buffer's bytes are those of the image, from the first on, and the image must not be the smaller
    /// of the two. [`Export::layout`](crate::Export::layout) says where what lies.
    #[cfg(feature = "gbm")]
    Gbm(Image),
    /// The dma-buf that the buffer was imported from. An imported buffer goes out as that, and in no other way.
    Imported,
}

/// An image, as libgbm makes one.
#[cfg(feature = "gbm")]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Image {
    /// In pixels.
    pub width: u32,
    /// In lines.
    pub height: u32,
    /// The pixel format's four letters, as `drm_fourcc.h` has them: `*b"XR24"`.
    pub format: [u8; 4],
    /// Which layouts will do, as `drm_fourcc.h` numbers them; 0 is line after line, and none leaves it to the driver.
    pub modifiers: Vec<u64>,
    /// Whose node it is to be from, by the name that the driver gives itself; `None` for the first that has such images.
    pub driver: Option<String>,
}

/// How an image lies in a dma-buf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// In pixels.
    pub width: u32,
    /// In lines.
    pub height: u32,
    /// The pixel format's four letters.
    pub format: [u8; 4],
    /// The driver's choice among the layouts that would do, as `drm_fourcc.h` numbers them.
    pub modifier: u64,
    /// One for each plane of the format.
    pub planes: Vec<Plane>,
}

/// A plane of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plane {
    /// Where it begins.
    pub offset_bytes: u32,
    /// From one line to the next.
    pub stride_bytes: u32,
}

impl Via {
    /// To be read only by whoever gets the descriptor.
    pub fn read_only(self) -> ExportRequest {
        ExportRequest { read_only: true, ..self.into() }
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Via::Auto => "auto",
            Via::Udmabuf => "udmabuf",
            Via::DmaHeap => "dma-heap",
            Via::Vgem => "vgem",
            Via::VirtioGpu => "virtio-gpu",
            #[cfg(feature = "gbm")]
            Via::Gbm(_) => "gbm",
            Via::Imported => "its import",
        })
    }
}

/// What is asked of an export. A [`Via`] alone is one that may be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "a request exports nothing until it is given to `Buffer::export`"]
pub struct ExportRequest {
    /// Who is to make the dma-buf.
    pub via: Via,
    /// Whether those who get the descriptor may only read.
    pub read_only: bool,
}

impl From<Via> for ExportRequest {
    fn from(via: Via) -> ExportRequest {
        ExportRequest { via, read_only: false }
    }
}

/// A way that was passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    /// Which.
    pub via: Via,
    /// Why.
    pub why: WhyNot,
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.via, self.why)
    }
}

/// Why a way does not do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhyNot {
    /// This machine has none.
    NotHere {
        /// What is missing.
        what: Arc<str>,
    },
    /// This process has no rights to it.
    NoRights {
        /// The device.
        path: Arc<str>,
    },
    /// The buffer is too large for it.
    TooLarge {
        /// The buffer's size in whole pages.
        len_bytes: u64,
        /// The most that it takes.
        limit_bytes: u64,
    },
    /// The buffer lies in too many pieces.
    TooManyRuns {
        /// How many.
        runs: usize,
        /// The most that it takes.
        limit: usize,
    },
    /// What it makes can always be written.
    NeverReadOnly,
    /// The buffer is exported already, in a way that this one does not go together with.
    ExportedAs {
        /// By whom.
        via: Via,
        /// Whether it may only be read.
        read_only: bool,
    },
    /// It was tried, and failed.
    Refused(Box<Error>),
}

#[cfg(not(any(loom, shuttle)))]
impl WhyNot {
    /// From what went wrong when a device was opened.
    pub(crate) fn of(error: Error) -> WhyNot {
        match error {
            Error::NoNode { .. } => WhyNot::NotHere { what: error.to_string().into() },
            Error::NoRights { path, .. } => WhyNot::NoRights { path },
            error => WhyNot::Refused(Box::new(error)),
        }
    }
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WhyNot::NotHere { what } => write!(f, "not on this machine ({what})"),
            WhyNot::NoRights { path } => write!(f, "no rights to {path}"),
            WhyNot::TooLarge { len_bytes, limit_bytes } => {
                let (size, limit) = (Size::bytes(*len_bytes), Size::bytes(*limit_bytes));
                write!(f, "{len_bytes} bytes ({size}) are more than its {limit_bytes} ({limit})")
            }
            WhyNot::TooManyRuns { runs, limit } => {
                write!(f, "the bytes lie in {runs} pieces, and it takes {limit}")
            }
            WhyNot::NeverReadOnly => f.write_str("what it makes can always be written"),
            WhyNot::ExportedAs { via, read_only } => {
                let how = if *read_only { "read-only" } else { "for writing" };
                write!(f, "the buffer is exported by {via} already, {how}")
            }
            WhyNot::Refused(error) => write!(f, "it failed: {error}"),
        }
    }
}
