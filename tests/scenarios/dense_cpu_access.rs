//! Frames of a game whose CPU maps, reads and writes all the time, in a VRAM that does not hold everything: how much is moved only
//! so that the CPU reaches it.

use devpagemap::{Buffer, CpuAccess, Place, Size, Stats};

use crate::setup::numbers::Numbers;
use crate::setup::*;

const FRAMES: usize = 60;
/// VRAM is 32 MiB; these are to it what 32, 64, 128 and 256 MiB are to a gigabyte.
const BARS_KIB: [u64; 4] = [1024, 2048, 4096, 8192];

/// A buffer and the pattern that it holds.
struct Known {
    buffer: Buffer,
    seed: u64,
}

/// All buffers of the game; more bytes than VRAM has.
struct Game {
    device: Lab,
    numbers: Numbers,
    /// Written once, drawn often, looked at by the CPU rarely.
    textures: Vec<Known>,
    /// Mapped and rewritten by the CPU every few frames.
    streams: Vec<Known>,
    /// Written by the GPU, read by the CPU in small pieces.
    results: Vec<Known>,
    /// Mapped by the CPU, which needs to read them fast.
    shadows: Vec<Known>,
    next_seed: u64,
}

impl Game {
    fn new(policy: CpuAccess, bar_kib: u64) -> Game {
        let device = builder(32).visible(Size::kib(bar_kib)).cpu_access(policy).build().expect("a device");
        let mut next_seed = 0;
        let mut make = |count: usize, kib: u64, combined: bool, or_gtt: bool| -> Vec<Known> {
            let mut one = || {
                next_seed += 1;
                let buffer = device.buffer(Size::kib(kib)).prefer(Place::VRAM);
                let buffer = if or_gtt { buffer.or(Place::GTT) } else { buffer };
                // Where everything is moved to where the CPU sees it, nothing may ask for cached memory.
                let combined = combined || policy == CpuAccess::Visible;
                let buffer = if combined { buffer.write_combined() } else { buffer };
                let buffer = buffer.create().expect("a small buffer");
                fill(&device, &buffer, next_seed).expect("somebody can go");
                Known { buffer, seed: next_seed }
            };
            (0..count).map(|_| one()).collect()
        };
        let textures = make(32, 1024, false, false);
        let streams = make(8, 384, true, false);
        let results = make(8, 512, true, false);
        let shadows = make(4, 256, false, true);
        Game { device, numbers: Numbers(3), textures, streams, results, shadows, next_seed }
    }

    fn fresh_seed(&mut self) -> u64 {
        self.next_seed += 1;
        self.next_seed
    }

    fn frame(&mut self, frame: usize) {
        for _ in 0..6 {
            let at = self.numbers.below(self.textures.len());
            let Known { buffer, seed } = &self.textures[at];
            verify(&self.device, buffer, *seed).expect("somebody can go");
        }
        if frame.is_multiple_of(10) {
            let at = self.numbers.below(self.textures.len());
            check_mapped(&self.textures[at]);
        }
        for at in 0..2 {
            let seed = self.fresh_seed();
            let stream = (2 * frame + at) % self.streams.len();
            rewrite_mapped(&mut self.streams[stream], seed);
        }
        for at in 0..self.streams.len() {
            let Known { buffer, seed } = &self.streams[at];
            verify(&self.device, buffer, *seed).expect("somebody can go");
        }
        let seed = self.fresh_seed();
        let at = frame % self.results.len();
        self.results[at].seed = seed;
        fill(&self.device, &self.results[at].buffer, seed).expect("somebody can go");
        read_piece(&self.results[at], self.numbers.below(127) as u64 * 4096);
        let shadow = &self.shadows[frame % self.shadows.len()];
        check_mapped(shadow);
        verify(&self.device, &shadow.buffer, shadow.seed).expect("somebody can go");
    }

    fn end(self) -> Stats {
        let stats = self.device.stats();
        for Known { buffer, seed } in
            self.textures.iter().chain(&self.streams).chain(&self.results).chain(&self.shadows)
        {
            expect_bytes(buffer, *seed);
        }
        stats
    }
}

fn check_mapped(known: &Known) {
    let map = known.buffer.map().expect("it can be reached");
    let mut bytes = [0; 4096];
    map.read(8192, &mut bytes).expect("inside");
    assert_eq!(pattern::check(known.seed, 8192, &bytes), Ok(()));
}

fn rewrite_mapped(known: &mut Known, seed: u64) {
    let map = known.buffer.map().expect("it can be reached");
    let mut bytes = vec![0; known.buffer.size().as_bytes() as usize];
    pattern::write(seed, 0, &mut bytes);
    map.write(0, &bytes).expect("inside");
    known.seed = seed;
}

fn read_piece(known: &Known, offset: u64) {
    let mut bytes = [0; 4096];
    known.buffer.read_at(offset, &mut bytes).expect("inside");
    assert_eq!(pattern::check(known.seed, offset, &bytes), Ok(()));
}

fn play(policy: CpuAccess, bar_kib: u64) -> Stats {
    let mut game = Game::new(policy, bar_kib);
    (0..FRAMES).for_each(|frame| game.frame(frame));
    game.end()
}

#[test]
fn fewer_bytes_are_moved_for_visibility_than_by_migrating_on_every_access_whatever_the_bar() {
    for bar_kib in BARS_KIB {
        let [ours, theirs] = [CpuAccess::Auto, CpuAccess::Visible].map(|policy| play(policy, bar_kib));
        assert!(ours.evictions > 0 && theirs.evictions > 0, "there is too little VRAM for all");
        assert_eq!((ours.cpu_waits_in_validate, theirs.cpu_waits_in_validate), (0, 0));
        let moved = [&ours, &theirs].map(|stats| stats.visibility_moved_bytes);
        assert!(moved[0] < moved[1] / 2, "a BAR of {bar_kib} KiB: {moved:?}");
    }
}

#[test]
fn every_map_that_falls_back_says_why() {
    for bar_kib in BARS_KIB {
        let stats = play(CpuAccess::Auto, bar_kib);
        let served = stats.reasons.iter().filter(|(reason, _)| reason.contains("served from system memory"));
        assert_eq!(served.map(|(_, times)| times).sum::<u64>(), stats.bar_fallbacks, "{:?}", stats.reasons);
    }
}

#[test]
fn what_is_moved_follows_from_what_is_asked_and_not_from_what_has_ended() {
    let at_ease = |_: &Lab| {};
    let in_haste = |device: &Lab| device.wait_idle();
    let play = |pause: fn(&Lab)| {
        let mut game = Game::new(CpuAccess::Auto, 2048);
        for frame in 0..20 {
            game.frame(frame);
            pause(&game.device);
        }
        let stats = game.end();
        let Stats { evictions, relocations, moved_bytes, visibility_moved_bytes, bounced_bytes, .. } = stats;
        (evictions, relocations, moved_bytes, visibility_moved_bytes, bounced_bytes, stats.reasons)
    };
    assert_eq!(play(at_ease), play(in_haste));
}
