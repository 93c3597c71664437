//! Syncobjs of a real node: points of ours for others, and theirs for us. Two devices of the library stand for two programs.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use devpagemap::{
    Access, Device, Error, Fence, FenceError, FenceSet, FenceSource, Size, SoftwareGpu, Syncobj, Timeline,
};

use crate::calls::{
    CLONE, EPOLL_CREATE, EPOLL_CTL, EVENTFD, EXPORT_SYNC_FILE, FILE_INFO, SYNCOBJ_CREATE, SYNCOBJ_EVENTFD,
    SYNCOBJ_FD_TO_HANDLE, SYNCOBJ_HANDLE_TO_FD, SYNCOBJ_IMPORT, SYNCOBJ_QUERY, SYNCOBJ_RESET, SYNCOBJ_SIGNAL,
    SYNCOBJ_TRANSFER, VGEM_FENCE_ATTACH, is_for_want_of_memory,
};
use crate::child;
use crate::fences::{A_MOMENT, device_with, die, sources};
use crate::observe::{FOREVER, descriptors, wait_until};
use crate::refusing::{Call, refusing};
use crate::setup::{Thing, need};
use crate::stranger::{Does, SwSync, is_ready_within};

/// One syncobj in the hands of two devices.
fn shared(ours: &Device<SoftwareGpu>, theirs: &Device<SoftwareGpu>) -> (Syncobj, Syncobj) {
    let one = ours.create_syncobj().expect("this guest has them");
    let other = theirs.import_syncobj(one.export().expect("one more descriptor")).expect("it is one");
    (one, other)
}

/// A job of a device's, which is done once the returned timeline has signalled its point.
fn start(device: &Device<SoftwareGpu>) -> (Fence, Timeline) {
    crate::fences::start(device, &[], Access::Read)
}

fn progress(syncobj: &Syncobj) -> (u64, u64) {
    (syncobj.reached().expect("it is open"), syncobj.submitted().expect("it is open"))
}

#[test]
fn a_job_is_a_point_for_others_until_it_is_done_and_they_are_one_for_us() {
    if !need(&[Thing::VirtioGpu, Thing::Vgem]) {
        return;
    }
    for source in sources() {
        let (ours, theirs) = (device_with(source), device_with(source));
        let (one, other) = shared(&ours, &theirs);
        let (drawn, gate) = start(&ours);
        one.attach(1, &FenceSet::from(drawn)).expect("it is the first");
        assert_eq!(progress(&other), (0, 1), "{source:?}");
        let after = other.fence_at(1).expect("it is there");
        let shown = theirs.submit().after(&after).run(|gpu, job| gpu.run(job, |_| Ok(())));
        let shown = shown.expect("a job is queued");
        other.attach(2, &FenceSet::from(shown.clone())).expect("it is behind the first");
        let back = one.fence_at(2).expect("it is there");
        std::thread::sleep(A_MOMENT);
        assert!(!shown.is_signaled() && !back.is_signaled(), "{source:?}");
        gate.signal(1);
        back.wait().expect("both did nothing");
        assert!(shown.is_signaled());
        assert_eq!(progress(&one), (2, 2), "{source:?}");
        assert_eq!(theirs.stats().foreign_fences_failed + ours.stats().foreign_fences_failed, 0);
    }
}

#[test]
fn a_point_that_is_not_there_yet_is_waited_for_however_it_comes() {
    if !need(&[Thing::VirtioGpu, Thing::Vgem]) {
        return;
    }
    for late in [true, false] {
        let (ours, theirs) = (device_with(FenceSource::Auto), device_with(FenceSource::Auto));
        let (one, other) = shared(&ours, &theirs);
        let found = other.fence_at(5).expect("it may come");
        let (job, gate) = start(&ours);
        let fences = FenceSet::from(job);
        match late {
            true => one.signal_after(6, &fences),
            false => one.attach(6, &fences),
        }
        .expect("it is the first");
        assert_eq!(progress(&other), (0, if late { 0 } else { 6 }));
        std::thread::sleep(A_MOMENT);
        assert!(!found.is_signaled());
        gate.signal(1);
        found.wait().expect("it has come");
        assert_eq!(progress(&other), (6, 6));
    }
}

