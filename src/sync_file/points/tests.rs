//! Points on a kernel that is made up.

use std::sync::Arc;
use std::time::Duration;

use devpagemap_fence::{Fence, FenceError, FenceSet, Timeline};

use super::Points;
use crate::error::Error;
use crate::sync_file::Crossing;
use crate::sync_file::fake::FakeKernel;
use crate::sync_file::fake::syncobj::FakeSyncobj;
use crate::sync_file::kernel::SyncObject as _;

const TIMEOUT: Duration = Duration::from_secs(5);

/// A syncobj, in our hands and in others'.
struct Scene {
    kernel: Arc<FakeKernel>,
    crossing: Arc<Crossing>,
    theirs: FakeSyncobj,
    points: Arc<Points>,
}

impl Scene {
    fn on(kernel: Arc<FakeKernel>) -> Scene {
        let crossing = Crossing::new(kernel.clone(), TIMEOUT);
        let theirs = kernel.syncobj();
        let points = Points::new(crossing.clone(), Box::new(theirs.clone()));
        Scene { kernel, crossing, theirs, points }
    }

    fn new() -> Scene {
        Scene::on(FakeKernel::new())
    }

    /// Where time passes only as the test wants.
    fn timed() -> Scene {
        Scene::on(FakeKernel::unkept(100 * TIMEOUT))
    }

    /// So much time passes, and whoever has waited for too long is told so.
    fn pass(&self, time: Duration) {
        self.kernel.pass(time);
        self.crossing.do_what_is_due();
    }

    fn reached(&self) -> u64 {
        self.theirs.reached().expect("nothing was told to fail")
    }

    fn fence_at(&self, point: u64) -> Fence {
        self.points.fence_at(point).expect("nothing was told to fail")
    }
}

/// Work that is done when somebody says so.
fn work() -> (Timeline, FenceSet) {
    let timeline = Timeline::new("work");
    let fence = timeline.next_point();
    (timeline, FenceSet::from(fence))
}

/// Work that is behind a fence.
fn work_after(fence: &Fence) -> FenceSet {
    let timeline = Timeline::new("work behind");
    let done = timeline.next_point();
    FenceSet::from(fence.clone()).when_signaled(move || timeline.signal(1));
    FenceSet::from(done)
}

