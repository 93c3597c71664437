//! The built-in workload, which is what `devpagemap` does when nobody says anything.

use crate::recordings::{assert_all_well, replay};

#[test]
fn it_must_evict_and_does_everything() {
    let (trace, outcome) = replay(&["builtin:frames"]);
    assert_all_well(&outcome);
    assert_eq!((trace.bos, trace.batches), (842, 101));
    assert_eq!(outcome.config.vram_bytes, 384 << 20);
    assert_eq!(outcome.batches_done, 101);
    assert!(outcome.stats.evictions > 0 && outcome.stats.restores > 0);
    assert_eq!(outcome.stats.vram_peak_bytes, 384 << 20);
}

#[test]
fn it_is_the_same_for_the_same_seed_and_another_for_another() {
    let decisions = |seed| {
        let (trace, outcome) =
            replay(&["builtin:frames", "--data", "none", "--scale", "1/4", "--seed", seed]);
        assert_all_well(&outcome);
        assert!(outcome.stats.evictions > 0);
        let stats = outcome.stats;
        let counters = [stats.evictions, stats.evicted_bytes, stats.restores, stats.moves, stats.moved_bytes];
        (trace.steps, counters)
    };
    let first = decisions("3");
    assert_eq!(first, decisions("3"));
    assert_ne!(first, decisions("4"));
}

#[test]
fn it_fits_a_tiny_card_at_a_tiny_scale() {
    let (trace, outcome) = replay(&["builtin:frames", "--scale", "1/64"]);
    assert_all_well(&outcome);
    assert_eq!(outcome.config.vram_bytes, 6 << 20);
    assert!(trace.peak_live_bytes < 743 << 20 >> 5);
}

#[test]
fn every_batch_that_ran_has_its_time() {
    let (trace, outcome) = replay(&["builtin:frames", "--scale", "1/64"]);
    assert_eq!(outcome.slices.len(), trace.batches as usize);
    for slice in &outcome.slices {
        assert!(slice.submitted_ns <= slice.start_ns && slice.start_ns <= slice.end_ns, "{slice:?}");
        assert!(slice.end_ns <= outcome.wall_ns);
    }
    for pair in outcome.slices.iter().filter(|slice| slice.context == 1).collect::<Vec<_>>().windows(2) {
        assert!(pair[0].end_ns <= pair[1].start_ns, "batches of one context run in order");
    }
}

#[test]
fn anything_wrong_or_left_behind_is_no_success_and_is_told() {
    use devpagemap_cli::replay::contents::Mismatch;
    use devpagemap_cli::replay::pattern::Wrong;
    use devpagemap_cli::report::{paint::Paint, summary::Summary};
    let (trace, good) = replay(&["builtin:frames", "--scale", "1/64"]);
    assert!(good.succeeded());
    let mut wrong = good.clone();
    wrong.verify.mismatches = 1;
    let word = Wrong { offset_bytes: 4096, expected: 1, found: 2 };
    wrong.verify.first = vec![Mismatch { buffer: "texture-9".into(), batch: Some(17), wrong: word }];
    assert!(!wrong.succeeded());
    let told = Summary::new(&trace, &wrong, Paint::none()).to_string();
    assert!(told.contains("texture-9 by batch 17: byte 4096"), "{told}");
    let mut left = good.clone();
    left.vram_in_use_at_end_bytes = 4096;
    assert!(!left.succeeded());
    assert!(Summary::new(&trace, &left, Paint::none()).to_string().contains("4 KiB still in use at the end"));
}
