//! Locks that stand outside of the order: who took what inside what is on record, and a circle is reported by the first
//! thread that would close it, alone. Each test has classes of its own, as the record is that of the process.
#![cfg(all(debug_assertions, not(any(loom, shuttle))))]

mod lock_reports;

use devpagemap_fence::levels::{MoveQueue, Region};
use devpagemap_fence::lockdep::{Signalling, assert_may_wait, held_count, might_evict};
use devpagemap_fence::sync::Condvar;
use devpagemap_fence::{Held, Lock, Outside, Timeline};
use lock_reports::{assert_says, object, report_of};
use std::sync::Arc;
use std::thread;

#[test]
fn two_locks_in_both_orders_are_reported_with_both_chains() {
    let cache = Arc::new(Outside::new("cache", ()));
    let index = Arc::new(Outside::new("index", ()));
    let (theirs, inner) = (cache.clone(), index.clone());
    let other = thread::Builder::new().name("the first to come".into()).spawn(move || {
        let outer = line_below!(1).clone();
        let _cache = theirs.lock();
        let inner_line = line_below!(1).clone();
        let _index = inner.lock();
        (outer, inner_line)
    });
    let (outer, inner) = other.unwrap().join().unwrap();
    let first = line_below!(1);
    let _index = index.lock();
    let second = line_below!(1);
    let report = report_of(|| cache.lock());
    assert_says(
        &report,
        &["\"cache\" (outside of the order) is taken at", "the opposite order is on record"],
    );
    assert_says(&report, &[first, second]);
    assert_says(&report, &["on record, in thread \"the first to come\"", &outer, &inner]);
    let thread = thread::current().name().unwrap().to_owned();
    assert_says(&report, &[&format!("now, in thread \"{thread}\"")]);
}

#[test]
fn a_circle_of_three_is_reported_with_every_step_of_it() {
    let (a, b, c) = (Outside::new("a of 3", ()), Outside::new("b of 3", ()), Outside::new("c of 3", ()));
    let mut places = Vec::new();
    for (outer, inner) in [(&a, &b), (&b, &c)] {
        places.extend([line_below!(1).clone(), line_below!(2).clone()]);
        let _outer = outer.lock();
        let _inner = inner.lock();
    }
    let _c = c.lock();
    let report = report_of(|| a.lock());
    assert_says(&report, &places.iter().map(String::as_str).collect::<Vec<_>>());
    let (first, second) = (report.find("1. \"a of 3\""), report.rfind("1. \"b of 3\""));
    assert!(first.is_some() && first < second, "from what is wanted to what is held: {report}");
}

#[test]
fn an_order_that_was_refused_is_not_on_record() {
    let (a, b) = (Outside::new("right first", ()), Outside::new("right second", ()));
    let rightly = || {
        let _a = a.lock();
        let _b = b.lock();
    };
    rightly();
    let _report = report_of(|| {
        let _b = b.lock();
        let _a = a.lock();
    });
    rightly();
    assert_eq!(held_count(), 0);
}

