//! Nothing waits for anything that it need not wait for. A [`Gate`] holds work back until the test opens it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use devpagemap::{Buffer, Error, Fence, FenceError, Place, RegionKind, Result, Size};

use crate::setup::*;

/// A job that writes the buffer with the pattern of `seed`, once the gate opens.
fn fill_behind(device: &Lab, gate: &Gate, buffer: &Buffer, seed: u64) -> Fence {
    let job = device.submit().writes(buffer).after(gate.fence()).run(|gpu, job| {
        let extents = job.extents(buffer);
        gpu.run(job, move |memory| {
            write_pattern(memory, &extents, seed);
            Ok(())
        })
    });
    job.expect("room for the buffer")
}

/// A job that checks the pattern of `seed`, once the gate opens.
fn verify_behind(device: &Lab, gate: &Gate, buffer: &Buffer, seed: u64) -> Fence {
    let job = device.submit().reads(buffer).after(gate.fence()).run(|gpu, job| {
        let extents = job.extents(buffer);
        gpu.run(job, move |memory| check_pattern(memory, &extents, seed))
    });
    job.expect("room for the buffer")
}

/// A job on the buffer that fails if it runs before `earlier` has signalled.
fn write_not_before(device: &Lab, earlier: &Fence, buffer: &Buffer) -> Result<Fence> {
    let earlier = earlier.clone();
    device.submit().writes(buffer).run(|gpu, job| {
        gpu.run(job, move |_| match earlier.is_signaled() {
            true => Ok(()),
            false => Err("it ran too early".into()),
        })
    })
}

#[test]
fn placing_evicting_submitting_and_dropping_wait_for_no_job() {
    let device = device(4);
    let (first, second) = (filled(&device, 4, 1), vram_buffer(&device, 4));
    device.wait_idle();
    let gate = Gate::closed();
    let before = device.stats();
    let held_back = fill_behind(&device, &gate, &first, 2);
    second.place_now().expect("the first can be evicted");
    let behind_the_eviction = write_not_before(&device, &held_back, &second).expect("it has a place");
    let back_again = verify_behind(&device, &gate, &first, 2);
    assert_eq!((second.region(), second.evictions()), (Some(RegionKind::System), 1));
    drop(second);
    let stats = device.stats();
    assert_eq!((stats.evictions, stats.restores), (2, 1));
    assert_eq!((stats.cpu_waits_in_validate, stats.fence_waits), (0, before.fence_waits));
    for fence in [&held_back, &behind_the_eviction, &back_again] {
        assert!(!fence.is_signaled(), "the gate is closed");
    }
    gate.open();
    for fence in [held_back, behind_the_eviction, back_again] {
        finished(Ok(fence));
    }
    expect_bytes(&first, 2);
}

#[test]
fn space_that_is_free_behind_a_fence_is_given_away_and_its_new_owner_starts_behind_that_fence() {
    let device = device(4);
    let gone = filled(&device, 4, 1);
    let gate = Gate::closed();
    let last_use = verify_behind(&device, &gate, &gone, 1);
    drop(gone);
    let heir = vram_buffer(&device, 4);
    let job = write_not_before(&device, &last_use, &heir).expect("the space will be free");
    assert_eq!((heir.region(), device.stats().evictions), (Some(RegionKind::Vram), 0));
    assert!(!job.is_signaled());
    gate.open();
    finished(Ok(last_use));
    finished(Ok(job));
}

#[test]
fn a_buffer_in_idle_bytes_is_not_delayed_by_others_that_are_free_behind_a_fence() {
    let device = device(8);
    let gone = filled(&device, 4, 1);
    device.wait_idle();
    let gate = Gate::closed();
    let last_use = verify_behind(&device, &gate, &gone, 1);
    drop(gone);
    let in_idle_bytes = vram_buffer(&device, 4);
    finished(fill(&device, &in_idle_bytes, 2));
    let in_both = vram_buffer(&device, 4);
    let job = write_not_before(&device, &last_use, &in_both).expect("it will be free");
    assert!(!last_use.is_signaled());
    gate.open();
    finished(Ok(job));
    finished(Ok(last_use));
}

