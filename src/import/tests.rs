//! Imports, here of memfds instead of dma-bufs: everything but the look at the descriptor.

use std::sync::Arc;

use devpagemap_migrate::SysAddr;

use super::Import;
use crate::backend::MemfdPages;
use crate::pagemap::{Policy, Profile};
use crate::{
    Access, Buffer, Client, CpuAccess, Device, Error, Fence, Importer, Invalidated, Peer, PeerAddr, Place,
    RegionKind, Route, Size, SoftwareGpu, Stats, Timeline,
};

const PAGE: u64 = 4096;
const LEN: u64 = 4 * PAGE;

fn device() -> Device<SoftwareGpu> {
    let gpu = SoftwareGpu::builder().build().expect("a software GPU");
    Device::builder(gpu).vram(Size::mib(4)).gtt(Size::mib(1)).system(Size::mib(16)).build().expect("a device")
}

/// What `Device::import` does once it has looked at the descriptor.
fn import(device: &Device<SoftwareGpu>, memfd: &MemfdPages) -> Import {
    import_as(device, memfd, true)
}

fn import_as(device: &Device<SoftwareGpu>, memfd: &MemfdPages, writable: bool) -> Import {
    let manager = device.buffer(Size::bytes(PAGE)).create().expect("a buffer").0.manager.clone();
    Import::new(&manager, Ok(memfd.foreign(writable)))
}

/// A job of the software GPU that fills the buffer.
fn fill(device: &Device<SoftwareGpu>, buffer: &Buffer, value: u8) -> crate::Result<crate::Fence> {
    device.submit().writes(buffer).run(|gpu, job| {
        let extents = job.extents(buffer);
        gpu.run(job, move |memory| {
            memory.write(&extents, |_, bytes| bytes.fill(value));
            Ok(())
        })
    })
}

/// A job of the software GPU that fails unless the buffer is full of `value`.
fn check(device: &Device<SoftwareGpu>, buffer: &Buffer, value: u8) -> crate::Result<crate::Fence> {
    device.submit().reads(buffer).run(|gpu, job| {
        let extents = job.extents(buffer);
        gpu.run(job, move |memory| {
            let mut is_full = true;
            memory.read(&extents, |_, bytes| is_full &= bytes.iter().all(|byte| *byte == value));
            if is_full { Ok(()) } else { Err(format!("it is not full of {value}")) }
        })
    })
}

#[test]
fn the_bytes_of_an_import_are_those_of_its_maker_both_ways() {
    let device = device();
    let memfd = MemfdPages::new(LEN);
    memfd.write(0, &[5; LEN as usize]);
    let buffer = import(&device, &memfd).at_least(Size::bytes(LEN)).writable().name("frame").create();
    let buffer = buffer.expect("it will do");
    assert_eq!(
        (buffer.name(), buffer.size(), buffer.region()),
        (Some("frame"), Size::bytes(LEN), Some(RegionKind::Gtt))
    );
    assert!(buffer.is_imported() && !buffer.is_read_only());
    check(&device, &buffer, 5).expect("it is queued").wait().expect("nothing has been cleared");
    memfd.write(100, &[6]);
    let mut byte = [0];
    buffer.read_at(100, &mut byte).expect("it is there");
    assert_eq!(byte, [6]);
    buffer.write_at(101, &[7]).expect("it is writable");
    assert_eq!(memfd.read(100, 2), [6, 7]);
    fill(&device, &buffer, 8).expect("it is queued").wait().expect("it works");
    assert_eq!(memfd.read(0, 4), [8; 4]);
    buffer.with_page(3, |bytes| bytes.fill(9)).expect("it has four");
    let map = buffer.map().expect("the CPU reaches it");
    // SAFETY: the map is alive, the byte lies inside, no job uses the buffer and no other thread the byte.
    let byte = unsafe { map.as_ptr().add(3 * PAGE as usize).read() };
    assert_eq!((byte, memfd.read(3 * PAGE, 1)), (9, vec![9]));
}

