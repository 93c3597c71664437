//! Fences from outside: a descriptor that polls ready is a point on a timeline.
//!
//! What another process or the kernel signals comes as a descriptor: a `sync_file`, a dma-buf, an eventfd, a pipe, a
//! pidfd. An [`FdWatcher`] takes such descriptors in and gives a [`Fence`] for each, which then does all that fences
//! do. One thread polls for all of them (`epoll`); it sleeps until a descriptor is ready or a deadline passes.
//!
//! ```text
//!   import ─▶ table: timeline id ─▶ { fd, timeline, deadline }     epoll: fd, marked with the timeline id
//!                      │                                              │
//!   cancel ────────────┤  whoever takes the entry out of the table,   │
//!   readable, ended ◀──┤  under its lock, ends the point ◀────────────┘
//!   deadline passed ◀──┘
//! ```
//!
//! **Each import has a timeline of its own**: points of one timeline complete in order, descriptors do not.
//!
//! **What ready means.** Readable (`POLLIN`) is success, whatever else is reported along with it. An error or a hang-up
//! without that is a failure ([`FenceError::DescriptorFailed`]), as it will never become readable. A `sync_file` polls
//! readable also when its fences failed, and a dma-buf when its writers are done: poll says no more.
//!
//! **Finite time.** A fence must signal, and nobody here can make a stranger do so. Every import has a timeout; when it
//! is over the fence fails with [`FenceError::TimedOut`]. What is ready by then counts as ready.
//!
//! **Numbers.** The watcher owns what it took in, and a descriptor leaves `epoll` before it is closed. Entries are known
//! by their timeline and never by the descriptor's number, so a late event of a closed descriptor cannot be taken for
//! one of its number's next owner, and one file may be imported many times through duplicates.
//!
//! ```
//! use std::os::fd::OwnedFd;
//! use std::time::Duration;
//! use devpagemap_fence::FdWatcher;
//!
//! let watcher = FdWatcher::start()?;
//! let (reader, mut writer) = std::io::pipe()?;
//! let fence = watcher.import(OwnedFd::from(reader), "the compositor", Duration::from_secs(5))?;
//! assert!(!fence.is_signaled());
//! std::io::Write::write_all(&mut writer, b"done")?;
//! assert_eq!(fence.wait(), Ok(()));
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::error::Error;
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;

use crate::error::{DescriptorError, FenceError};
use crate::fence::Fence;
use crate::lockdep;
use crate::sync::{Arc, Mutex};
use crate::timeline::{Timeline, TimelineId};

/// How many events are taken from the system at once.
const EVENTS: usize = 256;

/// Marks the watcher's own eventfd; no timeline has this id.
const POKE: u64 = 0;

/// A descriptor that waits to be ready. Its timeline has one point.
struct Import {
    timeline: Timeline, // constant; dropped first, so that the point ends before the descriptor is closed
    fd: OwnedFd,        // constant
    since: Instant,     // constant
    deadline: Instant,  // constant
}

#[derive(Default)]
struct Table {
    imports: HashMap<TimelineId, Import>,
    deadlines: BTreeSet<(Instant, TimelineId)>, // of all imports
    sleeps_until: Option<Instant>,              // of the thread; none: until an event
    closed: bool,                               // nothing is taken in any more
}

struct Shared {
    epoll: OwnedFd, // constant; who is in it is told by the table
    poke: OwnedFd,  // constant; an eventfd that wakes the thread
    table: Mutex<Table>,
}

/// A thread that turns descriptors which become readable into fences that signal.
///
/// Callbacks of the fences run in its thread. Dropping it stops and joins the thread and fails what is outstanding with
/// [`FenceError::Abandoned`]; do so where one may wait for a fence.
pub struct FdWatcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>, // taken by drop
}

impl FdWatcher {
    /// Starts the thread, with nothing to watch.
    ///
    /// # Errors
    /// [`DescriptorError::Exhausted`] when there are not two descriptors left; [`DescriptorError::Refused`] when the
    /// system gives no thread.
    pub fn start() -> Result<FdWatcher, DescriptorError> {
        let shared =
            Arc::new(Shared::new().map_err(|errno| DescriptorError::from_errno("a watcher", errno))?);
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("devpagemap-fds".into())
            .spawn(move || theirs.run())
            .map_err(|cause| DescriptorError::Refused { what: "a watcher's thread", cause })?;
        Ok(FdWatcher { shared, thread: Some(thread) })
    }

