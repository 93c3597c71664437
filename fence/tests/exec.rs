//! One thread with an Exec: locking, duplicates, slots, several rounds.
#![cfg(not(any(loom, shuttle)))]

use devpagemap_fence::levels::Region;
use devpagemap_fence::{Exec, Held, Lock, LockError, Reservable, Reservation, Slot, Timeline, Usage};
use std::sync::{Arc, mpsc};
use std::thread;

struct Object(Reservation<u32>);

impl Reservable for Object {
    type State = u32;

    fn reservation(&self) -> &Reservation<u32> {
        &self.0
    }
}

fn object(value: u32) -> Arc<Object> {
    Arc::new(Object(Reservation::new(value)))
}

#[test]
fn a_new_exec_holds_nothing() {
    let mut held = Held::enter();
    let exec = Exec::<Object>::new(&mut held);
    assert!(exec.set().is_empty());
    assert_eq!(exec.restarts(), 0);
}

#[test]
fn a_locked_object_is_locked_until_the_exec_is_dropped() {
    let a = object(7);
    let mut held = Held::enter();
    let mut exec = Exec::new(&mut held);
    let slot = exec.run(|exec| exec.lock(&a)).unwrap();
    assert!(a.0.is_locked() && a.0.try_lock().is_none());
    assert_eq!(*exec.set().state(slot), 7);
    *exec.set_mut().state_mut(slot) += 1;
    drop(exec);
    assert!(!a.0.is_locked());
    assert_eq!(*a.0.lock(&mut held), 8);
}

#[test]
fn an_object_can_be_unlocked_and_locked_again() {
    let a = object(0);
    let mut held = Held::enter();
    let mut exec = Exec::new(&mut held);
    let first = exec.lock(&a).unwrap();
    exec.set_mut().unlock(first);
    assert!(!a.0.is_locked() && exec.set().slot_of(&a).is_none());
    let second = exec.lock(&a).unwrap();
    assert!(a.0.is_locked());
    assert_ne!(first, second);
}

#[test]
fn an_object_asked_for_twice_gives_the_same_slot() {
    let (a, b) = (object(0), object(1));
    let mut held = Held::enter();
    let mut exec = Exec::new(&mut held);
    let first = exec.lock(&a).unwrap();
    let other = exec.lock(&b).unwrap();
    assert_eq!(exec.lock(&a), Ok(first));
    assert_eq!(exec.set_mut().try_lock(&b), Some(other));
    assert_eq!(exec.set().slot_of(&b), Some(other));
    assert_eq!(exec.set().len(), 2);
}

#[test]
fn fences_are_added_to_many_objects_in_reserved_slots() {
    let objects: Vec<_> = (0..16).map(object).collect();
    let timeline = Timeline::new("ring");
    let mut held = Held::enter();
    let mut exec = Exec::new(&mut held);
    let slots = exec.run(|exec| {
        let slots = objects.iter().map(|object| exec.lock(object)).collect::<Result<Vec<Slot>, _>>()?;
        slots.iter().for_each(|slot| exec.set_mut().reserve_fences(*slot, 2).unwrap());
        Ok::<_, LockError>(slots)
    });
    let fence = timeline.next_point();
    for slot in slots.unwrap() {
        exec.set_mut().add_fence(slot, fence.clone(), Usage::Write);
        assert_eq!(exec.set().fences(slot, Usage::Write).len(), 1);
    }
    drop(exec);
    assert!(objects.iter().all(|object| !object.0.fences(Usage::Read).is_signaled()));
    timeline.signal(1);
    assert!(objects.iter().all(|object| object.0.fences(Usage::Read).is_signaled()));
}