#[test]
fn an_import_is_counted_apart_and_gone_when_it_is() {
    let device = device();
    let before = device.stats();
    let memfd = MemfdPages::new(LEN);
    let buffer = import(&device, &memfd).create().expect("it will do");
    let stats = device.stats();
    let own = |stats: &Stats| {
        (stats.live_bo_bytes, stats.gtt_used_bytes, stats.system_used_bytes, stats.vram_used_bytes)
    };
    assert_eq!((own(&stats), stats.imported_bytes, stats.imports), (own(&before), LEN, 1));
    assert_eq!(stats.allocs - stats.frees, before.allocs - before.frees);
    drop(buffer);
    let stats = device.stats();
    assert_eq!((own(&stats), stats.imported_bytes, memfd.mappings()), (own(&before), 0, 0));
    assert_eq!(stats.allocs - stats.frees, before.allocs - before.frees);
}

#[test]
fn an_import_may_be_larger_than_all_memory_of_the_device() {
    let device = device();
    let memfd = MemfdPages::new(64 << 20);
    let buffer = import(&device, &memfd).create().expect("it costs nothing of the device's");
    fill(&device, &buffer, 1).expect("it is queued").wait().expect("it works");
    assert_eq!(memfd.read((64 << 20) - 1, 1), [1]);
}

#[test]
fn nothing_takes_an_import_out_of_its_pages() {
    for policy in [CpuAccess::Auto, CpuAccess::Visible, CpuAccess::Window, CpuAccess::System] {
        let gpu = SoftwareGpu::builder().build().expect("a software GPU");
        let builder = Device::builder(gpu).vram(Size::mib(4)).gtt(Size::mib(1)).cpu_access(policy);
        let device = builder.build().expect("a device");
        let memfd = MemfdPages::new(LEN);
        let buffer = import(&device, &memfd).create().expect("it will do");
        buffer.place_now().expect("it has its place");
        let _map = buffer.map().expect("the CPU reaches it");
        for place in [Place::VRAM, Place::GTT] {
            let size = if place == Place::GTT { Size::mib(1) } else { Size::mib(4) };
            let other = device.buffer(size).prefer(place).create().expect("a buffer");
            other.place_now().expect("there is room");
        }
        fill(&device, &buffer, 3).expect("it is queued").wait().expect("it works");
        assert_eq!(
            (memfd.read(0, 1), buffer.evictions(), device.stats().moves),
            (vec![3], 0, 0),
            "{policy:?}"
        );
    }
}

#[test]
fn the_same_pages_are_one_buffer() {
    let device = device();
    let (one, other) = (MemfdPages::new(LEN), MemfdPages::new(LEN));
    let first = import(&device, &one).name("first").create().expect("it will do");
    let second = import(&device, &one).name("second").writable().create().expect("it is the first");
    assert_eq!((second.id(), second.name()), (first.id(), Some("first")));
    assert_ne!(import(&device, &other).create().expect("another").id(), first.id());
    let stats = device.stats();
    assert_eq!((stats.imports, one.mappings()), (2, 1));
    drop(first);
    second.write_at(0, &[1]).expect("it is there");
    drop(second);
    assert_eq!(one.mappings(), 0);
    let third = import(&device, &one).name("third").create().expect("it is unknown again");
    assert_eq!(third.name(), Some("third"));
}

#[test]
fn two_devices_have_a_buffer_each() {
    let (one, other) = (device(), device());
    let memfd = MemfdPages::new(LEN);
    let (first, second) = (import(&one, &memfd).create(), import(&other, &memfd).create());
    let (first, second) = (first.expect("it will do"), second.expect("it will do"));
    first.write_at(7, &[42]).expect("it is writable");
    let mut byte = [0];
    second.read_at(7, &mut byte).expect("it is there");
    assert_eq!((byte, memfd.mappings()), ([42], 2));
}

#[test]
fn the_export_of_a_buffer_is_that_buffer_until_it_is_over() {
    let device = device();
    let memfd = MemfdPages::new(LEN);
    let inode = memfd.foreign(true).inode;
    let exported = device.buffer(Size::bytes(LEN - 100)).name("ours").create().expect("a buffer");
    exported.0.manager.known_dma_bufs.enter_export(inode, &exported);
    let again = import(&device, &memfd).create().expect("it is an export of the device's own");
    assert_eq!((again.id(), again.is_imported(), memfd.mappings()), (exported.id(), false, 0));
    let too_many = import(&device, &memfd).at_least(Size::bytes(LEN)).create();
    let refused = Error::DmaBufTooSmall { len_bytes: LEN - 100, wanted_bytes: LEN };
    assert_eq!(too_many.expect_err("the buffer is smaller than its pages"), refused);
    exported.0.manager.known_dma_bufs.forget_export(inode);
    assert!(import(&device, &memfd).create().expect("it is nobody's now").is_imported());
}

