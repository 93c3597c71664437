//! Descriptors from outside as fences.
#![cfg(not(any(loom, shuttle)))]

use devpagemap_fence::{AllOf, DescriptorError, FdWatcher, Fence, FenceError, FenceSet, Timeline};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Write, pipe};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(3600);

fn watcher() -> FdWatcher {
    FdWatcher::start().unwrap()
}

/// A pipe whose reading end was imported.
fn imported_pipe(watcher: &FdWatcher) -> (Fence, PipeWriter) {
    let (reader, writer) = pipe().unwrap();
    (watcher.import(reader.into(), "pipe", LONG).unwrap(), writer)
}

/// Sleeps until the other end of `writer` was closed.
fn wait_until_closed(writer: &impl AsFd) {
    let mut fds = [PollFd::new(writer, PollFlags::empty())];
    assert_eq!(poll(&mut fds, None), Ok(1));
    assert!(fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP));
}

fn is_open(writer: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(writer, PollFlags::empty())];
    poll(&mut fds, Some(&rustix::event::Timespec::default())) == Ok(0)
}

fn failed(outcome: Result<(), FenceError>) -> String {
    match outcome {
        Err(FenceError::DescriptorFailed { timeline, cause }) => format!("{timeline}: {cause}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pipe_signals_when_something_is_written_and_is_closed_then() {
    let watcher = watcher();
    let (fence, mut writer) = imported_pipe(&watcher);
    assert_eq!(fence.status(), None);
    assert_eq!((watcher.outstanding(), fence.timeline_name().to_string()), (1, "pipe".to_owned()));
    writer.write_all(b"x").unwrap();
    assert_eq!(fence.wait(), Ok(()));
    wait_until_closed(&writer);
    assert_eq!(watcher.outstanding(), 0);
}

#[test]
fn what_is_ready_already_signals() {
    let watcher = watcher();
    let ready = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
    assert_eq!(watcher.import(ready, "eventfd", LONG).unwrap().wait(), Ok(()));
    let ready = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
    assert_eq!(
        watcher.import(ready, "eventfd", Duration::ZERO).unwrap().wait(),
        Ok(()),
        "ready beats the timeout"
    );
}

#[test]
fn a_process_that_ends_signals() {
    let watcher = watcher();
    let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    let fence = watcher.import(process, "cat", LONG).unwrap();
    assert!(!fence.is_signaled());
    drop(child.stdin.take());
    assert_eq!(fence.wait(), Ok(()));
    child.wait().unwrap();
}

#[test]
fn a_writer_that_hangs_up_without_a_word_is_an_error_with_a_cause() {
    let watcher = watcher();
    let (fence, writer) = imported_pipe(&watcher);
    drop(writer);
    assert_eq!(failed(fence.wait()), "pipe: its other end hung up");
}

#[test]
fn a_writer_that_wrote_and_hung_up_is_a_success() {
    let watcher = watcher();
    let (reader, mut writer) = pipe().unwrap();
    writer.write_all(b"x").unwrap();
    drop(writer);
    assert_eq!(watcher.import(reader.into(), "pipe", LONG).unwrap().wait(), Ok(()));
}

#[test]
fn the_error_of_a_descriptor_is_an_error_of_its_fence() {
    let watcher = watcher();
    let (reader, writer) = pipe().unwrap();
    // The writing end never reads; without a reader it reports an error.
    let fence = watcher.import(writer.into(), "pipe", LONG).unwrap();
    assert!(!fence.is_signaled());
    drop(reader);
    assert_eq!(failed(fence.wait()), "pipe: its other end reported an error");
}

#[test]
fn a_fence_signals_in_finite_time_whatever_a_stranger_does() {
    let watcher = watcher();
    let (reader, writer) = pipe().unwrap();
    let fence = watcher.import(reader.into(), "stranger", Duration::from_millis(5)).unwrap();
    let outcome = fence.wait();
    assert!(
        matches!(&outcome, Err(FenceError::TimedOut { timeline, seqno: 1, waited_ns }) if **timeline == *"stranger" && *waited_ns >= 5_000_000),
        "{outcome:?}"
    );
    wait_until_closed(&writer);
    assert_eq!(watcher.outstanding(), 0);
}

#[test]
fn a_timeout_of_nothing_only_looks() {
    let watcher = watcher();
    let (reader, _writer) = pipe().unwrap();
    let outcome = watcher.import(reader.into(), "pipe", Duration::ZERO).unwrap().wait();
    assert!(matches!(outcome, Err(FenceError::TimedOut { .. })), "{outcome:?}");
}

#[test]
fn a_shorter_timeout_that_comes_later_is_over_first() {
    let watcher = watcher();
    let (slow, _slow) = imported_pipe(&watcher);
    let (reader, _writer) = pipe().unwrap();
    let quick = watcher.import(reader.into(), "quick", Duration::from_millis(1)).unwrap();
    assert!(quick.wait().is_err());
    assert!(!slow.is_signaled());
}

#[test]
fn a_timeout_of_centuries_is_fine_and_one_without_end_is_refused() {
    let watcher = watcher();
    let (reader, writer) = pipe().unwrap();
    let refused = watcher.import(reader.into(), "patient", Duration::MAX).unwrap_err();
    assert!(matches!(refused.cause, DescriptorError::NeverTimesOut { .. }), "{refused}");
    let centuries = Duration::from_secs(60 * 60 * 24 * 365 * 300);
    let fence = watcher.import(refused.fd, "patient", centuries).unwrap();
    (&writer).write_all(b"x").unwrap();
    assert_eq!(fence.wait(), Ok(()));
}

#[test]
fn what_cannot_be_polled_is_refused_by_name_and_given_back() {
    let watcher = watcher();
    let file = File::open(std::env::current_exe().unwrap()).unwrap();
    let number = file.as_raw_fd();
    let refused = watcher.import(file.into(), "a regular file", LONG).unwrap_err();
    let text = refused.to_string();
    assert!(
        matches!(&refused.cause, DescriptorError::NotPollable { name, fd } if **name == *"a regular file" && *fd == number),
        "{text}"
    );
    assert!(text.contains("\"a regular file\""), "{text}");
    assert_eq!(refused.fd.as_raw_fd(), number);
    assert!(rustix::io::fcntl_getfd(&refused.fd).is_ok());
    let directory = File::open("/").unwrap();
    let refused = watcher.import(directory.into(), "a directory", LONG).unwrap_err();
    assert!(matches!(refused.cause, DescriptorError::NotPollable { .. }), "{refused}");
    assert_eq!(watcher.outstanding(), 0);
}

#[test]
fn one_file_imported_twice_through_a_duplicate_signals_both() {
    let watcher = watcher();
    let (reader, mut writer) = pipe().unwrap();
    let twin = rustix::io::fcntl_dupfd_cloexec(&reader, 0).unwrap();
    let fences = [reader.into(), twin].map(|fd: OwnedFd| watcher.import(fd, "twin", LONG).unwrap());
    assert_ne!(fences[0].timeline_id(), fences[1].timeline_id());
    let kept = watcher.cancel(&fences[0]).unwrap();
    assert!(!fences[1].is_signaled());
    writer.write_all(b"x").unwrap();
    assert_eq!(fences[1].wait(), Ok(()));
    drop(kept);
    wait_until_closed(&writer);
}

#[test]
fn a_cancelled_import_gives_the_descriptor_back_unread_and_fails_its_fence() {
    let watcher = watcher();
    let (fence, mut writer) = imported_pipe(&watcher);
    let reader = watcher.cancel(&fence).expect("nobody has written");
    assert_eq!(fence.status(), Some(Err(FenceError::Cancelled)));
    assert!(is_open(&writer));
    assert!(watcher.cancel(&fence).is_none());
    writer.write_all(b"x").unwrap();
    let again = watcher.import(reader, "pipe", LONG).unwrap();
    assert_eq!(again.wait(), Ok(()));
    assert_eq!(fence.status(), Some(Err(FenceError::Cancelled)));
}

#[test]
fn only_its_own_fences_are_cancelled() {
    let (mine, other) = (watcher(), watcher());
    let (fence, _writer) = imported_pipe(&mine);
    let timeline = Timeline::new("ring");
    let point = timeline.next_point();
    assert!(other.cancel(&fence).is_none());
    assert!(mine.cancel(&point).is_none() && mine.cancel(&Fence::signaled()).is_none());
    assert!(!fence.is_signaled() && !point.is_signaled());
}

#[test]
fn a_watcher_that_is_dropped_abandons_what_is_outstanding_and_closes_it() {
    let watcher = watcher();
    let (fences, writers): (Vec<_>, Vec<_>) = (0..10).map(|_| imported_pipe(&watcher)).unzip();
    let waited = fences[7].clone();
    let waiter = thread::spawn(move || waited.wait());
    drop(watcher);
    let abandoned = FenceError::Abandoned { timeline: "pipe".into() };
    assert_eq!(waiter.join().unwrap(), Err(abandoned.clone()));
    for (fence, writer) in fences.iter().zip(&writers) {
        assert_eq!(fence.status(), Some(Err(abandoned.clone())));
        assert!(!is_open(writer));
    }
}

#[test]
fn a_callback_may_drop_the_watcher_that_runs_it() {
    let watcher = watcher();
    let (first, mut writer) = imported_pipe(&watcher);
    let (second, _kept) = imported_pipe(&watcher);
    let owner = Arc::new(Mutex::new(Some(watcher)));
    let theirs = owner.clone();
    let hung = first.on_signal(move |_| drop(theirs.lock().unwrap().take()));
    assert!(hung.is_ok());
    writer.write_all(b"x").unwrap();
    assert_eq!(second.wait(), Err(FenceError::Abandoned { timeline: "pipe".into() }));
}

#[test]
fn a_callback_that_panics_leaves_the_watcher_working() {
    let watcher = watcher();
    let (broken, mut writer) = imported_pipe(&watcher);
    broken.on_signal(|_| panic!("this one is broken")).map_err(drop).unwrap();
    writer.write_all(b"x").unwrap();
    assert_eq!(broken.wait(), Ok(()));
    wait_until_closed(&writer);
    let (fence, mut writer) = imported_pipe(&watcher);
    writer.write_all(b"x").unwrap();
    assert_eq!(fence.wait(), Ok(()));
}

#[test]
fn a_callback_may_import_the_next() {
    let watcher = Arc::new(watcher());
    let (first, mut writer) = imported_pipe(&watcher);
    let (next, mut next_writer) = pipe().unwrap();
    let (send, receive) = mpsc::channel();
    let theirs = watcher.clone();
    let hung = first.on_signal(move |_| {
        send.send(theirs.import(next.into(), "next", LONG).unwrap()).unwrap();
    });
    assert!(hung.is_ok());
    writer.write_all(b"x").unwrap();
    let second = receive.recv().unwrap();
    next_writer.write_all(b"x").unwrap();
    assert_eq!(second.wait(), Ok(()));
}

#[test]
fn numbers_that_are_used_again_at_once_belong_to_their_new_owner() {
    let watcher = watcher();
    let (mut old, mut numbers) = (Vec::new(), std::collections::HashMap::<i32, u32>::new());
    for round in 0..2000 {
        let (reader, mut writer): (PipeReader, PipeWriter) = pipe().unwrap();
        *numbers.entry(reader.as_raw_fd()).or_default() += 1;
        let fence = watcher.import(reader.into(), "pipe", LONG).unwrap();
        match round % 4 {
            0 => writer.write_all(b"x").unwrap(),
            1 => drop(watcher.cancel(&fence)),
            2 => drop(writer),
            _ => {
                assert!(!fence.is_signaled(), "signalled by somebody else's event");
                writer.write_all(b"x").unwrap();
                assert_eq!(fence.wait(), Ok(()));
            }
        }
        old.push((round % 4, fence));
    }
    assert!(numbers.values().any(|uses| *uses > 1), "no number was used again");
    for (kind, fence) in old {
        let outcome = fence.wait();
        let as_expected = match kind {
            1 => outcome == Err(FenceError::Cancelled),
            2 => matches!(outcome, Err(FenceError::DescriptorFailed { .. })),
            _ => outcome == Ok(()),
        };
        assert!(as_expected, "{kind}: {outcome:?}");
    }
}

#[test]
fn a_thousand_descriptors_each_signal_their_own_fence() {
    let watcher = watcher();
    let (fences, writers): (Vec<Fence>, Vec<PipeWriter>) = (0..1000).map(|_| imported_pipe(&watcher)).unzip();
    assert_eq!(watcher.outstanding(), 1000);
    let all = AllOf::new(FenceSet::from_iter(fences.iter().cloned()));
    let (last, others) = fences.split_last().unwrap();
    for (mut writer, fence) in writers.iter().zip(others).rev() {
        writer.write_all(b"x").unwrap();
        assert_eq!(fence.wait(), Ok(()));
    }
    assert!(!last.is_signaled() && !all.fence().is_signaled());
    (&writers[999]).write_all(b"x").unwrap();
    assert_eq!(all.fence().wait(), Ok(()));
}

#[test]
fn threads_that_import_and_cancel_beside_events_end_each_fence_once() {
    let watcher = Arc::new(watcher());
    let workers: Vec<_> = (0..4)
        .map(|worker| {
            let watcher = watcher.clone();
            thread::spawn(move || {
                for round in 0..500 {
                    let (fence, mut writer) = imported_pipe(&watcher);
                    writer.write_all(b"x").unwrap();
                    let cancelled = (round % 3 == worker % 3).then(|| watcher.cancel(&fence)).flatten();
                    let expected = match cancelled {
                        Some(_) => Err(FenceError::Cancelled),
                        None => Ok(()),
                    };
                    assert_eq!(fence.wait(), expected);
                }
            })
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    assert_eq!(watcher.outstanding(), 0);
}

#[test]
fn an_event_of_one_fence_is_another_fence_from_outside() {
    let watcher = watcher();
    let timeline = Timeline::new("ring");
    let event = timeline.next_point().event().unwrap();
    let fence = watcher.import(event.detach().map_err(|(_, error)| error).unwrap(), "loop", LONG).unwrap();
    assert!(!fence.is_signaled());
    timeline.signal(1);
    assert_eq!(fence.wait(), Ok(()));
}

#[test]
fn a_socket_signals_when_its_peer_writes() {
    let watcher = watcher();
    let (mine, mut theirs) = UnixStream::pair().unwrap();
    let fence = watcher.import(mine.into(), "socket", LONG).unwrap();
    assert!(!fence.is_signaled());
    theirs.write_all(b"x").unwrap();
    assert_eq!(fence.wait(), Ok(()));
}
