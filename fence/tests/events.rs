//! Fences in an event loop: descriptors that become readable.
#![cfg(not(any(loom, shuttle)))]

use devpagemap_fence::{AnyOf, Fence, FenceError, FenceEvent, FenceSet, Timeline};
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Barrier};
use std::thread;

fn is_readable(fd: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).unwrap() == 1 && fds[0].revents() == PollFlags::IN
}

fn wait_until_readable(fd: &impl AsFd) {
    assert_eq!(poll(&mut [PollFd::new(fd, PollFlags::IN)], None), Ok(1));
}

#[test]
fn an_event_becomes_readable_with_the_signal_and_stays_so_until_it_is_read() {
    let timeline = Timeline::new("ring");
    let event = timeline.next_point().event().unwrap();
    assert!(!is_readable(&event));
    timeline.signal(1);
    assert!(is_readable(&event) && is_readable(&event));
    let mut count = [0; 8];
    assert_eq!(rustix::io::read(&event, &mut count), Ok(8));
    assert_eq!(u64::from_ne_bytes(count), 1);
    assert!(!is_readable(&event));
}

#[test]
fn a_failure_makes_it_readable_too_and_so_does_an_owner_that_goes_away() {
    let (failed, dropped) = (Timeline::new("failed"), Timeline::new("dropped"));
    let events = [failed.next_point().event().unwrap(), dropped.next_point().event().unwrap()];
    failed.fail(1, FenceError::DeviceLost);
    drop(dropped);
    assert!(events.iter().all(is_readable));
}

#[test]
fn a_signalled_fence_gives_an_event_that_is_readable_at_once() {
    let timeline = Timeline::new("ring");
    let fence = timeline.next_point();
    timeline.signal(1);
    assert!(is_readable(&fence.event().unwrap()));
    assert!(is_readable(&Fence::signaled().event().unwrap()));
    assert!(is_readable(&FenceSet::new().event().unwrap()));
}

#[test]
fn reading_too_early_does_not_block() {
    let timeline = Timeline::new("ring");
    let event = timeline.next_point().event().unwrap();
    assert_eq!(rustix::io::read(&event, &mut [0; 8]), Err(rustix::io::Errno::AGAIN));
    timeline.signal(1);
}

#[test]
fn a_signaller_never_blocks_on_a_counter_that_its_reader_filled() {
    let timeline = Timeline::new("ring");
    let event = timeline.next_point().event().unwrap();
    rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    timeline.signal(1);
    assert!(is_readable(&event));
}

#[test]
fn an_event_that_its_consumer_closed_is_not_written_any_more() {
    let timeline = Timeline::new("ring");
    let fence = timeline.next_point();
    let any = AnyOf::new([fence.clone()]).unwrap();
    let events = [fence.event(), FenceSet::from(fence).event(), any.event()].map(Result::unwrap);
    let duplicates = events.each_ref().map(|event| rustix::io::fcntl_dupfd_cloexec(event, 0).unwrap());
    drop(events);
    timeline.signal(1);
    assert!(!duplicates.iter().any(is_readable));
}

#[test]
fn an_event_wakes_an_epoll_loop_with_many_fences() {
    let timelines: Vec<_> = (0..50).map(|_| Timeline::new("ring")).collect();
    let events: Vec<FenceEvent> =
        timelines.iter().map(|timeline| timeline.next_point().event().unwrap()).collect();
    let queue = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    for (index, event) in (0..).zip(&events) {
        epoll::add(&queue, event, epoll::EventData::new_u64(index), epoll::EventFlags::IN).unwrap();
    }
    let signaller =
        thread::spawn(move || timelines.into_iter().rev().for_each(|timeline| timeline.signal(1)));
    let mut seen = vec![false; events.len()];
    while seen.contains(&false) {
        let mut ready = Vec::with_capacity(8);
        epoll::wait(&queue, rustix::buffer::spare_capacity(&mut ready), None).unwrap();
        for event in ready {
            let index = event.data.u64() as usize;
            assert!(!std::mem::replace(&mut seen[index], true), "reported twice");
            epoll::delete(&queue, &events[index]).unwrap();
        }
    }
    signaller.join().unwrap();
}