#[test]
fn whoever_would_write_a_read_only_import_is_refused_before_anything_changes() {
    let device = device();
    let memfd = MemfdPages::new(LEN);
    memfd.write(0, &[4; LEN as usize]);
    for import in [import_as(&device, &memfd, false), import(&device, &memfd).read_only()] {
        let buffer = import.create().expect("it will do");
        assert!(buffer.is_read_only());
        let read_only = Error::ReadOnly { buffer: buffer.id() };
        let other = device.buffer(Size::bytes(PAGE)).create().expect("a buffer");
        let job = device.submit().writes(&other).writes(&buffer).run(|_, _| unreachable!("it is not queued"));
        assert_eq!(job.expect_err("it would write"), read_only);
        assert_eq!(other.region(), None, "nothing was brought anywhere");
        assert_eq!(buffer.write_at(0, &[1]).expect_err("it would write"), read_only);
        assert_eq!(buffer.with_page(0, |_| ()).expect_err("it could write"), read_only);
        assert_eq!(buffer.map().map(drop).expect_err("it could write"), read_only);
        assert_eq!(buffer.vmap().map(drop).expect_err("it could write"), read_only);
        let map = buffer.mapping().read_only().map().expect("it can be read");
        // SAFETY: the map is alive, the byte lies inside, nobody writes it.
        assert_eq!(unsafe { map.as_ptr().read() }, 4);
        assert_eq!(map.write(0, &[1]).expect_err("it would write"), read_only);
        check(&device, &buffer, 4).expect("it is queued").wait().expect("it is as it was");
        assert!(buffer.fences().is_signaled());
    }
    assert_eq!(memfd.read(0, 4), [4; 4]);
}

#[test]
fn what_is_here_for_reading_is_not_there_for_writing() {
    let device = device();
    let memfd = MemfdPages::new(LEN);
    let buffer = import(&device, &memfd).read_only().create().expect("it will do");
    let refused = import(&device, &memfd).writable().create().expect_err("it is read only here");
    assert_eq!(refused, Error::AlreadyImported { buffer: buffer.id(), why: "for reading only" });
    assert_eq!(import(&device, &memfd).create().expect("whatever is permitted").id(), buffer.id());
    let read_only_fd = import_as(&device, &memfd, false).writable().create();
    assert_eq!(read_only_fd.expect_err("the descriptor does not permit it"), Error::DmaBufReadOnly);
    drop(buffer);
    import(&device, &memfd).writable().create().expect("nobody has it for reading any more");
}

#[test]
fn pages_that_are_too_few_are_refused_with_both_numbers() {
    let device = device();
    let memfd = MemfdPages::new(LEN);
    let refused = import(&device, &memfd).at_least(Size::bytes(LEN + 1)).create();
    let (len_bytes, wanted_bytes) = (LEN, LEN + 1);
    assert_eq!(refused.expect_err("one byte is missing"), Error::DmaBufTooSmall { len_bytes, wanted_bytes });
    let refused = import(&device, &MemfdPages::new(0)).create();
    assert_eq!(
        refused.expect_err("there is nothing"),
        Error::DmaBufTooSmall { len_bytes: 0, wanted_bytes: 1 }
    );
    assert_eq!((device.stats().imported_bytes, memfd.mappings()), (0, 0));
}

