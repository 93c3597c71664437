//! Many threads with an Exec each: recursion, crossing orders, rings, stress.
#![cfg(not(any(loom, shuttle)))]

use devpagemap_fence::{Exec, Held, Interrupt, LockError, Reservable, Reservation, Slot};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;

struct Object(Reservation<u64>);

impl Reservable for Object {
    type State = u64;

    fn reservation(&self) -> &Reservation<u64> {
        &self.0
    }
}

fn objects(count: usize) -> Vec<Arc<Object>> {
    (0..count).map(|_| Arc::new(Object(Reservation::new(0)))).collect()
}

/// A plain generator of numbers that look random; the seed names the run.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % below
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        (1..items.len()).rev().for_each(|last| items.swap(last, self.next(last + 1)));
    }
}

/// A thread whose ticket is older than any made from now on, and holds `object` until the sender is dropped.
fn held_by_an_older_ticket(object: &Arc<Object>) -> (thread::JoinHandle<()>, mpsc::Sender<()>) {
    let (ready, is_ready) = mpsc::channel();
    let (finish, may_finish) = mpsc::channel::<()>();
    let wanted = object.clone();
    let older = thread::spawn(move || {
        let mut held = Held::enter();
        let mut exec = Exec::new(&mut held);
        exec.lock(&wanted).unwrap();
        ready.send(()).unwrap();
        assert!(may_finish.recv().is_err(), "the sender is dropped");
    });
    is_ready.recv().unwrap();
    (older, finish)
}

fn lock_all<'o>(exec: &mut Exec<'_, 'o, Object>, objects: &'o [Arc<Object>]) -> Result<Vec<Slot>, LockError> {
    objects.iter().map(|object| exec.lock(object)).collect()
}

/// Locks all in the order given, then adds one to each.
fn count_up(objects: &[Arc<Object>]) {
    let mut held = Held::enter();
    let mut exec = Exec::new(&mut held);
    let slots = exec.run(|exec| lock_all(exec, objects)).unwrap();
    for slot in slots {
        *exec.set_mut().state_mut(slot) += 1;
    }
}

fn assert_counts(objects: Vec<Arc<Object>>, expected: u64) {
    for object in objects {
        let mut object = Arc::into_inner(object).expect("nobody else is left");
        assert_eq!(*object.0.get_mut(), expected);
    }
}

#[test]
fn locking_an_object_one_has_is_noticed_and_not_waited_for() {
    let all = objects(1);
    let mut held = Held::enter();
    let mut exec = Exec::new(&mut held);
    let first = exec.lock(&all[0]).unwrap();
    assert_eq!(exec.lock(&all[0]), Ok(first));
    assert!(all[0].0.try_lock().is_none());
}

/// Two threads that each have one object and want the other's. Both have their first before either asks for more.
#[test]
fn of_two_tickets_that_cross_the_younger_gives_way_and_both_finish() {
    let all = objects(2);
    let meet = Arc::new(Barrier::new(2));
    let restarts = Arc::new(AtomicU32::new(0));
    let threads = [[0, 1], [1, 0]].map(|[mine, other]| {
        let (all, meet, restarts) = (all.clone(), meet.clone(), restarts.clone());
        thread::spawn(move || {
            let mut held = Held::enter();
            let mut exec = Exec::new(&mut held);
            let mut met = false;
            let locked = exec.run(|exec| {
                exec.lock(&all[mine])?;
                if !std::mem::replace(&mut met, true) {
                    meet.wait();
                }
                exec.lock(&all[other])
            });
            assert!(locked.is_ok());
            restarts.fetch_add(exec.restarts(), Ordering::Relaxed);
        })
    });
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(restarts.load(Ordering::Relaxed) >= 1, "they crossed, so one of them had to give way");
}

#[test]
fn a_younger_ticket_that_holds_something_is_told_of_the_contention_at_once() {
    let all = objects(2);
    let (older, finish) = held_by_an_older_ticket(&all[0]);
    let mut held = Held::enter();
    let mut exec = Exec::new(&mut held);
    exec.lock(&all[1]).unwrap();
    assert_eq!(exec.lock(&all[0]), Err(LockError::Contended));
    drop(finish);
    exec.run(|exec| lock_all(exec, &all)).unwrap();
    assert_eq!(exec.set().len(), 2);
    older.join().unwrap();
}

