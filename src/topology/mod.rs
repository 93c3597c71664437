//! Topology: what a machine is made of, as far as a source says so.
//!
//! ```text
//!   Machine
//!    └─ Package ─ Numa                        which CPU, which memory is near
//!        └─ HostBridge                        a root of the PCI tree
//!            └─ Bridge ─ Bridge ─ Function    ports and switches, down to GPUs, NICs, disks
//!                          └──── Function
//!   and beside the tree: private links (NVLink, xGMI), each in one direction
//! ```
//!
//! It is pure data. What a source does not say is `None`, which is never read as yes.

mod address;
mod machine;

pub use address::{PciAddress, WrongPciAddress};
pub use machine::{
    Acs, Bar, CpuInfo, CpuVendor, Function, Link, LinkKind, Machine, MachineBuilder, Node, NodeId, NodeKind,
    PciIds, PciLink, Place, PortKind, TopologyError,
};
