//! What others keep: bytes and pages while anybody has them, and what becomes of both when nobody has.

use std::os::fd::OwnedFd;

use devpagemap::{Buffer, Device, Export, ExportedBy, ImportInto, Place, RegionKind, Size, SoftwareGpu, Via};

use super::{ALL, BYTES, WAYS, buffer, bytes_of, device, fill, inode, let_go, read_all};
use crate::mapping::Mapping;
use crate::observe::{is_listed, wait_until};
use crate::setup::{Thing, need};

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
