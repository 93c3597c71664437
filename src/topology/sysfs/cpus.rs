//! CPU packages and NUMA nodes of sysfs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use super::Tree;
use super::file::{entries, text};
use crate::topology::builder::MachineBuilder;
use crate::topology::machine::{CpuInfo, CpuVendor, NodeId, NodeKind};
use crate::topology::source::{Place, TopologyError};

/// Adds packages and NUMA nodes; the latter by number. A node whose CPUs are of one package is part of that; one without
/// CPUs, or with CPUs of several, is part of the machine.
pub fn add(tree: &Tree, builder: &mut MachineBuilder) -> Result<HashMap<u32, NodeId>, TopologyError> {
    let cpuinfo = tree.proc.join("cpuinfo");
    let place = Place::file(cpuinfo.display().to_string());
    let text = text(&cpuinfo);
    if text.is_none() {
        builder.note(&place, "it cannot be read, so who made the CPUs is not known");
    }
    let makers = Makers::read(&text.unwrap_or_default());
    let package_of = packages_of_cpus(&tree.sys.join("devices/system/cpu"));
    let ids: BTreeSet<u32> = package_of.values().copied().chain(makers.by_package.keys().copied()).collect();
    let root = builder.root();
    let mut packages = HashMap::new();
    for id in ids {
        let info = makers.by_package.get(&id).or(makers.first.as_ref()).cloned().unwrap_or_default();
        packages.insert(id, builder.add(root, NodeKind::Package(info), Vec::new(), &place)?);
    }
    if let (true, Some(info)) = (packages.is_empty(), makers.first) {
        builder.add(root, NodeKind::Package(info), Vec::new(), &place)?;
    }
    let dir = tree.sys.join("devices/system/node");
    let mut numa = HashMap::new();
    for (number, cpus) in nodes(&dir) {
        let near: BTreeSet<u32> = cpus.iter().filter_map(|cpu| package_of.get(cpu).copied()).collect();
        let parent = near.first().filter(|_| near.len() == 1).map_or(root, |id| packages[id]);
        let place = Place::file(dir.join(format!("node{number}")).display().to_string());
        numa.insert(number, builder.add(parent, NodeKind::Numa(number), Vec::new(), &place)?);
    }
    Ok(numa)
}

/// Who made the CPUs.
#[derive(Default)]
struct Makers {
    by_package: BTreeMap<u32, CpuInfo>,
    /// Of the first CPU, whatever its package; all CPUs of a machine have one maker.
    first: Option<CpuInfo>,
}

impl Makers {
    /// Reads `proc/cpuinfo` of an x86; other machines do not name the vendor there.
    fn read(text: &str) -> Makers {
        let mut makers = Makers::default();
        for block in text.split("\n\n") {
            let mut info = CpuInfo::default();
            let mut package = None;
            for (key, value) in block.lines().filter_map(|line| line.split_once(':')) {
                match (key.trim(), value.trim()) {
                    ("vendor_id", name) => info.vendor = Some(CpuVendor::from_name(name)),
                    ("cpu family", number) => info.family = number.parse().ok(),
                    ("model", number) => info.model = number.parse().ok(),
                    ("physical id", number) => package = number.parse().ok(),
                    _ => {}
                }
            }
            if info != CpuInfo::default() {
                makers.first.get_or_insert_with(|| info.clone());
                package.map(|package| makers.by_package.entry(package).or_insert(info));
            }
        }
        makers
    }
}

/// The package of each CPU that says so; the kernel says -1 where it does not know.
fn packages_of_cpus(dir: &Path) -> HashMap<u32, u32> {
    let numbered = entries(dir).into_iter().filter_map(|name| number_after(&name, "cpu"));
    let package = |cpu: u32| text(&dir.join(format!("cpu{cpu}/topology/physical_package_id")))?.parse().ok();
    numbered.filter_map(|cpu| Some((cpu, package(cpu)?))).collect()
}

/// The CPUs of each NUMA node.
fn nodes(dir: &Path) -> BTreeMap<u32, Vec<u32>> {
    let numbered = entries(dir).into_iter().filter_map(|name| number_after(&name, "node"));
    let cpus = |node: u32| parse_list(&text(&dir.join(format!("node{node}/cpulist"))).unwrap_or_default());
    numbered.map(|node| (node, cpus(node))).collect()
}

fn number_after(name: &str, prefix: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?;
    digits.parse().ok().filter(|_| digits.bytes().all(|digit| digit.is_ascii_digit()))
}

/// Reads `0-7,16,18-19`. What is no range is left out, and so is what no kernel counts up to.
fn parse_list(text: &str) -> Vec<u32> {
    const MOST_CPUS: u32 = 1 << 16;
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<u32>().ok()?, last.trim().parse::<u32>().ok()?);
        (last < MOST_CPUS).then_some(first..=last)
    };
    text.split(',').filter_map(range).flatten().take(MOST_CPUS as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_list("0-3,8,10-11"), [0, 1, 2, 3, 8, 10, 11]);
        assert_eq!(parse_list(""), Vec::<u32>::new());
        assert_eq!(parse_list("0-4294967295,2,x-3"), [2]);
    }

    #[test]
    fn makers_are_told_by_package() {
        let text = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 23\nmodel\t\t: 49\nphysical id\t: 1\n\n\
                    processor\t: 1\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nphysical id\t: 0\n";
        let makers = Makers::read(text);
        assert_eq!(makers.by_package[&1].family, Some(0x17));
        assert_eq!(makers.by_package[&0].family, Some(0x19));
        assert_eq!(makers.first.unwrap().model, Some(49));
        assert!(Makers::read("CPU implementer : 0x41\n").first.is_none());
    }
}
