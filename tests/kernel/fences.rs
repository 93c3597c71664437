//! Fences across the boundary to the kernel: our work in the reservation object of a dma-buf, and others' work in our timelines.

use std::fmt::Debug;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use devpagemap::{
    Access, Buffer, Device, Error, Fence, FenceError, FenceSet, FenceSource, Size, SoftwareGpu, Timeline, Via,
};

use drm::control::Device as _;

use crate::child;
use crate::observe::{FOREVER, descriptors, wait_until};
use crate::setup::{Thing, need, say_loudly};
use crate::stranger::{Does, SwSync, Vgem, is_busy, is_ready_within, let_in, udmabuf};

const BYTES: u64 = 64 << 10;
/// Long enough to see that something does not happen.
pub const A_MOMENT: Duration = Duration::from_millis(50);

/// The sources that this kernel has.
pub fn sources() -> Vec<FenceSource> {
    let sw_sync = Thing::SwSync.look().is_ok().then_some(FenceSource::SwSync);
    sw_sync.into_iter().chain([FenceSource::Vgem]).collect()
}

pub fn device_with(source: FenceSource) -> Device<SoftwareGpu> {
    let gpu = SoftwareGpu::builder().build().expect("a software GPU");
    let builder = Device::builder(gpu).vram(Size::mib(16)).system(Size::mib(64)).fence_source(source);
    builder.build().expect("a small device")
}

/// A dma-buf of vgem's, and the buffer that our device has of it.
fn imported(vgem: &Vgem, device: &Device<SoftwareGpu>) -> (OwnedFd, Buffer) {
    let dma_buf = vgem.dma_buf(BYTES);
    let buffer = device.import(dma_buf.as_fd()).create().expect("it is a dma-buf");
    (dma_buf, buffer)
}

/// A job that is done once the returned timeline has signalled its point.
pub fn start(device: &Device<SoftwareGpu>, buffers: &[&Buffer], access: Access) -> (Fence, Timeline) {
    let gate = Timeline::new("gate");
    let opens = gate.next_point();
    let submission =
        buffers.iter().fold(device.submit(), |submission, buffer| submission.uses(buffer, access));
    let fence = submission.after(&opens).run(|gpu, job| gpu.run(job, |_| Ok(())));
    (fence.expect("a job is queued"), gate)
}

fn submit(device: &Device<SoftwareGpu>, buffer: &Buffer, access: Access) -> Fence {
    let submitted = device.submit().uses(buffer, access).run(|gpu, job| gpu.run(job, |_| Ok(())));
    submitted.expect("a job is queued")
}

/// That who is to read the bytes has to wait, and who is to write them too.
#[track_caller]
fn expect_busy(dma_buf: impl AsFd, which: impl Debug) {
    for does in [Does::Reads, Does::Writes] {
        assert!(is_busy(&dma_buf, does), "who {does:?} does not wait: {which:?}");
    }
}

/// That both may go ahead, now or soon.
#[track_caller]
fn expect_ready(dma_buf: impl AsFd, which: impl Debug) {
    for does in [Does::Reads, Does::Writes] {
        assert!(is_ready_within(&dma_buf, does, FOREVER), "who {does:?} still waits: {which:?}");
    }
}

/// That work waits for something, and goes on waiting.
#[track_caller]
fn expect_waiting<'a>(work: impl IntoIterator<Item = &'a Fence>) {
    std::thread::sleep(A_MOMENT);
    work.into_iter().for_each(|fence| assert!(!fence.is_signaled(), "{fence:?}"));
}

/// Ends this process as `kill -9` does.
pub fn die() {
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
        .expect("a process may kill itself");
}