#[test]
fn a_buffer_that_takes_idle_bytes_and_others_waits_for_the_others() {
    let device = device(8);
    let gone = filled(&device, 4, 1);
    let _kept = filled(&device, 2, 2);
    let gate = Gate::closed();
    let last_use = verify_behind(&device, &gate, &gone, 1);
    drop(gone);
    let in_both = vram_buffer(&device, 6);
    let job = write_not_before(&device, &last_use, &in_both).expect("it will be free");
    assert_eq!(device.stats().evictions, 0);
    gate.open();
    finished(Ok(job));
}

#[test]
fn of_two_ranges_behind_fences_the_heir_waits_only_for_its_own() {
    let device = device(8);
    let (left, right) = (
        buffer_at(&device, Place::VRAM.within(0..4 * MIB), 4),
        buffer_at(&device, Place::VRAM.within(4 * MIB..8 * MIB), 4),
    );
    fill(&device, &left, 1).expect("room");
    fill(&device, &right, 2).expect("room");
    let (left_gate, right_gate) = (Gate::closed(), Gate::closed());
    let _left_job = verify_behind(&device, &left_gate, &left, 1);
    let right_job = verify_behind(&device, &right_gate, &right, 2);
    drop(left);
    drop(right);
    let heir = buffer_at(&device, Place::VRAM.within(4 * MIB..8 * MIB), 2);
    let job = write_not_before(&device, &right_job, &heir).expect("it will be free");
    right_gate.open();
    finished(Ok(job));
}

#[test]
fn an_attempt_that_failed_does_not_make_idle_bytes_wait() {
    let device = device(8);
    let (gone, _resident) = (filled(&device, 2, 1), filled(&device, 4, 2));
    device.wait_idle();
    let gate = Gate::closed();
    let last_use = verify_behind(&device, &gate, &gone, 1);
    drop(gone);
    let too_much = device.buffer(Size::mib(6)).prefer(Place::VRAM).or(Place::GTT).create().expect("a buffer");
    too_much.place_now().expect("GTT has room");
    assert_eq!(
        too_much.region(),
        Some(RegionKind::Gtt),
        "2 MiB are idle, 2 MiB are pending, and 6 were wanted"
    );
    let in_idle_bytes = vram_buffer(&device, 2);
    finished(fill(&device, &in_idle_bytes, 3));
    assert!(!last_use.is_signaled());
    gate.open();
}

#[test]
fn idle_bytes_go_first_even_after_a_part_of_the_pending_ones_was_used() {
    let device = device(6);
    let [gone, other] = [(0, 4), (4, 2)].map(|(at, mib)| {
        let buffer = buffer_at(&device, Place::VRAM.within(at * MIB..(at + mib) * MIB), mib);
        fill(&device, &buffer, at).expect("room");
        buffer
    });
    device.wait_idle();
    let gate = Gate::closed();
    let last_use = verify_behind(&device, &gate, &gone, 0);
    drop(gone);
    let heir_of_a_part = vram_buffer(&device, 1);
    let job = write_not_before(&device, &last_use, &heir_of_a_part).expect("it will be free");
    drop(other);
    let in_idle_bytes = vram_buffer(&device, 2);
    finished(fill(&device, &in_idle_bytes, 3));
    assert!(!last_use.is_signaled(), "2 MiB are idle and 3 MiB are not");
    gate.open();
    finished(Ok(job));
}

