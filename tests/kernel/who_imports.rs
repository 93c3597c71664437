//! What the library says that a driver imports, and what the driver then does: every exporter, every driver that this kernel has.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use devpagemap::{
    Device, DmaBuf, Error, ExportedBy, ImportDecision, ImportInto, Place, Size, SoftwareGpu, Via,
};
use drm::buffer::{Buffer as _, DrmFourcc};
use drm::control::Device as _;
use rustix::io::Errno;

use crate::card::Card;
use crate::setup::{Thing, need};

impl Card {
    /// A dumb buffer of this card as a dma-buf, which lives as long as the descriptor.
    fn exported(&self) -> OwnedFd {
        let buffer = self.create_dumb_buffer((64, 64), DrmFourcc::Xrgb8888, 32).expect("a dumb buffer");
        let fd = self.buffer_to_prime_fd(buffer.handle(), drm::CLOEXEC | drm::RDWR).expect("it is exported");
        self.destroy_dumb_buffer(buffer).expect("it was made");
        fd
    }

    /// What the driver says to a dma-buf: nothing, or an error's number.
    fn import(&self, dma_buf: BorrowedFd<'_>) -> Option<i32> {
        match self.prime_fd_to_buffer(dma_buf) {
            Ok(handle) => {
                self.close_buffer(handle).expect("it was given");
                None
            }
            Err(error) => Some(error.raw_os_error().expect("the kernel's own")),
        }
    }
}

/// Drivers with a node, as the guest calls them.
const DRIVERS: [(Thing, ImportInto, ExportedBy); 5] = [
    (Thing::Vgem, ImportInto::Vgem, ExportedBy::Vgem),
    (Thing::Vkms, ImportInto::Vkms, ExportedBy::Vkms),
    (Thing::VirtioGpu, ImportInto::VirtioGpu, ExportedBy::VirtioGpu),
    (Thing::Bochs, ImportInto::Bochs, ExportedBy::Bochs),
    (Thing::Qxl, ImportInto::Qxl, ExportedBy::Qxl),
];

/// A buffer of ours as a dma-buf.
fn of_ours(via: Via) -> DmaBuf {
    let gpu = SoftwareGpu::builder().build().expect("it has memory");
    let device = Device::builder(gpu).vram(Size::mib(1)).build().expect("it is a device");
    let buffer = device.buffer(Size::kib(16)).prefer(Place::VRAM).create().expect("there is room");
    let export = buffer.export(via.clone()).unwrap_or_else(|error| panic!("{via}: {error}"));
    DmaBuf::new(export.into()).expect("it is one")
}

/// Every exporter that is here: how it is called, and a dma-buf of it.
fn exporters() -> Vec<(ExportedBy, DmaBuf)> {
    let mut all = Vec::new();
    for (thing, into, by) in DRIVERS {
        if thing.look().is_ok() {
            let fd = Card::open(into.driver()).exported();
            all.push((by, DmaBuf::new(fd).expect("it is one")));
        }
    }
    let ours = [
        (Thing::Udmabuf, Via::Udmabuf, ExportedBy::Udmabuf),
        (Thing::DmaHeap, Via::DmaHeap, ExportedBy::DmaHeap),
        (Thing::Vgem, Via::Vgem, ExportedBy::Vgem),
        (Thing::VirtioGpu, Via::VirtioGpu, ExportedBy::VirtioGpu),
    ];
    let here = ours.into_iter().filter(|(thing, ..)| thing.look().is_ok());
    all.extend(here.map(|(_, via, by)| (by, of_ours(via))));
    all
}

