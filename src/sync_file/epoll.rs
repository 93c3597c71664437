//! Waiting for many sync_files at once, by `epoll`.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::{CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;

use super::kernel::{Poller, SyncFile};
use crate::error::{Error, Result};

/// How many events are taken from the system at once.
const EVENTS: usize = 64;
/// Marks the eventfd; nothing that is waited for has this id.
const POKE: u64 = 0;
/// For how long nobody listens when the system does not say what has happened.
const WITHOUT_EVENTS: Duration = Duration::from_millis(20);

/// Two descriptors.
#[derive(Debug)]
pub(super) struct Epoll {
    /// Constant.
    epoll: OwnedFd,
    /// An eventfd that wakes who waits. Constant.
    poke: OwnedFd,
}

impl Epoll {
    pub(super) fn new() -> Result<Epoll> {
        let made = epoll::create(CreateFlags::CLOEXEC).and_then(|epoll| {
            let poke = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            epoll::add(&epoll, &poke, EventData::new_u64(POKE), EventFlags::IN)?;
            Ok(Epoll { epoll, poke })
        });
        made.map_err(|errno| Error::of_descriptor("wait for fences from outside", errno))
    }
}

impl Poller for Epoll {
    fn watch(&self, file: &dyn SyncFile, id: u64) -> Result<()> {
        let fd = file.fd().expect("what is polled is a sync_file of the kernel's");
        epoll::add(&self.epoll, fd, EventData::new_u64(id), EventFlags::IN)
            .map_err(|errno| Error::of_descriptor("watch a fence from outside", errno))
    }

    fn forget(&self, file: &dyn SyncFile, _id: u64) {
        let fd = file.fd().expect("what is polled is a sync_file of the kernel's");
        if let Err(error) = epoll::delete(&self.epoll, fd) {
            tracing::error!(%error, "a fence from outside was not watched");
        }
    }

    fn wait(&self, until: Option<Instant>) -> Vec<u64> {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // More seconds than the system can count are as good as no deadline.
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
        let spare = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, spare, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "fences from outside cannot be polled");
                std::thread::sleep(WITHOUT_EVENTS);
            }
        }
        let ids = events.iter().map(|event| event.data.u64());
        let ids: Vec<u64> = ids.collect();
        if ids.contains(&POKE) {
            // Empty means that somebody else's poke was read along with an earlier one.
            let _ = rustix::io::read(&self.poke, &mut [0; 8]);
        }
        ids.into_iter().filter(|id| *id != POKE).collect()
    }

    fn poke(&self) {
        // Full means that who waits is about to wake.
        let _ = rustix::io::write(&self.poke, &1u64.to_ne_bytes());
    }
}
