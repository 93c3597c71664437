//! What the application is told: pressure on the BAR, and what became of whose peer maps.
//!
//! ```text
//!   manager ── emit ──▶ hub ──▶ queue of a subscriber ──▶ try_next, next, next_timeout
//!                          └──▶ queue of another      └─▶ eventfd, readable while there is something
//! ```
//!
//! Emitting never waits. A queue holds 1024 events; of one who does not keep up the oldest go, and it is told how many it has
//! missed, at the place in the order where they were missed. Without a subscriber an event is one load of an atomic.
//!
//! The list of subscribers is under a lock of the aperture level, each queue under one of its own, outside of the order.
//! Neither is held while the other is taken.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use devpagemap_fence::sync::Condvar;
use devpagemap_fence::sync::atomic::{AtomicUsize, Ordering};
use devpagemap_fence::{Held, Lock, Outside, OutsideGuard, levels, lockdep};

use crate::aperture::{BarLimit, PressureLevel};

#[cfg(not(any(loom, shuttle)))]
pub use polled::Readable;

/// How many events a subscriber may be behind before it misses some.
const CAPACITY: usize = 1024;

/// Why a peer does not get the BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum PeerReason {
    /// A limit is reached.
    Over(BarLimit),
    /// A buffer of higher rank needed the room.
    Outranked {
        /// That buffer.
        by: u64,
    },
    /// The buffer is [`P2p::Never`](crate::P2p::Never).
    Never,
    /// The placement of the buffer has it in system memory.
    LivesInSystemMemory,
    /// Other importers have mapped it in system memory.
    SharedInSystemMemory,
    /// The part of VRAM that the BAR shows has no room for the buffer.
    NoVisibleRoom,
}

impl PeerReason {
    /// As it is counted: without the buffer's name.
    fn kind(&self) -> String {
        match self {
            PeerReason::Over(limit) => format!("{limit} is reached"),
            PeerReason::Outranked { .. } => "a buffer of higher rank needs the BAR".to_string(),
            PeerReason::Never => "the buffer is not for peers".to_string(),
            PeerReason::LivesInSystemMemory => "the buffer lives in system memory".to_string(),
            PeerReason::SharedInSystemMemory => "others have mapped the buffer in system memory".to_string(),
            PeerReason::NoVisibleRoom => "the visible part of VRAM has no room".to_string(),
        }
    }
}

impl fmt::Display for PeerReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerReason::Outranked { by } => write!(f, "buffer {by}, of higher rank, needs the BAR"),
            _ => f.write_str(&self.kind()),
        }
    }
}

/// Something that happened. Pages are of 4096 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Peers' use of the BAR has reached a mark.
    BarPressure {
        /// Which.
        level: PressureLevel,
        /// The use that reached it.
        used_pages: u64,
        /// The mark.
        limit_pages: u64,
    },
    /// It has fallen to where that level ends.
    BarRelief {
        /// Which level has ended.
        level: PressureLevel,
        /// The use that ended it.
        used_pages: u64,
        /// Where it ends.
        limit_pages: u64,
    },
    /// A buffer that an importer had reached through the BAR was moved to system memory.
    Demoted {
        /// The buffer.
        buffer: u64,
        /// The importer.
        importer: Arc<str>,
        /// Why.
        reason: PeerReason,
        /// How many pages were missing.
        missing_pages: u64,
    },
    /// A demoted buffer can be reached through the BAR again.
    Promoted {
        /// The buffer.
        buffer: u64,
        /// The importer.
        importer: Arc<str>,
        /// How many pages that are.
        pages: u64,
    },
    /// A map was given system memory instead of the BAR.
    FellBack {
        /// The buffer.
        buffer: u64,
        /// The importer.
        importer: Arc<str>,
        /// Why.
        reason: PeerReason,
        /// How many pages were missing.
        missing_pages: u64,
    },
    /// A map was refused.
    Refused {
        /// The buffer.
        buffer: u64,
        /// The importer.
        importer: Arc<str>,
        /// Why.
        reason: PeerReason,
        /// How many pages were missing.
        missing_pages: u64,
    },
    /// The subscriber did not keep up, and the oldest events were dropped.
    Missed {
        /// How many.
        count: u64,
    },
}

