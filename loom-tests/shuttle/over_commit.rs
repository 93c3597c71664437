//! Many submitters over a VRAM that is smaller than what they work on.
#![cfg(shuttle)]

use std::sync::Arc;

use devpagemap::migrate::Space;
use devpagemap::{Addr, Buffer, Device};
use devpagemap_loom_tests::gpu::{Crank, ModelGpu, PAGE, buffer, check_at_rest, cranked_device};
use devpagemap_loom_tests::ring::Ring;
use devpagemap_loom_tests::storm::storm;
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread::{self, JoinHandle};

const VRAM_PAGES: u64 = 4;
const BUFFERS: usize = 8;

fn engines(crank: &Arc<Crank>, count: usize) -> Vec<JoinHandle<()>> {
    let turn = |crank: Arc<Crank>| thread::spawn(move || while crank.turn() {});
    (0..count).map(|_| turn(crank.clone())).collect()
}

fn join(threads: Vec<JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
}

/// A job that adds one to the first word of each of `buffers`, not at once.
fn count_up(device: &Device<ModelGpu>, ring: &Ring, buffers: &[&Buffer]) {
    let submission = buffers.iter().fold(device.submit(), |submission, buffer| submission.writes(buffer));
    let queued = submission.run(|gpu, job| {
        let words: Vec<Addr> = buffers.iter().map(|buffer| first_word(&job.extents(buffer))).collect();
        let vram = gpu.vram().clone();
        Ok(ring.queue(job, move || {
            let before: Vec<u64> = words.iter().map(|word| to_number(&vram.read(*word, 8))).collect();
            thread::yield_now();
            for (word, before) in words.iter().zip(before) {
                vram.write(*word, &(before + 1).to_le_bytes());
            }
        }))
    });
    drop(queued.expect("a submission that fits waits for its turn"));
}

fn first_word(extents: &devpagemap::ExtentList) -> Addr {
    let first = extents.iter().next().expect("a buffer has bytes");
    assert_eq!(first.addr.space(), Space::Vram);
    first.addr
}

fn to_number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("a word"))
}

/// 6 submitters, 2 rings, 2 engines. Each buffer has been written as often as its word says, wherever it has been since.
#[test]
fn what_submitters_count_adds_up_over_a_vram_half_the_size() {
    storm("what_submitters_count_adds_up_over_a_vram_half_the_size", 300, || {
        let (device, crank) = cranked_device(VRAM_PAGES);
        let turning = engines(&crank, 2);
        let rings = [Ring::new("gfx"), Ring::new("compute")];
        let serving = rings.clone().map(|ring| thread::spawn(move || ring.serve()));
        let buffers: Arc<Vec<Buffer>> = Arc::new((0..BUFFERS).map(|_| buffer(&device)).collect());
        let submitters: Vec<JoinHandle<Vec<u64>>> = (0..6)
            .map(|_| {
                let (device, rings, buffers) = (device.clone(), rings.clone(), buffers.clone());
                thread::spawn(move || {
                    let mut written = vec![0; BUFFERS];
                    for _ in 0..3 {
                        let used = some_of(thread_rng().gen_range(1..4));
                        used.iter().for_each(|index| written[*index] += 1);
                        let used: Vec<&Buffer> = used.iter().map(|index| &buffers[*index]).collect();
                        count_up(&device, &rings[thread_rng().gen_range(0..2)], &used);
                    }
                    written
                })
            })
            .collect();
        let written = submitters.into_iter().map(|submitter| submitter.join().expect("no panic"));
        let expected =
            written.reduce(|left, right| left.iter().zip(right).map(|(left, right)| left + right).collect());
        device.wait_idle();
        for (buffer, expected) in buffers.iter().zip(expected.expect("there are submitters")) {
            let mut word = [0; 8];
            buffer.read_at(0, &mut word).expect("it is whole");
            assert_eq!(u64::from_le_bytes(word), expected, "buffer {}", buffer.id());
        }
        drop(buffers);
        device.wait_idle();
        check_at_rest(&device, 0, 0);
        drop(device);
        rings.iter().for_each(|ring| ring.stop());
        join(turning);
        join(serving.into());
    });
}

/// So many different buffers.
fn some_of(count: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..BUFFERS).collect();
    (0..count).map(|_| all.swap_remove(thread_rng().gen_range(0..all.len()))).collect()
}

/// 8 threads that make buffers and let them go, 2 engines. No bytes are lost, and nobody is told that there are none.
#[test]
fn evictors_and_releasers_share_four_pages() {
    storm("evictors_and_releasers_share_four_pages", 600, || {
        let (device, crank) = cranked_device(VRAM_PAGES);
        let turning = engines(&crank, 2);
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let device = device.clone();
                thread::spawn(move || {
                    let mut kept = Vec::new();
                    for _ in 0..3 {
                        let pages = thread_rng().gen_range(1..3);
                        let size = devpagemap::Size::bytes(pages * PAGE);
                        let fresh = device.buffer(size).create().expect("it fits");
                        fresh.place_now().expect("somebody makes way");
                        kept.push(fresh);
                        if thread_rng().gen_bool(0.5) {
                            kept.swap_remove(thread_rng().gen_range(0..kept.len()));
                        }
                    }
                })
            })
            .collect();
        join(threads);
        device.wait_idle();
        check_at_rest(&device, 0, 0);
        drop(device);
        join(turning);
    });
}
