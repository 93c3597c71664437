//! libgbm as an exporter: buffers that are images, laid out as a driver wants them.
//!
//! libgbm loads a driver of Mesa's for a node and asks that for an image. What it needs the image for is over when there is a dma-buf: that
//! keeps the pages, so neither library nor node stay open.

use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};

use drm::buffer::{DrmFourcc, DrmModifier};
use drm::control::Device as _;
use gbm::{BufferObject, BufferObjectFlags, Device};
use rustix::fs::fstat;
use rustix::io::Errno;

use super::node::{DrmNode, of_io};
use crate::backend::DmaBuf;
use crate::backend::exporter::{Abilities, Exporter, Made, Source, Wanted};
use crate::error::{Error, Result};
use crate::share::{Image, Layout, Plane, WhyNot};

/// What an image may be used for, the most useful first: a screen and a renderer, a renderer, the CPU.
const USES: [BufferObjectFlags; 3] = [
    BufferObjectFlags::SCANOUT.union(BufferObjectFlags::RENDERING),
    BufferObjectFlags::RENDERING,
    BufferObjectFlags::LINEAR,
];

/// libgbm, for one image.
#[derive(Debug)]
pub(crate) struct Gbm {
    image: Image,
    format: DrmFourcc,
}

impl Gbm {
    /// # Errors
    /// Why it cannot be used.
    pub(crate) fn open(image: &Image) -> Result<Gbm, WhyNot> {
        let format = DrmFourcc::try_from(u32::from_le_bytes(image.format)).map_err(|_| {
            let what = Error::Unsupported { what: "no pixel format has these four letters" };
            WhyNot::Refused(Box::new(what))
        })?;
        Ok(Gbm { image: image.clone(), format })
    }

    /// An image of the first node that has one, and its dma-buf.
    fn image(&self) -> Result<(BufferObject<()>, OwnedFd)> {
        let mut refused = Error::NoNode { driver: "libgbm knows", kind: "primary or render" };
        for found in DrmNode::all()? {
            if let (Some(wanted), Ok(driver)) = (&self.image.driver, &found.driver)
                && wanted != driver
            {
                continue;
            }
            match DrmNode::at(&found.path).and_then(|node| self.image_of(node)) {
                Ok(image) => return Ok(image),
                Err(error @ Error::NoDescriptorsLeft { .. }) => return Err(error),
                Err(error) => {
                    tracing::debug!(path = %found.path.display(), %error, "no image from a node");
                    refused = error;
                }
            }
        }
        Err(refused)
    }

    fn image_of(&self, node: DrmNode) -> Result<(BufferObject<()>, OwnedFd)> {
        let (width, height) = (self.image.width, self.image.height);
        let device = Device::new(node).map_err(|error| of_io("have libgbm open a node", 0, &error))?;
        let mut refused = Error::Io { action: "make an image", bytes: 0, errno: Errno::INVAL.raw_os_error() };
        for uses in USES {
            let made = match self.image.modifiers.is_empty() {
                true => device.create_buffer_object(width, height, self.format, uses),
                false => {
                    let modifiers = self.image.modifiers.iter().copied().map(DrmModifier::from);
                    device.create_buffer_object_with_modifiers2(width, height, self.format, modifiers, uses)
                }
            };
            match made {
                Ok(image) => {
                    let fd = writable(&device, &image)?;
                    return Ok((image, fd));
                }
                Err(error) => refused = of_io("make an image", 0, &error),
            }
        }
        Err(refused)
    }
}

impl Exporter for Gbm {
    fn abilities(&self) -> Abilities {
        // How large an image is, the driver says when it has made it.
        Abilities { in_place: false, max_bytes: i64::MAX as u64, max_runs: usize::MAX, read_only: false }
    }

    fn make(&self, _wanted: Wanted, _source: Source<'_>) -> Result<Made> {
        let (image, fd) = self.image()?;
        let layout = layout_of(&image)?;
        Ok(Made { layout: Some(layout), ..Made::of(DmaBuf::new(fd)?) })
    }
}

/// The image's dma-buf, which may be written. Who exports first decides that for all, and Mesa's software driver would not.
fn writable(device: &Device<DrmNode>, image: &BufferObject<()>) -> Result<OwnedFd> {
    // SAFETY: all members of the union are plain numbers of at most its size, so each has some value; for a node of DRM's, which
    // `device` is, libgbm fills in the one of 32 bits.
    let handle = NonZeroU32::new(unsafe { image.handle().u32_ });
    let handle = handle.ok_or(Error::Unsupported { what: "libgbm gives the image no handle" })?;
    let fd = device.buffer_to_prime_fd(handle.into(), drm::CLOEXEC | drm::RDWR);
    fd.map_err(|error| of_io("export an image", 0, &error))
}

/// # Errors
/// [`Error::Unsupported`] for an image whose planes are in several dma-bufs.
fn layout_of(image: &BufferObject<()>) -> Result<Layout> {
    let mut planes = Vec::new();
    let mut first = None;
    for plane in 0..image.plane_count() as i32 {
        let fd = image.fd_for_plane(plane).map_err(|_| last_error("export a plane of an image"))?;
        let inode = fstat(fd.as_fd()).map_err(|errno| Error::of_descriptor("look at a plane", errno))?.st_ino;
        if *first.get_or_insert(inode) != inode {
            return Err(Error::Unsupported { what: "the planes of the image are in several dma-bufs" });
        }
        planes.push(Plane { offset_bytes: image.offset(plane), stride_bytes: image.stride_for_plane(plane) });
    }
    Ok(Layout {
        width: image.width(),
        height: image.height(),
        format: (image.format() as u32).to_le_bytes(),
        modifier: image.modifier().into(),
        planes,
    })
}

/// libgbm says only that it could not.
fn last_error(action: &'static str) -> Error {
    of_io(action, 0, &std::io::Error::last_os_error())
}
