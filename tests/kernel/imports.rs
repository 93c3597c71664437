//! Imports: foreign dma-bufs as buffers.
//!
//! Their makers are the kernel's own exporters. vgem's is a program of its own here, as a compositor or a camera would be: a dumb buffer,
//! made and mapped without the library. What udmabuf, the system heap and virtio-gpu export is made by a second device of the library.

use std::fs::{File, read_to_string};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use devpagemap::{
    Access, Buffer, CpuAccess, Device, DmaBuf, Error, Fence, Importer, Invalidated, PeerAddr, Place,
    RegionKind, Route, Size, SoftwareGpu, Via,
};
use drm::buffer::{Buffer as _, DrmFourcc};
use drm::control::Device as _;

use crate::calls::{IMPORT_SYNC_FILE, MMAP, SYNC, VGEM_FENCE_ATTACH};
use crate::card::Card;
use crate::observe::{descriptors, is_listed, wait_until};
use crate::refusing::refusing;
use crate::setup::{Thing, need};

const LEN: u64 = 64 << 10;
/// Who makes dma-bufs, and what that needs.
const MAKERS: [(Via, Thing); 4] = [
    (Via::Udmabuf, Thing::Udmabuf),
    (Via::DmaHeap, Thing::DmaHeap),
    (Via::Vgem, Thing::Vgem),
    (Via::VirtioGpu, Thing::VirtioGpu),
];

fn device() -> Device<SoftwareGpu> {
    let gpu = SoftwareGpu::builder().build().expect("a software GPU");
    Device::builder(gpu).vram(Size::mib(4)).gtt(Size::mib(4)).system(Size::mib(32)).build().expect("a device")
}

fn pattern(seed: u8) -> Vec<u8> {
    (0..LEN).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8) ^ seed).collect()
}

/// Without printing all of them.
#[track_caller]
fn assert_same(found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len());
    let wrong = found.iter().zip(expected).position(|(found, expected)| found != expected);
    assert_eq!(wrong.map(|at| (at, found[at], expected[at])), None, "the first byte that is wrong");
}

#[track_caller]
fn assert_holds(buffer: &Buffer, bytes: &[u8]) {
    let mut found = vec![0; bytes.len()];
    buffer.read_at(0, &mut found).expect("its bytes are there");
    assert_same(&found, bytes);
}

/// A job of the GPU that copies one buffer to another.
fn copy(device: &Device<SoftwareGpu>, from: &Buffer, to: &Buffer) -> devpagemap::Result<()> {
    let fence = device.submit().reads(from).writes(to).run(|gpu, job| {
        let (from, to) = (job.extents(from), job.extents(to));
        gpu.run(job, move |memory| {
            let mut bytes = Vec::new();
            memory.read(&from, |_, piece| bytes.extend_from_slice(piece));
            memory.write(&to, |at, piece| piece.copy_from_slice(&bytes[at as usize..][..piece.len()]));
            Ok(())
        })
    })?;
    Ok(fence.wait()?)
}

impl Card {
    /// A dumb buffer of [`LEN`] bytes and its dma-buf.
    fn make(&self, name: &str, flags: u32) -> (drm::control::dumbbuffer::DumbBuffer, OwnedFd) {
        let dumb = self.create_dumb_buffer((128, 128), DrmFourcc::Xrgb8888, 32).expect("a dumb buffer");
        assert_eq!(u64::from(dumb.pitch()) * 128, LEN);
        let fd = self.buffer_to_prime_fd(dumb.handle(), flags).expect("its dma-buf");
        let named = DmaBuf::try_from(fd.as_fd()).expect("it is one");
        named.set_name(name).expect("a name");
        (dumb, fd)
    }
}

/// How often this process has a dma-buf mapped.
fn mapped() -> usize {
    let maps = read_to_string("/proc/self/maps").expect("procfs");
    maps.lines().filter(|line| line.contains("dmabuf")).count()
}

