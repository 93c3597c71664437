//! Dropping queue, engines and fences in every order: everything signals, nothing is left.

use crate::rig::{PAGE, memory, submit, upload, uploaded};
use devpagemap_fence::{FenceError, Timeline};
use devpagemap_migrate::{Fault, MoveQueue, SoftwareEngine};
use std::sync::mpsc::channel;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_millis(150);

/// How many threads of this process have this name.
fn threads_named(name: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("procfs is mounted");
    let comms = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    comms.filter(|comm| comm.trim_end() == name).count()
}

#[test]
fn dropping_the_queue_finishes_what_can_run() {
    let memory = memory(64, 64);
    let engine = SoftwareEngine::new("finish0", memory.clone());
    engine.inject(Fault::Slow { delay: Duration::from_millis(2) });
    let queue = MoveQueue::builder().engine(engine).chunk_bytes(PAGE).build();
    let first = submit(&queue, upload(1, 0, 0, 8));
    let second = submit(&queue, upload(2, 8, 8, 8).needs(first).background());
    drop(queue);
    assert_eq!(second.status(), Some(Ok(())));
    assert!(uploaded(&memory, 0, 0, 16));
    assert_eq!(threads_named("finish0"), 0);
}

#[test]
fn dropping_the_queue_fails_what_still_waits() {
    let memory = memory(8, 8);
    let engine = SoftwareEngine::new("waits0", memory.clone());
    let queue = MoveQueue::builder().engine(engine.clone()).lanes(1).build();
    let job = Timeline::new("job");
    let waiting = submit(&queue, upload(1, 0, 0, 1).after(job.next_point()));
    let behind = submit(&queue, upload(2, 1, 1, 1));
    let dependent = submit(&queue, upload(3, 2, 2, 1).after(waiting.clone()));
    drop(queue);
    assert!(matches!(waiting.status(), Some(Err(FenceError::Abandoned { .. }))));
    assert!(matches!(dependent.status(), Some(Err(FenceError::Abandoned { .. }))));
    assert_eq!(behind.status(), Some(Ok(())));
    job.signal(1);
    assert!(!uploaded(&memory, 0, 0, 1), "an abandoned move does not start after all");
    assert_eq!(threads_named("waits0"), 1, "we hold the engine");
    drop(engine);
    assert_eq!(threads_named("waits0"), 0);
}

#[test]
fn dropping_the_queue_while_an_engine_hangs_resets_it() {
    let memory = memory(8, 8);
    let engines = ["hangs0", "hangs1"].map(|name| SoftwareEngine::new(name, memory.clone()));
    engines[0].inject(Fault::DieAfter { chunks: 1 });
    let [a, b] = engines;
    let queue = MoveQueue::builder().engine(a).engine(b).chunk_bytes(PAGE).chunk_timeout(TIMEOUT).build();
    let fence = submit(&queue, upload(1, 0, 0, 8));
    drop(queue);
    assert_eq!(fence.status(), Some(Ok(())));
    assert!(uploaded(&memory, 0, 0, 8));
    assert_eq!((threads_named("hangs0"), threads_named("hangs1")), (0, 0));
}

#[test]
fn engines_may_be_dropped_before_the_queue_and_fences_before_both() {
    let memory = memory(64, 64);
    let engine = SoftwareEngine::new("early0", memory.clone());
    let queue = MoveQueue::builder().engine(engine.clone()).chunk_bytes(PAGE).build();
    drop(engine);
    submit(&queue, upload(1, 0, 0, 32));
    drop(queue);
    assert!(uploaded(&memory, 0, 0, 32));
    assert_eq!(threads_named("early0"), 0);
}

#[test]
fn an_engine_dropped_while_it_hangs_is_joined() {
    let engine = SoftwareEngine::new("stuck0", memory(8, 8));
    engine.inject(Fault::HangAfter { chunks: 0 });
    let (sender, receiver) = channel();
    let chunk = devpagemap_migrate::Chunk::new(vec![devpagemap_migrate::Piece {
        src: None,
        dst: devpagemap_migrate::VramAddr(0).into(),
        len_bytes: PAGE,
    }]);
    let done = devpagemap_migrate::Completion::new(move |result| sender.send(result).unwrap());
    devpagemap_migrate::CopyEngine::submit(&*engine, chunk, done).unwrap();
    drop(engine);
    assert!(receiver.recv().unwrap().is_err(), "its chunk has failed");
    assert_eq!(threads_named("stuck0"), 0);
}

#[test]
fn a_queue_may_be_dropped_inside_a_callback_of_its_own_fence() {
    let memory = memory(8, 8);
    let engine = SoftwareEngine::new("inside0", memory.clone());
    engine.inject(Fault::Slow { delay: Duration::from_millis(20) });
    let queue = MoveQueue::builder().engine(engine).chunk_bytes(PAGE).build();
    let job = Timeline::new("job");
    let first = submit(&queue, upload(1, 0, 0, 1));
    let running = submit(&queue, upload(2, 1, 1, 6));
    let blocked = submit(&queue, upload(3, 7, 7, 1).after(job.next_point()));
    assert!(first.on_signal(move |_| drop(queue)).is_ok(), "the engine is slow");
    assert_eq!(running.wait(), Ok(()));
    assert!(matches!(blocked.wait(), Err(FenceError::Abandoned { .. })));
    assert!(uploaded(&memory, 0, 0, 7));
    while threads_named("inside0") > 0 {
        std::thread::yield_now();
    }
}
