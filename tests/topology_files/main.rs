//! Topology files: what is read from them, what stays unknown, and what is refused with file and line.

mod hwloc;
mod nccl;

use devpagemap::topology::{Function, Machine, NodeId};

/// The function at an address.
fn function<'a>(machine: &'a Machine, address: &str) -> &'a Function {
    machine.node(at(machine, address)).function().expect("a PCI function")
}

/// Who is at an address.
fn at(machine: &Machine, address: &str) -> NodeId {
    machine.at(address.parse().expect("an address")).unwrap_or_else(|| panic!("nothing is at {address}"))
}

/// The label of the way between two addresses.
fn label(machine: &Machine, from: &str, to: &str) -> String {
    machine.path(at(machine, from), at(machine, to)).label().to_string()
}
