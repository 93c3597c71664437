//! Lockdep in debug builds and models: what the rest of the crate calls.
//!
//! Nothing of it takes part in a protocol, so it uses `std` directly and a model does not explore it. Held locks belong to
//! a thread of the model (the shim's `thread_local`), the graph belongs to the code and outlives a model's executions.

mod classes;
mod graph;
mod prime;
mod report;
mod rules;
mod stack;

use std::fmt;
use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering};

use super::ALONE;
use classes::{ClassId, Position};
use graph::GRAPH;
use report::report;
use rules::{Bid, Deed, Join};

pub(super) use prime::prime;
pub(crate) use stack::Record;
pub(super) use stack::held_count;

/// What a lock's class is called.
#[derive(Copy, Clone)]
pub(crate) struct ClassName(&'static str);

impl ClassName {
    pub(crate) const fn new(name: &'static str) -> ClassName {
        ClassName(name)
    }

    pub(crate) fn get(self) -> &'static str {
        self.0
    }
}

impl fmt::Debug for ClassName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What locks of one rank have in common that may be held together.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(crate) struct Group(u64);

impl Group {
    pub(super) const ALONE: Group = Group(0);

    /// A group that no other set of locks has.
    pub(crate) fn fresh() -> Group {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Group(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

fn class_of(name: &'static str, position: Position) -> ClassId {
    GRAPH.classes.id(name, position).unwrap_or_else(|error| {
        report(|| error.to_string());
        ClassId::OVERFLOW
    })
}

fn join(group: Group) -> Join {
    if group == ALONE { Join::Never } else { Join::Group(group.0) }
}

/// Notes that a lock is about to be waited for.
#[track_caller]
pub(crate) fn acquire(rank: u8, class: &'static str, group: Group) -> Record {
    let class = class_of(class, Position::Level(rank));
    let bid = Bid { class, join: join(group), deed: Deed::Take, site: Location::caller() };
    rules::enforce(&bid);
    stack::push(&bid, group.0)
}

/// Notes that a lock was taken by a try, which cannot deadlock.
#[track_caller]
pub(crate) fn acquire_tried(rank: u8, class: &'static str, group: Group) -> Record {
    let class = class_of(class, Position::Level(rank));
    let bid = Bid { class, join: join(group), deed: Deed::Try, site: Location::caller() };
    stack::push(&bid, group.0)
}

/// Notes that a lock outside of the order is about to be waited for.
#[track_caller]
pub(crate) fn acquire_outside(class: &'static str) -> Record {
    let class = class_of(class, Position::Outside);
    let bid = Bid { class, join: Join::Never, deed: Deed::Take, site: Location::caller() };
    rules::enforce(&bid);
    stack::push(&bid, ALONE.0)
}

#[track_caller]
pub(super) fn might_lock(rank: u8, class: &'static str) {
    let class = class_of(class, Position::Level(rank));
    let site = Location::caller();
    rules::enforce(&Bid { class, join: Join::Never, deed: Deed::Announce, site });
}

#[track_caller]
pub(super) fn might_evict() {
    let site = Location::caller();
    rules::enforce(&Bid { class: ClassId::EVICTION, join: Join::Always, deed: Deed::Evict, site });
}

#[track_caller]
pub(super) fn may_wait() {
    let site = Location::caller();
    rules::enforce(&Bid { class: ClassId::FENCE, join: Join::Never, deed: Deed::Wait, site });
}

#[track_caller]
pub(super) fn may_signal() {
    let site = Location::caller();
    rules::enforce(&Bid { class: ClassId::FENCE, join: Join::Always, deed: Deed::Signal, site });
}

#[track_caller]
pub(super) fn begin_section() -> Record {
    let site = Location::caller();
    let bid = Bid { class: ClassId::FENCE, join: Join::Always, deed: Deed::Section, site };
    rules::enforce(&bid);
    stack::push(&bid, ALONE.0)
}

/// Whoever signals was checked before: here the callbacks begin.
#[track_caller]
pub(super) fn begin_callback() -> Record {
    let site = Location::caller();
    stack::push(&Bid { class: ClassId::FENCE, join: Join::Always, deed: Deed::Callback, site }, ALONE.0)
}

/// Refuses to go on unless this thread holds this very lock.
#[track_caller]
pub(crate) fn assert_held(class: &'static str, instance: usize) {
    let site = Location::caller();
    if !stack::holds(instance) {
        report(|| report::not_held(class, site));
    }
}

/// Refuses a second root token inside a lock, and any root token inside a fence callback.
#[track_caller]
pub(crate) fn enter_root() {
    prime();
    let site = Location::caller();
    if let Err(forgery) = stack::enter_root(site) {
        report(|| report::forged_root(&forgery, site));
    }
}
