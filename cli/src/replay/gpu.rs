//! What plays the GPU: a part of this process, with video memory of its own or in a PCI BAR.

use crate::error::{Error, Result};
use devpagemap::topology::PciAddress;
use devpagemap::{Caching, PciBar, SoftwareGpu};
use std::str::FromStr;

/// What was asked for: `software`, or `pci:ADDRESS[/barN][/wc|/uc]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuChoice {
    /// Video memory is this process's own.
    Software,
    /// Video memory is a BAR.
    Pci {
        /// Whose.
        address: PciAddress,
        /// Which; the largest of memory unless told.
        bar: Option<u8>,
        /// How it is mapped; with combined writes if there is a way, unless told.
        caching: Option<Caching>,
    },
}

impl FromStr for GpuChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<GpuChoice, String> {
        let Some(rest) = text.strip_prefix("pci:") else {
            return match text {
                "software" => Ok(GpuChoice::Software),
                _ => Err(format!("`{text}` is neither software nor pci:ADDRESS")),
            };
        };
        let mut parts = rest.split('/');
        let address = parts.next().unwrap_or_default();
        let address = address.parse::<PciAddress>().map_err(|wrong| wrong.to_string())?;
        let (mut bar, mut caching) = (None, None);
        for part in parts {
            match part {
                "wc" if caching.is_none() => caching = Some(Caching::WriteCombined),
                "uc" if caching.is_none() => caching = Some(Caching::Uncached),
                _ => match part.strip_prefix("bar").and_then(|number| number.parse::<u8>().ok()) {
                    Some(number @ 0..=5) if bar.is_none() => bar = Some(number),
                    _ => return Err(format!("`/{part}` is none of /bar0 to /bar5, /wc and /uc, each once")),
                },
            }
        }
        Ok(GpuChoice::Pci { address, bar, caching })
    }
}

/// A GPU to be, whose video memory is at hand.
#[derive(Debug)]
pub struct Gpu(Option<PciBar>);

impl Gpu {
    /// One with video memory of its own.
    pub const SOFTWARE: Gpu = Gpu(None);

    /// Gets hold of what was asked for.
    ///
    /// # Errors
    /// [`Error::Usage`] with the cause, when the BAR cannot be used.
    pub fn open(choice: GpuChoice) -> Result<Gpu> {
        let GpuChoice::Pci { address, bar, caching } = choice else { return Ok(Gpu::SOFTWARE) };
        let open = || {
            let index = bar.map_or_else(|| PciBar::largest(address), Ok)?;
            match caching {
                Some(caching) => PciBar::open(address, index, caching),
                None => PciBar::open_best(address, index),
            }
        };
        let bar = open().map_err(|error| Error::usage("--device", error.to_string()))?;
        Ok(Gpu(Some(bar)))
    }

    /// The video memory that there is; `None` where it can be as much as is asked for.
    pub fn vram_bytes(&self) -> Option<u64> {
        self.0.as_ref().map(|bar| bar.size().as_bytes())
    }

    /// Starts its rings.
    pub(super) fn build(self) -> devpagemap::Result<SoftwareGpu> {
        let builder = SoftwareGpu::builder();
        match self.0 {
            Some(bar) => builder.vram_in(bar).build(),
            None => builder.build(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_named_by_address_number_and_caching() {
        let address = "0000:00:04.0".parse().expect("an address");
        let pci = |bar, caching| Ok(GpuChoice::Pci { address, bar, caching });
        assert_eq!("software".parse(), Ok(GpuChoice::Software));
        assert_eq!("pci:0000:00:04.0".parse(), pci(None, None));
        assert_eq!("pci:00:04.0/bar2".parse(), pci(Some(2), None));
        assert_eq!("pci:0000:00:04.0/bar2/uc".parse(), pci(Some(2), Some(Caching::Uncached)));
        assert_eq!("pci:0000:00:04.0/wc".parse(), pci(None, Some(Caching::WriteCombined)));
        for wrong in
            ["", "pci", "pci:", "pci:4", "pci:00:04.0/", "pci:00:04.0/bar6", "pci:00:04.0/wc/uc", "vulkan"]
        {
            assert!(wrong.parse::<GpuChoice>().is_err(), "{wrong:?}");
        }
    }
}
