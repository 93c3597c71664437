//! The short names of paths, as vendors' tools print them.

use std::fmt;

use super::link::LinkKind;

/// How far two devices are apart, in the words of `nvidia-smi topo -m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Label {
    /// `X`: the device itself.
    Same,
    /// `NV4`, `XGMI1`: a private link of so many lanes.
    Private {
        /// What it is.
        kind: LinkKind,
        /// How many lanes.
        count: u32,
    },
    /// `PIX`: at most one PCIe switch.
    Pix,
    /// `PXB`: several PCIe switches, and no host bridge.
    Pxb,
    /// `PHB`: one host bridge.
    Phb,
    /// `NODE`: several host bridges of one NUMA node.
    Node,
    /// `SYS`: from one NUMA node to another.
    Sys,
    /// `?`: several host bridges, and nothing says which NUMA nodes they belong to.
    Unknown,
}

impl Label {
    /// The label without its number: `NV#`.
    pub fn symbol(self) -> &'static str {
        match self {
            Label::Same => "X",
            Label::Private { kind: LinkKind::NvLink, .. } => "NV#",
            Label::Private { kind: LinkKind::Xgmi, .. } => "XGMI#",
            Label::Private { kind: LinkKind::Other, .. } => "LINK#",
            Label::Pix => "PIX",
            Label::Pxb => "PXB",
            Label::Phb => "PHB",
            Label::Node => "NODE",
            Label::Sys => "SYS",
            Label::Unknown => "?",
        }
    }

    /// What it means, in a few words.
    pub fn legend(self) -> &'static str {
        match self {
            Label::Same => "the device itself",
            Label::Private { kind: LinkKind::NvLink, .. } => "NVLink, with its number of links",
            Label::Private { kind: LinkKind::Xgmi, .. } => "xGMI, with its number of links",
            Label::Private { kind: LinkKind::Other, .. } => "a private link, with its number of lanes",
            Label::Pix => "over one PCIe switch at most",
            Label::Pxb => "over several PCIe switches, below one root port",
            Label::Phb => "through a PCIe host bridge (the CPU)",
            Label::Node => "between PCIe host bridges of one NUMA node",
            Label::Sys => "between NUMA nodes (over the links between CPUs)",
            Label::Unknown => "between PCIe host bridges, of NUMA nodes that are not known",
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // `pad` honours the widths that a matrix asks for.
            Label::Private { count, .. } => f.pad(&format!("{}{count}", self.symbol().trim_end_matches('#'))),
            _ => f.pad(self.symbol()),
        }
    }
}
