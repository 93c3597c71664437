//! Tickets that lock the same objects in opposite orders.
#![cfg(loom)]

use devpagemap_fence::{Exec, Held, Interrupt, LockError, Reservable, Reservation};
use devpagemap_loom_tests::explore;
use loom::thread;
use std::sync::Arc;

struct Object(Reservation<u32>);

impl Reservable for Object {
    type State = u32;

    fn reservation(&self) -> &Reservation<u32> {
        &self.0
    }
}

fn objects() -> [Arc<Object>; 2] {
    [0, 0].map(|count| Arc::new(Object(Reservation::new(count))))
}

/// Locks `objects` in the order given and adds one to each.
fn count_up(objects: &[Arc<Object>]) {
    let mut held = Held::enter();
    let mut exec = Exec::new(&mut held);
    let locked = exec.run(|exec| {
        for object in objects {
            let slot = exec.lock(object)?;
            *exec.set_mut().state_mut(slot) += 1;
        }
        Ok::<_, LockError>(())
    });
    assert_eq!(locked, Ok(()));
}

/// As `count_up`, but counts only once all are locked, so that each count stands for one success.
fn count_once(objects: &[Arc<Object>]) {
    let mut held = Held::enter();
    let mut exec = Exec::new(&mut held);
    let locked = exec.run(|exec| {
        let slots = objects.iter().map(|object| exec.lock(object)).collect::<Result<Vec<_>, LockError>>()?;
        for slot in slots {
            *exec.set_mut().state_mut(slot) += 1;
        }
        Ok::<_, LockError>(())
    });
    assert_eq!(locked, Ok(()));
}

/// As `count_once`, but lets others run after each lock.
fn count_slowly(objects: &[Arc<Object>]) {
    let mut held = Held::enter();
    let mut exec = Exec::new(&mut held);
    let locked = exec.run(|exec| {
        for object in objects {
            exec.lock(object)?;
            thread::yield_now();
        }
        Ok::<_, LockError>(())
    });
    assert_eq!(locked, Ok(()));
    let slots: Vec<_> = exec.set().slots().collect();
    for slot in slots {
        *exec.set_mut().state_mut(slot) += 1;
    }
}

fn assert_counts(objects: &[Arc<Object>], expected: u32) {
    let mut held = Held::enter();
    for object in objects {
        assert_eq!(*object.0.lock(&mut held), expected);
    }
}

/// Two threads, at most five preemptions.
#[test]
fn two_tickets_locking_crosswise_both_finish() {
    explore(Some(5), || {
        let [a, b] = objects();
        let theirs = [b.clone(), a.clone()];
        let other = thread::spawn(move || count_once(&theirs));
        count_once(&[a.clone(), b.clone()]);
        other.join().unwrap();
        assert_counts(&[a, b], 2);
    });
}

/// Two threads, at most five preemptions. Nothing stays locked when a ticket begins again.
#[test]
fn whatever_was_locked_before_a_restart_is_unlocked_at_the_end() {
    explore(Some(5), || {
        let [a, b] = objects();
        let theirs = [b.clone(), a.clone()];
        let other = thread::spawn(move || count_up(&theirs));
        count_up(&[a.clone(), b.clone()]);
        other.join().unwrap();
        assert!(!a.0.is_locked() && !b.0.is_locked());
    });
}

/// Three threads, at most two preemptions. The main thread has the oldest ticket. A waiter that was right to wait for
/// a younger holder must give up when the oldest ticket gets the object in between.
#[test]
fn a_waiter_gives_up_when_an_older_ticket_becomes_the_holder() {
    explore(Some(2), || {
        let [a, b] = objects();
        let mut held = Held::enter();
        let mut oldest = Exec::new(&mut held);
        let crossing = [a.clone(), b.clone()];
        let crossing = thread::spawn(move || count_slowly(&crossing));
        let youngest = [b.clone()];
        let youngest = thread::spawn(move || count_slowly(&youngest));
        thread::yield_now();
        let locked = oldest.run(|exec| exec.lock(&b).and_then(|_| exec.lock(&a)));
        assert!(locked.is_ok());
        assert_eq!(oldest.restarts(), 0, "the oldest ticket never has to begin again");
        drop(oldest);
        crossing.join().unwrap();
        youngest.join().unwrap();
        assert_eq!(*a.0.lock(&mut held), 1);
        assert_eq!(*b.0.lock(&mut held), 2);
    });
}

/// Two threads, exhaustive. Somebody who locks one object alone does not make a ticket begin again for ever.
#[test]
fn a_ticket_and_a_single_lock_get_along() {
    explore(None, || {
        let [a, b] = objects();
        let theirs = b.clone();
        let single = thread::spawn(move || {
            let mut held = Held::enter();
            *theirs.0.lock(&mut held) += 1;
        });
        count_once(&[a.clone(), b.clone()]);
        single.join().unwrap();
        let mut held = Held::enter();
        assert_eq!(*b.0.lock(&mut held), 2);
    });
}

/// Two threads, exhaustive. A set passes one barrier for all that it lets go of.
#[test]
fn a_set_that_lets_go_of_two_objects_forgets_no_waiter() {
    explore(None, || {
        let [a, b] = objects();
        let theirs = b.clone();
        let single = thread::spawn(move || {
            let mut held = Held::enter();
            *theirs.0.lock(&mut held) += 1;
        });
        {
            let mut held = Held::enter();
            let mut exec = Exec::new(&mut held);
            if exec.set_mut().try_lock(&a).is_some() {
                exec.set_mut().try_lock(&b);
            }
        }
        single.join().unwrap();
        assert!(!a.0.is_locked() && !b.0.is_locked());
        let mut held = Held::enter();
        assert_eq!(*b.0.lock(&mut held), 1);
    });
}

fn waits_interruptibly(
    object: &Arc<Object>,
    interrupt: &Interrupt,
) -> thread::JoinHandle<Result<(), LockError>> {
    let (object, interrupt) = (object.clone(), interrupt.clone());
    thread::spawn(move || {
        let mut held = Held::enter();
        let mut exec = Exec::interruptible(&mut held, &interrupt);
        exec.run(|exec| exec.lock(&object)).map(drop)
    })
}

/// Two threads, exhaustive.
#[test]
fn an_interrupt_ends_a_wait_whenever_it_began() {
    explore(None, || {
        let [a, _] = objects();
        let interrupt = Interrupt::new();
        let mut held = Held::enter();
        let locked = a.0.lock(&mut held);
        let waiter = waits_interruptibly(&a, &interrupt);
        interrupt.raise();
        assert_eq!(waiter.join().unwrap(), Err(LockError::Interrupted));
        drop(locked);
        assert!(!a.0.is_locked());
    });
}

/// Two threads, exhaustive.
#[test]
fn a_wait_that_is_interrupted_beside_the_unlock_keeps_nobody_from_the_lock() {
    explore(None, || {
        let [a, _] = objects();
        let interrupt = Interrupt::new();
        let mut held = Held::enter();
        let locked = a.0.lock(&mut held);
        let waiter = waits_interruptibly(&a, &interrupt);
        interrupt.raise();
        drop(locked);
        assert!(matches!(waiter.join().unwrap(), Ok(()) | Err(LockError::Interrupted)));
        assert_eq!(*a.0.lock(&mut held), 0);
    });
}