#[test]
fn our_next_point_may_wait_for_theirs_that_has_yet_to_come() {
    if !need(&[Thing::VirtioGpu, Thing::Vgem]) {
        return;
    }
    let (ours, theirs) = (device_with(FenceSource::Auto), device_with(FenceSource::Auto));
    let (one, other) = shared(&ours, &theirs);
    for frame in [1, 3, 5] {
        let acquired = one.fence_at(frame).expect("it may come");
        let drawn = ours.submit().after(&acquired).run(|gpu, job| gpu.run(job, |_| Ok(())));
        let drawn = drawn.expect("a job is queued");
        one.signal_after(frame + 1, &FenceSet::from(drawn.clone())).expect("points go up");
        let shown = other.fence_at(frame + 1).expect("it may come");
        let (job, gate) = start(&theirs);
        other.attach(frame, &FenceSet::from(job)).expect("ours is behind");
        std::thread::sleep(A_MOMENT);
        assert!(!acquired.is_signaled() && !drawn.is_signaled() && !shown.is_signaled());
        gate.signal(1);
        shown.wait().expect("all did nothing");
        assert_eq!(progress(&other), (frame + 1, frame + 1));
    }
    assert_eq!(ours.stats().foreign_fences_failed + theirs.stats().foreign_fences_failed, 0);
}

#[test]
fn late_points_come_in_order_and_nothing_comes_before_them() {
    if !need(&[Thing::VirtioGpu, Thing::Vgem]) {
        return;
    }
    let device = device_with(FenceSource::None);
    let syncobj = device.create_syncobj().expect("no kernel fence is needed for that");
    let ((first, first_gate), (second, second_gate)) = (start(&device), start(&device));
    syncobj.signal_after(1, &FenceSet::from(first)).expect("it is the first");
    syncobj.signal_after(2, &FenceSet::from(second.clone())).expect("it is behind the first");
    second_gate.signal(1);
    second.wait().expect("it does nothing");
    assert_eq!(progress(&syncobj), (0, 0));
    let refused = syncobj.signal(3).expect_err("point 2 has not come");
    assert!(matches!(refused, Error::PointOutOfOrder { point: 3, last: 2, .. }), "{refused}");
    first_gate.signal(1);
    syncobj.fence_at(2).expect("it is promised").wait().expect("both did nothing");
    assert_eq!(progress(&syncobj), (2, 2));
    syncobj.signal(3).expect("it is the next");
    assert_eq!(progress(&syncobj), (3, 3));
}

#[test]
fn points_of_others_that_do_not_come_or_do_not_signal_are_errors_in_time() {
    if !need(&[Thing::VirtioGpu, Thing::Vgem]) {
        return;
    }
    let gpu = SoftwareGpu::builder().build().expect("a software GPU");
    let timeout = Duration::from_millis(300);
    let impatient = Device::builder(gpu).vram(Size::mib(4)).foreign_fence_timeout(timeout);
    let impatient = impatient.build().expect("a small device");
    let theirs = device_with(FenceSource::Auto);
    let (one, other) = shared(&theirs, &impatient);
    let begin = Instant::now();
    let never = other.fence_at(9).expect("it may come");
    let Err(FenceError::TimedOut { timeline, .. }) = never.wait() else { panic!("it never comes") };
    assert!(begin.elapsed() >= timeout);
    assert_eq!(&*timeline, "syncobj point 9, which nobody has submitted");
    let (job, gate) = start(&theirs);
    one.attach(9, &FenceSet::from(job)).expect("it is the first");
    let stuck = other.fence_at(9).expect("it is there");
    let Err(FenceError::TimedOut { .. }) = stuck.wait() else { panic!("it does not signal") };
    gate.signal(1);
    wait_until("the kernel is told", || progress(&other).0 == 9);
    assert!(other.fence_at(9).expect("it is there").is_signaled());
    assert_eq!(impatient.stats().foreign_fences_failed, 2);
}