impl Event {
    /// The reason under which a statistic counts it; `None` when nothing was kept from anybody.
    pub(crate) fn counted_as(&self) -> Option<String> {
        let (what, reason) = match self {
            Event::Demoted { reason, .. } => ("demoted from the BAR", reason),
            Event::FellBack { reason, .. } => ("peer map in system memory", reason),
            Event::Refused { reason, .. } => ("peer map refused", reason),
            Event::BarPressure { .. }
            | Event::BarRelief { .. }
            | Event::Promoted { .. }
            | Event::Missed { .. } => return None,
        };
        Some(format!("{what}: {}", reason.kind()))
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::BarPressure { level, used_pages, limit_pages } => {
                write!(f, "BAR pressure: peers use {used_pages} pages, the {level} limit is {limit_pages}")
            }
            Event::BarRelief { level, used_pages, limit_pages } => {
                write!(f, "BAR relief: peers use {used_pages} pages, {level} pressure ends at {limit_pages}")
            }
            Event::Demoted { buffer, importer, reason, missing_pages } => {
                write!(f, "buffer {buffer} demoted for {importer}: {reason}; {missing_pages} pages missing")
            }
            Event::Promoted { buffer, importer, pages } => {
                write!(f, "buffer {buffer} promoted for {importer}: {pages} pages")
            }
            Event::FellBack { buffer, importer, reason, missing_pages } => write!(
                f,
                "buffer {buffer} in system memory for {importer}: {reason}; {missing_pages} pages missing"
            ),
            Event::Refused { buffer, importer, reason, missing_pages } => {
                write!(f, "buffer {buffer} refused to {importer}: {reason}; {missing_pages} pages missing")
            }
            Event::Missed { count } => write!(f, "{count} events missed"),
        }
    }
}

/// Where a device's events go. The device and its subscribers share it.
#[derive(Debug)]
pub(crate) struct Hub {
    subscribers: Lock<levels::Aperture, Arc<[Arc<Queue>]>>,
    /// Their number. Written under the lock.
    count: AtomicUsize,
}

impl Hub {
    pub(crate) fn new() -> Arc<Hub> {
        Arc::new(Hub { subscribers: Lock::new("subscribers", Arc::default()), count: AtomicUsize::new(0) })
    }

    /// Tells all subscribers.
    pub(crate) fn emit(&self, event: Event, held: &mut Held<'_, levels::Tickets>) {
        // Who subscribes beside this may get the event or not.
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let subscribers = self.subscribers.lock(held).clone();
        subscribers.iter().for_each(|queue| queue.push(event.clone()));
    }

    pub(crate) fn subscribe(self: &Arc<Self>) -> Events {
        let queue = Arc::new(Queue::new());
        self.change(|subscribers| subscribers.push(queue.clone()));
        Events { hub: self.clone(), queue }
    }

    /// The last event was emitted: who waits for one stops.
    pub(crate) fn close(&self) {
        let subscribers = self.subscribers.lock(&mut Held::in_destructor()).clone();
        subscribers.iter().for_each(|queue| queue.close());
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Queue>>)) {
        let mut held = Held::in_destructor();
        let mut subscribers = self.subscribers.lock(&mut held);
        let mut list = subscribers.to_vec();
        change(&mut list);
        self.count.store(list.len(), Ordering::Relaxed);
        *subscribers = list.into();
    }
}

/// The events that one subscriber has not taken.
#[derive(Debug)]
struct Queue {
    inbox: Outside<Inbox>,
    /// Notified for each event, and at the end.
    arrived: Condvar,
}

/// The queue's lock.
#[derive(Debug, Default)]
struct Inbox {
    events: VecDeque<Event>,
    /// Dropped from before the first of them.
    missed: u64,
    closed: bool,
    #[cfg(not(any(loom, shuttle)))]
    bell: polled::Bell,
}

impl Inbox {
    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.missed == 0
    }

    fn push(&mut self, event: Event) {
        if self.events.len() == CAPACITY {
            self.events.pop_front();
            self.missed += 1;
        }
        self.events.push_back(event);
    }

    fn take(&mut self) -> Option<Event> {
        if self.missed > 0 {
            let count = std::mem::take(&mut self.missed);
            return Some(Event::Missed { count });
        }
        self.events.pop_front()
    }
}

impl Queue {
    fn new() -> Queue {
        Queue { inbox: Outside::new("event queue", Inbox::default()), arrived: Condvar::new() }
    }

    fn push(&self, event: Event) {
        let mut inbox = self.inbox.lock();
        inbox.push(event);
        self.announce(inbox);
    }

    fn close(&self) {
        let mut inbox = self.inbox.lock();
        inbox.closed = true;
        self.announce(inbox);
    }

    fn announce(&self, inbox: OutsideGuard<'_, Inbox>) {
        #[cfg(not(any(loom, shuttle)))]
        inbox.bell.ring();
        drop(inbox);
        #[cfg(not(loom_mutant = "an_event_rings_nobody"))]
        self.arrived.notify_all();
    }

    fn take(inbox: &mut Inbox) -> Option<Event> {
        let event = inbox.take();
        #[cfg(not(any(loom, shuttle)))]
        if event.is_some() && inbox.is_empty() && !inbox.closed {
            inbox.bell.silence();
        }
        event
    }
}

