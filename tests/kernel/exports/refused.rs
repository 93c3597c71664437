//! What is not exported: the reason is said, and nothing has changed.

use std::os::unix::process::CommandExt;
use std::process::Command;

use devpagemap::{Access, Error, FenceSource, P2p, PassedOver, RegionKind, Size, Timeline, Via, WhyNot};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{ALL, BYTES, WAYS, buffer, bytes_of, device, device_of, fill, let_go, read_all, reasons};
use crate::calls::{
    CLONE, CREATE_DUMB, DMA_HEAP_ALLOC, EXPORT_SYNC_FILE, FILE_INFO, HANDLE_TO_FD, IMPORT_SYNC_FILE, MMAP,
    SET_NAME, UDMABUF_CREATE_LIST, VGEM_FENCE_ATTACH, is_for_want_of_memory,
};
use crate::child::{expect_success, in_a_child};
use crate::observe::{descriptors, wait_until};
use crate::refusing::{Call, refusing};
use crate::setup::{Thing, guest, need};

#[test]
fn a_buffer_that_is_exported_is_not_exported_otherwise_at_the_same_time() {
    if !need(&ALL) {
        return;
    }
    let device = device();
    let buffer = buffer(&device, "otherwise");
    let export = buffer.export(Via::Vgem).expect("it can be had");
    let as_it_is = WhyNot::ExportedAs { via: Via::Vgem, read_only: false };
    let refused = reasons(buffer.export(Via::Udmabuf).expect_err("it is in the pages of vgem"));
    assert_eq!(refused, [PassedOver { via: Via::Udmabuf, why: as_it_is.clone() }]);
    let refused = reasons(buffer.export(Via::Vgem.read_only()).expect_err("others may write it"));
    assert_eq!(refused, [PassedOver { via: Via::Vgem, why: as_it_is }]);
    drop(export);
    let_go(&device);
    let other = buffer.export(Via::Udmabuf).expect("nobody has the other any more");
    assert_eq!(other.via(), &Via::Udmabuf);
}

#[test]
fn a_buffer_that_has_to_be_in_the_bar_is_not_exported() {
    if !need(&[Thing::Udmabuf, Thing::Vgem]) {
        return;
    }
    let device = device();
    let must = device.buffer(Size::mib(1)).p2p(P2p::Require).create().expect("a buffer");
    fill(&device, &must, 1);
    for via in [Via::Auto, Via::Udmabuf, Via::Vgem] {
        let refused = must.export(via).expect_err("it may not leave the BAR");
        assert!(matches!(refused, Error::NotPeerCapable { .. }), "{refused}");
    }
    assert_eq!((must.region(), device.stats().exports), (Some(RegionKind::Vram), 0));
}

#[test]
fn a_full_table_of_descriptors_is_its_own_error_and_changes_nothing() {
    const TEST: &str = "exports::refused::a_full_table_of_descriptors_is_its_own_error_and_changes_nothing";
    /// More than any export needs.
    const MANY_DESCRIPTORS: u64 = 40;
    if !need(&ALL) {
        return;
    }
    let child = in_a_child(TEST, || {
        for via in WAYS {
            // A descriptor that the device before closes late would be one more here.
            let before = descriptors();
            let device = device();
            let buffer = buffer(&device, "full");
            fill(&device, &buffer, 1);
            buffer.wait().expect("the job succeeds");
            let mut refusals = 0;
            loop {
                match with_descriptors_left(refusals, || buffer.export(via.clone())) {
                    Ok(_export) => break,
                    Err(error @ Error::NoDescriptorsLeft { .. }) => {
                        refusals += 1;
                        assert!(refusals < MANY_DESCRIPTORS, "{via}: {error}");
                    }
                    Err(Error::NotExportable { reasons, .. }) => {
                        let why = &reasons[0].why;
                        let is_table = |error: &Error| matches!(error, Error::NoDescriptorsLeft { .. });
                        assert!(matches!(why, WhyNot::Refused(error) if is_table(error)), "{via}: {why}");
                        refusals += 1;
                        assert!(refusals < MANY_DESCRIPTORS, "{via}: {why}");
                    }
                    Err(error) => panic!("{via}: {error}"),
                }
                assert_eq!(buffer.region(), Some(RegionKind::Vram), "{via}");
                let stats = device.stats();
                assert_eq!((stats.exported_bytes, stats.export_pages_bytes), (0, 0), "{via}");
                assert!(read_all(&buffer) == bytes_of(1), "{via}");
            }
            assert!(refusals >= 2, "{via}: a dma-buf and its copy, at least");
            drop((buffer, device));
            wait_until("the device is gone", || descriptors() <= before);
        }
    });
    if let Some(child) = child {
        expect_success(&child);
    }
}

/// Runs `body` while only so many more descriptors can be opened.
fn with_descriptors_left<O>(left: u64, body: impl FnOnce() -> O) -> O {
    let before = getrlimit(Resource::Nofile);
    // The kernel gives out the lowest free number, so the table is filled up first.
    let mut ballast = Vec::new();
    while let Ok(one) = std::fs::File::open("/dev/null") {
        let number = std::os::fd::AsRawFd::as_raw_fd(&one) as u64;
        let is_last = ballast.len() as u64 + 4 < number && number > 100;
        ballast.push(one);
        if is_last || number > 200 {
            setrlimit(Resource::Nofile, Rlimit { current: Some(number + 1), maximum: before.maximum })
                .expect("it may be lowered");
        }
    }
    for _ in 0..left {
        ballast.pop();
    }
    let result = body();
    setrlimit(Resource::Nofile, before).expect("it is no more than before");
    result
}