#[test]
fn several_rounds_in_one_function_each_begin_with_nothing() {
    let (a, b) = (object(0), object(1));
    let mut held = Held::enter();
    for objects in [[&a, &b], [&b, &a]] {
        let mut exec = Exec::new(&mut held);
        let locked = exec.run(|exec| objects.iter().try_for_each(|object| exec.lock(*object).map(drop)));
        assert_eq!(locked, Ok(()));
        assert_eq!(exec.set().len(), 2);
    }
    let mut exec = Exec::new(&mut held);
    exec.run(|exec| exec.lock(&a)).unwrap();
    exec.unlock_all();
    assert!(!a.0.is_locked());
    exec.run(|exec| exec.lock(&b)).unwrap();
    assert!(exec.set().slot_of(&a).is_none() && exec.set().slot_of(&b).is_some());
}

#[test]
fn an_error_that_is_not_contention_ends_the_run_and_unlocks_everything() {
    let a = object(0);
    let mut held = Held::enter();
    let mut exec = Exec::new(&mut held);
    let mut calls = 0;
    let result: Result<(), &str> = exec.run(|exec| {
        calls += 1;
        exec.lock(&a).map_err(|_| "contended")?;
        Err("no such thing")
    });
    assert_eq!((result, calls), (Err("no such thing"), 1));
    assert!(!a.0.is_locked() && exec.set().is_empty());
}

#[test]
fn slots_stay_what_they_are_while_others_come_and_go() {
    let objects: Vec<_> = (0..6).map(object).collect();
    let mut held = Held::enter();
    let mut exec = Exec::new(&mut held);
    let slots: Vec<Slot> = objects.iter().map(|object| exec.lock(object).unwrap()).collect();
    exec.set_mut().unlock(slots[1]);
    exec.set_mut().unlock(slots[4]);
    let late = object(9);
    let slot = exec.lock(late).unwrap();
    for index in [0, 2, 3, 5] {
        assert_eq!(*exec.set().state(slots[index]), index as u32);
        assert!(Arc::ptr_eq(&exec.set().arc(slots[index]), &objects[index]));
    }
    assert_eq!(*exec.set().state(slot), 9);
    assert_eq!(exec.set().slots().count(), 5);
    assert!(exec.set().slots().all(|slot| exec.set().slot_of(exec.set().object(slot)) == Some(slot)));
}

#[test]
#[should_panic(expected = "was unlocked before")]
fn a_stale_slot_is_refused_even_when_its_place_is_taken() {
    let (a, b) = (object(0), object(1));
    let mut held = Held::enter();
    let mut exec = Exec::new(&mut held);
    let stale = exec.lock(&a).unwrap();
    exec.set_mut().unlock(stale);
    exec.lock(&b).unwrap();
    exec.set().state(stale);
}

#[test]
fn an_object_that_was_given_lives_as_long_as_it_is_locked() {
    let a = object(3);
    let weak = Arc::downgrade(&a);
    let mut held = Held::enter();
    let mut exec = Exec::new(&mut held);
    let slot = exec.lock(a).unwrap();
    assert_eq!(*exec.set().state(slot), 3);
    drop(exec);
    assert!(weak.upgrade().is_none());
}

#[test]
fn under_a_region_lock_others_can_be_tried() {
    let region = Lock::<Region, u32>::new("region", 0);
    let (mine, victim, busy) = (object(0), object(1), object(2));
    let (mut held, mut barrier) = (Held::enter(), Busy::lock(&busy));
    let mut exec = Exec::new(&mut held);
    exec.lock(&mine).unwrap();
    let (set, mut held) = exec.split();
    let guard = region.lock(&mut held);
    let slot = set.try_lock(&victim).expect("nobody holds it");
    assert!(set.try_lock(&busy).is_none());
    drop(guard);
    assert_eq!(*set.state(slot), 1);
    barrier.unlock();
    assert!(set.try_lock(&busy).is_some());
}