#[test]
fn a_failure_is_told_where_kernel_fences_can_say_so() {
    if !need(&[Thing::VirtioGpu, Thing::Vgem]) {
        return;
    }
    for source in sources() {
        let (ours, theirs) = (device_with(source), device_with(source));
        let (one, other) = shared(&ours, &theirs);
        let work = Timeline::new("work");
        one.attach(1, &FenceSet::from(work.next_point())).expect("it is the first");
        let found = other.fence_at(1).expect("it is there");
        let mine = one.fence_at(1).expect("it is there");
        work.fail(1, FenceError::failed("on purpose"));
        assert_eq!(mine.wait(), Err(FenceError::failed("on purpose")));
        let said = found.wait();
        match source {
            FenceSource::SwSync => {
                assert!(matches!(said, Err(FenceError::Foreign { errno: 2, .. })), "{said:?}");
            }
            _ => {
                said.expect("vgem's fences say nothing of errors");
                let reasons = ours.stats().reasons;
                assert!(reasons.keys().any(|reason| reason.contains("cannot say so")), "{reasons:?}");
            }
        }
    }
}

#[test]
fn points_have_64_bits() {
    if !need(&[Thing::VirtioGpu, Thing::Vgem]) {
        return;
    }
    let (ours, theirs) = (device_with(FenceSource::Auto), device_with(FenceSource::Auto));
    let (one, other) = shared(&ours, &theirs);
    for point in [u64::from(u32::MAX), 1 << 32, 1 << 63, u64::MAX] {
        let (job, gate) = start(&ours);
        let early = other.fence_at(point).expect("it may come");
        one.attach(point, &FenceSet::from(job)).expect("points go up");
        assert_eq!(other.submitted().expect("it is open"), point);
        assert!(!early.is_signaled());
        gate.signal(1);
        early.wait().expect("it does nothing");
        wait_until("the point is reached", || progress(&other) == (point, point));
    }
    let refused = one.signal(u64::MAX).expect_err("nothing is behind that");
    assert!(matches!(refused, Error::PointOutOfOrder { last: u64::MAX, .. }), "{refused}");
}

#[test]
fn one_fence_goes_in_and_out_without_points() {
    if !need(&[Thing::VirtioGpu, Thing::Vgem]) {
        return;
    }
    let (ours, theirs) = (device_with(FenceSource::Auto), device_with(FenceSource::Auto));
    let (one, other) = shared(&ours, &theirs);
    let found = other.fence().expect("it may come");
    let ((first, first_gate), (second, second_gate)) = (start(&ours), start(&ours));
    one.replace(&FenceSet::from(first)).expect("there is a source");
    assert_eq!(progress(&one), (0, 0), "it is no timeline");
    first_gate.signal(1);
    found.wait().expect("it did nothing");
    one.replace(&FenceSet::from(second)).expect("there is a source");
    let found = other.fence().expect("it is there");
    assert!(!found.is_signaled());
    second_gate.signal(1);
    found.wait().expect("it did nothing");
    other.reset().expect("it is open");
    let (third, _gate) = start(&ours);
    one.attach(1, &FenceSet::from(third)).expect("all begins anew");
    assert_eq!(progress(&other), (0, 1));
}

#[test]
fn a_fence_goes_from_a_sync_file_to_a_point_and_back() {
    if !need(&[Thing::VirtioGpu, Thing::SwSync]) {
        return;
    }
    let (ours, theirs) = (device_with(FenceSource::SwSync), device_with(FenceSource::SwSync));
    let (one, other) = shared(&ours, &theirs);
    let stranger = SwSync::open();
    let fence = ours.import_sync_file(stranger.point(1)).expect("it is one");
    one.attach(1, &FenceSet::from(fence)).expect("it is the first");
    let at = other.fence_at(1).expect("it is there");
    let file = theirs.export_sync_file(&FenceSet::from(at)).expect("there is a source");
    assert!(!is_ready_within(&file, Does::Reads, A_MOMENT));
    stranger.count();
    assert!(is_ready_within(&file, Does::Reads, FOREVER));
}