#[test]
fn what_every_maker_exports_is_imported_and_its_bytes_go_both_ways() {
    for (via, thing) in MAKERS {
        if !need(&[thing]) {
            continue;
        }
        let (maker, user) = (device(), device());
        let original = maker.buffer(Size::bytes(LEN)).create().expect("a buffer");
        original.write_at(0, &pattern(1)).expect("it has room");
        let export = original.export(via.clone()).expect("it can be exported");
        let import = user.import(OwnedFd::from(export)).at_least(Size::bytes(LEN)).writable().name("theirs");
        let import = import.create().unwrap_or_else(|error| panic!("{via}: {error}"));
        assert!(import.is_imported() && import.region() == Some(RegionKind::Gtt), "{via}");
        assert_holds(&import, &pattern(1));
        import.write_at(0, &pattern(2)).expect("it is writable");
        assert_holds(&original, &pattern(2));
        let in_vram = user.buffer(Size::bytes(LEN)).prefer(Place::VRAM).create().expect("a buffer");
        copy(&user, &import, &in_vram).expect("a job reads it");
        assert_eq!(in_vram.region(), Some(RegionKind::Vram));
        assert_holds(&in_vram, &pattern(2));
        in_vram.write_at(0, &pattern(3)).expect("it has room");
        copy(&user, &in_vram, &import).expect("a job writes it");
        assert_holds(&original, &pattern(3));
        let map = import.map().expect("the CPU reaches it");
        // SAFETY: the map is alive, the bytes lie inside, no job uses the buffer and no other thread these bytes.
        unsafe { map.as_ptr().add(5000).write(77) };
        let mut byte = [0];
        original.read_at(5000, &mut byte).expect("it is there");
        assert_eq!(byte, [77], "{via}");
        assert_eq!(user.stats().imported_bytes, LEN, "{via}");
    }
}

#[test]
fn a_dumb_buffer_that_somebody_else_made_is_imported_and_used_by_both() {
    if !need(&[Thing::Vgem, Thing::DmaBufList]) {
        return;
    }
    let card = Card::open("vgem");
    let (mut dumb, fd) = card.make("imports-dumb", drm::CLOEXEC | drm::RDWR);
    card.map_dumb_buffer(&mut dumb).expect("its mapping").as_mut().copy_from_slice(&pattern(4));
    let device = device();
    let import = device.import(fd).writable().create().expect("it will do");
    assert_eq!(import.size(), Size::bytes(LEN));
    assert_holds(&import, &pattern(4));
    let other = device.buffer(Size::bytes(LEN)).create().expect("a buffer");
    other.write_at(0, &pattern(5)).expect("it has room");
    copy(&device, &other, &import).expect("a job writes it");
    assert_same(card.map_dumb_buffer(&mut dumb).expect("its mapping").as_ref(), &pattern(5));
    card.destroy_dumb_buffer(dumb).expect("it is ours");
    assert_holds(&import, &pattern(5));
    assert!(is_listed("imports-dumb"));
    drop(import);
    wait_until("it is gone", || !is_listed("imports-dumb"));
}

#[test]
fn nothing_takes_an_import_out_of_its_pages() {
    if !need(&[Thing::DmaHeap]) {
        return;
    }
    for policy in [CpuAccess::Auto, CpuAccess::Visible, CpuAccess::Window, CpuAccess::System] {
        let maker = device();
        let original = maker.buffer(Size::bytes(LEN)).create().expect("a buffer");
        let gpu = SoftwareGpu::builder().build().expect("a software GPU");
        let user = Device::builder(gpu).vram(Size::mib(4)).gtt(Size::mib(1)).cpu_access(policy).build();
        let user = user.expect("a device");
        let import = user.import(OwnedFd::from(original.export(Via::DmaHeap).expect("it can be exported")));
        let import = import.create().expect("it will do");
        import.place_now().expect("it has its place");
        for (place, size) in [(Place::VRAM, Size::mib(4)), (Place::GTT, Size::mib(1))] {
            user.buffer(size).prefer(place).create().expect("a buffer").place_now().expect("there is room");
        }
        import.write_at(0, &pattern(6)).expect("it is writable");
        assert_holds(&original, &pattern(6));
        assert_eq!((import.evictions(), user.stats().moves), (0, 0), "{policy:?}");
    }
}

