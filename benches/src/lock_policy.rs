//! Wound-wait and wait-die, in the smallest locks that can follow them, to see which rule serves better.
//!
//! Both rules give every transaction a stamp, keep it over restarts, and never let the oldest one lose. They differ in
//! who begins again when two want the same object:
//!
//! ```text
//!                          the older one asks                  the younger one asks
//!   wait-die               waits                               lets go of everything (dies)
//!   wound-wait             waits, and wounds the holder,       waits
//!                          who lets go of everything
//! ```
//!
//! A lock is one word: the stamp of the holder and its seat, or 0. Everything else is the same for both rules: how one
//! waits (spinning for a while, then yielding or sleeping, whichever the setting says), that whoever holds nothing waits
//! for anybody, that a free lock is taken by whoever comes first, and what a restart is: let go of everything, yield
//! once, lock the contended object (holding nothing), begin again.
//!
//! **Sleeping.** Each object has a bell, a futex, that counts the occasions to look again. Who wants to sleep first says
//! so (`sleepers` of the object, `asleep_at` of its seat) and then looks at the word and at its wounds; who unlocks or
//! wounds first changes those and then looks who sleeps. All of that is sequentially consistent, so one of them sees the
//! other. An unlock rings for everybody, since a change of holder may change for each of them whether it may wait.
//!
//! Threads are pinned to the cores in turn, or the scheduler may put two on one core, where they never meet.
//!
//! When does a wounded transaction notice? *Eagerly*, whenever it has got another lock or finds one taken; or *lazily*,
//! only when it finds one taken, as somebody who is about to get all its locks need not be stopped. Both are here.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::futex;

use crate::cores::{core_time, pin_to_core};
use crate::picks::Picks;

/// Objects there are.
pub const OBJECTS: usize = 64;
/// Payload of an object in words of 64 bits.
const PAYLOAD: usize = 8;
/// Seats there are: one a thread.
const SEATS: usize = 16;
const SEAT_BITS: u32 = 8;

/// Who begins again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The younger one that asks.
    WaitDie,
    /// The younger one that holds, when it gets or misses another lock.
    WoundWaitEager,
    /// The younger one that holds, when it misses another lock.
    WoundWaitLazy,
}

impl Rule {
    /// All of them.
    pub const ALL: [Rule; 3] = [Rule::WaitDie, Rule::WoundWaitEager, Rule::WoundWaitLazy];

    /// As it is called in tables.
    pub fn name(self) -> &'static str {
        match self {
            Rule::WaitDie => "wait-die",
            Rule::WoundWaitEager => "wound-wait, eager",
            Rule::WoundWaitLazy => "wound-wait, lazy",
        }
    }
}

#[repr(align(128))]
struct Object {
    word: AtomicU64,               // stamp and seat of the holder, or 0
    sleepers: AtomicU32,           // who sleeps here or is about to
    bell: AtomicU32,               // changes when there is reason to look again
    payload: [AtomicU64; PAYLOAD], // the holder's; atomic only so that the compiler lets it be shared
}

impl Object {
    fn new() -> Object {
        Object {
            word: AtomicU64::new(0),
            sleepers: AtomicU32::new(0),
            bell: AtomicU32::new(0),
            payload: [const { AtomicU64::new(0) }; PAYLOAD],
        }
    }