#[test]
fn an_eviction_that_failed_does_not_make_idle_bytes_wait() {
    let device = builder(8).system(Size::mib(1)).build().expect("a device");
    let [gone, _resident] = [(0, 2), (2, 4)].map(|(at, mib)| {
        let buffer = buffer_at(&device, Place::VRAM.within(at * MIB..(at + mib) * MIB), mib);
        fill(&device, &buffer, at).expect("room");
        buffer
    });
    device.wait_idle();
    let gate = Gate::closed();
    let last_use = verify_behind(&device, &gate, &gone, 0);
    drop(gone);
    let too_much = vram_buffer(&device, 6);
    too_much.place_now().expect_err("the resident has no home in system memory");
    let in_idle_bytes = vram_buffer(&device, 2);
    finished(fill(&device, &in_idle_bytes, 3));
    assert!(!last_use.is_signaled());
    let stats = device.stats();
    assert_eq!((stats.vram_pending_bytes, stats.vram_ghosts), (2 * MIB, 1));
    gate.open();
    finished(Ok(last_use));
    soon("the pending bytes becoming idle", || device.stats().vram_pending_bytes == 0);
}

#[test]
fn a_contiguous_heir_waits_only_for_the_bytes_it_takes() {
    let device = device(8);
    let [left, right, _resident] = [(0, 3), (3, 2), (6, 2)].map(|(at, mib)| {
        let buffer = buffer_at(&device, Place::VRAM.within(at * MIB..(at + mib) * MIB), mib);
        fill(&device, &buffer, at).expect("room");
        buffer
    });
    let (left_gate, right_gate) = (Gate::closed(), Gate::closed());
    let left_job = verify_behind(&device, &left_gate, &left, 0);
    let right_job = verify_behind(&device, &right_gate, &right, 3);
    drop(left);
    drop(right);
    let heir = buffer_at(&device, Place::VRAM.contiguous().within(3 * MIB..6 * MIB), 3);
    let job = write_not_before(&device, &right_job, &heir).expect("it will be free");
    right_gate.open();
    finished(Ok(job));
    assert!(!left_job.is_signaled());
    let scattered = vram_buffer(&device, 3);
    let job = write_not_before(&device, &left_job, &scattered).expect("it will be free");
    left_gate.open();
    finished(Ok(job));
    assert_eq!(device.stats().evictions, 0);
}

#[test]
fn bytes_behind_a_fence_are_pending_until_it_signals_even_if_an_attempt_to_use_them_failed() {
    let device = device(4);
    let (gone, _resident) = (filled(&device, 2, 1), filled(&device, 2, 2));
    device.wait_idle();
    let gate = Gate::closed();
    let _last_use = verify_behind(&device, &gate, &gone, 1);
    drop(gone);
    assert_eq!(device.stats().vram_pending_bytes, 2 * MIB);
    let too_much = device.buffer(Size::mib(3)).prefer(Place::VRAM).or(Place::GTT).create().expect("a buffer");
    too_much.place_now().expect("GTT has room");
    assert_eq!(device.stats().vram_pending_bytes, 2 * MIB, "they are as free as before");
    gate.open();
    soon("the pending bytes becoming idle", || device.stats().vram_pending_bytes == 0);
}

#[test]
fn a_dropped_buffers_bytes_stay_until_its_job_is_done() {
    let device = device(8);
    let gone = filled(&device, 4, 1);
    device.wait_idle();
    let gate = Gate::closed();
    let last_use = verify_behind(&device, &gate, &gone, 1);
    drop(gone);
    let newcomer = filled(&device, 8, 2);
    gate.open();
    finished(Ok(last_use));
    expect_bytes(&newcomer, 2);
}

#[test]
fn an_evicted_buffers_old_place_is_kept_until_its_bytes_are_copied() {
    let device = device(4);
    let victim = filled(&device, 4, 1);
    let gate = Gate::closed();
    let writer = fill_behind(&device, &gate, &victim, 2);
    let newcomer = filled(&device, 4, 3);
    assert_eq!((victim.region(), writer.is_signaled()), (Some(RegionKind::System), false));
    gate.open();
    expect_bytes(&victim, 2);
    expect_bytes(&newcomer, 3);
}