#[test]
fn what_is_no_dma_buf_is_refused_by_what_it_is() {
    let device = device();
    let before = descriptors();
    let refusal = |fd: OwnedFd| device.import(fd).create().expect_err("it is no dma-buf");
    let file: OwnedFd = File::open("/proc/self/exe").expect("it runs").into();
    assert!(matches!(refusal(file), Error::NotADmaBuf { is: "a file", .. }));
    let (end, _other) = rustix::pipe::pipe().expect("two descriptors");
    assert!(matches!(refusal(end), Error::NotADmaBuf { is: "a pipe", .. }));
    drop(_other);
    let null: OwnedFd = File::open("/dev/null").expect("it is there").into();
    assert!(matches!(refusal(null), Error::NotADmaBuf { is: "a character device", .. }));
    let closed = DmaBuf::from_raw(1 << 20).expect_err("nothing is there");
    assert_eq!(closed, Error::ClosedFd { fd: 1 << 20 });
    assert_eq!((descriptors(), device.stats().imports), (before, 0));
}

#[test]
fn a_dma_buf_that_is_too_small_is_refused_with_both_sizes() {
    if !need(&[Thing::Vgem]) {
        return;
    }
    let card = Card::open("vgem");
    let device = device();
    let (_dumb, fd) = card.make("imports-small", drm::CLOEXEC | drm::RDWR);
    let refused = device.import(fd).at_least(Size::bytes(LEN + 1)).create().expect_err("one byte is missing");
    assert_eq!(refused, Error::DmaBufTooSmall { len_bytes: LEN, wanted_bytes: LEN + 1 });
    assert_eq!((device.stats().imported_bytes, mapped()), (0, 0));
}

#[test]
fn a_dma_buf_that_may_only_be_read_is_read_and_refuses_whoever_would_write() {
    if !need(&[Thing::Vgem]) {
        return;
    }
    let card = Card::open("vgem");
    let (mut dumb, fd) = card.make("imports-read-only", drm::CLOEXEC);
    card.map_dumb_buffer(&mut dumb).expect("its mapping").as_mut().copy_from_slice(&pattern(7));
    let device = device();
    let refused = device.import(fd.as_fd()).writable().create().expect_err("it may only be read");
    assert_eq!(refused, Error::DmaBufReadOnly);
    let import = device.import(fd).create().expect("it may be read");
    assert!(import.is_read_only());
    let read_only = Error::ReadOnly { buffer: import.id() };
    assert_eq!(import.write_at(0, &[1]).expect_err("it would write"), read_only);
    assert_eq!(import.map().map(drop).expect_err("it could write"), read_only);
    let other = device.buffer(Size::bytes(LEN)).create().expect("a buffer");
    assert_eq!(copy(&device, &other, &import).expect_err("it would write"), read_only);
    assert_eq!(other.region(), None, "nothing was brought anywhere");
    copy(&device, &import, &other).expect("a job reads it");
    assert_holds(&other, &pattern(7));
    let map = import.mapping().read_only().map().expect("it can be read");
    // SAFETY: the map is alive, the byte lies inside, nobody writes it.
    assert_eq!(unsafe { map.as_ptr().read() }, pattern(7)[0]);
    assert_holds(&import, &pattern(7));
}