    /// A fence that signals once `fd` is readable, and no later than after `timeout`. It belongs to the watcher, which
    /// closes it then.
    ///
    /// `name` is the name of the fence's timeline. A descriptor that is ready already signals soon; a timeout of zero
    /// only looks.
    ///
    /// # Errors
    /// The descriptor is given back, with the reason: it cannot be polled, the timeout has no end, or the system has no
    /// room for another watch.
    pub fn import(
        &self,
        fd: OwnedFd,
        name: impl Into<Cow<'static, str>>,
        timeout: Duration,
    ) -> Result<Fence, ImportRefused> {
        let timeline = Timeline::new(name);
        let since = Instant::now();
        let Some(deadline) = since.checked_add(timeout) else {
            let name = timeline.name().into();
            return Err(ImportRefused { fd, cause: DescriptorError::NeverTimesOut { name, timeout } });
        };
        self.shared.admit(Import { timeline, fd, since, deadline })
    }

    /// Takes a descriptor back that has not become ready; its fence fails with [`FenceError::Cancelled`]. Nothing if
    /// `fence` is complete, about to be, or none of this watcher's.
    #[track_caller]
    pub fn cancel(&self, fence: &Fence) -> Option<OwnedFd> {
        lockdep::assert_may_signal();
        let import = self.shared.take(fence.timeline_id())?;
        import.timeline.fail(1, FenceError::Cancelled);
        Some(import.fd)
    }

    /// How many descriptors wait to be ready.
    pub fn outstanding(&self) -> usize {
        self.shared.table.lock().imports.len()
    }
}

