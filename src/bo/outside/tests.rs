//! Buffers in pages that are not the arena's, here in those of a memfd.

use std::sync::Arc;

use devpagemap_fence::{Held, Timeline};

use crate::backend::{MemfdPages, OutsidePages};
use crate::bo::CpuAccess;
use crate::cpu::Hold;
use crate::{Buffer, Device, Error, Place, RegionKind, Size, SoftwareGpu};

const PAGE: u64 = 4096;

fn device() -> Device<SoftwareGpu> {
    with_access(CpuAccess::Auto)
}

fn with_access(cpu_access: CpuAccess) -> Device<SoftwareGpu> {
    let gpu = SoftwareGpu::builder().build().expect("a software GPU");
    let builder = Device::builder(gpu).vram(Size::mib(4)).gtt(Size::mib(4)).system(Size::mib(16));
    builder.cpu_access(cpu_access).build().expect("a device")
}

fn pages_of(buffer: &Buffer, memfd: &MemfdPages) -> Arc<OutsidePages> {
    buffer.0.manager.cpu.map_outside(memfd.exported(())).expect("it can be mapped")
}

fn bring(buffer: &Buffer, pages: &Arc<OutsidePages>) -> crate::Result<()> {
    buffer.transact(|transaction, slot| transaction.bring_outside(slot, pages))
}

fn leave(buffer: &Buffer) -> bool {
    buffer.transact(|transaction, slot| transaction.leave_outside(slot)).expect("there is system memory")
}

fn hold(buffer: &Buffer) -> Hold {
    buffer.transact(|transaction, slot| Ok(transaction.hold(slot))).expect("nobody is in the way")
}

fn is_outside(buffer: &Buffer) -> bool {
    let mut held = Held::enter();
    buffer.0.reservation.lock(&mut held).resource.as_ref().is_some_and(|resource| resource.is_outside())
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8) ^ seed).collect()
}

/// A buffer of three and a half pages that holds a pattern, and a memfd for it.
fn patterned(device: &Device<SoftwareGpu>, place: Place) -> (Buffer, MemfdPages, Vec<u8>) {
    let bytes = pattern(3 * PAGE as usize + 2048, 7);
    let buffer = device.buffer(Size::bytes(bytes.len() as u64)).prefer(place).create().expect("a buffer");
    buffer.place_now().expect("there is room");
    buffer.write_at(0, &bytes).expect("it has room");
    (buffer, MemfdPages::new(4 * PAGE), bytes)
}

fn assert_holds(buffer: &Buffer, bytes: &[u8]) {
    let mut found = vec![0; bytes.len()];
    buffer.read_at(0, &mut found).expect("its bytes are there");
    assert_same(&found, bytes);
}

/// Without printing all of them.
fn assert_same(found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len());
    let wrong = found.iter().zip(expected).position(|(found, expected)| found != expected);
    assert_eq!(wrong.map(|at| (at, found[at], expected[at])), None, "the first byte that is wrong");
}

#[test]
fn bytes_from_every_region_arrive_in_outside_pages() {
    for place in [Place::VRAM, Place::GTT, Place::SYSTEM] {
        let device = device();
        let bytes = pattern(3 * PAGE as usize + 2048, 7);
        let buffer = device.buffer(Size::bytes(bytes.len() as u64)).prefer(place).create().expect("a buffer");
        buffer.write_at(0, &bytes).expect("it has room");
        buffer.place_now().expect("there is room");
        let memfd = MemfdPages::new(4 * PAGE);
        bring(&buffer, &pages_of(&buffer, &memfd)).expect("it may move");
        buffer.wait().expect("the copy works");
        assert_same(&memfd.read(0, bytes.len()), &bytes);
        assert_holds(&buffer, &bytes);
        let stats = device.stats();
        let used =
            (stats.vram_used_bytes, stats.gtt_used_bytes, stats.system_used_bytes, stats.export_pages_bytes);
        assert_eq!((buffer.region(), used), (Some(RegionKind::Gtt), (0, 0, 0, 4 * PAGE)));
    }
}