#[test]
fn what_a_driver_imports_is_what_was_said_beforehand() {
    if !need(&[Thing::Vgem, Thing::VirtioGpu, Thing::Bochs, Thing::Qxl, Thing::Udmabuf, Thing::DmaHeap]) {
        return;
    }
    let exporters = exporters();
    let (mut taken, mut refused) = (0, 0);
    for (thing, into, itself) in DRIVERS {
        if thing.look().is_err() {
            continue;
        }
        let card = Card::open(into.driver());
        for (by, dma_buf) in &exporters {
            let said = into.decide(*by, *by == itself);
            let does = card.import(dma_buf.as_fd());
            match said {
                ImportDecision::Taken => {
                    assert_eq!(does, None, "{} takes dma-bufs of {}", into.driver(), by.name());
                    taken += 1;
                }
                ImportDecision::Refused(why) => {
                    let (driver, by) = (into.driver(), by.name());
                    assert_eq!(does, Some(why.errno()), "{driver} refuses dma-bufs of {by}: {why}");
                    refused += 1;
                }
                ImportDecision::Unknown => panic!("{} and {} are in the table", into.driver(), by.name()),
            }
        }
    }
    // Five exporters that vgem takes, and each of the others its own.
    assert!(taken >= 8 && refused >= 20, "{taken} taken, {refused} refused");
}

#[test]
fn the_kernels_name_for_an_exporter_never_promises_what_the_driver_refuses() {
    if !need(&[Thing::Vgem, Thing::VirtioGpu, Thing::Bochs, Thing::Qxl, Thing::Udmabuf]) {
        return;
    }
    for (by, dma_buf) in exporters() {
        let told = ExportedBy::of(&dma_buf.info().expect("the kernel tells"));
        let same = told == by || told == ExportedBy::SomeDrm;
        assert!(same, "{} is told to be {}", by.name(), told.name());
        for (thing, into, itself) in DRIVERS.into_iter().filter(|(thing, ..)| thing.look().is_ok()) {
            let does = Card::open(into.driver()).import(dma_buf.as_fd());
            if into.decide(told, by == itself) == ImportDecision::Taken {
                assert_eq!(does, None, "{} and {thing:?}", by.name());
            }
        }
    }
}

#[test]
fn an_import_that_cannot_be_is_refused_in_words_and_leaves_nothing() {
    if !need(&[Thing::VirtioGpu, Thing::Vgem, Thing::Udmabuf]) {
        return;
    }
    let dma_buf = of_ours(Via::Udmabuf);
    let before = references_at_rest(&dma_buf);
    let error = ImportInto::VirtioGpu.import(&dma_buf, ExportedBy::Udmabuf).expect_err("it takes its own");
    assert!(
        matches!(error, Error::NotImportable { driver: "virtio_gpu", exporter: "udmabuf", .. }),
        "{error}"
    );
    // Whose it is was not known: the kernel is asked, and its number becomes the same words.
    let error = ImportInto::Vgem
        .import(&DmaBuf::new(Card::open("qxl").exported()).expect("it is one"), ExportedBy::SomeDrm)
        .expect_err("nobody takes qxl's");
    let told = matches!(&error, Error::NotImportable { .. } | Error::Io { .. });
    assert!(told && !error.to_string().is_empty(), "{error}");
    if let Error::Io { errno, .. } = error {
        assert_eq!(errno, Errno::NOSYS.raw_os_error());
    }
    assert_eq!(references_at_rest(&dma_buf), before, "nobody has it");
}

#[test]
fn vgem_takes_a_buffer_of_ours_and_gives_the_very_same_dma_buf_back() {
    if !need(&[Thing::Vgem, Thing::Udmabuf]) {
        return;
    }
    let dma_buf = of_ours(Via::Udmabuf);
    let before = references_at_rest(&dma_buf);
    let taken = ImportInto::Vgem.import(&dma_buf, ExportedBy::Udmabuf).expect("vgem takes it");
    let back = taken.export().expect("it goes out again");
    assert_eq!((taken.driver(), taken.len_bytes()), ("vgem", dma_buf.len_bytes()));
    assert_eq!(back.inode(), dma_buf.inode());
    assert_ne!(back.as_fd().as_raw_fd(), dma_buf.as_fd().as_raw_fd());
    drop((back, taken));
    assert_eq!(references_at_rest(&dma_buf), before, "vgem has let go");
}

/// How many references there are once nobody is busy with it: threads of ours let go a moment after what they were for.
fn references_at_rest(dma_buf: &DmaBuf) -> u64 {
    let references = || dma_buf.info().expect("the kernel tells").references;
    let mut before = references();
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let now = references();
        if now == before {
            return now;
        }
        before = now;
    }
}
