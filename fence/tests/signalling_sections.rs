//! On the way from publishing a fence to its signal: what may make the fence wait for its own waiter is reported, though
//! nobody waits and nothing deadlocks.
#![cfg(all(debug_assertions, not(any(loom, shuttle))))]

mod lock_reports;

use devpagemap_fence::levels::{MoveQueue, Region};
use devpagemap_fence::lockdep::{Signalling, assert_may_wait, held_count, might_evict};
use devpagemap_fence::{Exec, Held, Lock, Timeline, Watchdog, Watched};
use lock_reports::{assert_says, object, report_of};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Instant;

#[test]
fn waiting_for_a_fence_in_a_section_is_noticed() {
    let timeline = Timeline::new("ring");
    let fence = timeline.next_point();
    timeline.signal(1);
    let begun = line_below!(1);
    let _signalling = Signalling::begin();
    let waiting = line_below!(1);
    let report = report_of(|| fence.wait());
    assert_says(
        &report,
        &["may not wait for a fence at", "a signalling section is open since", begun, waiting],
    );
}

#[test]
fn a_reservation_in_a_section_is_noticed_unless_it_is_tried() {
    let object = object();
    let mut held = Held::enter();
    let begun = line_below!(1);
    let _signalling = Signalling::begin();
    drop(object.0.try_lock().expect("nobody has it"));
    let wanted = line_below!(1);
    let report = report_of(|| object.0.lock(&mut held));
    assert_says(
        &report,
        &["lock order violated: \"reservation\"", "between Tickets and Region", begun, wanted],
    );
}

#[test]
fn a_ticket_that_asks_for_one_more_in_a_section_is_noticed() {
    let (a, b) = (object(), object());
    let mut held = Held::enter();
    let mut exec = Exec::new(&mut held);
    exec.lock(&a).unwrap();
    let begun = line_below!(1);
    let _signalling = Signalling::begin();
    let wanted = line_below!(1);
    let report = report_of(|| exec.lock(&b));
    assert_says(&report, &["a signalling section is open since", begun, wanted]);
}

#[test]
fn allocating_through_eviction_in_a_section_is_noticed() {
    let begun = line_below!(1);
    let _signalling = Signalling::begin();
    let wanted = line_below!(1);
    let report = report_of(|| might_evict());
    assert_says(&report, &["may not allocate through eviction at", begun, wanted]);
}

#[test]
fn allocating_through_eviction_under_a_region_lock_is_noticed() {
    let region = Lock::<Region, _>::new("region", ());
    let mut held = Held::enter();
    let taken = line_below!(1);
    let _region = region.lock(&mut held);
    let report = report_of(|| might_evict());
    assert_says(
        &report,
        &["may not allocate through eviction at", "\"region\" (level Region) is held", taken],
    );
}

#[test]
fn under_reservations_whatever_ticket_has_them_eviction_is_allowed() {
    let (a, b) = (object(), object());
    let mut held = Held::enter();
    {
        let mut exec = Exec::new(&mut held);
        exec.lock(&a).unwrap();
        exec.lock(&b).unwrap();
        might_evict();
    }
    let _locked = a.0.lock(&mut held);
    might_evict();
}

#[test]
fn a_section_begins_under_reservations_and_takes_inner_locks_and_signals() {
    let object = object();
    let region = Lock::<Region, _>::new("region", ());
    let queue = Lock::<MoveQueue, _>::new("queue", ());
    let timeline = Timeline::new("ring");
    let mut held = Held::enter();
    let mut locked = object.0.lock(&mut held);
    let (_, mut held) = locked.split();
    {
        let _signalling = Signalling::begin();
        let fence = timeline.next_point();
        let mut region = region.lock(&mut held);
        let (_, mut held) = region.split();
        drop(queue.lock(&mut held));
        drop(region);
        timeline.signal(fence.seqno());
        assert_eq!(held_count(), 1, "a section is no lock");
    }
    assert_may_wait();
}

#[test]
fn a_section_that_begins_under_a_region_lock_is_noticed() {
    let region = Lock::<Region, _>::new("region", ());
    let mut held = Held::enter();
    let taken = line_below!(1);
    let _region = region.lock(&mut held);
    let report = report_of(Signalling::begin);
    assert_says(&report, &["may not begin a signalling section at", taken]);
}