#[test]
fn one_dma_buf_is_one_buffer_by_whatever_descriptor_it_comes() {
    if !need(&[Thing::Vgem]) {
        return;
    }
    let card = Card::open("vgem");
    let (dumb, first) = card.make("imports-twice", drm::CLOEXEC | drm::RDWR);
    let second = card.buffer_to_prime_fd(dumb.handle(), drm::CLOEXEC | drm::RDWR).expect("again");
    let copied = first.try_clone().expect("a descriptor is left");
    let device = device();
    let import = device.import(first).name("first").create().expect("it will do");
    for fd in [second, copied] {
        let again = device.import(fd).name("another").writable().create().expect("it is here");
        assert_eq!((again.id(), again.name()), (import.id(), Some("first")));
    }
    let (_other, fd) = card.make("imports-other", drm::CLOEXEC | drm::RDWR);
    assert_ne!(device.import(fd).create().expect("another dma-buf").id(), import.id());
    assert_eq!(device.stats().imports, 2);
}

#[test]
fn a_device_that_imports_its_own_export_has_the_buffer_that_it_was() {
    for (via, thing) in MAKERS {
        if !need(&[thing]) {
            continue;
        }
        let device = device();
        let buffer = device.buffer(Size::bytes(LEN)).name("ours").create().expect("a buffer");
        buffer.write_at(0, &pattern(8)).expect("it has room");
        let export = buffer.export(via.clone()).expect("it can be exported");
        let back = device.import(OwnedFd::from(export)).writable().create().expect("it is here");
        assert_eq!((back.id(), back.is_imported()), (buffer.id(), false), "{via}");
        assert_eq!(device.stats().imports, 0, "{via}");
        drop(buffer);
        assert_holds(&back, &pattern(8));
        let again = back.export(via.clone()).expect("it can be exported again");
        assert_eq!(device.import(again.as_fd()).create().expect("it is here").id(), back.id(), "{via}");
    }
}

#[test]
fn a_full_table_of_descriptors_is_an_error_of_its_own_and_changes_nothing() {
    if !need(&[Thing::Vgem]) {
        return;
    }
    let test = "imports::a_full_table_of_descriptors_is_an_error_of_its_own_and_changes_nothing";
    let child = crate::child::in_a_child(test, || {
        let card = Card::open("vgem");
        let (_dumb, fd) = card.make("imports-full", drm::CLOEXEC | drm::RDWR);
        let device = device();
        let limit = rustix::process::Rlimit { current: Some(64), maximum: Some(64) };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("a lower limit");
        let mut rest = Vec::new();
        while let Ok(another) = fd.try_clone() {
            rest.push(another);
        }
        let refused = device.import(fd.as_fd()).create().expect_err("there is none for the copy");
        assert!(matches!(refused, Error::NoDescriptorsLeft { .. }), "{refused}");
        assert_eq!(device.stats().imported_bytes, 0);
        let import = device.import(rest.pop().expect("many")).create().expect("it needs no more");
        import.read_at(0, &mut [0; 16]).expect("it is there");
    });
    if let Some(child) = child {
        crate::child::expect_success(&child);
    }
}

#[test]
fn whatever_call_the_kernel_refuses_an_import_and_its_bytes_are_as_before() {
    if !need(&[Thing::Vgem, Thing::Seccomp]) {
        return;
    }
    let card = Card::open("vgem");
    let device = device();
    let mappings = mapped();
    let (mut dumb, fd) = card.make("imports-refused", drm::CLOEXEC | drm::RDWR);
    card.map_dumb_buffer(&mut dumb).expect("its mapping").as_mut().copy_from_slice(&pattern(9));
    let refused = refusing(MMAP, || device.import(fd.as_fd()).create()).expect_err("it is to be mapped");
    assert!(refused.to_string().contains("Cannot allocate memory"), "{refused}");
    assert_eq!((device.stats().imported_bytes, mapped()), (0, mappings));
    let import = device.import(fd.as_fd()).writable().create().expect("nothing is in the way");
    let refused = [
        refusing(SYNC, || import.read_at(0, &mut [0])),
        refusing(SYNC, || import.write_at(0, &[1])),
        refusing(SYNC, || import.map().map(drop)),
        refusing(VGEM_FENCE_ATTACH, || copy(&device, &import, &import).map(drop)),
        refusing(IMPORT_SYNC_FILE, || copy(&device, &import, &import).map(drop)),
    ];
    for (case, refused) in refused.into_iter().enumerate() {
        let refused = refused.expect_err("it is not done without");
        assert!(refused.to_string().contains("Cannot allocate memory"), "{case}: {refused}");
    }
    assert!(import.fences().is_signaled());
    assert_holds(&import, &pattern(9));
}