#[test]
fn a_contended_object_that_is_not_asked_for_again_is_unlocked_with_the_rest() {
    let all = objects(2);
    let (older, finish) = held_by_an_older_ticket(&all[0]);
    let mut finish = Some(finish);
    let mut releaser = None;
    let mut held = Held::enter();
    let mut exec = Exec::new(&mut held);
    exec.run(|exec| {
        exec.lock(&all[1])?;
        match finish.take() {
            Some(finish) => {
                let contended = exec.lock(&all[0]).map(drop);
                // Long after whoever wants the object has gone to sleep for it.
                releaser = Some(thread::spawn({
                    let object = all[0].clone();
                    move || {
                        wait_until_queued(&object, 1);
                        drop(finish);
                    }
                }));
                contended
            }
            None => Ok(()),
        }
    })
    .unwrap();
    older.join().unwrap();
    releaser.map(thread::JoinHandle::join).unwrap().unwrap();
    assert_eq!(exec.restarts(), 1);
    assert!(all[0].0.is_locked(), "held on to by the restart");
    drop(exec);
    assert!(!all[0].0.is_locked() && !all[1].0.is_locked());
    assert_eq!(Arc::strong_count(&all[0]), 1);
}

#[test]
fn contention_that_the_body_could_do_without_is_no_reason_to_begin_again() {
    let all = objects(2);
    let (older, finish) = held_by_an_older_ticket(&all[0]);
    let mut held = Held::enter();
    let mut exec = Exec::new(&mut held);
    let without = exec.run(|exec| {
        exec.lock(&all[1])?;
        Ok::<_, LockError>(exec.lock(&all[0]).is_err())
    });
    assert_eq!((without, exec.restarts(), exec.set().len()), (Ok(true), 0, 1));
    drop(finish);
    older.join().unwrap();
}

/// `threads` tickets in a ring: each has its object and wants its neighbour's.
fn ring(threads: usize) {
    for _ in 0..20 {
        let all = objects(threads);
        let meet = Arc::new(Barrier::new(threads));
        let ring: Vec<_> = (0..threads)
            .map(|me| {
                let pair = [all[me].clone(), all[(me + 1) % threads].clone()];
                let meet = meet.clone();
                thread::spawn(move || {
                    let mut held = Held::enter();
                    let mut exec = Exec::new(&mut held);
                    let mut met = false;
                    let slots = exec.run(|exec| {
                        let mine = exec.lock(&pair[0])?;
                        if !std::mem::replace(&mut met, true) {
                            meet.wait();
                        }
                        Ok::<_, LockError>([mine, exec.lock(&pair[1])?])
                    });
                    for slot in slots.unwrap() {
                        *exec.set_mut().state_mut(slot) += 1;
                    }
                })
            })
            .collect();
        ring.into_iter().for_each(|thread| thread.join().unwrap());
        assert_counts(all, 2);
    }
}

#[test]
fn rings_of_two_to_five_tickets_resolve() {
    (2..=5).for_each(ring);
}

