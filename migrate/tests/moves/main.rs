//! The move queue as its owner sees it.

mod faults;
mod lock_order;
mod order;
mod rig;
mod staging;
mod teardown;