#[test]
fn a_client_has_no_more_imports_than_its_limit() {
    let device = device();
    let client = device.client("compositor");
    client.set_import_limit(Size::bytes(LEN + PAGE));
    let (one, other) = (MemfdPages::new(LEN), MemfdPages::new(2 * PAGE));
    let buffer = import(&device, &one).on(&client).create().expect("it is within the limit");
    assert_eq!(client.imported(), Size::bytes(LEN));
    let refused = import(&device, &other).on(&client).create().expect_err("one page is left");
    let (limit_bytes, used_bytes, wanted_bytes) = (LEN + PAGE, LEN, 2 * PAGE);
    assert_eq!(refused, Error::ImportLimit { limit_bytes, used_bytes, wanted_bytes });
    assert_eq!((other.mappings(), client.imported()), (0, Size::bytes(LEN)));
    import(&device, &one).on(&client).create().expect("what is here costs nothing");
    import(&device, &other).create().expect("nobody's account has no limit");
    let jobs = Timeline::new("jobs");
    let fence = device.submit().writes(&buffer).run(|_, _| Ok(jobs.next_point())).expect("it is queued");
    drop(buffer);
    assert_eq!(client.imported(), Size::bytes(LEN), "its job still uses it");
    jobs.signal(fence.seqno());
    assert_eq!(client.imported(), Size::bytes(0));
    import(&device, &other).on(&client).create().expect("there is room now");
}

#[test]
fn a_client_of_another_device_is_refused_by_name() {
    let (device, other) = (device(), device());
    let stranger: Client = other.client("stranger");
    let memfd = MemfdPages::new(LEN);
    let refused = import(&device, &memfd).on(&stranger).create().expect_err("it is not ours");
    assert_eq!(refused, Error::ForeignClient { client: "stranger".into() });
    assert_eq!((stranger.imported(), memfd.mappings()), (Size::bytes(0), 0));
}

#[test]
fn pages_that_the_system_does_not_map_are_refused_and_charged_to_nobody() {
    let device = device();
    let client = device.client("greedy");
    let manager = device.buffer(Size::bytes(PAGE)).create().expect("a buffer").0.manager.clone();
    let huge = super::Foreign { len_bytes: 1 << 60, ..MemfdPages::new(PAGE).foreign(true) };
    let refused = Import::new(&manager, Ok(huge)).on(&client).create().expect_err("no machine maps 1 EiB");
    assert!(matches!(refused, Error::Io { bytes, .. } if bytes == 1 << 60), "{refused}");
    assert_eq!((client.imported(), device.stats().imported_bytes), (Size::bytes(0), 0));
}

#[test]
fn who_imports_what_another_has_just_dropped_waits_for_its_jobs() {
    let device = device();
    let memfd = MemfdPages::new(LEN);
    let first = import(&device, &memfd).create().expect("it will do");
    let jobs = Timeline::new("jobs");
    let fence = device.submit().writes(&first).run(|_, _| Ok(jobs.next_point())).expect("it is queued");
    let id = first.id();
    drop(first);
    let second = import(&device, &memfd).create().expect("it will do");
    assert_ne!(second.id(), id);
    assert!(!second.fences().is_signaled(), "a job of the first one still writes");
    jobs.signal(fence.seqno());
    second.wait().expect("it is over");
    drop(second);
    device.wait_idle();
    assert_eq!(memfd.mappings(), 0);
}

#[test]
fn a_failed_job_of_a_buffer_that_is_gone_is_no_failure_of_the_next() {
    let device = device();
    let memfd = MemfdPages::new(LEN);
    let first = import(&device, &memfd).create().expect("it will do");
    let jobs = Timeline::new("jobs");
    let fence = device.submit().writes(&first).run(|_, _| Ok(jobs.next_point())).expect("it is queued");
    drop(first);
    let second = import(&device, &memfd).create().expect("it will do");
    jobs.fail(fence.seqno(), crate::FenceError::Cancelled);
    second.write_at(0, &[1]).expect("its own bytes are not lost");
    fill(&device, &second, 2).expect("it is queued").wait().expect("it works");
}

/// Another device, which does as it is told.
struct Nic(Profile);

impl Importer for Nic {
    fn name(&self) -> &str {
        "nic"
    }

    fn profile(&self) -> Profile {
        self.0.clone()
    }

    fn invalidate(&self, _: &Invalidated) -> Option<Fence> {
        None
    }
}

fn join(device: &Device<SoftwareGpu>, profile: Profile) -> Peer {
    device.join(Arc::new(Nic(profile))).expect("an importer that can be")
}

