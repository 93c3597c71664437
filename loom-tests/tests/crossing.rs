//! Fences that cross to the kernel and back: the protocol of `src/sync_file/`, on a kernel that is made up.
#![cfg(loom)]

use std::sync::Arc;

use devpagemap::{CrossingModel, ModelDmaBuf, Timeline};
use devpagemap_loom_tests::explore;
use loom::thread;

/// Work of ours that the kernel has a fence for, until the timeline comes to its first point.
fn work_on(dma_buf: &ModelDmaBuf) -> Timeline {
    let work = Timeline::new("work");
    dma_buf.reserve().arm(&work.next_point());
    work
}

/// Two threads, every interleaving: work ends just while its kernel fence is renewed. Before it has ended nobody may see the dma-buf idle, and
/// afterwards nothing is outstanding.
#[test]
fn a_signal_beside_a_renewal_leaves_no_gap_and_nothing_outstanding() {
    explore(None, || {
        let model = Arc::new(CrossingModel::unkept());
        let dma_buf = model.dma_buf();
        let work = work_on(&dma_buf);
        model.until_renewal();
        let keeper = {
            let model = model.clone();
            thread::spawn(move || model.keep())
        };
        let busy = dma_buf.is_busy();
        assert!(busy, "the work is not over");
        work.signal(1);
        keeper.join().expect("no panic");
        assert_eq!(model.outstanding(), 0);
        assert!(!dma_buf.is_busy());
    });
}

/// Two threads, every interleaving: work is queued and done in one thread just while another gives up a submission of its own on the same
/// dma-buf. Each signals what it has reserved, and only that.
#[test]
fn what_is_armed_and_what_is_given_up_are_both_signalled() {
    explore(None, || {
        let model = Arc::new(CrossingModel::new());
        let dma_buf = Arc::new(model.dma_buf());
        let gives_up = {
            let dma_buf = dma_buf.clone();
            thread::spawn(move || drop(dma_buf.reserve()))
        };
        let work = work_on(&dma_buf);
        assert!(dma_buf.is_busy(), "the work is not over");
        work.signal(1);
        gives_up.join().expect("no panic");
        assert_eq!(model.outstanding(), 0);
    });
}

/// Two threads, at most three preemptions: our own work ends just while somebody asks what others do. The stranger is heard of, whether ours is
/// outstanding or not.
#[test]
fn a_stranger_is_heard_of_beside_our_own_signal() {
    explore(Some(3), || {
        let model = Arc::new(CrossingModel::unkept());
        let dma_buf = Arc::new(model.dma_buf());
        let work = work_on(&dma_buf);
        let stranger = model.stranger();
        dma_buf.attach(&stranger);
        let signaller = thread::spawn(move || work.signal(1));
        let heard = dma_buf.hear();
        signaller.join().expect("no panic");
        assert!(heard.is_some(), "a stranger writes");
    });
}

/// Two threads, at most three preemptions: our kernel fence is renewed just while somebody asks what others do. What comes into the dma-buf
/// behind the snapshot does not hide the stranger in it.
#[test]
fn a_stranger_is_heard_of_beside_a_renewal() {
    explore(Some(3), || {
        let model = Arc::new(CrossingModel::unkept());
        let dma_buf = Arc::new(model.dma_buf());
        let work = work_on(&dma_buf);
        let stranger = model.stranger();
        dma_buf.attach(&stranger);
        model.until_renewal();
        let keeper = {
            let model = model.clone();
            thread::spawn(move || model.keep())
        };
        let heard = dma_buf.hear();
        keeper.join().expect("no panic");
        assert!(heard.is_some(), "a stranger writes");
        work.signal(1);
    });
}

/// Two threads, every interleaving: a stranger signals just when its time is up. What has signalled by then is no failure, and the fence ends
/// once.
#[test]
fn a_stranger_that_signals_by_its_deadline_is_in_time() {
    explore(None, || {
        let model = Arc::new(CrossingModel::unkept());
        let dma_buf = model.dma_buf();
        let stranger = Arc::new(model.stranger());
        dma_buf.attach(&stranger);
        let heard = dma_buf.hear().expect("a stranger writes");
        model.until_timeout();
        let signaller = {
            let stranger = stranger.clone();
            thread::spawn(move || stranger.signal())
        };
        let was_in_time = stranger.is_signaled();
        model.keep();
        signaller.join().expect("no panic");
        match heard.status().expect("it has ended one way or the other") {
            Ok(()) => {}
            Err(error) => assert!(!was_in_time, "{error}"),
        }
    });
}

/// Three threads, two preemptions: the keeper finds nothing left to keep just while somebody has something new for it. Both fences end: the
/// new one has the old keeper, or one of its own.
#[test]
fn a_fence_that_comes_while_the_keeper_ends_is_kept() {
    explore(Some(2), || {
        let model = CrossingModel::new();
        let dma_buf = model.dma_buf();
        let first = model.stranger();
        dma_buf.attach(&first);
        let heard = dma_buf.hear().expect("a stranger writes");
        first.signal();
        assert_eq!(heard.wait(), Ok(()));
        let second = model.stranger();
        dma_buf.attach(&second);
        let heard = dma_buf.hear().expect("another writes");
        second.signal();
        assert_eq!(heard.wait(), Ok(()));
    });
}

/// Two threads, at most three preemptions: somebody looks for a point just while it is promised. He waits for the work behind it, and
/// for no keeper.
#[test]
fn who_looks_for_a_point_beside_its_promise_waits_for_the_work() {
    explore(Some(3), || {
        let model = CrossingModel::unkept();
        let syncobj = model.syncobj();
        let work = Timeline::new("work");
        let fence = work.next_point();
        let looks = {
            let syncobj = syncobj.clone();
            thread::spawn(move || syncobj.fence_at(1))
        };
        syncobj.attach(1, &fence);
        let found = looks.join().expect("no panic");
        assert!(!found.is_signaled(), "the work is not over");
        work.signal(1);
        assert_eq!(found.status(), Some(Ok(())));
    });
}

/// Two threads, at most three preemptions: the work of two late points ends at the same time. They come in order.
#[test]
fn two_late_points_whose_work_ends_at_once_come_in_order() {
    explore(Some(3), || {
        let model = CrossingModel::unkept();
        let syncobj = model.syncobj();
        let (first, second) = (Timeline::new("first"), Timeline::new("second"));
        syncobj.signal_after(1, &first.next_point());
        syncobj.signal_after(2, &second.next_point());
        let other = thread::spawn(move || second.signal(1));
        first.signal(1);
        other.join().expect("no panic");
        assert_eq!(syncobj.came(), [1, 2]);
    });
}
