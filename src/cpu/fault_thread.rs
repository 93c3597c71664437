//! The thread behind a device's mappings: it sleeps until a page is touched that is away, or until there is news of one.
//!
//! Started with the first mapping and ended with the device. It touches no mapping itself, so it cannot wait for itself; that it may
//! drop the last reference to a device is its teardown's business.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use devpagemap_allocator::PAGE_BYTES;
use devpagemap_migrate::{Addr, MemoryMap, Space};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, read, write};

use super::CpuFaults;
use super::address_space::Watcher;
use super::faults::Faults;
use crate::backend::DeviceMemory;
use crate::error::{Error, Result};

/// How long a buffer that somebody else holds is left alone before it is tried again.
const TRY_AGAIN_AFTER: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000 };

/// A running fault thread.
#[derive(Debug)]
pub(crate) struct FaultThread {
    /// Who is told of touches. Constant.
    watcher: Arc<Watcher>,
    /// Constant.
    poke: Poke,
    /// Constant until it is joined.
    thread: JoinHandle<()>,
}

/// What wakes the thread.
#[derive(Clone, Debug)]
pub(crate) struct Poke(Arc<PokeInner>);

#[derive(Debug)]
struct PokeInner {
    /// An eventfd. Constant.
    event: OwnedFd,
    /// Set once.
    stop: AtomicBool,
}

impl Poke {
    fn new() -> std::result::Result<Poke, Errno> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Poke(Arc::new(PokeInner { event, stop: AtomicBool::new(false) })))
    }

    /// Makes the thread look.
    pub(crate) fn send(&self) {
        // A counter that is full is as good a reason to look as one that was raised.
        let _full = write(&self.0.event, &1u64.to_ne_bytes());
    }

    fn clear(&self) {
        // Nothing to read: the thread could not sleep, and looks without having been woken.
        let _empty = read(&self.0.event, &mut [0; 8]);
    }
}

/// Who is told of touches, or why nobody is.
type Told = std::result::Result<Arc<Watcher>, &'static str>;

impl Faults {
    /// Who is told of touches, its thread running, and able to take what the CPU sees of VRAM away from mappings; the reason when mappings
    /// have to keep their buffers where they are.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no thread, or userfaultfd was asked for by name and the kernel does not permit it.
    pub(crate) fn watcher(self: &Arc<Self>, cpu: &DeviceMemory) -> Result<Told> {
        let watcher = match self.running_watcher()? {
            Ok(watcher) => watcher,
            Err(reason) => return Ok(Err(reason)),
        };
        let Some((file, _)) = cpu.file(Addr::new(Space::Vram, 0), PAGE_BYTES) else {
            return Ok(Ok(watcher));
        };
        match watcher.prepare_for(file.as_fd()) {
            Ok(()) => Ok(Ok(watcher)),
            Err(refused) if self.wanted == CpuFaults::Auto && is_for_good(refused) => {
                tracing::warn!(%refused, "memory that is watched cannot be moved: CPU mappings pin their buffers");
                Ok(Err("cpu map: pinned, as the kernel watches no mappings of this VRAM"))
            }
            Err(refused) => Err(io("watch mappings of a device's memory", refused.raw_os_error())),
        }
    }

    fn running_watcher(self: &Arc<Self>) -> Result<Told> {
        if self.wanted == CpuFaults::Pinned {
            return Ok(Err("cpu map: pinned, as the device's builder asked for"));
        }
        let mut thread = self.thread.lock();
        if let Some(running) = &*thread {
            return Ok(Ok(running.watcher.clone()));
        }
        // Weak: a watcher is part of what it tells.
        let told = Arc::downgrade(self);
        match Watcher::open(move |address| {
            told.upgrade().into_iter().for_each(|faults| faults.post_touch(address))
        }) {
            Ok(watcher) => {
                let started = FaultThread::start(self, watcher)?;
                Ok(Ok(thread.insert(started).watcher.clone()))
            }
            Err(refused) if self.wanted == CpuFaults::Auto && is_for_good(refused) => {
                tracing::warn!(%refused, "no userfaultfd: CPU mappings pin their buffers");
                Ok(Err("cpu map: pinned, as the kernel permits no userfaultfd"))
            }
            Err(refused) => Err(io("open a userfaultfd", refused.raw_os_error())),
        }
    }

    /// Whether the calling thread serves this device's touches.
    pub(crate) fn is_this_thread(&self) -> bool {
        self.thread
            .lock()
            .as_ref()
            .is_some_and(|running| running.thread.thread().id() == thread::current().id())
    }

    /// Ends the thread, and waits for its end unless it is the caller. No mapping is left by then.
    pub(crate) fn stop(&self) {
        self.set_poke(None);
        let Some(running) = self.thread.lock().take() else { return };
        running.poke.0.stop.store(true, Ordering::Release);
        running.poke.send();
        if running.thread.thread().id() != thread::current().id() && running.thread.join().is_err() {
            tracing::error!("a fault thread panicked");
        }
    }
}

impl FaultThread {
    fn start(faults: &Arc<Faults>, watcher: Watcher) -> Result<FaultThread> {
        let poke = Poke::new().map_err(|errno| io("make an eventfd", errno.raw_os_error()))?;
        let watcher = Arc::new(watcher);
        let (theirs, theirs_too, shared) = (watcher.clone(), poke.clone(), faults.clone());
        let thread = thread::Builder::new().name("devpagemap-cpu".into());
        let thread = thread.spawn(move || serve(&shared, &theirs, &theirs_too));
        let thread =
            thread.map_err(|error| io("start a fault thread", error.raw_os_error().unwrap_or_default()))?;
        faults.set_poke(Some(poke.clone()));
        Ok(FaultThread { watcher, poke, thread })
    }
}

fn serve(faults: &Arc<Faults>, watcher: &Watcher, poke: &Poke) {
    let mut again = false;
    while !poke.0.stop.load(Ordering::Acquire) {
        let sources = [watcher.as_fd(), poke.0.event.as_fd()];
        let mut sources = sources.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let [touched, poked] = match poll(&mut sources, again.then_some(&TRY_AGAIN_AFTER)) {
            Ok(_) => sources.map(|source| !source.revents().is_empty()),
            Err(Errno::INTR) => [false; 2],
            Err(errno) => {
                tracing::error!(%errno, "the fault thread cannot sleep; it looks again and again");
                thread::yield_now();
                [true; 2]
            }
        };
        if poked {
            poke.clear();
        }
        if touched || poked {
            serve_touches(faults, watcher);
        }
        again = faults.work();
    }
}

fn serve_touches(faults: &Arc<Faults>, watcher: &Watcher) {
    watcher.read_events(|address| serve_touch(faults, watcher, address));
    for address in faults.take_touches() {
        serve_touch(faults, watcher, address);
    }
}

fn serve_touch(faults: &Arc<Faults>, watcher: &Watcher, address: usize) {
    match faults.find(address) {
        Some((mapping, offset)) => faults.touched(&mapping, offset),
        // Unmapped meanwhile: whoever touches it has to find out.
        None => {
            let page_bytes = PAGE_BYTES as usize;
            watcher.wake(address - address % page_bytes, page_bytes);
        }
    }
}

/// Whether the kernel has no userfaultfd for this process, rather than none at this moment.
fn is_for_good(refused: Errno) -> bool {
    matches!(refused, Errno::PERM | Errno::NOSYS | Errno::INVAL)
}

fn io(action: &'static str, errno: i32) -> Error {
    Error::Io { action, bytes: 0, errno }
}