#[test]
fn who_polls_a_dma_buf_waits_for_our_writes_as_reader_and_as_writer() {
    if !need(&[Thing::Vgem]) {
        return;
    }
    let vgem = Vgem::open();
    for source in sources() {
        let device = device_with(source);
        let (dma_buf, buffer) = imported(&vgem, &device);
        assert!(!is_busy(&dma_buf, Does::Writes));
        let (job, gate) = start(&device, &[&buffer], Access::Write);
        expect_busy(&dma_buf, source);
        assert!(!is_ready_within(&dma_buf, Does::Reads, A_MOMENT));
        gate.signal(1);
        expect_ready(&dma_buf, source);
        job.wait().expect("it does nothing");
    }
}

#[test]
fn who_polls_a_dma_buf_waits_for_our_reads_as_writer_alone() {
    if !need(&[Thing::Vgem]) {
        return;
    }
    let vgem = Vgem::open();
    for source in sources() {
        let device = device_with(source);
        let (dma_buf, buffer) = imported(&vgem, &device);
        let (_job, gate) = start(&device, &[&buffer], Access::Read);
        assert!(!is_busy(&dma_buf, Does::Reads) && is_busy(&dma_buf, Does::Writes), "{source:?}");
        gate.signal(1);
        expect_ready(&dma_buf, source);
    }
}

#[test]
fn a_buffer_under_a_queued_move_blocks_poll_on_its_exported_descriptor() {
    if !need(&[Thing::Vgem, Thing::Udmabuf, Thing::DmaHeap]) {
        return;
    }
    for (source, via) in sources()
        .into_iter()
        .flat_map(|source| [Via::Udmabuf, Via::DmaHeap, Via::Vgem].map(|via| (source, via)))
    {
        let device = device_with(source);
        let buffer = device.buffer(Size::bytes(BYTES)).create().expect("a buffer");
        buffer.write_at(0, b"moved").expect("it has system memory");
        buffer.place_now().expect("VRAM is empty");
        let (_job, gate) = start(&device, &[&buffer], Access::Write);
        let export = buffer.export(via.clone()).expect("this guest has it");
        assert!(export.fences().is_ok());
        expect_busy(&export, (source, &via));
        gate.signal(1);
        expect_ready(&export, (source, &via));
        let mut bytes = [0; 5];
        buffer.read_at(0, &mut bytes).expect("it was moved");
        assert_eq!(&bytes, b"moved");
    }
}

#[test]
fn a_foreign_write_delays_our_jobs_and_the_cpu_and_a_foreign_read_our_writes() {
    if !need(&[Thing::Vgem]) {
        return;
    }
    let vgem = Vgem::open();
    let device = device_with(FenceSource::Auto);
    let (dma_buf, buffer) = imported(&vgem, &device);
    let handle = vgem.import(&dma_buf);

    let write = vgem.attach(handle, Does::Writes).expect("it is idle");
    let reader = submit(&device, &buffer, Access::Read);
    expect_waiting([&reader]);
    std::thread::scope(|scope| {
        let cpu = scope.spawn(|| buffer.read_at(0, &mut [0]));
        std::thread::sleep(A_MOMENT);
        assert!(!cpu.is_finished());
        vgem.signal(write);
        cpu.join().expect("no panic").expect("the other has written");
    });
    reader.wait().expect("the other has written");

    let read = vgem.attach(handle, Does::Reads).expect("no writer is there");
    submit(&device, &buffer, Access::Read).wait().expect("readers do not wait for readers");
    buffer.read_at(0, &mut [0]).expect("nor does the CPU");
    let writer = submit(&device, &buffer, Access::Write);
    expect_waiting([&writer]);
    vgem.signal(read);
    writer.wait().expect("the other has read");
}

