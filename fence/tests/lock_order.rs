//! The declared order at run time: what the types cannot see. Only debug builds look.
#![cfg(all(debug_assertions, not(any(loom, shuttle))))]

mod lock_reports;

use devpagemap_fence::levels::{Aperture, Device, MoveQueue, ORDER, Region, Registry, Root};
use devpagemap_fence::lockdep::{
    Signalling, assert_may_signal, assert_may_wait, held_count, might_evict, might_lock,
};
use devpagemap_fence::{Exec, FenceSet, Held, Lock, LockError, Timeline};
use lock_reports::{assert_says, object, report_of};
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;

/// Two root tokens of one thread: what types cannot see.
fn two_roots() -> [Held<'static, Root>; 2] {
    [Held::enter(), Held::enter()]
}

#[test]
fn the_whole_order_can_be_taken_and_is_given_back() {
    let registry = Lock::<Registry, _>::new("registry", ());
    let device = Lock::<Device, _>::new("device", ());
    let region = Lock::<Region, _>::new("region", ());
    let aperture = Lock::<Aperture, _>::new("aperture", ());
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
        let mut aperture = aperture.lock(&mut held);
        let (_, mut held) = aperture.split();
        let _queue = queue.lock(&mut held);
        assert_eq!(held_count(), 6);
    }
    assert_eq!(held_count(), 0);
}

#[test]
fn a_second_root_inside_a_lock_is_noticed_and_the_report_names_the_first() {
    let region = Lock::<Region, _>::new("region", ());
    let first = line_below!(1);
    let mut held = Held::enter();
    let lock = line_below!(1);
    let _guard = region.lock(&mut held);
    let second = line_below!(1);
    let report = report_of(|| Held::enter());
    assert_says(&report, &["a root token is forged at", "hand the token down", first, lock, second]);
}

#[test]
fn a_root_forged_before_the_lock_does_not_help_and_the_report_names_both_roots() {
    let region = Lock::<Region, _>::new("region", ());
    let device = Lock::<Device, _>::new("device", ());
    let first = line_below!(1);
    let mut held = Held::enter();
    let second = line_below!(1);
    let mut forged = Held::enter();
    let _guard = region.lock(&mut held);
    let report = report_of(|| device.lock(&mut forged));
    assert_says(
        &report,
        &["lock order violated", "the last root token of this thread was made at", first, second],
    );
}

#[test]
fn a_report_names_both_places_and_the_order() {
    let region = Lock::<Region, _>::new("vram of gpu 0", ());
    let device = Lock::<Device, _>::new("gpu 0", ());
    let [mut held, mut forged] = two_roots();
    let first = line_below!(1);
    let guard = region.lock(&mut held);
    let second = line_below!(1);
    let report = report_of(|| device.lock(&mut forged));
    drop(guard);
    let parts = [
        first,
        second,
        "\"vram of gpu 0\" (level Region)",
        "\"gpu 0\" (level Device)",
        "Root > Registry > Device > Tickets > Region > Aperture > MoveQueue > Timeline",
    ];
    assert_says(&report, &parts);
}

#[test]
fn a_report_lists_everything_that_is_held_and_where_it_was_taken() {
    let registry = Lock::<Registry, _>::new("registry", ());
    let region = Lock::<Region, _>::new("region", ());
    let queue = Lock::<MoveQueue, _>::new("queue", ());
    let aperture = Lock::<Aperture, _>::new("aperture", ());
    let [mut held, mut forged] = two_roots();
    let outer = line_below!(1);
    let mut registry = registry.lock(&mut held);
    let (_, mut held) = registry.split();
    let middle = line_below!(1);
    let mut region = region.lock(&mut held);
    let (_, mut held) = region.split();
    let inner = line_below!(1);
    let _queue = queue.lock(&mut held);
    let wanted = line_below!(1);
    let report = report_of(|| aperture.lock(&mut forged));
    let thread = std::thread::current().name().unwrap().to_owned();
    assert_says(&report, &[&thread, "1. \"registry\"", "2. \"region\"", "3. \"queue\"", "4. \"aperture\""]);
    assert_says(&report, &[outer, middle, inner, wanted]);
}

