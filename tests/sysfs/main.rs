//! Machines read from sysfs, and configuration spaces from dumps of real ones.

mod config_space;
mod live;
mod lspci;
mod made_up;
mod recordings;
mod saved;
mod tree;
