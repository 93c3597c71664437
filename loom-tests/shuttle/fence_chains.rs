//! Chains of timelines, each of whose owners waits for others before it signals.
#![cfg(shuttle)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use devpagemap_fence::{Fence, FenceSet, Timeline};
use devpagemap_loom_tests::storm::storm;
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

const OWNERS: usize = 12;
const POINTS: u64 = 3;

/// 12 threads: point `p` of timeline `t` comes after point `p` of the timeline before it, by sleeping, or in a set; callbacks
/// hang everywhere. All points signal, and every callback runs once.
#[test]
fn a_chain_of_twelve_timelines_runs_to_its_end() {
    storm("a_chain_of_twelve_timelines_runs_to_its_end", 700, || {
        let timelines: Vec<Timeline> = (0..OWNERS).map(|_| Timeline::new("link")).collect();
        let points: Vec<Vec<Fence>> =
            timelines.iter().map(|timeline| (0..POINTS).map(|_| timeline.next_point()).collect()).collect();
        let points = Arc::new(points);
        let called = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = timelines
            .into_iter()
            .enumerate()
            .map(|(index, timeline)| {
                let (points, called) = (points.clone(), called.clone());
                thread::spawn(move || {
                    for seqno in 1..=POINTS {
                        let at = (seqno - 1) as usize;
                        hang_on(&points[thread_rng().gen_range(0..OWNERS)][at], &called);
                        if index > 0 {
                            wait_for(&points[index - 1][at], &points[thread_rng().gen_range(0..index)][at]);
                        }
                        timeline.signal(seqno);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert!(points.iter().flatten().all(|point| point.status() == Some(Ok(()))));
        assert_eq!(called.load(Ordering::Relaxed), OWNERS as u64 * POINTS);
    });
}

/// Hangs a callback on the point, or runs it if it is too late for that.
fn hang_on(point: &Fence, called: &Arc<AtomicU64>) {
    let called = called.clone();
    let callback = move |outcome: Result<(), _>| {
        assert_eq!(outcome, Ok(()));
        called.fetch_add(1, Ordering::Relaxed);
    };
    if let Err(callback) = point.on_signal(callback) {
        callback(Ok(()));
    }
}

/// Waits for both, one after the other, or as a set with a callback that wakes this thread through one more timeline.
fn wait_for(one: &Fence, other: &Fence) {
    if thread_rng().gen_bool(0.5) {
        return one.wait().and(other.wait()).expect("nothing fails in a storm");
    }
    let set = FenceSet::from_iter([one.clone(), other.clone()]);
    let both = Arc::new(Timeline::new("both"));
    let point = both.next_point();
    let theirs = both.clone();
    set.when_signaled(move || theirs.signal(1));
    point.wait().expect("nothing fails in a storm");
    assert!(one.is_signaled() && other.is_signaled(), "the callback of a set comes after all of it");
}
