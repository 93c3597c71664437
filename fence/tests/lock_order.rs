//! What the types cannot see is seen at run time: only debug builds look.
#![cfg(all(debug_assertions, not(any(loom, shuttle))))]

use devpagemap_fence::levels::{Device, MoveQueue, Region, Registry};
use devpagemap_fence::lockdep::{assert_may_signal, assert_may_wait, held_count};
use devpagemap_fence::{Exec, Held, Lock, Reservable, Reservation, Timeline};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

struct Object(Reservation<()>);

impl Reservable for Object {
    type State = ();

    fn reservation(&self) -> &Reservation<()> {
        &self.0
    }
}

fn object() -> Arc<Object> {
    Arc::new(Object(Reservation::new(())))
}

#[test]
fn the_whole_order_can_be_taken_and_is_given_back() {
    let registry = Lock::<Registry, _>::new("registry", ());
    let device = Lock::<Device, _>::new("device", ());
    let region = Lock::<Region, _>::new("region", ());
    let queue = Lock::<MoveQueue, _>::new("queue", ());
    let object = object();
    let mut held = Held::enter();
    {
        let mut registry = registry.lock(&mut held);
        let (_, mut held) = registry.split();
        let mut device = device.lock(&mut held);
        let (_, mut held) = device.split();
        let mut exec = Exec::new(&mut held);
        exec.lock(&object).unwrap();
        let (_, mut held) = exec.split();
        let mut region = region.lock(&mut held);
        let (_, mut held) = region.split();
        let _queue = queue.lock(&mut held);
        assert_eq!(held_count(), 5);
    }
    assert_eq!(held_count(), 0);
}

#[test]
#[should_panic(expected = "a root token is forged")]
fn a_second_root_inside_a_lock_is_noticed() {
    let region = Lock::<Region, _>::new("region", ());
    let mut held = Held::enter();
    let _guard = region.lock(&mut held);
    Held::enter();
}

#[test]
#[should_panic(expected = "lock order violated")]
fn a_root_forged_before_the_lock_does_not_help() {
    let region = Lock::<Region, _>::new("region", ());
    let device = Lock::<Device, _>::new("device", ());
    let (mut held, mut forged) = (Held::enter(), Held::enter());
    let _guard = region.lock(&mut held);
    device.lock(&mut forged);
}

#[test]
fn a_report_names_both_places_and_the_order() {
    let region = Lock::<Region, _>::new("vram of gpu 0", ());
    let device = Lock::<Device, _>::new("gpu 0", ());
    let (mut held, mut forged) = (Held::enter(), Held::enter());
    let first_line = line!() + 1;
    let guard = region.lock(&mut held);
    let second_line = line!() + 1;
    let panic = catch_unwind(AssertUnwindSafe(|| drop(device.lock(&mut forged)))).unwrap_err();
    drop(guard);
    let report = panic.downcast_ref::<String>().expect("the report is a text");
    for part in [
        format!("lock_order.rs:{first_line}:"),
        format!("lock_order.rs:{second_line}:"),
        "\"vram of gpu 0\" (level Region)".to_owned(),
        "\"gpu 0\" (level Device)".to_owned(),
        "Root > Registry > Device > Tickets > Region > Aperture > MoveQueue > Timeline".to_owned(),
    ] {
        assert!(report.contains(&part), "{part} is missing in: {report}");
    }
}

#[test]
#[should_panic(expected = "lock order violated")]
fn two_reservations_without_a_ticket_are_noticed() {
    let (a, b) = (object(), object());
    let (mut held, mut forged) = (Held::enter(), Held::enter());
    let _a = a.0.lock(&mut held);
    b.0.lock(&mut forged);
}

#[test]
#[should_panic(expected = "lock order violated")]
fn two_tickets_in_one_thread_are_noticed() {
    let (a, b) = (object(), object());
    let (mut held, mut forged) = (Held::enter(), Held::enter());
    let (mut first, mut second) = (Exec::new(&mut held), Exec::new(&mut forged));
    first.lock(&a).unwrap();
    let _ = second.lock(&b);
}

#[test]
#[should_panic(expected = "may not wait for a fence")]
fn waiting_for_a_fence_under_a_region_lock_is_noticed_even_if_it_has_signalled() {
    let timeline = Timeline::new("ring");
    let fence = timeline.next_point();
    timeline.signal(1);
    let region = Lock::<Region, _>::new("region", ());
    let mut held = Held::enter();
    let _guard = region.lock(&mut held);
    let _ = fence.wait();
}

#[test]
#[should_panic(expected = "may not signal a fence")]
fn signalling_under_a_region_lock_is_noticed_even_if_nobody_waits() {
    let timeline = Timeline::new("ring");
    let fence = timeline.next_point();
    let region = Lock::<Region, _>::new("region", ());
    let mut held = Held::enter();
    let _guard = region.lock(&mut held);
    timeline.signal(fence.seqno());
}

#[test]
fn under_reservations_fences_may_be_signalled_and_waited_for() {
    let timeline = Timeline::new("ring");
    let fence = timeline.next_point();
    let object = object();
    let mut held = Held::enter();
    let _locked = object.0.lock(&mut held);
    assert_may_wait();
    assert_may_signal();
    timeline.signal(1);
    assert_eq!(fence.wait(), Ok(()));
}

#[test]
#[should_panic(expected = "may not wait for a fence")]
fn waiting_inside_a_callback_is_noticed() {
    let timeline = Timeline::new("ring");
    let other = Timeline::new("other").next_point();
    let hung = timeline.next_point().on_signal(move |_| drop(other.wait()));
    assert!(hung.is_ok());
    timeline.signal(1);
}

#[test]
fn a_callback_may_take_inner_locks_while_the_signaller_holds_reservations() {
    let timeline = Timeline::new("ring");
    let region = Arc::new(Lock::<Region, _>::new("region", 0));
    let theirs = region.clone();
    let hung = timeline.next_point().on_signal(move |_| {
        let mut held = Held::enter();
        *theirs.lock(&mut held) += 1;
    });
    assert!(hung.is_ok());
    let object = object();
    let mut held = Held::enter();
    let locked = object.0.lock(&mut held);
    timeline.signal(1);
    drop(locked);
    assert_eq!(*region.lock(&mut held), 1);
}

#[test]
#[should_panic(expected = "lock order violated")]
fn a_callback_that_wants_a_reservation_is_noticed() {
    let timeline = Timeline::new("ring");
    let object = object();
    let hung = timeline.next_point().on_signal(move |_| {
        let mut held = Held::enter();
        drop(object.0.lock(&mut held));
    });
    assert!(hung.is_ok());
    timeline.signal(1);
}

#[test]
fn what_one_thread_holds_is_not_held_against_another() {
    let region = Arc::new(Lock::<Region, _>::new("region", ()));
    let device = Arc::new(Lock::<Device, _>::new("device", ()));
    let mut held = Held::enter();
    let guard = region.lock(&mut held);
    std::thread::spawn(move || drop(device.lock(&mut Held::enter()))).join().unwrap();
    drop(guard);
}