fn out_of_order(refused: Result<(), Error>) -> (u64, u64) {
    match refused {
        Err(Error::PointOutOfOrder { point, last, .. }) => (point, last),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_attached_point_is_there_at_once_and_signals_with_its_work() {
    let scene = Scene::new();
    let (timeline, fences) = work();
    scene.points.attach(3, &fences).expect("it is the first");
    assert_eq!((scene.theirs.came(), scene.reached()), (vec![3], 0));
    let found = scene.fence_at(2);
    assert!(!found.is_signaled(), "point 3 is the first that stands for 2");
    timeline.signal(1);
    assert_eq!(found.wait(), Ok(()));
    assert_eq!((scene.reached(), scene.kernel.outstanding()), (3, 0));
    assert!(scene.fence_at(3).is_signaled());
}

#[test]
fn late_points_come_with_their_work_and_one_behind_the_other() {
    let scene = Scene::new();
    let ((first, before), (second, behind)) = (work(), work());
    scene.points.signal_after(1, &before).expect("it is the first");
    scene.points.signal_after(2, &behind).expect("it is behind the first");
    let found = scene.fence_at(2);
    second.signal(1);
    assert_eq!(scene.theirs.came(), vec![]);
    assert!(!found.is_signaled());
    first.signal(1);
    assert_eq!(scene.theirs.came(), vec![1, 2]);
    assert_eq!(found.wait(), Ok(()));
}

#[test]
fn nothing_comes_before_a_late_point() {
    let scene = Scene::new();
    let (timeline, late) = work();
    scene.points.signal_after(5, &late).expect("it is the first");
    let now = FenceSet::new();
    assert_eq!(out_of_order(scene.points.attach(6, &now)), (6, 5));
    assert_eq!(out_of_order(scene.points.signal(6)), (6, 5));
    assert_eq!(out_of_order(scene.points.attach(0, &now)), (0, 5));
    assert_eq!(out_of_order(scene.points.clear()), (0, 5));
    assert_eq!((scene.theirs.came(), scene.kernel.outstanding()), (vec![], 0));
    timeline.signal(1);
    scene.points.attach(6, &now).expect("point 5 has come");
    assert_eq!((scene.theirs.came(), scene.reached()), (vec![5, 6], 6));
}

#[test]
fn points_go_up_by_what_is_there_and_by_what_is_promised() {
    let scene = Scene::new();
    scene.theirs.attach(4, &scene.kernel.stranger());
    let (_timeline, late) = work();
    assert_eq!(out_of_order(scene.points.attach(4, &late)), (4, 4));
    assert_eq!(out_of_order(scene.points.signal_after(3, &late)), (3, 4));
    assert_eq!(out_of_order(scene.points.signal(1)), (1, 4));
    scene.points.signal_after(7, &late).expect("it is behind all others");
    assert_eq!(out_of_order(scene.points.signal_after(7, &late)), (7, 7));
    let zero = scene.points.refuse_zero::<()>();
    assert_eq!(out_of_order(zero), (0, 4));
}

#[test]
fn a_point_of_others_is_waited_for_until_it_comes_and_then_until_it_signals() {
    let scene = Scene::new();
    let (first, second) = (scene.kernel.stranger(), scene.kernel.stranger());
    let found = scene.fence_at(2);
    scene.theirs.attach(1, &first);
    assert!(!found.is_signaled());
    scene.theirs.attach(3, &second);
    second.signal();
    assert!(!found.is_signaled(), "point 1 is before it");
    first.signal();
    assert_eq!(found.wait(), Ok(()));
}

#[test]
fn a_point_that_does_not_come_in_time_is_an_error_that_names_it() {
    let scene = Scene::new();
    let found = scene.fence_at(1);
    scene.kernel.pass(TIMEOUT);
    let Err(FenceError::TimedOut { timeline, .. }) = found.wait() else { panic!("it never comes") };
    assert!(timeline.contains("a point that is not there"), "{timeline}");
}

#[test]
fn our_own_work_may_take_longer_than_a_stranger_is_waited_for() {
    for sought in [1, 3] {
        let scene = Scene::timed();
        let (timeline, fences) = work();
        scene.points.attach(3, &fences).expect("it is the first");
        let found = scene.fence_at(sought);
        scene.pass(3 * TIMEOUT);
        assert!(!found.is_signaled());
        timeline.signal(1);
        assert_eq!(found.wait(), Ok(()));
    }
}

#[test]
fn who_looks_for_a_point_before_it_is_promised_waits_for_that_work_as_long_as_it_takes() {
    for late in [false, true] {
        let scene = Scene::timed();
        let found = scene.fence_at(2);
        let (timeline, fences) = work();
        let promised = match late {
            true => scene.points.signal_after(2, &fences),
            false => scene.points.attach(2, &fences),
        };
        promised.expect("it is the first");
        scene.pass(3 * TIMEOUT);
        assert!(!found.is_signaled());
        timeline.signal(1);
        assert_eq!(found.wait(), Ok(()));
        assert_eq!(scene.crossing.counts.read()[4], 0, "nobody failed");
    }
}

#[test]
fn work_of_ours_may_wait_for_a_point_of_theirs_and_be_the_next_one() {
    let scene = Scene::new();
    let acquired = scene.fence_at(1);
    scene.points.signal_after(2, &work_after(&acquired)).expect("it is behind theirs");
    let stranger = scene.kernel.stranger();
    scene.theirs.attach(1, &stranger);
    assert!(!acquired.is_signaled());
    stranger.signal();
    assert_eq!(acquired.wait(), Ok(()));
    // Ours comes in the thread that has signalled theirs, maybe a moment later.
    assert_eq!(scene.fence_at(2).wait(), Ok(()));
    assert_eq!(scene.theirs.came(), vec![1, 2]);
}

#[test]
fn a_point_of_theirs_that_ours_has_overtaken_is_waited_for_no_longer_than_a_stranger() {
    let scene = Scene::timed();
    let acquired = scene.fence_at(1);
    scene.points.attach(2, &work_after(&acquired)).expect("it is the first");
    scene.pass(TIMEOUT);
    scene.pass(TIMEOUT);
    assert!(matches!(acquired.status(), Some(Err(FenceError::TimedOut { .. }))), "{acquired:?}");
    assert_eq!(scene.reached(), 2);
}

#[test]
fn a_point_of_theirs_below_a_late_one_of_ours_is_not_kept_by_it() {
    let scene = Scene::new();
    let (_timeline, late) = work();
    scene.points.signal_after(2, &late).expect("it is the first");
    let found = scene.fence_at(1);
    let stranger = scene.kernel.stranger();
    scene.theirs.attach(1, &stranger);
    stranger.signal();
    assert_eq!(found.wait(), Ok(()));
}

#[test]
fn what_was_there_when_it_was_looked_for_is_not_followed_by_what_came_then() {
    // Of a single fence that is replaced, and of a timeline that goes on, before and after it was there.
    for (first, then, early) in [(0, 0, false), (0, 0, true), (1, 2, false), (1, 2, true)] {
        let scene = Scene::new();
        let (timeline, fences) = work();
        let sought_early = early.then(|| scene.fence_at(0));
        scene.points.attach(first, &fences).expect("nothing is there");
        let held = sought_early.unwrap_or_else(|| scene.fence_at(0));
        scene.points.attach(then, &work_after(&held)).expect("points go up");
        timeline.signal(1);
        assert_eq!(held.wait(), Ok(()), "{first}, {then}, {early}");
        // The work behind ends in the thread that has said so, maybe a moment later.
        while scene.kernel.outstanding() > 0 {
            std::thread::yield_now();
        }
    }
}

#[test]
fn what_is_taken_away_while_it_is_waited_for_is_waited_for_to_its_end() {
    let scene = Scene::timed();
    let (timeline, fences) = work();
    scene.points.attach(4, &fences).expect("it is the first");
    let held = scene.fence_at(4);
    scene.points.clear().expect("nothing is late");
    timeline.signal(1);
    assert_eq!(held.status(), Some(Ok(())));
}

#[test]
fn many_late_points_come_without_many_frames_on_the_stack() {
    let scene = Scene::new();
    let (timeline, fences) = work();
    scene.points.signal_after(1, &fences).expect("it is the first");
    for point in 2..4000 {
        scene.points.signal_after(point, &FenceSet::new()).expect("points go up");
    }
    timeline.signal(1);
    assert_eq!(scene.theirs.came().len(), 3999);
}

#[test]
fn strangers_before_our_point_are_waited_for_as_well() {
    let scene = Scene::new();
    let stranger = scene.kernel.stranger();
    scene.theirs.attach(1, &stranger);
    let (timeline, fences) = work();
    scene.points.attach(2, &fences).expect("it is behind the other");
    let found = scene.fence_at(2);
    timeline.signal(1);
    assert!(!found.is_signaled());
    stranger.signal();
    assert_eq!(found.wait(), Ok(()));
}

#[test]
fn errors_of_ours_and_of_others_reach_who_looked() {
    let scene = Scene::new();
    let (timeline, fences) = work();
    scene.points.attach(1, &fences).expect("it is the first");
    let ours = scene.fence_at(1);
    timeline.fail(1, FenceError::failed("on purpose"));
    assert_eq!(ours.wait(), Err(FenceError::failed("on purpose")));
    let stranger = scene.kernel.stranger();
    scene.theirs.attach(2, &stranger);
    stranger.fail(7);
    let Err(FenceError::Foreign { errno, .. }) = scene.fence_at(2).wait() else { panic!("it failed") };
    assert_eq!(errno, 2, "point 1 failed first");
    let Err(FenceError::Foreign { errno: 2, .. }) = scene.fence_at(1).wait() else { panic!("it failed") };
}

#[test]
fn a_late_point_whose_work_failed_comes_and_is_counted() {
    let scene = Scene::new();
    let (timeline, fences) = work();
    scene.points.signal_after(1, &fences).expect("it is the first");
    let found = scene.fence_at(1);
    timeline.fail(1, FenceError::failed("on purpose"));
    assert_eq!(found.wait(), Err(FenceError::failed("on purpose")));
    assert_eq!(scene.theirs.came(), vec![1]);
    assert!(scene.crossing.reasons().keys().any(|reason| reason.contains("cannot say so")));
}

#[test]
fn what_is_replaced_or_taken_away_is_there_no_more() {
    let scene = Scene::new();
    let ((first, old), (second, new)) = (work(), work());
    scene.points.attach(4, &old).expect("it is the first");
    scene.points.attach(0, &new).expect("it takes the place of all");
    let held = scene.fence_at(0);
    second.signal(1);
    assert_eq!(held.wait(), Ok(()));
    first.signal(1);
    scene.points.clear().expect("nothing is late");
    assert_eq!(scene.theirs.came(), vec![]);
    scene.points.signal(1).expect("all begins anew");
    assert!(scene.fence_at(0).is_signaled());
}

#[test]
fn a_point_that_is_taken_away_as_it_comes_is_an_error() {
    let scene = Scene::timed();
    let found = scene.fence_at(1);
    scene.points.signal(1).expect("it is the first");
    scene.points.clear().expect("nothing is late");
    scene.pass(TIMEOUT);
    let error = found.wait().expect_err("it is not there");
    assert!(error.to_string().contains("taken away"), "{error}");
}

#[test]
fn a_syncobj_that_is_dropped_keeps_its_late_points() {
    let Scene { theirs, points, .. } = Scene::new();
    let (timeline, fences) = work();
    points.signal_after(1, &fences).expect("it is the first");
    drop(points);
    timeline.signal(1);
    assert_eq!(theirs.came(), vec![1]);
}

#[test]
fn each_call_that_fails_leaves_nothing_behind() {
    for failing in 0.. {
        let scene = Scene::new();
        let (timeline, fences) = work();
        scene.kernel.fail_after(failing);
        let attached = scene.points.attach(1, &fences);
        scene.kernel.fail_no_more();
        if attached.is_ok() {
            assert!(failing >= 3, "a fence, a look at the last point, and a point are made");
            break;
        }
        assert_eq!((scene.theirs.came(), scene.kernel.outstanding()), (vec![], 0), "call {failing}");
        scene.points.attach(1, &fences).expect("nothing is in the way");
        timeline.signal(1);
        assert_eq!(scene.reached(), 1);
    }
    for failing in 0.. {
        let scene = Scene::new();
        scene.theirs.attach(1, &scene.kernel.stranger());
        scene.kernel.fail_after(failing);
        let found = scene.points.fence_at(1);
        scene.kernel.fail_no_more();
        if found.is_ok() {
            assert!(failing >= 3, "a snapshot is taken, looked at and watched");
            break;
        }
        assert!(!scene.fence_at(1).is_signaled());
    }
}

#[test]
fn a_late_point_that_the_kernel_does_not_take_is_counted() {
    let scene = Scene::new();
    let (timeline, fences) = work();
    scene.points.signal_after(1, &fences).expect("it is the first");
    scene.kernel.fail_after(0);
    timeline.signal(1);
    scene.kernel.fail_no_more();
    assert_eq!(scene.theirs.came(), vec![]);
    assert!(scene.crossing.reasons().keys().any(|reason| reason.contains("did not take a point")));
}