/// An object locked by another thread until told to unlock it.
struct Busy {
    unlock: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Busy {
    fn lock(object: &Arc<Object>) -> Busy {
        let object = object.clone();
        let (locked, is_locked) = mpsc::channel();
        let (unlock, wanted) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut held = Held::enter();
            let _guard = object.0.lock(&mut held);
            locked.send(()).unwrap();
            assert!(wanted.recv().is_err(), "the sender is dropped");
        });
        is_locked.recv().unwrap();
        Busy { unlock: Some(unlock), thread: Some(thread) }
    }

    fn unlock(&mut self) {
        self.unlock = None;
        self.thread.take().into_iter().for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn a_run_inside_a_run_leaves_the_restart_to_the_outer_one() {
    let a = object(0);
    let mut held = Held::enter();
    let mut exec = Exec::new(&mut held);
    let slots = exec.run(|exec| {
        let outer = exec.lock(&a)?;
        let inner = exec.run(|exec| exec.lock(&a))?;
        Ok::<_, LockError>((outer, inner))
    });
    let (outer, inner) = slots.unwrap();
    assert_eq!(outer, inner);
}

#[test]
fn an_object_that_was_given_is_given_back_by_a_restart_an_unlock_and_an_error() {
    let (a, b) = (object(0), object(1));
    let mut held = Held::enter();
    let mut exec = Exec::new(&mut held);
    let slot = exec.lock(a.clone()).unwrap();
    assert_eq!(Arc::strong_count(&a), 2);
    exec.set_mut().unlock(slot);
    assert_eq!(Arc::strong_count(&a), 1);
    let failed: Result<(), &str> = exec.run(|exec| {
        exec.lock(a.clone()).map_err(|_| "contended")?;
        exec.lock(b.clone()).map_err(|_| "contended")?;
        Err("for another reason")
    });
    assert_eq!(failed, Err("for another reason"));
    assert_eq!((Arc::strong_count(&a), Arc::strong_count(&b)), (1, 1));
    exec.lock(a.clone()).unwrap();
    exec.lock(a.clone()).unwrap();
    assert_eq!(Arc::strong_count(&a), 2, "asking again for what is held keeps no second reference");
    drop(exec);
    assert_eq!(Arc::strong_count(&a), 1);
}

#[test]
fn hundreds_of_objects_keep_their_slots_and_are_all_unlocked() {
    let objects: Vec<_> = (0..300).map(object).collect();
    let mut held = Held::enter();
    let mut exec = Exec::new(&mut held);
    let slots: Vec<_> = objects.iter().map(|object| exec.lock(object).unwrap()).collect();
    for index in (0..300).step_by(7) {
        exec.set_mut().unlock(slots[index]);
    }
    for (index, slot) in slots.iter().enumerate().filter(|(index, _)| index % 7 != 0) {
        assert_eq!(*exec.set().state(*slot), index as u32);
        assert_eq!(exec.set().slot_of(&objects[index]), Some(*slot));
    }
    for index in (0..300).step_by(7) {
        assert!(!objects[index].0.is_locked());
        let again = exec.lock(&objects[index]).unwrap();
        assert_ne!(again, slots[index], "a slot that was given up does not name the next object");
    }
    assert_eq!(exec.set().len(), 300);
    exec.unlock_all();
    assert!(objects.iter().all(|object| !object.0.is_locked()));
    assert_eq!(exec.set().len(), 0);
}

#[test]
fn a_sealed_exec_goes_on_holding_and_can_still_change_publish_and_unlock() {
    let (a, b) = (object(1), object(2));
    let timeline = Timeline::new("ring");
    let mut held = Held::enter();
    let mut exec = Exec::new(&mut held);
    let slots = exec.run(|exec| Ok::<_, LockError>([exec.lock(&a)?, exec.lock(&b)?])).unwrap();
    exec.set_mut().reserve_fences(slots[0], 1).unwrap();
    let mut sealed = exec.seal();
    *sealed.state_mut(slots[1]) += 40;
    sealed.add_fence(slots[0], timeline.next_point(), Usage::Write);
    sealed.unlock(slots[0]);
    assert!(!a.0.is_locked() && b.0.is_locked());
    assert_eq!((*sealed.state(slots[1]), sealed.len()), (42, 1));
    drop(sealed);
    assert!(!b.0.is_locked());
    assert!(!a.0.is_idle(Usage::Write));
    timeline.signal(1);
    assert!(a.0.is_idle(Usage::Bookkeep));
}