#[test]
fn a_buffer_that_was_never_used_is_cleared_into_outside_pages() {
    let device = device();
    let buffer = device.buffer(Size::bytes(2 * PAGE)).create().expect("a buffer");
    let memfd = MemfdPages::new(2 * PAGE);
    memfd.write(0, &[9; 2 * PAGE as usize]);
    bring(&buffer, &pages_of(&buffer, &memfd)).expect("it may move");
    buffer.wait().expect("the clear works");
    assert_eq!(memfd.read(0, 2 * PAGE as usize), vec![0; 2 * PAGE as usize]);
}

#[test]
fn what_others_write_to_outside_pages_is_what_the_cpu_and_the_gpu_read() {
    let device = device();
    let (buffer, memfd, bytes) = patterned(&device, Place::VRAM);
    bring(&buffer, &pages_of(&buffer, &memfd)).expect("it may move");
    let _held = hold(&buffer);
    buffer.wait().expect("the copy works");
    memfd.write(100, b"others were here");
    let mut expected = bytes;
    expected[100..116].copy_from_slice(b"others were here");
    assert_holds(&buffer, &expected);
    let copy = device.buffer(buffer.size()).create().expect("a buffer");
    copy_by_job(&device, &buffer, &copy);
    assert_holds(&copy, &expected);
    copy.write_at(0, b"and back").expect("it is there");
    copy_by_job(&device, &copy, &buffer);
    assert_eq!(memfd.read(0, 8), b"and back");
}

/// A job of the software GPU.
fn copy_by_job(device: &Device<SoftwareGpu>, from: &Buffer, to: &Buffer) {
    let fence = device.submit().reads(from).writes(to).run(|gpu, job| {
        let (from, to) = (job.extents(from), job.extents(to));
        gpu.run(job, move |memory| {
            let mut bytes = Vec::new();
            memory.read(&from, |_, piece| bytes.extend_from_slice(piece));
            memory.write(&to, |at, piece| piece.copy_from_slice(&bytes[at as usize..][..piece.len()]));
            Ok(())
        })
    });
    fence.expect("it can be submitted").wait().expect("it works");
}

#[test]
fn a_buffer_that_nobody_keeps_outside_goes_to_vram_with_the_next_job() {
    let device = device();
    let (buffer, memfd, bytes) = patterned(&device, Place::VRAM);
    bring(&buffer, &pages_of(&buffer, &memfd)).expect("it may move");
    buffer.place_now().expect("there is room");
    assert_eq!(buffer.region(), Some(RegionKind::Vram));
    device.wait_idle();
    assert_eq!((device.stats().export_pages_bytes, memfd.mappings()), (0, 0));
    assert_holds(&buffer, &bytes);
}

#[test]
fn a_buffer_leaves_outside_pages_for_the_arena_and_is_evicted_and_counted_like_any_other() {
    let device = device();
    let (buffer, memfd, bytes) = patterned(&device, Place::GTT);
    bring(&buffer, &pages_of(&buffer, &memfd)).expect("it may move");
    assert!(leave(&buffer) && leave(&buffer));
    assert_eq!(buffer.region(), Some(RegionKind::System));
    buffer.place_now().expect("there is room");
    device.wait_idle();
    let stats = device.stats();
    assert_eq!((stats.gtt_used_bytes, stats.export_pages_bytes, memfd.mappings()), (4 * PAGE, 0, 0));
    assert_holds(&buffer, &bytes);
    let rest = device.buffer(Size::mib(4)).prefer(Place::GTT).create().expect("a buffer");
    rest.place_now().expect("the other makes way");
    assert_eq!(buffer.region(), Some(RegionKind::System));
}

#[test]
fn who_is_held_outside_stays_and_jobs_use_it_there() {
    let device = device();
    let (buffer, memfd, _) = patterned(&device, Place::VRAM);
    let pages = pages_of(&buffer, &memfd);
    bring(&buffer, &pages).expect("it may move");
    let held = hold(&buffer);
    assert!(!leave(&buffer));
    let other = pages_of(&buffer, &MemfdPages::new(4 * PAGE));
    let region = RegionKind::Gtt;
    assert_eq!(bring(&buffer, &other), Err(Error::Pinned { buffer: buffer.id(), region }));
    bring(&buffer, &pages).expect("it is there already");
    let all_of_vram = device.buffer(Size::mib(4)).create().expect("a buffer");
    all_of_vram.place_now().expect("nobody is in VRAM");
    let job = device.submit().writes(&buffer).run(|gpu, job| {
        let extents = job.extents(&buffer);
        gpu.run(job, move |memory| {
            memory.write(&extents, |_, bytes| bytes.fill(3));
            Ok(())
        })
    });
    job.expect("it uses it where it is").wait().expect("it works");
    assert_eq!(memfd.read(0, 8), [3; 8]);
    assert!(is_outside(&buffer));
    drop(held);
    assert!(leave(&buffer));
}

