//! The protocol on a kernel that is made up, with real devices and jobs.

use std::sync::Arc;
use std::time::Duration;

use devpagemap_fence::{Fence, FenceError, Timeline};

use super::fake::{FakeDmaBuf, FakeFence, FakeKernel};
use crate::bo::{Buffer, Place};
use crate::error::Error;
use crate::submit::Access;
use crate::{Device, Size, SoftwareGpu};

const EXPIRY: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(5);
const ENOENT: i32 = 2;

/// A device on a kernel that is made up.
struct Scene {
    kernel: Arc<FakeKernel>,
    device: Device<SoftwareGpu>,
}

impl Scene {
    fn on(kernel: Arc<FakeKernel>) -> Scene {
        let gpu = SoftwareGpu::builder().build().expect("a software GPU");
        let device = Device::builder(gpu).vram(Size::mib(4)).system(Size::mib(16)).kernel(kernel.clone());
        Scene { kernel, device: device.build().expect("a small device") }
    }

    fn new() -> Scene {
        Scene::on(FakeKernel::new())
    }

    fn buffer(&self, place: Place) -> Buffer {
        self.device.buffer(Size::kib(64)).prefer(place).create().expect("it fits")
    }

    /// A buffer in system memory that others have as a dma-buf.
    fn shared(&self) -> (Buffer, Arc<FakeDmaBuf>) {
        let buffer = self.buffer(Place::GTT);
        buffer.place_now().expect("there is room");
        buffer.wait().expect("it was cleared");
        let dma_buf = self.share(&buffer);
        (buffer, dma_buf)
    }

    fn share(&self, buffer: &Buffer) -> Arc<FakeDmaBuf> {
        let dma_buf = self.kernel.dma_buf();
        let across = self.device.manager().crossing.across(dma_buf.clone());
        buffer.transact(|transaction, slot| transaction.cross_over(slot, &across)).expect("nothing fails");
        dma_buf
    }

    /// A job that is done once the returned timeline has signalled its point.
    fn start(&self, buffers: &[&Buffer], access: Access) -> (Fence, Timeline) {
        let gate = Timeline::new("gate");
        let opens = gate.next_point();
        let submission =
            buffers.iter().fold(self.device.submit(), |submission, buffer| submission.uses(buffer, access));
        let fence = submission.after(&opens).run(|gpu, job| gpu.run(job, |_| Ok(())));
        (fence.expect("a job is queued"), gate)
    }

    fn submit(&self, buffer: &Buffer, access: Access) -> crate::Result<Fence> {
        self.device.submit().uses(buffer, access).run(|gpu, job| gpu.run(job, |_| Ok(())))
    }

    /// Work of somebody else's, which is outstanding.
    fn stranger(&self, dma_buf: &FakeDmaBuf, access: Access) -> FakeFence {
        let stranger = self.kernel.stranger();
        dma_buf.attach(&stranger, access);
        stranger
    }

    fn has_a_keeper(&self) -> bool {
        self.device.manager().crossing.is_kept()
    }
}

/// What another thread is about to bring about.
fn becomes_true(what: impl Fn() -> bool) {
    while !what() {
        std::thread::yield_now();
    }
}

fn root(error: &FenceError) -> FenceError {
    error.root_cause().clone()
}

#[test]
fn a_job_that_writes_is_waited_for_by_readers_and_writers_until_it_is_done() {
    let scene = Scene::new();
    let (buffer, dma_buf) = scene.shared();
    assert!(!dma_buf.is_busy(Access::Write));
    let (fence, gate) = scene.start(&[&buffer], Access::Write);
    assert!(dma_buf.is_busy(Access::Read) && dma_buf.is_busy(Access::Write));
    gate.signal(1);
    fence.wait().expect("it does nothing");
    becomes_true(|| !dma_buf.is_busy(Access::Write));
    assert_eq!((scene.device.stats().kernel_fences, scene.kernel.outstanding()), (1, 0));
}

#[test]
fn a_job_that_reads_is_waited_for_by_writers_alone() {
    let scene = Scene::new();
    let (buffer, dma_buf) = scene.shared();
    let (fence, gate) = scene.start(&[&buffer], Access::Read);
    assert!(!dma_buf.is_busy(Access::Read) && dma_buf.is_busy(Access::Write));
    gate.signal(1);
    fence.wait().expect("it does nothing");
    becomes_true(|| !dma_buf.is_busy(Access::Write));
}

