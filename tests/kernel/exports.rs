//! Buffers as dma-bufs, through everything that makes them.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

#[cfg(feature = "gbm")]
use devpagemap::Image;
use devpagemap::{
    Buffer, Device, DmaBuf, Error, Export, ExportedBy, ImportInto, P2p, PassedOver, Place, RegionKind, Size,
    SoftwareGpu, Timeline, Via, WhyNot,
};
use rustix::fs::{OFlags, fcntl_getfl, fstat};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::child::{expect_success, in_a_child};
use crate::mapping::Mapping;
use crate::setup::{Thing, guest, need, say_loudly};

const ALL: [Thing; 5] = [Thing::Udmabuf, Thing::DmaHeap, Thing::Vgem, Thing::VirtioGpu, Thing::DmaBufList];
const WAYS: [Via; 4] = [Via::Udmabuf, Via::DmaHeap, Via::Vgem, Via::VirtioGpu];
const BYTES: u64 = 1 << 20;
/// Long enough that only what never comes takes longer.
const FOREVER: Duration = Duration::from_secs(30);

type Lab = Device<SoftwareGpu>;

fn device() -> Lab {
    let gpu = SoftwareGpu::builder().build().expect("threads for the rings");
    let builder = Device::builder(gpu).vram(Size::mib(8)).visible(Size::mib(8));
    builder.gtt(Size::mib(128)).system(Size::mib(256)).build().expect("a small device")
}

fn buffer(device: &Lab, name: &str) -> Buffer {
    let builder = device.buffer(Size::bytes(BYTES)).prefer(Place::VRAM).or(Place::GTT);
    builder.name(name).create().expect("a buffer")
}

fn pattern(seed: u8) -> impl Fn(usize) -> u8 {
    move |at| (at as u8).wrapping_mul(31).wrapping_add((at >> 12) as u8).wrapping_add(seed)
}

fn bytes_of(seed: u8) -> Vec<u8> {
    (0..BYTES as usize).map(pattern(seed)).collect()
}

/// Has the GPU fill a buffer, wherever it is.
fn fill(device: &Lab, buffer: &Buffer, seed: u8) {
    let job = device.submit().writes(buffer).run(|gpu, job| {
        let extents = job.extents(buffer);
        gpu.run(job, move |memory| {
            let fill = pattern(seed);
            memory.write(&extents, |offset, bytes| {
                bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = fill(offset as usize + at));
            });
            Ok(())
        })
    });
    job.expect("a job");
}

fn read_all(buffer: &Buffer) -> Vec<u8> {
    let mut bytes = vec![0; BYTES as usize];
    buffer.read_at(0, &mut bytes).expect("nothing is lost");
    bytes
}

fn inode(fd: impl AsFd) -> u64 {
    fstat(fd).expect("it is open").st_ino
}

/// Whether the kernel's list has a dma-buf of that name.
fn is_listed(name: &str) -> bool {
    let list = std::fs::read_to_string("/sys/kernel/debug/dma_buf/bufinfo").expect("debugfs is mounted");
    list.lines().any(|line| line.split_whitespace().any(|word| word == name))
}

#[track_caller]
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < FOREVER, "it never came about that {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Nobody has anything of this device any more, and it knows.
fn let_go(device: &Lab) {
    device.release_exports();
    wait_until("it is let go of", || device.stats().exported_bytes == 0);
}

#[track_caller]
fn reasons(error: Error) -> Vec<PassedOver> {
    match error {
        Error::NotExportable { reasons, .. } => reasons.to_vec(),
        error => panic!("{error}"),
    }
}