#[test]
fn ghosts_are_counted_and_vanish_by_themselves() {
    let device = device(8);
    let (dropped, evicted) = (filled(&device, 4, 1), filled(&device, 4, 2));
    device.wait_idle();
    let gate = Gate::closed();
    let jobs = [verify_behind(&device, &gate, &dropped, 1), verify_behind(&device, &gate, &evicted, 2)];
    drop(dropped);
    let stats = device.stats();
    assert_eq!((stats.vram_ghosts, stats.vram_pending_bytes, stats.vram_used_bytes), (1, 4 * MIB, 4 * MIB));
    drop(evicted);
    let stats = device.stats();
    assert_eq!((stats.vram_ghosts, stats.vram_pending_bytes, stats.vram_used_bytes), (2, 8 * MIB, 0));
    gate.open();
    for job in jobs {
        finished(Ok(job));
    }
    soon("the end of the ghosts", || device.stats().vram_ghosts == 0);
    assert_eq!(device.stats().vram_pending_bytes, 0);
}

#[test]
fn pending_system_memory_is_counted_and_becomes_free_by_itself() {
    let device = device(4);
    let buffer = buffer_at(&device, Place::GTT, 3);
    fill(&device, &buffer, 1).expect("room");
    device.wait_idle();
    let gate = Gate::closed();
    let job = verify_behind(&device, &gate, &buffer, 1);
    drop(buffer);
    let stats = device.stats();
    assert_eq!((stats.gtt_used_bytes, stats.system_pending_bytes), (0, 3 * MIB));
    gate.open();
    finished(Ok(job));
    soon("the pages becoming free", || device.stats().system_pending_bytes == 0);
}

#[test]
fn a_reader_does_not_wait_for_other_readers() {
    let device = device(4);
    let buffer = filled(&device, 4, 1);
    let gate = Gate::closed();
    let slow = verify_behind(&device, &gate, &buffer, 1);
    finished(verify(&device, &buffer, 1));
    assert!(!slow.is_signaled());
    gate.open();
}

#[test]
fn a_writer_waits_for_every_reader_and_a_reader_for_the_writer() {
    let device = device(4);
    let buffer = filled(&device, 4, 1);
    let gate = Gate::closed();
    let readers = [verify_behind(&device, &gate, &buffer, 1), verify_behind(&device, &gate, &buffer, 1)];
    let writer = fill(&device, &buffer, 2).expect("it is there");
    let reader = verify(&device, &buffer, 2).expect("it is there");
    gate.open();
    for fence in readers.into_iter().chain([writer, reader]) {
        finished(Ok(fence));
    }
}

#[test]
fn a_buffer_named_twice_is_written_if_one_of_the_two_writes() {
    let device = device(4);
    let buffer = filled(&device, 4, 1);
    for order in [true, false] {
        let submission = device.submit();
        let submission = match order {
            true => submission.reads(&buffer).writes(&buffer),
            false => submission.writes(&buffer).reads(&buffer),
        };
        finished(submission.run(|gpu, job| {
            let extents = job.extents(&buffer);
            gpu.run(job, move |memory| {
                write_pattern(memory, &extents, 2);
                Ok(())
            })
        }));
        expect_bytes(&buffer, 2);
    }
}

#[test]
fn a_submission_without_buffers_runs_behind_what_it_was_told() {
    let device = device(4);
    let gate = Gate::closed();
    let ran = Arc::new(AtomicBool::new(false));
    let (theirs, earlier) = (ran.clone(), gate.fence().clone());
    let job = device.submit().after(gate.fence()).run(|gpu, job| {
        gpu.run(job, move |_| {
            theirs.store(earlier.is_signaled(), Ordering::Release);
            Ok(())
        })
    });
    gate.open();
    finished(job);
    assert!(ran.load(Ordering::Acquire));
}