#[test]
fn one_kernel_fence_is_enough_for_three_shared_buffers_of_a_submission() {
    let scene = Scene::new();
    let (shared, dma_bufs): (Vec<_>, Vec<_>) = (0..3).map(|_| scene.shared()).unzip();
    let (fence, gate) = scene.start(&shared.iter().collect::<Vec<_>>(), Access::Write);
    assert!(dma_bufs.iter().all(|dma_buf| dma_buf.is_busy(Access::Read)));
    assert_eq!(scene.device.stats().kernel_fences, 1);
    gate.signal(1);
    fence.wait().expect("it does nothing");
    becomes_true(|| !dma_bufs.iter().any(|dma_buf| dma_buf.is_busy(Access::Write)));
}

#[test]
fn what_is_queued_before_a_buffer_is_shared_is_told_when_it_is() {
    let scene = Scene::new();
    let (written, read) = (scene.buffer(Place::GTT), scene.buffer(Place::GTT));
    let (writer, write_gate) = scene.start(&[&written], Access::Write);
    let (_, read_gate) = scene.start(&[&read], Access::Read);
    read.0.reservation.fences(devpagemap_fence::Usage::Write).wait().expect("it was cleared");
    let (written, read) = (scene.share(&written), scene.share(&read));
    assert!(written.is_busy(Access::Read));
    assert!(!read.is_busy(Access::Read) && read.is_busy(Access::Write));
    write_gate.signal(1);
    read_gate.signal(1);
    writer.wait().expect("it does nothing");
    becomes_true(|| scene.kernel.outstanding() == 0);
}

#[test]
fn a_move_waits_for_a_stranger_and_is_waited_for() {
    let scene = Scene::new();
    let buffer = scene.buffer(Place::VRAM);
    buffer.write_at(0, b"here").expect("it gets system memory");
    let dma_buf = scene.share(&buffer);
    let stranger = scene.stranger(&dma_buf, Access::Write);
    buffer.place_now().expect("VRAM is empty");
    assert!(!buffer.fences().is_signaled(), "the move waits for the stranger");
    assert_eq!(scene.kernel.outstanding(), 2, "the stranger's and the move's");
    stranger.signal();
    becomes_true(|| buffer.fences().is_signaled() && !dma_buf.is_busy(Access::Write));
    let mut bytes = [0; 4];
    buffer.read_at(0, &mut bytes).expect("it was moved");
    assert_eq!(&bytes, b"here");
}

#[test]
fn a_move_goes_on_behind_a_stranger_that_fails_and_the_job_that_needs_it_does_not() {
    let scene = Scene::new();
    let buffer = scene.buffer(Place::VRAM);
    buffer.write_at(0, b"here").expect("it gets system memory");
    let dma_buf = scene.share(&buffer);
    let stranger = scene.stranger(&dma_buf, Access::Write);
    let job = scene.submit(&buffer, Access::Read).expect("it is queued");
    stranger.fail(ENOENT);
    let expected =
        FenceError::Foreign { driver: "stranger".into(), timeline: "its ring".into(), errno: ENOENT };
    assert_eq!(root(&job.wait().expect_err("what it reads was not written")), expected);
    let mut bytes = [0; 4];
    buffer.read_at(0, &mut bytes).expect("its bytes are not lost");
    assert_eq!(&bytes, b"here");
    assert_eq!(scene.device.stats().foreign_fences_failed, 2, "once for the job, once for the move");
}

#[test]
fn a_stranger_that_reads_delays_writers_alone() {
    let scene = Scene::new();
    let (buffer, dma_buf) = scene.shared();
    let stranger = scene.stranger(&dma_buf, Access::Read);
    scene.submit(&buffer, Access::Read).expect("it is queued").wait().expect("it need not wait");
    buffer.read_at(0, &mut [0]).expect("it need not wait");
    let writer = scene.submit(&buffer, Access::Write).expect("it is queued");
    assert!(!writer.is_signaled());
    stranger.signal();
    writer.wait().expect("it could wait");
}

#[test]
fn a_stranger_that_never_signals_is_an_error_in_time() {
    let scene = Scene::new();
    let (buffer, dma_buf) = scene.shared();
    let stranger = scene.stranger(&dma_buf, Access::Write);
    let job = scene.submit(&buffer, Access::Read).expect("it is queued");
    scene.kernel.pass(TIMEOUT);
    let error = root(&job.wait().expect_err("nobody wrote what it reads"));
    assert!(
        matches!(&error, FenceError::TimedOut { timeline, .. } if &**timeline == "stranger its ring"),
        "{error}"
    );
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| buffer.read_at(0, &mut [0]));
        becomes_true(|| scene.device.stats().foreign_fences == 2);
        scene.kernel.pass(TIMEOUT);
        let refused = reader.join().expect("no panic").expect_err("nobody wrote what it reads");
        assert!(matches!(refused, Error::FenceFailed(FenceError::TimedOut { .. })), "{refused}");
    });
    stranger.signal();
    buffer.read_at(0, &mut [0]).expect("it is there now");
    becomes_true(|| !scene.has_a_keeper());
}