/// A subscription to a device's events, made by [`Device::events`](crate::Device::events). It does not keep the device alive.
///
/// As an iterator it waits for the next event, and ends when the device is gone.
///
/// ```
/// use devpagemap::{Device, Event, Size, SoftwareGpu};
/// # fn main() -> devpagemap::Result<()> {
/// let device = Device::builder(SoftwareGpu::builder().build()?).vram(Size::mib(16)).build()?;
/// let events = device.events();
/// let listener = std::thread::spawn(move || events.filter(|event| matches!(event, Event::Demoted { .. })).count());
/// drop(device);
/// assert_eq!(listener.join().unwrap(), 0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Events {
    /// Constant.
    hub: Arc<Hub>,
    /// Constant; its own lock.
    queue: Arc<Queue>,
}

impl Events {
    /// The oldest event that was not taken yet; `None` when there is none now.
    pub fn try_next(&self) -> Option<Event> {
        Queue::take(&mut self.queue.inbox.lock())
    }

    /// Whether the device is gone and every event was taken.
    pub fn is_over(&self) -> bool {
        let inbox = self.queue.inbox.lock();
        inbox.closed && inbox.is_empty()
    }

    /// Waits for the next event, `timeout` at most; `None` too when the device is gone.
    ///
    /// # Panics
    /// In debug builds, where a fence may not be waited for: in a fence callback, or while a driver or an importer is called.
    #[cfg(not(any(loom, shuttle)))]
    #[track_caller]
    pub fn next_timeout(&self, timeout: std::time::Duration) -> Option<Event> {
        lockdep::assert_may_wait();
        let deadline = std::time::Instant::now().checked_add(timeout);
        let mut inbox = self.queue.inbox.lock();
        loop {
            let event = Queue::take(&mut inbox);
            if event.is_some() || inbox.closed {
                return event;
            }
            let Some(deadline) = deadline else {
                inbox = inbox.wait(&self.queue.arrived);
                continue;
            };
            let (again, timed_out) = inbox.wait_until(&self.queue.arrived, deadline);
            inbox = again;
            if timed_out {
                return Queue::take(&mut inbox);
            }
        }
    }

    #[track_caller]
    fn wait_next(&self) -> Option<Event> {
        lockdep::assert_may_wait();
        let mut inbox = self.queue.inbox.lock();
        loop {
            let event = Queue::take(&mut inbox);
            if event.is_some() || inbox.closed {
                return event;
            }
            inbox = inbox.wait(&self.queue.arrived);
        }
    }
}

impl Iterator for Events {
    type Item = Event;

    /// Waits for the next event; `None` when the device is gone.
    ///
    /// # Panics
    /// As [`next_timeout`](Events::next_timeout).
    fn next(&mut self) -> Option<Event> {
        self.wait_next()
    }
}

impl Iterator for &Events {
    type Item = Event;

    /// As for [`Events`].
    fn next(&mut self) -> Option<Event> {
        self.wait_next()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.hub.change(|subscribers| subscribers.retain(|queue| !Arc::ptr_eq(queue, &self.queue)));
    }
}

/// The descriptor of a subscription. There is none until somebody asks for it.
#[cfg(not(any(loom, shuttle)))]
mod polled {
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
    use std::sync::Arc;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::io::Errno;

    use super::Events;
    use crate::error::{Error, Result};

    /// A descriptor (`eventfd`) that is readable while there are events to take, and once the device is gone. It need not be
    /// read; taking the last event makes it unreadable. Made by [`Events::readable`].
    #[derive(Clone, Debug)]
    pub struct Readable(Arc<OwnedFd>);

    impl AsFd for Readable {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    impl AsRawFd for Readable {
        fn as_raw_fd(&self) -> RawFd {
            self.0.as_raw_fd()
        }
    }

    /// The descriptor's other end. The queue's lock.
    #[derive(Debug, Default)]
    pub(super) struct Bell(Option<Arc<OwnedFd>>);

    impl Bell {
        pub(super) fn ring(&self) {
            let Some(fd) = &self.0 else { return };
            // Full means that it is readable.
            if let Err(error) = rustix::io::write(fd, &1u64.to_ne_bytes())
                && error != Errno::AGAIN
            {
                tracing::error!(%error, fd = fd.as_raw_fd(), "events could not be announced");
            }
        }

        pub(super) fn silence(&self) {
            let Some(fd) = &self.0 else { return };
            // Empty means that somebody else has read it, which is as good.
            if let Err(error) = rustix::io::read(fd, &mut [0; 8])
                && error != Errno::AGAIN
            {
                tracing::error!(%error, fd = fd.as_raw_fd(), "a descriptor of events could not be reset");
            }
        }
    }

