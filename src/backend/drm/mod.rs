//! The kernel's DRM devices, as far as memory goes: nodes by their driver's name, buffers, and dma-bufs in and out.
//!
//! | file | what it is about |
//! |---|---|
//! | `node.rs` | which nodes there are, and opening one by its driver's name |
//! | `prime.rs` | handles of buffers, counted; dma-bufs in and out |
//! | `dumb.rs` | buffers that any driver makes |
//!
//! Numbers of calls that belong to one driver mean something else to another, so such calls take a type that only a node of that driver
//! becomes ([`VgemNode`], [`VirtioGpuNode`]).

mod dumb;
mod node;
mod prime;

pub(crate) use node::{DrmNode, NodeFound, NodeKind, VgemNode, VirtioGpuNode};
pub(crate) use prime::GemHandle;
