//! The move queue as its owner sees it.

mod faults;
mod order;
mod rig;
mod teardown;
