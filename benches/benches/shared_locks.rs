//! Locks that others want too, and fences that others read.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use devpagemap_benches::contest::{Contest, Goal, Sample};
use devpagemap_benches::pair::{Pair, run_pair};
use devpagemap_benches::peers::{Locker, Payload};
use devpagemap_benches::picks::Picks;
use devpagemap_benches::session::Session;
use devpagemap_benches::{ours, peers};
use devpagemap_fence::{Fence, Held, Timeline, Usage};
use parking_lot::{Mutex, RwLock};

/// How long two threads run in a batch: several time slices, in case somebody else wants one of the cores.
const BATCH: Duration = Duration::from_millis(40);
const ROUNDS: usize = 41;
/// Objects that they share, and how many of them each transaction locks.
const SHARED: usize = 64;
const CHOICE: usize = 16;

fn main() {
    let mut session = Session::from_arguments();
    two_threads(&mut session);
    reading_fences(&mut session, false);
    reading_fences(&mut session, true);
    session.finish();
}

/// A transaction of a peer: locks the mutexes, and says how often it had to begin again.
type PeerLocks = for<'a> fn(&mut Locker<'a>, &'a [Arc<Mutex<Payload>>], &[usize]) -> u64;

fn two_threads(session: &mut Session) {
    const NAME: &str = "two threads, each locks 16 of 64, counts, unlocks";
    if !session.wants(NAME) {
        return;
    }
    let (mut ours, mutexes) = (ours::objects(SHARED), peers::mutexes(SHARED));
    let mut contest = Contest::new(NAME, Goal::AHEAD).of_few_rounds(ROUNDS);
    contest.ours_measured(|| {
        run_transactions(false, || {
            let (mut held, mut slots) = (Held::enter(), Vec::new());
            let ours = &ours;
            move |choice: &[usize]| ours::transaction(&mut held, ours, choice, &mut slots)
        })
    });
    let peer = |presorted, lock: PeerLocks| {
        let mutexes = &mutexes;
        move || {
            run_transactions(presorted, || {
                let mut locker = Locker::new();
                move |choice: &[usize]| {
                    let restarts = lock(&mut locker, mutexes, choice);
                    locker.work();
                    locker.unlock();
                    restarts
                }
            })
        }
    };
    contest.peer_measured(
        "parking_lot, sorted each time",
        peer(false, |locker, mutexes, choice| {
            locker.lock_sorted(choice.iter().map(|&index| &*mutexes[index]));
            0
        }),
    );
    contest.shown_measured(
        "parking_lot, choices sorted beforehand",
        peer(true, |locker, mutexes, choice| {
            locker.lock_presorted(choice.iter().map(|&index| &*mutexes[index]));
            0
        }),
    );
    contest.peer_measured(
        "parking_lot, tried with back-off",
        peer(false, |locker, mutexes, choice| {
            locker.lock_by_trying(choice.iter().map(|&index| &*mutexes[index]))
        }),
    );
    contest.hold(session);
    assert!(ours::counted(&mut ours).is_multiple_of(CHOICE as u64), "a transaction was not counted in full");
}

/// Two threads run transactions that `new_thread` makes: locks, counts, unlocks, says how often it began again.
fn run_transactions<T: FnMut(&[usize]) -> u64>(presorted: bool, new_thread: impl Fn() -> T + Sync) -> Sample {
    let Pair { results: [first, second], elapsed, cores } = run_pair(BATCH, |index, clock| {
        let picks = Picks::new(index as u64, CHOICE, SHARED);
        let mut picks = if presorted { picks.sorted() } else { picks };
        let (mut transaction, mut done, mut restarts) = (new_thread(), 0, 0);
        while clock.runs() {
            restarts += transaction(picks.choose());
            done += 1;
        }
        (done as f64, restarts as f64)
    });
    let transactions = first.0 + second.0;
    let notes = vec![
        ("restarts", (first.1 + second.1) / transactions),
        ("slower/faster thread", first.0.min(second.0) / first.0.max(second.0)),
        ("cores", cores),
    ];
    Sample { ns: elapsed.as_nanos() as f64 / transactions, notes }
}

/// A list of fences behind a lock, as one would write it first.
type Listed = RwLock<Vec<(Fence, Usage)>>;

fn listed_fences(list: &Listed) -> Vec<Fence> {
    let list = list.read();
    let wanted = list.iter().filter(|(fence, usage)| *usage <= Usage::Bookkeep && !fence.is_signaled());
    wanted.map(|(fence, _)| fence.clone()).collect()
}

fn reading_fences(session: &mut Session, contended: bool) {
    let beside = if contended { "beside a thread that locks it" } else { "with nobody else there" };
    let name = format!("reading a reservation's two fences, {beside}");
    if !session.wants(&name) {
        return;
    }
    let object = ours::objects(1).remove(0);
    let timelines = [Timeline::new("moves"), Timeline::new("ring")];
    let mut held = Held::enter();
    let list = Listed::default();
    for (timeline, usage) in timelines.iter().zip([Usage::Kernel, Usage::Read]) {
        let fence = timeline.next_point();
        ours::add_fence(&mut held, &object, fence.clone(), usage);
        list.write().push((fence, usage));
    }
    let mut contest = Contest::new(name, Goal::NONE).of_few_rounds(ROUNDS);
    if contended {
        contest.ours_measured(|| {
            let lock = |held: &mut Held<'static, _>| ours::lock_single(held, &object);
            run_reader(|| drop(black_box(ours::fences(&object))), lock)
        });
        contest.peer_measured("parking_lot RwLock<Vec>", || {
            run_reader(|| drop(black_box(listed_fences(&list))), |_| drop(black_box(list.write())))
        });
    } else {
        contest.ours(|| drop(black_box(ours::fences(&object))));
        contest.peer("parking_lot RwLock<Vec>", || drop(black_box(listed_fences(&list))));
    }
    contest.hold(session);
}

/// One thread reads while another one locks and unlocks; the time of a reading.
fn run_reader(
    read: impl Fn() + Sync,
    lock: impl Fn(&mut Held<'static, devpagemap_fence::levels::Root>) + Sync,
) -> Sample {
    let Pair { results: [readings, lockings], elapsed, cores } = run_pair(BATCH, |index, clock| {
        let (mut held, mut done) = (Held::enter(), 0);
        while clock.runs() {
            if index == 0 {
                read()
            } else {
                lock(&mut held)
            }
            done += 1;
        }
        done as f64
    });
    Sample {
        ns: elapsed.as_nanos() as f64 / readings,
        notes: vec![("ns a lock + unlock beside it", elapsed.as_nanos() as f64 / lockings), ("cores", cores)],
    }
}