impl Drop for FdWatcher {
    fn drop(&mut self) {
        self.shared.table.lock().closed = true;
        self.shared.poke();
        let Some(thread) = self.thread.take() else { return };
        // A callback may have held the watcher: no thread can join itself. It ends once the callback has.
        if thread.thread().id() != std::thread::current().id() {
            lockdep::assert_may_wait();
            // The thread catches the panics of callbacks.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn new() -> Result<Shared, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let poke = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &poke, epoll::EventData::new_u64(POKE), epoll::EventFlags::IN)?;
        Ok(Shared { epoll, poke, table: Mutex::default() })
    }

    /// Wakes the thread.
    fn poke(&self) {
        // Full means that it is about to wake.
        let _ = rustix::io::write(&self.poke, &1u64.to_ne_bytes());
    }

    fn admit(&self, import: Import) -> Result<Fence, ImportRefused> {
        let (id, deadline) = (import.timeline.id(), import.deadline);
        let mut table = self.table.lock();
        if let Err(cause) = self.watch(&table, &import) {
            return Err(ImportRefused { fd: import.fd, cause });
        }
        let fence = import.timeline.next_point();
        table.imports.insert(id, import);
        table.deadlines.insert((deadline, id));
        let oversleeps = table.sleeps_until.is_none_or(|until| deadline < until);
        drop(table);
        if oversleeps {
            self.poke();
        }
        Ok(fence)
    }

    /// From here on `epoll` reports the descriptor; the table's lock keeps the thread from looking for it too early.
    fn watch(&self, table: &Table, import: &Import) -> Result<(), DescriptorError> {
        const WHAT: &str = "a watch for a descriptor";
        if table.closed {
            return Err(DescriptorError::from_errno(WHAT, Errno::SHUTDOWN));
        }
        let mark = epoll::EventData::new_u64(import.timeline.id().0);
        epoll::add(&self.epoll, &import.fd, mark, epoll::EventFlags::IN).map_err(|errno| match errno {
            Errno::PERM => DescriptorError::NotPollable {
                name: import.timeline.name().into(),
                fd: import.fd.as_raw_fd(),
            },
            other => DescriptorError::from_errno(WHAT, other),
        })
    }

    /// Takes an entry out: whoever gets it ends its point.
    fn take(&self, id: TimelineId) -> Option<Import> {
        let mut table = self.table.lock();
        let import = table.imports.remove(&id)?;
        table.deadlines.remove(&(import.deadline, id));
        if let Err(error) = epoll::delete(&self.epoll, &import.fd) {
            tracing::error!(%error, name = import.timeline.name(), "a descriptor was closed under the watcher");
        }
        Some(import)
    }

    fn run(&self) {
        let mut events = Vec::with_capacity(EVENTS);
        while let Some(timeout) = self.plan() {
            // What is ready by now is not overdue.
            let now = Instant::now();
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "descriptors cannot be polled any more");
                    self.table.lock().closed = true;
                }
            }
            for event in &events {
                self.handle(*event);
            }
            while let Some(id) = self.overdue(now) {
                self.time_out(id);
            }
        }
        // Dropped after the lock: their timelines fail, and callbacks run.
        let abandoned = std::mem::take(&mut self.table.lock().imports);
        for import in abandoned.into_values() {
            catch(|| drop(import));
        }
    }

    /// For how long to sleep (none inside: until an event), or nothing when it is time to stop.
    fn plan(&self) -> Option<Option<Timespec>> {
        let mut table = self.table.lock();
        if table.closed {
            return None;
        }
        table.sleeps_until = table.deadlines.first().map(|(deadline, _)| *deadline);
        let left = table.sleeps_until.map(|until| until.saturating_duration_since(Instant::now()));
        // More seconds than the system can count are as good as no deadline.
        Some(left.and_then(|left| Timespec::try_from(left).ok()))
    }

    fn handle(&self, event: epoll::Event) {
        let (mark, flags) = (event.data.u64(), event.flags);
        if mark == POKE {
            // Empty means that somebody else's poke was read along with an earlier one.
            let _ = rustix::io::read(&self.poke, &mut [0; 8]);
            return;
        }
        // Not there: cancelled or timed out since.
        let Some(import) = self.take(TimelineId(mark)) else { return };
        if flags.contains(epoll::EventFlags::IN) {
            return end(import, |timeline| timeline.signal(1));
        }
        let cause = match (flags.contains(epoll::EventFlags::ERR), flags.contains(epoll::EventFlags::HUP)) {
            (true, true) => "its other end reported an error and hung up",
            (true, false) => "its other end reported an error",
            (false, _) => "its other end hung up",
        };
        end(import, |timeline| {
            let error =
                FenceError::DescriptorFailed { timeline: timeline.name().into(), cause: cause.into() };
            timeline.fail(1, error);
        });
    }

    fn overdue(&self, now: Instant) -> Option<TimelineId> {
        let table = self.table.lock();
        table.deadlines.first().filter(|(deadline, _)| *deadline <= now).map(|(_, id)| *id)
    }

    fn time_out(&self, id: TimelineId) {
        let Some(import) = self.take(id) else { return };
        let waited_ns = u64::try_from(import.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        end(import, |timeline| {
            timeline.fail(1, FenceError::TimedOut { timeline: timeline.name().into(), seqno: 1, waited_ns });
        });
    }
}

/// Ends the point of an entry that was taken out, then closes its descriptor.
fn end(import: Import, how: impl FnOnce(&Timeline)) {
    catch(|| how(&import.timeline));
    drop(import.fd);
}

/// Callbacks are other people's code; the thread outlives their panics.
fn catch(deed: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(deed)).is_err() {
        tracing::error!("a callback of a descriptor's fence panicked");
    }
}

/// A descriptor that was not taken in, and why. Dropping it closes the descriptor.
#[derive(Debug)]
pub struct ImportRefused {
    /// The descriptor, as it was.
    pub fd: OwnedFd,
    /// The reason.
    pub cause: DescriptorError,
}

impl fmt::Display for ImportRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "descriptor {} was not imported: {}", self.fd.as_raw_fd(), self.cause)
    }
}

impl Error for ImportRefused {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.cause)
    }
}

impl fmt::Debug for FdWatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FdWatcher({} outstanding)", self.outstanding())
    }
}
