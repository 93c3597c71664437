//! Lockdep in release builds: the same calls, and nothing behind them. Every type is zero-sized and no lock is larger
//! for being watched, which each release build checks when it is compiled.

use std::fmt;
use std::marker::PhantomData;

use crate::levels::{Guard, Lock, Region};
use crate::outside::{Outside, OutsideGuard};
use crate::sync::{Mutex, MutexGuard};

/// A class is called nothing.
#[derive(Copy, Clone)]
pub(crate) struct ClassName;

impl ClassName {
    #[inline(always)]
    pub(crate) const fn new(_name: &'static str) -> ClassName {
        ClassName
    }

    #[inline(always)]
    pub(crate) fn get(self) -> &'static str {
        ""
    }
}

impl fmt::Debug for ClassName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

/// What locks of one rank have in common is nobody's business.
#[derive(Copy, Clone)]
pub(crate) struct Group;

impl Group {
    pub(super) const ALONE: Group = Group;

    #[inline(always)]
    pub(crate) fn fresh() -> Group {
        Group
    }
}

/// Stands for nothing; bound to its thread as the one that does.
pub(crate) struct Record {
    _not_send: PhantomData<*mut ()>,
}

const _: () = assert!(size_of::<ClassName>() == 0);
const _: () = assert!(size_of::<Record>() == 0);
const _: () = assert!(size_of::<Group>() == 0);
const _: () = assert!(size_of::<super::Signalling>() == 0);
const _: () = assert!(size_of::<super::Callback>() == 0);
const _: () = assert!(!std::mem::needs_drop::<Record>());
const _: () = assert!(size_of::<Lock<Region, u64>>() == size_of::<Mutex<u64>>());
const _: () = assert!(size_of::<Outside<u64>>() == size_of::<Mutex<u64>>());
const _: () = assert!(size_of::<Guard<'_, Region, u64>>() == size_of::<MutexGuard<'_, u64>>());
const _: () = assert!(size_of::<OutsideGuard<'_, u64>>() == size_of::<MutexGuard<'_, u64>>());

const NOTHING: Record = Record { _not_send: PhantomData };

impl Record {
    #[inline(always)]
    pub(crate) fn of(self, _instance: usize) -> Record {
        self
    }
}

#[inline(always)]
pub(crate) fn acquire(_rank: u8, _class: &'static str, _group: Group) -> Record {
    NOTHING
}

#[inline(always)]
pub(crate) fn acquire_tried(_rank: u8, _class: &'static str, _group: Group) -> Record {
    NOTHING
}

#[inline(always)]
pub(crate) fn acquire_outside(_class: &'static str) -> Record {
    NOTHING
}

#[inline(always)]
pub(crate) fn begin_section() -> Record {
    NOTHING
}

#[inline(always)]
pub(crate) fn begin_callback() -> Record {
    NOTHING
}

#[inline(always)]
pub(crate) fn assert_held(_class: &'static str, _instance: usize) {}

#[inline(always)]
pub(crate) fn enter_root() {}

#[inline(always)]
pub(super) fn may_wait() {}

#[inline(always)]
pub(super) fn may_signal() {}

#[inline(always)]
pub(super) fn might_lock(_rank: u8, _class: &'static str) {}

#[inline(always)]
pub(super) fn might_evict() {}

#[inline(always)]
pub(super) fn prime() {}

#[inline(always)]
pub(super) fn held_count() -> usize {
    0
}
