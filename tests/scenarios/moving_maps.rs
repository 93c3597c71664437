//! Threads that write through maps of a buffer that moves all the time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use devpagemap::{Buffer, Place, RegionKind, Size};

use crate::setup::numbers::Numbers;
use crate::setup::*;
use crate::words::{Words, words};

/// Moves between VRAM, GTT and System.
const MOVES: usize = 10_000;
/// What moves.
const SIZE_MIB: u64 = 2;

/// Whoever waits for a writer learns that it has ended, well or not.
struct StopsAll<'a>(&'a AtomicBool);

impl Drop for StopsAll<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes to words of its own in random order until told to stop. Before each write it looks whether the word is what it wrote there
/// last, and at the end whether all are.
fn write_and_check(words: Words<'_>, seed: u64, stop: &AtomicBool, written: &AtomicU64) {
    let _whatever_happens = StopsAll(stop);
    let (mut numbers, mut last) = (Numbers(seed), vec![0; words.len()]);
    let mut next = seed;
    while !stop.load(Ordering::Relaxed) {
        let index = numbers.below(last.len());
        assert_eq!(words.get(index), last[index], "word {index} is not what was written there last");
        next += 2;
        words.set(index, next);
        last[index] = next;
        // A few machines have as many cores as this has writers, and the engines want some too.
        if written.fetch_add(1, Ordering::Relaxed).is_multiple_of(256) {
            thread::yield_now();
        }
    }
    for (index, wanted) in last.iter().enumerate() {
        assert_eq!(words.get(index), *wanted, "word {index} at the end");
    }
}

/// One round through the three places, two copies and a change of name; returns where it was after each.
fn go_round(device: &Lab, buffer: &Buffer, mut after_each: impl FnMut()) -> [Option<RegionKind>; 3] {
    let mut places = [None; 3];
    let hog = vram_buffer(device, SIZE_MIB);
    hog.place_now().expect("the other can be evicted");
    places[0] = buffer.region();
    after_each();
    buffer.place_now().expect("GTT has room");
    places[1] = buffer.region();
    after_each();
    drop(hog);
    buffer.place_now().expect("VRAM has room");
    places[2] = buffer.region();
    after_each();
    places
}

fn moving_buffer(device: &Lab) -> Buffer {
    let buffer = device.buffer(Size::mib(SIZE_MIB)).prefer(Place::VRAM).or(Place::GTT).write_combined();
    let buffer = buffer.create().expect("it fits");
    buffer.place_now().expect("VRAM is empty");
    buffer
}

#[test]
fn no_write_is_lost_and_no_old_byte_is_seen_over_ten_thousand_moves() {
    without_deadlock(|| {
        let device = device(SIZE_MIB);
        let buffer = moving_buffer(&device);
        let (map, other) = (buffer.map().expect("all is visible"), buffer.map().expect("all is visible"));
        assert!(!map.is_pinned(), "this machine permits userfaultfd");
        let (stop, written) = (AtomicBool::new(false), [AtomicU64::new(0), AtomicU64::new(0)]);
        thread::scope(|scope| {
            // Each through a map of its own: the halves overlap in no word, the maps in every one.
            let ([first, _], [_, second]) = (words(&map).halves(), words(&other).halves());
            let (stop, written) = (&stop, &written);
            scope.spawn(move || write_and_check(first, 1, stop, &written[0]));
            scope.spawn(move || write_and_check(second, 2, stop, &written[1]));
            for _ in 0..MOVES / 3 + 1 {
                let places = go_round(&device, &buffer, || {
                    // Both write at each place, so that each has something to lose there. What is counted first may have been
                    // written before the move.
                    for written in written {
                        let enough = written.load(Ordering::Relaxed) + 2;
                        while written.load(Ordering::Relaxed) < enough && !stop.load(Ordering::Relaxed) {
                            thread::yield_now();
                        }
                    }
                });
                assert_eq!(places, [RegionKind::System, RegionKind::Gtt, RegionKind::Vram].map(Some));
            }
            stop.store(true, Ordering::Relaxed);
        });
        let stats = device.stats();
        assert!(stats.cpu_zaps as usize >= MOVES, "two maps, two copies a round: {}", stats.cpu_zaps);
        assert_eq!((stats.bounced_bytes, stats.cpu_waits_in_validate), (0, 0));
    });
}
