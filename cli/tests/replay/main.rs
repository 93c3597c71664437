//! Replays from end to end: recordings, the built-in workload, broken files, broken engines, the command itself.

mod broken_engines;
mod broken_input;
mod built_in_frames;
mod car_chase;
mod command_line;
mod radeon;
mod recordings;
#[path = "../setup/scratch.rs"]
mod scratch;
