//! libgbm as an exporter: buffers that are images, laid out as a driver wants them.
//!
//! libgbm loads a driver of Mesa's for a node and asks that for an image. What it needs the image for is over when there is a dma-buf: that
//! keeps the pages, so neither library nor node stay open.

use drm::buffer::{DrmFourcc, DrmModifier};
use drm::control::{Device as _, from_u32};
use gbm::{BufferObject, BufferObjectFlags, BufferObjectHandle, Device};
use rustix::io::Errno;

use super::node::DrmNode;
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

    /// An image of the first node that has one.
    fn image(&self) -> Result<Drawn> {
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

    fn image_of(&self, node: DrmNode) -> Result<Drawn> {
        let (width, height) = (self.image.width, self.image.height);
        let device =
            Device::new(node).map_err(|error| Error::of_std("have libgbm open a node", 0, &error))?;
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
                Ok(image) => return Ok(Drawn { image, device }),
                Err(error) => refused = Error::of_std("make an image", 0, &error),
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
        let drawn = self.image()?;
        let layout = drawn.layout()?;
        Ok(Made { layout: Some(layout), ..Made::of(drawn.export()?) })
    }
}

/// An image, and the library's view of the node, which goes after it.
struct Drawn {
    image: BufferObject<()>,
    device: Device<DrmNode>,
}

impl Drawn {
    /// libgbm exports for reading only, and what the first export says holds for all: so the node is asked.
    fn export(&self) -> Result<DmaBuf> {
        let handle = from_u32(number(self.image.handle())).expect("the kernel gives out no handle 0");
        let fd = self.device.buffer_to_prime_fd(handle, drm::CLOEXEC | drm::RDWR);
        DmaBuf::new(fd.map_err(|error| Error::of_std("export an image as a dma-buf", 0, &error))?)
    }

    /// # Errors
    /// [`Error::Unsupported`] for an image whose planes are several buffers.
    fn layout(&self) -> Result<Layout> {
        let image = &self.image;
        let planes = 0..image.plane_count() as i32;
        if planes.clone().any(|plane| number(image.handle_for_plane(plane)) != number(image.handle())) {
            return Err(Error::Unsupported { what: "the planes of the image are several buffers" });
        }
        let plane = |at| Plane { offset_bytes: image.offset(at), stride_bytes: image.stride_for_plane(at) };
        Ok(Layout {
            width: image.width(),
            height: image.height(),
            format: (image.format() as u32).to_le_bytes(),
            modifier: image.modifier().into(),
            planes: planes.map(plane).collect(),
        })
    }
}

fn number(handle: BufferObjectHandle) -> u32 {
    // SAFETY: all of the union's members are plain numbers and addresses, of which a driver on DRM sets the 32-bit number; every bit
    // pattern is one.
    unsafe { handle.u32_ }
}