#[test]
fn a_foreign_write_delays_our_move() {
    if !need(&[Thing::Vgem]) {
        return;
    }
    let vgem = Vgem::open();
    let device = device_with(FenceSource::Auto);
    let buffer = device.buffer(Size::bytes(BYTES)).create().expect("a buffer");
    buffer.write_at(0, b"mine").expect("it has system memory");
    let export = buffer.export(Via::Vgem).expect("this guest has it");
    expect_ready(&export, Via::Vgem);
    let handle = vgem.import(&export);
    let fence = vgem.attach(handle, Does::Writes).expect("it is idle");
    vgem.close_buffer(handle).expect("it is open");
    drop(export);
    // Nobody outside has it any more. Back in VRAM its bytes are when the other has written them, and not before.
    let moves_before = device.stats().moves;
    let job = submit(&device, &buffer, Access::Read);
    expect_waiting([&job]);
    vgem.signal(fence);
    job.wait().expect("the other has written");
    wait_until("it is in VRAM again", || {
        submit(&device, &buffer, Access::Read).wait().expect("nobody is in the way");
        device.stats().moves > moves_before
    });
    let mut bytes = [0; 4];
    buffer.read_at(0, &mut bytes).expect("it was moved");
    assert_eq!(&bytes, b"mine");
}

#[test]
fn a_foreign_fence_that_never_signals_is_an_error_in_time() {
    if !need(&[Thing::Vgem]) {
        return;
    }
    let vgem = Vgem::open();
    let gpu = SoftwareGpu::builder().build().expect("a software GPU");
    let timeout = Duration::from_millis(300);
    let device = Device::builder(gpu).vram(Size::mib(16)).foreign_fence_timeout(timeout);
    let device = device.build().expect("a small device");
    let (dma_buf, buffer) = imported(&vgem, &device);
    let fence = vgem.attach(vgem.import(&dma_buf), Does::Writes).expect("it is idle");
    let start = Instant::now();
    let job = submit(&device, &buffer, Access::Read);
    let error = job.wait().expect_err("nobody wrote what it reads");
    let waited = start.elapsed();
    let FenceError::TimedOut { timeline, .. } = error.root_cause() else { panic!("{error}") };
    assert_eq!(&**timeline, "vgem unbound");
    assert!(waited >= timeout, "{waited:?}");
    let refused = buffer.read_at(0, &mut [0]).expect_err("nobody wrote it");
    assert!(matches!(refused, Error::FenceFailed(FenceError::TimedOut { .. })), "{refused}");
    vgem.signal(fence);
    buffer.read_at(0, &mut [0]).expect("it is there now");
    assert_eq!(device.stats().foreign_fences_failed, 2);
}

#[test]
fn a_foreign_timeline_that_is_closed_fails_our_job_by_its_name() {
    if !need(&[Thing::Vgem, Thing::SwSync]) {
        return;
    }
    let device = device_with(FenceSource::Auto);
    let (dma_buf, buffer) = imported(&Vgem::open(), &device);
    let timeline = SwSync::open();
    let_in(&dma_buf, timeline.point(1), Does::Writes);
    let job = submit(&device, &buffer, Access::Read);
    expect_waiting([&job]);
    timeline.count();
    job.wait().expect("the other has written");
    let_in(&dma_buf, timeline.point(2), Does::Writes);
    let job = submit(&device, &buffer, Access::Read);
    drop(timeline);
    let error = job.wait().expect_err("whoever wrote went away");
    let FenceError::Foreign { driver, errno, .. } = error.root_cause() else { panic!("{error}") };
    assert_eq!((&**driver, *errno), ("sw_sync", 2), "ENOENT");
}

#[test]
fn work_of_ours_that_failed_is_an_error_for_others_where_the_kernel_has_one() {
    if !need(&[Thing::Vgem]) {
        return;
    }
    let vgem = Vgem::open();
    for source in sources() {
        let (ours, theirs) = (device_with(source), device_with(FenceSource::Vgem));
        let (dma_buf, buffer) = imported(&vgem, &ours);
        let same = theirs.import(dma_buf.as_fd()).create().expect("it is a dma-buf");
        let gate = Timeline::new("gate");
        let opens = gate.next_point();
        let failing = ours.submit().writes(&buffer).after(&opens);
        let failing = failing.run(|gpu, job| gpu.run(job, |_| Err("on purpose".into())));
        let failing = failing.expect("it is queued");
        let dependent = submit(&theirs, &same, Access::Read);
        gate.signal(1);
        failing.wait().expect_err("on purpose");
        let said = dependent.wait();
        match source {
            FenceSource::SwSync => assert!(said.is_err(), "{said:?}"),
            _ => {
                said.expect("vgem's fences say nothing of errors");
                let reasons = ours.stats().reasons;
                assert!(reasons.keys().any(|reason| reason.contains("cannot say so")), "{reasons:?}");
            }
        }
    }
}

