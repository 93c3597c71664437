//! What nobody may do on the way to a fence's signal is reported in debug builds, before it ever deadlocks.
#![cfg(debug_assertions)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use devpagemap::{
    CopyEngine, Device, DeviceMemory, Driver, Fence, MemoryLayout, MemoryMap, Moved, Result, Size,
    SoftwareGpu,
};

use crate::setup::*;

/// What is reported about `deed`, which must not get through.
fn report_of<O>(deed: impl FnOnce() -> O) -> String {
    let panic = catch_unwind(AssertUnwindSafe(|| drop(deed()))).expect_err("nothing was reported");
    *panic.downcast().expect("a report is a text")
}

#[track_caller]
fn assert_says(report: &str, parts: &[&str]) {
    for part in parts {
        assert!(report.contains(part), "{part:?} is missing in: {report}");
    }
}

#[test]
fn a_driver_that_waits_while_it_queues_a_job_is_reported() {
    let device = device(4);
    let before = filled(&device, 1, 1);
    let mut report = String::new();
    let job = device.submit().reads(&before).run(|gpu, job| {
        // It may have arrived already: what counts is that somebody would wait.
        report = report_of(|| job.needs().wait());
        gpu.run(job, |_| Ok(()))
    });
    finished(job);
    let parts = [
        "may not wait for a fence at tests/scenarios/lock_order.rs",
        "a signalling section is open since src/submit.rs",
    ];
    assert_says(&report, &parts);
}

#[test]
fn a_driver_that_submits_while_it_queues_a_job_is_reported() {
    let device = device(4);
    let (named, other) = (vram_buffer(&device, 1), vram_buffer(&device, 1));
    let mut reports = Vec::new();
    let nothing_named = device.submit().run(|_, _| {
        reports.push(report_of(|| other.place_now()));
        Ok(Fence::signaled())
    });
    finished(nothing_named);
    let one_named = device.submit().writes(&named).run(|_, _| {
        reports.push(report_of(|| other.place_now()));
        Ok(Fence::signaled())
    });
    finished(one_named);
    let wish = "\"reservation\" (level Tickets) might be taken at src/bo/transact.rs";
    assert_says(&reports[0], &[wish, "a signalling section is open since src/submit.rs"]);
    assert_says(&reports[1], &[wish, "1. \"reservation\" (level Tickets) taken at src/bo/transact.rs"]);
    other.place_now().expect("outside of a submission it may be placed");
}

#[test]
fn a_job_that_waits_for_a_fence_is_reported() {
    let device = device(4);
    let gate = Gate::closed();
    let (sender, reports) = std::sync::mpsc::channel();
    let fence = gate.fence().clone();
    let job = device.submit().run(|gpu, job| {
        gpu.run(job, move |_| {
            sender.send(report_of(|| fence.wait())).map_err(|_| "the test has ended".into())
        })
    });
    finished(job);
    assert_says(
        &reports.recv().expect("the job has run"),
        &["may not wait for a fence", "src/backend/jobs.rs"],
    );
}

/// A software GPU that waits for a fence before it points the page tables anywhere.
struct Hesitant {
    gpu: SoftwareGpu,
    reports: Mutex<Vec<String>>,
}

impl Driver for Hesitant {
    fn copy_engines(&self, memory: &DeviceMemory) -> Result<Vec<Arc<dyn CopyEngine>>> {
        self.gpu.copy_engines(memory)
    }

    fn map_vram(&self, layout: &MemoryLayout) -> Result<Option<Arc<dyn MemoryMap>>> {
        self.gpu.map_vram(layout)
    }

    fn rebind(&self, moved: &Moved<'_>) -> Result<Option<Fence>> {
        self.reports.lock().expect("no test panics with it").push(report_of(|| moved.after().wait()));
        Ok(None)
    }
}

#[test]
fn a_driver_that_waits_for_a_move_to_rebind_a_buffer_is_reported() {
    let gpu = SoftwareGpu::builder().build().expect("threads for the rings");
    let driver = Hesitant { gpu, reports: Mutex::default() };
    let device =
        Device::builder(driver).vram(Size::mib(4)).system(Size::mib(16)).build().expect("a small device");
    vram_buffer(&device, 1).place_now().expect("room for it");
    let reports = device.driver().reports.lock().expect("no test panics with it");
    assert_says(
        &reports[0],
        &["may not wait for a fence", "a signalling section is open since src/manager.rs"],
    );
}

#[test]
fn a_callback_may_ask_for_statistics_and_drop_buffers_but_not_look_into_one() {
    let device = device(4);
    let gate = Gate::closed();
    let (kept, dropped) = (filled(&device, 1, 1), filled(&device, 1, 2));
    let (sender, answers) = std::sync::mpsc::channel();
    let theirs = device.clone();
    let hung = gate.fence().on_signal(move |_| {
        drop(dropped);
        let report = report_of(|| kept.region());
        sender.send((theirs.stats().frees, report)).expect("the test waits for this");
    });
    assert!(hung.is_ok(), "the gate is closed");
    gate.open();
    let (frees, report) = answers.recv().expect("the callback has run");
    assert_eq!(frees, 1);
    assert_says(&report, &["a root token is forged at src/bo/object.rs", "a fence callback runs since"]);
}