#[test]
fn whatever_call_the_kernel_refuses_an_export_is_refused_and_has_changed_nothing() {
    const OF_EACH: [(Via, &[Call]); 4] = [
        (Via::Udmabuf, &[UDMABUF_CREATE_LIST]),
        (Via::DmaHeap, &[DMA_HEAP_ALLOC, MMAP]),
        (Via::Vgem, &[CREATE_DUMB, HANDLE_TO_FD, MMAP]),
        (Via::VirtioGpu, &[CREATE_DUMB, HANDLE_TO_FD, MMAP]),
    ];
    const OF_ALL: [Call; 6] =
        [SET_NAME, EXPORT_SYNC_FILE, IMPORT_SYNC_FILE, VGEM_FENCE_ATTACH, FILE_INFO, CLONE];
    if !need(&ALL) || !need(&[Thing::Seccomp]) {
        return;
    }
    for (via, calls) in OF_EACH {
        for call in calls.iter().chain(&OF_ALL) {
            let case = format!("{via} without {}", call.name);
            let device = device_of(FenceSource::Vgem);
            let buffer = buffer(&device, "refused");
            fill(&device, &buffer, 1);
            // Its work is outstanding, so that there are fences to tell of.
            let gate = Timeline::new("gate");
            let opens = gate.next_point();
            let job = device.submit().uses(&buffer, Access::Read).after(&opens);
            job.run(|gpu, job| gpu.run(job, |_| Ok(()))).expect("a job");
            let refused = refusing(*call, || buffer.export(via.clone()));
            gate.signal(1);
            let Err(refused) = refused else { panic!("{case}: it is not needed") };
            assert!(is_for_want_of_memory(&refused), "{case}: {refused}");
            let stats = device.stats();
            assert_eq!((stats.exported_bytes, stats.export_pages_bytes), (0, 0), "{case}");
            assert_eq!(buffer.region(), Some(RegionKind::Vram), "{case}");
            assert!(read_all(&buffer) == bytes_of(1), "{case}");
            let export = buffer.export(via.clone()).unwrap_or_else(|error| panic!("after {case}: {error}"));
            drop(export);
            let_go(&device);
        }
    }
}

#[test]
fn who_has_no_rights_is_told_to_what() {
    const TEST: &str = "exports::refused::who_has_no_rights_is_told_to_what";
    const NOBODY: u32 = 65534;
    if std::env::var("DEVPAGEMAP_TEST_NOBODY").is_ok() {
        let device = device();
        let buffer = buffer(&device, "nobody");
        for via in WAYS {
            let refused = buffer.export(via.clone()).expect_err("nobody may use the device");
            assert!(matches!(refused, Error::NoRights { .. }), "{via}: {refused}");
        }
        let refused = reasons(buffer.export(Via::Auto).expect_err("nobody may use any of them"));
        assert!(refused.iter().all(|one| matches!(one.why, WhyNot::NoRights { .. })), "{refused:?}");
        assert_eq!(refused.len(), WAYS.len());
        return;
    }
    // On other machines a user may have rights.
    if guest().is_none() || !need(&ALL) {
        return;
    }
    let program = std::env::current_exe().expect("a test has a program");
    let mut child = Command::new(program);
    child.args(["--exact", TEST, "--nocapture"]).env("DEVPAGEMAP_TEST_NOBODY", "1").uid(NOBODY).gid(NOBODY);
    expect_success(&child.output().expect("the program can be run again"));
}

#[test]
fn what_the_kernel_limits_is_a_reason_and_changes_nothing() {
    // These are the whole machine's.
    if guest().is_none() || !need(&[Thing::Udmabuf]) {
        return;
    }
    let device = device();
    let buffer = buffer(&device, "limited");
    fill(&device, &buffer, 1);
    let refused = with_parameter("size_limit_mb", 0, || buffer.export(Via::Udmabuf));
    let why = WhyNot::TooLarge { len_bytes: BYTES, limit_bytes: 0 };
    assert_eq!(reasons(refused.expect_err("it takes nothing")), [PassedOver { via: Via::Udmabuf, why }]);
    let refused = with_parameter("list_limit", 0, || buffer.export(Via::Udmabuf));
    let refused = reasons(refused.expect_err("it takes no pieces"));
    assert!(matches!(refused[0].why, WhyNot::TooManyRuns { limit: 0, .. }), "{refused:?}");
    assert_eq!(buffer.region(), Some(RegionKind::Vram));
    assert!(read_all(&buffer) == bytes_of(1));
    buffer.export(Via::Udmabuf).expect("the limits are what they were");
}

fn with_parameter<O>(name: &str, value: u64, body: impl FnOnce() -> O) -> O {
    let path = format!("/sys/module/udmabuf/parameters/{name}");
    let before = std::fs::read_to_string(&path).expect("udmabuf is here");
    std::fs::write(&path, value.to_string()).expect("the administrator may");
    let result = body();
    std::fs::write(&path, before.trim()).expect("it was so before");
    result
}
