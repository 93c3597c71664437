//! The move queue as its owner sees it.

mod faults;
mod lock_order;
mod order;
mod pulls;
mod rig;
mod staging;
mod staging_faults;
mod staging_order;
mod teardown;
