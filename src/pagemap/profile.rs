//! What an importer can do and wants.

use std::time::Duration;

use devpagemap_fence::sync::Arc;

use super::owner::Owner;
use crate::topology::PciAddress;
use crate::{Error, Result};

/// What an importer wants of peer-to-peer access. The words are those of libfabric's `FI_HMEM_P2P`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Nothing else will do: where it cannot be had, mapping fails. Taken even where staging would be faster.
    Required,
    /// Taken wherever it can be had.
    Preferred,
    /// Taken where it is not slower than staging.
    #[default]
    Allowed,
    /// Never taken.
    Forbidden,
}

/// How an importer holds what it has mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holding {
    /// It lets go when it is told to, and maps again.
    Dynamic,
    /// It holds for as long as it is attached.
    PinnedLong,
    /// It holds for a transfer, and no longer than this.
    PinnedShort {
        /// How long at most.
        longest: Duration,
    },
}

/// What an importer can do, said once, when it joins.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Profile {
    /// What explanations call it; `None`: by its address.
    pub name: Option<Arc<str>>,
    /// How it holds what it has mapped.
    pub holding: Holding,
    /// Whether a pinned importer can be made to let go for good, as a last resort.
    pub revocable: bool,
    /// Whether it can use addresses on the bus that are not memory of the system.
    pub peer_capable: bool,
    /// Whether it needs atomic operations on what it maps.
    pub atomics: bool,
    /// How many bits of an address it can drive.
    pub dma_mask_bits: u8,
    /// Where it is; `None` when it is nowhere in the machine, and its own word counts.
    pub at: Option<PciAddress>,
    /// Which owner of pagemaps it is itself, if it is one. Not needed where both have the same address.
    pub device: Option<Owner>,
    /// What it wants.
    pub policy: Policy,
}

impl Profile {
    fn new(holding: Holding) -> Profile {
        Profile {
            name: None,
            holding,
            revocable: false,
            peer_capable: true,
            atomics: false,
            dma_mask_bits: 64,
            at: None,
            device: None,
            policy: Policy::default(),
        }
    }

    /// One that lets go when it is told to.
    pub fn dynamic() -> Profile {
        Profile::new(Holding::Dynamic)
    }

    /// One that holds for as long as it is attached.
    pub fn pinned() -> Profile {
        Profile::new(Holding::PinnedLong)
    }

    /// One that holds for a transfer that takes no longer than `longest`.
    pub fn pinned_for(longest: Duration) -> Profile {
        Profile::new(Holding::PinnedShort { longest })
    }

    /// Where it is in the machine.
    #[must_use]
    pub fn at(self, address: PciAddress) -> Profile {
        Profile { at: Some(address), ..self }
    }

    /// What explanations call it.
    #[must_use]
    pub fn named(self, name: &str) -> Profile {
        Profile { name: Some(name.into()), ..self }
    }

    /// Which owner of pagemaps it is itself.
    #[must_use]
    pub fn of_device(self, device: &Owner) -> Profile {
        Profile { at: self.at.or(device.place()), device: Some(device.clone()), ..self }
    }

    /// What it wants of peer-to-peer access.
    #[must_use]
    pub fn policy(self, policy: Policy) -> Profile {
        Profile { policy, ..self }
    }

    /// It can be made to let go for good.
    #[must_use]
    pub fn revocable(self) -> Profile {
        Profile { revocable: true, ..self }
    }

    /// It cannot use addresses on the bus that are not memory of the system.
    #[must_use]
    pub fn system_only(self) -> Profile {
        Profile { peer_capable: false, ..self }
    }

    /// It needs atomic operations.
    #[must_use]
    pub fn with_atomics(self) -> Profile {
        Profile { atomics: true, ..self }
    }

    /// How many bits of an address it can drive.
    #[must_use]
    pub fn dma_mask_bits(self, bits: u8) -> Profile {
        Profile { dma_mask_bits: bits, ..self }
    }

    /// Refuses what cannot be.
    pub(super) fn check(&self) -> Result<()> {
        match self.dma_mask_bits {
            1..=64 => Ok(()),
            bits => Err(Error::InvalidImporter { why: format!("a DMA mask of {bits} bits; it has 1 to 64") }),
        }
    }
}

impl Default for Profile {
    fn default() -> Profile {
        Profile::dynamic()
    }
}
