//! Observations: what drivers, runtimes and measurements say of a pair, which no topology does.

use std::collections::HashMap;

use super::decision::Direction;
use super::owner::Owner;
use super::tag::ImporterId;
use crate::topology::PciAddress;

/// One of the two whom an observation is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Party {
    /// Whoever is at this address, now or later.
    At(PciAddress),
    /// A device that is nowhere in the machine, as long as it is there.
    Device(Owner),
    /// An importer that is nowhere in the machine, as long as it is there.
    Importer(ImporterId),
}

impl From<PciAddress> for Party {
    fn from(address: PciAddress) -> Party {
        Party::At(address)
    }
}

impl From<&Owner> for Party {
    fn from(owner: &Owner) -> Party {
        owner.place().map_or_else(|| Party::Device(owner.clone()), Party::At)
    }
}

impl From<ImporterId> for Party {
    fn from(importer: ImporterId) -> Party {
        Party::Importer(importer)
    }
}

/// What was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Observed {
    /// Whether the exporter's driver lets the importer at its memory. A yes decides nothing by itself: it is a promise about the
    /// driver, not about the way.
    DriverAllows(bool),
    /// Whether the importer's runtime has peer access, as CUDA, ROCm and Level Zero can be asked. A yes settles what is not known, but no rule
    /// is overruled by it.
    PeerAccess(bool),
    /// What was seen to arrive at all.
    Carries(Direction),
    /// Bytes per second by peer-to-peer access.
    P2pRate(u64),
    /// Bytes per second by way of system memory.
    StagingRate(u64),
}

/// Something that was seen of an importer and an exporter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Whose memory.
    pub exporter: Party,
    /// Who reaches for it.
    pub importer: Party,
    /// What was seen. What was seen before of the same kind is forgotten.
    pub what: Observed,
}

impl Observation {
    /// An observation about `importer`, which reaches for the memory of `exporter`.
    pub fn new(exporter: impl Into<Party>, importer: impl Into<Party>, what: Observed) -> Observation {
        Observation { exporter: exporter.into(), importer: importer.into(), what }
    }
}

/// All that was seen of one pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub driver_allows: Option<bool>,
    pub peer_access: Option<bool>,
    pub carries: Option<Direction>,
    pub p2p_bytes_per_s: Option<u64>,
    pub staging_bytes_per_s: Option<u64>,
}

impl Seen {
    fn note(&mut self, what: Observed) {
        match what {
            Observed::DriverAllows(allows) => self.driver_allows = Some(allows),
            Observed::PeerAccess(has) => self.peer_access = Some(has),
            Observed::Carries(direction) => self.carries = Some(direction),
            Observed::P2pRate(rate) => self.p2p_bytes_per_s = Some(rate),
            Observed::StagingRate(rate) => self.staging_bytes_per_s = Some(rate),
        }
    }
}

/// What was seen, of all pairs.
#[derive(Clone, Debug, Default)]
pub(super) struct Sightings(HashMap<(Party, Party), Seen>);

impl Sightings {
    pub fn note(&mut self, observation: Observation) {
        let pair = (observation.exporter, observation.importer);
        self.0.entry(pair).or_default().note(observation.what);
    }

    pub fn of(&self, exporter: &Owner, importer: &Party) -> Seen {
        if self.0.is_empty() {
            return Seen::default();
        }
        self.0.get(&(Party::from(exporter), importer.clone())).copied().unwrap_or_default()
    }

    pub fn forget(&mut self, exporter: &Party, importer: &Party) {
        self.0.remove(&(exporter.clone(), importer.clone()));
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keeps what `keep` says, of the exporter and the importer.
    pub fn retain(&mut self, mut keep: impl FnMut(&Party, &Party) -> bool) {
        self.0.retain(|(exporter, importer), _| keep(exporter, importer));
    }
}
