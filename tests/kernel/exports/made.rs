//! What comes out of an export: the bytes, their rights and names, and the way that was taken.

use std::os::fd::AsFd;
use std::time::Instant;

use devpagemap::{DmaBuf, PassedOver, Place, Size, Timeline, Via, WhyNot};
#[cfg(feature = "gbm")]
use devpagemap::{Error, Image};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::Errno;

use super::{ALL, BYTES, WAYS, buffer, bytes_of, device, fill, inode, let_go, pattern, read_all, reasons};
use crate::mapping::Mapping;
use crate::setup::{Thing, need, say_loudly};

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