#[test]
fn our_own_job_is_no_stranger_however_long_it_takes() {
    let scene = Scene::new();
    let (buffer, dma_buf) = scene.shared();
    let (first, gate) = scene.start(&[&buffer], Access::Write);
    let second = scene.submit(&buffer, Access::Write).expect("it is queued");
    scene.kernel.pass(10 * TIMEOUT);
    gate.signal(1);
    first.wait().expect("it does nothing");
    second.wait().expect("it waited for no stranger");
    assert_eq!(scene.device.stats().foreign_fences, 0);
    becomes_true(|| !dma_buf.is_busy(Access::Write));
}

#[test]
fn a_deadline_counts_for_strangers_and_not_for_our_own_work_beside_them() {
    let scene = Scene::new();
    let (buffer, dma_buf) = scene.shared();
    let (_first, gate) = scene.start(&[&buffer], Access::Write);
    let stranger = scene.stranger(&dma_buf, Access::Write);
    let second = scene.submit(&buffer, Access::Write).expect("it is queued");
    stranger.signal();
    scene.kernel.pass(TIMEOUT);
    becomes_true(|| !scene.has_a_keeper());
    assert!(!second.is_signaled(), "the first is at work");
    gate.signal(1);
    second.wait().expect("the stranger was in time");
    assert_eq!(scene.device.stats().foreign_fences_failed, 0);
}

#[test]
fn a_failure_of_our_own_beside_a_stranger_is_not_taken_for_the_strangers() {
    let scene = Scene::new();
    let (buffer, dma_buf) = scene.shared();
    let gate = Timeline::new("gate");
    let opens = gate.next_point();
    let failing = scene.device.submit().writes(&buffer).after(&opens);
    let failing = failing.run(|gpu, job| gpu.run(job, |_| Err("on purpose".into()))).expect("it is queued");
    let stranger = scene.stranger(&dma_buf, Access::Write);
    let job = scene.submit(&buffer, Access::Write).expect("it is queued");
    gate.signal(1);
    failing.wait().expect_err("on purpose");
    stranger.signal();
    job.wait().expect("the stranger did its work");
}

#[test]
fn work_that_outlasts_a_kernel_fence_gets_another_before_the_first_ends() {
    let scene = Scene::on(FakeKernel::like_vgem(EXPIRY));
    let (buffer, dma_buf) = scene.shared();
    let (fence, gate) = scene.start(&[&buffer], Access::Write);
    for renewed in 1..=3 {
        scene.kernel.pass(Duration::from_secs(7));
        becomes_true(|| scene.device.stats().kernel_fences_renewed == renewed);
        assert!(dma_buf.is_busy(Access::Read), "renewal {renewed}");
        becomes_true(|| scene.kernel.outstanding() == 1);
    }
    gate.signal(1);
    fence.wait().expect("it does nothing");
    becomes_true(|| !dma_buf.is_busy(Access::Write));
    assert_eq!((scene.kernel.outstanding(), scene.device.stats().kernel_fences_expired), (0, 0));
    scene.kernel.pass(EXPIRY);
    becomes_true(|| !scene.has_a_keeper());
}

#[test]
fn a_renewal_that_fails_is_tried_again_and_one_that_never_works_is_counted() {
    let scene = Scene::on(FakeKernel::like_vgem(EXPIRY));
    let (buffer, dma_buf) = scene.shared();
    let (_first, first_gate) = scene.start(&[&buffer], Access::Write);
    scene.kernel.fail_after(0);
    scene.kernel.pass(Duration::from_secs(7));
    let failures = || scene.device.stats().reasons.keys().filter(|reason| reason.contains("renewed")).count();
    becomes_true(|| failures() == 1);
    scene.kernel.fail_no_more();
    scene.kernel.pass(Duration::from_secs(1));
    becomes_true(|| scene.device.stats().kernel_fences_renewed == 1);
    assert!(dma_buf.is_busy(Access::Read));

    scene.kernel.fail_after(0);
    scene.kernel.pass(EXPIRY);
    assert!(!dma_buf.is_busy(Access::Read), "the kernel has signalled it");
    first_gate.signal(1);
    becomes_true(|| scene.device.stats().kernel_fences_expired == 1);
    scene.kernel.fail_no_more();
}

