//! One `<object>` of a file.

use std::fmt;

use crate::topology::address::PciAddress;
use crate::topology::function::{Function, PciIds, Vram};
use crate::topology::link::PciLink;
use crate::topology::machine::{CpuInfo, CpuVendor};
use crate::topology::source::{Place, TopologyError};
use crate::topology::xml::Element;

/// The buses below a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Buses {
    /// Their domain.
    pub(super) domain: u32,
    /// The first.
    pub(super) first: u8,
    /// The last; not before the first.
    pub(super) last: u8,
}

impl Buses {
    pub(super) fn contain(&self, address: PciAddress) -> bool {
        address.domain == self.domain && (self.first..=self.last).contains(&address.bus)
    }

    /// Reads `0000:[2c-3b]`.
    fn parse(text: &str) -> Option<Buses> {
        let (domain, range) = text.split_once(":[")?;
        let (first, last) = range.strip_suffix(']')?.split_once('-')?;
        let domain = u32::from_str_radix(domain, 16).ok()?;
        let first = u8::from_str_radix(first, 16).ok()?;
        let last = u8::from_str_radix(last, 16).ok().filter(|last| *last >= first)?;
        Some(Buses { domain, first, last })
    }
}

impl fmt::Display for Buses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:[{:02x}-{:02x}]", self.domain, self.first, self.last)
    }
}

/// What an object is, as far as a machine is made of it.
#[derive(Debug)]
pub(super) enum Kind {
    Package(CpuInfo),
    /// A NUMA node, by its number.
    Memory(u32),
    HostBridge {
        buses: Option<Buses>,
    },
    Bridge {
        function: Function,
        buses: Option<Buses>,
    },
    Device {
        function: Function,
        /// Whether it is a switch of private links.
        is_link_switch: bool,
    },
    /// A name that the system has for something.
    OsDev,
    /// The machine, groups, caches, cores.
    Other,
}

/// An object.
#[derive(Debug)]
pub(super) struct Object {
    /// What it is in.
    pub(super) parent: Option<usize>,
    pub(super) place: Place,
    pub(super) kind: Kind,
    /// As `OSDev` in `OSDev:802`.
    pub(super) type_name: String,
    /// As `802` in `OSDev:802`.
    pub(super) gp_index: Option<u64>,
    pub(super) os_index: Option<u64>,
    pub(super) name: Option<String>,
}

impl Object {
    pub(super) fn new(parent: Option<usize>, element: &Element) -> Result<Object, TopologyError> {
        let type_name = element.require("type")?.to_string();
        let os_index = element.number("os_index")?;
        let kind = match type_name.as_str() {
            "Package" | "Socket" => Kind::Package(CpuInfo::default()),
            "NUMANode" => {
                let number = os_index.ok_or_else(|| element.wrong("a NUMA node without `os_index`"))?;
                let number = u32::try_from(number);
                Kind::Memory(number.map_err(|_| element.wrong("a NUMA node of a number above 32 bits"))?)
            }
            "Bridge" => bridge(element)?,
            "PCIDev" => device(element)?,
            "OSDev" => Kind::OsDev,
            _ => Kind::Other,
        };
        Ok(Object {
            parent,
            place: element.place.clone(),
            kind,
            type_name,
            gp_index: element.number("gp_index")?,
            os_index,
            name: element.get("name").map(str::to_string),
        })
    }

    /// Whether it is a part of a PCI tree.
    pub(super) fn is_pci(&self) -> bool {
        matches!(self.kind, Kind::HostBridge { .. } | Kind::Bridge { .. } | Kind::Device { .. })
    }

    /// The PCI function that it is.
    pub(super) fn function(&self) -> Option<&Function> {
        match &self.kind {
            Kind::Bridge { function, .. } | Kind::Device { function, .. } => Some(function),
            _ => None,
        }
    }

    /// The buses below it, if it is a bridge that says so.
    pub(super) fn buses(&self) -> Option<Buses> {
        match self.kind {
            Kind::HostBridge { buses } | Kind::Bridge { buses, .. } => buses,
            _ => None,
        }
    }

    /// Takes what an `<info>` says of it.
    pub(super) fn info(&mut self, info: &Element) -> Result<(), TopologyError> {
        let name = info.get("name").unwrap_or_default();
        match &mut self.kind {
            Kind::Package(cpu) => match name {
                "CPUVendor" => cpu.vendor = info.get("value").map(|name| CpuVendor::from_name(name.trim())),
                "CPUFamilyNumber" => cpu.family = info.number("value")?,
                "CPUModelNumber" => cpu.model = info.number("value")?,
                _ => {}
            },
            Kind::Device { function, .. } => match name {
                "RSMIVRAMSize" | "CUDAGlobalMemorySize" => {
                    let total_bytes = info.parsed("value", "size in KiB", kibibytes)?;
                    let visible_bytes = function.vram.and_then(|vram| vram.visible_bytes);
                    function.vram = total_bytes.map(|total_bytes| Vram { total_bytes, visible_bytes });
                }
                // It comes after the size of all memory.
                "RSMIVisibleVRAMSize" => {
                    let visible_bytes = info.parsed("value", "size in KiB", kibibytes)?;
                    function.vram = function.vram.map(|vram| Vram { visible_bytes, ..vram });
                }
                _ => {}
            },
            _ => {}
        }
        Ok(())
    }
}