#[test]
fn what_is_no_syncobj_is_refused_and_a_full_table_says_so() {
    if !need(&[Thing::VirtioGpu, Thing::Vgem]) {
        return;
    }
    let device = device_with(FenceSource::Auto);
    for other in ["/dev/null", "/proc/self/exe", "/proc"] {
        let file = std::fs::File::open(other).expect("it is there");
        let refused = device.import_syncobj(file.into()).expect_err("it is no syncobj");
        assert!(matches!(refused, Error::NotASyncobj { .. }), "{other}: {refused}");
    }
    let syncobj = device.create_syncobj().expect("this guest has them");
    for refused in [syncobj.attach(0, &FenceSet::new()), syncobj.signal(0), syncobj.fence_at(0).map(drop)] {
        let refused = refused.expect_err("points begin at 1");
        assert!(matches!(refused, Error::PointOutOfOrder { point: 0, last: 0, .. }), "{refused}");
    }
    let name = "syncobjs::what_is_no_syncobj_is_refused_and_a_full_table_says_so";
    let ended = child::in_a_child(name, || {
        let (device, without) = (device_with(FenceSource::Auto), device_with(FenceSource::None));
        let syncobj = device.create_syncobj().expect("this guest has them");
        syncobj.attach(1, &FenceSet::new()).expect("it is the first");
        let full = fill_the_table();
        let refused = [
            syncobj.export().map(drop),
            syncobj.fence_at(1).map(drop),
            syncobj.fence_at(2).map(drop),
            without.create_syncobj().map(drop),
        ];
        drop(full);
        for (at, refused) in refused.into_iter().enumerate() {
            assert!(matches!(refused, Err(Error::NoDescriptorsLeft { .. })), "{at}: {refused:?}");
        }
        assert!(syncobj.fence_at(1).expect("there are descriptors").is_signaled());
    });
    if let Some(ended) = ended {
        child::expect_success(&ended);
    }
}

/// Descriptors until there are no more.
fn fill_the_table() -> Vec<OwnedFd> {
    let null = std::fs::File::open("/dev/null").expect("it is there");
    let mut all = vec![OwnedFd::from(null)];
    while let Ok(one_more) = all[0].try_clone() {
        all.push(one_more);
    }
    all
}

#[test]
fn whatever_call_the_kernel_refuses_a_point_is_there_or_nothing_has_changed() {
    if !need(&[Thing::VirtioGpu, Thing::Vgem, Thing::Seccomp]) {
        return;
    }
    let device = device_with(FenceSource::Vgem);
    for call in
        [VGEM_FENCE_ATTACH, EXPORT_SYNC_FILE, SYNCOBJ_QUERY, SYNCOBJ_CREATE, SYNCOBJ_IMPORT, SYNCOBJ_TRANSFER]
    {
        let syncobj = device.create_syncobj().expect("this guest has them");
        let (job, gate) = start(&device);
        let fences = FenceSet::from(job);
        expect_refused(call, || syncobj.attach(1, &fences));
        assert_eq!(progress(&syncobj), (0, 0), "{}", call.name);
        syncobj.attach(1, &fences).expect("nothing is in the way");
        gate.signal(1);
        syncobj.fence_at(1).expect("it is there").wait().expect("it does nothing");
    }
    let (one, other) = shared(&device, &device);
    let (job, gate) = start(&device);
    one.attach(1, &FenceSet::from(job)).expect("it is the first");
    for call in [SYNCOBJ_CREATE, SYNCOBJ_TRANSFER, SYNCOBJ_HANDLE_TO_FD, FILE_INFO] {
        expect_refused(call, || other.fence_at(1));
    }
    for call in [EVENTFD, SYNCOBJ_EVENTFD] {
        expect_refused(call, || other.fence_at(2));
    }
    for call in [EPOLL_CREATE, CLONE] {
        // Each device has a thread that keeps fences, once it has fences to keep.
        let fresh = device_with(FenceSource::Vgem);
        let one = fresh.import_syncobj(other.export().expect("one more descriptor")).expect("it is one");
        expect_refused(call, || one.fence_at(1));
        let kept = one.fence_at(1).expect("nothing is in the way");
        expect_refused(EPOLL_CTL, || one.fence_at(1));
        assert!(!kept.is_signaled());
    }
    let found = other.fence_at(1).expect("nothing is in the way");
    gate.signal(1);
    found.wait().expect("it does nothing");
    expect_refused(SYNCOBJ_SIGNAL, || one.signal(2));
    expect_refused(SYNCOBJ_RESET, || one.reset());
    expect_refused(SYNCOBJ_HANDLE_TO_FD, || one.export());
    expect_refused(SYNCOBJ_FD_TO_HANDLE, || {
        device.import_syncobj(one.export().expect("one more descriptor"))
    });
    expect_refused(SYNCOBJ_CREATE, || device.create_syncobj());
    assert_eq!(progress(&other), (1, 1));
}