    fn ring(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            self.bell.fetch_add(1, Ordering::SeqCst);
            futex::wake(&self.bell, futex::Flags::PRIVATE, i32::MAX as u32).expect("the bell is a futex");
        }
    }

    /// Counts one transaction, by loads and stores that lose some unless one thread is here at a time.
    fn work(&self) {
        for word in &self.payload {
            word.store(word.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }
}

/// Where others find the transaction of one thread.
#[repr(align(128))]
struct Seat {
    wound: AtomicU64, // stamp of the wounded transaction, and the object that it is in the way of
    asleep_at: AtomicUsize, // the object at which the thread sleeps or is about to, or `NOWHERE`
}

const NOWHERE: usize = usize::MAX;

/// The objects, the seats, and the stamps.
struct Arena {
    objects: Vec<Object>,
    seats: [Seat; SEATS],
    stamps: AtomicU64,
}

impl Arena {
    fn new() -> Arena {
        Arena {
            objects: (0..OBJECTS).map(|_| Object::new()).collect(),
            seats: [const { Seat { wound: AtomicU64::new(0), asleep_at: AtomicUsize::new(NOWHERE) } }; SEATS],
            stamps: AtomicU64::new(1),
        }
    }
}

/// How one waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Spins for about a microsecond, then yields, again and again.
    Yields,
    /// Spins for about a microsecond, then sleeps.
    Sleeps,
    /// Spins for about ten microseconds, then sleeps.
    SpinsAndSleeps,
}

impl Waiting {
    /// All of them.
    pub const ALL: [Waiting; 3] = [Waiting::Yields, Waiting::Sleeps, Waiting::SpinsAndSleeps];

    /// As it is called in tables.
    pub fn name(self) -> &'static str {
        match self {
            Waiting::Yields => "1 us, yields",
            Waiting::Sleeps => "1 us, sleeps",
            Waiting::SpinsAndSleeps => "10 us, sleeps",
        }
    }

    /// Pauses, each twice as long as the one before, until one has spun enough.
    fn pauses(self) -> u32 {
        if self == Waiting::SpinsAndSleeps { 9 } else { 6 }
    }
}

/// The object for which a transaction has to begin again.
struct Contended(usize);

struct Transaction<'a> {
    arena: &'a Arena,
    rule: Rule,
    waiting: Waiting,
    seat: usize,
    word: u64, // stamp and seat
    held: &'a mut Vec<usize>,
}