fn bridge(element: &Element) -> Result<Kind, TopologyError> {
    let buses =
        element.parsed("bridge_pci", "range of buses, which is written 0000:[2c-3b]", Buses::parse)?;
    match element.require("bridge_type")? {
        "0-1" => Ok(Kind::HostBridge { buses }),
        "1-1" => {
            let function = function(element)?;
            if let (Some(address), Some(buses)) = (function.address, buses)
                && buses.contain(address)
                && buses.last != 0
            {
                return Err(
                    element.wrong(format!("the bridge {address} is on {buses}, the buses below itself"))
                );
            }
            Ok(Kind::Bridge { function, buses })
        }
        other => Err(element.wrong(format!("bridge_type=\"{other}\" is neither 0-1 nor 1-1"))),
    }
}

fn device(element: &Element) -> Result<Kind, TopologyError> {
    let function = function(element)?;
    let is_link_switch = element.get("subtype") == Some("NVSwitch");
    Ok(Kind::Device { function, is_link_switch })
}

fn function(element: &Element) -> Result<Function, TopologyError> {
    let address = element.parsed("pci_busid", "PCI address", |text| text.parse::<PciAddress>().ok())?;
    let address = address.ok_or_else(|| element.wrong("a PCI device without `pci_busid`"))?;
    let (class, ids) = element
        .parsed("pci_type", "PCI type, which begins as 0302 [10de:1db8]", pci_type)?
        .unwrap_or_default();
    let bytes_per_s = element.parsed("pci_link_speed", "speed in GB/s", gigabytes)?.flatten();
    Ok(Function {
        address: Some(address),
        class,
        ids,
        link: PciLink { bytes_per_s, max_bytes_per_s: None },
        ..Function::default()
    })
}

/// Reads `0302 [10de:1db8] [10de:131d] a1 00`: class and chip. Zeros stand for what could not be read.
fn pci_type(text: &str) -> Option<(Option<u32>, Option<PciIds>)> {
    let (class, rest) = text.split_once(" [")?;
    let (ids, _) = rest.split_once(']')?;
    let (vendor, device) = ids.split_once(':')?;
    let hex = |digits: &str| u16::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 4);
    let (class, vendor, device) = (hex(class)?, hex(vendor)?, hex(device)?);
    // A file has base class and sub-class; what they stand for does not depend on the interface.
    let class = (class != 0).then_some(u32::from(class) << 8);
    Some((class, (vendor != 0 && vendor != 0xffff).then_some(PciIds { vendor, device })))
}

/// Reads `15.753846`; 0 stands for what could not be read.
fn gigabytes(text: &str) -> Option<Option<u64>> {
    let speed = text.parse::<f64>().ok().filter(|speed| (0.0..=1e6).contains(speed))?;
    Some((speed > 0.0).then_some((speed * 1e9) as u64))
}

/// Reads `33538048`, or `33538048KiB` as newer versions write.
fn kibibytes(text: &str) -> Option<u64> {
    text.strip_suffix("KiB").unwrap_or(text).trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_is_is_read_as_hwloc_writes_it() {
        let ids = PciIds { vendor: 0x10de, device: 0x1db8 };
        assert_eq!(pci_type("0302 [10de:1db8] [10de:131d] a1 00"), Some((Some(0x030200), Some(ids))));
        assert_eq!(pci_type("0000 [0000:0000] [0000:0000] 00 00"), Some((None, None)));
        for wrong in ["", "0302", "0302 [10de]", "0302 [10de:1db8", "302 [10de:1db8]", "zzzz [10de:1db8]"] {
            assert_eq!(pci_type(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn buses_are_read_and_those_that_end_before_they_begin_are_refused() {
        let buses = Buses::parse("0000:[2c-3b]").unwrap();
        assert_eq!(buses.to_string(), "0000:[2c-3b]");
        assert!(buses.contain("2c:00.0".parse().unwrap()) && buses.contain("3b:1f.7".parse().unwrap()));
        assert!(!buses.contain("2b:00.0".parse().unwrap()) && !buses.contain("1:2c:00.0".parse().unwrap()));
        for wrong in ["", "0000:[3b-2c]", "0000:[2c-3b", "0000:2c-3b", "0000:[2c]", "0000:[2c-13b]"] {
            assert_eq!(Buses::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn figures_that_cannot_be_are_refused_and_0_means_unknown() {
        assert_eq!(gigabytes("15.753846"), Some(Some(15_753_846_000)));
        assert_eq!(gigabytes("0.000000"), Some(None));
        for wrong in ["-1", "nan", "inf", "1e300", "fast"] {
            assert_eq!(gigabytes(wrong), None, "{wrong:?}");
        }
        assert_eq!(kibibytes("16671616KiB"), Some(16_671_616 << 10));
        assert_eq!(kibibytes("18446744073709551615"), None);
    }
}
