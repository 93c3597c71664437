//! `devpagemap doctor`: what this machine offers for sharing buffers, what is missing, and what to do about it.
//!
//! ```text
//!   Offers (nodes, exporters, fences)  ─┐
//!   a page exported through each        ├─►  Diagnosis  ──►  table, JSON
//!   sysfs (p2pmem, BARs), limits       ─┘
//! ```
//!
//! Nothing is taken for granted because a device is there: each exporter exports a page, which is read back, and a point of a
//! syncobj goes from one device to another.

pub mod bars;
pub mod json;
pub mod limits;
pub mod remedy;
pub mod table;
pub mod trial;

use bars::{BarFound, PeerMemory};
use devpagemap::{HeapFound, NodeAbilities, NodeFound, Offers, Via, WhyNot};
use limits::Limits;
use std::path::Path;
use trial::Trial;

/// All that was found.
pub struct Diagnosis {
    /// The kernel's release.
    pub kernel: String,
    /// Each node below `/dev/dri`, with what it says that it can do; or why they cannot be looked for.
    pub nodes: Result<Vec<Node>, WhyNot>,
    /// Each way to make a dma-buf, in the order in which they are asked, and what came of trying.
    pub exporters: Vec<(Via, Result<Trial, WhyNot>)>,
    /// The kernel's heaps.
    pub heaps: Vec<HeapFound>,
    /// Kernel fences by sw_sync.
    pub sw_sync: Result<(), WhyNot>,
    /// Kernel fences by vgem.
    pub vgem_fences: Result<(), WhyNot>,
    /// Whether dma-bufs take fences as descriptors; `None` when there was no dma-buf to ask.
    pub sync_files: Option<bool>,
    /// Whether a point of a syncobj goes from one device to another.
    pub syncobjs: Result<(), devpagemap::Error>,
    /// Memory of PCI functions that the kernel lends to peers.
    pub peer_memory: Vec<PeerMemory>,
    /// BARs that could serve as a prototype's video memory.
    pub bars: Vec<BarFound>,
    /// What this process, and the kernel's drivers, limit.
    pub limits: Limits,
}

/// A node, and what it said when it was asked.
pub struct Node {
    /// What is there.
    pub found: NodeFound,
    /// What it says that it can do.
    pub abilities: devpagemap::Result<NodeAbilities>,
}

impl Node {
    /// Why nothing is known of it, if nothing is.
    pub fn problem(&self) -> Option<&devpagemap::Error> {
        self.found.driver.as_ref().err().or(self.abilities.as_ref().err())
    }

    /// What to do about that.
    pub fn remedy(&self) -> Option<String> {
        let rights = matches!(self.problem(), Some(devpagemap::Error::NoRights { .. }));
        rights.then(|| remedy::of_rights(&self.found.path))
    }
}

impl Diagnosis {
    /// Looks at the machine that runs.
    pub fn of_this_machine() -> Diagnosis {
        let offers = Offers::of_this_machine();
        let root = Path::new("/");
        let ask = |found: NodeFound| Node { abilities: found.abilities(), found };
        let exporters = offers.exporters.into_iter();
        let exporters: Vec<_> = exporters
            .map(|(via, can)| {
                let trial = can.and_then(|abilities| Trial::of(&via, abilities));
                (via, trial)
            })
            .collect();
        let sync_files = exporters.iter().find_map(|(_, trial)| trial.as_ref().ok()?.sync_files);
        let release = std::fs::read_to_string(root.join("proc/sys/kernel/osrelease")).unwrap_or_default();
        Diagnosis {
            kernel: release.trim().to_owned(),
            nodes: offers.nodes.map(|nodes| nodes.into_iter().map(ask).collect()),
            exporters,
            heaps: offers.heaps,
            sw_sync: offers.sw_sync,
            vgem_fences: offers.vgem_fences,
            sync_files,
            syncobjs: trial::syncobjs(),
            peer_memory: bars::peer_memory(root),
            bars: bars::bars(root),
            limits: Limits::read(root),
        }
    }
}