#[test]
fn a_report_shows_the_right_order_where_somebody_took_it() {
    let device = Arc::new(Lock::<Device, _>::new("a device taken rightly", ()));
    let region = Arc::new(Lock::<Region, _>::new("a region taken rightly", ()));
    let (theirs, inner) = (device.clone(), region.clone());
    let right = std::thread::Builder::new().name("somebody".into()).spawn(move || {
        let mut held = Held::enter();
        let outer = line_below!(1).clone();
        let mut device = theirs.lock(&mut held);
        let (_, mut held) = device.split();
        let inner_line = line_below!(1).clone();
        drop(inner.lock(&mut held));
        (outer, inner_line)
    });
    let (outer, inner) = right.unwrap().join().unwrap();
    let [mut held, mut forged] = two_roots();
    let _guard = region.lock(&mut held);
    let report = report_of(|| device.lock(&mut forged));
    assert_says(&report, &["the other way round, on record, in thread \"somebody\"", &outer, &inner]);
}

#[test]
fn two_reservations_without_a_ticket_are_noticed() {
    let (a, b) = (object(), object());
    let [mut held, mut forged] = two_roots();
    let first = line_below!(1);
    let _a = a.0.lock(&mut held);
    let second = line_below!(1);
    let report = report_of(|| b.0.lock(&mut forged));
    assert_says(&report, &["lock order violated", "together by one ticket", first, second]);
}

#[test]
fn two_tickets_in_one_thread_are_noticed() {
    let (a, b) = (object(), object());
    let [mut held, mut forged] = two_roots();
    let (mut first, mut second) = (Exec::new(&mut held), Exec::new(&mut forged));
    let earlier = line_below!(1);
    first.lock(&a).unwrap();
    let later = line_below!(1);
    let report = report_of(|| second.lock(&b));
    assert_says(&report, &["lock order violated", "together by one ticket", earlier, later]);
}

#[test]
fn a_second_ticket_is_nobodys_business_while_the_first_holds_nothing() {
    let (a, b) = (object(), object());
    let [mut held, mut other] = two_roots();
    let (mut first, mut second) = (Exec::new(&mut held), Exec::new(&mut other));
    first.lock(&a).unwrap();
    first.unlock_all();
    second.lock(&b).unwrap();
    second.lock(&a).unwrap();
    assert_eq!(held_count(), 2);
}

#[test]
fn one_ticket_holds_as_many_as_it_likes_however_often_it_begins_again() {
    let objects: Vec<_> = (0..100).map(|_| object()).collect();
    let mut held = Held::enter();
    let mut exec = Exec::new(&mut held);
    let done = exec.run(|exec| {
        objects.iter().rev().try_for_each(|object| exec.lock(object).map(drop))?;
        objects.iter().try_for_each(|object| exec.lock(object).map(drop))
    });
    assert_eq!(done, Ok::<_, LockError>(()));
    assert_eq!(held_count(), 100);
    drop(exec);
    assert_eq!(held_count(), 0);
}

#[test]
fn a_single_reservation_beside_a_ticket_is_noticed() {
    let (a, b) = (object(), object());
    let [mut held, mut forged] = two_roots();
    let mut exec = Exec::new(&mut held);
    let first = line_below!(1);
    exec.lock(&a).unwrap();
    let second = line_below!(1);
    let report = report_of(|| b.0.lock(&mut forged));
    assert_says(&report, &["together by one ticket", first, second]);
}

#[test]
fn a_ticket_beside_a_single_reservation_is_noticed() {
    let (a, b) = (object(), object());
    let [mut held, mut forged] = two_roots();
    let mut exec = Exec::new(&mut forged);
    let first = line_below!(1);
    let _a = a.0.lock(&mut held);
    let second = line_below!(1);
    let report = report_of(|| exec.lock(&b));
    assert_says(&report, &["together by one ticket", first, second]);
}

#[test]
fn a_reservation_may_be_tried_at_any_point() {
    let (a, b, c) = (object(), object(), object());
    let region = Lock::<Region, _>::new("region", ());
    let [mut held, mut other] = two_roots();
    let mut exec = Exec::new(&mut held);
    exec.lock(&a).unwrap();
    let _region = region.lock(&mut other);
    assert!(exec.set_mut().try_lock(&b).is_some());
    assert!(c.0.try_lock().is_some());
}

#[test]
fn a_reservation_that_was_tried_counts_when_the_next_is_waited_for() {
    let (a, b) = (object(), object());
    let first = line_below!(1);
    let tried = a.0.try_lock().unwrap();
    let mut held = Held::in_destructor();
    let region = Lock::<Region, _>::new("region", ());
    drop(region.lock(&mut held));
    let report = {
        let report = report_of(|| Held::enter());
        assert_says(&report, &["forged", first]);
        drop(tried);
        let [mut held, mut forged] = two_roots();
        let mut exec = Exec::new(&mut held);
        let _tried = exec.set_mut().try_lock(&a).unwrap();
        report_of(|| b.0.lock(&mut forged))
    };
    assert_says(&report, &["together by one ticket", "\"reservation\" (level Tickets) tried at"]);
}

