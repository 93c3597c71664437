//! Fences: making and signalling one, and asking whether it has signalled.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use devpagemap_benches::contest::{Contest, Goal};
use devpagemap_benches::peers::{ListenerEvent, ParkingLotEvent, StdEvent};
use devpagemap_benches::picks::Random;
use devpagemap_benches::session::Session;
use devpagemap_benches::{floors, ours};
use devpagemap_fence::{Fence, Timeline};

fn main() {
    let mut session = Session::from_arguments();
    create_and_signal(&mut session);
    is_signaled(&mut session);
    is_signaled_at_random(&mut session);
    session.finish();
}

/// An event that has to be shared by who waits and who signals: made, signalled, both ends dropped.
fn shared<E: Default>(signal: impl Fn(&E)) -> impl Fn() {
    move || {
        let waiting = black_box(Arc::new(E::default()));
        let signalling = Arc::clone(&waiting);
        signal(black_box(&signalling));
    }
}

fn create_and_signal(session: &mut Session) {
    let (timeline, floor) = (Timeline::new("bench"), floors::Timeline::default());
    let mut contest = Contest::new("create + signal, nobody waiting", Goal::of_floor(1.5).and_ahead());
    contest.ours(|| ours::create_and_signal(&timeline));
    contest.floor("seqno on a timeline", || floor.signal(black_box(floor.next_point())));
    contest.peer("Arc<AtomicBool>", shared(|event: &AtomicBool| event.store(true, Ordering::Release)));
    contest.peer("parking_lot Mutex + Condvar", shared(ParkingLotEvent::signal));
    contest.peer("std Mutex + Condvar", shared(StdEvent::signal));
    contest.peer("event-listener", shared(ListenerEvent::signal));
    contest.peer("tokio Notify", shared(tokio::sync::Notify::notify_waiters));
    contest.peer("tokio oneshot", || {
        let (sender, receiver) = black_box(tokio::sync::oneshot::channel());
        let sent: Result<(), ()> = sender.send(());
        sent.expect("the receiver is there");
        drop(black_box(receiver));
    });
    contest.peer("futures oneshot", || {
        let (sender, receiver) = black_box(futures_channel::oneshot::channel());
        let sent: Result<(), ()> = sender.send(());
        sent.expect("the receiver is there");
        drop(black_box(receiver));
    });
    contest.peer("eventfd", || {
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC);
        let event = event.expect("a file descriptor is left");
        rustix::io::write(&event, &1u64.to_ne_bytes()).expect("an eventfd that nobody filled takes a number");
    });
    contest.hold(session);
}

fn is_signaled(session: &mut Session) {
    let timeline = Timeline::new("bench");
    let fence = timeline.next_point();
    let (floor, mutex) = (floors::Timeline::default(), ParkingLotEvent::default());
    let point = floor.next_point();
    let flag = Arc::new(AtomicBool::new(false));
    let mut contest = Contest::new("is_signaled, the same fence again and again", Goal::of_floor(1.25));
    contest.ours(|| {
        black_box(black_box(&fence).is_signaled());
    });
    contest.floor("load and compare", || {
        black_box(black_box(&floor).is_complete(black_box(point)));
    });
    contest.shown("Arc<AtomicBool>", || {
        black_box(black_box(&flag).load(Ordering::Acquire));
    });
    contest.peer("through a parking_lot Mutex", || {
        black_box(black_box(&mutex).is_signaled());
    });
    contest.hold(session);
}

/// Fences there are, and timelines that they are on.
const FENCES: usize = 1_000_000;
const TIMELINES: usize = 64;

/// Calls `look` with one random index after the other.
fn at_random(order: &[u32], look: impl Fn(usize) -> bool) -> impl FnMut() {
    let mut order = order.iter().cycle();
    move || {
        let index = order.next().copied().expect("the order is not empty");
        black_box(look(index as usize));
    }
}

fn is_signaled_at_random(session: &mut Session) {
    const NAME: &str = "is_signaled, random among a million fences";
    if !session.wants(NAME) {
        return;
    }
    let timelines: Vec<Timeline> = (0..TIMELINES).map(|_| Timeline::new("bench")).collect();
    let fences: Vec<Fence> = (0..FENCES).map(|index| timelines[index % TIMELINES].next_point()).collect();
    let counters: Vec<Arc<AtomicU64>> = (0..TIMELINES).map(|_| Arc::new(AtomicU64::new(0))).collect();
    let point = |index: usize| (counters[index % TIMELINES].clone(), (index / TIMELINES) as u64);
    let points: Vec<(Arc<AtomicU64>, u64)> = (0..FENCES).map(point).collect();
    let flags: Vec<Arc<AtomicBool>> = (0..FENCES).map(|_| Arc::default()).collect();
    let mutexes: Vec<Arc<ParkingLotEvent>> = (0..FENCES).map(|_| Arc::default()).collect();
    let mut order: Vec<u32> = (0..FENCES as u32).collect();
    Random::new(1).shuffle(&mut order);

    let mut contest = Contest::new(NAME, Goal::AHEAD);
    contest.ours(at_random(&order, |index| fences[index].is_signaled()));
    contest.floor(
        "load and compare, shared counters",
        at_random(&order, |index| points[index].0.load(Ordering::Acquire) >= points[index].1),
    );
    contest
        .peer("a million Arc<AtomicBool>", at_random(&order, |index| flags[index].load(Ordering::Acquire)));
    contest.peer("a million parking_lot Mutexes", at_random(&order, |index| mutexes[index].is_signaled()));
    contest.hold(session);
}