#[test]
fn outside_pages_are_no_victims_and_cost_no_budget() {
    let device = device();
    let buffers: Vec<_> = (0..4)
        .map(|_| {
            let buffer = device.buffer(Size::mib(2)).prefer(Place::GTT).create().expect("a buffer");
            let memfd = MemfdPages::new(2 << 20);
            bring(&buffer, &pages_of(&buffer, &memfd)).expect("it may move");
            buffer
        })
        .collect();
    let rest = device.buffer(Size::mib(4)).prefer(Place::GTT).create().expect("a buffer");
    rest.place_now().expect("all of GTT is free");
    let stats = device.stats();
    assert_eq!((stats.gtt_used_bytes, stats.gtt_demotions, stats.evictions), (4 << 20, 0, 0));
    assert_eq!(stats.export_pages_bytes, 8 << 20);
    assert!(buffers.iter().all(is_outside));
}

#[test]
fn pages_that_will_not_do_are_refused_and_nothing_has_moved() {
    let device = device();
    let (buffer, _, bytes) = patterned(&device, Place::VRAM);
    let small = pages_of(&buffer, &MemfdPages::new(3 * PAGE));
    let refused = Error::DmaBufTooSmall { len_bytes: 3 * PAGE, wanted_bytes: 4 * PAGE };
    assert_eq!(bring(&buffer, &small), Err(refused));
    let read_only =
        crate::backend::OutsideMemory { writable: false, ..MemfdPages::new(4 * PAGE).exported(()) };
    let read_only = buffer.0.manager.cpu.map_outside(read_only).expect("it can be mapped");
    assert_eq!(bring(&buffer, &read_only), Err(Error::DmaBufReadOnly));
    assert_eq!(buffer.region(), Some(RegionKind::Vram));
    assert_holds(&buffer, &bytes);
    assert_eq!(device.stats().moves, 0);
}

#[test]
fn without_system_memory_a_buffer_stays_outside() {
    let device = device();
    let (buffer, memfd, bytes) = patterned(&device, Place::GTT);
    bring(&buffer, &pages_of(&buffer, &memfd)).expect("it may move");
    buffer.wait().expect("the copy works");
    let rest: Vec<_> = (0..4)
        .map(|_| {
            let rest = device.buffer(Size::mib(4)).prefer(Place::SYSTEM).create().expect("a buffer");
            rest.place_now().expect("there is room");
            rest
        })
        .collect();
    let refused = buffer.transact(|transaction, slot| transaction.leave_outside(slot));
    assert!(matches!(refused, Err(Error::Exhausted { region: RegionKind::System, .. })), "{refused:?}");
    assert!(is_outside(&buffer));
    assert_holds(&buffer, &bytes);
    drop(rest);
    assert!(leave(&buffer));
}

#[test]
fn pages_stay_mapped_until_the_last_job_on_them_is_done() {
    let device = device();
    let (buffer, memfd, _) = patterned(&device, Place::GTT);
    bring(&buffer, &pages_of(&buffer, &memfd)).expect("it may move");
    buffer.wait().expect("the copy works");
    let jobs = Timeline::new("jobs");
    let fence = device.submit().writes(&buffer).run(|_, _| Ok(jobs.next_point())).expect("it is queued");
    drop(buffer);
    assert_eq!((memfd.mappings(), device.stats().export_pages_bytes), (1, 4 * PAGE));
    jobs.signal(fence.seqno());
    assert_eq!((memfd.mappings(), device.stats().export_pages_bytes), (0, 0));
}