#[test]
fn a_path_that_seldom_locks_is_found_by_the_first_call_that_does_not() {
    fn seldom(device: &Lock<Device, u32>, very_seldom: bool, held: &mut Held<'_, Root>) {
        might_lock::<Device>("device");
        if very_seldom {
            *device.lock(held) += 1;
        }
    }
    let region = Lock::<Region, _>::new("region", ());
    let device = Lock::<Device, _>::new("device", 0);
    let [mut held, mut forged] = two_roots();
    let first = line_below!(1);
    let guard = region.lock(&mut held);
    let report = report_of(|| seldom(&device, false, &mut forged));
    assert_says(&report, &["\"device\" (level Device) might be taken at", "lock_order.rs", first]);
    drop(guard);
    seldom(&device, false, &mut forged);
    seldom(&device, true, &mut forged);
    assert_eq!(held_count(), 0, "what might be taken is not held");
}

#[test]
fn who_needs_a_lock_to_be_held_says_so_and_means_that_very_lock() {
    let (vram, gtt) = (Lock::<Region, _>::new("region", ()), Lock::<Region, _>::new("region", ()));
    let mut held = Held::enter();
    let taken = line_below!(1);
    let guard = vram.lock(&mut held);
    vram.assert_held();
    let needed = line_below!(1);
    let report = report_of(|| gtt.assert_held());
    assert_says(&report, &["\"region\" is needed at", "does not hold it", taken, needed]);
    drop(guard);
    assert_says(&report_of(|| vram.assert_held()), &["it holds nothing"]);
}

#[test]
fn what_one_thread_holds_another_does_not() {
    let region = Arc::new(Lock::<Region, _>::new("region", ()));
    let device = Arc::new(Lock::<Device, _>::new("device", ()));
    let mut held = Held::enter();
    let guard = region.lock(&mut held);
    let theirs = region.clone();
    let other = std::thread::spawn(move || {
        drop(device.lock(&mut Held::enter()));
        report_of(|| theirs.assert_held())
    });
    assert_says(&other.join().unwrap(), &["it holds nothing"]);
    region.assert_held();
    drop(guard);
}

/// Takes a lock when its thread has ended.
struct LocksAtTheEnd(Arc<Lock<Region, u32>>);

impl Drop for LocksAtTheEnd {
    fn drop(&mut self) {
        might_lock::<Region>("region");
        *self.0.lock(&mut Held::in_destructor()) += 1;
        *self.0.lock(&mut Held::enter()) += 1;
    }
}

#[test]
fn a_thread_whose_locals_are_gone_may_still_lock() {
    std::thread_local! {
        static KEPT: std::cell::OnceCell<LocksAtTheEnd> = const { std::cell::OnceCell::new() };
    }
    let region = Arc::new(Lock::<Region, _>::new("region", 0));
    let theirs = region.clone();
    let thread = std::thread::spawn(move || {
        // Locals end in the opposite order of their first use: what is held ends before what is kept.
        KEPT.with(|kept| assert!(kept.set(LocksAtTheEnd(theirs.clone())).is_ok()));
        assert_eq!(*theirs.lock(&mut Held::enter()), 0);
    });
    thread.join().unwrap();
    assert_eq!(*region.lock(&mut Held::enter()), 2);
}

#[test]
fn waiting_for_a_fence_under_a_region_lock_is_noticed_even_if_it_has_signalled() {
    let timeline = Timeline::new("ring");
    let fence = timeline.next_point();
    timeline.signal(1);
    let region = Lock::<Region, _>::new("region", ());
    let mut held = Held::enter();
    let first = line_below!(1);
    let _guard = region.lock(&mut held);
    let second = line_below!(1);
    let report = report_of(|| fence.wait());
    assert_says(&report, &["may not wait for a fence", "between Tickets and Region", first, second]);
}

#[test]
fn waiting_for_a_set_under_a_region_lock_is_noticed_even_if_it_is_empty() {
    let region = Lock::<Region, _>::new("region", ());
    let mut held = Held::enter();
    let _guard = region.lock(&mut held);
    let waiting = line_below!(1);
    let report = report_of(|| FenceSet::new().wait());
    assert_says(&report, &["may not wait for a fence", waiting]);
    let waiting = line_below!(1);
    let report = report_of(|| FenceSet::new().wait_timeout(Duration::ZERO));
    assert_says(&report, &["may not wait for a fence", waiting]);
}

