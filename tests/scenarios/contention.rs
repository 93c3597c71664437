//! Clients that all want most of VRAM at once. Nobody is told that there is no memory, because there is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use devpagemap::{Buffer, Device, EvictionPolicy, Place, RegionKind, Size, SoftwareGpu};

use crate::setup::numbers::Numbers;
use crate::setup::*;

/// A buffer that many threads write, and the pattern that the last submitted writer left in it.
struct Shared {
    buffer: Buffer,
    /// Changed by jobs only, which the buffer's fences keep apart.
    seed: Arc<AtomicU64>,
}

/// Some of `0..count`, in some order.
fn choose(numbers: &mut Numbers, count: usize, chosen: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..count).collect();
    (0..chosen).map(|_| all.swap_remove(numbers.below(all.len()))).collect()
}

/// Submits one job that checks the chosen buffers and fills each anew.
fn rewrite(
    device: &Lab,
    shared: &[Shared],
    chosen: &[usize],
    fresh: u64,
) -> devpagemap::Result<devpagemap::Fence> {
    let submission =
        chosen.iter().fold(device.submit(), |submission, at| submission.writes(&shared[*at].buffer));
    submission.run(|gpu, job| {
        let parts: Vec<_> =
            chosen.iter().map(|at| (job.extents(&shared[*at].buffer), shared[*at].seed.clone())).collect();
        gpu.run(job, move |memory| {
            for (extents, seed) in &parts {
                check_pattern(memory, extents, seed.load(Ordering::Relaxed))?;
                write_pattern(memory, extents, fresh);
                seed.store(fresh, Ordering::Relaxed);
            }
            Ok(())
        })
    })
}

/// `clients` threads, each submitting batches of 5 to 8 of 12 buffers of 1 MiB to a GPU with 8 MiB.
fn compete(policy: EvictionPolicy, clients: u64) {
    let device = device_with(policy, 8);
    let shared: Vec<_> = (0..12)
        .map(|seed| Shared { buffer: filled(&device, 1, seed), seed: Arc::new(AtomicU64::new(seed)) })
        .collect();
    let start = Barrier::new(clients as usize);
    thread::scope(|scope| {
        for client in 0..clients {
            let (device, shared, start) = (&device, &shared, &start);
            scope.spawn(move || {
                let mut numbers = Numbers(client);
                start.wait();
                let batches = 160 / clients;
                let mut last = None;
                for batch in 0..batches {
                    let count = 5 + numbers.below(4);
                    let chosen = choose(&mut numbers, shared.len(), count);
                    let fence = rewrite(device, shared, &chosen, 1000 * (client + 1) + batch);
                    let fence =
                        fence.unwrap_or_else(|error| panic!("client {client}, batch {batch}: {error}"));
                    // No more than two batches ahead of the GPU, like any client.
                    if let Some(before) = last.replace(fence) {
                        before
                            .wait()
                            .unwrap_or_else(|error| panic!("client {client}, batch {batch}: {error}"));
                    }
                }
                finished(Ok(last.expect("there was a batch")));
            });
        }
    });
    for one in &shared {
        expect_bytes(&one.buffer, one.seed.load(Ordering::Relaxed));
    }
    let stats = device.stats();
    assert_eq!(stats.cpu_waits_in_validate, 0);
    assert_eq!(stats.vram_used_bytes + stats.system_used_bytes, 12 * MIB);
}

#[test]
fn two_clients_that_need_most_of_vram_both_get_it() {
    without_deadlock(|| compete(EvictionPolicy::LruSet, 2));
}

#[test]
fn four_clients_that_need_most_of_vram_all_get_it() {
    without_deadlock(|| compete(EvictionPolicy::LruSet, 4));
}

#[test]
fn eight_clients_that_need_most_of_vram_all_get_it() {
    without_deadlock(|| compete(EvictionPolicy::LruSet, 8));
}

#[test]
fn eight_clients_all_get_it_under_plain_lru_too() {
    without_deadlock(|| compete(EvictionPolicy::Lru, 8));
}

