//! Who is told, and the queue of each.

use std::collections::VecDeque;
use std::sync::Arc;

use devpagemap_fence::sync::atomic::{AtomicUsize, Ordering};
use devpagemap_fence::sync::{Condvar, mutant};
use devpagemap_fence::{Held, Lock, Outside, OutsideGuard, levels};

#[cfg(not(any(loom, shuttle)))]
use super::bell::Bell;
use super::{Event, Events};

/// How many events a subscriber may be behind before it misses some.
const CAPACITY: usize = 1024;

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
        Events::new(self.clone(), queue)
    }

    /// The last event was emitted: who waits for one stops.
    pub(crate) fn close(&self) {
        let subscribers = self.subscribers.lock(&mut Held::in_destructor()).clone();
        subscribers.iter().for_each(|queue| queue.close());
    }

    pub(super) fn unsubscribe(&self, queue: &Arc<Queue>) {
        self.change(|subscribers| subscribers.retain(|other| !Arc::ptr_eq(other, queue)));
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
pub(super) struct Queue {
    pub(super) inbox: Outside<Inbox>,
    /// Notified for each event, and at the end.
    pub(super) arrived: Condvar,
}

/// The queue's lock.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    events: VecDeque<Event>,
    /// Dropped from before the first of them.
    missed: u64,
    pub(super) closed: bool,
    #[cfg(not(any(loom, shuttle)))]
    pub(super) bell: Bell,
}

impl Inbox {
    pub(super) fn is_empty(&self) -> bool {
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
        if !mutant!("an_event_rings_nobody") {
            self.arrived.notify_all();
        }
    }

    pub(super) fn take(inbox: &mut Inbox) -> Option<Event> {
        let event = inbox.take();
        #[cfg(not(any(loom, shuttle)))]
        if event.is_some() && inbox.is_empty() && !inbox.closed {
            inbox.bell.silence();
        }
        event
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::aperture::PressureLevel;
    use crate::events::Readable;

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
}