impl Transaction<'_> {
    fn is_older_than(&self, holder: u64) -> bool {
        self.word < holder
    }

    /// The object in whose way this transaction is, if somebody has said so.
    fn wounded_for(&self) -> Option<usize> {
        let wound = self.arena.seats[self.seat].wound.load(Ordering::SeqCst);
        (wound >> SEAT_BITS == self.word >> SEAT_BITS).then_some(wound as usize & ((1 << SEAT_BITS) - 1))
    }

    fn wound_if_younger(&self, holder: u64, index: usize) {
        if self.rule == Rule::WaitDie || !self.is_older_than(holder) {
            return;
        }
        let seat = &self.arena.seats[holder as usize & ((1 << SEAT_BITS) - 1)];
        if seat.wound.load(Ordering::SeqCst) >> SEAT_BITS == holder >> SEAT_BITS {
            return;
        }
        seat.wound.fetch_max((holder >> SEAT_BITS) << SEAT_BITS | index as u64, Ordering::SeqCst);
        if let Some(object) = self.arena.objects.get(seat.asleep_at.load(Ordering::SeqCst)) {
            object.ring();
        }
    }

    /// What the rule says when `holder` has the object.
    fn may_wait(&self, holder: u64, index: usize) -> Result<(), Contended> {
        let holds = !self.held.is_empty();
        match self.rule {
            Rule::WaitDie if holds && !self.is_older_than(holder) => Err(Contended(index)),
            Rule::WaitDie => Ok(()),
            Rule::WoundWaitEager | Rule::WoundWaitLazy => {
                self.wound_if_younger(holder, index);
                if holds && self.wounded_for().is_some() { Err(Contended(index)) } else { Ok(()) }
            }
        }
    }

    fn lock(&mut self, index: usize) -> Result<(), Contended> {
        let mut pauses = 0;
        while let Err(holder) = self.try_lock(index) {
            self.may_wait(holder, index)?;
            if pauses < self.waiting.pauses() {
                (0..1 << pauses).for_each(|_| std::hint::spin_loop());
                pauses += 1;
            } else if self.waiting == Waiting::Yields {
                std::thread::yield_now();
            } else {
                self.sleep(holder, index);
            }
        }
        self.held.push(index);
        match self.wounded_for() {
            Some(wanted) if self.rule == Rule::WoundWaitEager => Err(Contended(wanted)),
            _ => Ok(()),
        }
    }

    /// Takes the lock if it is free; otherwise, who has it.
    fn try_lock(&self, index: usize) -> Result<(), u64> {
        let word = &self.arena.objects[index].word;
        match word.load(Ordering::Relaxed) {
            0 => word.compare_exchange(0, self.word, Ordering::Acquire, Ordering::Relaxed).map(drop),
            holder => Err(holder),
        }
    }

    /// Sleeps until there is reason to look again, if `holder` still has the object and nobody has wounded this one.
    fn sleep(&self, holder: u64, index: usize) {
        let (object, seat) = (&self.arena.objects[index], &self.arena.seats[self.seat]);
        object.sleepers.fetch_add(1, Ordering::SeqCst);
        seat.asleep_at.store(index, Ordering::SeqCst);
        let bell = object.bell.load(Ordering::SeqCst);
        let wounded = !self.held.is_empty() && self.wounded_for().is_some();
        if object.word.load(Ordering::SeqCst) == holder && !wounded {
            // The wound may have been for an earlier time that it had the object, and forgotten with that.
            self.wound_if_younger(holder, index);
            // Woken, interrupted or too late: the word says what is true.
            let _woken = futex::wait(&object.bell, futex::Flags::PRIVATE, bell, None);
        }
        seat.asleep_at.store(NOWHERE, Ordering::SeqCst);
        object.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn unlock_all(&mut self) {
        for index in self.held.drain(..) {
            let object = &self.arena.objects[index];
            match self.waiting {
                Waiting::Yields => object.word.store(0, Ordering::Release),
                Waiting::Sleeps | Waiting::SpinsAndSleeps => {
                    object.word.swap(0, Ordering::SeqCst);
                    object.ring();
                }
            }
        }
    }

    fn lock_all(&mut self, choice: &[usize], locked: Option<usize>) -> Result<(), Contended> {
        choice.iter().filter(|&&index| Some(index) != locked).try_for_each(|&index| self.lock(index))
    }

    /// Locks, works for so long, unlocks; how often it had to begin again.
    fn run(&mut self, choice: &[usize], work: Duration) -> u64 {
        let mut restarts = 0;
        let mut locked = None;
        while let Err(Contended(index)) = self.lock_all(choice, locked) {
            restarts += 1;
            self.unlock_all();
            std::thread::yield_now();
            // What it was wounded for it has let go of.
            self.arena.seats[self.seat].wound.store(0, Ordering::SeqCst);
            locked = self.lock(index).is_ok().then_some(index);
            if locked.is_none() {
                // Wounded again as soon as it had it.
                self.unlock_all();
            }
        }
        choice.iter().for_each(|&index| self.arena.objects[index].work());
        let begin = Instant::now();
        while !work.is_zero() && begin.elapsed() < work {
            std::hint::spin_loop();
        }
        self.unlock_all();
        restarts
    }
}

/// What came of some threads that ran transactions for a while.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Transactions a second, of all threads together.
    pub per_second: f64,
    /// Restarts a transaction.
    pub restarts: f64,
    /// How long transactions took, from the first lock to the last unlock, over all restarts, in nanoseconds; sorted.
    pub latencies_ns: Vec<f64>,
    /// Cores that it had on average; less than there are, when others wanted them or everybody slept.
    pub cores: f64,
    /// Transactions of the slowest thread divided by those of the fastest.
    pub fairness: f64,
}

struct Thread {
    restarts: u64,
    latencies_ns: Vec<f64>,
}

