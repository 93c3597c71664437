//! Links: the one of PCI Express above a function, and private ones between devices.

use std::fmt;

use super::machine::NodeId;

/// The PCI Express link that a function reports: the one above an end point or an upstream port, the one below a root
/// port or a downstream port. Both ends of a link report the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PciLink {
    /// Bytes per second in one direction, as the link is trained now.
    pub bytes_per_s: Option<u64>,
    /// As it could be at best.
    pub max_bytes_per_s: Option<u64>,
}

impl PciLink {
    /// Whether it is slower than it could be.
    pub fn is_degraded(&self) -> bool {
        matches!((self.bytes_per_s, self.max_bytes_per_s), (Some(now), Some(best)) if now < best)
    }
}

/// What a PCI Express link carries in one direction, in bytes per second, after its line code.
///
/// `mega_transfers_per_s` is the speed of a lane: 2500 for the first generation, 16000 for the fourth. `None` for a speed
/// that no generation has, and for a width of 0 or above 32.
///
/// ```
/// use devpagemap::topology::pci_bytes_per_s;
/// assert_eq!(pci_bytes_per_s(2_500, 1), Some(250_000_000));
/// assert_eq!(pci_bytes_per_s(16_000, 16), Some(31_507_692_307));
/// assert_eq!(pci_bytes_per_s(16_000, 0), None);
/// ```
pub fn pci_bytes_per_s(mega_transfers_per_s: u32, width: u32) -> Option<u64> {
    // Bits of data in bits on the wire: 8b/10b, then 128b/130b, then flits of 256 bytes that carry 242.
    let (data, wire) = match mega_transfers_per_s {
        2_500 | 5_000 => (8, 10),
        8_000 | 16_000 | 32_000 => (128, 130),
        64_000 => (242, 256),
        _ => return None,
    };
    let bits_per_s = u64::from(mega_transfers_per_s) * 1_000_000 * u64::from(width);
    (1..=32).contains(&width).then(|| bits_per_s / 8 * data / wire)
}

/// Reads the speed of a lane as the kernel and NCCL write it: `16.0 GT/s PCIe`, `8 GT/s`. In mega transfers a second;
/// `None` for what is neither, such as `Unknown`.
pub fn parse_pci_speed(text: &str) -> Option<u32> {
    let (number, unit) = text.trim().split_once(' ')?;
    let known = unit.trim() == "GT/s" || unit.trim() == "GT/s PCIe";
    let giga = number.parse::<f64>().ok().filter(|giga| known && (0.0..=1_000.0).contains(giga))?;
    Some((giga * 1_000.0).round() as u32)
}

/// What a private link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinkKind {
    /// NVIDIA's.
    NvLink,
    /// AMD's.
    Xgmi,
    /// Another one.
    Other,
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LinkKind::NvLink => "NVLink",
            LinkKind::Xgmi => "xGMI",
            LinkKind::Other => "private link",
        })
    }
}

/// A private link, in one direction. A way through switches that only carry such links is one link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whose requests it carries.
    pub from: NodeId,
    /// Whom it reaches.
    pub to: NodeId,
    /// What it is.
    pub kind: LinkKind,
    /// How many lanes or bricks it has; at least 1.
    pub count: u32,
    /// All of them together, in one direction.
    pub bytes_per_s: Option<u64>,
    /// Whether it carries atomic operations.
    pub atomics: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_read_as_kernel_and_nccl_write_them() {
        assert_eq!(parse_pci_speed("16.0 GT/s PCIe\n"), Some(16_000));
        assert_eq!(parse_pci_speed("2.5 GT/s PCIe"), Some(2_500));
        assert_eq!(parse_pci_speed("8 GT/s"), Some(8_000));
        for text in ["", "Unknown", "Unknown speed", "8", "8 GB/s", "-8 GT/s", "NaN GT/s", "1e300 GT/s"] {
            assert_eq!(parse_pci_speed(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_link_carries_what_its_line_code_leaves() {
        assert_eq!(pci_bytes_per_s(5_000, 16), Some(8_000_000_000));
        assert_eq!(pci_bytes_per_s(8_000, 16), Some(15_753_846_153));
        assert_eq!(pci_bytes_per_s(64_000, 16), Some(121_000_000_000));
        assert_eq!(pci_bytes_per_s(8_000, 33), None);
        assert_eq!(pci_bytes_per_s(7_000, 16), None);
    }
}