#[test]
fn what_one_side_writes_the_other_reads_whoever_exports() {
    if !need(&ALL) {
        return;
    }
    for via in WAYS {
        let device = device();
        let buffer = buffer(&device, "both-ways");
        fill(&device, &buffer, 1);
        let export = buffer.export(via.clone()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((export.via(), export.reasons()), (&via, &[][..]));
        let other = Mapping::of(&export, BYTES, true).expect("it may be written");
        assert!(other.read() == bytes_of(1), "{via}: what was there before");
        other.fill(pattern(2));
        assert!(read_all(&buffer) == bytes_of(2), "{via}: what the other has written");
        fill(&device, &buffer, 3);
        buffer.wait().expect("the job succeeds");
        assert!(other.read() == bytes_of(3), "{via}: what a job has written");
        buffer.write_at(0, &bytes_of(4)).expect("it is in system memory");
        assert!(other.read() == bytes_of(4), "{via}: what the CPU has written");
    }
}

#[test]
fn a_dma_buf_has_the_buffers_size_its_name_and_the_rights_that_were_asked_for() {
    if !need(&ALL) {
        return;
    }
    let exporters = ["udmabuf", "system", "drm", "virtio_gpu"];
    for (via, exporter) in WAYS.into_iter().zip(exporters) {
        let device = device();
        let odd = device
            .buffer(Size::bytes(BYTES - 100))
            .name("a name that is cut off after 31 bytes, as the kernel has it");
        let export = odd.create().expect("a buffer").export(via.clone()).expect("it can be had");
        assert_eq!(
            DmaBuf::new(export.as_fd().try_clone_to_owned().expect("one more"))
                .expect("it is one")
                .len_bytes(),
            BYTES
        );
        assert_eq!(fcntl_getfl(&export).expect("it is open") & OFlags::ACCMODE, OFlags::RDWR, "{via}");
        let info = export.dma_buf().info().expect("there is /proc");
        assert_eq!(info.name.as_deref(), Some("a name that is cut off after 31"), "{via}");
        assert_eq!(info.exporter, exporter);
        let nameless = device.buffer(Size::mib(1)).create().expect("a buffer");
        let info = nameless.export(via).expect("it can be had").dma_buf().info().expect("there is /proc");
        assert_eq!(info.name, Some(format!("devpagemap:{}", nameless.id())));
    }
}

#[test]
fn exported_again_it_is_the_same_dma_buf() {
    if !need(&ALL) {
        return;
    }
    for via in WAYS {
        let device = device();
        let buffer = buffer(&device, "again");
        let [one, two, any] =
            [via.clone(), via.clone(), Via::Auto].map(|via| buffer.export(via).expect("it can be had"));
        assert_eq!((inode(&one), inode(&one)), (inode(&two), inode(&any)), "{via}");
        assert_eq!(any.via(), &via);
        assert_eq!(device.stats().exported_bytes, BYTES, "one buffer is exported");
    }
}

#[test]
fn who_maps_a_buffer_before_its_bytes_are_there_sees_nothing_of_who_had_the_pages() {
    if !need(&ALL) {
        return;
    }
    for via in WAYS {
        let device = device();
        let secret = device.buffer(Size::bytes(BYTES)).prefer(Place::GTT).create().expect("a buffer");
        secret.write_at(0, &vec![0xee; BYTES as usize]).expect("there is room");
        drop(secret);
        let next = buffer(&device, "next");
        fill(&device, &next, 1);
        next.wait().expect("the job succeeds");
        let gate = Timeline::new("gate");
        let job = device.submit().writes(&next).after(&gate.next_point());
        job.run(|gpu, job| gpu.run(job, |_| Ok(()))).expect("a job is queued");
        let export = next.export(via.clone()).expect("it can be had");
        let curious = Mapping::of_what_is_there(&export, BYTES, false).expect("it can be mapped");
        assert!(
            curious.read().iter().all(|byte| *byte == 0),
            "{via}: the copy waits, and there is nothing else"
        );
        gate.signal(1);
        assert!(Mapping::of(&export, BYTES, false).expect("it can be mapped").read() == bytes_of(1), "{via}");
    }
}

#[test]
fn a_buffer_that_is_exported_is_not_exported_otherwise_at_the_same_time() {
    if !need(&ALL) {
        return;
    }
    let device = device();
    let buffer = buffer(&device, "otherwise");
    let export = buffer.export(Via::Vgem).expect("it can be had");
    let as_it_is = WhyNot::ExportedAs { via: Via::Vgem, read_only: false };
    let refused = reasons(buffer.export(Via::Udmabuf).expect_err("it is in the pages of vgem"));
    assert_eq!(refused, [PassedOver { via: Via::Udmabuf, why: as_it_is.clone() }]);
    let refused = reasons(buffer.export(Via::Vgem.read_only()).expect_err("others may write it"));
    assert_eq!(refused, [PassedOver { via: Via::Vgem, why: as_it_is }]);
    drop(export);
    let_go(&device);
    let other = buffer.export(Via::Udmabuf).expect("nobody has the other any more");
    assert_eq!(other.via(), &Via::Udmabuf);
}

#[test]
fn who_may_only_read_cannot_map_it_for_writing_and_sees_what_is_written() {
    if !need(&ALL) {
        return;
    }
    for via in [Via::Vgem, Via::VirtioGpu] {
        let device = device();
        let buffer = buffer(&device, "read-only");
        fill(&device, &buffer, 1);
        let export = buffer.export(via.clone().read_only()).unwrap_or_else(|error| panic!("{error}"));
        assert!(export.is_read_only());
        assert_eq!(fcntl_getfl(&export).expect("it is open") & OFlags::ACCMODE, OFlags::RDONLY);
        assert_eq!(Mapping::of(&export, BYTES, true).err(), Some(Errno::ACCESS), "{via}");
        let other = Mapping::of(&export, BYTES, false).expect("it may be read");
        assert!(other.read() == bytes_of(1), "{via}");
        fill(&device, &buffer, 2);
        buffer.wait().expect("the job succeeds");
        assert!(other.read() == bytes_of(2), "{via}");
    }
    for via in [Via::Udmabuf, Via::DmaHeap] {
        let refused = buffer(&device(), "read-only").export(via.clone().read_only());
        let refused = reasons(refused.expect_err("it can always be written"));
        assert_eq!(refused, [PassedOver { via, why: WhyNot::NeverReadOnly }]);
    }
}

#[test]
fn auto_takes_what_copies_nothing_and_else_says_why_not() {
    if !need(&ALL) {
        return;
    }
    let device = device();
    let small = buffer(&device, "small").export(Via::Auto).expect("it can be had");
    assert_eq!((small.via(), small.reasons()), (&Via::Udmabuf, &[][..]));
    let read_only = buffer(&device, "read").export(Via::Auto.read_only()).expect("it can be had");
    let never = |via| PassedOver { via, why: WhyNot::NeverReadOnly };
    assert_eq!(read_only.reasons(), [never(Via::Udmabuf), never(Via::DmaHeap)]);
    assert_eq!(read_only.via(), &Via::Vgem);
    let limit =
        std::fs::read_to_string("/sys/module/udmabuf/parameters/size_limit_mb").expect("udmabuf is here");
    let limit_bytes = limit.trim().parse::<u64>().expect("a number") << 20;
    if limit_bytes < 128 << 20 {
        let large =
            device.buffer(Size::bytes(limit_bytes + 4096)).prefer(Place::GTT).create().expect("a buffer");
        let export = large.export(Via::Auto).expect("a heap takes it");
        let why = WhyNot::TooLarge { len_bytes: limit_bytes + 4096, limit_bytes };
        assert_eq!(export.reasons(), [PassedOver { via: Via::Udmabuf, why }]);
        assert_eq!((export.via(), export.len_bytes()), (&Via::DmaHeap, limit_bytes + 4096));
    }
}

#[test]
fn a_descriptor_keeps_the_bytes_when_buffer_and_device_are_dropped_first() {
    if !need(&ALL) {
        return;
    }
    for via in WAYS {
        let device = device();
        let buffer = buffer(&device, "orphan");
        fill(&device, &buffer, 7);
        let fd: OwnedFd = buffer.export(via.clone()).expect("it can be had").into();
        drop((buffer, device));
        // Another device takes what is free, and writes all over it.
        let next = self::device();
        for round in 0..4 {
            let others: Vec<Buffer> = (0..32).map(|_| self::buffer(&next, "other")).collect();
            others.iter().for_each(|other| fill(&next, other, round));
            next.wait_idle();
        }
        let other = Mapping::of(&fd, BYTES, false).expect("it may be read");
        assert!(other.read() == bytes_of(7), "{via}");
        drop(fd);
        assert!(is_listed("orphan"), "{via}: a mapping is enough");
        assert!(other.read() == bytes_of(7), "{via}");
        drop(other);
        wait_until("nobody has it any more", || !is_listed("orphan"));
    }
}

#[test]
fn pages_that_others_see_are_given_to_nobody_else_whatever_is_dropped() {
    if !need(&ALL) {
        return;
    }
    for via in WAYS {
        let device = device();
        let buffer = buffer(&device, "seen");
        fill(&device, &buffer, 9);
        let export = buffer.export(via.clone()).expect("it can be had");
        let other = Mapping::of(&export, BYTES, false).expect("it may be read");
        drop((buffer, export));
        for round in 0..6 {
            let pressure: Vec<Buffer> = (0..40).map(|_| self::buffer(&device, "pressure")).collect();
            pressure.iter().for_each(|one| fill(&device, one, round));
            device.wait_idle();
            assert_eq!(device.release_exports(), 0, "{via}: it is mapped");
        }
        assert!(other.read() == bytes_of(9), "{via}");
        assert_eq!(device.stats().exported_bytes, BYTES, "{via}");
        drop(other);
        wait_until("it is let go of", || device.stats().exported_bytes == 0);
        wait_until("the dma-buf is gone", || !is_listed("seen"));
    }
}

#[test]
fn when_nobody_has_it_any_more_the_buffer_moves_again() {
    if !need(&ALL) {
        return;
    }
    for via in WAYS {
        let device = device();
        let buffer = buffer(&device, "let-go");
        fill(&device, &buffer, 1);
        assert_eq!(buffer.region(), Some(RegionKind::Vram));
        let export: Export = buffer.export(via.clone()).expect("it can be had");
        fill(&device, &buffer, 2);
        assert_eq!(buffer.region(), Some(RegionKind::Gtt), "{via}: jobs use it where it is");
        let fd: OwnedFd = export.into();
        let second = fd.try_clone().expect("one more");
        drop(fd);
        assert_eq!(device.release_exports(), 0, "{via}: a copy of the descriptor is enough");
        drop(second);
        wait_until("it is let go of", || device.stats().exported_bytes == 0);
        wait_until("jobs have it in VRAM again", || {
            fill(&device, &buffer, 3);
            buffer.region() == Some(RegionKind::Vram)
        });
        assert!(read_all(&buffer) == bytes_of(3), "{via}");
        wait_until("the dma-buf is gone", || !is_listed("let-go"));
        assert_eq!(device.stats().export_pages_bytes, 0, "{via}");
    }
}

#[test]
fn what_was_let_go_of_in_an_exporters_pages_is_exported_again_as_it_was_or_comes_home() {
    if !need(&ALL) {
        return;
    }
    for via in [Via::DmaHeap, Via::Vgem, Via::VirtioGpu] {
        let device = device();
        let buffer = device.buffer(Size::bytes(BYTES)).prefer(Place::GTT).create().expect("a buffer");
        buffer.write_at(0, &bytes_of(1)).expect("there is room");
        let before = inode(buffer.export(via.clone()).expect("it can be had"));
        let_go(&device);
        let moves = device.stats().moves;
        let again = buffer.export(via.clone()).expect("it can be had");
        assert_eq!((inode(&again), device.stats().moves), (before, moves), "{via}: nothing was copied");
        drop(again);
        wait_until("it is in the arena again", || device.stats().export_pages_bytes == 0);
        assert!(read_all(&buffer) == bytes_of(1), "{via}");
    }
}

#[test]
fn an_exported_buffer_is_not_evicted_and_others_make_do_with_the_rest() {
    if !need(&ALL) {
        return;
    }
    for via in WAYS {
        let gpu = SoftwareGpu::builder().build().expect("threads for the rings");
        let device = Device::builder(gpu).vram(Size::mib(4)).gtt(Size::mib(4)).system(Size::mib(24));
        let device = device.build().expect("a small device");
        let held: Vec<Buffer> = (0..3).map(|_| buffer(&device, "held")).collect();
        held.iter().zip(20..).for_each(|(one, seed)| fill(&device, one, seed));
        let exports = held.iter().map(|one| one.export(via.clone()).expect("it can be had"));
        let exports: Vec<Export> = exports.collect();
        let crowd: Vec<Buffer> = (0..16).map(|_| buffer(&device, "crowd")).collect();
        for round in 0..3 {
            crowd.iter().zip(40..).for_each(|(one, seed)| fill(&device, one, seed + round));
        }
        for ((one, export), seed) in held.iter().zip(&exports).zip(20..) {
            assert_eq!(one.region(), Some(RegionKind::Gtt), "{via}");
            let other = Mapping::of(export, BYTES, false).expect("it may be read");
            assert!(other.read() == bytes_of(seed), "{via}");
        }
        crowd.iter().zip(42..).for_each(|(one, seed)| assert!(read_all(one) == bytes_of(seed), "{via}"));
    }
}

#[test]
fn memory_of_what_nobody_has_any_more_is_there_when_it_is_needed() {
    if !need(&[Thing::Udmabuf]) {
        return;
    }
    let gpu = SoftwareGpu::builder().build().expect("threads for the rings");
    let device = Device::builder(gpu).vram(Size::mib(1)).gtt(Size::mib(4)).system(Size::mib(4));
    let device = device.build().expect("a small device");
    for _ in 0..20 {
        let room = device.buffer(Size::mib(3)).prefer(Place::GTT).create().expect("a buffer");
        // Its last handle goes with the descriptor; nobody has had the time to notice.
        drop(room.export(Via::Udmabuf).expect("what came before makes way"));
        drop(room);
    }
}

#[test]
fn a_buffer_that_has_to_be_in_the_bar_is_not_exported() {
    if !need(&[Thing::Udmabuf, Thing::Vgem]) {
        return;
    }
    let device = device();
    let must = device.buffer(Size::mib(1)).p2p(P2p::Require).create().expect("a buffer");
    fill(&device, &must, 1);
    for via in [Via::Auto, Via::Udmabuf, Via::Vgem] {
        let refused = must.export(via).expect_err("it may not leave the BAR");
        assert!(matches!(refused, Error::NotPeerCapable { .. }), "{refused}");
    }
    assert_eq!((must.region(), device.stats().exports), (Some(RegionKind::Vram), 0));
}

#[test]
fn a_driver_that_has_a_buffer_twice_keeps_it_until_both_are_gone() {
    if !need(&[Thing::Vgem, Thing::Udmabuf]) {
        return;
    }
    let device = device();
    let buffer = buffer(&device, "twice");
    let export = buffer.export(Via::Udmabuf).expect("it can be had");
    let vgem = ImportInto::Vgem;
    let first = vgem.import(export.dma_buf(), ExportedBy::Udmabuf).expect("vgem takes it");
    let second = first.beside(export.dma_buf()).expect("once more");
    let own = second.export().expect("it is there");
    let third = second.beside(&own).expect("its own export comes in again");
    assert_eq!([first.handle(), second.handle()], [third.handle(); 2], "the kernel has one handle for it");
    drop((first, second));
    let fourth = third.export().expect("the handle is there until its last holder is gone");
    assert_eq!(inode(&fourth), inode(&export));
    drop((fourth, own, export));
    assert_eq!(device.release_exports(), 0, "a driver's import keeps the buffer");
    drop(third);
    wait_until("it is let go of", || device.stats().exported_bytes == 0);
}

#[cfg(feature = "gbm")]
#[test]
fn a_buffer_that_is_an_image_has_the_layout_that_the_driver_wants() {
    if !need(&[Thing::Gbm, Thing::VirtioGpu]) {
        return;
    }
    let image = Image {
        width: 512,
        height: 512,
        format: *b"XR24",
        modifiers: Vec::new(),
        driver: Some("virtio_gpu".into()),
    };
    let device = device();
    let buffer = buffer(&device, "image");
    fill(&device, &buffer, 5);
    let export = buffer.export(Via::Gbm(image.clone())).unwrap_or_else(|error| panic!("{error}"));
    let layout = export.layout().expect("it is an image");
    assert_eq!((layout.width, layout.height, layout.format, layout.planes.len()), (512, 512, *b"XR24", 1));
    assert!(u64::from(layout.planes[0].stride_bytes) * 512 <= export.len_bytes(), "{layout:?}");
    let other = Mapping::of(&export, BYTES, true).expect("it may be written");
    assert!(other.read() == bytes_of(5));
    other.fill(pattern(6));
    assert!(read_all(&buffer) == bytes_of(6));
    let again = buffer.export(Via::Gbm(image.clone())).expect("it is there");
    assert_eq!((inode(&again), again.layout()), (inode(&export), export.layout()));
    let larger = device.buffer(Size::mib(2)).create().expect("a buffer");
    let refused = larger.export(Via::Gbm(image.clone())).expect_err("it is not in the image");
    assert!(matches!(refused, Error::DmaBufTooSmall { .. }), "{refused}");
    let linear = Image { modifiers: vec![0], ..image.clone() };
    let export = self::buffer(&device, "linear").export(Via::Gbm(linear));
    match export {
        Ok(export) => assert_eq!(export.layout().map(|layout| layout.modifier), Some(0)),
        Err(error) => assert!(matches!(reasons(error)[..], [PassedOver { why: WhyNot::Refused(_), .. }])),
    }
    let nonsense = Image { format: *b"none", ..image };
    let refused = reasons(larger.export(Via::Gbm(nonsense)).expect_err("there is no such format"));
    assert!(matches!(refused[0].why, WhyNot::Refused(_)), "{refused:?}");
}

#[test]
fn a_buffer_that_came_in_as_a_dma_buf_goes_out_as_that() {
    if !need(&[Thing::DmaHeap, Thing::Udmabuf]) {
        return;
    }
    let (theirs, ours) = (device(), device());
    let source = buffer(&theirs, "source");
    fill(&theirs, &source, 3);
    let export = source.export(Via::DmaHeap).expect("it can be had");
    let import = ours.import(export.as_fd().try_clone_to_owned().expect("one more")).create();
    let import = import.expect("it is a dma-buf");
    let onward = import.export(Via::Auto).expect("it is one already");
    assert_eq!((onward.via(), inode(&onward)), (&Via::Imported, inode(&export)));
    let refused = reasons(import.export(Via::Udmabuf).expect_err("its pages are not ours"));
    assert!(matches!(refused[0].why, WhyNot::ExportedAs { via: Via::Imported, .. }), "{refused:?}");
    assert!(reasons(source.export(Via::Imported).expect_err("it was not imported")).len() == 1);
}

#[test]
fn a_full_table_of_descriptors_is_its_own_error_and_changes_nothing() {
    const TEST: &str = "exports::a_full_table_of_descriptors_is_its_own_error_and_changes_nothing";
    /// More than any export needs.
    const MANY_DESCRIPTORS: u64 = 40;
    if !need(&ALL) {
        return;
    }
    let child = in_a_child(TEST, || {
        for via in WAYS {
            let device = device();
            let buffer = buffer(&device, "full");
            fill(&device, &buffer, 1);
            buffer.wait().expect("the job succeeds");
            let mut refusals = 0;
            loop {
                match with_descriptors_left(refusals, || buffer.export(via.clone())) {
                    Ok(_export) => break,
                    Err(error @ Error::NoDescriptorsLeft { .. }) => {
                        refusals += 1;
                        assert!(refusals < MANY_DESCRIPTORS, "{via}: {error}");
                    }
                    Err(Error::NotExportable { reasons, .. }) => {
                        let why = &reasons[0].why;
                        let is_table = |error: &Error| matches!(error, Error::NoDescriptorsLeft { .. });
                        assert!(matches!(why, WhyNot::Refused(error) if is_table(error)), "{via}: {why}");
                        refusals += 1;
                        assert!(refusals < MANY_DESCRIPTORS, "{via}: {why}");
                    }
                    Err(error) => panic!("{via}: {error}"),
                }
                assert_eq!(buffer.region(), Some(RegionKind::Vram), "{via}");
                let stats = device.stats();
                assert_eq!((stats.exported_bytes, stats.export_pages_bytes), (0, 0), "{via}");
                assert!(read_all(&buffer) == bytes_of(1), "{via}");
            }
            assert!(refusals >= 2, "{via}: a dma-buf and its copy, at least");
        }
    });
    if let Some(child) = child {
        expect_success(&child);
    }
}

/// Runs `body` while only so many more descriptors can be opened.
fn with_descriptors_left<O>(left: u64, body: impl FnOnce() -> O) -> O {
    let before = getrlimit(Resource::Nofile);
    // The kernel gives out the lowest free number, so the table is filled up first.
    let mut ballast = Vec::new();
    while let Ok(one) = std::fs::File::open("/dev/null") {
        let number = std::os::fd::AsRawFd::as_raw_fd(&one) as u64;
        let is_last = ballast.len() as u64 + 4 < number && number > 100;
        ballast.push(one);
        if is_last || number > 200 {
            setrlimit(Resource::Nofile, Rlimit { current: Some(number + 1), maximum: before.maximum })
                .expect("it may be lowered");
        }
    }
    for _ in 0..left {
        ballast.pop();
    }
    let result = body();
    setrlimit(Resource::Nofile, before).expect("it is no more than before");
    result
}

#[test]
fn who_has_no_rights_is_told_to_what() {
    const TEST: &str = "exports::who_has_no_rights_is_told_to_what";
    const NOBODY: u32 = 65534;
    if std::env::var("DEVPAGEMAP_TEST_NOBODY").is_ok() {
        let device = device();
        let buffer = buffer(&device, "nobody");
        for via in WAYS {
            let refused = buffer.export(via.clone()).expect_err("nobody may use the device");
            assert!(matches!(refused, Error::NoRights { .. }), "{via}: {refused}");
        }
        let refused = reasons(buffer.export(Via::Auto).expect_err("nobody may use any of them"));
        assert!(refused.iter().all(|one| matches!(one.why, WhyNot::NoRights { .. })), "{refused:?}");
        assert_eq!(refused.len(), WAYS.len());
        return;
    }
    // On other machines a user may have rights.
    if guest().is_none() || !need(&ALL) {
        return;
    }
    let program = std::env::current_exe().expect("a test has a program");
    let mut child = Command::new(program);
    child.args(["--exact", TEST, "--nocapture"]).env("DEVPAGEMAP_TEST_NOBODY", "1").uid(NOBODY).gid(NOBODY);
    expect_success(&child.output().expect("the program can be run again"));
}

#[test]
fn what_the_kernel_limits_is_a_reason_and_changes_nothing() {
    // These are the whole machine's.
    if guest().is_none() || !need(&[Thing::Udmabuf]) {
        return;
    }
    let device = device();
    let buffer = buffer(&device, "limited");
    fill(&device, &buffer, 1);
    let refused = with_parameter("size_limit_mb", 0, || buffer.export(Via::Udmabuf));
    let why = WhyNot::TooLarge { len_bytes: BYTES, limit_bytes: 0 };
    assert_eq!(reasons(refused.expect_err("it takes nothing")), [PassedOver { via: Via::Udmabuf, why }]);
    let refused = with_parameter("list_limit", 0, || buffer.export(Via::Udmabuf));
    let refused = reasons(refused.expect_err("it takes no pieces"));
    assert!(matches!(refused[0].why, WhyNot::TooManyRuns { limit: 0, .. }), "{refused:?}");
    assert_eq!(buffer.region(), Some(RegionKind::Vram));
    assert!(read_all(&buffer) == bytes_of(1));
    buffer.export(Via::Udmabuf).expect("the limits are what they were");
}

fn with_parameter<O>(name: &str, value: u64, body: impl FnOnce() -> O) -> O {
    let path = format!("/sys/module/udmabuf/parameters/{name}");
    let before = std::fs::read_to_string(&path).expect("udmabuf is here");
    std::fs::write(&path, value.to_string()).expect("the administrator may");
    let result = body();
    std::fs::write(&path, before.trim()).expect("it was so before");
    result
}

#[test]
fn what_each_way_costs_is_said() {
    const MANY: u64 = 16 << 20;
    if !need(&ALL) {
        return;
    }
    for via in WAYS {
        let device = device();
        let buffer = device.buffer(Size::bytes(MANY)).prefer(Place::GTT).create().expect("a buffer");
        buffer.place_now().expect("there is room");
        buffer.wait().expect("zeros");
        let start = Instant::now();
        let export = buffer.export(via.clone()).expect("it can be had");
        let first = start.elapsed();
        buffer.wait().expect("it is there");
        let arrived = start.elapsed();
        let start = Instant::now();
        let again = buffer.export(via.clone()).expect("it can be had");
        let second = start.elapsed();
        let start = Instant::now();
        assert!(
            Mapping::of(&export, MANY, false).expect("it may be read").read().iter().all(|byte| *byte == 0)
        );
        let read = start.elapsed();
        let references = export.dma_buf().info().expect("there is /proc").references;
        drop((again, export));
        let start = Instant::now();
        let_go(&device);
        let gone = start.elapsed();
        say_loudly(&format!(
            "{via}, 16 MiB: exported after {first:?}, bytes there after {arrived:?}, again in {second:?}, \
             read byte by byte in {read:?}, let go of in {gone:?}; {} references of our own",
            references - 2
        ));
    }
}