#[test]
fn a_failing_job_fails_its_fence_with_its_reason_and_the_next_one_runs() {
    let device = device(4);
    let buffer = filled(&device, 4, 1);
    let job =
        device.submit().writes(&buffer).run(|gpu, job| gpu.run(job, |_| Err("shader 7 is lost".into())));
    let error = job.expect("submitting it works").wait().expect_err("the job failed");
    assert!(matches!(error, FenceError::EngineFailed { .. }), "{error:?}");
    assert!(error.to_string().contains("shader 7 is lost"), "{error}");
    finished(fill(&device, &buffer, 2));
    expect_bytes(&buffer, 2);
}

#[test]
fn a_panicking_job_fails_its_fence_with_its_message_and_the_next_one_runs() {
    let device = device(4);
    let buffer = filled(&device, 4, 1);
    for _ in 0..8 {
        let job =
            device.submit().writes(&buffer).run(|gpu, job| gpu.run(job, |_| panic!("unit {} melted", 3)));
        let error = job.expect("submitting it works").wait().expect_err("the job failed");
        assert!(error.to_string().contains("unit 3 melted"), "{error}");
    }
    for _ in 0..8 {
        finished(fill(&device, &buffer, 2));
    }
    expect_bytes(&buffer, 2);
}

#[test]
fn a_job_that_touches_what_its_submission_did_not_name_fails() {
    let device = device(4);
    let (named, secret) = (filled(&device, 1, 1), filled(&device, 1, 2));
    let mut secret_extents = None;
    finished(device.submit().reads(&secret).run(|_, job| {
        secret_extents = Some(job.extents(&secret));
        Ok(Fence::signaled())
    }));
    let secret_extents = secret_extents.expect("the closure ran");
    let prying = device.submit().writes(&named).run(|gpu, job| {
        gpu.run(job, move |memory| {
            memory.write(&secret_extents, |_, bytes| bytes.fill(0));
            Ok(())
        })
    });
    let error = prying.expect("submitting it works").wait().expect_err("it may not");
    assert!(error.to_string().contains("does not Write"), "{error}");
    let overstepping = device.submit().reads(&named).run(|gpu, job| {
        let extents = job.extents(&named);
        gpu.run(job, move |memory| {
            memory.write(&extents, |_, bytes| bytes.fill(0));
            Ok(())
        })
    });
    overstepping.expect("submitting it works").wait().expect_err("it said that it only reads");
    expect_bytes(&named, 1);
    expect_bytes(&secret, 2);
}

#[test]
fn a_submission_that_its_driver_refuses_keeps_nothing_locked() {
    let device = device(4);
    let buffer = filled(&device, 4, 1);
    let refused = device
        .submit()
        .writes(&buffer)
        .run(|_, _| Err(Error::Driver { action: "queue the job", reason: "the ring is full".into() }));
    assert!(refused.is_err_and(|error| error.to_string().contains("the ring is full")));
    finished(fill(&device, &buffer, 2));
    expect_bytes(&buffer, 2);
}

#[test]
fn a_submission_that_panics_keeps_nothing_locked() {
    let device = device(4);
    let (buffer, stranger) = (filled(&device, 4, 1), vram_buffer(&device, 1));
    let submission = device.submit().writes(&buffer);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        submission.run(|_, job| {
            let _not_named = job.extents(&stranger);
            Ok(Fence::signaled())
        })
    }));
    assert!(panicked.is_err());
    finished(fill(&device, &buffer, 2));
    expect_bytes(&buffer, 2);
}

#[test]
fn an_idle_device_has_everything_behind_it_and_nothing_pending() {
    let device = device(4);
    let buffers: Vec<_> = (0..6).map(|seed| filled(&device, 2, seed)).collect();
    drop(buffers);
    device.wait_idle();
    let stats = device.stats();
    assert_eq!((stats.vram_used_bytes, stats.vram_pending_bytes, stats.vram_ghosts), (0, 0, 0));
    assert_eq!((stats.gtt_used_bytes, stats.system_used_bytes, stats.system_pending_bytes), (0, 0, 0));
    assert_eq!((stats.live_bo_bytes, stats.frees), (0, 6));
}
