//! Does the past cost anything? A timeline that has signalled very many points and a reservation that has seen a million
//! fences, beside new ones: they are to be as fast and as small.

use std::alloc::System;
use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;

use devpagemap_benches::contest::{Contest, Goal};
use devpagemap_benches::ours::{self, Object};
use devpagemap_benches::session::{Row, Session};
use devpagemap_fence::levels::Root;
use devpagemap_fence::{Fence, Held, Timeline, Usage};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

/// Counts what is allocated. That costs a little, for old and new alike.
#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// As fast as new, within what two measurements of the same thing differ.
const AS_FAST: Goal = Goal::of_floor(1.1);

fn main() {
    let mut session = Session::from_arguments();
    timeline(&mut session);
    reservation(&mut session);
    session.finish();
}

/// Bytes that are allocated and not given back.
fn live_bytes() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// Makes something; how many bytes it keeps beside it.
fn sized<T>(make: impl FnOnce() -> T) -> (T, usize) {
    let before = live_bytes();
    let made = make();
    (made, live_bytes() - before)
}

fn file_sizes(session: &mut Session, name: &str, old: usize, new: usize) {
    if !session.wants(name) {
        return;
    }
    println!("\n{name}\n  with a past {old} bytes, new {new} bytes");
    let (verdict, of) = (if old <= new { "met" } else { "MISSED" }, old as f64 / new.max(1) as f64);
    let goal = format!("no larger than new: {verdict}");
    let cells = [name, &format!("{old} B"), &format!("{new} B"), &format!("{of:.2}x"), "-", "-", &goal];
    session.file(Row(cells.map(String::from)));
}

fn points(session: &Session) -> u64 {
    match (session.is_full(), session.is_long()) {
        (false, _) => 1_000_000,
        (true, false) => 100_000_000,
        (true, true) => 1_000_000_000,
    }
}

fn timeline(session: &mut Session) {
    let points = points(session);
    let name = format!("create + signal, after {:.0e} points", points as f64);
    let memory = format!("memory of a timeline, after {:.0e} points", points as f64);
    if !session.wants(&name) && !session.wants(&memory) {
        return;
    }
    let aged = || {
        let timeline = Timeline::new("bench");
        (0..points).for_each(|_| ours::create_and_signal(&timeline));
        timeline
    };
    let ((old, old_bytes), (new, new_bytes)) = (sized(aged), sized(|| Timeline::new("bench")));
    let mut contest = Contest::new(&name, AS_FAST);
    contest.ours(|| ours::create_and_signal(black_box(&old)));
    contest.floor("a new timeline", || ours::create_and_signal(black_box(&new)));
    contest.hold(session);
    file_sizes(
        session,
        &format!("memory of a timeline, after {:.0e} points", points as f64),
        old_bytes,
        new_bytes,
    );
}

/// Fences that a reservation has seen, and how many of them are outstanding at any time. A multiple of rings times
/// usages, so that old and new end with the same kinds of fences.
const SEEN: usize = 12 * 83_334;
const OUTSTANDING: usize = 4;

/// Work on a buffer by several rings, of which the latest is outstanding.
struct Work {
    object: Arc<Object>,
    timelines: [Timeline; 3],
    outstanding: VecDeque<(usize, Fence)>,
    next: usize,
}

impl Work {
    fn new() -> Work {
        let timelines = ["moves", "ring 0", "ring 1"].map(Timeline::new);
        let mut work = Work {
            object: ours::objects(1).remove(0),
            timelines,
            outstanding: VecDeque::with_capacity(OUTSTANDING + 1),
            next: 0,
        };
        let mut held = Held::enter();
        (0..2 * OUTSTANDING).for_each(|_| work.go_on(&mut held));
        work
    }

    /// One more fence is added; the oldest one signals.
    fn go_on(&mut self, held: &mut Held<'_, Root>) {
        let ring = self.next % self.timelines.len();
        let usage = Usage::ALL[self.next % Usage::ALL.len()];
        self.next += 1;
        let fence = self.timelines[ring].next_point();
        ours::add_fence(held, &self.object, fence.clone(), usage);
        self.outstanding.push_back((ring, fence));
        if self.outstanding.len() > OUTSTANDING
            && let Some((ring, oldest)) = self.outstanding.pop_front()
        {
            self.timelines[ring].signal(oldest.seqno());
        }
    }
}

fn reservation(session: &mut Session) {
    const ADDING: &str = "adding a fence, after a million fences";
    const READING: &str = "reading the fences, after a million fences";
    const MEMORY: &str = "memory of a reservation, after a million fences";
    if ![ADDING, READING, MEMORY].into_iter().any(|name| session.wants(name)) {
        return;
    }
    let mut held = Held::enter();
    let aged = || {
        let mut work = Work::new();
        (0..SEEN).for_each(|_| work.go_on(&mut held));
        work
    };
    let ((mut old, old_bytes), (mut new, new_bytes)) = (sized(aged), sized(Work::new));
    file_sizes(session, MEMORY, old_bytes, new_bytes);
    let mut reading = Contest::new(READING, AS_FAST);
    reading.ours(|| drop(black_box(ours::fences(black_box(&old.object)))));
    reading.floor("a new reservation", || drop(black_box(ours::fences(black_box(&new.object)))));
    reading.hold(session);
    let mut held_by_new = Held::enter();
    let mut adding = Contest::new(ADDING, AS_FAST);
    adding.ours(|| old.go_on(&mut held));
    adding.floor("a new reservation", || new.go_on(&mut held_by_new));
    adding.hold(session);
}
