//! `devpagemap doctor`, `export` and `import` as scripts see them, on any machine: also on one that makes no dma-bufs, and against exporters
//! that lie. Between two processes with real dma-bufs they are tested where a kernel has those (`tests/kernel/two_processes.rs`).

mod command;
mod doctor;
mod liars;
mod sockets;