#[track_caller]
fn expect_refused<O: Send>(call: Call, body: impl FnOnce() -> devpagemap::Result<O> + Send) {
    let Err(refused) = refusing(call, body) else { panic!("nothing needs {}", call.name) };
    assert!(is_for_want_of_memory(&refused), "{}: {refused}", call.name);
}

#[test]
fn a_process_that_is_killed_leaves_nobody_waiting_for_its_points() {
    let name = "syncobjs::a_process_that_is_killed_leaves_nobody_waiting_for_its_points";
    // Its fences look like success: the kernel signals what was vgem's.
    dies_with_a_point(name, Thing::Vgem, FenceSource::Vgem, Ok(()));
}

#[test]
fn a_process_that_is_killed_has_failed_where_kernel_fences_can_say_so() {
    let name = "syncobjs::a_process_that_is_killed_has_failed_where_kernel_fences_can_say_so";
    dies_with_a_point(name, Thing::SwSync, FenceSource::SwSync, Err(()));
}

fn dies_with_a_point(test: &str, of: Thing, source: FenceSource, outcome: Result<(), ()>) {
    if !need(&[Thing::VirtioGpu, of]) {
        return;
    }
    let device = device_with(FenceSource::None);
    let syncobj = device.create_syncobj().expect("this guest has them");
    let inherited = syncobj.export().expect("one more descriptor");
    let ended = child::in_a_child_with(inherited.into(), test, || {
        let device = device_with(source);
        let inherited = std::io::stdin().as_fd().try_clone_to_owned().expect("it was inherited");
        let syncobj = device.import_syncobj(inherited).expect("it is one");
        let (job, _gate) = start(&device);
        syncobj.attach(1, &FenceSet::from(job)).expect("it is the first");
        die();
    });
    let Some(ended) = ended else { return };
    child::expect_killed(&ended, 9);
    assert_eq!(syncobj.submitted().expect("it is open"), 1);
    let found = syncobj.fence_at(1).expect("it is there").wait();
    assert_eq!(found.clone().map_err(drop), outcome, "{found:?}");
}

#[test]
fn no_descriptor_is_left_when_a_syncobj_is_gone() {
    if !need(&[Thing::VirtioGpu, Thing::Vgem]) {
        return;
    }
    let before = descriptors();
    {
        let (ours, theirs) = (device_with(FenceSource::Auto), device_with(FenceSource::Auto));
        let (one, other) = shared(&ours, &theirs);
        for point in 1..20 {
            let (job, gate) = start(&ours);
            let early = (point % 3 == 0).then(|| other.fence_at(point).expect("it may come"));
            one.attach(point, &FenceSet::from(job)).expect("points go up");
            let found = other.fence_at(point).expect("it is there");
            gate.signal(1);
            found.wait().expect("it did nothing");
            early.into_iter().for_each(|early| early.wait().expect("it did nothing"));
        }
    }
    wait_until("no descriptor is left", || descriptors() <= before);
}
