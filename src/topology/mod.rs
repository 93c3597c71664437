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
mod builder;
mod change;
mod config_space;
mod describe;
mod fabric;
mod function;
mod hwloc;
mod label;
mod link;
mod machine;
mod nccl;
mod path;
mod source;
mod sysfs;
mod xml;

pub use address::{PciAddress, WrongPciAddress};
pub use builder::{MAX_DEPTH, MachineBuilder};
pub use change::{Change, Lanes, Part, PrivateLink};
pub use config_space::{Capability, ConfigSpace, Express, ResizableBar, WrongConfigSpace};
pub use describe::{NodeLine, NodeName, PathLines, Rate};
pub use function::{Acs, Bar, BarSizes, Function, PciIds, PortKind, Vram};
pub use label::Label;
pub use link::{Link, LinkKind, PciLink, parse_pci_speed, pci_bytes_per_s};
pub use machine::{CpuInfo, CpuVendor, Machine, Node, NodeId, NodeKind, RootBus};
pub use path::Path;
pub use source::{Note, Place, TopologyError};

#[cfg(not(any(loom, shuttle)))]
pub(crate) use sysfs::{Resource, dir_of_function, text};
