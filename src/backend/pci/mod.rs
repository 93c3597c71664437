//! Memory on the PCI bus, as Linux lets a process have it.
//!
//! ```text
//!   resourceN, resourceN_wc    a BAR, mapped as it is: the CPU reaches it, other devices by their own drivers only     bar.rs
//!   p2pmem/allocate            pages of a BAR that the kernel has taken over: O_DIRECT reaches them, so do drives       p2pmem.rs
//!   /dev/nvme0n1               a drive, which reads into such pages and writes from them                                drive.rs
//! ```
//!
//! See `docs/pci.md`.

mod bar;
mod drive;
mod function;
mod p2pmem;

pub use bar::PciBar;
pub use drive::{Drive, Transfer};
pub use p2pmem::{P2pAllocation, P2pMemory};