/// `threads` tickets that each lock all of `count` objects `rounds` times, in one order or ever another.
fn stress(threads: u64, rounds: u64, count: usize, reordered: bool) {
    let all = objects(count);
    let workers: Vec<_> = (0..threads)
        .map(|seed| {
            let mut mine = all.clone();
            thread::spawn(move || {
                let mut random = Random(seed);
                for _ in 0..rounds {
                    if reordered {
                        random.shuffle(&mut mine);
                    }
                    count_up(&mine);
                }
            })
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    assert_counts(all, threads * rounds);
}

#[test]
fn many_threads_locking_in_one_order_finish() {
    stress(6, 300, 8, false);
}

#[test]
fn many_threads_locking_in_any_order_finish() {
    stress(6, 300, 8, true);
}

#[test]
fn tickets_and_single_locks_share_the_objects() {
    let all = objects(4);
    let tickets: Vec<_> = (0..3)
        .map(|seed| {
            let mut mine = all.clone();
            thread::spawn(move || {
                let mut random = Random(seed);
                for _ in 0..400 {
                    random.shuffle(&mut mine);
                    count_up(&mine);
                }
            })
        })
        .collect();
    let singles: Vec<_> = all
        .iter()
        .map(|object| {
            let object = object.clone();
            thread::spawn(move || {
                let mut held = Held::enter();
                for _ in 0..400 {
                    *object.0.lock(&mut held) += 1;
                }
            })
        })
        .collect();
    tickets.into_iter().chain(singles).for_each(|thread| thread.join().unwrap());
    assert_counts(all, 3 * 400 + 400);
}

#[test]
fn an_interrupt_ends_a_wait_that_would_not_end_otherwise() {
    let all = objects(1);
    let (keeper, release) = held_by_an_older_ticket(&all[0]);
    let interrupt = Interrupt::new();
    let raiser = {
        let (interrupt, object) = (interrupt.clone(), all[0].clone());
        thread::spawn(move || {
            wait_until_queued(&object, 1);
            interrupt.raise();
        })
    };
    let mut held = Held::enter();
    let mut exec = Exec::interruptible(&mut held, &interrupt);
    assert_eq!(exec.run(|exec| exec.lock(&all[0])), Err(LockError::Interrupted));
    raiser.join().unwrap();
    drop(exec);
    drop(release);
    keeper.join().unwrap();
    assert!(all[0].0.try_lock().is_some(), "whoever gave up waiting is not waited for");
}

#[test]
fn an_interrupted_restart_tells_the_body_and_keeps_nothing() {
    let all = objects(2);
    let (keeper, release) = held_by_an_older_ticket(&all[1]);
    let interrupt = Interrupt::new();
    let mut held = Held::enter();
    let mut exec = Exec::interruptible(&mut held, &interrupt);
    let mut calls = 0;
    let result = exec.run(|exec| {
        calls += 1;
        exec.lock(&all[0])?;
        let locked = exec.lock(&all[1]);
        interrupt.raise();
        locked
    });
    assert_eq!((result, calls), (Err(LockError::Interrupted), 2));
    assert!(!all[0].0.is_locked());
    drop(exec);
    drop(release);
    keeper.join().unwrap();
}

#[test]
fn a_raised_interrupt_does_not_keep_anybody_from_what_is_free() {
    let all = objects(2);
    let interrupt = Interrupt::new();
    interrupt.raise();
    let mut held = Held::enter();
    let mut exec = Exec::interruptible(&mut held, &interrupt);
    assert!(exec.run(|exec| exec.lock(&all[0]).and_then(|_| exec.lock(&all[1]))).is_ok());
    interrupt.reset();
    assert!(!interrupt.is_raised());
}

#[test]
fn waiters_that_give_up_leave_the_lock_to_the_next() {
    let all = objects(1);
    let (keeper, release) = held_by_an_older_ticket(&all[0]);
    let interrupts: Vec<_> = (0..4).map(|_| Interrupt::new()).collect();
    let waiters: Vec<_> = interrupts
        .iter()
        .map(|interrupt| {
            let (interrupt, object) = (interrupt.clone(), all[0].clone());
            thread::spawn(move || {
                let mut held = Held::enter();
                let mut exec = Exec::interruptible(&mut held, &interrupt);
                exec.run(|exec| exec.lock(&object)).is_ok()
            })
        })
        .collect();
    wait_until_queued(&all[0], 4);
    interrupts[..3].iter().for_each(Interrupt::raise);
    drop(release);
    keeper.join().unwrap();
    let got: Vec<_> = waiters.into_iter().map(|waiter| waiter.join().unwrap()).collect();
    assert!(got[3], "the one that waited on has got it: {got:?}");
}

/// Waits until as many queue for the object.
fn wait_until_queued(object: &Object, count: usize) {
    while !format!("{:?}", object.0).contains(&format!("waiters: {count}")) {
        thread::yield_now();
    }
}