#[test]
fn one_order_from_many_threads_is_never_reported() {
    let locks: Arc<Vec<Outside<u32>>> =
        Arc::new(["one", "two", "three", "four"].map(|name| Outside::new(name, 0)).into());
    let threads: Vec<_> = (0..8usize)
        .map(|thread| {
            let locks = locks.clone();
            thread::spawn(move || {
                for round in 0..100 {
                    let taken =
                        locks.iter().enumerate().filter(|(index, _)| (thread + round) >> index & 1 == 1);
                    let mut guards: Vec<_> = taken.map(|(_, lock)| lock.lock()).collect();
                    guards.iter_mut().for_each(|count| **count += 1);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn two_locks_of_one_class_do_not_nest() {
    let (a, b) = (Outside::new("twin", ()), Outside::new("twin", ()));
    let first = line_below!(1);
    let _a = a.lock();
    let second = line_below!(1);
    let report = report_of(|| b.lock());
    assert_says(&report, &["of one class outside of the order do not nest", first, second]);
}

#[test]
fn the_declared_order_is_on_record_before_anybody_takes_it() {
    let ledger = Outside::new("ledger of moves", ());
    let queue = Lock::<MoveQueue, _>::new("queue", ());
    let region = Lock::<Region, _>::new("region", ());
    let mut held = Held::enter();
    {
        let _queue = queue.lock(&mut held);
        let _ledger = ledger.lock();
    }
    let _ledger = ledger.lock();
    let report = report_of(|| region.lock(&mut held));
    assert_says(&report, &["by declaration: \"region\" (level Region) before \"queue\" (level MoveQueue)"]);
    assert_says(&report, &["2. \"ledger of moves\" (outside of the order) taken at"]);
}

#[test]
fn a_lock_held_while_waiting_for_a_fence_is_not_for_callbacks() {
    let driver = Arc::new(Outside::new("driver that waits", ()));
    let waiting = line_below!(3);
    {
        let _driver = driver.lock();
        assert_may_wait();
    }
    let timeline = Timeline::new("ring");
    let theirs = driver.clone();
    let wanted = line_below!(1);
    let hung = timeline.next_point().on_signal(move |_| drop(theirs.lock()));
    assert!(hung.is_ok());
    let signalled = line_below!(1);
    let report = report_of(|| timeline.signal(1));
    assert_says(&report, &["a fence callback runs since", "fence waited for at", waiting, wanted, signalled]);
}

#[test]
fn a_lock_that_callbacks_take_is_not_held_while_waiting_for_a_fence() {
    let driver = Arc::new(Outside::new("driver of callbacks", ()));
    let timeline = Timeline::new("ring");
    let fence = timeline.next_point();
    let theirs = driver.clone();
    let wanted = line_below!(1);
    let hung = fence.on_signal(move |_| drop(theirs.lock()));
    assert!(hung.is_ok());
    timeline.signal(1);
    let held = line_below!(1);
    let _driver = driver.lock();
    let waiting = line_below!(1);
    let report = report_of(|| fence.wait());
    assert_says(&report, &["may not wait for a fence at", "fence callbacks run at", wanted, held, waiting]);
}

#[test]
fn a_lock_held_while_signalling_is_not_for_callbacks() {
    let driver = Arc::new(Outside::new("driver that signals", ()));
    let timeline = Timeline::new("ring");
    let theirs = driver.clone();
    let hung = timeline.next_point().on_signal(move |_| drop(theirs.lock()));
    assert!(hung.is_ok());
    let held = line_below!(1);
    let guard = driver.lock();
    let report = report_of(|| timeline.signal(1));
    drop(guard);
    assert_says(&report, &["two locks of one class", "fence callbacks run at", held]);
}

#[test]
fn a_reservation_is_not_wanted_under_a_lock_that_signalling_takes() {
    let table = Outside::new("job table", ());
    let begun = line_below!(2);
    {
        let _signalling = Signalling::begin();
        let _table = table.lock();
    }
    let object = object();
    let mut held = Held::enter();
    let _table = table.lock();
    let wanted = line_below!(1);
    let report = report_of(|| object.0.lock(&mut held));
    assert_says(&report, &["by declaration: \"reservation\" (level Tickets) before fences"]);
    assert_says(&report, &["signalling section begun at", begun, wanted]);
}

#[test]
fn a_lock_held_while_evicting_is_not_for_signalling_sections() {
    let table = Outside::new("table of victims", ());
    let evicting = line_below!(3);
    {
        let _table = table.lock();
        might_evict();
    }
    let _signalling = Signalling::begin();
    let report = report_of(|| table.lock());
    assert_says(&report, &["a signalling section is open since", "eviction announced at", evicting]);
    assert_says(&report, &["by declaration: \"eviction\" (level Tickets) before fences"]);
}

#[test]
fn a_lock_outside_of_the_order_is_given_back_while_waiting_for_a_notification() {
    let shared = Arc::new((Outside::new("doorbell", false), Condvar::new()));
    let theirs = shared.clone();
    let ringer = thread::spawn(move || {
        *theirs.0.lock() = true;
        theirs.1.notify_all();
    });
    let mut rung = shared.0.lock();
    while !*rung {
        rung = rung.wait(&shared.1);
    }
    shared.0.assert_held();
    drop(rung);
    assert_says(&report_of(|| shared.0.assert_held()), &["\"doorbell\" is needed at", "it holds nothing"]);
    ringer.join().unwrap();
}