/// Each of four threads brings in its own buffer again and again, and every time finds it intact.
fn take_turns(device: &Device<SoftwareGpu>, create: impl Fn(u64) -> Buffer + Sync) {
    thread::scope(|scope| {
        for client in 0..4 {
            let create = &create;
            scope.spawn(move || {
                let buffer = create(client);
                finished(fill(device, &buffer, client));
                for round in 0..40 {
                    let fence = verify(device, &buffer, client);
                    let fence =
                        fence.unwrap_or_else(|error| panic!("client {client}, round {round}: {error}"));
                    fence.wait().unwrap_or_else(|error| panic!("client {client}, round {round}: {error}"));
                }
                expect_bytes(&buffer, client);
            });
        }
    });
    assert_eq!(device.stats().cpu_waits_in_validate, 0);
}

#[test]
fn each_client_can_have_all_memory_that_is_not_pinned() {
    without_deadlock(|| {
        let device = device(8);
        let pinned = filled(&device, 1, 9);
        let map = pinned.vmap().expect("all of VRAM is visible");
        take_turns(&device, |_| vram_buffer(&device, 7));
        assert_eq!((map.fell_back(), pinned.evictions()), (None, 0));
        expect_bytes(&pinned, 9);
    });
}

#[test]
fn each_client_gets_its_contiguous_memory() {
    without_deadlock(|| {
        let device = device(8);
        take_turns(&device, |client| buffer_at(&device, Place::VRAM.contiguous(), 5 + client % 3));
    });
}

#[test]
fn contiguous_and_scattered_clients_do_not_starve_each_other() {
    without_deadlock(|| {
        let device = device(8);
        take_turns(&device, |client| match client % 2 {
            0 => buffer_at(&device, Place::VRAM.contiguous(), 6),
            _ => vram_buffer(&device, 7),
        });
    });
}

#[test]
fn each_client_gets_the_visible_part() {
    without_deadlock(|| {
        let device = builder(8).visible(Size::mib(2)).build().expect("a device");
        take_turns(&device, |_| buffer_at(&device, Place::VRAM.visible(), 2));
    });
}

#[test]
fn each_client_gets_all_of_gtt() {
    without_deadlock(|| {
        let device = builder(1).gtt(Size::mib(8)).build().expect("a device");
        take_turns(&device, |client| buffer_at(&device, Place::GTT, 5 + client));
        let stats = device.stats();
        assert_eq!((stats.moves, stats.gtt_used_bytes), (0, 0));
        assert!(stats.gtt_demotions > 0);
    });
}

#[test]
fn clients_of_gtt_with_overlapping_lists_never_hear_that_it_is_full() {
    without_deadlock(|| {
        let device = builder(1).gtt(Size::mib(8)).build().expect("a device");
        let buffers: Vec<_> = (0..12).map(|_| buffer_at(&device, Place::GTT, 1)).collect();
        thread::scope(|scope| {
            for client in 0..8 {
                let (device, buffers) = (&device, &buffers);
                scope.spawn(move || {
                    let mut numbers = Numbers(client);
                    for _ in 0..100 {
                        let count = 5 + numbers.below(4);
                        let chosen = choose(&mut numbers, buffers.len(), count);
                        let submission = chosen
                            .iter()
                            .fold(device.submit(), |submission, at| submission.writes(&buffers[*at]));
                        let fence = submission.run(|gpu, job| gpu.run(job, |_| Ok(())));
                        finished(fence);
                    }
                });
            }
        });
        let in_gtt = buffers.iter().filter(|buffer| buffer.region() == Some(RegionKind::Gtt)).count();
        assert_eq!(device.stats().gtt_used_bytes, in_gtt as u64 * MIB);
    });
}

#[test]
fn a_buffer_is_dropped_by_one_thread_while_others_evict_it() {
    without_deadlock(|| {
        let device = device(4);
        thread::scope(|scope| {
            for client in 0..4 {
                let device = &device;
                scope.spawn(move || {
                    for round in 0..200 {
                        let buffer = filled(device, 1 + (client + round) % 3, round);
                        if round % 2 == 0 {
                            finished(verify(device, &buffer, round));
                        }
                    }
                });
            }
        });
        device.wait_idle();
        let stats = device.stats();
        assert_eq!((stats.vram_used_bytes, stats.system_used_bytes, stats.live_bo_bytes), (0, 0, 0));
        assert_eq!((stats.vram_pending_bytes, stats.system_pending_bytes), (0, 0));
    });
}
