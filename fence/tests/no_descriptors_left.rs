//! What needs a descriptor says so when there is none, and has changed nothing.
#![cfg(not(any(loom, shuttle)))]

use devpagemap_fence::{AnyOf, DescriptorError, FdWatcher, FenceSet, Timeline};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

static ALONE: Mutex<()> = Mutex::new(());

/// The process has no descriptor left while this lives; one test at a time.
struct Exhausted {
    files: Vec<File>,
    limit: Rlimit,
    _alone: MutexGuard<'static, ()>,
}

impl Exhausted {
    fn begin() -> Exhausted {
        let alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum: limit.maximum }).unwrap();
        let mut files = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            files.push(file);
        }
        assert!(!files.is_empty(), "the limit is below what is open");
        Exhausted { files, limit, _alone: alone }
    }

    /// Lets go of one.
    fn relent(&mut self) {
        self.files.pop();
    }
}

impl Drop for Exhausted {
    fn drop(&mut self) {
        setrlimit(Resource::Nofile, self.limit).unwrap();
    }
}

fn is_exhausted<T>(result: &Result<T, DescriptorError>) -> bool {
    matches!(result, Err(DescriptorError::Exhausted { .. }))
}

#[test]
fn no_event_is_made_and_nothing_hangs_on_the_fences() {
    let mut exhausted = Exhausted::begin();
    let hung = Arc::new(AtomicU32::new(0));
    let theirs = hung.clone();
    let count = move || {
        theirs.fetch_add(1, Ordering::Relaxed);
    };
    let timeline = Timeline::builder("ring").on_first_waiter(count).build();
    let fence = timeline.next_point();
    let (set, any) = (FenceSet::from(fence.clone()), AnyOf::new([fence.clone()]).unwrap());
    for refused in [fence.event(), set.event(), any.event()] {
        assert!(is_exhausted(&refused), "{refused:?}");
    }
    assert_eq!(hung.load(Ordering::Relaxed), 0);
    exhausted.relent();
    let event = fence.event().unwrap();
    assert_eq!(hung.load(Ordering::Relaxed), 1);
    let (event, error) = event.detach().unwrap_err();
    assert!(is_exhausted(&Err::<(), _>(error)));
    timeline.signal(1);
    let mut count = [0; 8];
    assert_eq!(rustix::io::read(&event, &mut count), Ok(8), "the event was given back, and works");
}

#[test]
fn no_watcher_is_started_and_none_of_its_parts_stay() {
    let mut exhausted = Exhausted::begin();
    for spare in 0..2 {
        let refused = FdWatcher::start();
        assert!(is_exhausted(&refused), "with {spare} left");
        exhausted.relent();
    }
    let error = FdWatcher::start().map(drop);
    assert!(error.is_ok(), "{error:?}");
}

#[test]
fn an_import_needs_no_descriptor_of_its_own() {
    let (watcher, (reader, writer)) = {
        let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        (FdWatcher::start().unwrap(), std::io::pipe().unwrap())
    };
    let _exhausted = Exhausted::begin();
    let number = reader.as_raw_fd();
    let fence = watcher.import(OwnedFd::from(reader), "pipe", Duration::from_secs(3600)).unwrap();
    let taken_back = watcher.cancel(&fence).unwrap();
    assert_eq!(taken_back.as_raw_fd(), number);
    let fence = watcher.import(taken_back, "pipe", Duration::from_secs(3600)).unwrap();
    std::io::Write::write_all(&mut &writer, b"x").unwrap();
    assert_eq!(fence.wait(), Ok(()));
}