#[test]
fn two_devices_that_share_a_dma_buf_wait_for_each_other_through_the_kernel() {
    if !need(&[Thing::Vgem, Thing::Udmabuf]) {
        return;
    }
    for source in sources() {
        let (one, other) = (device_with(source), device_with(source));
        let buffer = one.buffer(Size::bytes(BYTES)).create().expect("a buffer");
        let export = buffer.export(Via::Udmabuf).expect("this guest has it");
        let same = other.import(export.as_fd()).create().expect("it is a dma-buf");
        let (first, gate) = start(&one, &[&buffer], Access::Write);
        let second = submit(&other, &same, Access::Write);
        let third = submit(&one, &buffer, Access::Read);
        expect_waiting([&first, &second, &third]);
        gate.signal(1);
        for job in [first, second, third] {
            job.wait().expect("it does nothing");
        }
        assert!(other.stats().foreign_fences > 0);
        assert_eq!(one.stats().foreign_fences_failed + other.stats().foreign_fences_failed, 0);
    }
}

#[test]
fn a_fence_goes_from_one_dma_buf_to_another_as_a_sync_file() {
    if !need(&[Thing::Vgem]) {
        return;
    }
    let vgem = Vgem::open();
    for source in sources() {
        let device = device_with(source);
        let (_, buffer) = imported(&vgem, &device);
        let (second, _) = imported(&vgem, &device);
        let (job, gate) = start(&device, &[&buffer], Access::Write);
        let file = device.export_sync_file(&FenceSet::from(job.clone())).expect("there is a source");
        assert!(!is_ready_within(&file, Does::Reads, A_MOMENT));
        let_in(&second, &file, Does::Writes);
        expect_busy(&second, source);
        let back = device.import_sync_file(file.try_clone().expect("one more")).expect("it is one");
        assert!(!back.is_signaled());
        gate.signal(1);
        assert!(is_ready_within(&file, Does::Reads, FOREVER), "{source:?}");
        expect_ready(&second, source);
        assert_eq!(back.wait(), Ok(()));
        assert_eq!(device.import_sync_file(file).map(|fence| fence.is_signaled()), Ok(true));
    }
}

#[test]
fn what_is_no_sync_file_is_refused_and_no_source_has_its_reasons() {
    let device = device_with(FenceSource::None);
    for other in ["/dev/null", "/proc/self/exe", "/proc"] {
        let file = std::fs::File::open(other).expect("it is there");
        let refused = device.import_sync_file(file.into()).expect_err("it is no sync_file");
        assert!(matches!(refused, Error::NotASyncFile { .. }), "{other}: {refused}");
    }
    let refused = device.export_sync_file(&FenceSet::new()).expect_err("there is no source");
    assert!(matches!(&refused, Error::NoKernelFences { why } if why.contains("without")), "{refused}");
}

#[test]
fn a_fence_that_is_attached_through_vgems_import_of_a_udmabuf_is_seen() {
    if !need(&[Thing::Vgem, Thing::Udmabuf]) {
        return;
    }
    let (vgem, device) = (Vgem::open(), device_with(FenceSource::Auto));
    let dma_buf = udmabuf(BYTES);
    let buffer = device.import(dma_buf.as_fd()).create().expect("it is a dma-buf");
    let fence = vgem.attach(vgem.import(&dma_buf), Does::Writes).expect("it is idle");
    expect_busy(&dma_buf, "a udmabuf");
    let job = submit(&device, &buffer, Access::Read);
    expect_waiting([&job]);
    vgem.signal(fence);
    job.wait().expect("the other has written");
}

