//! Rules: what peer traffic may do at the top of the PCI tree, which no topology says.
//!
//! Below a switch, PCI Express says what happens. What a host bridge does with a request from one root port to another, it does not
//! say: some forward it, some drop it, some corrupt it. So somebody has to keep a list, and the list can be replaced.

use std::fmt::Debug;

use super::reason::Reason;
use crate::topology::{CpuInfo, CpuVendor, PciIds};

/// The way of one request up to the root and down again.
#[derive(Clone, Copy, Debug)]
pub struct Crossing<'a> {
    /// The CPU.
    pub cpu: &'a CpuInfo,
    /// The chip that stands for the exporter's host bridge.
    pub exporter: Option<PciIds>,
    /// That of the importer's.
    pub importer: Option<PciIds>,
    /// Whether both are one host bridge; `None` when the source has no host bridges.
    pub is_same: Option<bool>,
}

/// What rules say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is allowed; `None` when it depends on what is not known.
    pub allowed: Option<bool>,
    /// Why.
    pub reason: Reason,
}

/// Decides what the topology leaves open. Asked with the registry's lock held: it must be quick, and answer the same each time.
pub trait Rules: Debug + Send + Sync {
    /// Whether requests that go up to a host bridge come down again.
    fn through_host_bridge(&self, crossing: &Crossing<'_>) -> Verdict;

    /// Whether a bridge that is no port of a root complex passes on, by itself, what is meant for another device below it.
    fn below_switch(&self, switch: Option<PciIds>) -> bool {
        let _ = switch;
        true
    }
}

/// The rules of Linux: `drivers/pci/p2pdma.c`, as of 7.3.
///
/// Host bridges forward on AMD CPUs from family 0x17 (Zen) on, and where the chip is on a list, on some of that only among devices below the same
/// one. The chip is what is at function 00.0 of the root bus, which may be a root port.
#[derive(Clone, Debug, Default)]
pub struct KernelRules {
    /// Beside the list.
    also: Vec<Listed>,
}

/// A host bridge that forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Listed {
    ids: PciIds,
    /// Only between devices below the same one.
    same_only: bool,
}

const fn intel(device: u16, same_only: bool) -> Listed {
    Listed { ids: PciIds { vendor: INTEL, device }, same_only }
}

const INTEL: u16 = 0x8086;

/// `pci_p2pdma_whitelist` of that file.
const LISTED: &[Listed] = &[
    intel(0x3c00, true), // Xeon E5, Core i7
    intel(0x3c01, true),
    intel(0x2f00, true), // Xeon E7 v3, Xeon E5 v3, Core i7
    intel(0x2f01, true),
    intel(0x2030, false), // Sky Lake-E: root ports A to D, and DMI
    intel(0x2031, false),
    intel(0x2032, false),
    intel(0x2033, false),
    intel(0x2020, false),
    intel(0x09a2, false), // since Ice Lake
];

/// Zen.
const FIRST_AMD_FAMILY: u32 = 0x17;

impl KernelRules {
    /// The same, and a host bridge that somebody knows to forward; with `same_only`, among devices below itself.
    #[must_use]
    pub fn and(mut self, ids: PciIds, same_only: bool) -> KernelRules {
        self.also.push(Listed { ids, same_only });
        self
    }

    fn listed(&self, ids: PciIds) -> Option<Listed> {
        LISTED.iter().chain(&self.also).find(|listed| listed.ids == ids).copied()
    }

    /// Whether a host bridge forwards; `None` when which it is is not known.
    fn forwards(&self, ids: Option<PciIds>, crossing: &Crossing<'_>) -> Verdict {
        let Some(ids) = ids else {
            return Verdict { allowed: None, reason: Reason::HostBridgeUnknown };
        };
        match self.listed(ids) {
            Some(listed) if listed.same_only && crossing.is_same.is_none() => {
                Verdict { allowed: None, reason: Reason::HostBridgeUnknown }
            }
            Some(listed) if listed.same_only && crossing.is_same == Some(false) => {
                Verdict { allowed: Some(false), reason: Reason::HostBridgesDiffer { ids } }
            }
            Some(_) => {
                let reason = Reason::HostBridgeForwards { ids: Some(ids), amd_family: None };
                Verdict { allowed: Some(true), reason }
            }
            // A chip of Intel's is in no machine with an AMD CPU.
            None if crossing.cpu.vendor.is_none() && ids.vendor != INTEL => {
                Verdict { allowed: None, reason: Reason::CpuUnknown { ids } }
            }
            None => Verdict { allowed: Some(false), reason: Reason::HostBridgeNotListed { ids } },
        }
    }
}

impl KernelRules {
    /// What the list says of both host bridges.
    fn by_list(&self, crossing: &Crossing<'_>) -> Verdict {
        let exporter = self.forwards(crossing.exporter, crossing);
        if exporter.allowed == Some(false) || crossing.is_same == Some(true) {
            return exporter;
        }
        let importer = self.forwards(crossing.importer, crossing);
        if importer.allowed == Some(true) { exporter } else { importer }
    }
}

impl Rules for KernelRules {
    fn through_host_bridge(&self, crossing: &Crossing<'_>) -> Verdict {
        let CpuInfo { vendor, family, .. } = crossing.cpu;
        let is_amd = *vendor == Some(CpuVendor::Amd);
        if let Some(family) = family.filter(|family| is_amd && *family >= FIRST_AMD_FAMILY) {
            let reason = Reason::HostBridgeForwards { ids: crossing.exporter, amd_family: Some(family) };
            return Verdict { allowed: Some(true), reason };
        }
        let listed = self.by_list(crossing);
        if is_amd && family.is_none() && listed.allowed != Some(true) {
            return Verdict { allowed: None, reason: Reason::CpuFamilyUnknown };
        }
        listed
    }
}