#[test]
fn whatever_the_kernel_refuses_nothing_is_queued_and_nothing_is_left_unsignalled() {
    let scene = Scene::on(FakeKernel::like_vgem(EXPIRY));
    let ((one, dma_buf), (other, _)) = (scene.shared(), scene.shared());
    let mut refusals = 0;
    loop {
        let stranger = scene.stranger(&dma_buf, Access::Write);
        let mut was_queued = false;
        scene.kernel.fail_after(refusals);
        let job = scene.device.submit().writes(&one).writes(&other).run(|gpu, job| {
            was_queued = true;
            gpu.run(job, |_| Ok(()))
        });
        scene.kernel.fail_no_more();
        let Err(error) = job else {
            stranger.signal();
            job.expect("nothing failed").wait().expect("it does nothing");
            break;
        };
        assert!(matches!(error, Error::Io { errno: 12, .. }) && !was_queued, "{error}");
        assert_eq!(scene.kernel.outstanding(), 1, "the stranger's, after {refusals} calls");
        stranger.signal();
        becomes_true(|| one.fences().is_signaled() && other.fences().is_signaled());
        // One that still runs would spare the next round a call.
        becomes_true(|| !scene.has_a_keeper());
        refusals += 1;
    }
    // The snapshot, how far it is, what to sleep by, the watch; the fence, and two dma-bufs.
    assert!(refusals >= 7, "{refusals} calls may fail");
    becomes_true(|| scene.kernel.outstanding() == 0);
}

#[test]
fn whatever_the_kernel_refuses_a_buffer_is_shared_with_all_of_its_fences_or_not_at_all() {
    let scene = Scene::new();
    let buffer = scene.buffer(Place::GTT);
    let (_writer, write_gate) = scene.start(&[&buffer], Access::Write);
    let (_reader, read_gate) = scene.start(&[&buffer], Access::Read);
    for calls in 0.. {
        let dma_buf = scene.kernel.dma_buf();
        let across = scene.device.manager().crossing.across(dma_buf.clone());
        scene.kernel.fail_after(calls);
        let shared = buffer.transact(|transaction, slot| transaction.cross_over(slot, &across));
        scene.kernel.fail_no_more();
        if shared.is_ok() {
            assert_eq!((calls, scene.kernel.outstanding()), (4, 2));
            break;
        }
        assert_eq!(scene.kernel.outstanding(), 0);
        assert!(buffer.0.reservation.lock(&mut devpagemap_fence::Held::enter()).across.is_none());
    }
    write_gate.signal(1);
    read_gate.signal(1);
    becomes_true(|| scene.kernel.outstanding() == 0);
}

#[test]
fn a_submission_that_the_driver_refuses_leaves_nothing_outstanding() {
    let scene = Scene::new();
    let (buffer, dma_buf) = scene.shared();
    let refused = scene.device.submit().writes(&buffer).run(|_, _| Err(Error::DeviceLost));
    assert_eq!(refused.map(drop), Err(Error::DeviceLost));
    assert!(!dma_buf.is_busy(Access::Write));
    assert_eq!(scene.device.stats().kernel_fences, 1);
}

#[test]
fn without_a_source_work_is_done_and_it_is_counted_why_nobody_hears_of_it() {
    let scene = Scene::on(FakeKernel::without_source());
    let (buffer, dma_buf) = scene.shared();
    let (fence, gate) = scene.start(&[&buffer], Access::Write);
    assert!(!dma_buf.is_busy(Access::Write));
    gate.signal(1);
    fence.wait().expect("it does nothing");
    let reasons = scene.device.stats().reasons;
    let reason = reasons.keys().find(|reason| reason.contains("others do not hear"));
    assert!(reason.expect("it is counted").contains("nothing was made up"));
    let source = scene.device.manager().crossing.source();
    assert!(matches!(source, Err(Error::NoKernelFences { .. })));
}

