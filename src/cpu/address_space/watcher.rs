//! Who is told of touches, and how addresses are watched that show memory which the kernel lets nobody watch.
//!
//! userfaultfd watches memory of the process's own and memfds. It refuses mappings of a device's memory and of dma-bufs. Those are taken away by
//! *parking*: memory that is watched already takes their place.
//!
//! ```text
//!   aside    ▒▒▒▒▒▒▒▒   fresh memory, watched: every touch of it sleeps
//!               │ mremap, in one step for whoever touches: before it the bytes, after it a sleep
//!               ▼
//!   range    ████████   the device's memory, which nobody can watch
//! ```
//!
//! A watch survives such a move only if its descriptor asks to be told of moves (`UFFD_FEATURE_EVENT_REMAP`), and then whoever moves waits until it has
//! been. The fault thread moves too, so another thread reads that descriptor: it does nothing but hand touches on, and waits for
//! nobody.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use devpagemap_fence::Outside;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{FsWord, fstatfs};
use rustix::io::{Errno, write};

use crate::uapi::userfaultfd::{Userfaultfd, Watched};

/// Is handed the address of a touch.
type Tell = dyn Fn(usize) + Send + Sync;

/// `TMPFS_MAGIC`: the type of the file system that memfds are in.
const MEMFD_MAGIC: FsWord = 0x0102_1994;

/// Who is told of touches.
pub(crate) struct Watcher {
    /// Of what can be watched; read by the fault thread. Constant.
    touches: Userfaultfd,
    /// Where touches of what is parked go. Constant.
    tell: Arc<Tell>,
    /// Started when something is to be parked. Its own lock.
    parking: Outside<Option<Parking>>,
}

/// A descriptor for what is parked, and its thread.
struct Parking {
    /// Constant.
    fd: Arc<Userfaultfd>,
    /// An eventfd: ends the thread. Constant.
    end: Arc<OwnedFd>,
    /// Taken by drop.
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// One that is told of all touches where the kernel permits that, else of those from user mode. Those of what is parked go to `tell`, from
    /// a thread that must not be kept waiting.
    ///
    /// # Errors
    /// As [`Userfaultfd::open`].
    pub(crate) fn open(tell: impl Fn(usize) + Send + Sync + 'static) -> Result<Watcher, Errno> {
        let touches = Userfaultfd::open()?;
        Ok(Watcher { touches, tell: Arc::new(tell), parking: Outside::new("CPU maps that are parked", None) })
    }

    /// Whether system calls that are handed watched memory wait as other touches do, instead of failing.
    pub(crate) fn sees_kernel_mode(&self) -> bool {
        self.touches.sees_kernel_mode()
    }

    /// Reads the touches that there are, but for those of what is parked.
    pub(crate) fn read_events(&self, each: impl FnMut(usize)) {
        self.touches.read_events(each);
    }

    /// As [`Userfaultfd::register`].
    ///
    /// # Safety
    /// As for that.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) unsafe fn register(&self, start: usize, len: usize, what: Watched) -> Result<(), Errno> {
        // SAFETY: the caller's promise.
        unsafe { self.touches.register(start, len, what) }
    }

    /// Makes touches of fresh private memory sleep, also when it has been moved elsewhere.
    ///
    /// # Safety
    /// As for [`Userfaultfd::register`].
    ///
    /// # Errors
    /// What the kernel says; `EAGAIN` when there is no thread.
    pub(crate) unsafe fn register_for_parking(&self, start: usize, len: usize) -> Result<(), Errno> {
        let fd = self.parking()?;
        // SAFETY: the caller's promise.
        unsafe { fd.register(start, len, Watched::Anonymous) }
    }

    /// Sees to it that mappings of `file` can be taken away.
    ///
    /// # Errors
    /// Why they will not be.
    pub(crate) fn prepare_for(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        match fstatfs(file)?.f_type {
            MEMFD_MAGIC => Ok(()),
            _ => self.parking().map(drop),
        }
    }

    fn parking(&self) -> Result<Arc<Userfaultfd>, Errno> {
        let mut parking = self.parking.lock();
        if let Some(running) = &*parking {
            return Ok(running.fd.clone());
        }
        Ok(parking.insert(Parking::start(self.tell.clone())?).fd.clone())
    }

    /// Lets whoever sleeps for these addresses touch them again. Nobody sleeping is no error.
    pub(crate) fn wake(&self, start: usize, len: usize) {
        self.touches.wake(start, len);
        let parked = self.parking.lock().as_ref().map(|running| running.fd.clone());
        if let Some(parked) = parked {
            parked.wake(start, len);
        }
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.touches.as_fd()
    }
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher").field("touches", &self.touches).finish_non_exhaustive()
    }
}

impl Parking {
    fn start(tell: Arc<Tell>) -> Result<Parking, Errno> {
        let fd = Arc::new(Userfaultfd::open_for_moves()?);
        let end = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (theirs, their_end) = (fd.clone(), end.clone());
        let thread = thread::Builder::new().name("devpagemap-park".into());
        let thread = thread.spawn(move || hand_on(&theirs, &their_end, &*tell));
        let thread = thread.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
        Ok(Parking { fd, end, thread: Some(thread) })
    }
}

impl Drop for Parking {
    /// Nothing is parked by now, and nobody moves.
    fn drop(&mut self) {
        let ended = write(&self.end, &1u64.to_ne_bytes());
        debug_assert!(ended.is_ok(), "an eventfd takes a 1: {ended:?}");
        let Some(thread) = self.thread.take() else { return };
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            tracing::error!("a thread that hands touches on panicked");
        }
    }
}

/// Hands touches on; reading is also what whoever moves watched memory waits for.
fn hand_on(fd: &Userfaultfd, end: &OwnedFd, tell: &Tell) {
    loop {
        let mut sources = [fd.as_fd(), end.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        if let Err(errno) = poll(&mut sources, None)
            && errno != Errno::INTR
        {
            tracing::error!(%errno, "the thread for parked maps cannot sleep; it looks again and again");
            thread::yield_now();
        }
        fd.read_events(tell);
        if !sources[1].revents().is_empty() {
            return;
        }
    }
}
