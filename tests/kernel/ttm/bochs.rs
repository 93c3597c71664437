//! bochs: a buffer is in video memory because it is shown, and stays there until another one needs the room.

use drm::buffer::{Buffer as _, DrmFourcc};
use drm::control::dumbbuffer::DumbBuffer;
use drm::control::{Device as ControlDevice, Mode, connector, crtc, framebuffer};

use super::Ttm;
use crate::card::Card;

/// What QEMU gives it, unless it is told otherwise.
const VIDEO_MEMORY_BYTES: usize = 16 << 20;

pub struct Bochs {
    card: Card,
    crtc: crtc::Handle,
    connector: connector::Handle,
    mode: Mode,
    buffers: Vec<(DumbBuffer, framebuffer::Handle)>,
}

impl Bochs {
    pub fn open() -> Bochs {
        let card = Card::open("bochs-drm");
        let resources = card.resource_handles().expect("it sets modes");
        let connector = resources.connectors()[0];
        let modes = card.get_connector(connector, true).expect("it is there").modes().to_vec();
        let smallest = modes
            .into_iter()
            .min_by_key(|mode| (u32::from(mode.size().0) * u32::from(mode.size().1), mode.size()));
        let mode = smallest.expect("the screen has modes");
        Bochs { crtc: resources.crtcs()[0], connector, mode, buffers: Vec::new(), card }
    }
}

impl Ttm for Bochs {
    const MOVES: &'static str = "drm_vram_helper:bo_driver_move";

    fn size_bytes(&self) -> usize {
        let (width, height) = self.mode.size();
        (usize::from(width) * usize::from(height) * 4).next_multiple_of(4096)
    }

    fn too_many(&self) -> usize {
        VIDEO_MEMORY_BYTES / self.size_bytes() + 5
    }

    fn create(&mut self) {
        let (width, height) = self.mode.size();
        let size = (u32::from(width), u32::from(height));
        let buffer = self.card.create_dumb_buffer(size, DrmFourcc::Xrgb8888, 32).expect("a dumb buffer");
        assert_eq!(buffer.pitch() as usize, usize::from(width) * 4);
        let framebuffer = self.card.add_framebuffer(&buffer, 24, 32).expect("it can be shown");
        self.buffers.push((buffer, framebuffer));
    }

    fn bring(&mut self, buffer: usize) {
        let (_, framebuffer) = self.buffers[buffer];
        let shown =
            self.card.set_crtc(self.crtc, Some(framebuffer), (0, 0), &[self.connector], Some(self.mode));
        shown.expect("it is shown");
    }

    fn bytes(&mut self, buffer: usize, look: &mut dyn FnMut(&mut [u8])) {
        let len = self.size_bytes();
        let (buffer, _) = &mut self.buffers[buffer];
        let mut map = self.card.map_dumb_buffer(buffer).expect("it can be mapped");
        look(&mut map.as_mut()[..len]);
    }
}

impl Drop for Bochs {
    fn drop(&mut self) {
        // The card is closed with it; nobody is left to be told that this failed.
        let _dark = self.card.set_crtc(self.crtc, None, (0, 0), &[], None);
        for (buffer, framebuffer) in self.buffers.drain(..) {
            let _gone = self.card.destroy_framebuffer(framebuffer);
            let _gone_too = self.card.destroy_dumb_buffer(buffer);
        }
    }
}
