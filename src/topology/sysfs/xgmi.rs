//! xGMI links between AMD GPUs, as amdkfd shows them.
//!
//! ```text
//!   class/kfd/kfd/topology/nodes/2/properties               domain, location_id: bus and function
//!   class/kfd/kfd/topology/nodes/2/io_links/1/properties    type 11, node_from, node_to, bandwidths in MB/s, flags
//! ```
//!
//! The least bandwidth is that of one lane, the most that of all, so their quotient counts the lanes. A way that leads through
//! another GPU has a bandwidth of 0: nothing is known of what it carries.
//!
//! Layout and numbers are those of the kernel's `kfd_topology.c` and `kfd_crat.h`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::Tree;
use super::file::{entries, text};
use crate::topology::address::PciAddress;
use crate::topology::builder::MachineBuilder;
use crate::topology::link::{Link, LinkKind};
use crate::topology::machine::NodeId;
use crate::topology::source::{Place, TopologyError};

/// The type of a link that is xGMI.
const XGMI: u64 = 11;
const ENABLED: u64 = 1 << 0;
const NO_ATOMICS_64: u64 = 1 << 3;
const NO_PEER_DMA: u64 = 1 << 4;

/// Adds the links between GPUs that the machine has.
pub fn add(tree: &Tree, builder: &mut MachineBuilder) -> Result<(), TopologyError> {
    let nodes = tree.sys.join("class/kfd/kfd/topology/nodes");
    let mut gpus: BTreeMap<u64, NodeId> = BTreeMap::new();
    let mut dirs = Vec::new();
    for name in entries(&nodes) {
        let (dir, number) = (nodes.join(&name), name.parse().ok());
        let found = address(&properties(&dir)).and_then(|address| builder.so_far().at(address));
        if let (Some(number), Some(id)) = (number, found)
            // A GPU in partitions is several nodes. The links of the first are those of the GPU.
            && !gpus.values().any(|other| *other == id)
        {
            gpus.insert(number, id);
            dirs.push(dir.join("io_links"));
        }
    }
    for links in dirs {
        for name in entries(&links) {
            let dir = links.join(name);
            if let Some(link) = link(&properties(&dir), &gpus) {
                builder.link(link, &Place::file(dir.display().to_string()))?;
            }
        }
    }
    Ok(())
}

/// A word and a number a line.
fn properties(dir: &Path) -> HashMap<String, u64> {
    let text = text(&dir.join("properties")).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.filter_map(|(word, number)| Some((word.to_string(), number.trim().parse().ok()?))).collect()
}

/// Where a GPU is; `None` for a CPU.
fn address(node: &HashMap<String, u64>) -> Option<PciAddress> {
    let location = node.get("location_id").copied().filter(|location| *location > 0)?;
    Some(PciAddress {
        domain: u32::try_from(node.get("domain").copied().unwrap_or(0)).ok()?,
        bus: (location >> 8) as u8,
        device: (location >> 3) as u8 & 0x1f,
        function: location as u8 & 0x7,
    })
}

/// A link between two GPUs that peers can use.
fn link(properties: &HashMap<String, u64>, gpus: &BTreeMap<u64, NodeId>) -> Option<Link> {
    let of = |word: &str| properties.get(word).copied();
    let flags = of("flags")?;
    let is_usable = of("type") == Some(XGMI) && flags & ENABLED != 0 && flags & NO_PEER_DMA == 0;
    let (from, to) = (*gpus.get(&of("node_from")?)?, *gpus.get(&of("node_to")?)?);
    let (least, most) = (of("min_bandwidth").unwrap_or(0), of("max_bandwidth").unwrap_or(0));
    let lanes = most.checked_div(least).and_then(|lanes| u32::try_from(lanes).ok());
    (is_usable && from != to).then(|| Link {
        from,
        to,
        kind: LinkKind::Xgmi,
        count: lanes.unwrap_or(1).max(1),
        bytes_per_s: most.checked_mul(1_000_000).filter(|rate| *rate > 0),
        atomics: Some(flags & NO_ATOMICS_64 == 0),
    })
}