#[test]
fn an_importer_that_would_write_a_read_only_import_is_refused_however_it_says_so() {
    let device = device();
    let memfd = MemfdPages::new(LEN);
    let buffer = import_as(&device, &memfd, false).create().expect("it will do");
    let other = device.buffer(Size::bytes(PAGE)).create().expect("a buffer");
    let importer = join(&device, Profile::dynamic());
    let attachment = buffer.attach(&importer).expect("one device");
    let map = attachment.map(0..LEN).expect("it is in system memory");
    let group = importer.attach_all(&[other.clone(), buffer.clone()]).expect("one device");
    let both = group.map(0..PAGE + LEN).expect("there is room");
    let work = Timeline::new("nic");
    let done = work.next_point();
    let refused = [
        map.begin(Access::Write).map(drop),
        map.enqueue(Access::Write, &done).map(drop),
        both.begin(Access::Write).map(drop),
        attachment.add_fence(&done, Access::Write),
    ];
    for refused in refused {
        assert_eq!(refused.expect_err("it would write"), Error::ReadOnly { buffer: buffer.id() });
    }
    assert!(buffer.fences().is_signaled());
    map.enqueue(Access::Read, &done).expect("it only reads");
    assert!(!buffer.fences().is_signaled());
    both.begin(Access::Read).expect("it only reads");
}

#[test]
fn an_import_is_system_memory_to_other_importers_pinned_ones_included() {
    let device = device();
    let memfd = MemfdPages::new(LEN);
    let buffer = import(&device, &memfd).create().expect("it will do");
    for profile in [Profile::dynamic(), Profile::pinned(), Profile::dynamic().system_only()] {
        let attachment = buffer.attach(&join(&device, profile)).expect("one device");
        let map = attachment.map(0..LEN).expect("it is in system memory");
        assert_eq!((map.route(), map.extents().len()), (Route::System, 1));
        let PeerAddr::System(at) = map.extents()[0].addr else { panic!("{:?}", map.extents()) };
        memfd.write(9, &[77]);
        let mut byte = [0];
        device.driver().read_system(SysAddr(at.0 + 9), &mut byte).expect("an engine sees it");
        assert_eq!(byte, [77]);
        map.wait(Access::Write).expect("it is writable");
        fill(&device, &buffer, 1).expect("it is queued").wait().expect("it works");
        assert!(map.is_current(), "nothing moves");
    }
}

#[test]
fn whoever_requires_the_bar_does_not_get_an_import() {
    let device = device();
    let memfd = MemfdPages::new(LEN);
    let buffer = import(&device, &memfd).create().expect("it will do");
    let required = Profile::dynamic().policy(Policy::Required);
    let attached = buffer.attach(&join(&device, required)).and_then(|attachment| attachment.map(0..LEN));
    let why = "its placement does not allow VRAM";
    assert_eq!(
        attached.map(drop).expect_err("it is in no VRAM"),
        Error::NotPeerCapable { buffer: buffer.id(), why }
    );
    assert_eq!((buffer.region(), memfd.mappings()), (Some(RegionKind::Gtt), 1));
}

#[test]
fn importers_of_a_read_only_import_read_and_do_not_write() {
    let device = device();
    let memfd = MemfdPages::new(LEN);
    let buffer = import(&device, &memfd).read_only().create().expect("it will do");
    let attachment = buffer.attach(&join(&device, Profile::dynamic())).expect("one device");
    let map = attachment.map(0..LEN).expect("it is in system memory");
    map.wait(Access::Read).expect("it may read");
    let read_only = Error::ReadOnly { buffer: buffer.id() };
    assert_eq!(map.wait(Access::Write).expect_err("it would write"), read_only);
    let work = Timeline::new("work").next_point();
    assert_eq!(attachment.add_fence(&work, Access::Write).expect_err("it would write"), read_only);
    assert!(buffer.fences().is_signaled());
    attachment.add_fence(&work, Access::Read).expect("it may read");
}

#[test]
fn an_unplugged_device_leaves_imports_where_they_are() {
    let device = device();
    let memfd = MemfdPages::new(LEN);
    memfd.write(0, &[6]);
    let buffer = import(&device, &memfd).create().expect("it will do");
    device.unplug(crate::Unplug::Orderly).expect("nobody is in the way");
    let mut byte = [0];
    buffer.read_at(0, &mut byte).expect("it is in system memory");
    assert_eq!((byte, buffer.region()), ([6], Some(RegionKind::Gtt)));
    drop(buffer);
    assert_eq!(memfd.mappings(), 0);
}
