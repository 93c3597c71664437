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

/// The same objects in several orders: first by address, then random. One random order alone would be learnt by heart by
/// the processor's branch predictor, to the advantage of those who sort.
struct Orders<T> {
    orders: Vec<Vec<T>>,
}

/// Objects in all random orders together.
const SHUFFLED: usize = 1 << 16;

impl<T: Clone> Orders<T> {
    fn new(objects: Vec<T>, address: impl Fn(&T) -> usize) -> Orders<T> {
        let mut orders = vec![objects];
        orders[0].sort_unstable_by_key(address);
        let mut random = Random::new(3);
        for shuffle in 0..SHUFFLED / orders[0].len() {
            orders.push(orders[shuffle].clone());
            random.shuffle(&mut orders[shuffle + 1]);
        }
        Orders { orders }
    }

    /// One random order after the other, or always that of the addresses.
    fn turns(&self, shuffled: bool) -> Turns<'_, T> {
        Turns { orders: if shuffled { &self.orders[1..] } else { &self.orders[..1] }, next: 0 }
    }
}

impl<T> Orders<Arc<T>> {
    fn of_shared(objects: Vec<Arc<T>>) -> Self {
        Orders::new(objects, |object| Arc::as_ptr(object) as usize)
    }
}

impl<'a, T> Orders<&'a T> {
    fn of_borrowed(objects: &'a [Arc<T>]) -> Self {
        let objects = objects.iter().map(|object| &**object).collect();
        Orders::new(objects, |object| std::ptr::from_ref(*object) as usize)
    }
}

struct Turns<'a, T> {
    orders: &'a [Vec<T>],
    next: usize,
}

impl<'a, T> Turns<'a, T> {
    #[inline]
    fn next(&mut self) -> &'a [T] {
        self.next = if self.next + 1 < self.orders.len() { self.next + 1 } else { 0 };
        black_box(&self.orders[self.next])
    }
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
    let (ours, floor) = (Orders::of_shared(ours::objects(count)), Orders::of_shared(floors::objects(count)));
    let mutexes = peers::mutexes(count);
    let happy: Vec<_> = (0..count).map(|_| Arc::new(happylock::Mutex::new(Payload::default()))).collect();
    let (mutexes, happy) = (Orders::of_borrowed(&mutexes), Orders::of_borrowed(&happy));
    let happy_sorted = RefLockCollection::try_new(&happy.orders[0]).expect("no mutex is there twice");

    let (mut held, mut held_by_kept) = (Held::enter(), Held::enter());
    let mut kept = Exec::new(&mut held_by_kept);
    let (tickets, mut locker) = (AtomicU64::new(1), Locker::new());
    let mut key = ThreadKey::get().expect("this thread's key is nowhere else");

    let mut contest = Contest::new(name, goal);
    let (mut again, mut ours, mut floor) =
        (ours.turns(shuffled), ours.turns(shuffled), floor.turns(shuffled));
    contest.ours(|| ours::lock_all(&mut held, ours.next()));
    contest.variant("devpagemap, one Exec kept", || ours::lock_all_again(&mut kept, again.next()));
    contest.floor("ticket, one CAS and one store each", || floors::lock_all(&tickets, floor.next()));
    let (mut mutexes, mut happy) = (mutexes.turns(shuffled), happy.turns(shuffled));
    if shuffled {
        contest.peer("parking_lot, sorted each time", || {
            locker.lock_sorted(mutexes.next().iter().copied());
            locker.unlock();
        });
        contest.peer("happylock, sorted each time", || {
            let sorted =
                BoxedLockCollection::try_new(happy.next().to_vec()).expect("no mutex is there twice");
            sorted.scoped_lock(&mut key, |payloads| drop(black_box(payloads)));
        });
    } else {
        contest.peer("parking_lot, in order", || {
            locker.lock_presorted(mutexes.next().iter().copied());
            locker.unlock();
        });
        contest.peer("happylock, sorted once", || {
            black_box(&happy_sorted).scoped_lock(&mut key, |payloads| drop(black_box(payloads)));
        });
    }
    contest.hold(session);
}

/// One lock by somebody who needs no other.
fn one_reservation(session: &mut Session) {
    let (ours, floor, mutexes) = (ours::objects(1), floors::objects(1), peers::mutexes(1));
    let lock = Arc::new(RwLock::new(Payload::default()));
    let (mut held, tickets) = (Held::enter(), AtomicU64::new(1));
    let mut contest = Contest::new("lock + unlock 1, without a ticket", Goal::of_floor(1.25));
    contest.ours(|| ours::lock_single(&mut held, black_box(&ours[0])));
    contest.floor("ticket, one CAS and one store", || floors::lock_all(&tickets, black_box(&floor)));
    contest.peer("parking_lot Mutex", || drop(black_box(black_box(&mutexes[0]).lock())));
    contest.peer("parking_lot RwLock, to write", || drop(black_box(black_box(&lock).write())));
    contest.hold(session);
}