#[test]
fn nothing_is_left_of_an_import_in_whatever_order_its_users_go() {
    if !need(&[Thing::Vgem, Thing::DmaBufList]) {
        return;
    }
    let card = Card::open("vgem");
    // What devices open once and keep is open now.
    drop((device().import(card.make("imports-first", drm::CLOEXEC | drm::RDWR).1).create(), device()));
    let (before, mappings) = (descriptors(), mapped());
    for order in permutations(4) {
        let name = format!("imports-order-{}", order.iter().map(usize::to_string).collect::<String>());
        let (dumb, fd) = card.make(&name, drm::CLOEXEC | drm::RDWR);
        let device = device();
        let import = device.import(fd).writable().create().expect("it will do");
        let copied = device.buffer(Size::bytes(LEN)).create().expect("a buffer");
        copy(&device, &import, &copied).expect("a job reads it");
        let map = import.map().expect("the CPU reaches it");
        let mut users: Vec<Option<Box<dyn FnOnce() + '_>>> = vec![
            Some(Box::new(move || drop((device, copied)))),
            Some(Box::new(move || drop(import))),
            Some(Box::new(move || drop(map))),
            Some(Box::new(|| card.destroy_dumb_buffer(dumb).expect("it is ours"))),
        ];
        for user in &order {
            match users[1..].iter().any(Option::is_some) {
                true => assert!(is_listed(&name), "{order:?} before {user}"),
                false => wait_until("the last user of the bytes has gone", || !is_listed(&name)),
            }
            users[*user].take().expect("each goes once")();
        }
        drop(users);
        wait_until("all have gone", || !is_listed(&name) && mapped() == mappings);
    }
    // What a device tells the kernel of its fences with goes some seconds after it.
    wait_until("no descriptor is left", || descriptors() == before);
}

fn permutations(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let shorter = permutations(count - 1);
    let with = |at: usize| shorter.iter().map(move |rest| [&rest[..at], &[count - 1], &rest[at..]].concat());
    (0..count).flat_map(with).collect()
}

/// Another device, which does as it is told.
struct Nic;

impl Importer for Nic {
    fn name(&self) -> &str {
        "nic"
    }

    fn invalidate(&self, _: &Invalidated) -> Option<Fence> {
        None
    }
}

#[test]
fn a_peer_of_this_device_sees_an_import_as_system_memory() {
    if !need(&[Thing::DmaHeap]) {
        return;
    }
    let (maker, user) = (device(), device());
    let original = maker.buffer(Size::bytes(LEN)).create().expect("a buffer");
    original.write_at(0, &pattern(9)).expect("it has room");
    let import = user.import(OwnedFd::from(original.export(Via::DmaHeap).expect("it can be exported")));
    let import = import.create().expect("it will do");
    let peer = user.join(Arc::new(Nic)).expect("an importer that can be");
    let attachment = import.attach(&peer).expect("one device");
    let map = attachment.map(0..LEN).expect("it is in system memory");
    map.wait(Access::Read).expect("the bytes are there");
    assert_eq!(map.route(), Route::System);
    let mut bytes = Vec::new();
    for extent in map.extents() {
        let PeerAddr::System(at) = extent.addr else { panic!("{extent:?}") };
        let mut piece = vec![0; extent.len_bytes as usize];
        user.driver().read_system(at, &mut piece).expect("an engine sees it");
        bytes.append(&mut piece);
    }
    assert_same(&bytes, &pattern(9));
}
