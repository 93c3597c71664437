//! Machines: built by hand and at random, read from sysfs and from dumps of real configuration spaces, compared.

mod builder;
mod changes;
mod config_space;
mod live;
mod lspci;
mod made_up;
mod paths;
mod random;
mod recordings;
mod saved;
mod tree;