#[test]
fn nothing_of_outside_pages_is_left_in_whatever_order_their_users_go() {
    type Going = (Option<Device<SoftwareGpu>>, Option<Buffer>, Option<Arc<OutsidePages>>, Option<Timeline>);
    let steps: [fn(&mut Going); 4] = [
        |going| drop(going.0.take()),
        |going| drop(going.1.take()),
        |going| drop(going.2.take()),
        |going| {
            if let Some(jobs) = going.3.take() {
                jobs.signal(1);
            }
        },
    ];
    for order in permutations(4) {
        let device = device();
        let (buffer, memfd, _) = patterned(&device, Place::VRAM);
        let pages = pages_of(&buffer, &memfd);
        bring(&buffer, &pages).expect("it may move");
        let jobs = Timeline::new("jobs");
        let held = hold(&buffer);
        device.wait_idle();
        device.submit().writes(&buffer).run(|_, _| Ok(jobs.next_point())).expect("it is queued");
        drop(held);
        let mut going: Going = (Some(device), Some(buffer), Some(pages), Some(jobs));
        for step in &order {
            let has_users = going.1.is_some() || going.2.is_some() || going.3.is_some();
            assert_eq!(memfd.mappings(), usize::from(has_users), "{order:?} before {step}");
            steps[*step](&mut going);
        }
        assert_eq!(memfd.mappings(), 0, "{order:?}");
    }
}

fn permutations(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let shorter = permutations(count - 1);
    let with = |at: usize| shorter.iter().map(move |rest| [&rest[..at], &[count - 1], &rest[at..]].concat());
    (0..count).flat_map(with).collect()
}

#[test]
fn a_cpu_map_goes_along_and_keeps_the_buffer_there() {
    let device = device();
    let (buffer, memfd, bytes) = patterned(&device, Place::GTT);
    let map = buffer.map().expect("the CPU reaches it");
    // SAFETY: the map is alive, the byte lies inside, no job uses the buffer and no other thread the byte.
    unsafe { map.as_ptr().add(1).write(200) };
    bring(&buffer, &pages_of(&buffer, &memfd)).expect("it may move");
    // SAFETY: as above.
    unsafe { map.as_ptr().add(5000).write(201) };
    assert_eq!((memfd.read(1, 1), memfd.read(5000, 1)), (vec![200], vec![201]));
    memfd.write(9000, &[202]);
    // SAFETY: as above.
    assert_eq!(unsafe { map.as_ptr().add(9000).read() }, 202);
    map.forget();
    assert!(!leave(&buffer), "a map cannot follow it from there");
    drop(map);
    // Whoever has served a touch may have the mapping for another moment.
    while !leave(&buffer) {
        std::thread::yield_now();
    }
    let mut expected = bytes;
    (expected[1], expected[5000], expected[9000]) = (200, 201, 202);
    assert_holds(&buffer, &expected);
}

#[test]
fn no_policy_of_cpu_access_takes_a_buffer_away_that_is_held_outside() {
    for policy in [CpuAccess::Auto, CpuAccess::Visible, CpuAccess::Window, CpuAccess::System] {
        let device = with_access(policy);
        let (buffer, memfd, bytes) = patterned(&device, Place::VRAM);
        bring(&buffer, &pages_of(&buffer, &memfd)).expect("it may move");
        let _held = hold(&buffer);
        let map = buffer.map().expect("the CPU reaches it");
        // SAFETY: the map is alive, the byte lies inside, no job uses the buffer and no other thread the byte.
        assert_eq!(unsafe { map.as_ptr().read() }, bytes[0], "{policy:?}");
        assert_holds(&buffer, &bytes);
        assert!(is_outside(&buffer), "{policy:?}");
    }
}

#[test]
fn a_job_that_fails_outside_leaves_nothing_mapped() {
    let device = device();
    let (buffer, memfd, _) = patterned(&device, Place::GTT);
    bring(&buffer, &pages_of(&buffer, &memfd)).expect("it may move");
    let job = device.submit().writes(&buffer).run(|gpu, job| gpu.run(job, |_| Err("it breaks".into())));
    job.expect("it is queued").wait().expect_err("it breaks");
    drop(buffer);
    device.wait_idle();
    assert_eq!((memfd.mappings(), device.stats().export_pages_bytes), (0, 0));
}