#[test]
fn work_that_takes_longer_than_vgems_fences_last_is_waited_for_without_a_gap() {
    if !need(&[Thing::Vgem]) {
        return;
    }
    let device = device_with(FenceSource::Vgem);
    let (dma_buf, buffer) = imported(&Vgem::open(), &device);
    let (job, gate) = start(&device, &[&buffer], Access::Write);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(10_800) {
        assert!(is_busy(&dma_buf, Does::Reads), "after {:?}", begin.elapsed());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(device.stats().kernel_fences_renewed >= 1);
    gate.signal(1);
    job.wait().expect("it does nothing");
    expect_ready(&dma_buf, FenceSource::Vgem);
    assert_eq!(device.stats().kernel_fences_expired, 0);
}

#[test]
fn a_process_that_is_killed_leaves_nobody_waiting() {
    let name = "fences::a_process_that_is_killed_leaves_nobody_waiting";
    dies_in_the_middle_of_a_job(name, Thing::Vgem, FenceSource::Vgem);
}

#[test]
fn a_process_that_is_killed_with_a_timeline_of_its_own_leaves_nobody_waiting() {
    let name = "fences::a_process_that_is_killed_with_a_timeline_of_its_own_leaves_nobody_waiting";
    dies_in_the_middle_of_a_job(name, Thing::SwSync, FenceSource::SwSync);
}

fn dies_in_the_middle_of_a_job(test: &str, of: Thing, source: FenceSource) {
    if !need(&[Thing::Vgem, of]) {
        return;
    }
    let dma_buf = Vgem::open().dma_buf(BYTES);
    let inherited = dma_buf.try_clone().expect("one more");
    let ended = child::in_a_child_with(inherited.into(), test, || {
        let device = device_with(source);
        let buffer = device.import(std::io::stdin().as_fd()).create().expect("it is a dma-buf");
        let (_job, _gate) = start(&device, &[&buffer], Access::Write);
        assert!(!buffer.fences().is_signaled());
        die();
    });
    let Some(ended) = ended else { return };
    child::expect_killed(&ended, 9);
    expect_ready(&dma_buf, source);
}

#[test]
fn no_descriptor_is_left_when_a_device_is_gone() {
    if !need(&[Thing::Vgem]) {
        return;
    }
    let vgem = Vgem::open();
    for source in sources() {
        let before = descriptors();
        {
            let device = device_with(source);
            let (dma_buf, buffer) = imported(&vgem, &device);
            let handle = vgem.import(&dma_buf);
            for _ in 0..3 {
                let fence = vgem.attach(handle, Does::Writes).expect("it is idle");
                let job = submit(&device, &buffer, Access::Write);
                vgem.signal(fence);
                job.wait().expect("it does nothing");
                expect_ready(&dma_buf, source);
            }
        }
        wait_until("no descriptor is left", || descriptors() <= before);
    }
}

/// Not a test of speed: it says what a shared buffer adds to a submission here.
#[test]
fn what_a_shared_buffer_costs_a_submission_is_said() {
    if !need(&[Thing::Vgem]) {
        return;
    }
    const ROUNDS: u32 = 300;
    let vgem = Vgem::open();
    let time = |device: &Device<SoftwareGpu>, buffer: &Buffer| {
        let mut total = Duration::ZERO;
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let job = submit(device, buffer, Access::Write);
            total += start.elapsed();
            job.wait().expect("it does nothing");
        }
        (total / ROUNDS).as_nanos() as f64 / 1000.0
    };
    for source in sources() {
        let device = device_with(source);
        let own = device.buffer(Size::bytes(BYTES)).create().expect("a buffer");
        let (_, shared) = imported(&vgem, &device);
        let (own_us, shared_us) = (time(&device, &own), time(&device, &shared));
        say_loudly(&format!(
            "{source:?}: a submission takes {own_us:.1} us, with a shared buffer {shared_us:.1} us"
        ));
        assert!(device.stats().kernel_fences >= u64::from(ROUNDS));
    }
}
