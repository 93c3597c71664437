//! Windows in a BAR: what it costs to use one that is there, and to take the space of one for another.

use std::hint::black_box;
use std::ops::Range;
use std::time::Instant;

use devpagemap::Buffer;
use devpagemap_benches::contest::{Contest, Goal, Sample};
use devpagemap_benches::inert::{PAGE_BYTES, buffer_behind_windows};
use devpagemap_benches::picks::Random;
use devpagemap_benches::session::Session;
use parking_lot::Mutex;

/// How many windows are mapped before any is given back.
const BATCH: usize = 1024;

const COUNTS: [u64; 3] = [10, 1_000, 100_000];

fn main() {
    let mut session = Session::from_arguments();
    for count in COUNTS {
        mapped(&mut session, count);
    }
    for count in COUNTS {
        used(&mut session, count);
    }
    for count in COUNTS {
        mapped_at_random(&mut session, count);
    }
    for count in COUNTS {
        taken(&mut session, count);
    }
    session.finish();
}

fn page(index: u64) -> Range<u64> {
    index * PAGE_BYTES..(index + 1) * PAGE_BYTES
}

fn map(buffer: &Buffer, index: u64) {
    drop(black_box(buffer.window(page(index)).expect("it is shown, or can be")));
}

/// A buffer with so many windows of a page, with nobody using any.
fn with_windows(count: u64, further_pages: u64) -> Buffer {
    let buffer = buffer_behind_windows(count + further_pages, count);
    (0..count).for_each(|index| map(&buffer, index));
    buffer
}

/// The same range again and again, which is shown. The windows are given back outside of what is timed.
fn mapped(session: &mut Session, count: u64) {
    let name = format!("mapping what is shown, of {count} windows");
    if !session.wants(&name) {
        return;
    }
    let buffer = with_windows(count, 0);
    let mutex = Mutex::new(());
    let mut windows = Vec::with_capacity(BATCH);
    let mut contest = Contest::new(name, Goal::of_floor(2.0));
    contest.ours_measured(|| {
        let begin = Instant::now();
        for _ in 0..BATCH {
            windows.push(black_box(&buffer).window(page(count / 2)).expect("it is shown"));
        }
        let ns = begin.elapsed().as_nanos() as f64 / BATCH as f64;
        windows.clear();
        Sample::of(ns)
    });
    contest.floor("parking_lot Mutex, lock + unlock", || drop(black_box(&mutex).lock()));
    contest.hold(session);
}

/// The same, mapped and given back.
fn used(session: &mut Session, count: u64) {
    let name = format!("mapping and unmapping what is shown, of {count} windows");
    if !session.wants(&name) {
        return;
    }
    let buffer = with_windows(count, 0);
    let mutex = Mutex::new(());
    let mut contest = Contest::new(name, Goal::NONE);
    contest.ours(|| map(black_box(&buffer), count / 2));
    contest.floor("parking_lot Mutex, lock + unlock", || drop(black_box(&mutex).lock()));
    contest.hold(session);
}

/// Another range each time, which is shown; beside as many mutexes, another each time.
fn mapped_at_random(session: &mut Session, count: u64) {
    let name = format!("mapping and unmapping what is shown, any of {count}");
    if !session.wants(&name) {
        return;
    }
    let buffer = with_windows(count, 0);
    let mutexes: Vec<Box<Mutex<()>>> = (0..count).map(|_| Box::default()).collect();
    let (mut ours, mut theirs) = (Random::new(1), Random::new(1));
    let mut contest = Contest::new(name, Goal::NONE);
    contest.ours(|| map(&buffer, ours.below(count as usize) as u64));
    contest.floor("as many parking_lot Mutexes", || {
        drop(black_box(&mutexes[theirs.below(count as usize)]).lock());
    });
    contest.hold(session);
}

/// A range that is not shown, while the BAR is full of windows that nobody uses. The floor is the goal itself.
fn taken(session: &mut Session, count: u64) {
    let name = format!("window taken from the least recently used of {count}");
    if !session.wants(&name) {
        return;
    }
    let buffer = with_windows(count, count);
    let mut next = count;
    let mut contest = Contest::new(name, Goal::of_floor(1.0));
    contest.ours(|| {
        map(&buffer, next);
        next = (next + 1) % (2 * count);
    });
    contest.floor_measured("1 us", || Sample::of(1000.0));
    contest.hold(session);
}
