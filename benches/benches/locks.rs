//! Locks that nobody else wants: one object, and many at once. `shared_locks.rs` is about those that others want.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use devpagemap_benches::contest::{Contest, Goal};
use devpagemap_benches::peers::{Locker, Payload};
use devpagemap_benches::picks::Random;
use devpagemap_benches::session::Session;
use devpagemap_benches::{floors, ours, peers};
use devpagemap_fence::{Exec, Held};
use happylock::ThreadKey;
use happylock::collection::{BoxedLockCollection, RefLockCollection};
use parking_lot::RwLock;

fn main() {
    let mut session = Session::from_arguments();
    for (count, goal) in [(1, Goal::of_floor(1.25)), (16, LOCK_GOAL), (256, LOCK_GOAL)] {
        lock_all(&mut session, count, false, goal);
        if count > 1 {
            lock_all(&mut session, count, true, goal);
        }
    }
    one_reservation(&mut session);
    session.finish();
}

const LOCK_GOAL: Goal = Goal::of_floor(1.25).and_ahead();

/// Brings objects into the order of their addresses, or out of any.
fn arrange<T>(mut objects: Vec<Arc<T>>, shuffled: bool) -> Vec<Arc<T>> {
    objects.sort_unstable_by_key(Arc::as_ptr);
    if shuffled {
        Random::new(3).shuffle(&mut objects);
    }
    objects
}

fn lock_all(session: &mut Session, count: usize, shuffled: bool, goal: Goal) {
    let order = match (count, shuffled) {
        (1, _) => "",
        (_, true) => ", shuffled",
        (_, false) => ", presorted",
    };
    let name = format!("lock + unlock {count}{order}");
    if !session.wants(&name) {
        return;
    }
    let ours = arrange(ours::objects(count), shuffled);
    let floor = arrange(floors::objects(count), shuffled);
    let mutexes = arrange(peers::mutexes(count), shuffled);
    let happy = (0..count).map(|_| Arc::new(happylock::Mutex::new(Payload::default()))).collect();
    let happy: Vec<Arc<happylock::Mutex<Payload>>> = arrange(happy, shuffled);
    let happy: Vec<&happylock::Mutex<Payload>> = happy.iter().map(|mutex| &**mutex).collect();
    let happy_sorted = RefLockCollection::try_new(&happy).expect("no mutex is there twice");

    let (mut held, mut held_by_kept) = (Held::enter(), Held::enter());
    let mut kept = Exec::new(&mut held_by_kept);
    let (tickets, mut locker) = (AtomicU64::new(1), Locker::new());
    let mut key = ThreadKey::get().expect("this thread's key is nowhere else");

    let mut contest = Contest::new(name, goal);
    contest.ours(|| ours::lock_all(&mut held, black_box(&ours)));
    contest.variant("devpagemap, one Exec kept", || ours::lock_all_again(&mut kept, black_box(&ours)));
    contest.floor("ticket, one CAS and one store each", || floors::lock_all(&tickets, black_box(&floor)));
    let given = || black_box(&mutexes).iter().map(|mutex| &**mutex);
    if shuffled {
        contest.peer("parking_lot, sorted each time", || {
            locker.lock_sorted(given());
            locker.unlock();
        });
        contest.peer("happylock, sorted each time", || {
            let sorted = BoxedLockCollection::try_new(black_box(happy.clone()));
            sorted
                .expect("no mutex is there twice")
                .scoped_lock(&mut key, |payloads| drop(black_box(payloads)));
        });
    } else {
        contest.peer("parking_lot, in order", || {
            locker.lock_presorted(given());
            locker.unlock();
        });
        contest.peer("happylock, sorted once", || {
            black_box(&happy_sorted).scoped_lock(&mut key, |payloads| drop(black_box(payloads)));
        });
    }
    contest.hold(session);
}

/// One lock, without an Exec around it.
fn one_reservation(session: &mut Session) {
    let (ours, floor, mutexes) = (ours::objects(1), floors::objects(1), peers::mutexes(1));
    let lock = Arc::new(RwLock::new(Payload::default()));
    let (mut held, tickets) = (Held::enter(), AtomicU64::new(1));
    let mut contest = Contest::new("lock + unlock a single reservation", Goal::NONE);
    contest.ours(|| ours::lock_single(&mut held, black_box(&ours[0])));
    contest.floor("ticket, one CAS and one store", || floors::lock_all(&tickets, black_box(&floor)));
    contest.peer("parking_lot Mutex", || drop(black_box(black_box(&mutexes[0]).lock())));
    contest.peer("parking_lot RwLock, to write", || drop(black_box(black_box(&lock).write())));
    contest.hold(session);
}