#[test]
fn work_that_failed_says_so_where_a_kernel_fence_can_and_is_counted_where_it_cannot() {
    for (kernel, counted) in [(FakeKernel::new(), 0), (FakeKernel::like_vgem(EXPIRY), 1)] {
        let scene = Scene::on(kernel);
        let (buffer, dma_buf) = scene.shared();
        let job = scene.device.submit().writes(&buffer);
        let job = job.run(|gpu, job| gpu.run(job, |_| Err("on purpose".into()))).expect("it is queued");
        job.wait().expect_err("on purpose");
        becomes_true(|| !dma_buf.is_busy(Access::Write));
        becomes_true(|| {
            let reasons = scene.device.stats().reasons;
            reasons.keys().filter(|reason| reason.contains("cannot say so")).count() == counted
        });
        assert_eq!(scene.kernel.failed(), 1 - counted);
    }
}

#[test]
fn a_device_that_is_dropped_leaves_no_kernel_fence_unsignalled() {
    let scene = Scene::on(FakeKernel::like_vgem(EXPIRY));
    let (buffer, _) = scene.shared();
    let gate = Timeline::new("never opened");
    let opens = gate.next_point();
    let fence = scene.device.submit().writes(&buffer).run(|_, _| Ok(opens)).expect("it is queued");
    let Scene { kernel, device } = scene;
    assert_eq!(kernel.outstanding(), 1);
    drop((buffer, device));
    assert_eq!(kernel.outstanding(), 1, "whoever does the work has not said that it is over");
    drop(gate);
    assert!(matches!(fence.status(), Some(Err(FenceError::Abandoned { .. }))));
    assert_eq!(kernel.outstanding(), 0);
}

#[test]
fn a_keeper_with_nothing_to_keep_goes_with_its_device() {
    let scene = Scene::on(FakeKernel::like_vgem(EXPIRY));
    let (buffer, _) = scene.shared();
    let crossing = scene.device.manager().crossing.clone();
    let (fence, gate) = scene.start(&[&buffer], Access::Write);
    becomes_true(|| crossing.has_a_sleeping_keeper());
    gate.signal(1);
    fence.wait().expect("it does nothing");
    becomes_true(|| scene.kernel.outstanding() == 0);
    assert!(scene.has_a_keeper(), "it sleeps until the fence would have been renewed");
    drop((buffer, scene));
    becomes_true(|| !crossing.is_kept());
}

#[test]
fn an_unplugged_device_leaves_no_kernel_fence_unsignalled() {
    let scene = Scene::new();
    let buffer = scene.buffer(Place::VRAM);
    buffer.place_now().expect("VRAM is empty");
    let dma_buf = scene.share(&buffer);
    let (fence, gate) = scene.start(&[&buffer], Access::Write);
    let revoke = scene.device.unplug(crate::Unplug::Orderly).expect("there is system memory");
    gate.signal(1);
    drop(revoke.wait());
    fence.wait().expect("it was queued before");
    becomes_true(|| !dma_buf.is_busy(Access::Write));
    assert_eq!(scene.kernel.outstanding(), 0);
}

#[test]
fn two_ways_to_one_dma_buf_are_one() {
    let scene = Scene::new();
    let dma_buf = scene.kernel.dma_buf();
    let crossing = &scene.device.manager().crossing;
    let one = crossing.across(dma_buf.clone());
    assert!(Arc::ptr_eq(&one, &crossing.across(dma_buf.clone())));
    let before = Arc::as_ptr(&one);
    drop(one);
    let _other = scene.kernel.dma_buf();
    let anew = crossing.across(dma_buf);
    assert!(Arc::strong_count(&anew) == 1, "{before:?} is forgotten");
}

#[test]
fn when_nobody_has_the_dma_buf_any_more_its_pages_wait_for_what_others_still_do() {
    let scene = Scene::new();
    let (buffer, dma_buf) = scene.shared();
    let stranger = scene.stranger(&dma_buf, Access::Read);
    buffer
        .transact(|transaction, slot| {
            transaction.end_crossing(slot);
            Ok(())
        })
        .expect("nobody is in the way");
    assert!(!buffer.fences().is_signaled());
    stranger.signal();
    assert_eq!(buffer.fences().wait(), Ok(()));
    scene.submit(&buffer, Access::Write).expect("it is queued").wait().expect("it does nothing");
    assert_eq!(scene.device.stats().kernel_fences, 0, "nobody outside hears of it");
}

#[test]
fn an_idle_dma_buf_costs_a_submission_no_thread() {
    let scene = Scene::new();
    let (buffer, _) = scene.shared();
    let before = scene.kernel.calls();
    scene.submit(&buffer, Access::Write).expect("it is queued").wait().expect("it does nothing");
    assert_eq!(scene.kernel.calls() - before, 2, "a fence, and its way into the dma-buf");
    assert!(!scene.has_a_keeper());
}