    impl Events {
        /// A descriptor for an event loop. All that are asked for are the same one.
        ///
        /// # Errors
        /// [`Error::Io`] when there are no descriptors left.
        pub fn readable(&self) -> Result<Readable> {
            let mut inbox = self.queue.inbox.lock();
            if inbox.bell.0.is_none() {
                let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
                let now = u32::from(!inbox.is_empty() || inbox.closed);
                let fd = eventfd(now, flags).map_err(|errno| Error::Io {
                    action: "make a descriptor for events",
                    bytes: 8,
                    errno: errno.raw_os_error(),
                })?;
                inbox.bell.0 = Some(Arc::new(fd));
            }
            let fd = inbox.bell.0.clone().expect("it was made just now, or before");
            Ok(Readable(fd))
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn pressure(used_pages: u64) -> Event {
        Event::BarPressure { level: PressureLevel::Soft, used_pages, limit_pages: 8 }
    }

    fn emit(hub: &Hub, used_pages: u64) {
        hub.emit(pressure(used_pages), &mut Held::in_destructor());
    }

    fn is_readable(readable: &Readable) -> bool {
        poll(&mut [PollFd::new(readable, PollFlags::IN)], Some(&Timespec::default())).expect("a descriptor")
            == 1
    }

    #[test]
    fn every_subscriber_gets_every_event_since_it_subscribed_in_order() {
        let hub = Hub::new();
        emit(&hub, 1);
        let first = hub.subscribe();
        emit(&hub, 2);
        let second = hub.subscribe();
        emit(&hub, 3);
        assert_eq!(
            [first.try_next(), first.try_next(), first.try_next()],
            [Some(pressure(2)), Some(pressure(3)), None]
        );
        assert_eq!([second.try_next(), second.try_next()], [Some(pressure(3)), None]);
    }

    #[test]
    fn who_does_not_keep_up_loses_the_oldest_and_is_told_how_many() {
        let hub = Hub::new();
        let (slow, quick) = (hub.subscribe(), hub.subscribe());
        for used_pages in 0..CAPACITY as u64 + 3 {
            emit(&hub, used_pages);
            assert_eq!(quick.try_next(), Some(pressure(used_pages)));
        }
        assert_eq!(slow.try_next(), Some(Event::Missed { count: 3 }));
        let rest: Vec<Event> = std::iter::from_fn(|| slow.try_next()).collect();
        assert_eq!((rest.len(), &rest[0]), (CAPACITY, &pressure(3)));
    }

    #[test]
    fn a_subscription_that_is_dropped_is_forgotten() {
        let hub = Hub::new();
        let (kept, dropped) = (hub.subscribe(), hub.subscribe());
        drop(dropped);
        assert_eq!(hub.count.load(Ordering::Relaxed), 1);
        emit(&hub, 1);
        assert_eq!(kept.try_next(), Some(pressure(1)));
        drop(kept);
        assert_eq!(hub.count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_descriptor_is_readable_exactly_while_there_is_something_to_take() {
        let hub = Hub::new();
        let events = hub.subscribe();
        emit(&hub, 1);
        let readable = events.readable().expect("a descriptor");
        assert!(is_readable(&readable), "there was something before it was made");
        emit(&hub, 2);
        events.try_next();
        assert!(is_readable(&readable));
        events.try_next();
        assert!(!is_readable(&readable));
        emit(&hub, 3);
        assert!(is_readable(&events.readable().expect("the same one")));
        events.try_next();
        hub.close();
        assert!(is_readable(&readable), "whoever polls has to hear of the end");
        assert_eq!((events.try_next(), events.is_over()), (None, true));
        assert!(is_readable(&readable));
    }

    #[test]
    fn a_wait_ends_with_the_event_with_the_time_or_with_the_device() {
        let hub = Hub::new();
        let mut events = hub.subscribe();
        assert_eq!(events.next_timeout(Duration::from_millis(1)), None);
        let emitter = {
            let hub = hub.clone();
            std::thread::spawn(move || {
                emit(&hub, 1);
                emit(&hub, 2);
                hub.close();
            })
        };
        assert_eq!(events.next_timeout(Duration::MAX), Some(pressure(1)));
        assert_eq!((&events).next(), Some(pressure(2)));
        assert_eq!(events.next(), None);
        emitter.join().expect("no panic");
    }

    #[test]
    fn every_event_reads_as_a_sentence_with_its_figures() {
        let importer: Arc<str> = "nic".into();
        let reason = PeerReason::Over(BarLimit::Hard);
        let event = Event::FellBack { buffer: 7, importer, reason, missing_pages: 3 };
        let text = "buffer 7 in system memory for nic: the p2p hard limit is reached; 3 pages missing";
        assert_eq!(event.to_string(), text);
        let counted = "peer map in system memory: the p2p hard limit is reached";
        assert_eq!(event.counted_as().as_deref(), Some(counted));
        assert_eq!(pressure(8).to_string(), "BAR pressure: peers use 8 pages, the soft limit is 8");
        assert_eq!(pressure(8).counted_as(), None);
    }
}
