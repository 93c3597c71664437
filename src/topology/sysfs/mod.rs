//! Reads a machine from sysfs, the running one or a saved tree.
//!
//! ```text
//!   bus/pci/devices/0000:3d:00.0 ─► ../../../devices/pci0000:3a/0000:3a:00.0/0000:3b:00.0/...
//!                                              host bridge      root port    what is below it
//!   devices/system/node/nodeN/cpulist                       NUMA nodes and their CPUs
//!   devices/system/cpu/cpuN/topology/physical_package_id    CPU packages
//!   class/kfd/kfd/topology/nodes                            xGMI links
//!   ../proc/cpuinfo                                         who made them
//! ```
//!
//! The links of `bus/pci/devices` tell the tree: each names every bridge on the way down. Everything is read first, and
//! built then, as a host bridge goes to the NUMA node that the functions below it name.
//!
//! Devices come and go while this reads. One that is not there any more when it has been read is left out, with what is
//! below it, and a note says so; half of a device is never kept.

mod cpus;
mod file;
mod function;
mod resource;
mod xgmi;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::address::PciAddress;
use super::builder::MachineBuilder;
use super::function::{Function, PciIds, PortKind};
use super::machine::{Machine, NodeId, NodeKind, RootBus};
use super::source::{Place, TopologyError};
use file::{entries, link_of};

#[cfg(not(any(loom, shuttle)))]
pub(crate) use file::text;
#[cfg(not(any(loom, shuttle)))]
pub(crate) use resource::Resource;

/// A step on the way down to a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Step {
    Root(RootBus),
    Function(PciAddress),
}

/// What was read of a function.
struct Found {
    function: Function,
    names: Vec<String>,
}

/// Where a tree is.
struct Tree {
    sys: PathBuf,
    proc: PathBuf,
}

impl Tree {
    /// `root` holds `sys`, or is it.
    fn at(root: &Path) -> Tree {
        let inside = root.join("sys");
        let sys = if inside.is_dir() { inside } else { root.to_path_buf() };
        let beside = sys.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Tree { proc: beside.join("proc"), sys }
    }
}

impl Machine {
    /// Reads the machine that runs (`/`), or a saved tree that holds `sys` and, for what the CPUs are, `proc`.
    ///
    /// What cannot be read stays unknown; [`Machine::notes`] says what that was. Without the administrator's rights, the
    /// configuration spaces cannot be read to their end, so nothing is known of ACS. Of private links, xGMI is
    /// in sysfs and NVLink is not.
    ///
    /// # Errors
    /// When there is no `devices` directory at all, and for a saved tree that says what cannot be, as [`MachineBuilder`]
    /// has it.
    pub fn from_sysfs(root: &Path) -> Result<Machine, TopologyError> {
        let tree = Tree::at(root);
        let place = Place::file(tree.sys.display().to_string());
        if !tree.sys.join("devices").is_dir() {
            return Err(place.error("there is no directory `devices`, so this is no sysfs"));
        }
        let mut builder = Machine::builder();
        let numa = cpus::add(&tree, &mut builder)?;
        let found = read_functions(&tree, &mut builder);
        add_functions(found, &numa, &dir_of_devices(&tree), &mut builder)?;
        xgmi::add(&tree, &mut builder)?;
        Ok(builder.build())
    }
}

/// The directory of the function at an address, in the running machine (`/`) or a saved tree. It may not be there.
#[cfg(not(any(loom, shuttle)))]
pub(crate) fn dir_of_function(root: &Path, address: PciAddress) -> PathBuf {
    dir_of_devices(&Tree::at(root)).join(address.to_string())
}

fn dir_of_devices(tree: &Tree) -> PathBuf {
    tree.sys.join("bus/pci/devices")
}

/// All functions, by their way down, so that each comes after the bridges above it.
fn read_functions(tree: &Tree, builder: &mut MachineBuilder) -> BTreeMap<Vec<Step>, Found> {
    let dir = dir_of_devices(tree);
    let place = Place::file(dir.display().to_string());
    let names = entries(&dir);
    if names.is_empty() {
        builder.note(&place, "there are no PCI devices");
    }
    let (mut found, mut guarded) = (BTreeMap::new(), 0);
    for name in names {
        let entry = dir.join(&name);
        let here = Place::file(entry.display().to_string());
        let Some(steps) = name.parse().ok().and_then(|address| steps_to(&entry, address)) else {
            builder.note(&here, "it is no link to a device in a PCI tree, and is left out");
            continue;
        };
        match function::read(&entry) {
            None => builder.note(&here, "it vanished while it was read, and is left out"),
            Some(read) => {
                read.notes.into_iter().for_each(|text| builder.note(&here, text));
                guarded += usize::from(read.is_guarded);
                found.insert(steps, Found { function: read.function, names: read.names });
            }
        }
    }
    if guarded > 0 {
        let text = format!(
            "the configuration spaces of {guarded} functions can be read in part only, so whether these redirect (ACS) \
             is not known; the administrator can read them"
        );
        builder.note(&place, text);
    }
    found
}