#[test]
fn a_section_inside_a_section_ends_nothing() {
    let begun = line_below!(1);
    let outer = Signalling::begin();
    drop(Signalling::begin());
    assert_says(&report_of(assert_may_wait), &[begun]);
    drop(outer);
    assert_may_wait();
}

#[test]
fn a_section_may_end_before_the_one_inside_it() {
    let outer = Signalling::begin();
    let begun = line_below!(1);
    let inner = Signalling::begin();
    drop(outer);
    assert_says(&report_of(assert_may_wait), &[begun]);
    drop(inner);
    assert_may_wait();
}

#[test]
fn a_section_of_one_thread_is_not_held_against_another() {
    let _signalling = Signalling::begin();
    std::thread::spawn(assert_may_wait).join().unwrap();
}

#[test]
fn a_token_may_be_made_inside_a_section() {
    let region = Lock::<Region, _>::new("region", 0);
    let _signalling = Signalling::begin();
    *region.lock(&mut Held::enter()) += 1;
}

/// What lockdep says about `body` as the callback of a fence.
fn report_of_callback(body: impl FnOnce() + Send + 'static) -> String {
    let timeline = Timeline::new("ring");
    let hung = timeline.next_point().on_signal(move |_| body());
    assert!(hung.is_ok());
    report_of(|| timeline.signal(1))
}

#[test]
fn waiting_inside_a_callback_is_noticed() {
    let other = Timeline::new("other").next_point();
    let report = report_of_callback(move || drop(other.wait()));
    assert_says(&report, &["may not wait for a fence at", "a fence callback runs since"]);
}

#[test]
fn evicting_inside_a_callback_is_noticed() {
    assert_says(
        &report_of_callback(might_evict),
        &["may not allocate through eviction at", "a fence callback"],
    );
}

#[test]
fn a_callback_that_makes_a_root_token_is_told_which_one_to_use() {
    let report = report_of_callback(|| {
        Held::enter();
    });
    assert_says(&report, &["a root token is forged at", "Held::in_destructor"]);
}

#[test]
fn a_callback_may_try_reservations_and_begin_sections_and_drop_what_takes_region_locks() {
    let timeline = Timeline::new("ring");
    let object = object();
    let region = Lock::<Region, _>::new("region", 0);
    let hung = timeline.next_point().on_signal(move |_| {
        let _signalling = Signalling::begin();
        let tried = object.0.try_lock();
        *region.lock(&mut Held::in_destructor()) += 1;
        drop(tried.expect("nobody has it"));
    });
    assert!(hung.is_ok());
    timeline.signal(1);
    assert_eq!(held_count(), 0);
}

#[test]
fn a_callback_may_take_inner_locks_while_the_signaller_holds_reservations() {
    let timeline = Timeline::new("ring");
    let region = Arc::new(Lock::<Region, _>::new("region", 0));
    let theirs = region.clone();
    let hung = timeline.next_point().on_signal(move |_| *theirs.lock(&mut Held::in_destructor()) += 1);
    assert!(hung.is_ok());
    let object = object();
    let mut held = Held::enter();
    let locked = object.0.lock(&mut held);
    timeline.signal(1);
    drop(locked);
    assert_eq!(*region.lock(&mut held), 1);
}

/// Waits for a fence where only somebody who never waits can be of use.
struct Waits(Mutex<mpsc::Sender<String>>);

impl Watched for Waits {
    fn check(&self, _now: Instant) -> Option<Instant> {
        // The test may have ended with the first report.
        let _enough = self.0.lock().unwrap().send(report_of(assert_may_wait));
        None
    }
}

#[test]
fn a_watched_thing_that_waits_for_a_fence_is_noticed() {
    let (sender, reports) = mpsc::channel();
    let watched: Arc<dyn Watched> = Arc::new(Waits(Mutex::new(sender)));
    let watchdog = Watchdog::start();
    watchdog.watch(Arc::downgrade(&watched));
    let report = reports.recv().unwrap();
    assert_says(&report, &["a signalling section is open since", "watchdog.rs"]);
}
