//! PCI addresses.

use std::fmt;
use std::str::FromStr;

/// Where a PCI function is: `domain:bus:device.function`, as in `0000:3d:00.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// The domain, or segment.
    pub domain: u32,
    /// The bus.
    pub bus: u8,
    /// The device, or slot; below 32.
    pub device: u8,
    /// The function; below 8.
    pub function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

/// A text that is no PCI address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongPciAddress {
    /// The text.
    pub text: String,
}

impl fmt::Display for WrongPciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is no PCI address, which is written 0000:3d:00.0 or 3d:00.0", self.text)
    }
}

impl std::error::Error for WrongPciAddress {}

impl FromStr for PciAddress {
    type Err = WrongPciAddress;

    /// Reads `0000:3d:00.0`, or `3d:00.0` in domain 0.
    fn from_str(text: &str) -> Result<PciAddress, WrongPciAddress> {
        parse(text).ok_or_else(|| WrongPciAddress { text: text.to_string() })
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
    let hex = |digits: &str, longest: usize| {
        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let fits = (1..=longest).contains(&digits.len());
        u32::from_str_radix(digits, 16).ok().filter(|_| is_hex && fits)
    };
    Some(PciAddress {
        domain: hex(domain, 8)?,
        bus: hex(bus, 2)? as u8,
        device: hex(device, 2).filter(|device| *device < 32)? as u8,
        function: hex(function, 1).filter(|function| *function < 8)? as u8,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_written() {
        for text in ["0000:3d:00.0", "0001:00:1f.7", "10000:e1:00.0"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), text);
        }
        assert_eq!("3d:00.0".parse(), "0000:3d:00.0".parse::<PciAddress>());
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", "3d", "3d:00", "3d:20.0", "3d:00.8", "xyz:00.0", "0000:+d:00.0", "0000:3d:00.0 "] {
            assert!(text.parse::<PciAddress>().is_err(), "{text:?}");
        }
    }
}