#[test]
fn signalling_under_a_region_lock_is_noticed_even_if_nobody_waits() {
    let timeline = Timeline::new("ring");
    let fence = timeline.next_point();
    let region = Lock::<Region, _>::new("region", ());
    let mut held = Held::enter();
    let first = line_below!(1);
    let _guard = region.lock(&mut held);
    let second = line_below!(1);
    let report = report_of(|| timeline.signal(fence.seqno()));
    assert_says(&report, &["may not signal a fence", first, second]);
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

/// One lock a level, and what they have in common once they are taken.
struct OneOfEach {
    registry: Lock<Registry, ()>,
    device: Lock<Device, ()>,
    region: Lock<Region, ()>,
    aperture: Lock<Aperture, ()>,
    queue: Lock<MoveQueue, ()>,
    timeline: Lock<devpagemap_fence::levels::Timeline, ()>,
}

trait Guarding {}
impl<T> Guarding for T {}

impl OneOfEach {
    const LEVELS: usize = 6;
    const REGION: usize = 2;

    fn new() -> OneOfEach {
        OneOfEach {
            registry: Lock::new("registry", ()),
            device: Lock::new("device", ()),
            region: Lock::new("region", ()),
            aperture: Lock::new("aperture", ()),
            queue: Lock::new("queue", ()),
            timeline: Lock::new("timeline", ()),
        }
    }

    fn lock<'a>(&'a self, level: usize, root: &'a mut Held<'static, Root>) -> Box<dyn Guarding + 'a> {
        match level {
            0 => Box::new(self.registry.lock(root)),
            1 => Box::new(self.device.lock(root)),
            2 => Box::new(self.region.lock(root)),
            3 => Box::new(self.aperture.lock(root)),
            4 => Box::new(self.queue.lock(root)),
            _ => Box::new(self.timeline.lock(root)),
        }
    }

    /// Takes locks of these levels in this order, each with a root of its own.
    fn take(&self, levels: &[usize]) {
        let mut roots: Vec<_> = levels.iter().map(|_| Held::enter()).collect();
        let taken = levels.iter().zip(&mut roots).map(|(level, root)| self.lock(*level, root));
        let guards: Vec<_> = taken.collect();
        assert_eq!(held_count(), guards.len());
    }
}

#[test]
fn the_property_below_takes_every_level_that_has_locks() {
    let not_locks = ["Root", "Tickets"];
    assert_eq!(OneOfEach::LEVELS, ORDER.iter().filter(|level| !not_locks.contains(level)).count());
}

proptest! {
    #[test]
    fn a_legal_sequence_is_never_reported_and_with_two_exchanged_it_always_is(
        levels in prop::sample::subsequence((0..OneOfEach::LEVELS).collect::<Vec<_>>(), 2..=OneOfEach::LEVELS),
        first in any::<prop::sample::Index>(),
        second in any::<prop::sample::Index>(),
    ) {
        let locks = OneOfEach::new();
        locks.take(&levels);
        let (first, second) = (first.index(levels.len()), second.index(levels.len()));
        let mut exchanged = levels.clone();
        exchanged.swap(first, second);
        if first == second {
            locks.take(&exchanged);
        } else {
            let report = report_of(|| locks.take(&exchanged));
            prop_assert!(report.contains("lock order violated"), "{report}");
        }
        prop_assert_eq!(held_count(), 0);
    }

    #[test]
    fn fences_may_be_waited_for_and_signalled_exactly_while_no_region_or_inner_lock_is_held(
        levels in prop::sample::subsequence((0..OneOfEach::LEVELS).collect::<Vec<_>>(), 0..=OneOfEach::LEVELS),
    ) {
        let locks = OneOfEach::new();
        let mut roots: Vec<_> = levels.iter().map(|_| Held::enter()).collect();
        let guards: Vec<_> =
            levels.iter().zip(&mut roots).map(|(level, root)| locks.lock(*level, root)).collect();
        let is_legal = levels.iter().all(|level| *level < OneOfEach::REGION);
        for deed in [assert_may_wait, assert_may_signal, might_evict, || drop(Signalling::begin())] {
            prop_assert_eq!(std::panic::catch_unwind(deed).is_ok(), is_legal);
        }
        prop_assert_eq!(held_count(), guards.len());
    }
}
