//! Who is near which memory, and which CPU.
//!
//! Versions 2 and 3 hang memory beside what is near it, version 1 puts what is near it inside. Devices are in a package, in memory, or in a group
//! of caches between the two; what they are near is what is around them, or the only one beside what is.

use std::collections::HashMap;

use super::Document;
use super::object::Kind;
use crate::topology::machine::NodeId;

/// Which memory and which package things are near.
pub(super) struct Nearness {
    pub(super) packages: Vec<usize>,
    /// Of each object, the NUMA nodes directly in it.
    memory_in: HashMap<usize, Vec<usize>>,
    /// v1: of a NUMA node that contains packages, the packages.
    packages_in: HashMap<usize, Vec<usize>>,
}

impl Nearness {
    pub(super) fn new(document: &Document) -> Nearness {
        let packages = document.indexes_of(|kind| matches!(kind, Kind::Package(_)));
        let mut memory_in: HashMap<usize, Vec<usize>> = HashMap::new();
        for index in document.indexes_of(|kind| matches!(kind, Kind::Memory(_))) {
            if let Some(parent) = document.objects[index].parent {
                memory_in.entry(parent).or_default().push(index);
            }
        }
        let mut packages_in: HashMap<usize, Vec<usize>> = HashMap::new();
        for package in &packages {
            let memory = document
                .upwards(*package)
                .find(|above| matches!(document.objects[*above].kind, Kind::Memory(_)));
            if let Some(memory) = memory {
                packages_in.entry(memory).or_default().push(*package);
            }
        }
        Nearness { packages, memory_in, packages_in }
    }

    /// The NUMA node that something is in, or the only one beside what it is in; and its number.
    pub(super) fn memory_of(&self, document: &Document, index: usize) -> Option<(usize, u32)> {
        let numbered = |index: usize| match document.objects[index].kind {
            Kind::Memory(number) => Some((index, number)),
            _ => None,
        };
        for above in document.upwards(index) {
            if let Some(found) = numbered(above) {
                return Some(found);
            }
            match self.memory_in.get(&above).map(Vec::as_slice) {
                Some([only]) => return numbered(*only),
                Some(_) => return None,
                None => {}
            }
        }
        None
    }

    /// The package that something is in, or that is the only one in the memory that it is near, or in the machine.
    pub(super) fn package_of(&self, document: &Document, index: usize) -> Option<usize> {
        let only = |packages: &[usize]| match packages {
            [only] => Some(*only),
            _ => None,
        };
        let around =
            document.upwards(index).find(|above| matches!(document.objects[*above].kind, Kind::Package(_)));
        let memory = || {
            document.upwards(index).find_map(|above| self.packages_in.get(&above).and_then(|all| only(all)))
        };
        around.or_else(memory).or_else(|| only(&self.packages))
    }

    /// The innermost node of a machine that something is known to be near.
    pub(super) fn node_near(
        &self,
        document: &Document,
        index: usize,
        nodes: &[Option<NodeId>],
    ) -> Option<NodeId> {
        let memory = self.memory_of(document, index).and_then(|(memory, _)| nodes[memory]);
        memory.or_else(|| self.package_of(document, index).and_then(|package| nodes[package]))
    }
}
