//! Topologies from end to end: recorded machines, damaged files, the command itself.

mod command;
mod damaged;
mod machines;
mod recordings;
#[path = "../setup/scratch.rs"]
mod scratch;