/// The way down to a function, by where the link of its address points.
fn steps_to(entry: &Path, address: PciAddress) -> Option<Vec<Step>> {
    let target = link_of(entry)?;
    let step = |part: &str| match part.strip_prefix("pci") {
        Some(bus) => parse_root_bus(bus).map(Step::Root),
        None => part.parse().ok().map(Step::Function),
    };
    let parts = target.iter().filter_map(|part| part.to_str());
    let steps: Vec<Step> = parts.filter_map(step).collect();
    let begins = matches!(steps.first(), Some(Step::Root(_)));
    (begins && steps.last() == Some(&Step::Function(address))).then_some(steps)
}

/// Reads `0000:3a`.
fn parse_root_bus(text: &str) -> Option<RootBus> {
    let PciAddress { domain, bus, .. } =
        format!("{text}:00.0").parse().ok().filter(|_| text.contains(':'))?;
    Some(RootBus { domain, bus })
}

/// Builds the tree. What is below a function that was left out is left out as well.
fn add_functions(
    found: BTreeMap<Vec<Step>, Found>,
    numa: &HashMap<u32, NodeId>,
    dir: &Path,
    builder: &mut MachineBuilder,
) -> Result<(), TopologyError> {
    let near = numa_of_roots(&found);
    let ids = ids_of_roots(&found);
    let bridges: HashSet<Vec<Step>> = found.keys().map(|steps| above(steps).to_vec()).collect();
    let mut nodes: HashMap<Vec<Step>, NodeId> = HashMap::new();
    for (steps, Found { function, names }) in found {
        let place = place_of(&function, dir);
        let parent = above(&steps);
        if let (Some(Step::Root(bus)), false) = (parent.last().copied(), nodes.contains_key(parent)) {
            let home = match above(parent) {
                [] => Some(home_of(near.get(parent).copied().flatten(), numa, builder)),
                device => nodes.get(device).copied(),
            };
            if let Some(home) = home {
                let kind = NodeKind::HostBridge { bus: Some(bus), ids: ids.get(parent).copied() };
                nodes.insert(parent.to_vec(), builder.add(home, kind, Vec::new(), &place)?);
            }
        }
        let Some(parent) = nodes.get(parent).copied() else {
            builder.note(&place, "it is left out with the bridge above it");
            continue;
        };
        let is_bridge = bridges.contains(&steps) || function::is_bridge(&function);
        let kind = if is_bridge { NodeKind::Bridge(function) } else { NodeKind::Function(function) };
        let id = builder.add(parent, kind, names, &place)?;
        nodes.insert(steps, id);
    }
    Ok(())
}

fn place_of(function: &Function, dir: &Path) -> Place {
    let name = function.address.map_or(String::new(), |address| address.to_string());
    Place::file(dir.join(name).display().to_string())
}

/// The way down without its last step.
fn above(steps: &[Step]) -> &[Step] {
    steps.split_last().map_or(&[], |(_, above)| above)
}

/// Of each root bus, the NUMA node that all functions below it name; `None` when they name none, or several.
fn numa_of_roots(found: &BTreeMap<Vec<Step>, Found>) -> HashMap<Vec<Step>, Option<u32>> {
    let mut near: HashMap<Vec<Step>, Option<u32>> = HashMap::new();
    for (steps, found) in found {
        if let Some(number) = found.function.numa {
            let known = near.entry(steps[..1].to_vec()).or_insert(Some(number));
            *known = known.filter(|known| *known == number);
        }
    }
    near
}

/// Of each root bus, the chip that stands for its host bridge: its first function, if that is at device 00.0 or a root port
/// (`pci_host_bridge_dev` of the kernel). All functions are known here; other sources leave some out, and a root port elsewhere may not be the first.
fn ids_of_roots(found: &BTreeMap<Vec<Step>, Found>) -> HashMap<Vec<Step>, PciIds> {
    let mut first: HashMap<Vec<Step>, &Function> = HashMap::new();
    for (steps, found) in found {
        if let (Some(Step::Root(_)), Some(Step::Function(_))) = (steps.iter().rev().nth(1), steps.last()) {
            first.entry(above(steps).to_vec()).or_insert(&found.function);
        }
    }
    let stands = |function: &&Function| {
        let is_first = function.address.is_some_and(|at| (at.device, at.function) == (0, 0));
        is_first || function.port == Some(PortKind::Root)
    };
    let standing = first.into_iter().filter(|(_, function)| stands(function));
    standing.filter_map(|(root, function)| Some((root, function.ids?))).collect()
}

/// Where a host bridge goes: to its NUMA node, to the only one, or to the machine.
fn home_of(number: Option<u32>, numa: &HashMap<u32, NodeId>, builder: &MachineBuilder) -> NodeId {
    let only = || numa.values().copied().find(|_| numa.len() == 1);
    match number {
        Some(number) => numa.get(&number).copied(),
        None => only(),
    }
    .unwrap_or(builder.root())
}
