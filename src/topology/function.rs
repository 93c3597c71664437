//! PCI functions: ports, switches and devices, as far as they say what they are.

use std::fmt;

use super::address::PciAddress;
use super::link::PciLink;

/// Which chip a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciIds {
    /// Its vendor.
    pub vendor: u16,
    /// The device, as its vendor counts.
    pub device: u16,
}

impl fmt::Display for PciIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.device)
    }
}

/// What a PCI Express bridge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortKind {
    /// A port of a root complex.
    Root,
    /// The side of a switch that faces the CPU.
    Upstream,
    /// A side of a switch that faces devices.
    Downstream,
    /// A whole switch: the source draws its ports as one.
    Switch,
    /// A bridge to or from conventional PCI.
    ToPci,
}

impl fmt::Display for PortKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PortKind::Root => "root port",
            PortKind::Upstream => "upstream port",
            PortKind::Downstream => "downstream port",
            PortKind::Switch => "switch",
            PortKind::ToPci => "PCI bridge",
        })
    }
}

/// Access control services of a port, as far as they redirect peer traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Acs {
    /// Requests between peers go up to the root first.
    pub request_redirect: bool,
    /// Completions do.
    pub completion_redirect: bool,
    /// Requests are checked against where they may go.
    pub egress_control: bool,
}

impl Acs {
    /// Whether traffic between peers below this port does not take the short way.
    pub fn redirects(&self) -> bool {
        self.request_redirect || self.completion_redirect || self.egress_control
    }
}

impl fmt::Display for Acs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = |set: bool| if set { '+' } else { '-' };
        let (request, completion) = (sign(self.request_redirect), sign(self.completion_redirect));
        write!(f, "ReqRedir{request} CmpltRedir{completion} EgressCtrl{}", sign(self.egress_control))
    }
}

/// The sizes that a BAR can be given, all powers of two from 1 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BarSizes {
    /// Bit `n` stands for 2^`n` MiB; the 44th is the last.
    bits: u64,
}

impl BarSizes {
    /// From a mask whose bit `n` stands for 2^`n` MiB. What does not fit into an address is left out.
    pub fn from_mib_mask(mask: u64) -> BarSizes {
        BarSizes { bits: mask & ((1 << 44) - 1) }
    }

    /// The sizes in bytes, smallest first.
    pub fn iter(self) -> impl Iterator<Item = u64> {
        (0..44).filter(move |bit| self.bits >> bit & 1 == 1).map(|bit| 1 << (20 + bit))
    }

    /// The largest in bytes; `None` when it has none.
    pub fn largest_bytes(self) -> Option<u64> {
        self.bits.checked_ilog2().map(|bit| 1 << (20 + bit))
    }
}

/// A base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Which, from 0. A BAR of 64 bits takes two numbers and goes by the first.
    pub index: u8,
    /// Where it begins on the bus; `None` when that is not known.
    pub start: Option<u64>,
    /// How long it is.
    pub len_bytes: u64,
    /// Whether reading has no side effects.
    pub prefetchable: bool,
    /// What it can be resized to; `None` when it cannot be, or when that is not known.
    pub sizes: Option<BarSizes>,
}

/// A device's own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vram {
    /// All of it.
    pub total_bytes: u64,
    /// What the bus sees of it; `None` when that is not known. Not more than all.
    pub visible_bytes: Option<u64>,
}

/// A PCI function: a bridge, or what is at the end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Function {
    /// `None` for one that a source has made up.
    pub address: Option<PciAddress>,
    /// Base class, sub-class and interface, as in `0x030200`.
    pub class: Option<u32>,
    /// Which chip it is.
    pub ids: Option<PciIds>,
    /// The link that it reports.
    pub link: PciLink,
    /// What kind of bridge it is, if it is one and says so.
    pub port: Option<PortKind>,
    /// `None` when it is not known whether it redirects. A port without the capability redirects nothing.
    pub acs: Option<Acs>,
    /// `None` when they are not known.
    pub bars: Option<Vec<Bar>>,
    /// A bridge: whether it passes atomic operations on. A device: whether it completes those of 64 bits.
    pub atomics: Option<bool>,
    /// The NUMA node that it says it is near.
    pub numa: Option<u32>,
    /// Its own memory.
    pub vram: Option<Vram>,
}

impl Function {
    /// Whether it drives displays or computes: class 0x03, and 0x12 for accelerators.
    pub fn is_gpu(&self) -> bool {
        matches!(self.class.map(|class| class >> 16), Some(0x03 | 0x12))
    }

    /// Whether it is a network adapter: class 0x02, and 0x0c06 for InfiniBand.
    pub fn is_nic(&self) -> bool {
        self.class.is_some_and(|class| class >> 16 == 0x02 || class >> 8 == 0x0c06)
    }

    /// Whether it is an NVMe controller: class 0x0108.
    pub fn is_nvme(&self) -> bool {
        self.class.is_some_and(|class| class >> 8 == 0x0108)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sizes_of_a_bar_are_powers_of_two_of_mebibytes() {
        let sizes = BarSizes::from_mib_mask(1 << 8 | 1 << 15);
        assert_eq!(sizes.iter().collect::<Vec<_>>(), [256 << 20, 32 << 30]);
        assert_eq!(sizes.largest_bytes(), Some(32 << 30));
        assert_eq!(BarSizes::from_mib_mask(0).largest_bytes(), None);
        assert_eq!(BarSizes::from_mib_mask(u64::MAX).largest_bytes(), Some(1 << 63));
    }

    #[test]
    fn what_a_function_is_for_is_told_by_its_class() {
        let of = |class| Function { class: Some(class), ..Function::default() };
        assert!(of(0x030000).is_gpu() && of(0x030200).is_gpu() && of(0x120000).is_gpu());
        assert!(of(0x020000).is_nic() && of(0x020700).is_nic() && of(0x0c0600).is_nic());
        assert!(of(0x010802).is_nvme() && !of(0x010601).is_nvme());
        assert!(!Function::default().is_gpu() && !of(0x060400).is_nic());
    }
}
