//! The queue of pipelined copies and the engines that perform them.
//!
//! | module | what it holds |
//! |---|---|
//! | `address` | [`Addr`], [`Extent`], [`ExtentList`]: what a move reads and writes |
//! | `piece` | [`Operation`], [`Piece`], [`Cursor`]: cutting a move into what an engine can do |
//! | `engine` | [`CopyEngine`]: what a driver implements for each of its copy engines |
//! | `queue` | [`MoveQueue`]: moves that start when their fences signal, on all engines, the urgent first |
//! | `drive`, `state`, `lane`, `schedule`, `slots` | its insides: the loop, the tables, fences in order, who is next, the engines' health |
//! | `ring`, `fragment`, `zones` | [`StagingMemory`], [`FragmentTuner`]: moves that no engine can do alone |
//! | `peer` | [`PeerQueue`]: moves out of another device's memory |
//! | `memory`, `software`, `cpu` | [`MemoryMap`], [`SoftwareEngine`], [`CpuEngine`]: engines made of this machine |
//! | [`copy`] | the copy loops |
//!
//! The kernel's cousin is the copy ring behind `ttm_bo_move_accel_cleanup` and its schedulers.

mod address;
pub mod copy;
mod cpu;
mod drive;
mod engine;
mod fragment;
mod lane;
mod ledger;
mod memory;
mod peer;
mod piece;
mod queue;
mod request;
mod ring;
mod schedule;
mod slots;
#[cfg(not(any(loom, shuttle)))]
mod software;
mod state;
mod transfer;
mod zones;

pub use address::{Addr, Extent, ExtentList, Space, SysAddr, VramAddr};
pub use cpu::CpuEngine;
pub use engine::{Chunk, Completion, CopyEngine, EngineError, Reset};
pub use fragment::{FragmentTuner, Trial};
pub use ledger::{EngineStats, MoveStats};
pub use memory::{HeapMemory, MemoryFile, MemoryMap};
pub use peer::PeerQueue;
pub use piece::{Cursor, Operation, Piece, Route};
pub use queue::{MoveQueue, MoveQueueBuilder};
pub use request::{MoveRequest, Urgency};
pub use ring::StagingMemory;
#[cfg(not(any(loom, shuttle)))]
pub use software::{Fault, SoftwareEngine};
