//! A subscription: how one takes the events that it was told.

use std::sync::Arc;

use devpagemap_fence::lockdep;

use super::Event;
#[cfg(not(any(loom, shuttle)))]
use super::Readable;
use super::hub::{Hub, Queue};
#[cfg(not(any(loom, shuttle)))]
use crate::error::Result;

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
    pub(super) fn new(hub: Arc<Hub>, queue: Arc<Queue>) -> Events {
        Events { hub, queue }
    }

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

    /// A descriptor for an event loop. All that are asked for are the same one.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) when there are no descriptors left.
    #[cfg(not(any(loom, shuttle)))]
    pub fn readable(&self) -> Result<Readable> {
        let mut inbox = self.queue.inbox.lock();
        let is_readable = !inbox.is_empty() || inbox.closed;
        inbox.bell.descriptor(is_readable)
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
        self.hub.unsubscribe(&self.queue);
    }
}