fn run_thread(arena: &Arena, setting: &Setting, seat: usize, stop: &AtomicBool) -> Thread {
    let Setting { rule, waiting, count, work, .. } = *setting;
    pin_to_core(seat);
    let mut picks = Picks::new(seat as u64, count, OBJECTS);
    let (mut held, mut thread) = (Vec::new(), Thread { restarts: 0, latencies_ns: Vec::new() });
    while !stop.load(Ordering::Relaxed) {
        let choice = picks.choose();
        let begin = Instant::now();
        let stamp = arena.stamps.fetch_add(1, Ordering::Relaxed);
        let word = stamp << SEAT_BITS | seat as u64;
        thread.restarts +=
            Transaction { arena, rule, waiting, seat, word, held: &mut held }.run(choice, work);
        thread.latencies_ns.push(begin.elapsed().as_nanos() as f64);
    }
    thread
}

/// What is compared.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Who begins again.
    pub rule: Rule,
    /// How one waits.
    pub waiting: Waiting,
    /// Threads that run transactions.
    pub threads: usize,
    /// Objects that each transaction locks.
    pub count: usize,
    /// How long it works when it has them, beside counting.
    pub work: Duration,
}

/// Lets the threads of a setting run transactions for `time`.
///
/// # Panics
/// When the objects have not counted as many transactions as there were: a lock was held twice.
pub fn measure(setting: &Setting, time: Duration) -> Outcome {
    let Setting { rule, threads, count, .. } = *setting;
    let (arena, stop, start) = (Arena::new(), AtomicBool::new(false), Barrier::new(threads + 1));
    let (results, elapsed, cores) = std::thread::scope(|scope| {
        let (arena, stop, start) = (&arena, &stop, &start);
        let spawn = |seat: usize| {
            scope.spawn(move || {
                start.wait();
                run_thread(arena, setting, seat, stop)
            })
        };
        let handles: Vec<_> = (0..threads).map(spawn).collect();
        start.wait();
        let (begin, core_time_before) = (Instant::now(), core_time());
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        let join =
            |handle: std::thread::ScopedJoinHandle<'_, Thread>| handle.join().expect("a thread panicked");
        let results: Vec<Thread> = handles.into_iter().map(join).collect();
        let elapsed = begin.elapsed();
        let cores = (core_time() - core_time_before).as_secs_f64() / elapsed.as_secs_f64();
        (results, elapsed, cores)
    });
    let transactions: usize = results.iter().map(|thread| thread.latencies_ns.len()).sum();
    let counted: u64 = arena.objects.iter().map(|object| object.payload[0].load(Ordering::Relaxed)).sum();
    assert_eq!(counted, (transactions * count) as u64, "{}: an object had two holders at once", rule.name());
    sum_up(results, transactions, elapsed, cores)
}

fn sum_up(results: Vec<Thread>, transactions: usize, elapsed: Duration, cores: f64) -> Outcome {
    let counts = || results.iter().map(|thread| thread.latencies_ns.len() as f64);
    let (least, most) =
        counts().fold((f64::MAX, 0.0), |(low, high), count| (count.min(low), count.max(high)));
    let restarts: u64 = results.iter().map(|thread| thread.restarts).sum();
    let mut latencies_ns: Vec<f64> = results.into_iter().flat_map(|thread| thread.latencies_ns).collect();
    latencies_ns.sort_unstable_by(f64::total_cmp);
    Outcome {
        per_second: transactions as f64 / elapsed.as_secs_f64(),
        restarts: restarts as f64 / transactions.max(1) as f64,
        latencies_ns,
        cores,
        fairness: if most > 0.0 { least / most } else { 1.0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_lets_threads_that_cross_each_other_get_on_one_at_a_time() {
        let all = Rule::ALL.into_iter().flat_map(|rule| Waiting::ALL.map(|waiting| (rule, waiting)));
        for (rule, waiting) in all {
            let setting = Setting { rule, waiting, threads: 4, count: 16, work: Duration::from_micros(2) };
            let outcome = measure(&setting, Duration::from_millis(30));
            assert!(!outcome.latencies_ns.is_empty(), "{} that {waiting:?}: nobody got on", rule.name());
        }
    }
}
