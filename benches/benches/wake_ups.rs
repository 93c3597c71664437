//! Waking a thread that sleeps: until it runs, and the signal call alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use devpagemap_benches::contest::{Contest, Goal, Sample};
use devpagemap_benches::peers::{ListenerEvent, ParkingLotEvent, StdEvent};
use devpagemap_benches::session::Session;
use devpagemap_benches::sleeper::{Sleeper, WakeUp};
use devpagemap_benches::spread::Spread;
use devpagemap_fence::Timeline;
use rustix::thread::futex;

/// Wake-ups a batch.
const WAKE_UPS: usize = 9;

fn main() {
    let mut session = Session::from_arguments();
    let sleeper = Sleeper::new();
    hold(&mut session, &sleeper, "waking a sleeping thread, until it runs", Goal::of_floor(1.1), |wake_up| {
        wake_up.latency_ns
    });
    hold(&mut session, &sleeper, "waking a sleeping thread, the signal call", Goal::NONE, |wake_up| {
        wake_up.signal_ns
    });
    session.finish();
}

/// The median of some wake-ups.
fn batch(figure: fn(WakeUp) -> f64, mut wake_up: impl FnMut() -> WakeUp) -> Sample {
    Sample::of(Spread::of((0..WAKE_UPS).map(|_| figure(wake_up()))).median)
}

fn hold(session: &mut Session, sleeper: &Sleeper, name: &str, goal: Goal, figure: fn(WakeUp) -> f64) {
    let timeline = Timeline::new("bench");
    let mut contest = Contest::new(name, goal);
    contest.ours_measured(|| batch(figure, || wake_by_fence(sleeper, &timeline)));
    contest.floor_measured("bare futex", || batch(figure, || wake_by_futex(sleeper)));
    contest.peer_measured("std park + unpark", || batch(figure, || wake_by_unpark(sleeper)));
    contest.peer_measured("parking_lot Mutex + Condvar", || {
        batch(figure, || wake_by(sleeper, ParkingLotEvent::wait, ParkingLotEvent::signal))
    });
    contest.peer_measured("std Mutex + Condvar", || {
        batch(figure, || wake_by(sleeper, StdEvent::wait, StdEvent::signal))
    });
    contest.peer_measured("event-listener", || {
        batch(figure, || wake_by(sleeper, ListenerEvent::wait, ListenerEvent::signal))
    });
    contest.peer_measured("tokio oneshot", || batch(figure, || wake_by_oneshot(sleeper)));
    contest.hold(session);
}

fn wake_by_fence(sleeper: &Sleeper, timeline: &Timeline) -> WakeUp {
    let fence = timeline.next_point();
    let seqno = fence.seqno();
    sleeper.wake(move || fence.wait().expect("the point does not fail"), || timeline.signal(seqno))
}

fn wake_by_futex(sleeper: &Sleeper) -> WakeUp {
    let signalling = Arc::new(AtomicU32::new(0));
    let waiting = signalling.clone();
    let wait = move || {
        while waiting.load(Ordering::Acquire) == 0 {
            // Woken, interrupted or too late: the word says what is true.
            let _woken = futex::wait(&waiting, futex::Flags::PRIVATE, 0, None);
        }
    };
    sleeper.wake(wait, || {
        signalling.store(1, Ordering::Release);
        futex::wake(&signalling, futex::Flags::PRIVATE, 1).expect("the word is a futex");
    })
}

fn wake_by_unpark(sleeper: &Sleeper) -> WakeUp {
    let signalling = Arc::new(AtomicBool::new(false));
    let waiting = signalling.clone();
    let wait = move || {
        while !waiting.load(Ordering::Acquire) {
            std::thread::park();
        }
    };
    sleeper.wake(wait, || {
        signalling.store(true, Ordering::Release);
        sleeper.thread().unpark();
    })
}

fn wake_by_oneshot(sleeper: &Sleeper) -> WakeUp {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let wait = move || receiver.blocking_recv().expect("the sender sends before it goes");
    sleeper.wake(wait, || sender.send(()).expect("the receiver waits"))
}

/// For events that are shared by who waits and who signals.
fn wake_by<E: Default + Send + Sync + 'static>(sleeper: &Sleeper, wait: fn(&E), signal: fn(&E)) -> WakeUp {
    let signalling = Arc::new(E::default());
    let waiting = signalling.clone();
    sleeper.wake(move || wait(&waiting), || signal(&signalling))
}
