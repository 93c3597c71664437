//! What happens to buffers follows from what is asked of the device, not from how fast its engines are.

use std::time::Duration;

use devpagemap::migrate::Fault;
use devpagemap::{Buffer, EvictionPolicy, Place, RegionKind, Size};

use crate::setup::numbers::Numbers;
use crate::setup::*;

/// Everything that must not depend on time.
#[derive(Debug, PartialEq, Eq)]
struct History {
    evictions: (u64, u64),
    restores: (u64, u64),
    moves: (u64, u64),
    cleared_bytes: u64,
    gtt_demotions: u64,
    bar_fallbacks: u64,
    relocations: (u64, u64),
    visibility_moved_bytes: u64,
    used_bytes: (u64, u64, u64),
    vram_peak_bytes: u64,
    /// Of every buffer that is left: where it is and how often it was evicted.
    buffers: Vec<(Option<RegionKind>, u64)>,
}

fn history(device: &Lab, buffers: &[(Buffer, u64)]) -> History {
    let stats = device.stats();
    History {
        evictions: (stats.evictions, stats.evicted_bytes),
        restores: (stats.restores, stats.restored_bytes),
        moves: (stats.moves, stats.moved_bytes),
        cleared_bytes: stats.cleared_bytes,
        gtt_demotions: stats.gtt_demotions,
        bar_fallbacks: stats.bar_fallbacks,
        relocations: (stats.relocations, stats.relocated_bytes),
        visibility_moved_bytes: stats.visibility_moved_bytes,
        used_bytes: (stats.vram_used_bytes, stats.gtt_used_bytes, stats.system_used_bytes),
        vram_peak_bytes: stats.vram_peak_bytes,
        buffers: buffers.iter().map(|(buffer, _)| (buffer.region(), buffer.evictions())).collect(),
    }
}

fn create(device: &Lab, numbers: &mut Numbers, seed: u64) -> (Buffer, u64) {
    let pages = 1 + numbers.below(400) as u64;
    let buffer = device.buffer(Size::bytes(pages * 4096)).priority(numbers.below(3));
    let buffer = match numbers.below(4) {
        0 => buffer.prefer(Place::VRAM).or(Place::GTT),
        1 => buffer.prefer(Place::GTT),
        2 => buffer.prefer(Place::VRAM.visible()),
        _ => buffer.prefer(Place::VRAM),
    };
    let buffer = if numbers.below(2) == 0 { buffer.write_combined() } else { buffer };
    let buffer = buffer.create().expect("a small buffer");
    fill(device, &buffer, seed).expect("somebody can go");
    (buffer, seed)
}

/// The same workload of one thread, whatever the engines do meanwhile.
fn run_workload(device: &Lab) -> History {
    let mut numbers = Numbers(7);
    let mut buffers: Vec<(Buffer, u64)> = Vec::new();
    for step in 0..600 {
        let room = buffers.len() < 24;
        match numbers.below(8) {
            0 | 1 if room => buffers.push(create(device, &mut numbers, step)),
            2 if !buffers.is_empty() => drop(buffers.swap_remove(numbers.below(buffers.len()))),
            3 if !buffers.is_empty() => {
                let at = numbers.below(buffers.len());
                fill(device, &buffers[at].0, step).expect("somebody can go");
                buffers[at].1 = step;
            }
            4 if !buffers.is_empty() => {
                let map = buffers[numbers.below(buffers.len())].0.map().expect("system memory is left");
                drop(map);
            }
            _ if !buffers.is_empty() => {
                let (buffer, seed) = &buffers[numbers.below(buffers.len())];
                verify(device, buffer, *seed).expect("somebody can go");
            }
            _ => {}
        }
    }
    let history = history(device, &buffers);
    for (buffer, seed) in &buffers {
        expect_bytes(buffer, *seed);
    }
    history
}

fn workbench(policy: EvictionPolicy) -> Lab {
    let builder = builder(8).visible(Size::mib(3)).gtt(Size::mib(4)).policy(policy);
    builder.build().expect("a device")
}

#[test]
fn slow_and_failing_engines_change_nothing_but_the_time() {
    for policy in [EvictionPolicy::LruSet, EvictionPolicy::Lru] {
        let undisturbed = run_workload(&workbench(policy));
        assert!(undisturbed.evictions.0 > 50 && undisturbed.restores.0 > 20, "{undisturbed:?}");

        let slow = workbench(policy);
        for engine in 0..2 {
            let fault = Fault::Slow { delay: Duration::from_micros(300) };
            slow.driver().copy_engine(engine).expect("two engines").inject(fault);
        }
        assert_eq!(run_workload(&slow), undisturbed, "{policy:?}");

        let failing = workbench(policy);
        for engine in 0..2 {
            let fault = Fault::FailAfter { chunks: 20 };
            failing.driver().copy_engine(engine).expect("two engines").inject(fault);
        }
        assert_eq!(run_workload(&failing), undisturbed, "{policy:?}");
        assert!(failing.stats().fallback_bytes > 0);
    }
}

#[test]
fn work_that_never_ends_meanwhile_changes_nothing_either() {
    let run = |held_back: bool| {
        let device = device(8);
        let mut kept = Vec::new();
        let gate = Gate::closed();
        for seed in 0..40 {
            let buffer = filled(&device, 1 + seed % 3, seed);
            if held_back {
                device.submit().reads(&buffer).run(|_, _| Ok(gate.fence().clone())).expect("it is there");
            } else {
                device
                    .submit()
                    .reads(&buffer)
                    .run(|_, _| Ok(devpagemap::Fence::signaled()))
                    .expect("it is there");
                device.wait_idle();
            }
            if seed % 2 == 0 {
                kept.push((buffer, seed));
            }
        }
        let history = history(&device, &kept);
        gate.open();
        for (buffer, seed) in &kept {
            expect_bytes(buffer, *seed);
        }
        history
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn a_buffer_dropped_at_the_very_moment_its_copy_ends_is_gone_at_once() {
    let device = device(1);
    for round in 0..100_000 {
        let buffer = device.buffer(Size::kib(4)).create().expect("a small buffer");
        buffer.place_now().expect("room");
        drop(buffer);
        assert_eq!(
            device.stats().vram_used_bytes,
            0,
            "round {round}: somebody else still owns what we dropped"
        );
    }
}