#[test]
fn the_event_of_a_set_waits_for_the_last_and_that_of_any_for_the_first() {
    let timelines = [Timeline::new("a"), Timeline::new("b"), Timeline::new("c")];
    let fences: Vec<Fence> = timelines.iter().map(Timeline::next_point).collect();
    let all = FenceSet::from_iter(fences.clone()).event().unwrap();
    let any = AnyOf::new(fences).unwrap().event().unwrap();
    assert!(!is_readable(&all) && !is_readable(&any));
    timelines[1].signal(1);
    assert!(!is_readable(&all) && is_readable(&any));
    timelines[0].signal(1);
    timelines[2].fail(1, FenceError::Cancelled);
    assert!(is_readable(&all));
    let mut count = [0; 8];
    rustix::io::read(&any, &mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 1, "the others wrote too");
}

#[test]
fn an_event_of_a_set_counts_those_that_have_signalled_already() {
    let timelines = [Timeline::new("a"), Timeline::new("b"), Timeline::new("c")];
    let set: FenceSet = timelines.iter().map(Timeline::next_point).collect();
    timelines[1].signal(1);
    let event = set.event().unwrap();
    timelines[2].signal(1);
    assert!(!is_readable(&event));
    timelines[0].signal(1);
    assert!(is_readable(&event));
    assert!(is_readable(&set.event().unwrap()));
}

#[test]
fn the_event_of_a_set_whose_members_signal_meanwhile_becomes_readable() {
    for _ in 0..1000 {
        let timelines: [Timeline; 3] = std::array::from_fn(|_| Timeline::new("ring"));
        let set: FenceSet = timelines.iter().map(Timeline::next_point).collect();
        let signaller = thread::spawn(move || timelines.iter().for_each(|timeline| timeline.signal(1)));
        let event = set.event().unwrap();
        wait_until_readable(&event);
        assert!(set.is_signaled());
        signaller.join().unwrap();
    }
}

#[test]
fn a_detached_descriptor_becomes_readable_and_is_its_owners_to_close() {
    let timeline = Timeline::new("ring");
    let (kept, closed) = (timeline.next_point().event().unwrap(), timeline.next_point().event().unwrap());
    let set = FenceSet::from(timeline.next_point()).event().unwrap();
    let kept: OwnedFd = kept.detach().map_err(|(_, error)| error).unwrap();
    let of_set: OwnedFd = set.detach().map_err(|(_, error)| error).unwrap();
    drop(closed.detach().map_err(|(_, error)| error).unwrap());
    timeline.signal(2);
    assert!(is_readable(&kept) && !is_readable(&of_set));
    timeline.signal(3);
    assert!(is_readable(&of_set));
}

#[test]
fn closing_beside_the_signal_never_writes_to_a_number_that_belongs_to_somebody_else() {
    const ROUNDS: usize = 5000;
    let timeline = Arc::new(Timeline::new("ring"));
    let meet = Arc::new(Barrier::new(2));
    let (their_timeline, they_meet) = (timeline.clone(), meet.clone());
    let signaller = thread::spawn(move || {
        for seqno in 1..=ROUNDS {
            they_meet.wait();
            their_timeline.signal(seqno as u64);
            they_meet.wait();
        }
    });
    for _ in 0..ROUNDS {
        let event = timeline.next_point().event().unwrap();
        meet.wait();
        drop(event);
        // Very likely gets the number that was just closed.
        let bystander = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
        meet.wait();
        assert!(!is_readable(&bystander), "a stranger's eventfd was written to");
    }
    signaller.join().unwrap();
}

#[test]
fn a_thread_that_polls_is_woken() {
    let timeline = Timeline::new("ring");
    let event = timeline.next_point().event().unwrap();
    let loop_thread = thread::spawn(move || wait_until_readable(&event));
    thread::sleep(std::time::Duration::from_millis(2));
    timeline.signal(1);
    loop_thread.join().unwrap();
}

#[test]
fn a_child_process_does_not_inherit_it() {
    let timeline = Timeline::new("ring");
    let event = timeline.next_point().event().unwrap();
    assert!(rustix::io::fcntl_getfd(&event).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    let detached = event.detach().map_err(|(_, error)| error).unwrap();
    assert!(rustix::io::fcntl_getfd(&detached).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    timeline.signal(1);
}
